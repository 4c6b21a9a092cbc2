//! A real Kafka broker for tests: one broker and its controller under Java, on loopback, in a temporary folder.
//!
//! Both are child processes. A watcher beside each ends it and removes the folder when the test process is gone, however
//! that came about: a static is never dropped, and a killed process drops nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Headers, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tempfile::TempDir;

/// The version in tests/broker/pom.xml.
const KAFKA_VERSION: &str = "4.3.1";
const CLUSTER_ID: &str = "dml0YWctdGVzdHMtLS0tLQ";
/// How long one request to a healthy broker may take.
const REQUEST: Duration = Duration::from_secs(20);
/// Chosen for a quick start and a small footprint; the tests are not a benchmark of the broker.
const JVM_OPTIONS: [&str; 7] = [
    "-Xms64m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
];

/// A running broker. Dropping it ends the processes and removes their folder.
pub(crate) struct Broker {
    // Fields drop in this order: the folder goes when nobody writes to it any more.
    /// `None` between `kill` and `restart`.
    server: Option<Node>,
    controller: Node,
    port: u16,
    /// Ports of further listeners, by name.
    listeners: BTreeMap<&'static str, u16>,
    folder: TempDir,
}

/// What a broker has beside its plain listener.
#[derive(Default)]
pub(crate) struct Extras {
    /// Further listeners.
    pub(crate) listeners: Vec<Listener>,
    /// Names and passwords for SCRAM, with SHA-256 and SHA-512.
    pub(crate) scram_users: Vec<(&'static str, &'static str)>,
}

/// A listener on loopback.
pub(crate) struct Listener {
    pub(crate) name: &'static str,
    /// `SSL` or `SASL_SSL`.
    pub(crate) protocol: &'static str,
    /// Settings of this listener alone, without `listener.name.<name>.` before them.
    pub(crate) settings: Vec<(&'static str, String)>,
    /// The port that clients are told of, if it is another: that of a proxy.
    pub(crate) advertised: Option<u16>,
}

impl Broker {
    /// Starts a broker of the caller's own, for tests that kill or pause it.
    ///
    /// # Panics
    /// If the jars or Java are missing, or the broker is not ready in time.
    pub(crate) fn start() -> Self {
        Self::start_with(&Extras::default())
    }

    /// Like `start`, with more than a plain listener.
    pub(crate) fn start_with(extras: &Extras) -> Self {
        let folder = TempDir::with_prefix("vitag-broker-").expect("a temporary folder");
        let port = free_port();
        let listeners = extras.listeners.iter().map(|listener| (listener.name, free_port())).collect();
        configure(folder.path(), port, free_port());
        add_listeners(folder.path(), port, &listeners, extras);
        // The broker looks for its controller until it is there, so its Java may start meanwhile.
        let server = Node::start("broker", folder.path());
        format_controller(folder.path(), extras);
        let controller = Node::start("controller", folder.path());
        let mut broker = Self { server: Some(server), controller, port, listeners, folder };
        broker.wait_until_ready();
        broker
    }

    /// The value of `bootstrap.servers` for a further listener.
    pub(crate) fn listener(&self, name: &str) -> String {
        format!("127.0.0.1:{}", self.listeners[name])
    }

    /// The one broker that the tests of a test binary share; each uses topics and groups of its own.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// The value of `bootstrap.servers`.
    pub(crate) fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A client's configuration that names this broker and nothing else.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.bootstrap());
        config
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        read(&self.folder.path().join("broker.log"))
    }

    /// Kills the broker the hard way: nothing is flushed, nobody is told.
    pub(crate) fn kill(&mut self) {
        self.server = None;
    }

