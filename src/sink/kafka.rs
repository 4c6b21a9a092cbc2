//! Outputs and dead letters to Kafka: in one transaction with the input offsets, or at least once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header as KafkaHeader, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use schemars::JsonSchema;
use serde::Serialize;

use crate::kafka::{ConnectError, Connection, Verdict, judge};
use crate::record::{Header, Partition, Position, Reject};
use crate::sink::{Finished, Outcome, Sink, SinkError};
use crate::source::kafka::Consumer;
use crate::telemetry::{Metrics, OutputMetrics};

/// What the sink needs to know.
#[derive(Clone, Debug)]
pub struct KafkaSinkOptions {
    /// The cluster.
    pub connection: Connection,
    /// Where annotations go.
    pub output_topic: String,
    /// Where dead letters go.
    pub dead_letter_topic: String,
    /// Name that fences an older worker of the same name; `None` publishes at least once.
    pub transactional_id: Option<String>,
    /// Longest life of a transaction, after which the broker aborts it.
    pub transaction_timeout: Duration,
    /// Longest wait for the broker at the start.
    pub startup_timeout: Duration,
    /// Properties of librdkafka for the producer.
    pub properties: BTreeMap<String, String>,
}

/// Counts the records that the broker refused.
#[derive(Clone, Default)]
struct Deliveries {
    failed: Arc<AtomicUsize>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.failed.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%error, "a record was not delivered");
        }
    }
}

type Producer = ThreadedProducer<Deliveries>;

/// A sink of Kafka topics.
pub struct KafkaSink {
    options: KafkaSinkOptions,
    consumer: Arc<Consumer>,
    config: ClientConfig,
    deliveries: Deliveries,
    /// None after a failure that leaves its state unknown, until a new one has settled it.
    producer: Option<Producer>,
    /// A commit whose answer never came: it is settled before anything else is published.
    in_doubt: bool,
    /// Where outputs go, and where dead letters go.
    output: Destination,
    dead_letters: Destination,
    metrics: Metrics,
}

/// A topic to write to.
struct Destination {
    topic: String,
    partitions: i32,
    metrics: OutputMetrics,
}

impl KafkaSink {
    /// Connects, and takes over the transactions of an older worker of the same name: after this, its offsets are
    /// settled and it is fenced.
    ///
    /// # Errors
    /// When no broker answers in time, a topic is missing, or librdkafka refuses a setting.
    pub fn connect(options: KafkaSinkOptions, consumer: Arc<Consumer>, metrics: Metrics) -> Result<Self, ConnectError> {
        let mut config = options.connection.client(&options.properties);
        config.set("enable.idempotence", "true").set("acks", "all");
        if let Some(id) = &options.transactional_id {
            config.set("transactional.id", id);
            config.set("transaction.timeout.ms", options.transaction_timeout.as_millis().to_string());
            // A record that waits longer than its transaction lives can only be lost.
            config.set("message.timeout.ms", options.transaction_timeout.as_millis().to_string());
        }
        let deadline = Instant::now() + options.startup_timeout;
        let destination = |topic: &str, setting| count_partitions(&consumer, &options, topic, setting, deadline);
        let output = destination(&options.output_topic, "output.topic")?;
        let dead_letters = destination(&options.dead_letter_topic, "output.dead_letter_topic")?;
        let with_metrics = |topic: &str, partitions| Destination {
            topic: topic.to_owned(),
            partitions,
            metrics: metrics.output(topic),
        };
        let mut sink = Self {
            output: with_metrics(&options.output_topic, output),
            dead_letters: with_metrics(&options.dead_letter_topic, dead_letters),
            deliveries: Deliveries::default(),
            producer: None,
            in_doubt: false,
            options,
            consumer,
            config,
            metrics,
        };
        sink.start_producer(deadline).map_err(|e| match e {
            SinkError::Retry(reason) => unavailable(&sink.options, reason),
            other => ConnectError::Config(other.to_string()),
        })?;
        Ok(sink)
    }

