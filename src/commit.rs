//! The loop that publishes what is finished, in order, again and again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::admin::Beat;
use crate::record::{Partition, Record, Reject};
use crate::sink::{Conclusion, Finished, Outcome, Sink, SinkError};
use crate::source::StopSignal;
use crate::telemetry::{self, InputMetrics, Metrics};

mod breaker;
mod tracker;

pub use breaker::{Breaker, BreakerOptions, Tripped};
pub use tracker::{Assignments, Mark, Progress, Tracker};

/// When results are committed.
#[derive(Clone, Debug, PartialEq)]
pub struct CommitOptions {
    /// Longest time that a finished result waits.
    pub interval: Duration,
    /// Finished results that are committed without waiting.
    pub records: usize,
    /// When dead letters are too many to be committed.
    pub breaker: BreakerOptions,
}

/// The committer cannot go on; what it had not committed is read again by the next worker.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The sink failed for good.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// Too many records became dead letters.
    #[error(transparent)]
    Tripped(#[from] Tripped),
}

/// What the committer is told.
#[derive(Debug)]
pub enum Command {
    /// An assignment begins.
    Assign(Partition, u64),
    /// A record is finished.
    Finish(Finished),
    /// Commit every partition up to its slot, then answer; what is not finished by the deadline is given up.
    Drain {
        /// How far.
        upto: Vec<Mark>,
        /// When to give up.
        deadline: Instant,
        /// Answered with whether all was committed.
        done: Sender<bool>,
    },
}

struct Drain {
    upto: Vec<Mark>,
    deadline: Instant,
    done: Sender<bool>,
}

/// Collects results and publishes the finished prefix of every partition, again and again.
pub struct Committer<S> {
    sink: S,
    report: Report,
    options: CommitOptions,
    assignments: Assignments,
    stop: StopSignal,
    tracker: Tracker<Conclusion>,
    /// As it was at the last commit.
    breaker: Breaker,
    drains: Vec<Drain>,
    /// When the next commit is due; none while nothing is finished.
    due: Option<Instant>,
    failures: u32,
}

/// What is told of commits.
pub struct Report {
    metrics: Metrics,
    /// Consumer group, an attribute of the metrics.
    group: String,
    beat: Option<Beat>,
    inputs: HashMap<Arc<str>, InputMetrics>,
}

impl Report {
    /// A report to `metrics` and, where health is watched, to `beat`.
    pub fn new(metrics: Metrics, group: &str, beat: Option<Beat>) -> Self {
        Self { metrics, group: group.to_owned(), beat, inputs: HashMap::new() }
    }

    fn beat(&self) {
        if let Some(beat) = &self.beat {
            beat.beat();
        }
    }

    fn committed(&mut self, records: Vec<Finished>, elapsed: Duration) {
        self.metrics.committed(records.len(), elapsed);
        for Record { position, original, payload } in records {
            let latency = original.received.elapsed();
            self.metrics.latency(latency);
            let topic = position.partition.topic;
            let input = self.inputs.entry(topic).or_insert_with_key(|topic| self.metrics.input(topic, &self.group));
            match payload.outcome.reject() {
                Some(reject) => {
                    input.refused(latency, reject.code);
                    payload.span.finish(telemetry::Outcome::DeadLetter(reject));
                }
                None => {
                    input.processed(latency);
                    payload.span.finish(telemetry::Outcome::Output);
                }
            }
        }
    }
}

/// How long the loop sleeps when nothing is due: the beat of its health check.
const IDLE: Duration = Duration::from_millis(500);

impl<S: Sink> Committer<S> {
    /// A committer over `sink`.
    pub fn new(sink: S, report: Report, options: CommitOptions, assignments: Assignments, stop: StopSignal) -> Self {
        let (tracker, drains) = (Tracker::default(), Vec::new());
        let breaker = Breaker::new(options.breaker.clone());
        Self { sink, report, options, assignments, stop, tracker, breaker, drains, due: None, failures: 0 }
    }

