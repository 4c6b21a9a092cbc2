//! `vitag run` as a process of its own.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::broker::{Broker, Message, Received};

/// How long anything may take that should happen soon, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Settings with which what is waited for comes soon.
pub(crate) const QUICK: [&str; 5] = [
    "kafka.session_timeout_ms=6000",
    "kafka.consumer_properties.heartbeat.interval.ms=500",
    "kafka.transaction_timeout_ms=10000",
    "commit.interval_ms=50",
    "lanes.count=1",
];

/// The topics and the group of one test, on the broker that the test binary shares.
pub(crate) struct Stream<'b> {
    pub(crate) broker: &'b Broker,
    pub(crate) input: String,
    pub(crate) output: String,
    pub(crate) dead_letters: String,
    pub(crate) group: String,
    pub(crate) partitions: i32,
}

impl<'b> Stream<'b> {
    /// Makes the topics, with `partitions` each.
    pub(crate) fn new(broker: &'b Broker, partitions: i32) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let stream = Self {
            broker,
            input: format!("{name}.in"),
            output: format!("{name}.out"),
            dead_letters: format!("{name}.out.dead-letters"),
            group: format!("{name}.group"),
            partitions,
        };
        for topic in [&stream.input, &stream.output, &stream.dead_letters] {
            broker.create_topic(topic, partitions);
        }
        stream
    }

    /// Starts a worker on the stream; its settings win over the defaults here.
    pub(crate) fn worker(&self, instance: &str, settings: &[&str]) -> Worker {
        self.worker_with(instance, settings, &[])
    }

    /// Starts a worker with fail points set, as `FAILPOINTS` takes them.
    pub(crate) fn worker_with(&self, instance: &str, settings: &[&str], env: &[(&str, &str)]) -> Worker {
        let own = self.settings(instance);
        let settings = own.iter().map(String::as_str).chain(QUICK).chain(settings.iter().copied());
        Worker::start(settings, env)
    }

    /// The settings that make a worker of this name work on the stream.
    pub(crate) fn settings(&self, instance: &str) -> [String; 6] {
        [
            format!("kafka.bootstrap_servers={}", self.broker.bootstrap()),
            format!("kafka.group_id={}", self.group),
            format!("input.topics={}", self.input),
            format!("output.topic={}", self.output),
            format!("worker.instance={instance}"),
            "admin.address=".into(),
        ]
    }

    /// Writes documents `{"id", "text"}` with the id as the key.
    pub(crate) fn feed(&self, ids: impl IntoIterator<Item = u32>) {
        let document = |id: u32| {
            let text = format!("Bác sĩ số {id} ở Huế. Trời hôm nay đẹp quá!");
            let key = format!("key-{}", id % 7);
            Message::new(serde_json::json!({ "id": id, "text": text }).to_string()).key(key)
        };
        self.broker.produce(&self.input, ids.into_iter().map(document));
    }

    /// Writes these documents and lets a live worker tag them, which then leaves.
    pub(crate) fn feed_and_tag(&self, ids: impl IntoIterator<Item = u32>) {
        self.feed(ids);
        let mut worker = self.worker("live", &[]);
        self.wait_until_committed();
        worker.terminate();
        worker.wait();
    }

    /// The committed annotations, when there are `count`.
    pub(crate) fn outputs(&self, count: usize) -> Vec<Received> {
        self.broker.read_committed(&self.output, count, SOON)
    }

    /// Checks that each id below `count` came out exactly once, each key in the order of the ids.
    pub(crate) fn assert_exactly_once(&self, count: u32) {
        self.outputs(count as usize);
        let records = self.broker.read_committed_to_end(&self.output);
        let mut ids: Vec<u32> = records.iter().map(id).collect();
        for key in 0..7 {
            let of_key: Vec<u32> = records.iter().map(id).filter(|id| id % 7 == key).collect();
            assert!(of_key.is_sorted(), "key {key} is out of order: {of_key:?}");
        }
        ids.sort_unstable();
        assert_eq!(ids, (0..count).collect::<Vec<_>>(), "each once");
    }

    /// Waits until the group has committed all that the input holds.
    pub(crate) fn wait_until_committed(&self) {
        wait_until("the group to stand at the end of the input", || {
            let committed = self.broker.committed(&self.group, &self.input);
            (0..self.partitions).all(|partition| {
                let end = self.broker.high_watermark(&self.input, partition);
                end == committed.get(&partition).copied().unwrap_or(0)
            })
        });
    }
}

