//! More than a worker can take: what waits, for whom, and in how much memory.

#![cfg(feature = "worker")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::broker::{Broker, End, Message};
use common::worker::{Finally, SOON, Stream, Worker, id, wait_until};

fn document(id: u32, text: &str) -> Message {
    Message::new(serde_json::json!({ "id": id, "text": text }).to_string())
}

#[test]
fn a_huge_document_holds_up_no_other_partition() {
    let broker = Broker::shared();
    let stream = Stream::new(broker, 2);
    // One partition, which shows the order in which they were committed.
    let output = format!("{}.one", stream.output);
    broker.create_topic_with(&output, 1, &[("max.message.bytes", "20000000")]);
    let stream = Stream { output, ..stream };
    let sentence = "Trời hôm nay ở Huế đẹp quá. ";
    let huge = document(0, &sentence.repeat(200_000 / sentence.len()));
    broker.produce(&stream.input, [huge.partition(0)]);
    broker.produce(&stream.input, (1..=50).map(|id| document(id, "Chào Huế.").partition(1)));
    let dead_letters = format!("output.dead_letter_topic={}", stream.dead_letters);
    let worker = stream.worker("a", &["output.max_record_bytes=20000000", "lanes.count=1", &dead_letters]);
    let ids: Vec<u32> = broker.read_committed(&stream.output, 51, SOON).iter().map(id).collect();
    assert_eq!(ids.last(), Some(&0), "{ids:?}\n{}", worker.log());
}

/// The lag that a worker shows of a topic with one partition, when librdkafka has reported it.
fn waits_for_lag(stream: &Stream<'_>, lag: f64) {
    let worker = stream.worker("a", &["admin.address=127.0.0.1:0"]);
    worker.wait_for_log("partition assigned");
    wait_until(&format!("a lag of {lag}"), || worker.metric("vitag_consumer_lag") == [lag]);
}

#[test]
fn markers_and_aborted_records_at_the_end_are_no_lag() {
    let stream = Stream::new(Broker::shared(), 1);
    let documents = |ids: std::ops::Range<u32>| ids.map(|id| document(id, "Chào Huế."));
    stream.broker.produce_in_transaction(&stream.input, documents(0..5), End::Commit);
    {
        let worker = stream.worker("a", &["admin.address=127.0.0.1:0"]);
        stream.outputs(5);
        wait_until("a lag of 0 before a marker", || worker.metric("vitag_consumer_lag") == [0.0]);
        stream.broker.produce_in_transaction(&stream.input, documents(5..25), End::Abort);
        stream.broker.produce_in_transaction(&stream.input, documents(25..26), End::Commit);
        stream.broker.produce_in_transaction(&stream.input, documents(26..46), End::Abort);
        stream.outputs(6);
        wait_until("a lag of 0 before aborted records", || worker.metric("vitag_consumer_lag") == [0.0]);
    }
    // A worker that finds nothing else at its start.
    waits_for_lag(&stream, 0.0);
}

const MIB: u64 = 1 << 20;
/// `intake.max_bytes` of the worker under pressure.
const BOUND: u64 = 32 * MIB;
/// What a worker needs beside its bound: docs/reliability.md says what for.
const OVERHEAD: u64 = 200 * MIB;

/// Seconds of overload, `PRESSURE_SECONDS`: few among the other tests, 600 with `make pressure`.
fn duration() -> Duration {
    let seconds = std::env::var("PRESSURE_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(10))
}

/// Documents of `first..`, most with a short text in much else, some with a long text.
fn heavy(first: u32, count: u32) -> impl Iterator<Item = Message> {
    (first..first + count).map(|id| {
        let sentences = if id % 200 == 0 { 1000 } else { 1 };
        let text = "Trời hôm nay ở Huế đẹp quá. ".repeat(sentences);
        // Hardly to be compressed, so that as much is fetched as is held.
        let mut state = u64::from(id) + 1;
        let body: String = (0..1200)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                format!("{:016x}", state ^ (state >> 29))
            })
            .collect();
        Message::new(serde_json::json!({ "id": id, "text": text, "body": body }).to_string())
    })
}

/// Feeds ten times what the group has committed, until told to stop.
fn overload(stream: &Stream<'_>, finished: &AtomicU64, stop: &AtomicBool) {
    let mut fed = 0;
    while !stop.load(Ordering::Relaxed) {
        if u64::from(fed) < 4_000 + 10 * finished.load(Ordering::Relaxed) {
            stream.broker.produce(&stream.input, heavy(fed, 500));
            fed += 500;
        } else {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Most bytes that the partitions of a worker had in flight, as far as was looked.
fn watch(worker: &Worker, stream: &Stream<'_>, finished: &AtomicU64) -> f64 {
    let mut most: f64 = 0.0;
    let started = Instant::now();
    let mut counted = started;
    while started.elapsed() < duration() {
        most = most.max(worker.metric("vitag_in_flight_bytes").iter().sum());
        if counted.elapsed() > Duration::from_secs(1) {
            finished.store(stream.broker.committed_in_all(&stream.group, &stream.input), Ordering::Relaxed);
            counted = Instant::now();
        }
        thread::sleep(Duration::from_millis(50));
    }
    most
}

#[test]
fn under_ten_times_its_load_with_a_slow_sink_memory_stays_within_its_bound() {
    let broker = Broker::start();
    let stream = Stream::new(&broker, 4);
    let settings = [
        &format!("intake.max_bytes={BOUND}"),
        "intake.partition_high_bytes=16777216",
        "intake.partition_low_bytes=8388608",
        "output.mode=merge",
        "admin.address=127.0.0.1:0",
        "telemetry.log_level=info,vitag::source=debug",
    ];
    // Where fail points are compiled in, the sink takes its time.
    let slow = [("FAILPOINTS", "before_commit=sleep(1500)")];
    let (finished, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let stop_feeding = Finally(|| stop.store(true, Ordering::Relaxed));
        scope.spawn(|| overload(&stream, &finished, &stop));
        let worker = stream.worker_with("a", &settings, &slow);
        worker.wait_for_log("partition paused");
        let most = watch(&worker, &stream, &finished);
        // A broker that stands still stalls intake and sink alike, and is survived.
        broker.pause();
        thread::sleep(Duration::from_secs(2));
        broker.resume();
        let before = finished.load(Ordering::Relaxed);
        wait_until("more to be committed after the stall", || {
            broker.committed_in_all(&stream.group, &stream.input) > before
        });
        drop(stop_feeding);
        let peak = worker.peak_memory();
        eprintln!(
            "{} s: {} documents committed, at most {:.1} MiB in flight of {}, peak memory {:.1} MiB",
            duration().as_secs(),
            finished.load(Ordering::Relaxed),
            most / MIB as f64,
            BOUND / MIB,
            peak as f64 / MIB as f64
        );
        // What comes in between two looks of the source, and what became larger than was expected of it.
        assert!(most <= (BOUND + BOUND / 8) as f64, "{most} bytes in flight");
        assert!(peak <= BOUND + OVERHEAD, "{} MiB", peak / MIB);
    });
}
