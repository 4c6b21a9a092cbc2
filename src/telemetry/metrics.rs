//! The instruments, behind methods short enough for hot paths: attributes that repeat are built once, in a handle.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter, MeterProvider, NoopMeterProvider};

use super::handles::{InputMetrics, LaneMetrics, OutputMetrics, RolloutMetrics};
use super::watch::{ModelInfo, ModelWatch, PartitionWatch, Watched};
use crate::record::{self, Code, Partition, Stage};

/// Attribute: name of a topic.
pub(super) const DESTINATION: &str = "messaging.destination.name";
/// Attribute: number of a partition, as text.
pub(super) const PARTITION: &str = "messaging.destination.partition.id";
/// Attribute: name of the consumer group.
pub(super) const GROUP: &str = "messaging.consumer.group.name";
/// Attribute: name of the operation.
pub(super) const OPERATION: &str = "messaging.operation.name";
/// Attribute: kind of the operation.
pub(super) const OPERATION_TYPE: &str = "messaging.operation.type";
/// Attribute: the messaging system, always Kafka.
pub(super) const SYSTEM: &str = "messaging.system";
/// Attribute: why an operation failed.
pub(super) const ERROR: &str = "error.type";
/// Attribute: the stage that refused a record.
pub(super) const STAGE: &str = "vitag.stage";

/// Seconds of a step inside the worker.
const STEP_SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Seconds of a record's way through the worker.
const RECORD_SECONDS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Seconds, as the messaging conventions ask for them.
const PROCESS_SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Sequences of a batch.
const SEQUENCES: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
/// Tokens of a batch.
const TOKENS: [f64; 11] = [32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0];
/// Share of a whole.
const SHARE: [f64; 10] = [0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75];
/// Records of a commit.
const RECORDS: [f64; 10] = [1.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0, 5000.0, 10000.0, 50000.0];

/// All instruments of a worker. A clone shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    meter: Meter,
    watched: Watched,
    consumed: Counter<u64>,
    published: Counter<u64>,
    processed: Histogram<f64>,
    dead_letters: Counter<u64>,
    tokens: Counter<u64>,
    batch_sequences: Histogram<u64>,
    batch_tokens: Histogram<u64>,
    batch_padding: Histogram<f64>,
    cache_lookups: Counter<u64>,
    cache_size: Gauge<u64>,
    queue_wait: Histogram<f64>,
    inference: Histogram<f64>,
    lane_busy: Counter<f64>,
    lane_failures: Counter<u64>,
    lane_budget: Gauge<u64>,
    latency: Histogram<f64>,
    commit_duration: Histogram<f64>,
    commit_records: Histogram<u64>,
    aborted: Counter<u64>,
    retried: Counter<u64>,
}

impl Metrics {
    /// Builds the instruments. Once for each meter: the gauges would be registered twice.
    pub fn new(meter: &Meter) -> Self {
        let seconds = |name, description, bounds: &[f64]| histogram(meter, name, "s", description, bounds);
        Self {
            watched: Watched::new(meter),
            consumed: counter(meter, "messaging.client.consumed.messages", "{message}", "Messages read from a topic"),
            published: counter(meter, "messaging.client.sent.messages", "{message}", "Messages written to a topic"),
            processed: seconds(
                "messaging.process.duration",
                "Time from reading a message to the end of its processing",
                &PROCESS_SECONDS,
            ),
            dead_letters: counter(meter, "vitag.records.dead_lettered", "{record}", "Records that a stage refused"),
            tokens: counter(meter, "vitag.tokens", "{token}", "Tokens given to the model"),
            batch_sequences: sizes(meter, "vitag.batch.sequences", "{sequence}", "Sequences of a batch", &SEQUENCES),
            batch_tokens: sizes(meter, "vitag.batch.tokens", "{token}", "Tokens of a batch, without padding", &TOKENS),
            batch_padding: histogram(meter, "vitag.batch.padding", "1", "Padded share of a batch's slots", &SHARE),
            cache_lookups: counter(meter, "vitag.cache.lookups", "{lookup}", "Texts that were looked for in the cache"),
            cache_size: meter
                .u64_gauge("vitag.cache.size")
                .with_unit("By")
                .with_description("Bytes of the cached tags")
                .build(),
            queue_wait: seconds("vitag.queue.wait", "Time from admission until a lane takes the record", &STEP_SECONDS),
            inference: seconds("vitag.inference.duration", "Time of one run of the model", &STEP_SECONDS),
            lane_busy: meter
                .f64_counter("vitag.lane.busy")
                .with_unit("s")
                .with_description("Time that a lane spent on batches rather than waiting for them")
                .build(),
            lane_failures: counter(meter, "vitag.inference.failures", "{run}", "Runs of the model that failed"),
            lane_budget: meter
                .u64_gauge("vitag.lane.budget")
                .with_unit("{token}")
                .with_description("Tokens of the padded view that a lane runs at once; smaller while memory is short")
                .build(),
            latency: seconds("vitag.record.latency", "Time from admission to commit", &RECORD_SECONDS),
            commit_duration: seconds("vitag.commit.duration", "Time of one commit", &STEP_SECONDS),
            commit_records: sizes(meter, "vitag.commit.records", "{record}", "Records of a commit", &RECORDS),
            aborted: counter(meter, "vitag.transactions.aborted", "{transaction}", "Transactions that were aborted"),
            retried: counter(
                meter,
                "vitag.transactions.retried",
                "{transaction}",
                "Transactions that were tried again",
            ),
            meter: meter.clone(),
        }
    }

    /// Instruments that keep nothing.
    pub fn disabled() -> Self {
        Self::new(&NoopMeterProvider::new().meter(super::SCOPE))
    }

