//! What delivery exactly once costs, and how long a group is silent when a worker ends: real broker, bundled model.
//!
//! `make bench-delivery` runs it; on a machine that does nothing else, or its figures say little.

#![allow(clippy::print_stdout, reason = "the figures are its output")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use common::broker::{Broker, Received};
use common::worker::{Finally, SOON, Stream, Worker};
use serde_json::{Value, json};
use vitag::bench::figure::Figure;

/// Time-outs of group and transactions in these figures, in milliseconds; a silent worker counts as dead after the one,
/// and what it left open is aborted after the other.
const SESSION_TIMEOUT_MS: u32 = 6_000;
const TRANSACTION_TIMEOUT_MS: u32 = 10_000;

#[derive(Parser)]
struct Arguments {
    /// Pairs of runs of which the throughputs are compared.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Documents of a run.
    #[arg(long, default_value_t = 6_000)]
    documents: u32,
    /// Recoveries of each kind.
    #[arg(long, default_value_t = 5)]
    recoveries: usize,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let Arguments { pairs, documents, recoveries, .. } = Arguments::parse();
    let broker = Broker::start();
    println!("| measured | median | least | most | of |\n|---|---|---|---|---|");
    let throughput = throughput(&broker, pairs, documents);
    let recovery: Vec<Value> =
        ["classic", "consumer"].into_iter().flat_map(|protocol| recovery(&broker, protocol, recoveries)).collect();
    let figures = json!({
        "throughput": throughput,
        "recovery": recovery,
        "session_timeout_ms": SESSION_TIMEOUT_MS,
        "transaction_timeout_ms": TRANSACTION_TIMEOUT_MS,
    });
    println!("\n{figures:#}");
}

/// The figures of one quantity, shown and kept.
fn figure(what: &str, mut values: Vec<f64>) -> Value {
    if values.is_empty() {
        return Value::Null;
    }
    values.sort_by(f64::total_cmp);
    let Figure { median, least, most, values } = Figure::of(values);
    println!("| {what} | {median:.3} | {least:.3} | {most:.3} | {} |", values.len());
    json!({ "what": what, "median": median, "values": values })
}

/// Documents a second of the two kinds of delivery, in pairs that change their order, and the ratio within each.
fn throughput(broker: &Broker, pairs: usize, documents: u32) -> Vec<Value> {
    let kinds = ["exactly_once", "at_least_once"];
    let mut rates = [vec![], vec![]];
    for pair in 0..pairs {
        for kind in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
            rates[kind].push(rate(broker, kinds[kind], documents));
        }
    }
    let ratios = rates[0].iter().zip(&rates[1]).map(|(exactly, at_least)| exactly / at_least).collect();
    let [exactly, at_least] = rates;
    vec![
        figure("documents/s, exactly_once", exactly),
        figure("documents/s, at_least_once", at_least),
        figure("exactly_once / at_least_once", ratios),
    ]
}

/// Documents a second between the first output that a reader of committed records sees and the last.
fn rate(broker: &Broker, delivery: &str, documents: u32) -> f64 {
    let stream = Stream::new(broker, 4);
    stream.feed(0..documents);
    let _worker =
        worker(&stream, "a", &[&format!("worker.delivery={delivery}"), "commit.interval_ms=200", "lanes.count=0"]);
    // When it began, how many came with the first, and how many there were a moment ago.
    let began: Cell<Option<(Instant, usize)>> = Cell::new(None);
    let seen = Cell::new(0);
    broker.read_committed_until(&stream.output, Duration::from_secs(600), |records| {
        seen.set(records.len());
        if began.get().is_none() && !records.is_empty() {
            began.set(Some((Instant::now(), records.len())));
        }
        records.len() >= documents as usize
    });
    let (began, first) = began.get().expect("there were outputs");
    (seen.get() - first) as f64 / began.elapsed().as_secs_f64()
}

fn worker(stream: &Stream<'_>, instance: &str, settings: &[&str]) -> Worker {
    let own = stream.settings(instance);
    let timeouts = [
        format!("kafka.session_timeout_ms={SESSION_TIMEOUT_MS}"),
        format!("kafka.transaction_timeout_ms={TRANSACTION_TIMEOUT_MS}"),
    ];
    let settings = ["lanes.count=1"].into_iter().chain(settings.iter().copied());
    Worker::start(own.iter().chain(&timeouts).map(String::as_str).chain(settings), &[])
}

/// How long nothing new is committed when a worker under load is killed, and how long one takes that is asked to end.
fn recovery(broker: &Broker, protocol: &str, times: usize) -> Vec<Value> {
    let setting = format!("kafka.group_protocol={protocol}");
    let settings = [setting.as_str()];
    let standby = (0..times).map(|_| under_load(broker, &settings, silence_with_standby)).collect();
    let restarted = (0..times).map(|_| under_load(broker, &settings, silence_with_restart)).collect();
    let ended = (0..times).map(|_| under_load(broker, &settings, time_to_end)).collect();
    vec![
        figure(&format!("s from SIGKILL to the next output, standby, {protocol}"), standby),
        figure(&format!("s from SIGKILL to the next output, restarted, {protocol}"), restarted),
        figure(&format!("s from SIGTERM to exit, {protocol}"), ended),
    ]
}

/// Measures with a worker `a` that is at work and has more to do than it can.
fn under_load(
    broker: &Broker,
    settings: &[&str],
    measure: impl FnOnce(&Stream<'_>, &[&str], Worker) -> Duration,
) -> f64 {
    let stream = Stream::new(broker, 1);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for first in (0..).step_by(500) {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                stream.feed(first..first + 500);
                thread::sleep(Duration::from_millis(250));
            }
        });
        let _stop_feeding = Finally(|| done.store(true, Ordering::Relaxed));
        let worker = worker(&stream, "a", settings);
        stream.outputs(300);
        measure(&stream, settings, worker).as_secs_f64()
    })
}

/// The standby is a member of the group, if one without a partition: the only one has an owner.
fn silence_with_standby(stream: &Stream<'_>, settings: &[&str], worker: Worker) -> Duration {
    let standby = self::worker(stream, "b", settings);
    standby.wait_for_log("model loaded");
    thread::sleep(Duration::from_secs(3));
    silence(stream, worker, || {})
}

/// The restarted one has the name of the dead one, and a supervisor that starts it again at once if it is refused.
fn silence_with_restart(stream: &Stream<'_>, settings: &[&str], worker: Worker) -> Duration {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end_supervision = Finally(|| done.store(true, Ordering::Relaxed));
        let supervise = || {
            let mut successor = self::worker(stream, "a", settings);
            while !done.load(Ordering::Relaxed) {
                if successor.has_ended() {
                    successor = self::worker(stream, "a", settings);
                }
                thread::sleep(Duration::from_millis(20));
            }
        };
        silence(stream, worker, || drop(scope.spawn(supervise)))
    })
}

/// Kills `worker`, sees to what follows, and waits for the next output.
fn silence(stream: &Stream<'_>, worker: Worker, then: impl FnOnce()) -> Duration {
    let killed = Instant::now();
    worker.kill();
    let end = stream.broker.last_stable_offset(&stream.output, 0);
    then();
    let is_new = |records: &[Received]| records.last().is_some_and(|record| record.offset >= end);
    stream.broker.read_committed_until(&stream.output, SOON, is_new);
    killed.elapsed()
}

fn time_to_end(_: &Stream<'_>, _: &[&str], mut worker: Worker) -> Duration {
    let asked = Instant::now();
    worker.terminate();
    assert!(worker.wait().success(), "{}", worker.log());
    asked.elapsed()
}
