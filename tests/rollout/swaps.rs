//! Many rollouts in a row under load: nothing is lost, doubled or out of order, and every record is tagged by the version
//! that it names.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::Scope;
use std::time::{Duration, Instant, SystemTime};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;
use vitag::config::{Settings, Sources};
use vitag::decode::Document;
use vitag::encode::OffsetUnit;
use vitag::rollout::tag;
use vitag::serving::Version;
use vitag::telemetry::Metrics;
use vitag::worker::loader;

use crate::common::broker::{Broker, Received};
use crate::common::worker::{Finally, Worker, json, wait_until};
use crate::fleet::{Fleet, desired, target};
use crate::{model, versions};

/// Rollouts of the run; `make rollouts` asks for 100.
fn rollouts() -> u64 {
    std::env::var("VITAG_ROLLOUTS").map_or(5, |text| text.parse().expect("VITAG_ROLLOUTS is a number"))
}

/// Documents that are on their way at a time.
const AHEAD: i64 = 400;

#[test]
fn no_record_suffers_from_rollouts_and_a_late_worker_comes_up_on_the_last() {
    let contrary = versions::contrary("0.2.0");
    let dirs = [model::original(), contrary.path().to_owned()];
    let fleet = Fleet::new(Broker::shared(), 6);
    let names = ["a", "b", "c"];
    let workers: Vec<Worker> = names.iter().map(|name| fleet.worker(name, &[], &[])).collect();
    fleet.wait_for(&names, 0, "ready");
    let (fed, enough) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| feed(&fleet, &fed, &enough));
        let _end = Finally(|| enough.store(true, Ordering::Relaxed));
        let probe = (rollouts() >= 50).then(|| Probe::start(scope, &fleet, &enough));
        let before = probe.as_ref().map(Probe::steady);
        let mut early = Vec::new();
        for generation in 1..=rollouts() {
            fleet.desire(&desired(generation, &target(&dirs[generation as usize % 2])));
            let version = ["0.1.0", "0.2.0"][generation as usize % 2];
            for status in fleet.wait_for(&names, generation, "ready") {
                assert_eq!(status["stable"]["version"], version, "{status:#}");
            }
            if generation == 5 {
                early = workers.iter().map(Worker::memory).collect();
            }
        }
        if let (Some(probe), Some(before)) = (probe, before) {
            eprintln!("steady: {before}; while rolled out {} times: {}", rollouts(), probe.since(&before));
            for (worker, early) in workers.iter().zip(early) {
                let late = worker.memory();
                eprintln!("resident memory: {early} bytes after 5 rollouts, {late} after {}", rollouts());
                assert!(late as f64 <= early as f64 * 1.05, "memory grew from {early} to {late} bytes");
            }
        }
    });
    let count = fed.load(Ordering::Relaxed);
    fleet.stream.outputs(count as usize);
    let records = fleet.stream.broker.read_committed_to_end(&fleet.stream.output);
    assert_read_once(&records);
    let written = (0..fleet.stream.partitions).map(|p| fleet.stream.broker.high_watermark(&fleet.stream.input, p));
    assert_eq!(written.sum::<i64>(), i64::from(count), "the test has written each once");
    fleet.stream.assert_exactly_once(count);
    let by_version = check_tags(&records, &dirs);
    eprintln!("{count} records: {by_version:?}");
    assert_eq!(by_version.len(), 2, "both versions served: {by_version:?}");

    let _late = fleet.worker("late", &[], &[]);
    let last = fleet.wait_for(&["late"], rollouts(), "ready");
    assert_eq!(last[0]["stable"]["version"], ["0.1.0", "0.2.0"][rollouts() as usize % 2]);
}

/// No place of the input came out twice.
fn assert_read_once(records: &[Received]) {
    let mut seen = BTreeMap::new();
    for record in records {
        let source = json(record)["source"].to_string();
        if let Some(before) = seen.insert(source.clone(), (record.partition, record.offset)) {
            panic!("{source} came out at {before:?} and at {:?}", (record.partition, record.offset));
        }
    }
}

/// Looks at records as they come out.
struct Probe {
    /// When they came, and how long after they were sent.
    seen: Arc<Mutex<Vec<(Instant, i64)>>>,
}

/// Records a second, and milliseconds from sending to receipt.
struct Pace {
    records: usize,
    until: usize,
    seconds: f64,
    median_ms: i64,
    late_ms: i64,
}

impl std::fmt::Display for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = self.records as f64 / self.seconds;
        write!(f, "{rate:.0} records a second, median {} ms, 99th percentile {} ms", self.median_ms, self.late_ms)
    }
}

