//! Many rollouts in a row under load: nothing is lost, doubled or out of order, and every record is tagged by the version
//! that it names.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
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
use crate::common::worker::{Finally, SOON, Worker, id, json, wait_until};
use crate::fleet::{Fleet, desired, target};
use crate::{model, versions};

/// Whether it is a run that measures, as `make rollouts` is.
fn is_measured() -> bool {
    rollouts() >= 20
}

/// Rollouts of the run; `make rollouts` asks for 100.
pub(crate) fn rollouts() -> u64 {
    std::env::var("VITAG_ROLLOUTS").map_or(5, |text| text.parse().expect("VITAG_ROLLOUTS is a number"))
}

/// Documents that are on their way at a time: no worker ever waits for one.
const AHEAD: usize = 400;
/// Documents between two rollouts that are measured.
const BETWEEN: usize = 500;
/// Rollouts before what is measured: broker and workers are warm, and have all the memory that they need.
const SETTLED: usize = 5;
/// Different keys, and texts.
const KEYS: u32 = 60;
const TEXTS: u32 = 200;

#[test]
fn no_record_suffers_from_rollouts_and_a_late_worker_comes_up_on_the_last() {
    let contrary = versions::contrary("0.2.0");
    let dirs = [model::original(), contrary.path().to_owned()];
    let fleet = Fleet::new(Broker::shared(), 6);
    let names = ["a", "b", "c"];
    let workers: Vec<Worker> = names.iter().map(|name| fleet.worker(name, &[], &[])).collect();
    fleet.wait_for(&names, 0, "ready");
    let (fed, enough, probe) = (AtomicU32::new(0), AtomicBool::new(false), Probe::default());
    std::thread::scope(|scope| {
        scope.spawn(|| probe.watch(&fleet, &enough));
        scope.spawn(|| feed(&fleet, &probe, &fed, &enough));
        let _end = Finally(|| enough.store(true, Ordering::Relaxed));
        probe.await_more(1_000);
        let mut measured = Measured::default();
        for generation in 1..=rollouts() {
            let began = probe.count();
            fleet.desire(&desired(generation, &target(&dirs[generation as usize % 2])));
            let version = ["0.1.0", "0.2.0"][generation as usize % 2];
            for status in fleet.wait_for(&names, generation, "ready") {
                assert_eq!(status["stable"]["version"], version, "{status:#}");
            }
            if is_measured() {
                measured.take(began, &probe, &workers);
            }
        }
        if is_measured() {
            measured.judge(&probe);
        }
    });
    let count = fed.load(Ordering::Relaxed);
    fleet.stream.wait_until_committed();
    let written = (0..fleet.stream.partitions).map(|p| fleet.stream.broker.high_watermark(&fleet.stream.input, p));
    assert_eq!(written.sum::<i64>(), i64::from(count), "the test has written each once");
    let mut records = Vec::new();
    fleet.stream.broker.each_committed(&fleet.stream.output, |record| records.push(record));
    assert_each_once(&records, count);
    let by_version = check_tags(&records, &dirs);
    eprintln!("{count} records: {by_version:?}");
    assert_eq!(by_version.len(), 2, "both versions served: {by_version:?}");

    let _late = fleet.worker("late", &[], &[]);
    let last = fleet.wait_for(&["late"], rollouts(), "ready");
    assert_eq!(last[0]["stable"]["version"], ["0.1.0", "0.2.0"][rollouts() as usize % 2]);
}

/// Every document came out once, those of a key in their order.
fn assert_each_once(records: &[Received], count: u32) {
    let (mut seen, mut last) = (BTreeMap::new(), BTreeMap::new());
    for record in records {
        let (id, place) = (id(record), (record.partition, record.offset));
        if let Some(before) = seen.insert(id, place) {
            panic!("{id} came out at {before:?} and at {place:?}");
        }
        let before = last.insert(id % KEYS, id);
        assert!(before < Some(id), "{id} came out after {before:?}");
    }
    assert_eq!(seen.len(), count as usize, "none is lost");
}

/// Looks at records as they come out: when, and how many milliseconds after they were sent.
#[derive(Default)]
struct Probe(Mutex<Vec<(Instant, i64)>>);

impl Probe {
    fn watch(&self, fleet: &Fleet<'_>, enough: &AtomicBool) {
        let mut config = fleet.stream.broker.client();
        config.set("group.id", "unused").set("enable.auto.commit", "false").set("isolation.level", "read_committed");
        let consumer: BaseConsumer = config.set("fetch.wait.max.ms", "10").create().unwrap();
        let mut partitions = TopicPartitionList::new();
        for partition in 0..fleet.stream.partitions {
            partitions.add_partition(&fleet.stream.output, partition);
        }
        partitions.set_all_offsets(Offset::Beginning).unwrap();
        consumer.assign(&partitions).unwrap();
        while !enough.load(Ordering::Relaxed) {
            let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
            let sent = message.timestamp().to_millis().unwrap();
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
            self.0.lock().unwrap().push((Instant::now(), now - sent));
        }
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Waits until so many more have come out.
    fn await_more(&self, count: usize) {
        let enough = self.count() + count;
        wait_until("records to come out", || self.count() >= enough);
    }
}

/// What is seen of rollouts, and between them.
#[derive(Default)]
struct Measured {
    /// Records that came out from a message to the end of what was sent before it took effect, and those after.
    during: Vec<Range<usize>>,
    between: Vec<Range<usize>>,
    /// Bytes of every worker, after every rollout.
    memory: Vec<Vec<u64>>,
}

impl Measured {
    /// Looks at a rollout that is through, which began with the record of this number, and at the time after it.
    fn take(&mut self, began: usize, probe: &Probe, workers: &[Worker]) {
        probe.await_more(AHEAD);
        let through = probe.count();
        let mut readings = vec![Vec::new(); workers.len()];
        for _ in 0..5 {
            probe.await_more(BETWEEN / 5);
            readings.iter_mut().zip(workers).for_each(|(readings, worker)| readings.push(worker.memory()));
        }
        self.memory.push(readings.into_iter().map(median).collect());
        self.during.push(began..through);
        self.between.push(through..probe.count());
    }

