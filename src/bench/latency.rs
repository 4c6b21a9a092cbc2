//! Documents that arrive at a given rate, whether or not the pipeline is ready for them.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::BenchError;
use super::ceiling::Ceiling;
use super::figure::{Figure, percentile};
use super::subject::Subject;
use crate::commit::Report;
use crate::pipeline::{self, Monitor};
use crate::record::Partition;
use crate::serving::Serving;
use crate::sink::{Finished, Sink, SinkError};
use crate::source::{Intake, Message, Source, SourceError, StopSignal};
use crate::worker::pipeline_options;

/// How long documents take that arrive at a given rate, from when each should have arrived until its result can be
/// committed: a source that falls behind does not hide what that costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyReport {
    /// Documents a second, as a Poisson process.
    pub rate: f64,
    /// The rate as a share of what the bare model can, where that was measured.
    pub load: Option<f64>,
    /// `batch.max_wait_ms`.
    pub max_wait_ms: u64,
    /// Time of one batch of `batch.max_tokens` with all lanes at work, in milliseconds.
    pub batch_ms: f64,
    /// Half of the documents take no longer, in milliseconds.
    pub median_ms: Figure,
    /// 99 of 100 take no longer.
    pub p99_ms: Figure,
    /// 999 of 1000 take no longer.
    pub p999_ms: Figure,
}

impl LatencyReport {
    /// The report of the latencies of every repeat, in seconds.
    pub fn of(runs: &[Vec<f64>], rate: f64, load: Option<f64>, subject: &Subject, batch_seconds: f64) -> Self {
        let at = |share: f64| Figure::of(runs.iter().map(|run| percentile(run, share) * 1e3));
        Self {
            rate,
            load,
            max_wait_ms: subject.settings.batch.max_wait_ms,
            batch_ms: batch_seconds * 1e3,
            median_ms: at(0.5),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
        }
    }
}

/// Time of one batch as the settings allow it, in seconds.
///
/// # Errors
/// When the model cannot be run.
pub fn batch_seconds(subject: &Subject) -> Result<f64, BenchError> {
    let (sample, count) = subject.sample(20 * subject.settings.batch.max_tokens);
    Ok(Ceiling::with_budget(sample, count, subject.settings.batch.max_tokens).batch_seconds(&subject.version)?)
}

/// Sends documents at `rate` for `seconds`; the latency of each, in seconds.
///
/// # Errors
/// When a stage fails, or a document is refused.
pub fn run(subject: &Subject, rate: f64, seconds: f64, partitions: i32) -> Result<Vec<f64>, BenchError> {
    let mut options = pipeline_options(&subject.settings);
    // What the interval adds is known, and hides what is looked for.
    options.commit.interval = Duration::ZERO;
    let count = (rate * seconds).ceil().max(1.0) as usize;
    let documents = subject.documents.iter().cycle().take(count);
    let schedule = Schedule { due: times(rate, count).into(), started: Arc::default() };
    let (seen, refused) = (Mutex::new(Vec::with_capacity(count)), Mutex::new(0));
    let source = Paced {
        schedule: schedule.clone(),
        values: documents.map(|document| Bytes::from(document.clone())).collect(),
        partitions: (0..partitions).map(|id| Partition { topic: "bench".into(), id }).collect(),
    };
    let sink = Stopwatch { schedule, seen: &seen, refused: &refused };
    let serving = Serving::of(subject.version.clone());
    let monitor = Monitor::disabled();
    let report = Report::new(monitor.metrics.clone(), "", None);
    pipeline::run(Box::new(source), sink, &serving, &options, (&monitor, report), &StopSignal::default())
        .map_err(crate::worker::WorkerError::from)?;
    match refused.into_inner().unwrap_or_else(PoisonError::into_inner) {
        0 => Ok(seen.into_inner().unwrap_or_else(PoisonError::into_inner)),
        refused => Err(BenchError::Refused(refused)),
    }
}

/// When documents are due after the start: gaps of an exponential distribution.
fn times(rate: f64, count: usize) -> Vec<Duration> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut at = 0.0;
    let next = |_| {
        at -= (1.0 - random.f64()).ln() / rate;
        Duration::from_secs_f64(at)
    };
    (0..count).map(next).collect()
}

/// When every document is due; its number is its offset.
#[derive(Clone)]
struct Schedule {
    due: Arc<[Duration]>,
    started: Arc<OnceLock<Instant>>,
}

struct Paced {
    schedule: Schedule,
    values: Vec<Bytes>,
    partitions: Vec<Partition>,
}

impl Source for Paced {
    fn run(self: Box<Self>, mut intake: Intake, stop: &StopSignal) -> Result<(), SourceError> {
        self.partitions.iter().for_each(|partition| intake.assign(partition.clone()));
        let started = *self.schedule.started.get_or_init(Instant::now);
        for (number, (value, due)) in self.values.into_iter().zip(self.schedule.due.iter()).enumerate() {
            std::thread::sleep((started + *due).saturating_duration_since(Instant::now()));
            let offset = number as i64;
            let message = Message { offset, key: None, value: Some(value), headers: vec![], timestamp_ms: None };
            let partition = &self.partitions[number % self.partitions.len()];
            if stop.is_draining() || intake.admit(partition, message).is_err() {
                return Ok(());
            }
        }
        // An error: the committer has failed, and says why.
        let _ = intake.drain(&self.partitions, Duration::from_secs(24 * 3600)).recv();
        intake.release(&self.partitions);
        Ok(())
    }
}

struct Stopwatch<'r> {
    schedule: Schedule,
    seen: &'r Mutex<Vec<f64>>,
    refused: &'r Mutex<usize>,
}

impl Sink for Stopwatch<'_> {
    fn publish(&mut self, records: &[&Finished], _offsets: &[(Partition, i64)]) -> Result<(), SinkError> {
        let now = Instant::now();
        let Some(started) = self.schedule.started.get() else { return Ok(()) };
        let late = |record: &&Finished| {
            let due = *started + self.schedule.due[record.position.offset as usize];
            now.saturating_duration_since(due).as_secs_f64()
        };
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).extend(records.iter().map(late));
        let refused = records.iter().filter(|record| record.payload.outcome.reject().is_some()).count();
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) += refused;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_at_the_rate_and_in_order() {
        let times = times(100.0, 20_000);
        let last = times.last().unwrap().as_secs_f64();
        assert!((last - 200.0).abs() < 10.0, "{last}");
        assert!(times.is_sorted());
    }
}
