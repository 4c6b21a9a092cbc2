//! A worker at full load for long: what it holds and what it does stay as they were.
//!
//! Some seconds among the other tests, 20 minutes with `make soak`.

#![cfg(feature = "worker")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::broker::{Broker, Message};
use common::worker::{Finally, Stream, Worker, wait_until};

const ARTICLES: &str = include_str!("../src/demo/articles.jsonl");
/// Documents fed beyond what is committed …
const BACKLOG: u64 = 3_000;
/// … and how many at once: each time takes half a second, whatever they are.
const SHARE: usize = 1_000;
/// From here on memory is held to its bound: before, a worker has not met every length of batch.
const LONG: Duration = Duration::from_secs(600);
/// How much the memory of the last quarter may differ from that of the second.
const TOLERANCE: f64 = 0.03;

fn duration() -> Duration {
    let seconds = std::env::var("SOAK_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(12))
}

/// Keeps documents waiting, until told to stop; returns how many there were.
fn feed(stream: &Stream<'_>, committed: &AtomicU64, stop: &AtomicBool) -> u64 {
    let mut articles = ARTICLES.lines().cycle();
    let mut fed = 0;
    while !stop.load(Ordering::Relaxed) {
        if fed < committed.load(Ordering::Relaxed) + BACKLOG {
            stream
                .broker
                .produce(&stream.input, articles.by_ref().take(SHARE).map(|article| Message::new(article.to_owned())));
            fed += SHARE as u64;
        } else {
            thread::sleep(Duration::from_millis(20));
        }
    }
    fed
}

/// A quarter of the time.
#[derive(Default)]
struct Quarter {
    /// Resident memory, in bytes, time after time.
    memory: Vec<u64>,
    /// How often nothing waited to be read.
    idle: usize,
    documents: u64,
    seconds: f64,
}

impl Quarter {
    fn mean_memory(&self) -> f64 {
        self.memory.iter().sum::<u64>() as f64 / self.memory.len() as f64
    }
}

fn watch(worker: &Worker, stream: &Stream<'_>, committed: &AtomicU64) -> [Quarter; 4] {
    std::array::from_fn(|_| {
        let (mut quarter, started) = (Quarter::default(), Instant::now());
        let before = committed.load(Ordering::Relaxed);
        while started.elapsed() < duration() / 4 {
            thread::sleep(Duration::from_millis(250));
            quarter.memory.push(worker.memory());
            quarter.idle += usize::from(worker.metric("vitag_consumer_lag").iter().sum::<f64>() == 0.0);
            committed.store(stream.broker.committed_in_all(&stream.group, &stream.input), Ordering::Relaxed);
        }
        quarter.documents = committed.load(Ordering::Relaxed) - before;
        quarter.seconds = started.elapsed().as_secs_f64();
        quarter
    })
}

#[test]
fn at_full_load_memory_stays_where_it_is() {
    let broker = Broker::start();
    let stream = Stream::new(&broker, 4);
    let (committed, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let stop_feeding = Finally(|| stop.store(true, Ordering::Relaxed));
        let fed = scope.spawn(|| feed(&stream, &committed, &stop));
        let mut worker = stream.worker("a", &["lanes.count=0", "admin.address=127.0.0.1:0"]);
        stream.outputs(1);
        wait_until("documents to wait", || worker.metric("vitag_consumer_lag").iter().sum::<f64>() > 0.0);
        let quarters = watch(&worker, &stream, &committed);
        drop(stop_feeding);
        let fed = fed.join().unwrap();
        eprintln!("| quarter | resident memory, MB: mean (least to most) | documents/s |\n|---|---:|---:|");
        for (number, quarter) in quarters.iter().enumerate() {
            let megabytes = |bytes: f64| bytes / 1e6;
            let (least, most) = (quarter.memory.iter().min().unwrap(), quarter.memory.iter().max().unwrap());
            let [mean, least, most] = [quarter.mean_memory(), *least as f64, *most as f64].map(megabytes);
            let rate = quarter.documents as f64 / quarter.seconds;
            eprintln!("| {} | {mean:.1} ({least:.1} to {most:.1}) | {rate:.0} |", number + 1);
        }
        let was_busy = |quarter: &Quarter| quarter.documents > 0 && 20 * quarter.idle <= quarter.memory.len();
        assert!(quarters.iter().all(was_busy), "it stood still, or had too little to do");
        let grown = quarters[3].mean_memory() / quarters[1].mean_memory() - 1.0;
        assert!(duration() < LONG || grown.abs() <= TOLERANCE, "memory has changed by {:.1} %", 100.0 * grown);

        stream.wait_until_committed();
        worker.terminate();
        assert!(worker.wait().success(), "{}", worker.log());
        assert_eq!(broker.committed_in_all(&stream.group, &stream.input), fed);
    });
}