    /// Starts the killed broker again, on the same data and ports, and waits until it serves.
    ///
    /// This takes as long as the controller takes to notice the death: see tests/broker/controller.properties.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let folder = self.folder.path();
        wait_for("the controller to notice that the broker is gone", || {
            let log = read(&folder.join("controller.log"));
            log.rfind("Fencing broker 2 ") > log.rfind("from broker 2 to unfence has been granted")
        });
        self.server = Some(Node::start("broker", folder));
        self.wait_until_ready();
    }

    /// Stops the process where it is; its connections stay open and answer nothing.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.server.as_ref().expect("the broker was started").java.id());
        let is_stopped = |stat: String| stat.rsplit(") ").next().is_some_and(|state| state.starts_with('T'));
        wait_for("the broker to stand still", || {
            let threads = fs::read_dir(&tasks).expect("the threads of the broker").flatten();
            threads.map(|thread| fs::read_to_string(thread.path().join("stat"))).all(|stat| stat.is_ok_and(is_stopped))
        });
    }

    /// Lets every write to the broker's disk fail, as when it is full, until the broker has given up.
    pub(crate) fn fail_writes(&mut self) {
        let server = self.server.as_mut().expect("the broker was started");
        let pid = server.java.id().to_string();
        let status = Command::new("prlimit").args(["--fsize=1:", "--pid", &pid]).status().expect("prlimit runs");
        assert!(status.success(), "prlimit: {status}");
        wait_for("the broker to give up", || server.java.try_wait().expect("a child's status").is_some());
        self.server = None;
    }

    /// Adds partitions to a topic, up to `partitions` in all.
    pub(crate) fn grow_topic(&self, name: &str, partitions: i32) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let grown = NewPartitions::new(name, partitions as usize);
        let results = runtime.block_on(admin.create_partitions([&grown], &AdminOptions::new()));
        for result in results.expect("the broker answers") {
            result.unwrap_or_else(|(topic, error)| panic!("topic {topic} did not grow: {error}"));
        }
        self.wait_for_leaders(name, partitions);
    }

    /// Lets a paused broker go on.
    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let server = self.server.as_ref().expect("the broker was started");
        let pid = server.java.id().to_string();
        let status = Command::new("sh").args(["-c", r#"kill "-$0" "$1""#, name, &pid]).status().expect("sh runs");
        assert!(status.success(), "kill -{name} {pid}: {status}");
    }

    /// Ready means that the broker answers a metadata request and names itself in it.
    fn wait_until_ready(&mut self) {
        let consumer: BaseConsumer = self.client().set("reconnect.backoff.max.ms", "100").create().expect("a consumer");
        let folder = self.folder.path();
        let server = self.server.as_mut().expect("the broker was started");
        wait_for("the broker to serve", || {
            for node in [&mut *server, &mut self.controller] {
                node.assert_alive(folder);
            }
            let metadata = consumer.fetch_metadata(None, Duration::from_millis(500));
            metadata.is_ok_and(|metadata| !metadata.brokers().is_empty())
        });
    }
}

/// Asks until the answer is yes.
///
/// # Panics
/// If it is not within a minute.
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Topics.
impl Broker {
    /// Makes a topic and waits until each partition has a leader.
    pub(crate) fn create_topic(&self, name: &str, partitions: i32) {
        self.create_topic_with(name, partitions, &[]);
    }

    /// Like `create_topic`, with settings of the topic, as `[("cleanup.policy", "compact")]`.
    pub(crate) fn create_topic_with(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let topic =
            settings.iter().fold(NewTopic::new(name, partitions, TopicReplication::Fixed(1)), |topic, (key, value)| {
                topic.set(key, value)
            });
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let results = runtime.block_on(admin.create_topics([&topic], &AdminOptions::new()));
        for result in results.expect("the broker answers") {
            result.unwrap_or_else(|(topic, error)| panic!("topic {topic} was not made: {error}"));
        }
        self.wait_for_leaders(name, partitions);
    }

    fn wait_for_leaders(&self, topic: &str, partitions: i32) {
        let consumer: BaseConsumer = self.client().create().expect("a consumer");
        wait_for("the leaders of a new topic", || {
            let metadata = consumer.fetch_metadata(Some(topic), REQUEST).expect("metadata");
            let led = metadata.topics()[0].partitions().iter().filter(|p| p.error().is_none() && p.leader() >= 0);
            led.count() == partitions as usize
        });
    }

    /// The offset after the last record of a partition, committed or not.
    pub(crate) fn high_watermark(&self, topic: &str, partition: i32) -> i64 {
        self.end_offset(topic, partition, "read_uncommitted")
    }