    /// Runs until every sender of `inbox` is gone, or until the pipeline is abandoned: its end, and that of the inbox,
    /// then ends the stages before it. An end in good order is preceded by a [`Command::Drain`]; what is finished
    /// without one is left to the next worker.
    ///
    /// # Errors
    /// When the sink fails for good, or the breaker trips.
    pub fn run(mut self, inbox: &Receiver<Command>) -> Result<(), CommitError> {
        while !self.stop.is_abandoned() {
            self.report.beat();
            match inbox.recv_timeout(self.patience(Instant::now())) {
                Ok(command) => self.take(command, inbox),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let now = Instant::now();
            if self.commit_is_due(now) {
                self.commit()?;
            }
            self.answer_drains(Instant::now());
            self.schedule()?;
        }
        Ok(())
    }

    /// Whatever has changed: what is finished gets a time for its commit, and nothing is due where nothing is finished.
    fn schedule(&mut self) -> Result<(), CommitError> {
        if self.tracker.ready() == 0 {
            if self.failures > 0 {
                self.settle()?;
            }
            (self.due, self.failures) = (None, 0);
        } else if self.due.is_none() {
            self.due = Some(Instant::now() + self.options.interval);
        }
        Ok(())
    }

    /// What failed has been given up: the next owner of its partitions waits until its transaction has ended.
    fn settle(&mut self) -> Result<(), CommitError> {
        match self.sink.settle() {
            Err(SinkError::Retry(reason)) => tracing::warn!(%reason, "cannot end a transaction that was given up"),
            settled => settled?,
        }
        Ok(())
    }

    fn patience(&self, now: Instant) -> Duration {
        let due = self.due.into_iter().chain(self.drains.iter().map(|drain| drain.deadline)).min();
        due.map_or(IDLE, |due| due.saturating_duration_since(now).min(IDLE))
    }

    /// Takes `command` and whatever else has arrived, so that one commit serves all.
    fn take(&mut self, command: Command, inbox: &Receiver<Command>) {
        for command in std::iter::once(command).chain(inbox.try_iter().take(self.options.records)) {
            match command {
                Command::Assign(partition, epoch) => self.tracker.assign(partition, epoch),
                Command::Finish(record) => {
                    self.tracker.finish(record);
                    fail::fail_point!("after_staging");
                }
                Command::Drain { upto, deadline, done } => self.drains.push(Drain { upto, deadline, done }),
            }
        }
    }

    fn commit_is_due(&self, now: Instant) -> bool {
        let backing_off = self.failures > 0 && self.due.is_some_and(|due| due > now);
        let waits = |mark: &Mark| self.tracker.progress(mark) == Progress::Waiting;
        let drained = || self.drains.iter().any(|drain| drain.deadline <= now || !drain.upto.iter().any(waits));
        let enough = || self.tracker.ready() >= self.options.records;
        self.tracker.ready() > 0 && !backing_off && (self.due.is_some_and(|due| due <= now) || enough() || drained())
    }

    /// Publishes the finished prefix, or again what the last attempt failed on, under the lock of the assignments.
    fn commit(&mut self) -> Result<(), CommitError> {
        let assignments = self.assignments.clone();
        let current = assignments.lock();
        self.tracker.retain(&current);
        self.due = None;
        if self.failures == 0 || self.tracker.sealed().is_empty() {
            self.failures = 0;
            self.tracker.seal();
        }
        let records = self.tracker.sealed();
        if records.is_empty() {
            return Ok(());
        }
        let breaker = self.breaker.after(in_order_of_reading(&records))?;
        let started = Instant::now();
        match self.sink.publish(&records, &self.tracker.next_offsets()) {
            Ok(()) => {
                (self.failures, self.breaker) = (0, breaker);
                let committed = self.tracker.retire();
                drop(current);
                self.report.committed(committed, started.elapsed());
                Ok(())
            }
            Err(SinkError::Retry(reason)) => {
                tracing::warn!(%reason, "cannot commit, trying again");
                self.report.metrics.transaction_retried();
                self.failures += 1;
                self.due = Some(Instant::now() + backoff(self.failures));
                Ok(())
            }
            Err(SinkError::TooLarge(places)) => Ok(self.shrink(&places)?),
            Err(fatal) => Err(fatal.into()),
        }
    }

    /// Makes dead letters of outputs that their topic does not take, to be published in their place.
    fn shrink(&mut self, places: &[usize]) -> Result<(), SinkError> {
        self.due = Some(Instant::now());
        for record in self.tracker.sealed_mut(places) {
            let position = &record.position;
            let Some(smaller) = record.payload.outcome.shrunk() else {
                let (partition, offset) = (&position.partition, position.offset);
                return Err(SinkError::Fatal(format!(
                    "{partition} {offset}: key and headers are too large for a topic"
                )));
            };
            tracing::warn!(partition = %position.partition, offset = position.offset, "too large for its topic");
            if let Outcome::DeadLetter(reject) = &smaller {
                self.report.metrics.dead_letter(reject.stage, reject.code);
            }
            record.payload.outcome = smaller;
        }
        Ok(())
    }

    fn answer_drains(&mut self, now: Instant) {
        let tracker = &mut self.tracker;
        self.drains.retain(|drain| {
            // What is gone has been given up by a drain of its own.
            let over = |mark| matches!(tracker.progress(mark), Progress::Committed | Progress::Gone);
            let complete = drain.upto.iter().all(over);
            if !complete && drain.deadline > now {
                return true;
            }
            drain.upto.iter().for_each(|mark| tracker.release(mark));
            // The source may have stopped waiting.
            let _ = drain.done.send(complete);
            false
        });
    }
}

/// Why each is a dead letter, if it is one. A publication is in order of partitions: one bad partition in it would look
/// like a bad stream.
fn in_order_of_reading<'r>(records: &[&'r Finished]) -> impl Iterator<Item = Option<&'r Reject>> {
    let mut records = records.to_vec();
    records.sort_by_key(|record| record.original.received);
    records.into_iter().map(|record| record.payload.outcome.reject())
}

