//! Parts of [`super::Metrics`] with their attributes built once: of a topic, of a lane.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram};

use super::metrics::ERROR;
use crate::infer::Cause;
use crate::record::Code;
use crate::rollout::State;

/// What is counted of an input topic.
#[derive(Clone, Debug)]
pub struct InputMetrics {
    pub(super) consumed: Counter<u64>,
    pub(super) processed: Histogram<f64>,
    pub(super) poll: Arc<[KeyValue; 4]>,
    pub(super) process: Arc<[KeyValue; 4]>,
}

impl InputMetrics {
    /// Records were read.
    pub fn consumed(&self, records: u64) {
        self.consumed.add(records, self.poll.as_slice());
    }

    /// A record was processed, `duration` after it was read.
    pub fn processed(&self, duration: Duration) {
        self.processed.record(duration.as_secs_f64(), self.process.as_slice());
    }

    /// A record was refused for the reason `code`, `duration` after it was read.
    pub fn refused(&self, duration: Duration, code: Code) {
        let [system, operation, topic, group] = (*self.process).clone();
        let attributes = [system, operation, topic, group, KeyValue::new(ERROR, code.as_str())];
        self.processed.record(duration.as_secs_f64(), &attributes);
    }
}

/// What is counted of an output topic.
#[derive(Clone, Debug)]
pub struct OutputMetrics {
    pub(super) published: Counter<u64>,
    pub(super) attributes: Arc<[KeyValue; 3]>,
}

impl OutputMetrics {
    /// Records were handed to the broker.
    pub fn published(&self, records: u64) {
        self.published.add(records, self.attributes.as_slice());
    }
}

/// What is measured of a lane.
#[derive(Clone, Debug)]
pub struct LaneMetrics {
    pub(super) inference: Histogram<f64>,
    pub(super) busy: Counter<f64>,
    pub(super) failures: Counter<u64>,
    pub(super) budget: Gauge<u64>,
    pub(super) attributes: Arc<[KeyValue; 1]>,
}

impl LaneMetrics {
    /// The model ran for `duration`.
    pub fn inferred(&self, duration: Duration) {
        self.inference.record(duration.as_secs_f64(), self.attributes.as_slice());
    }

    /// The lane was busy with a batch for `duration`, the run of the model included.
    pub fn busy(&self, duration: Duration) {
        self.busy.add(duration.as_secs_f64(), self.attributes.as_slice());
    }

    /// A run of the model failed.
    pub fn failed(&self, cause: Cause) {
        let cause = match cause {
            Cause::Sequences => "sequences",
            Cause::Device => "device",
        };
        let [lane] = (*self.attributes).clone();
        self.failures.add(1, &[lane, KeyValue::new(ERROR, cause)]);
    }

    /// Slots of the padded view that the lane runs at once from now on.
    pub fn budget(&self, slots: usize) {
        self.budget.record(slots as u64, self.attributes.as_slice());
    }
}

/// What is counted of the rollouts to a slot.
#[derive(Clone, Debug)]
pub struct RolloutMetrics {
    pub(super) events: Counter<u64>,
    pub(super) generation: Gauge<u64>,
    pub(super) state: Gauge<u64>,
    pub(super) agreement: Gauge<f64>,
    pub(super) compared: Histogram<f64>,
    pub(super) slot: KeyValue,
}

impl RolloutMetrics {
    /// The generation that the worker knows of, and how far it is with it.
    pub fn state(&self, generation: u64, current: State) {
        self.generation.record(generation, std::slice::from_ref(&self.slot));
        for state in State::ALL {
            let attributes = [self.slot.clone(), KeyValue::new("vitag.rollout.state", state.to_string())];
            self.state.record((state == current).into(), &attributes);
        }
    }

    /// A generation began to serve.
    pub fn swapped(&self) {
        self.count("swapped");
    }

    /// A generation could not be served.
    pub fn failed(&self) {
        self.count("failed");
    }

    /// A generation was taken back by the rules.
    pub fn rolled_back(&self) {
        self.count("rolled_back");
    }

    /// A message could not be followed.
    pub fn refused(&self) {
        self.count("refused");
    }

    /// A record was compared in `time`; `agreement` is that of all so far, 0 to 1.
    pub fn compared(&self, agreement: f64, time: Duration) {
        self.agreement.record(agreement, std::slice::from_ref(&self.slot));
        self.compared.record(time.as_secs_f64(), std::slice::from_ref(&self.slot));
    }

    fn count(&self, event: &'static str) {
        self.events.add(1, &[self.slot.clone(), KeyValue::new("vitag.rollout.event", event)]);
    }
}
