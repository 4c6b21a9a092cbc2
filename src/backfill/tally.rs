//! What a job has done: counted where it is published.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::record::Partition;
use crate::sink::{Finished, Outcome, Sink, SinkError};

/// Counts of what was published; a clone shares them.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<Mutex<Counts>>);

/// What was published for good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records that ended, refused ones and tombstones included.
    pub records: u64,
    /// Tombstones passed on.
    pub tombstones: u64,
    /// Bytes of their values, as they were read.
    pub bytes: u64,
    /// Refused records by their code.
    pub rejects: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// Counts a record.
    pub(super) fn add(&mut self, finished: &Finished) {
        self.records += 1;
        self.bytes += finished.original.value.as_ref().map_or(0, |value| value.len() as u64);
        match &finished.payload.outcome {
            Outcome::Output(_) => {}
            Outcome::Tombstone => self.tombstones += 1,
            Outcome::DeadLetter(reject) | Outcome::DeadLetterWithoutValue(reject) => {
                *self.rejects.entry(reject.code.as_str()).or_default() += 1;
            }
        }
    }

    /// Refused records.
    pub fn refused(&self) -> u64 {
        self.rejects.values().sum()
    }
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        self.lock().clone()
    }

    /// Records so far.
    pub fn records(&self) -> u64 {
        self.lock().records
    }

    /// Adds what is finished elsewhere.
    pub(super) fn add(&self, other: &Counts) {
        let mut counts = self.lock();
        counts.records += other.records;
        counts.tombstones += other.tombstones;
        counts.bytes += other.bytes;
        other.rejects.iter().for_each(|(code, count)| *counts.rejects.entry(code).or_default() += count);
    }
}

/// A sink whose publications are counted.
pub(super) struct Counted<S> {
    /// Where they go.
    pub(super) sink: S,
    /// Where they are counted.
    pub(super) tally: Tally,
}

impl<S: Sink> Sink for Counted<S> {
    fn publish(&mut self, records: &[&Finished], offsets: &[(Partition, i64)]) -> Result<(), SinkError> {
        self.sink.publish(records, offsets)?;
        let mut counts = self.tally.lock();
        records.iter().for_each(|finished| counts.add(finished));
        Ok(())
    }

    fn settle(&mut self) -> Result<(), SinkError> {
        self.sink.settle()
    }
}
