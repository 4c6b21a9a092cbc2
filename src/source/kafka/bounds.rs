//! A part of a topic that has an end: which of its records are admitted, and when a partition is over.
//!
//! The end of a partition may lie behind markers, aborted records and gaps of compaction, so it is not always met as a
//! record: a partition is over at its end, beyond it, or where there is nothing more to fetch.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::Consumer;
use crate::kafka::committed;
use crate::record::Partition;
use crate::source::{Intake, Message, NO_DEADLINE, Pace};

/// Which records of a bounded part are wanted.
pub type Choice = dyn Fn(&Partition, &Message) -> bool + Send + Sync;

/// A bounded part of one topic, which the members of a group read together.
#[derive(Clone)]
pub struct Bounds {
    /// The topic.
    pub topic: Arc<str>,
    /// The partitions that are read.
    pub ends: Arc<BTreeMap<i32, End>>,
    /// Which of their records are wanted.
    pub choice: Arc<Choice>,
    /// How fast they are read.
    pub pace: Pace,
}

/// The end of a partition.
#[derive(Debug)]
pub struct End {
    /// The offset after the last one that is read.
    pub end: i64,
    /// What is noted beside the committed offset.
    pub metadata: String,
    /// Where reading begins.
    pub start: i64,
    /// How many offsets from there this process has passed.
    pub passed: Arc<AtomicU64>,
}

impl End {
    fn pass(&self, next: i64) {
        self.passed.store(u64::try_from(next - self.start).unwrap_or_default(), Ordering::Relaxed);
    }
}

/// What has become of a partition whose end was reached.
enum Phase {
    /// Its records are on their way: answered when they are committed.
    Draining(Receiver<bool>),
    /// All are committed, but not yet the end itself.
    Drained,
    /// The group stands at the end.
    Done,
}

/// How often the group is asked for the partitions of others.
const ASK: Duration = Duration::from_secs(1);
/// Longest wait for its answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How far the reading of [`Bounds`] has come.
pub(super) struct Course {
    pub(super) bounds: Bounds,
    /// By partition, with the assignment that it was reached in.
    over: HashMap<i32, (u64, Phase)>,
    asked: Instant,
}

impl Course {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, over: HashMap::new(), asked: Instant::now() }
    }

    /// Whether a message is to be admitted; one at or beyond the end ends its partition.
    pub(super) fn takes(&mut self, intake: &Intake, partition: &Partition, message: &Message) -> bool {
        let Some(end) = self.bounds.ends.get(&partition.id) else { return false };
        if self.is_over(intake, partition) {
            return false;
        }
        if message.offset >= end.end {
            self.reach(intake, partition);
            return false;
        }
        end.pass(message.offset + 1);
        let wanted = (self.bounds.choice)(partition, message);
        if wanted {
            self.bounds.pace.took(message);
        }
        wanted
    }

    /// After a message was admitted or left out: it may have been the last.
    pub(super) fn passed(&mut self, intake: &Intake, partition: &Partition, offset: i64) {
        if self.bounds.ends.get(&partition.id).is_some_and(|end| offset + 1 >= end.end) {
            self.reach(intake, partition);
        }
    }

    /// There is nothing more to read of a partition: its end, seen at the start, lies before.
    pub(super) fn reach(&mut self, intake: &Intake, partition: &Partition) {
        let Some(end) = self.bounds.ends.get(&partition.id) else { return };
        let Some(epoch) = intake.epoch(partition).filter(|_| !self.is_over(intake, partition)) else { return };
        end.pass(end.end);
        let answer = intake.drain(std::slice::from_ref(partition), NO_DEADLINE);
        self.over.insert(partition.id, (epoch, Phase::Draining(answer)));
    }

    /// Whether nothing more of a partition is read: its end was reached, or it has none.
    pub(super) fn is_over(&self, intake: &Intake, partition: &Partition) -> bool {
        let reached = || self.over.get(&partition.id).is_some_and(|(epoch, _)| intake.epoch(partition) == Some(*epoch));
        !self.bounds.ends.contains_key(&partition.id) || reached()
    }

    /// Notes the end of partitions whose records are all committed.
    pub(super) fn settle(&mut self, consumer: &Consumer, current: impl Fn(&Partition) -> Option<u64>) {
        let topic = self.bounds.topic.clone();
        self.over.retain(|&id, (epoch, _)| current(&Partition { topic: topic.clone(), id }) == Some(*epoch));
        for (id, (_, phase)) in &mut self.over {
            if let Phase::Draining(answer) = phase
                && answer.try_recv() == Ok(true)
            {
                *phase = Phase::Drained;
            }
            let Some(end) = self.bounds.ends.get(id).filter(|_| matches!(phase, Phase::Drained)) else { continue };
            match commit(consumer, &topic, *id, end) {
                Ok(()) => {
                    tracing::info!(partition = id, end = end.end, "partition finished");
                    *phase = Phase::Done;
                }
                // In a rebalance, for instance; whoever has the partition then notes it.
                Err(error) => tracing::debug!(partition = id, %error, "cannot commit the end yet"),
            }
        }
    }

    /// Whether every partition is done, those of others too.
    pub(super) fn is_complete(&mut self, consumer: &Consumer) -> bool {
        let is_done = |id: &i32| matches!(self.over.get(id), Some((_, Phase::Done)));
        if self.bounds.ends.keys().all(is_done) {
            return true;
        }
        let rests = self.over.values().all(|(_, phase)| matches!(phase, Phase::Done));
        if !rests || self.asked.elapsed() < ASK {
            return false;
        }
        self.asked = Instant::now();
        let mut list = TopicPartitionList::new();
        for &id in self.bounds.ends.keys() {
            list.add_partition(&self.bounds.topic, id);
        }
        let Ok(committed) = committed(consumer, list, ANSWER) else { return false };
        self.bounds.ends.iter().all(|(&id, end)| {
            let found = committed.find_partition(&self.bounds.topic, id).map(|element| element.offset());
            matches!(found, Some(Offset::Offset(offset)) if offset >= end.end)
        })
    }
}

fn commit(consumer: &Consumer, topic: &str, id: i32, end: &End) -> Result<(), KafkaError> {
    let mut list = TopicPartitionList::new();
    let mut element = list.add_partition(topic, id);
    element.set_offset(Offset::Offset(end.end))?;
    element.set_metadata(&end.metadata);
    consumer.commit(&list, CommitMode::Sync)
}