/// The id of an annotation.
pub(crate) fn id(record: &Received) -> u32 {
    json(record)["id"].as_u64().expect("a number") as u32
}

/// The value as JSON.
pub(crate) fn json(record: &Received) -> serde_json::Value {
    serde_json::from_str(record.text()).expect("JSON")
}

/// Waits for a condition.
///
/// # Panics
/// If it does not hold within [`SOON`].
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Does something when it is dropped, however that came about.
pub(crate) struct Finally<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A running worker; dropped, it is killed.
pub(crate) struct Worker {
    child: Child,
    log: PathBuf,
    _folder: TempDir,
}

impl Worker {
    /// Starts `vitag run` with these settings.
    pub(crate) fn start<'s>(settings: impl IntoIterator<Item = &'s str>, env: &[(&str, &str)]) -> Self {
        let folder = TempDir::with_prefix("vitag-worker-").expect("a temporary folder");
        let log = folder.path().join("log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vitag"));
        command.arg("run").envs(env.iter().copied()).stdin(Stdio::null());
        for setting in settings {
            command.args(["--set", setting]);
        }
        let file = File::create(&log).expect("a log");
        let child = command.stdout(Stdio::null()).stderr(file).spawn().expect("the worker starts");
        Self { child, log, _folder: folder }
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the log has `text`.
    pub(crate) fn wait_for_log(&self, text: &str) {
        let deadline = Instant::now() + SOON;
        while !self.log().contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} in the log:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The most memory that it has had at a time, in bytes: the peak of its resident set.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.memory_of("VmHWM:")
    }

    /// The memory that it has now, in bytes: its resident set.
    pub(crate) fn memory(&self) -> u64 {
        self.memory_of("VmRSS:")
    }

    fn memory_of(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the worker runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the line");
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kilobytes * 1024
    }

    /// Its threads: their names, and the processor seconds that each has had.
    pub(crate) fn threads(&self) -> Vec<(String, f64)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("the worker runs");
        let of_task = |task: std::io::Result<fs::DirEntry>| {
            let read = |file: &str| fs::read_to_string(task.as_ref().ok()?.path().join(file)).ok();
            let nanoseconds: f64 = read("schedstat")?.split(' ').next()?.parse().ok()?;
            Some((read("comm")?.trim_end().to_owned(), nanoseconds / 1e9))
        };
        tasks.filter_map(of_task).collect()
    }

    /// A page of its admin address, which must be set to port 0 of 127.0.0.1.
    pub(crate) fn page(&self, path: &str) -> String {
        let mut answer = ureq::get(self.address(path)).call().expect("the worker answers");
        answer.body_mut().read_to_string().expect("text")
    }

    /// Status and answer to a JSON value that is posted to a page, with a bearer token if one is given.
    pub(crate) fn post(&self, path: &str, token: Option<&str>, value: &str) -> (u16, serde_json::Value) {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut request = agent.post(self.address(path));
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let mut answer = request.send(value).expect("the worker answers");
        (answer.status().as_u16(), answer.body_mut().read_json().expect("JSON"))
    }

    fn address(&self, path: &str) -> String {
        let log = self.log();
        let line = log.lines().find(|line| line.contains("serving health and metrics")).expect("the address");
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        format!("http://{}{path}", line["address"].as_str().expect("an address"))
    }

    /// The values of a metric over all its attributes.
    pub(crate) fn metric(&self, name: &str) -> Vec<f64> {
        let page = self.page("/metrics");
        let lines = page.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        lines.map(|line| line.rsplit(' ').next().expect("a value").parse().expect("a number")).collect()
    }

    /// Asks it to end in good order.
    pub(crate) fn terminate(&self) {
        signal(&self.child, "TERM");
    }

    /// Stops it where it is; its connections stay open and answer nothing.
    pub(crate) fn freeze(&self) {
        signal(&self.child, "STOP");
    }

    /// Lets a frozen worker go on.
    pub(crate) fn thaw(&self) {
        signal(&self.child, "CONT");
    }

    /// How it ended, if it has.
    pub(crate) fn ending(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a status")
    }

    /// Kills it: nothing is finished, nobody is told.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a status").is_some()
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the worker to end", || {
            status = self.child.try_wait().expect("a status");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("log of the worker:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let status = Command::new("sh").args(["-c", r#"kill "-$0" "$1""#, name, &pid]).status().expect("sh runs");
    assert!(status.success(), "kill -{name} {pid}: {status}");
}
