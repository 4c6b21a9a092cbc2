//! What happens when partitions come and go.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::{Statistics, TopicPartitionList};

use super::lag::Standing;
use super::start::{IN_REBALANCE, Waiting, set_starts};
use crate::kafka::{Trouble, Troubled};
use crate::record::Partition;
use crate::source::Intake;

/// A consumer whose rebalances reach the pipeline.
pub type Consumer = BaseConsumer<Rebalancer>;

/// Makes rebalances known to the intake; called by librdkafka within `poll`.
pub struct Rebalancer {
    intake: Mutex<Option<Intake>>,
    waiting: Waiting,
    drain_timeout: Duration,
    trouble: Trouble,
}

impl Troubled for Rebalancer {
    fn trouble(&self) -> &Trouble {
        &self.trouble
    }
}

impl Rebalancer {
    pub(super) fn new(drain_timeout: Duration) -> Self {
        Self { intake: Mutex::new(None), waiting: Waiting::default(), drain_timeout, trouble: Trouble::default() }
    }

    /// The way into the pipeline; none before the source runs and after.
    pub(super) fn intake(&self) -> MutexGuard<'_, Option<Intake>> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets partitions in whose start has become known.
    pub(super) fn let_in(&self, consumer: &Consumer) {
        for partition in self.waiting.started(consumer) {
            if let Some(intake) = self.intake().as_mut() {
                assign(intake, partition);
            }
        }
    }
}

impl ClientContext for Rebalancer {
    fn error(&self, error: KafkaError, reason: &str) {
        self.trouble.note(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        let intake = self.intake();
        let Some(intake) = intake.as_ref() else { return };
        for (topic, of_topic) in statistics.topics {
            for (id, of_partition) in of_topic.partitions {
                let partition = Partition { topic: topic.as_str().into(), id };
                let Some(admitted) = intake.partitions.get(&partition) else { continue };
                let standing = Standing::from(&of_partition);
                if let Some(lag) = standing.lag(admitted.gauge.records(), admitted.paused) {
                    admitted.watch.set_lag(lag);
                }
            }
        }
    }
}

impl ConsumerContext for Rebalancer {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        fail::fail_point!("rebalance");
        let mut intake = self.intake();
        let Some(intake) = intake.as_mut() else { return };
        match rebalance {
            Rebalance::Assign(list) => {
                let partitions = partitions_of(list);
                match set_starts(consumer, list, IN_REBALANCE) {
                    Ok(()) => partitions.into_iter().for_each(|partition| assign(intake, partition)),
                    Err(reason) => {
                        tracing::warn!(?partitions, %reason, "partitions assigned, read when their offsets are settled");
                        self.waiting.add(partitions);
                    }
                }
            }
            Rebalance::Revoke(list) => {
                let partitions = partitions_of(list);
                self.waiting.remove(&partitions);
                // Lost partitions have a new owner already: there is nothing left to finish.
                if !consumer.assignment_lost() {
                    let answer = intake.drain(&partitions, self.drain_timeout);
                    let complete = answer.recv_timeout(self.drain_timeout + Duration::from_secs(1)).unwrap_or(false);
                    tracing::info!(?partitions, complete, "partitions revoked");
                } else {
                    tracing::warn!(?partitions, "partitions lost: their work in flight is dropped");
                }
                intake.release(&partitions);
            }
            Rebalance::Error(error) => tracing::error!(%error, "rebalance failed"),
        }
    }
}

fn assign(intake: &mut Intake, partition: Partition) {
    tracing::info!(%partition, "partition assigned");
    intake.assign(partition);
}

fn partitions_of(list: &TopicPartitionList) -> Vec<Partition> {
    let elements = list.elements();
    elements.iter().map(|element| Partition { topic: element.topic().into(), id: element.partition() }).collect()
}