    /// Makes a producer; a transactional one is ready when the transactions before it are settled.
    fn start_producer(&mut self, deadline: Instant) -> Result<(), SinkError> {
        self.producer = None;
        let producer: Producer = self
            .config
            .create_with_context(self.deliveries.clone())
            .map_err(|e| SinkError::Fatal(format!("cannot make a producer: {e}")))?;
        if self.options.transactional_id.is_some() {
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                match producer.init_transactions(left) {
                    Ok(()) => break,
                    Err(e) if judge(&e) == Verdict::Fatal => return Err(self.fatal("init_transactions", &e)),
                    Err(e) if Instant::now() >= deadline || judge(&e) == Verdict::Abort => {
                        return Err(retry("init_transactions", &e));
                    }
                    Err(e) => tracing::warn!(error = %e, "init_transactions failed, trying again"),
                }
            }
        }
        self.producer = Some(producer);
        Ok(())
    }

    fn publish_transaction(&mut self, records: &[&Finished], offsets: &[(Partition, i64)]) -> Result<(), SinkError> {
        if self.producer.is_none() {
            self.start_producer(Instant::now() + self.options.transaction_timeout)?;
        }
        if std::mem::take(&mut self.in_doubt) && self.was_committed(offsets)? {
            return Ok(());
        }
        let producer = self.producer.as_ref().expect("a producer was just made");
        producer.begin_transaction().map_err(|e| self.give_up("begin_transaction", &e))?;
        let producer = self.producer.as_ref().expect("begin left it");
        let staged = self.stage(producer, records, offsets);
        if let Err((call, error)) = staged {
            return Err(self.abort(call, &error));
        }
        fail::fail_point!("before_commit");
        let producer = self.producer.as_ref().expect("staging left it");
        match producer.commit_transaction(self.options.transaction_timeout) {
            Ok(()) => {
                fail::fail_point!("after_commit");
                Ok(())
            }
            Err(error) if judge(&error) == Verdict::Fatal => Err(self.fatal("commit_transaction", &error)),
            Err(error) if judge(&error) == Verdict::Abort => Err(self.abort("commit_transaction", &error)),
            // No answer: the broker may have committed or not, and a late request could yet hit a later transaction
            // of this producer (KIP-890). A new one settles it.
            Err(error) => {
                self.producer = None;
                self.in_doubt = true;
                Err(retry("commit_transaction", &error))
            }
        }
    }

    /// Sends the records and the offsets into the open transaction.
    fn stage(
        &self,
        producer: &Producer,
        records: &[&Finished],
        offsets: &[(Partition, i64)],
    ) -> Result<(), (&'static str, KafkaError)> {
        fail::fail_point!("after_begin");
        self.send_all(producer, records).map_err(|e| ("produce", e))?;
        fail::fail_point!("after_produce", |_| {
            let _ = producer.flush(self.options.transaction_timeout);
            Ok(())
        });
        let no_group = || ("group_metadata", KafkaError::Canceled);
        // Read for every transaction: the generation of the group changes with each rebalance.
        let group = self.consumer.group_metadata().ok_or_else(no_group)?;
        let list = offset_list(offsets).map_err(|e| ("send_offsets_to_transaction", e))?;
        producer
            .send_offsets_to_transaction(&list, &group, self.options.transaction_timeout)
            .map_err(|e| ("send_offsets_to_transaction", e))?;
        fail::fail_point!("after_send_offsets");
        Ok(())
    }

    /// Gives the transaction up; the producer stays only if that is certain.
    fn abort(&mut self, call: &'static str, error: &KafkaError) -> SinkError {
        if judge(error) == Verdict::Fatal {
            return self.fatal(call, error);
        }
        self.metrics.transaction_aborted();
        let aborted =
            self.producer.as_ref().map(|producer| producer.abort_transaction(self.options.transaction_timeout));
        match aborted {
            Some(Ok(())) => retry(call, error),
            Some(Err(e)) if judge(&e) == Verdict::Fatal => self.fatal("abort_transaction", &e),
            _ => {
                self.producer = None;
                retry(call, error)
            }
        }
    }

    fn give_up(&self, call: &'static str, error: &KafkaError) -> SinkError {
        if judge(error) == Verdict::Fatal { self.fatal(call, error) } else { retry(call, error) }
    }

    fn fatal(&self, call: &str, error: &KafkaError) -> SinkError {
        let fenced = matches!(
            error.rdkafka_error_code(),
            Some(RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::InvalidProducerEpoch)
        );
        let advice = match &self.options.transactional_id {
            Some(id) if fenced => {
                format!(": another worker has taken over as {id:?}; give every worker a worker.instance of its own")
            }
            _ => String::new(),
        };
        SinkError::Fatal(format!("{call}: {error}{advice}"))
    }

    /// Whether the transaction in doubt was committed: then the group stands where it would have put it. The
    /// partitions are still ours (the committer holds the assignments), so nobody else can have moved them.
    fn was_committed(&mut self, offsets: &[(Partition, i64)]) -> Result<bool, SinkError> {
        let mut list = TopicPartitionList::new();
        for (partition, _) in offsets {
            list.add_partition(&partition.topic, partition.id);
        }
        let committed = self.consumer.committed_offsets(list, self.options.transaction_timeout).map_err(|e| {
            self.in_doubt = true;
            retry("committed_offsets", &e)
        })?;
        Ok(offsets.iter().any(|(partition, next)| {
            let found = committed.find_partition(&partition.topic, partition.id).map(|element| element.offset());
            matches!(found, Some(Offset::Offset(offset)) if offset >= *next)
        }))
    }

    fn publish_at_least_once(&mut self, records: &[&Finished], offsets: &[(Partition, i64)]) -> Result<(), SinkError> {
        let producer = self.producer.as_ref().expect("connect made it");
        self.deliveries.failed.store(0, Ordering::Relaxed);
        let sent = self.send_all(producer, records);
        let flushed = producer.flush(self.options.transaction_timeout);
        sent.map_err(|e| self.give_up("produce", &e))?;
        flushed.map_err(|e| self.give_up("flush", &e))?;
        match self.deliveries.failed.load(Ordering::Relaxed) {
            0 => {}
            failed => return Err(SinkError::Retry(format!("{failed} records were not delivered"))),
        }
        let list = offset_list(offsets).map_err(|e| retry("commit", &e))?;
        self.consumer.commit(&list, CommitMode::Sync).map_err(|e| retry("commit", &e))
    }

    fn send_all(&self, producer: &Producer, records: &[&Finished]) -> Result<(), KafkaError> {
        records.iter().try_for_each(|record| self.send(producer, record))
    }

    /// Hands one record to the producer, waiting while its queue is full.
    fn send(&self, producer: &Producer, finished: &Finished) -> Result<(), KafkaError> {
        let original = &finished.original;
        let (to, payload, more) = match &finished.payload.outcome {
            Outcome::Output(bytes) => (&self.output, Some(&bytes[..]), vec![]),
            Outcome::Tombstone => (&self.output, None, vec![]),
            Outcome::DeadLetter(reject) => (
                &self.dead_letters,
                original.value.as_deref(),
                DeadLetterHeaders::new(&finished.position, reject).into_headers(),
            ),
        };
        let mut headers = original.headers.clone();
        headers.extend(more);
        // Ends with this call: the producer has the record then.
        let _publish = finished.payload.span.inject(&to.topic, &mut headers);
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&to.topic);
        record.key = original.key.as_deref();
        record.payload = payload;
        record.timestamp = original.timestamp_ms;
        // Without a key the partition follows the input's, so that order is kept.
        record.partition = record.key.is_none().then(|| finished.position.partition.id % to.partitions);
        record.headers = kafka_headers(&headers);
        to.metrics.published(1);
        loop {
            match producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), rejected)) => {
                    record = rejected;
                    producer.poll(Duration::from_millis(20));
                }
                Err((error, _)) => return Err(error),
            }
        }
    }
}

