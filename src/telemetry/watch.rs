//! Gauges that are read when metrics are collected: what is registered now is exported, what is dropped vanishes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

use super::metrics::{DESTINATION, PARTITION};
use crate::record::{Gauge, Partition};

/// Lag not known yet.
const UNKNOWN: u64 = u64::MAX;

/// The live values of one kind, shared between those who hold one and the callbacks that read them all.
#[derive(Debug)]
pub(super) struct Live<T>(Arc<Mutex<Vec<Weak<T>>>>);

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Live<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Live<T> {
    fn add(&self, value: T) -> Arc<T> {
        let value = Arc::new(value);
        let mut all = self.0.lock().expect("nothing panics under this lock");
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&value));
        value
    }

    fn all(&self) -> Vec<Arc<T>> {
        self.0.lock().expect("nothing panics under this lock").iter().filter_map(Weak::upgrade).collect()
    }
}

#[derive(Debug)]
struct PartitionState {
    attributes: [KeyValue; 2],
    held: Gauge,
    lag: AtomicU64,
    paused: AtomicBool,
}

/// An assigned partition, seen from outside until this value is dropped.
#[derive(Debug)]
#[must_use = "the partition vanishes from the metrics when this is dropped"]
pub struct PartitionWatch(Arc<PartitionState>);

impl PartitionWatch {
    /// Records that are not committed, those not read yet included.
    pub fn set_lag(&self, records: u64) {
        self.0.lag.store(records, Ordering::Relaxed);
    }

    /// Whether back-pressure has paused it.
    pub fn set_paused(&self, paused: bool) {
        self.0.paused.store(paused, Ordering::Relaxed);
    }
}

/// Which model serves, and on what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Name of the model.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the graph that runs, in hexadecimal.
    pub sha256: String,
    /// The device that was chosen, such as `cpu` or `cuda:0`.
    pub device: String,
}

/// A loaded model, seen from outside until this value is dropped.
#[derive(Debug)]
#[must_use = "the model vanishes from the metrics when this is dropped"]
pub struct ModelWatch {
    _state: Arc<[KeyValue; 4]>,
}

/// All that is observed rather than counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Watched {
    partitions: Live<PartitionState>,
    models: Live<[KeyValue; 4]>,
}

impl Watched {
    /// Registers the gauges with `meter`.
    pub(super) fn new(meter: &Meter) -> Self {
        let watched = Self::default();
        watched.register_partition_gauges(meter);
        watched.register_partition_counts(meter);
        let models = watched.models.clone();
        meter
            .u64_observable_gauge("vitag.model.info")
            .with_description("Loaded models, each with the value 1")
            .with_unit("{model}")
            .with_callback(move |observer| {
                models.all().iter().for_each(|attributes| observer.observe(1, attributes.as_slice()));
            })
            .build();
        watched
    }

    fn register_partition_gauges(&self, meter: &Meter) {
        let partitions = self.partitions.clone();
        meter
            .u64_observable_gauge("vitag.in_flight")
            .with_description("Bytes of the records in flight, from admission to commit")
            .with_unit("By")
            .with_callback(move |observer| {
                for partition in partitions.all() {
                    observer.observe(partition.held.bytes() as u64, &partition.attributes);
                }
            })
            .build();
        let partitions = self.partitions.clone();
        meter
            .u64_observable_gauge("vitag.consumer.lag")
            .with_description("Records that are not committed, those not read yet included")
            .with_unit("{record}")
            .with_callback(move |observer| {
                for partition in partitions.all() {
                    let lag = partition.lag.load(Ordering::Relaxed);
                    if lag != UNKNOWN {
                        observer.observe(lag, &partition.attributes);
                    }
                }
            })
            .build();
    }

    fn register_partition_counts(&self, meter: &Meter) {
        let partitions = self.partitions.clone();
        meter
            .u64_observable_gauge("vitag.partitions.assigned")
            .with_description("Partitions assigned to the worker")
            .with_unit("{partition}")
            .with_callback(move |observer| observer.observe(partitions.all().len() as u64, &[]))
            .build();
        let partitions = self.partitions.clone();
        meter
            .u64_observable_gauge("vitag.partitions.paused")
            .with_description("Assigned partitions that back-pressure has paused")
            .with_unit("{partition}")
            .with_callback(move |observer| {
                let paused = |partition: &&Arc<PartitionState>| partition.paused.load(Ordering::Relaxed);
                observer.observe(partitions.all().iter().filter(paused).count() as u64, &[]);
            })
            .build();
    }

    pub(super) fn partition(&self, partition: &Partition, held: &Gauge) -> PartitionWatch {
        PartitionWatch(self.partitions.add(PartitionState {
            attributes: [
                KeyValue::new(DESTINATION, partition.topic.clone()),
                KeyValue::new(PARTITION, partition.id.to_string()),
            ],
            held: held.clone(),
            lag: AtomicU64::new(UNKNOWN),
            paused: AtomicBool::new(false),
        }))
    }

    pub(super) fn model(&self, info: ModelInfo) -> ModelWatch {
        let state = self.models.add([
            KeyValue::new("vitag.model.name", info.name),
            KeyValue::new("vitag.model.version", info.version),
            KeyValue::new("vitag.model.sha256", info.sha256),
            KeyValue::new("vitag.device", info.device),
        ]);
        ModelWatch { _state: state }
    }
}