    /// The offset up to which every transaction of a partition has ended.
    pub(crate) fn last_stable_offset(&self, topic: &str, partition: i32) -> i64 {
        self.end_offset(topic, partition, "read_committed")
    }

    fn end_offset(&self, topic: &str, partition: i32, isolation: &str) -> i64 {
        let consumer: BaseConsumer = self.client().set("isolation.level", isolation).create().expect("a consumer");
        consumer.fetch_watermarks(topic, partition, REQUEST).expect("watermarks").1
    }

    /// The next offset to read that a group has committed, for each partition where it has committed one.
    pub(crate) fn committed(&self, group: &str, topic: &str) -> BTreeMap<i32, i64> {
        let consumer: BaseConsumer = self.client().set("group.id", group).create().expect("a consumer");
        let partitions = all_partitions(&consumer, topic);
        let mut committed = None;
        // A group has no coordinator for a moment when it is new, and after a restart.
        wait_for("committed offsets", || {
            committed = consumer.committed_offsets(partitions.clone(), REQUEST).ok();
            committed.is_some()
        });
        let committed = committed.expect("there are some");
        let elements = committed.elements();
        elements.iter().filter_map(|e| Some((e.partition(), e.offset().to_raw().filter(|o| *o >= 0)?))).collect()
    }

    /// The sum of these: how many messages it is, where none are markers of transactions.
    pub(crate) fn committed_in_all(&self, group: &str, topic: &str) -> u64 {
        self.committed(group, topic).values().sum::<i64>() as u64
    }
}

/// Records, in.
impl Broker {
    /// Writes the messages in order and waits until the broker has them all.
    pub(crate) fn produce(&self, topic: &str, messages: impl IntoIterator<Item = Message>) {
        let producer = self.producer(None);
        send(&producer, topic, messages);
    }

    /// Writes the messages in one transaction, and commits or aborts it after they have reached the broker.
    pub(crate) fn produce_in_transaction(&self, topic: &str, messages: impl IntoIterator<Item = Message>, end: End) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let producer = self.in_transaction(&id);
        send(&producer, topic, messages);
        match end {
            End::Commit => producer.commit_transaction(REQUEST).expect("the transaction is committed"),
            End::Abort => producer.abort_transaction(REQUEST).expect("the transaction is aborted"),
        }
    }

    /// A transaction that holds the offsets of a group, at which it stands, until it is dropped.
    pub(crate) fn hold_offsets(&self, group: &str, topic: &str) -> HeldOffsets {
        let consumer: BaseConsumer = self.client().set("group.id", group).create().expect("a consumer");
        let mut offsets = TopicPartitionList::new();
        for (partition, offset) in self.committed(group, topic) {
            offsets.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("an offset");
        }
        let producer = self.in_transaction(&format!("holds-{group}"));
        let metadata = consumer.group_metadata().expect("the group's metadata");
        producer.send_offsets_to_transaction(&offsets, &metadata, REQUEST).expect("the offsets are sent");
        HeldOffsets(producer)
    }

    /// A producer whose transaction has begun.
    fn in_transaction(&self, id: &str) -> ThreadedProducer<Deliveries> {
        let producer = self.producer(Some(id));
        producer.init_transactions(REQUEST).expect("transactions are initialised");
        producer.begin_transaction().expect("a transaction begins");
        producer
    }

    fn producer(&self, transactional_id: Option<&str>) -> ThreadedProducer<Deliveries> {
        let mut config = self.client();
        config.set("enable.idempotence", "true");
        if let Some(id) = transactional_id {
            config.set("transactional.id", id);
        }
        config.create_with_context(Deliveries::default()).expect("a producer")
    }
}

/// See [`Broker::hold_offsets`].
pub(crate) struct HeldOffsets(ThreadedProducer<Deliveries>);

impl Drop for HeldOffsets {
    fn drop(&mut self) {
        self.0.abort_transaction(REQUEST).expect("the transaction is aborted");
    }
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Commit,
    Abort,
}