impl Sink for KafkaSink {
    fn publish(&mut self, records: &[&Finished], offsets: &[(Partition, i64)]) -> Result<(), SinkError> {
        match self.options.transactional_id {
            Some(_) => self.publish_transaction(records, offsets),
            None => self.publish_at_least_once(records, offsets),
        }
    }
}

fn retry(call: &str, error: &KafkaError) -> SinkError {
    SinkError::Retry(format!("{call}: {error}"))
}

fn offset_list(offsets: &[(Partition, i64)]) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for (partition, next) in offsets {
        list.add_partition_offset(&partition.topic, partition.id, Offset::Offset(*next))?;
    }
    Ok(list)
}

fn kafka_headers(headers: &[Header]) -> Option<OwnedHeaders> {
    let empty = OwnedHeaders::new_with_capacity(headers.len());
    let insert = |all: OwnedHeaders, (key, value): &Header| all.insert(KafkaHeader { key, value: value.as_deref() });
    (!headers.is_empty()).then(|| headers.iter().fold(empty, insert))
}

/// The headers that a dead letter has beside those it came with: the reasons, under the names that Kafka Connect uses.
/// All values are UTF-8 text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(extend("additionalProperties" = { "description": "the headers of the original", "type": ["string", "null"] }))]
pub struct DeadLetterHeaders {
    /// Topic of the original.
    #[serde(rename = "__connect.errors.topic")]
    pub topic: String,
    /// Partition of the original, a decimal number.
    #[serde(rename = "__connect.errors.partition")]
    pub partition: String,
    /// Offset of the original, a decimal number.
    #[serde(rename = "__connect.errors.offset")]
    pub offset: String,
    /// Stage that refused it: decode, tokenize, infer or encode.
    #[serde(rename = "__connect.errors.stage")]
    pub stage: String,
    /// Always `vitag.Reject`.
    #[serde(rename = "__connect.errors.exception.class.name")]
    pub class_name: String,
    /// The reason, for people.
    #[serde(rename = "__connect.errors.exception.message")]
    pub message: String,
    /// The reason, for machines.
    #[serde(rename = "vitag.error.code")]
    pub code: String,
}