/// 50 ms after the first failure, doubling to 5 s.
fn backoff(failures: u32) -> Duration {
    Duration::from_millis(25 << failures.min(8)).min(Duration::from_secs(5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Gauge, Original, Position};
    use crate::telemetry::RecordSpan;
    use bytes::Bytes;
    use std::sync::Mutex;

    /// A sink that fails as often as it is told to, and remembers what it was given.
    #[derive(Clone, Default)]
    struct Scripted {
        failures: Arc<Mutex<Vec<SinkError>>>,
        published: Arc<Mutex<Vec<Vec<i64>>>>,
        settled: Arc<Mutex<u32>>,
    }

    impl Sink for Scripted {
        fn publish(&mut self, records: &[&Finished], _: &[(Partition, i64)]) -> Result<(), SinkError> {
            if let Some(error) = self.failures.lock().unwrap().pop() {
                return Err(error);
            }
            let offsets = records.iter().map(|record| record.position.offset).collect();
            self.published.lock().unwrap().push(offsets);
            Ok(())
        }

        fn settle(&mut self) -> Result<(), SinkError> {
            *self.settled.lock().unwrap() += 1;
            Ok(())
        }
    }

    fn partition() -> Partition {
        Partition { topic: "in".into(), id: 0 }
    }

    fn finished(slot: u64, outcome: Outcome) -> Command {
        let original = Original {
            key: None,
            value: None,
            headers: vec![],
            timestamp_ms: None,
            received: Instant::now(),
            held: Gauge::default().hold(0, 0),
        };
        let position = Position { partition: partition(), offset: slot as i64, epoch: 1, slot };
        let payload = Conclusion { outcome, span: RecordSpan::default() };
        Command::Finish(Record { position, original: Arc::new(original), payload })
    }

    fn output() -> Outcome {
        Outcome::Output(Bytes::new())
    }

    fn committer(sink: &Scripted) -> Committer<Scripted> {
        let options =
            CommitOptions { interval: Duration::from_millis(1), records: 100, breaker: BreakerOptions::off() };
        let assignments = Assignments::default();
        assignments.lock().insert(partition(), 1);
        let report = Report::new(Metrics::disabled(), "group", None);
        Committer::new(sink.clone(), report, options, assignments, StopSignal::default())
    }

    /// Runs a committer on `commands`, with a drain of `slots` at the end; returns whether that was complete.
    fn run(sink: &Scripted, commands: Vec<Command>, slots: u64) -> bool {
        let (sender, inbox) = crossbeam_channel::unbounded();
        sender.send(Command::Assign(partition(), 1)).unwrap();
        let (done, answer) = crossbeam_channel::bounded(1);
        let mark = Mark { partition: partition(), epoch: 1, slot: slots };
        let drain = Command::Drain { upto: vec![mark], deadline: Instant::now() + Duration::from_secs(10), done };
        commands.into_iter().chain([drain]).for_each(|command| sender.send(command).unwrap());
        let committer = committer(sink);
        std::thread::scope(|scope| {
            let running = scope.spawn(|| committer.run(&inbox));
            let complete = answer.recv().unwrap();
            drop(sender);
            running.join().unwrap().unwrap();
            complete
        })
    }

    #[test]
    fn what_failed_is_published_again_and_once() {
        let sink = Scripted::default();
        *sink.failures.lock().unwrap() = vec![SinkError::Retry("a".into()), SinkError::Retry("b".into())];
        assert!(run(&sink, (0..3).map(|slot| finished(slot, output())).collect(), 3));
        assert_eq!(*sink.published.lock().unwrap(), [[0, 1, 2]]);
    }

    #[test]
    fn what_finishes_while_an_attempt_is_repeated_is_published_without_more_input() {
        let sink = Scripted::default();
        *sink.failures.lock().unwrap() = vec![SinkError::Retry("later".into())];
        let mut committer = committer(&sink);
        committer.tracker.assign(partition(), 1);
        let (sender, inbox) = crossbeam_channel::unbounded();
        committer.take(finished(0, output()), &inbox);
        committer.commit().unwrap();
        committer.take(finished(1, output()), &inbox);
        let stop = committer.stop.clone();
        std::thread::scope(|scope| {
            let running = scope.spawn(|| committer.run(&inbox));
            let deadline = Instant::now() + Duration::from_secs(10);
            while sink.published.lock().unwrap().len() < 2 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            stop.abandon();
            running.join().unwrap().unwrap();
        });
        drop(sender);
        assert_eq!(*sink.published.lock().unwrap(), [[0], [1]]);
    }

    #[test]
    fn what_failed_and_was_given_up_is_settled() {
        let sink = Scripted::default();
        *sink.failures.lock().unwrap() = vec![SinkError::Retry("no answer".into())];
        let mut committer = committer(&sink);
        committer.tracker.assign(partition(), 1);
        let (_sender, inbox) = crossbeam_channel::unbounded();
        committer.take(finished(0, output()), &inbox);
        committer.commit().unwrap();
        committer.schedule().unwrap();
        assert_eq!(*sink.settled.lock().unwrap(), 0, "it is to be repeated");
        committer.tracker.release(&Mark { partition: partition(), epoch: 1, slot: 1 });
        committer.schedule().unwrap();
        committer.schedule().unwrap();
        assert_eq!(*sink.settled.lock().unwrap(), 1);
        assert!(sink.published.lock().unwrap().is_empty());
    }

    #[test]
    fn an_output_too_large_becomes_a_dead_letter_and_then_one_without_its_value() {
        let sink = Scripted::default();
        *sink.failures.lock().unwrap() = vec![SinkError::TooLarge(vec![1]), SinkError::TooLarge(vec![1])];
        assert!(run(&sink, (0..2).map(|slot| finished(slot, output())).collect(), 2));
        assert_eq!(*sink.published.lock().unwrap(), [[0, 1]]);
    }

    #[test]
    fn a_record_that_never_finishes_makes_the_drain_incomplete() {
        let sink = Scripted::default();
        let (sender, inbox) = crossbeam_channel::unbounded();
        let (done, answer) = crossbeam_channel::bounded(1);
        sender.send(Command::Assign(partition(), 1)).unwrap();
        sender.send(finished(0, output())).unwrap();
        sender.send(finished(2, output())).unwrap();
        let mark = Mark { partition: partition(), epoch: 1, slot: 3 };
        sender.send(Command::Drain { upto: vec![mark], deadline: Instant::now(), done }).unwrap();
        drop(sender);
        committer(&sink).run(&inbox).unwrap();
        assert_eq!(answer.recv(), Ok(false));
        assert_eq!(*sink.published.lock().unwrap(), [[0]]);
    }
}