fn send(producer: &ThreadedProducer<Deliveries>, topic: &str, messages: impl IntoIterator<Item = Message>) {
    for message in messages {
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic);
        record.key = message.key.as_deref();
        record.payload = message.value.as_deref();
        record.partition = message.partition;
        record.timestamp = message.timestamp;
        record.headers = Some(message.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: value.as_deref() })
        }));
        producer.send(record).unwrap_or_else(|(error, _)| panic!("not sent to {topic}: {error}"));
    }
    producer.flush(REQUEST).expect("the broker takes the records");
    if let Some(error) = producer.context().first_failure() {
        panic!("not delivered to {topic}: {error}");
    }
}

/// Remembers the first record that did not arrive.
#[derive(Default)]
struct Deliveries {
    failure: Mutex<Option<KafkaError>>,
}

impl Deliveries {
    fn first_failure(&self) -> Option<KafkaError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert_with(|| error.clone());
        }
    }
}

/// A record to write.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
    partition: Option<i32>,
    timestamp: Option<i64>,
}

impl Message {
    pub(crate) fn new(value: impl Into<Vec<u8>>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    /// A record with a key and no value.
    pub(crate) fn tombstone(key: impl Into<Vec<u8>>) -> Self {
        Self { key: Some(key.into()), ..Self::default() }
    }

    pub(crate) fn without_value(self) -> Self {
        Self { value: None, ..self }
    }

    pub(crate) fn key(self, key: impl Into<Vec<u8>>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.to_owned(), Some(value.into())));
        self
    }

    pub(crate) fn null_header(mut self, name: &str) -> Self {
        self.headers.push((name.to_owned(), None));
        self
    }

    /// Without it the producer's partitioner decides.
    pub(crate) fn partition(self, partition: i32) -> Self {
        Self { partition: Some(partition), ..self }
    }

    /// Milliseconds since the epoch; without it the time of sending.
    pub(crate) fn timestamp(self, timestamp: i64) -> Self {
        Self { timestamp: Some(timestamp), ..self }
    }
}

/// Records, out. Every reader starts at the beginning of every partition and belongs to no group.
impl Broker {
    /// The first `count` committed records, or more if they arrived with them.
    ///
    /// # Panics
    /// If there are fewer after `timeout`.
    pub(crate) fn read_committed(&self, topic: &str, count: usize, timeout: Duration) -> Vec<Received> {
        self.read_committed_until(topic, timeout, |records| records.len() >= count)
    }

    /// Committed records until `done` says of those so far that they are enough.
    ///
    /// # Panics
    /// If it has not said so after `timeout`.
    pub(crate) fn read_committed_until(
        &self,
        topic: &str,
        timeout: Duration,
        done: impl Fn(&[Received]) -> bool,
    ) -> Vec<Received> {
        self.read(topic, "read_committed", timeout, |records, _| done(records))
    }

    /// All committed records up to the last stable offset of now.
    pub(crate) fn read_committed_to_end(&self, topic: &str) -> Vec<Received> {
        self.read(topic, "read_committed", REQUEST, |_, at_end| at_end)
    }

    /// All records, those of open and aborted transactions too.
    /// Calls `each` with all that a topic holds, of which there may be much.
    pub(crate) fn each_committed(&self, topic: &str, mut each: impl FnMut(Received)) {
        let (consumer, partitions) = self.at_beginning(topic, "read_committed");
        let mut ended = BTreeSet::new();
        while ended.len() < partitions {
            match consumer.poll(REQUEST) {
                Some(Ok(message)) => each(Received::from(&message)),
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(ended.insert(partition)),
                Some(Err(error)) => panic!("{topic} cannot be read: {error}"),
                None => panic!("{topic}: nothing within {REQUEST:?}"),
            }
        }
    }

    pub(crate) fn read_uncommitted_to_end(&self, topic: &str) -> Vec<Received> {
        self.read(topic, "read_uncommitted", REQUEST, |_, at_end| at_end)
    }