impl DeadLetterHeaders {
    fn new(position: &Position, reject: &Reject) -> Self {
        Self {
            topic: position.partition.topic.to_string(),
            partition: position.partition.id.to_string(),
            offset: position.offset.to_string(),
            stage: reject.stage.as_str().to_owned(),
            class_name: "vitag.Reject".to_owned(),
            message: reject.message.clone(),
            code: reject.code.as_str().to_owned(),
        }
    }

    fn into_headers(self) -> Vec<Header> {
        let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(self) else { return Vec::new() };
        let text = |value: serde_json::Value| value.as_str().map(|text| Bytes::copy_from_slice(text.as_bytes()));
        fields.into_iter().map(|(key, value)| (key, text(value))).collect()
    }
}

fn count_partitions(
    consumer: &Consumer,
    options: &KafkaSinkOptions,
    topic: &str,
    setting: &'static str,
    deadline: Instant,
) -> Result<i32, ConnectError> {
    let left = deadline.saturating_duration_since(Instant::now());
    let metadata = consumer.fetch_metadata(Some(topic), left).map_err(|e| unavailable(options, e.to_string()))?;
    match metadata.topics().first().map(|topic| topic.partitions().len()) {
        None | Some(0) => Err(ConnectError::NoTopic(topic.to_owned(), setting)),
        Some(count) => Ok(count as i32),
    }
}

fn unavailable(options: &KafkaSinkOptions, reason: String) -> ConnectError {
    let servers = options.connection.bootstrap_servers.clone();
    ConnectError::Unavailable { servers, waited: options.startup_timeout, reason }
}
