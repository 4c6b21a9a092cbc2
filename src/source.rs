//! Where records come from, and how they are numbered on admission.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Sender;

use crate::commit::{Assignments, Command, Mark};
use crate::pipeline::Monitor;
use crate::record::{Gauge, Growth, Header, Original, Partition, Position, Record};
use crate::telemetry::{Metrics, PartitionWatch, RecordSpan, RecordTracer};

pub mod file;
pub mod kafka;
mod pace;

pub use pace::Pace;

/// How much may be in flight, in bytes of inputs and of outputs, made or expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntakeOptions {
    /// Over all partitions.
    pub max_bytes: usize,
    /// A partition that holds this much is paused …
    pub partition_high_bytes: usize,
    /// … until it holds no more than this.
    pub partition_low_bytes: usize,
}

impl Default for IntakeOptions {
    fn default() -> Self {
        Self { max_bytes: 128 << 20, partition_high_bytes: 16 << 20, partition_low_bytes: 8 << 20 }
    }
}

/// A message as the source reads it.
#[derive(Debug)]
pub struct Message {
    /// Its offset.
    pub offset: i64,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Its headers.
    pub headers: Vec<Header>,
    /// Milliseconds since the epoch.
    pub timestamp_ms: Option<i64>,
}

/// What a record costs beside its bytes.
const RECORD_OVERHEAD_BYTES: usize = 512;
/// Copies of an output in memory: that of the pipeline, and that of librdkafka until it has arrived.
pub(crate) const OUTPUT_COPIES: usize = 2;
/// A longer value goes a way of its own through the first stages, so that no other record waits for its end.
const LONG_VALUE_BYTES: usize = 32 << 10;

/// The ways into the pipeline.
#[derive(Clone, Debug)]
pub struct Ways {
    /// For most records.
    pub short: Sender<Record<RecordSpan>>,
    /// For those with long values.
    pub long: Sender<Record<RecordSpan>>,
}

#[derive(Debug)]
struct Admitted {
    epoch: u64,
    /// Slot of the next record.
    next: u64,
    gauge: Gauge,
    /// Whether it is paused; a new assignment never is.
    paused: bool,
    watch: PartitionWatch,
}

/// The way into the pipeline: numbers records, counts their bytes, and tells the committer what to expect.
#[derive(Debug)]
pub struct Intake {
    ways: Ways,
    committer: Sender<Command>,
    growth: Growth,
    assignments: Assignments,
    metrics: Metrics,
    tracer: RecordTracer,
    partitions: HashMap<Partition, Admitted>,
    epochs: u64,
}

/// The rest of the pipeline has stopped.
#[derive(Debug, PartialEq, Eq)]
pub struct Stopped;

/// For [`Intake::drain`]: the committer answers when all is committed, or when it fails.
pub(crate) const NO_DEADLINE: Duration = Duration::from_secs(365 * 24 * 3600);

impl Intake {
    /// An intake without partitions; `growth` is what the stages learn of the size of outputs.
    pub fn new(
        ways: Ways,
        committer: Sender<Command>,
        assignments: Assignments,
        growth: Growth,
        Monitor { metrics, tracer }: Monitor,
    ) -> Self {
        Self { ways, committer, growth, assignments, metrics, tracer, partitions: HashMap::new(), epochs: 0 }
    }

    /// Begins an assignment of `partition`.
    pub fn assign(&mut self, partition: Partition) {
        self.epochs += 1;
        let epoch = self.epochs;
        self.assignments.lock().insert(partition.clone(), epoch);
        // A committer that is gone has failed, and the pipeline is stopping.
        let _ = self.committer.send(Command::Assign(partition.clone(), epoch));
        let gauge = Gauge::default();
        let watch = self.metrics.partition(&partition, &gauge);
        self.partitions.insert(partition, Admitted { epoch, next: 0, gauge, paused: false, watch });
    }