    /// Reads until `done(records so far, every partition was read to its end)`.
    fn read(
        &self,
        topic: &str,
        isolation: &str,
        timeout: Duration,
        done: impl Fn(&[Received], bool) -> bool,
    ) -> Vec<Received> {
        let (consumer, partitions) = self.at_beginning(topic, isolation);
        let deadline = Instant::now() + timeout;
        let mut records = Vec::new();
        let mut ended = BTreeSet::new();
        while !done(&records, ended.len() == partitions) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{topic}: {} records within {timeout:?}: {records:#?}", records.len());
            match consumer.poll(left) {
                Some(Ok(message)) => records.push(Received::from(&message)),
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(ended.insert(partition)),
                Some(Err(error)) => panic!("{topic} cannot be read: {error}"),
                None => {}
            }
        }
        records
    }

    /// A consumer at the beginning of all partitions of a topic, and how many there are.
    fn at_beginning(&self, topic: &str, isolation: &str) -> (BaseConsumer, usize) {
        let mut config = self.client();
        config.set("group.id", "unused").set("enable.auto.commit", "false").set("enable.partition.eof", "true");
        let consumer: BaseConsumer = config.set("isolation.level", isolation).create().expect("a consumer");
        let mut partitions = all_partitions(&consumer, topic);
        partitions.set_all_offsets(Offset::Beginning).expect("offsets are set");
        consumer.assign(&partitions).expect("partitions are assigned");
        (consumer, partitions.count())
    }
}

fn all_partitions(consumer: &BaseConsumer, topic: &str) -> TopicPartitionList {
    let metadata = consumer.fetch_metadata(Some(topic), REQUEST).expect("metadata");
    let mut list = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        list.add_partition(topic, partition.id());
    }
    assert!(list.count() > 0, "topic {topic} does not exist");
    list
}

/// A record that was read, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since the epoch.
    pub(crate) timestamp: Option<i64>,
}

impl Received {
    /// The value as text.
    ///
    /// # Panics
    /// If there is none, or it is not UTF-8.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(self.value.as_deref().expect("a value")).expect("UTF-8")
    }

    /// The value of the last header of this name.
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().rev().find(|(key, _)| key == name)?.1.as_deref()
    }
}

impl From<&BorrowedMessage<'_>> for Received {
    fn from(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().into_iter().flat_map(Headers::iter);
        Self {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect(),
            timestamp: message.timestamp().to_millis(),
        }
    }
}

/// One of the two Java processes, and the `sh` that outlives the tests to clean up after it.
struct Node {
    name: &'static str,
    java: Child,
    watcher: Child,
}

impl Node {
    fn start(name: &'static str, folder: &Path) -> Self {
        let output = File::create(folder.join(name).with_extension("out")).expect("a file for the output");
        let mut command = java(name, folder);
        command.arg("kafka.Kafka").arg(properties(name, folder));
        command.stdout(output.try_clone().expect("a second handle")).stderr(output);
        let java = command.spawn().unwrap_or_else(|error| panic!("java does not start ({error}): run `make setup`"));
        let watcher = watch(&java, folder).expect("sh starts");
        Self { name, java, watcher }
    }

