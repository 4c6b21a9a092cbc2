//! What workers and partitions more bring on one machine, and where the processor time goes: real broker, bundled model,
//! exactly once.
//!
//! `make bench-scale` runs it; on a machine that does nothing else, or its figures say little.

#![allow(clippy::print_stdout, reason = "the figures are its output")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use common::broker::{Broker, Message};
use common::worker::{Stream, Worker, wait_until};
use serde_json::json;
use vitag::bench::figure::Figure;

const ARTICLES: &str = include_str!("../src/demo/articles.jsonl");
/// Workers of one lane each, and partitions.
const SHAPES: [(usize, i32); 6] = [(1, 1), (1, 2), (1, 4), (2, 2), (2, 4), (4, 4)];
/// Ticks of a second in `/proc/stat`: the same on every Linux.
const TICKS: f64 = 100.0;

#[derive(Parser)]
struct Arguments {
    /// Runs of each shape.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Documents of a run.
    #[arg(long, default_value_t = 3_000)]
    documents: u64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What one run came to, per document or worker.
struct Run {
    documents_per_second: f64,
    /// Processor seconds of a document in each kind of thread of the workers.
    by_thread: BTreeMap<String, f64>,
    /// Processor seconds of a document in all other processes: the broker, and who watches it.
    elsewhere: f64,
    /// Resident memory of a worker at the end, in bytes.
    memory: f64,
}

fn main() {
    let Arguments { repeats, documents, .. } = Arguments::parse();
    let broker = Broker::start();
    let mut runs: Vec<Vec<Run>> = SHAPES.iter().map(|_| Vec::new()).collect();
    for repeat in 0..repeats {
        let mut order: Vec<usize> = (0..SHAPES.len()).collect();
        if repeat % 2 == 1 {
            order.reverse();
        }
        for shape in order {
            let (workers, partitions) = SHAPES[shape];
            let found = run(&broker, workers, partitions, documents);
            let rate = found.documents_per_second;
            eprintln!("repeat {}: {workers} workers, {partitions} partitions: {rate:.0} documents/s", repeat + 1);
            runs[shape].push(found);
        }
    }
    report(&runs);
}

fn run(broker: &Broker, workers: usize, partitions: i32, documents: u64) -> Run {
    let stream = Stream::new(broker, partitions);
    let settings = ["lanes.count=1", "commit.interval_ms=200", "admin.address=127.0.0.1:0"];
    let workers: Vec<Worker> = (0..workers).map(|n| stream.worker(&format!("w{n}"), &settings)).collect();
    let share = f64::from(partitions) / workers.len() as f64;
    for worker in &workers {
        worker.wait_for_log("serving health and metrics");
        wait_until("an equal share of the partitions", || {
            worker.metric("vitag_partitions_assigned").iter().sum::<f64>() == share
        });
    }
    feed(&stream, 200 * workers.len() as u64);
    stream.wait_until_committed();

    let before = broker.committed_in_all(&stream.group, &stream.input);
    let (threads_before, all_before) = (threads(&workers), processor_seconds());
    feed(&stream, documents);
    // The first and the last tenth, where not all of them have work, do not count.
    let committed = || broker.committed_in_all(&stream.group, &stream.input) - before;
    let (first, began) = when(committed, documents / 10);
    let (last, ended) = when(committed, documents - documents / 10);
    stream.wait_until_committed();
    let mut by_thread = threads(&workers);
    for (name, seconds) in &mut by_thread {
        *seconds = (*seconds - threads_before.get(name).unwrap_or(&0.0)) / documents as f64;
    }
    let all = (processor_seconds() - all_before) / documents as f64;
    Run {
        documents_per_second: (last - first) as f64 / (ended - began).as_secs_f64(),
        elsewhere: all - by_thread.values().sum::<f64>(),
        by_thread,
        memory: workers.iter().map(Worker::memory).sum::<u64>() as f64 / workers.len() as f64,
    }
}

fn feed(stream: &Stream<'_>, documents: u64) {
    let articles = ARTICLES.lines().cycle().take(documents as usize).enumerate();
    let spread = |(n, article): (usize, &str)| {
        Message::new(article.to_owned()).partition((n % stream.partitions as usize) as i32)
    };
    stream.broker.produce(&stream.input, articles.map(spread));
}

/// When a count that grows came to `least`, and where it stood then.
fn when(count: impl Fn() -> u64, least: u64) -> (u64, Instant) {
    loop {
        let now = count();
        if now >= least {
            return (now, Instant::now());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Processor seconds of the threads of all workers, by name.
fn threads(workers: &[Worker]) -> BTreeMap<String, f64> {
    let mut seconds = BTreeMap::new();
    for worker in workers {
        for (name, of_thread) in worker.threads() {
            let stage = if name.starts_with("rdk:") { "librdkafka".to_owned() } else { name };
            *seconds.entry(stage).or_insert(0.0) += of_thread;
        }
    }
    seconds
}

/// Processor seconds of the machine since it was started: user, nice, system and interrupts.
fn processor_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").expect("Linux");
    let fields: Vec<f64> = stat.lines().next().expect("a line").split_whitespace().flat_map(str::parse).collect();
    let [user, nice, system, _idle, _waiting, hardware, software] = fields[..7].try_into().expect("seven fields");
    (user + nice + system + hardware + software) / TICKS
}

fn report(runs: &[Vec<Run>]) {
    let of = |shape: usize, what: &dyn Fn(&Run) -> f64| runs[shape].iter().map(what).collect::<Vec<f64>>();
    let rate = |run: &Run| run.documents_per_second;
    println!(
        "| workers | partitions | documents/s (least to most) | of the first | ms of processor a document: workers | elsewhere | MB a worker |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|");
    let mut figures = Vec::new();
    for (shape, (workers, partitions)) in SHAPES.iter().enumerate() {
        let rates = Figure::of(of(shape, &rate));
        let ratio = Figure::ratio(&rates.values, &of(0, &rate));
        let own = Figure::of(of(shape, &|run| 1e3 * run.by_thread.values().sum::<f64>()));
        let elsewhere = Figure::of(of(shape, &|run| 1e3 * run.elsewhere));
        let memory = Figure::of(of(shape, &|run| run.memory / 1e6));
        println!(
            "| {workers} | {partitions} | {:.0} ({:.0} to {:.0}) | {:.2} | {:.2} | {:.2} | {:.0} |",
            rates.median, rates.least, rates.most, ratio.median, own.median, elsewhere.median, memory.median
        );
        figures.push(json!({
            "workers": workers, "partitions": partitions, "documents_per_second": rates, "of_the_first": ratio,
            "worker_ms": own, "elsewhere_ms": elsewhere, "memory_mb": memory,
        }));
    }
    println!("\n| threads of one worker, 4 partitions | ms of processor a document |\n|---|---:|");
    let shape = SHAPES.iter().position(|&shape| shape == (1, 4)).expect("one of the shapes");
    let names: BTreeSet<&String> = runs[shape].iter().flat_map(|run| run.by_thread.keys()).collect();
    for name in names {
        let of_thread = |run: &Run| 1e3 * run.by_thread.get(name).unwrap_or(&0.0);
        let milliseconds = Figure::of(of(shape, &of_thread)).median;
        println!("| `{name}` | {milliseconds:.3} |");
    }
    println!("\n{:#}", json!(figures));
}
