//! A version that runs aside on a share of the records, and is compared with the one that serves them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use super::background::step_back;
use super::compare::{Agreement, tag};
use crate::serving::{Comparison, Sample, Version};
use crate::telemetry::RolloutMetrics;

/// Samples that wait; more are let go, so that the stream never waits for a shadow.
const WAITING: usize = 64;

/// What the comparison has found since it began.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings(Arc<Mutex<(Agreement, u64)>>);

impl Findings {
    /// The agreement, and the records that it is of.
    pub(super) fn get(&self) -> (Agreement, u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, agreement: Agreement) -> Agreement {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        found.0.add(agreement);
        found.1 += 1;
        found.0
    }
}

/// Compares `version` with `base`, which serves, on a share of the records of `base`, on a thread that computes no more
/// than `max_load` of the time. It ends when the comparison is dropped.
pub(super) fn compare(
    version: Arc<Version>,
    base: &Version,
    sample_percent: f64,
    max_load: f64,
    metrics: RolloutMetrics,
) -> (Comparison, Findings) {
    let (samples, incoming) = bounded(WAITING);
    let findings = Findings::default();
    let comparison = Comparison { base: base.number(), sample_percent, samples };
    let found = findings.clone();
    let run = move || run(&version, &incoming, &found, max_load, &metrics);
    std::thread::Builder::new().name("shadow".into()).spawn(run).expect("a thread can be started");
    (comparison, findings)
}

fn run(version: &Version, samples: &Receiver<Sample>, found: &Findings, max_load: f64, metrics: &RolloutMetrics) {
    step_back();
    for sample in samples {
        let started = Instant::now();
        match tag(version, &sample.document, sample.annotation.offset_unit) {
            Ok(annotation) => {
                let total = found.add(Agreement::of(&sample.annotation, &annotation));
                metrics.compared(total.share(), started.elapsed());
            }
            Err(error) => tracing::warn!(error, "the shadow cannot tag a record"),
        }
        rest(started.elapsed(), max_load);
    }
}

/// Longest rest at a time: the thread must see its end.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Stands still so that `busy` is no more than `max_load` of the time.
fn rest(busy: Duration, max_load: f64) {
    let rest = busy.as_secs_f64() * (1.0 / max_load.max(1e-3) - 1.0);
    std::thread::sleep(Duration::from_secs_f64(rest.max(0.0)).min(LONGEST_REST));
}