    fn assert_alive(&mut self, folder: &Path) {
        if let Some(status) = self.java.try_wait().expect("a child's status") {
            let logs = ["out", "log"].map(|extension| read(&folder.join(self.name).with_extension(extension)));
            let lines: Vec<&str> = logs.iter().flat_map(|log| log.lines()).collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            panic!("the {} ended with {status}\n{tail}", self.name);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The watcher first: at the end of its input it would kill whatever process has Java's number by then.
        for child in [&mut self.watcher, &mut self.java] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Its standard input is a pipe from this process, so it reads the end of file when this process is gone.
fn watch(java: &Child, folder: &Path) -> io::Result<Child> {
    const SCRIPT: &str = r#"trap '' HUP INT TERM; read -r _; kill -KILL "$0"; rm -rf "$1""#;
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT, &java.id().to_string()]).arg(folder);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// `java` with Kafka's jars; its log and its temporary files go to `folder`.
fn java(name: &str, folder: &Path) -> Command {
    let mut command = Command::new("java");
    command.args(JVM_OPTIONS).stdin(Stdio::null());
    command.arg(format!("-Dlog4j2.configurationFile={}", support("log4j2.xml").display()));
    command.arg(format!("-Dvitag.log={}", folder.join(name).with_extension("log").display()));
    command.arg(format!("-Djava.io.tmpdir={}", folder.display()));
    command.arg("-cp").arg(jars().join("*"));
    command
}

/// The folder of the jars that `deploy/setup.sh broker` fetched.
fn jars() -> PathBuf {
    let folder = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let user_cache = || folder("XDG_CACHE_HOME").unwrap_or_else(|| folder("HOME").expect("HOME is set").join(".cache"));
    let cache = folder("VITAG_CACHE").unwrap_or_else(|| user_cache().join("vitag"));
    let jars = cache.join("kafka").join(KAFKA_VERSION);
    assert!(jars.is_dir(), "no Kafka in {}: run `make setup`", jars.display());
    jars
}

/// A file of tests/broker.
fn support(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broker").join(name)
}

fn properties(name: &str, folder: &Path) -> PathBuf {
    folder.join(name).with_extension("properties")
}

fn configure(folder: &Path, client_port: u16, controller_port: u16) {
    for name in ["controller", "broker"] {
        let template = fs::read_to_string(support(name).with_extension("properties")).expect("a template");
        let filled = template
            .replace("@FOLDER@", &folder.display().to_string())
            .replace("@CLIENT_PORT@", &client_port.to_string())
            .replace("@CONTROLLER_PORT@", &controller_port.to_string());
        fs::write(properties(name, folder), filled).expect("a configuration is written");
    }
    // All that a broker wants to find on its disk: whose it is.
    let data = folder.join("data");
    fs::create_dir(&data).expect("a folder");
    let identity = format!("version=1\nnode.id=2\ncluster.id={CLUSTER_ID}\n");
    fs::write(data.join("meta.properties"), identity).expect("an identity is written");
}

/// Writes further listeners behind the configuration: of a setting that is there twice, the last counts.
fn add_listeners(folder: &Path, plain: u16, ports: &BTreeMap<&str, u16>, extras: &Extras) {
    let (mut listeners, mut protocols) = (format!("CLIENTS://127.0.0.1:{plain}"), "CLIENTS:PLAINTEXT".to_owned());
    let mut advertised = listeners.clone();
    let mut settings = String::new();
    for Listener { name, protocol, settings: own, advertised: port } in &extras.listeners {
        listeners += &format!(",{name}://127.0.0.1:{}", ports[name]);
        advertised += &format!(",{name}://127.0.0.1:{}", port.unwrap_or(ports[name]));
        protocols += &format!(",{name}:{protocol}");
        let prefix = format!("listener.name.{}", name.to_lowercase());
        settings.extend(own.iter().map(|(key, value)| format!("{prefix}.{key}={value}\n")));
    }
    let path = properties("broker", folder);
    let protocols = format!("{protocols},CONTROLLER:PLAINTEXT");
    let added = format!(
        "listeners={listeners}\nadvertised.listeners={advertised}\nlistener.security.protocol.map={protocols}\n{settings}"
    );
    fs::write(&path, read(&path) + "\n" + &added).expect("a configuration is written");
}

/// Writes the first records of the cluster's metadata: which features it has, and who may log in.
fn format_controller(folder: &Path, extras: &Extras) {
    let mut command = java("format", folder);
    command.args(["kafka.tools.StorageTool", "format", "--cluster-id", CLUSTER_ID]);
    for (name, password) in &extras.scram_users {
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            command.args(["--add-scram", &format!("{mechanism}=[name={name},password={password}]")]);
        }
    }
    command.arg("--config");
    let output = command.arg(properties("controller", folder)).output().expect("java starts");
    assert!(output.status.success(), "not formatted: {}", String::from_utf8_lossy(&output.stderr));
}

fn read(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default()
}

/// A free port below those that the system hands to outgoing connections: a client that calls a killed broker must not
/// take its port, nor reach itself.
fn free_port() -> u16 {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static TRIED: AtomicU32 = AtomicU32::new(0);
    // Tests of several processes start far apart.
    let start = process::id().wrapping_mul(101);
    for _ in 0..COUNT {
        let tried = TRIED.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + start.wrapping_add(tried) % COUNT) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {FIRST}");
}
