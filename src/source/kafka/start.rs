//! Where the reading of a partition starts.
//!
//! While a transaction holds offsets of a partition, the broker does not tell where the group stands (KIP-447). librdkafka
//! asks again, but if its assignment changes meanwhile, it takes that answer for "nothing committed" and starts by
//! `auto.offset.reset`: the whole partition is tagged again, or what is in it is passed over. So the offsets are asked
//! for here, and nothing of a partition is admitted before its own is known.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::Consumer;
use crate::kafka::committed;
use crate::record::Partition;

/// Longest wait for offsets in a rebalance; a round trip, where no transaction holds them.
pub(super) const IN_REBALANCE: Duration = Duration::from_millis(500);
/// Longest wait for the offset of one partition between two polls …
const BETWEEN_POLLS: Duration = Duration::from_millis(100);
/// … and how often there is one.
const AGAIN: Duration = Duration::from_millis(250);

/// Sets each element of `list` to where the group stands; to [`Offset::Invalid`], for `auto.offset.reset`, where it has
/// committed nothing.
///
/// # Errors
/// When the offsets are not known in time.
pub(super) fn set_starts(consumer: &Consumer, list: &TopicPartitionList, patience: Duration) -> Result<(), KafkaError> {
    let committed = committed(consumer, list.clone(), patience)?;
    list.elements().iter_mut().try_for_each(|element| {
        let found = committed.find_partition(element.topic(), element.partition());
        element.set_offset(found.map_or(Offset::Invalid, |found| found.offset()))
    })
}

/// Assigned partitions whose start is not known yet.
#[derive(Default)]
pub(super) struct Waiting(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    partitions: VecDeque<Partition>,
    asked: Option<Instant>,
}

impl Waiting {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, partitions: Vec<Partition>) {
        self.queue().partitions.extend(partitions);
    }

    pub(super) fn remove(&self, partitions: &[Partition]) {
        self.queue().partitions.retain(|partition| !partitions.contains(partition));
    }

    /// Takes those out whose start has become known; the consumer reads them from there.
    pub(super) fn started(&self, consumer: &Consumer) -> Vec<Partition> {
        let mut queue = self.queue();
        let mut started = Vec::new();
        if queue.asked.is_some_and(|asked| asked.elapsed() < AGAIN) {
            return started;
        }
        while let Some(partition) = queue.partitions.pop_front() {
            queue.asked = Some(Instant::now());
            if let Err(error) = seek(consumer, &partition) {
                tracing::debug!(%partition, %error, "its offset is not known yet");
                queue.partitions.push_back(partition);
                break;
            }
            started.push(partition);
        }
        started
    }
}

fn seek(consumer: &Consumer, partition: &Partition) -> Result<(), KafkaError> {
    let mut list = TopicPartitionList::new();
    list.add_partition(&partition.topic, partition.id);
    set_starts(consumer, &list, BETWEEN_POLLS)?;
    let start = list.elements()[0].offset();
    // Refused as long as librdkafka itself waits for the offset.
    consumer.seek(&partition.topic, partition.id, start, BETWEEN_POLLS)
}
