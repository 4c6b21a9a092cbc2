//! Whoever dies and whoever helps: exactly the range, each record once.

use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::common::broker::Broker;
use super::common::worker::{Finally, Stream, id};
use super::{backfill, command, document, end, summary};

/// Records of the long tests: `make backfill` asks for a million.
fn records() -> u32 {
    std::env::var("BACKFILL_RECORDS").map_or(400, |records| records.parse().expect("a number"))
}

/// A process that may be killed.
fn start(stream: &Stream<'_>, instance: &str, more: &[&str]) -> Child {
    let mut command = command(stream, instance, more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
}

/// Writes short documents with these ids, as many at a time as a producer holds.
fn feed_short(stream: &Stream<'_>, ids: std::ops::Range<u32>) {
    for start in ids.clone().step_by(50_000) {
        let chunk = start..ids.end.min(start + 50_000);
        stream.broker.produce(&stream.input, chunk.map(|id| document(id).key(format!("key-{}", id % 7))));
    }
}

/// Checks that the output has each id below `count` once, each key in the order of the ids.
fn assert_each_once(stream: &Stream<'_>, count: u32) {
    let (mut seen, mut last) = (vec![false; count as usize], [None; 7]);
    stream.broker.each_committed(&stream.output, |record| {
        let id = id(&record);
        assert!(!std::mem::replace(&mut seen[id as usize], true), "{id} is there twice");
        let before = last[id as usize % 7].replace(id);
        assert!(before < Some(id), "{id} came after {before:?}");
    });
    let missing = seen.iter().position(|seen| !seen);
    assert_eq!(missing, None, "an id that is not there");
}

#[test]
fn a_job_that_is_killed_again_and_again_tags_its_range_once_while_the_topic_grows() {
    let (stream, records) = (Stream::new(Broker::shared(), 4), records());
    feed_short(&stream, 0..records);
    let (over, started) = (AtomicBool::new(false), Instant::now());
    // Slow enough that no run comes to the end before it is killed.
    let small = ["--set", "batch.max_sequences=4", "--set", "commit.records=20", "--rate", "40"];
    let arguments: &[&str] = if records < 1_000 { &small } else { &[] };
    let ended = std::thread::scope(|scope| {
        let _over = Finally(|| over.store(true, Ordering::Relaxed));
        for round in 0..5 {
            let mut child = start(&stream, "a", arguments);
            let enough = records as usize / 7 * (round + 1);
            wait_until_or_ended(&mut child, || published(&stream) >= enough);
            if round == 0 {
                scope.spawn(|| {
                    for id in (records..).step_by(10).take_while(|_| !over.load(Ordering::Relaxed)) {
                        feed_short(&stream, id..id + 10);
                        std::thread::sleep(Duration::from_millis(20));
                    }
                });
            }
            child.kill().unwrap();
            child.wait().unwrap();
            eprintln!("kill {} after {:.0} s", round + 1, started.elapsed().as_secs_f64());
        }
        backfill(&stream, arguments)
    });
    let told = summary(&ended);
    assert_eq!(told["state"], "finished");
    eprintln!("the last of 6 runs, which ended after {:.0} s: {told}", started.elapsed().as_secs_f64());
    assert_each_once(&stream, records);
    let again = summary(&backfill(&stream, arguments));
    assert_eq!((&again["state"], &again["records"]), (&json!("finished_before"), &json!(0)));
    assert_each_once(&stream, records);
}

/// Records that the output holds, committed or not, and markers: no more than a measure of progress.
fn published(stream: &Stream<'_>) -> usize {
    (0..stream.partitions).map(|partition| stream.broker.high_watermark(&stream.output, partition) as usize).sum()
}

/// Waits for a condition as long as the process runs.
fn wait_until_or_ended(child: &mut Child, mut condition: impl FnMut() -> bool) {
    while !condition() {
        assert!(child.try_wait().unwrap().is_none(), "it ended too soon");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn two_processes_share_a_job_and_one_does_it_all_when_the_other_dies() {
    let stream = Stream::new(Broker::shared(), 4);
    stream.feed(0..400);
    let small = ["--set", "batch.max_sequences=2"];
    let (first, second, mut third) =
        (start(&stream, "a", &small), start(&stream, "b", &small), start(&stream, "c", &small));
    stream.outputs(20);
    third.kill().unwrap();
    third.wait().unwrap();
    for process in [first, second] {
        assert_eq!(summary(&end(process))["state"], "finished");
    }
    stream.assert_exactly_once(400);
}

#[test]
fn two_processes_do_together_what_one_does() {
    let records = records() / 5;
    for processes in [&["a"][..], &["a", "b"]] {
        let stream = Stream::new(Broker::shared(), 4);
        feed_short(&stream, 0..records);
        let started = Instant::now();
        let running: Vec<Child> = processes.iter().map(|instance| start(&stream, instance, &[])).collect();
        let parts: Vec<u64> =
            running.into_iter().map(|child| summary(&end(child))["records"].as_u64().unwrap()).collect();
        eprintln!("processes: {}, {:.1} s, {parts:?}", processes.len(), started.elapsed().as_secs_f64());
        assert_eq!(parts.iter().sum::<u64>(), u64::from(records));
        assert_each_once(&stream, records);
    }
}