impl Probe {
    fn start<'scope>(scope: &'scope Scope<'scope, '_>, fleet: &Fleet<'_>, enough: &'scope AtomicBool) -> Self {
        let (seen, output) = (Arc::new(Mutex::new(Vec::new())), fleet.stream.output.clone());
        let mut config = fleet.stream.broker.client();
        config.set("group.id", "unused").set("enable.auto.commit", "false").set("isolation.level", "read_committed");
        let consumer: BaseConsumer = config.set("fetch.wait.max.ms", "10").create().unwrap();
        let mut partitions = TopicPartitionList::new();
        for partition in 0..fleet.stream.partitions {
            partitions.add_partition(&output, partition);
        }
        partitions.set_all_offsets(Offset::Beginning).unwrap();
        consumer.assign(&partitions).unwrap();
        let found = seen.clone();
        scope.spawn(move || {
            while !enough.load(Ordering::Relaxed) {
                let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
                let sent = message.timestamp().to_millis().unwrap();
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
                found.lock().unwrap().push((Instant::now(), now - sent));
            }
        });
        Self { seen }
    }

    /// The pace without rollouts, over some thousand records after the first.
    fn steady(&self) -> Pace {
        const FIRST: usize = 1_000;
        wait_until("a steady stream", || self.seen.lock().unwrap().len() > FIRST);
        wait_until("some thousand records", || self.seen.lock().unwrap().len() > 5 * FIRST);
        self.pace(FIRST)
    }

    fn since(&self, before: &Pace) -> Pace {
        self.pace(before.until)
    }

    fn pace(&self, from: usize) -> Pace {
        let seen = self.seen.lock().unwrap();
        let mut latencies: Vec<i64> = seen[from..].iter().map(|(_, latency)| *latency).collect();
        latencies.sort_unstable();
        let at = |share: f64| latencies[(share * (latencies.len() - 1) as f64) as usize];
        let seconds = (seen[seen.len() - 1].0 - seen[from].0).as_secs_f64();
        Pace { records: latencies.len(), until: seen.len(), seconds, median_ms: at(0.5), late_ms: at(0.99) }
    }
}

/// Writes documents, never far ahead of the workers.
fn feed(fleet: &Fleet<'_>, fed: &AtomicU32, enough: &AtomicBool) {
    let stream = &fleet.stream;
    while !enough.load(Ordering::Relaxed) {
        let done: i64 = stream.broker.committed(&stream.group, &stream.input).values().sum();
        let next = fed.load(Ordering::Relaxed);
        if i64::from(next) > done + AHEAD {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        }
        stream.feed(next..next + 100);
        fed.store(next + 100, Ordering::Relaxed);
    }
}

/// Tags every text again with the version that its record names; returns how many records each has.
pub(crate) fn check_tags(records: &[Received], dirs: &[PathBuf; 2]) -> BTreeMap<String, usize> {
    let versions = dirs.each_ref().map(|dir| open(dir));
    let mut counts = BTreeMap::new();
    for record in records {
        let annotation = json(record);
        let (named, sha256) =
            (annotation["models"][0]["version"].as_str().unwrap(), &annotation["models"][0]["sha256"]);
        let version = versions.iter().find(|version| *sha256 == version.model().dir.sha256).expect("a version of ours");
        assert_eq!(named, version.model().dir.manifest.version);
        assert_eq!(annotation["models"][0]["slot"], "default");
        let text = annotation["text"].as_str().unwrap().to_owned();
        let document = Document { text, words: None, id: None, truncated: false };
        let again = serde_json::to_value(tag(version, &document, OffsetUnit::CodePoint).unwrap()).unwrap();
        assert_eq!(labels(&annotation), labels(&again), "by {named}: {annotation:#}");
        *counts.entry(named.to_owned()).or_default() += 1;
    }
    counts
}

/// Words and entities with their labels; scores may differ in the last digit by what else was in the batch.
fn labels(annotation: &Value) -> Vec<(Value, Value, Value)> {
    let part = |name: &str, label: &'static str| {
        let marks = annotation[name].as_array().unwrap().clone();
        marks.into_iter().map(move |mark| (mark["start"].clone(), mark["end"].clone(), mark[label].clone()))
    };
    part("tokens", "pos").chain(part("entities", "label")).collect()
}

fn open(dir: &std::path::Path) -> Arc<Version> {
    let env = vec![("HOSTNAME".into(), "test".into())];
    let settings = Settings::load(&Sources { file: None, env, sets: vec!["model.device=cpu".into()] }).unwrap();
    loader(&settings, &Metrics::disabled()).unwrap().load("default", dir, 1).unwrap()
}
