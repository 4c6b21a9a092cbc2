//! Letters on their way back, and the progress over them: both in one transaction.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};

use super::progress::{MAX_METADATA_BYTES, Progress};
use super::{DlqError, replay_group};
use crate::config::Settings;
use crate::kafka::{ConnectError, Onlooker, is_fenced, left};
use crate::record::{Header, Partition};
use crate::sink::kafka::delivery::{
    Deliveries, Producer, hand_over, init_transactions, kafka_headers, producer_config, settle,
};
use crate::worker::{connection, producer_properties};

/// A record to send back.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) topic: String,
    /// None leaves it to the partitioner.
    pub(super) partition: Option<i32>,
    pub(super) key: Option<Bytes>,
    pub(super) value: Option<Bytes>,
    pub(super) headers: Vec<Header>,
    pub(super) timestamp_ms: Option<i64>,
    /// The letter, for errors.
    pub(super) letter: i64,
}

impl Outgoing {
    pub(super) fn bytes(&self) -> usize {
        let of = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        of(&self.key) + of(&self.value) + self.headers.iter().map(|(key, value)| key.len() + of(value)).sum::<usize>()
    }
}

/// A transactional producer that fences the one of an older replay.
pub(super) struct Outbox {
    producer: Producer,
    /// Longest life of a transaction.
    timeout: Duration,
}

impl Outbox {
    /// Makes the producer: transactions of an older replay are settled after this, and it is fenced.
    pub(super) fn open(settings: &Settings) -> Result<Self, DlqError> {
        let timeout = Duration::from_millis(settings.kafka.transaction_timeout_ms);
        let startup = Duration::from_millis(settings.worker.startup_timeout_ms);
        let (connection, properties) = (connection(settings), producer_properties(settings));
        let config = producer_config(&connection, &properties, Some(&replay_group(settings)), timeout);
        let producer: Producer =
            config.create_with_context(Deliveries::default()).map_err(|e| ConnectError::config(&e))?;
        init_transactions(&producer, Instant::now() + startup).map_err(|e| failed("init_transactions", &e))?;
        Ok(Self { producer, timeout })
    }

    /// Sends the records and notes the progress over `letters`, both or neither.
    pub(super) fn commit(
        &self,
        records: &[Outgoing],
        letters: &Partition,
        progress: &Progress,
        consumer: &BaseConsumer<Onlooker>,
    ) -> Result<(), DlqError> {
        let metadata = progress.encode();
        if metadata.len() > MAX_METADATA_BYTES {
            return Err(DlqError::Scattered(letters.clone()));
        }
        let deadline = Instant::now() + self.timeout * 3 / 4;
        let offsets = offsets(letters, progress.next(), &metadata).map_err(|e| failed("offsets", &e))?;
        self.stage(records, letters, &offsets, consumer, deadline).inspect_err(|_| {
            // Else its records would hold back the readers of the topic until the broker's time-out.
            let _ = self.producer.abort_transaction(self.timeout);
        })?;
        fail::fail_point!("replay_before_commit");
        // Without an answer it may have been committed or not: the next replay settles it before it reads the progress.
        self.producer.commit_transaction(left(deadline)).map_err(|e| failed("commit_transaction", &e))?;
        fail::fail_point!("replay_after_commit");
        Ok(())
    }

    fn stage(
        &self,
        records: &[Outgoing],
        letters: &Partition,
        offsets: &TopicPartitionList,
        consumer: &BaseConsumer<Onlooker>,
        deadline: Instant,
    ) -> Result<(), DlqError> {
        let producer = &self.producer;
        producer.begin_transaction().map_err(|e| failed("begin_transaction", &e))?;
        producer.context().take();
        let sent = records.iter().enumerate().try_for_each(|(place, record)| send(producer, record, place));
        let sent = sent.and_then(|()| settle(producer, deadline));
        if let Some((place, error)) = producer.context().take().first() {
            let reason = format!("letter {letters} {}: {error}", records[*place].letter);
            return Err(DlqError::Kafka { call: "produce", reason });
        }
        sent.map_err(|e| failed("produce", &e))?;
        let group = consumer.group_metadata().ok_or_else(|| failed("group_metadata", &KafkaError::Canceled))?;
        let noted = producer.send_offsets_to_transaction(offsets, &group, left(deadline));
        noted.map_err(|e| failed("send_offsets_to_transaction", &e))
    }
}

fn send(producer: &Producer, outgoing: &Outgoing, place: usize) -> Result<(), KafkaError> {
    let mut record: BaseRecord<'_, [u8], [u8], usize> = BaseRecord::with_opaque_to(&outgoing.topic, place);
    record.partition = outgoing.partition;
    record.key = outgoing.key.as_deref();
    record.payload = outgoing.value.as_deref();
    record.timestamp = outgoing.timestamp_ms;
    record.headers = kafka_headers(&outgoing.headers);
    hand_over(producer, record)
}

fn offsets(letters: &Partition, next: i64, metadata: &str) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    let mut element = list.add_partition(&letters.topic, letters.id);
    element.set_offset(Offset::Offset(next))?;
    if !metadata.is_empty() {
        element.set_metadata(metadata);
    }
    Ok(list)
}

fn failed(call: &'static str, error: &KafkaError) -> DlqError {
    let advice = if is_fenced(error) { ": another replay of the same group has taken over" } else { "" };
    DlqError::Kafka { call, reason: format!("{error}{advice}") }
}
