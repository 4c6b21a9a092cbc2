//! Records to a producer, and what became of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header as KafkaHeader, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};

use super::dead_letter::DeadLetterHeaders;
use crate::kafka::{Connection, Verdict, judge, left};
use crate::record::{Header, Reject};
use crate::sink::{Finished, Outcome};
use crate::telemetry::OutputMetrics;

/// Largest message that the producer lets pass, in bytes: the broker decides what is too large, topic by topic.
const MAX_MESSAGE_BYTES: &str = "67108864";

/// How long before its transaction's end a request gets no answer any more; librdkafka takes no less. Before that, our own
/// calls give up and the producer goes. Otherwise librdkafka would send a request again that only came late, and the
/// first, a commit for instance, could then hit the next transaction (KIP-890).
const LATEST_ANSWER: Duration = Duration::from_millis(100);

/// The settings of a producer whose transactions live no longer than `lifetime`; without a name it has none.
pub(crate) fn producer_config(
    connection: &Connection,
    properties: &BTreeMap<String, String>,
    transactional_id: Option<&str>,
    lifetime: Duration,
) -> ClientConfig {
    let mut config = connection.client(properties);
    if config.get("message.max.bytes").is_none() {
        config.set("message.max.bytes", MAX_MESSAGE_BYTES);
    }
    config.set("enable.idempotence", "true").set("acks", "all");
    // A record that waits longer than its transaction may live can only be lost.
    config.set("message.timeout.ms", (lifetime.as_millis() * 3 / 4).to_string());
    if let Some(id) = transactional_id {
        config.set("transactional.id", id).set("transaction.timeout.ms", lifetime.as_millis().to_string());
        config.set("socket.timeout.ms", (lifetime - LATEST_ANSWER).as_millis().to_string());
    }
    config
}

/// A producer that reports deliveries by the place of a record in its publication.
pub(crate) type Producer = ThreadedProducer<Deliveries>;

/// The records of a publication that did not arrive, by their places in it.
#[derive(Clone, Default)]
pub(crate) struct Deliveries(Arc<Mutex<Vec<(usize, KafkaError)>>>);

impl Deliveries {
    fn lock(&self) -> MutexGuard<'_, Vec<(usize, KafkaError)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take(&self) -> Vec<(usize, KafkaError)> {
        std::mem::take(&mut self.lock())
    }

    /// The first failure, if there is one.
    pub(super) fn check(&self) -> Result<(), KafkaError> {
        self.lock().first().map_or(Ok(()), |(_, error)| Err(error.clone()))
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, place: usize) {
        if let Err((error, _)) = result {
            self.lock().push((place, error.clone()));
        }
    }
}

/// A topic to write to.
pub(super) struct Destination {
    pub(super) topic: String,
    pub(super) partitions: i32,
    pub(super) metrics: OutputMetrics,
}

/// Where outputs go, and where dead letters go.
pub(super) struct Destinations {
    pub(super) output: Destination,
    pub(super) dead_letters: Destination,
}

impl Destinations {
    /// Hands one record to the producer.
    pub(super) fn send(&self, producer: &Producer, finished: &Finished, place: usize) -> Result<(), KafkaError> {
        let original = &finished.original;
        let reasons = |reject: &Reject| DeadLetterHeaders::new(&finished.position, reject).into_headers();
        let to = self.destination(finished);
        let (payload, more) = match &finished.payload.outcome {
            Outcome::Output(bytes) => (Some(&bytes[..]), vec![]),
            Outcome::Tombstone => (None, vec![]),
            Outcome::DeadLetter(reject) => (original.value.as_deref(), reasons(reject)),
            Outcome::DeadLetterWithoutValue(reject) => (None, reasons(reject)),
        };
        let mut headers = original.headers.clone();
        headers.extend(more);
        // Ends with this call: the producer has the record then.
        let _publish = finished.payload.span.inject(&to.topic, &mut headers);
        let mut record: BaseRecord<'_, [u8], [u8], usize> = BaseRecord::with_opaque_to(&to.topic, place);
        record.key = original.key.as_deref();
        record.payload = payload;
        record.timestamp = original.timestamp_ms;
        // Without a key the partition follows the input's, so that order is kept.
        record.partition = record.key.is_none().then(|| finished.position.partition.id % to.partitions);
        record.headers = kafka_headers(&headers);
        hand_over(producer, record)
    }

    /// Counts records that were published for good.
    pub(super) fn count(&self, records: &[&Finished]) {
        records.iter().for_each(|finished| self.destination(finished).metrics.published(1));
    }

    fn destination(&self, finished: &Finished) -> &Destination {
        match finished.payload.outcome {
            Outcome::Output(_) | Outcome::Tombstone => &self.output,
            Outcome::DeadLetter(_) | Outcome::DeadLetterWithoutValue(_) => &self.dead_letters,
        }
    }
}

/// Readies a producer for transactions: those of an older one of its name are settled after this, and that is fenced.
pub(crate) fn init_transactions(producer: &Producer, deadline: Instant) -> Result<(), KafkaError> {
    loop {
        match producer.init_transactions(left(deadline)) {
            Err(error) if judge(&error) == Verdict::Repeat && Instant::now() < deadline => {
                tracing::warn!(%error, "init_transactions failed, trying again");
            }
            ended => return ended,
        }
    }
}

/// Hands one record to the producer, waiting while its queue is full.
pub(crate) fn hand_over(producer: &Producer, mut record: BaseRecord<'_, [u8], [u8], usize>) -> Result<(), KafkaError> {
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((error, rejected)) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => {
                    record = rejected;
                    thread::sleep(Duration::from_millis(1));
                }
                Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                    producer.context().lock().push((rejected.delivery_opaque, error.clone()));
                    return Err(error);
                }
                _ => return Err(error),
            },
        }
    }
}

/// Waits until every record has arrived or failed. (The producer's own flush sleeps 100 ms at a time.)
pub(crate) fn settle(producer: &Producer, deadline: Instant) -> Result<(), KafkaError> {
    while let Err(error) = producer.flush(Duration::ZERO) {
        if Instant::now() >= deadline {
            return Err(error);
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Whether the topic does not take a record, or the batch that it was in, because of its size.
pub(super) fn is_too_large(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{MessageBatchTooLarge, MessageSizeTooLarge};
    matches!(error.rdkafka_error_code(), Some(MessageSizeTooLarge | MessageBatchTooLarge))
}

/// Whether a delivery that failed may succeed later. librdkafka has repeated what it can; what is left beyond these
/// are settings and rights, which people must mend.
pub(super) fn is_transient(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::MessageTimedOut
                | Code::PurgeQueue
                | Code::PurgeInflight
                | Code::State
                | Code::OperationTimedOut
                | Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::RequestTimedOut
                | Code::NetworkException
                | Code::BrokerNotAvailable
                | Code::LeaderNotAvailable
                | Code::NotLeaderForPartition
                | Code::NotEnoughReplicas
                | Code::NotEnoughReplicasAfterAppend
                | Code::ConcurrentTransactions
        )
    )
}

/// Headers as the producer takes them.
pub(crate) fn kafka_headers(headers: &[Header]) -> Option<OwnedHeaders> {
    let empty = OwnedHeaders::new_with_capacity(headers.len());
    let insert = |all: OwnedHeaders, (key, value): &Header| all.insert(KafkaHeader { key, value: value.as_deref() });
    (!headers.is_empty()).then(|| headers.iter().fold(empty, insert))
}
