//! What is told of a slot: to the status topic, the probes and the metrics, all from one state.

use std::time::{Duration, Instant};

use super::desired::Desired;
use super::status::{Refused, Rollback, Served, State, Status, now};
use super::topic::Writer;
use crate::admin::Health;
use crate::telemetry::RolloutMetrics;

/// Pause before a message that did not arrive is sent again.
const AGAIN: Duration = Duration::from_secs(1);

/// Longest time that the end of a worker waits for its last message.
const FAREWELL: Duration = Duration::from_secs(3);

/// Tells of one slot.
pub(super) struct Reporter {
    writer: Writer,
    topic: String,
    control: String,
    health: Health,
    metrics: RolloutMetrics,
    status: Status,
    /// When it is sent next.
    due: Instant,
    /// Another version is brought up after a failure: the state stays.
    is_held: bool,
}

impl Reporter {
    pub(super) fn new(
        writer: Writer,
        (topic, control): (String, String),
        health: Health,
        metrics: RolloutMetrics,
        status: Status,
    ) -> Self {
        let reporter = Self { writer, topic, control, health, metrics, status, due: Instant::now(), is_held: false };
        reporter.show();
        reporter
    }

    /// How far a generation is.
    pub(super) fn state(&mut self, generation: u64, state: State, reason: Option<String>) {
        if self.is_held {
            return;
        }
        let status = &mut self.status;
        if (status.generation, status.state, &status.reason) == (generation, state, &reason) {
            return;
        }
        if (status.generation, status.state) != (generation, state) {
            status.since = now();
        }
        (status.generation, status.state, status.reason) = (generation, state, reason);
        // What could not be followed is told until something else could.
        if state == State::Ready {
            status.refused = None;
        }
        self.changed();
    }

    /// A generation cannot be served.
    pub(super) fn failed(&mut self, generation: u64, reason: String) {
        self.metrics.failed();
        let generation = if generation == 0 { self.status.generation } else { generation };
        self.state(generation, State::Failed, Some(reason));
    }

    /// A generation is served.
    pub(super) fn swapped(&mut self, generation: u64, reason: Option<String>) {
        self.metrics.swapped();
        self.state(generation, State::Ready, reason);
        self.is_held = false;
        self.changed();
    }

    /// What is measured of a comparison.
    pub(super) fn metrics(&self) -> RolloutMetrics {
        self.metrics.clone()
    }

    /// A generation was taken back.
    pub(super) fn rolled_back(&mut self, rollback: Rollback) {
        self.metrics.rolled_back();
        let Rollback { rule, found, accepted, records, .. } = &rollback;
        let reason = format!("{rule}: found {found:.4}, accepted {accepted}, over {records} records");
        self.state(rollback.generation, State::RolledBack, Some(reason));
        self.status.rollback = Some(rollback);
        self.changed();
    }

    /// While a version is brought up in place of one that failed, the state stays.
    pub(super) fn hold(&mut self, held: bool) {
        self.is_held = held;
    }

    /// Something to say beside the state.
    pub(super) fn note(&mut self, reason: String) {
        self.state(self.status.generation, self.status.state, Some(reason));
    }

    /// What serves from now on.
    pub(super) fn serves(&mut self, (stable, canary): (Option<Served>, Option<Served>)) {
        (self.status.stable, self.status.canary) = (stable, canary);
        self.changed();
    }

    /// What is compared from now on.
    pub(super) fn compares(&mut self, shadow: Option<Served>) {
        self.status.shadow = shadow;
        self.changed();
    }

    /// A message that cannot be followed.
    pub(super) fn refused(&mut self, refused: Refused) {
        self.metrics.refused();
        self.status.refused = Some(refused);
        self.changed();
    }

    fn changed(&mut self) {
        self.due = Instant::now();
        self.show();
    }

    fn show(&self) {
        let Status { slot, generation, state, reason, stable, .. } = &self.status;
        let version = stable.as_ref().map_or("no version", |served| &served.version);
        let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let text = format!("generation {generation} {state}, {version} serves{reason}");
        self.health.set_check(format!("rollout {slot}"), stable.is_some(), text);
        self.metrics.state(*generation, *state);
        self.health.set_rollout(slot, serde_json::to_value(&self.status).unwrap_or_default());
    }

    /// Sends what is due.
    pub(super) fn tick(&mut self) {
        if let Some(reason) = self.writer.failure() {
            tracing::warn!(reason, topic = self.topic, "the status did not arrive, sending it again");
            self.due = Instant::now() + AGAIN;
        }
        if Instant::now() < self.due {
            return;
        }
        self.status.time = now();
        self.due = Instant::now() + Duration::from_millis(self.status.interval_ms);
        let value = serde_json::to_vec(&self.status).expect("a status can be written");
        if let Err(reason) = self.writer.send(&self.topic, &self.key(), Some(&value)) {
            tracing::warn!(reason, topic = self.topic, "cannot send the status");
            self.due = Instant::now() + AGAIN;
        }
    }

    /// Writes a desired state, as whoever operates the worker would.
    pub(super) fn propose(&self, desired: &Desired) {
        let value = serde_json::to_vec(desired).expect("a desired state can be written");
        if let Err(reason) = self.writer.send(&self.control, &self.status.slot, Some(&value)) {
            tracing::error!(reason, topic = self.control, "cannot tell the other workers to go back");
        }
    }

    /// The worker ends: its status goes with it.
    pub(super) fn leave(&self) {
        let sent = self.writer.send(&self.topic, &self.key(), None).and_then(|()| self.writer.flush(FAREWELL));
        if let Err(reason) = sent {
            tracing::warn!(reason, topic = self.topic, "the status stays although the worker ends");
        }
    }

    /// Name of the worker.
    pub(super) fn instance(&self) -> &str {
        &self.status.instance
    }

    fn key(&self) -> String {
        format!("{}/{}", self.status.instance, self.status.slot)
    }
}