    /// What is counted of topic `topic`, read by group `group`.
    pub fn input(&self, topic: &str, group: &str) -> InputMetrics {
        let attributes = |operation| {
            [
                KeyValue::new(SYSTEM, "kafka"),
                KeyValue::new(OPERATION, operation),
                KeyValue::new(DESTINATION, topic.to_owned()),
                KeyValue::new(GROUP, group.to_owned()),
            ]
        };
        InputMetrics {
            consumed: self.consumed.clone(),
            processed: self.processed.clone(),
            poll: Arc::new(attributes("poll")),
            process: Arc::new(attributes("process")),
        }
    }

    /// What is counted of the topic `topic` that is written to.
    pub fn output(&self, topic: &str) -> OutputMetrics {
        let attributes = [
            KeyValue::new(SYSTEM, "kafka"),
            KeyValue::new(OPERATION, "publish"),
            KeyValue::new(DESTINATION, topic.to_owned()),
        ];
        OutputMetrics { published: self.published.clone(), attributes: Arc::new(attributes) }
    }

    /// What is measured of lane `lane`.
    pub fn lane(&self, lane: usize) -> LaneMetrics {
        LaneMetrics {
            inference: self.inference.clone(),
            busy: self.lane_busy.clone(),
            failures: self.lane_failures.clone(),
            budget: self.lane_budget.clone(),
            attributes: Arc::new([KeyValue::new("vitag.lane", lane as i64)]),
        }
    }

    /// Shows an assigned partition until the returned value is dropped. `held` is what the partition has in flight.
    pub fn partition(&self, partition: &Partition, held: &record::Gauge) -> PartitionWatch {
        self.watched.partition(partition, held)
    }

    /// What is counted of the rollouts to a slot. Once for each.
    pub fn rollout(&self, slot: &str) -> RolloutMetrics {
        let gauge = |name, description| self.meter.u64_gauge(name).with_description(description).build();
        RolloutMetrics {
            events: counter(&self.meter, "vitag.rollout.events", "{event}", "Ends of rollouts, and messages refused"),
            generation: gauge("vitag.rollout.generation", "Generation of the desired state that the worker knows of"),
            state: gauge("vitag.rollout.state", "1 for the state that the rollout is in, else 0"),
            agreement: self
                .meter
                .f64_gauge("vitag.shadow.agreement")
                .with_description("Share of words and entities in which the compared version agrees")
                .build(),
            compared: histogram(&self.meter, "vitag.shadow.duration", "s", "Time to compare a record", &STEP_SECONDS),
            slot: KeyValue::new("vitag.slot", slot.to_owned()),
        }
    }

    /// Shows a loaded model until the returned value is dropped.
    pub fn model(&self, info: ModelInfo) -> ModelWatch {
        self.watched.model(info)
    }

    /// Shows whether the worker is ready, asked whenever metrics are collected. Once for each worker.
    pub fn observe_ready(&self, is_ready: impl Fn() -> bool + Send + Sync + 'static) {
        self.meter
            .u64_observable_gauge("vitag.ready")
            .with_description("1 while the worker is ready, else 0")
            .with_callback(move |observer| observer.observe(is_ready().into(), &[]))
            .build();
    }

    /// A record became a dead letter.
    pub fn dead_letter(&self, stage: Stage, code: Code) {
        let attributes = [KeyValue::new(STAGE, stage.as_str()), KeyValue::new("vitag.error.code", code.as_str())];
        self.dead_letters.add(1, &attributes);
    }

    /// A batch of `sequences` with `tokens` in all left for a lane; its padded view has `slots`.
    pub fn batch(&self, sequences: usize, tokens: usize, slots: usize) {
        self.tokens.add(tokens as u64, &[]);
        self.batch_sequences.record(sequences as u64, &[]);
        self.batch_tokens.record(tokens as u64, &[]);
        if slots > 0 {
            self.batch_padding.record(slots.saturating_sub(tokens) as f64 / slots as f64, &[]);
        }
    }

    /// A text was looked for in the cache, and found or not.
    pub fn looked_up(&self, hit: bool) {
        self.cache_lookups.add(1, &[KeyValue::new("vitag.cache.result", if hit { "hit" } else { "miss" })]);
    }

    /// The cache holds so many bytes now.
    pub fn cache_size(&self, bytes: u64) {
        self.cache_size.record(bytes, &[]);
    }

    /// A lane took a record that waited this long since its admission.
    pub fn queued(&self, wait: Duration) {
        self.queue_wait.record(wait.as_secs_f64(), &[]);
    }

    /// A record was committed this long after its admission.
    pub fn latency(&self, latency: Duration) {
        self.latency.record(latency.as_secs_f64(), &[]);
    }

    /// A commit of `records` took `duration`.
    pub fn committed(&self, records: usize, duration: Duration) {
        self.commit_duration.record(duration.as_secs_f64(), &[]);
        self.commit_records.record(records as u64, &[]);
    }

    /// A transaction was aborted.
    pub fn transaction_aborted(&self) {
        self.aborted.add(1, &[]);
    }

    /// A transaction is tried again.
    pub fn transaction_retried(&self) {
        self.retried.add(1, &[]);
    }
}

fn counter(meter: &Meter, name: &'static str, unit: &'static str, description: &'static str) -> Counter<u64> {
    meter.u64_counter(name).with_unit(unit).with_description(description).build()
}

fn histogram(
    meter: &Meter,
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    bounds: &[f64],
) -> Histogram<f64> {
    meter.f64_histogram(name).with_unit(unit).with_description(description).with_boundaries(bounds.to_vec()).build()
}

fn sizes(
    meter: &Meter,
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    bounds: &[f64],
) -> Histogram<u64> {
    meter.u64_histogram(name).with_unit(unit).with_description(description).with_boundaries(bounds.to_vec()).build()
}