    /// Sends a message on its way; returns the bytes that it takes. One of a partition that is not assigned is dropped: its
    /// owner reads it.
    ///
    /// # Errors
    /// When the pipeline has stopped.
    pub fn admit(&mut self, partition: &Partition, message: Message) -> Result<usize, Stopped> {
        let Some(admitted) = self.partitions.get_mut(partition) else { return Ok(0) };
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = message.headers.iter().map(|(key, value)| key.len() + length(value)).sum();
        let bytes = RECORD_OVERHEAD_BYTES + length(&message.key) + length(&message.value) + headers;
        let value = length(&message.value);
        let expected = OUTPUT_COPIES * self.growth.expect(value);
        let position = Position {
            partition: partition.clone(),
            offset: message.offset,
            epoch: admitted.epoch,
            slot: admitted.next,
        };
        admitted.next += 1;
        let original = Original {
            key: message.key,
            value: message.value,
            headers: message.headers,
            timestamp_ms: message.timestamp_ms,
            received: Instant::now(),
            held: admitted.gauge.hold(bytes, expected),
        };
        let record = Record { position, original: Arc::new(original), payload: () };
        let span = RecordSpan::start(&self.tracer, &record);
        let way = if value > LONG_VALUE_BYTES { &self.ways.long } else { &self.ways.short };
        way.send(record.with(span)).map_err(|_| Stopped)?;
        Ok(bytes + expected)
    }

    /// Bytes in flight over all partitions.
    pub fn total_bytes(&self) -> usize {
        self.partitions.values().map(|admitted| admitted.gauge.bytes()).sum()
    }

    /// The assignment of `partition`, if it has one.
    pub(crate) fn epoch(&self, partition: &Partition) -> Option<u64> {
        self.partitions.get(partition).map(|admitted| admitted.epoch)
    }

    /// The partitions assigned.
    pub fn partitions(&self) -> Vec<Partition> {
        self.partitions.keys().cloned().collect()
    }

    /// Asks the committer to finish `partitions`; the answer tells whether all was committed.
    pub fn drain(&self, partitions: &[Partition], patience: Duration) -> crossbeam_channel::Receiver<bool> {
        let (done, answer) = crossbeam_channel::bounded(1);
        let mark = |partition: &Partition| {
            let admitted = self.partitions.get(partition)?;
            Some(Mark { partition: partition.clone(), epoch: admitted.epoch, slot: admitted.next })
        };
        let upto = partitions.iter().filter_map(mark).collect();
        let _ = self.committer.send(Command::Drain { upto, deadline: Instant::now() + patience, done });
        answer
    }

    /// Ends the assignment of `partitions`: waits for a commit in progress, then nothing of them is committed any more.
    pub fn release(&mut self, partitions: &[Partition]) {
        let mut current = self.assignments.lock();
        for partition in partitions {
            current.remove(partition);
            self.partitions.remove(partition);
        }
    }
}

/// Tells a source to stop.
#[derive(Clone, Debug, Default)]
pub struct StopSignal {
    drain: Arc<AtomicBool>,
    abandon: Arc<AtomicBool>,
}

impl StopSignal {
    /// Stop reading, finish what was read.
    pub fn drain(&self) {
        self.drain.store(true, Ordering::Relaxed);
    }

    /// Stop at once: the pipeline has failed.
    pub fn abandon(&self) {
        self.abandon.store(true, Ordering::Relaxed);
    }

    /// Whether to stop reading.
    pub fn is_draining(&self) -> bool {
        self.drain.load(Ordering::Relaxed) || self.is_abandoned()
    }

    /// Whether to stop at once.
    pub fn is_abandoned(&self) -> bool {
        self.abandon.load(Ordering::Relaxed)
    }
}

/// The source failed for good.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(pub String);

/// Where records come from.
pub trait Source: Send {
    /// Reads until the input ends or `stop` says so, then drains what it admitted.
    ///
    /// # Errors
    /// When the input cannot be read any more.
    fn run(self: Box<Self>, intake: Intake, stop: &StopSignal) -> Result<(), SourceError>;
}
