//! Where results go, and the loop that commits them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::admin::Beat;
use crate::commit::{Assignments, Tracker};
use crate::record::{Code, Partition, Record, Reject, Stage};
use crate::telemetry::{self, InputMetrics, Metrics, RecordSpan};

pub mod file;
pub mod kafka;

/// How a record ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Tagged: the bytes to publish.
    Output(Bytes),
    /// A tombstone, passed on.
    Tombstone,
    /// Refused: its original goes to the dead letters.
    DeadLetter(Reject),
    /// Refused, and too large for the topic of the dead letters: the reason goes there alone. The original stays in its
    /// topic, at the position that the headers name.
    DeadLetterWithoutValue(Reject),
}

impl Outcome {
    /// What becomes of an outcome that is too large for its topic; none where that has been tried.
    fn shrunk(&self) -> Option<Self> {
        match self {
            Outcome::Output(_) => {
                let message = "the output topic does not take a record of this size (max.message.bytes)";
                Some(Outcome::DeadLetter(Reject::new(Stage::Encode, Code::OutputTooLarge, message)))
            }
            Outcome::DeadLetter(reject) => Some(Outcome::DeadLetterWithoutValue(reject.clone())),
            Outcome::Tombstone | Outcome::DeadLetterWithoutValue(_) => None,
        }
    }
}

/// The end of a record's way, with the span that covers it.
#[derive(Debug)]
pub struct Conclusion {
    /// How it ended.
    pub outcome: Outcome,
    /// Ends when the record is committed.
    pub span: RecordSpan,
}

/// A record that needs nothing more but to be published.
pub type Finished = Record<Conclusion>;

/// Where results are published.
pub trait Sink: Send {
    /// Publishes `records` and notes `offsets` as the next to read, both or neither as far as the sink can promise.
    ///
    /// # Errors
    /// [`SinkError::Retry`] when nothing of it was published for good and the same may be tried again.
    fn publish(&mut self, records: &[&Finished], offsets: &[(Partition, i64)]) -> Result<(), SinkError>;
}

/// Publishing failed.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// For now: the same call may succeed later.
    #[error("{0}")]
    Retry(String),
    /// The topics do not take these records of the call, by their places in it; nothing of it was published.
    #[error("{} records are too large for their topic", .0.len())]
    TooLarge(Vec<usize>),
    /// For good: the worker must stop without committing.
    #[error("{0}")]
    Fatal(String),
    /// Whoever read the output has closed it: there is nothing left to do, and nothing wrong.
    #[error("the output is closed")]
    Closed,
}

/// When results are committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitOptions {
    /// Longest time that a finished result waits.
    pub interval: Duration,
    /// Finished results that are committed without waiting.
    pub records: usize,
}

impl Default for CommitOptions {
    fn default() -> Self {
        Self { interval: Duration::from_millis(200), records: 5000 }
    }
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
        /// Partition and the slot after its last admitted record.
        upto: Vec<(Partition, u64)>,
        /// When to give up.
        deadline: Instant,
        /// Answered with whether all was committed.
        done: Sender<bool>,
    },
}

struct Drain {
    upto: Vec<(Partition, u64)>,
    deadline: Instant,
    done: Sender<bool>,
}

/// Collects results and publishes the finished prefix of every partition, again and again.
pub struct Committer<S> {
    sink: S,
    report: Report,
    options: CommitOptions,
    assignments: Assignments,
    tracker: Tracker<Conclusion>,
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
            match &payload.outcome {
                Outcome::DeadLetter(reject) | Outcome::DeadLetterWithoutValue(reject) => {
                    input.refused(latency, reject.code);
                    payload.span.finish(telemetry::Outcome::DeadLetter(reject));
                }
                Outcome::Output(_) | Outcome::Tombstone => {
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
    pub fn new(sink: S, report: Report, options: CommitOptions, assignments: Assignments) -> Self {
        let (tracker, drains) = (Tracker::default(), Vec::new());
        Self { sink, report, options, assignments, tracker, drains, due: None, failures: 0 }
    }

    /// Runs until every sender of `inbox` is gone. An end in good order is preceded by a [`Command::Drain`]; what is
    /// finished without one is left to the next worker.
    ///
    /// # Errors
    /// When the sink fails for good.
    pub fn run(mut self, inbox: &Receiver<Command>) -> Result<(), SinkError> {
        loop {
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
                Command::Finish(record) => self.tracker.finish(record),
                Command::Drain { upto, deadline, done } => self.drains.push(Drain { upto, deadline, done }),
            }
        }
        if self.due.is_none() && self.tracker.ready() > 0 {
            self.due = Some(Instant::now() + self.options.interval);
        }
    }

    fn commit_is_due(&self, now: Instant) -> bool {
        let backing_off = self.failures > 0 && self.due.is_some_and(|due| due > now);
        let drained = || {
            self.drains.iter().any(|drain| {
                drain.deadline <= now || drain.upto.iter().all(|(p, slot)| self.tracker.is_finished(p, *slot))
            })
        };
        let enough = || self.tracker.ready() >= self.options.records;
        self.tracker.ready() > 0 && !backing_off && (self.due.is_some_and(|due| due <= now) || enough() || drained())
    }

    /// Publishes the finished prefix, or again what the last attempt failed on, under the lock of the assignments.
    fn commit(&mut self) -> Result<(), SinkError> {
        let assignments = self.assignments.clone();
        let current = assignments.lock();
        self.tracker.retain(&current);
        self.due = None;
        if self.failures == 0 {
            self.tracker.seal();
        }
        let records = self.tracker.sealed();
        if records.is_empty() {
            self.failures = 0;
            return Ok(());
        }
        let started = Instant::now();
        match self.sink.publish(&records, &self.tracker.next_offsets()) {
            Ok(()) => {
                self.failures = 0;
                self.report.committed(self.tracker.retire(), started.elapsed());
                Ok(())
            }
            Err(SinkError::Retry(reason)) => {
                tracing::warn!(%reason, "cannot commit, trying again");
                self.report.metrics.transaction_retried();
                self.failures += 1;
                self.due = Some(Instant::now() + backoff(self.failures));
                Ok(())
            }
            Err(SinkError::TooLarge(places)) => self.shrink(&places),
            Err(fatal) => Err(fatal),
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
            let complete = drain.upto.iter().all(|(partition, slot)| tracker.is_committed(partition, *slot));
            if !complete && drain.deadline > now {
                return true;
            }
            drain.upto.iter().for_each(|(partition, _)| tracker.release(partition));
            // The source may have stopped waiting.
            let _ = drain.done.send(complete);
            false
        });
    }
}

/// 50 ms, doubling to 5 s.
fn backoff(failures: u32) -> Duration {
    Duration::from_millis(50 << failures.min(7)).min(Duration::from_secs(5))
}