    fn judge(&self, probe: &Probe) {
        let seen = probe.0.lock().unwrap();
        let (between, during) = (Pace::of(&self.between[SETTLED..], &seen), Pace::of(&self.during[SETTLED..], &seen));
        eprintln!("between rollouts: {between}\nwhile one was under way: {during}");
        for count in [1, SETTLED, 10, 20, 50, 100].into_iter().filter(|&count| count <= self.memory.len()) {
            eprintln!("resident memory after {count}: {:?} bytes", self.memory[count - 1]);
        }
        // Each the median of three: how much a session needs at its most differs from one to the next by what it meets.
        let of = |rollouts: &[Vec<u64>], worker: usize| median(rollouts.iter().map(|memory| memory[worker]).collect());
        let (early, late) = (&self.memory[SETTLED - 1..][..3], &self.memory[self.memory.len() - 3..]);
        for worker in 0..self.memory[0].len() {
            let (early, late) = (of(early, worker), of(late, worker));
            assert!(late as f64 <= early as f64 * 1.05, "memory grew from {early} to {late} bytes");
        }
        assert!(during.late_ms as f64 <= between.late_ms as f64 * 1.2, "{between}, {during}");
        assert!(during.rate() >= between.rate() * 0.95, "{between}, {during}");
    }
}

fn median<T: Ord + std::marker::Copy>(mut values: Vec<T>) -> T {
    values.sort_unstable();
    values[values.len() / 2]
}

/// Records, the time that they took, and milliseconds from sending to receipt.
struct Pace {
    records: usize,
    time: Duration,
    median_ms: i64,
    late_ms: i64,
}

impl Pace {
    fn of(spans: &[Range<usize>], seen: &[(Instant, i64)]) -> Self {
        let time = spans.iter().map(|span| seen[span.end - 1].0 - seen[span.start.max(1) - 1].0).sum();
        let mut latencies: Vec<i64> =
            spans.iter().flat_map(|span| seen[span.clone()].iter().map(|(_, latency)| *latency)).collect();
        latencies.sort_unstable();
        let at = |share: f64| latencies[(share * (latencies.len() - 1) as f64) as usize];
        Self { records: latencies.len(), time, median_ms: at(0.5), late_ms: at(0.99) }
    }

    fn rate(&self) -> f64 {
        self.records as f64 / self.time.as_secs_f64()
    }
}

impl std::fmt::Display for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rate, seconds) = (self.rate(), self.time.as_secs_f64());
        let Self { records, median_ms, late_ms, .. } = self;
        write!(
            f,
            "{records} records in {seconds:.0} s, {rate:.0} a second, median {median_ms} ms, 99th percentile {late_ms} ms"
        )
    }
}

/// Writes documents, as many as the workers take.
fn feed(fleet: &Fleet<'_>, probe: &Probe, fed: &AtomicU32, enough: &AtomicBool) {
    let mut config = fleet.stream.broker.client();
    let producer: ThreadedProducer<DefaultProducerContext> =
        config.set("enable.idempotence", "true").set("linger.ms", "2").create().unwrap();
    while !enough.load(Ordering::Relaxed) {
        let id = fed.load(Ordering::Relaxed);
        if id as usize >= probe.count() + AHEAD {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        }
        let number = id % TEXTS;
        let text = format!("Bác sĩ số {number} ở Huế. Trời hôm nay đẹp quá! ").repeat(1 + number as usize % 5);
        let (key, value) = (format!("key-{}", id % KEYS), serde_json::json!({ "id": id, "text": text }).to_string());
        producer.send(BaseRecord::to(&fleet.stream.input).key(&key).payload(&value)).map_err(|(e, _)| e).unwrap();
        fed.store(id + 1, Ordering::Relaxed);
    }
    producer.flush(SOON).unwrap();
}

/// Tags every text again with the version that its record names; returns how many records each has.
pub(crate) fn check_tags(records: &[Received], dirs: &[PathBuf; 2]) -> BTreeMap<String, usize> {
    let versions = dirs.each_ref().map(|dir| open(dir));
    let (mut counts, mut tagged) = (BTreeMap::new(), HashMap::new());
    for record in records {
        let annotation = json(record);
        let (named, sha256) =
            (annotation["models"][0]["version"].as_str().unwrap(), &annotation["models"][0]["sha256"]);
        let version = versions.iter().find(|version| *sha256 == version.model().dir.sha256).expect("a version of ours");
        assert_eq!(named, version.model().dir.manifest.version);
        assert_eq!(annotation["models"][0]["slot"], "default");
        let text = annotation["text"].as_str().unwrap().to_owned();
        let again = tagged.entry((version.number(), text)).or_insert_with_key(|(_, text)| {
            let document = Document { text: text.clone(), words: None, id: None, truncated: false };
            labels(&serde_json::to_value(tag(version, &document, OffsetUnit::CodePoint).unwrap()).unwrap())
        });
        assert_eq!(labels(&annotation), *again, "by {named}: {annotation:#}");
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
