//! Outputs and dead letters to Kafka: in one transaction with the input offsets, or at least once.

mod dead_letter;
pub(crate) mod delivery;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use self::delivery::{
    Deliveries, Destination, Destinations, Producer, init_transactions, is_too_large, is_transient, producer_config,
    settle,
};
use crate::fault::is_off;
use crate::kafka::{
    ConnectError, Connection, Verdict, committed, is_fenced, judge, left, partition_count, without_value,
};
use crate::record::Partition;
use crate::sink::{Finished, Sink, SinkError};
use crate::source::kafka::Consumer;
use crate::telemetry::Metrics;

pub use self::dead_letter::DeadLetterHeaders;
pub(crate) use self::dead_letter::REPLAYS;

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
    /// What is noted beside the offsets of an input partition.
    pub offset_metadata: BTreeMap<i32, String>,
}

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
    /// At least once: offsets whose records have arrived, and that could not be committed.
    delivered: Vec<(Partition, i64)>,
    /// Places of records that are sent in batches of their own: the broker refuses whole batches, and one of these was
    /// too large.
    suspects: Vec<usize>,
    destinations: Destinations,
    metrics: Metrics,
}

/// A call that failed while a transaction was open.
type Failed = (&'static str, KafkaError);

impl KafkaSink {
    /// Connects, and takes over the transactions of an older worker of the same name: after this, its offsets are
    /// settled and it is fenced.
    ///
    /// # Errors
    /// When no broker answers in time, a topic is missing, or librdkafka refuses a setting.
    pub fn connect(options: KafkaSinkOptions, consumer: Arc<Consumer>, metrics: Metrics) -> Result<Self, ConnectError> {
        let deadline = Instant::now() + options.startup_timeout;
        let destination = |topic: &str, setting| -> Result<Destination, ConnectError> {
            let unavailable = |reason| options.connection.unavailable(options.startup_timeout, reason);
            let partitions = partition_count(&consumer, topic, setting, deadline, unavailable)?;
            Ok(Destination { topic: topic.to_owned(), partitions, metrics: metrics.output(topic) })
        };
        let destinations = Destinations {
            output: destination(&options.output_topic, "output.topic")?,
            dead_letters: destination(&options.dead_letter_topic, "output.dead_letter_topic")?,
        };
        let mut sink = Self {
            config: producer_config(
                &options.connection,
                &options.properties,
                options.transactional_id.as_deref(),
                options.transaction_timeout,
            ),
            deliveries: Deliveries::default(),
            producer: None,
            in_doubt: false,
            delivered: Vec::new(),
            suspects: Vec::new(),
            destinations,
            options,
            consumer,
            metrics,
        };
        let producer = sink.start_producer(deadline).map_err(|e| match e {
            SinkError::Retry(reason) => sink.options.connection.unavailable(sink.options.startup_timeout, reason),
            other => ConnectError::Config(other.to_string()),
        })?;
        sink.producer = Some(producer);
        Ok(sink)
    }

    /// The producer, or a new one where the last was thrown away.
    fn take_producer(&mut self, deadline: Instant) -> Result<Producer, SinkError> {
        self.producer.take().map_or_else(|| self.start_producer(deadline), Ok)
    }

    /// Makes a producer; a transactional one is ready when the transactions before it are settled.
    fn start_producer(&self, deadline: Instant) -> Result<Producer, SinkError> {
        let producer: Producer = self
            .config
            .create_with_context(self.deliveries.clone())
            .map_err(|e| SinkError::Fatal(format!("cannot make a producer: {}", without_value(&e))))?;
        if self.options.transactional_id.is_some() {
            init_transactions(&producer, deadline).map_err(|e| match judge(&e) {
                Verdict::Fatal => self.fatal("init_transactions", &e),
                _ => retry("init_transactions", &e),
            })?;
        }
        Ok(producer)
    }

    /// Less than a transaction may live: past that, the broker aborts it and fences this producer.
    fn transaction_deadline(&self) -> Instant {
        Instant::now() + self.options.transaction_timeout * 3 / 4
    }

    fn publish_transaction(&mut self, records: &[&Finished], offsets: &[(Partition, i64)]) -> Result<(), SinkError> {
        let deadline = self.transaction_deadline();
        let producer = self.take_producer(deadline)?;
        if self.in_doubt && self.was_committed(offsets, deadline)? {
            self.in_doubt = false;
            self.producer = Some(producer);
            return Ok(());
        }
        self.in_doubt = false;
        match self.run_transaction(&producer, records, offsets, deadline) {
            Ok(()) => {
                self.producer = Some(producer);
                Ok(())
            }
            Err((call, error)) => Err(self.give_up(producer, records, call, &error)),
        }
    }

    /// Begin, produce, offsets, commit.
    fn run_transaction(
        &self,
        producer: &Producer,
        records: &[&Finished],
        offsets: &[(Partition, i64)],
        deadline: Instant,
    ) -> Result<(), Failed> {
        if is_off("outputs_first_rule") {
            let list = self.offset_list(offsets).map_err(|e| ("commit", e))?;
            self.consumer.commit(&list, CommitMode::Sync).map_err(|e| ("commit", e))?;
        }
        producer.begin_transaction().map_err(|e| ("begin_transaction", e))?;
        fail::fail_point!("after_begin");
        self.send_all(producer, records, deadline).map_err(|e| ("produce", e))?;
        fail::fail_point!("after_produce");
        let list = self.offset_list(offsets).map_err(|e| ("send_offsets_to_transaction", e))?;
        // Read for every transaction: the generation of the group changes with each rebalance.
        let group = self.consumer.group_metadata().ok_or(("group_metadata", KafkaError::Canceled))?;
        if self.consumer.assignment_lost() {
            return Err(("group_metadata", KafkaError::Rebalance(RDKafkaErrorCode::AssignmentLost)));
        }
        producer
            .send_offsets_to_transaction(&list, &group, left(deadline))
            .map_err(|e| ("send_offsets_to_transaction", e))?;
        fail::fail_point!("after_send_offsets");
        fail::fail_point!("before_commit");
        producer.commit_transaction(left(deadline)).map_err(|e| (COMMIT, e))?;
        fail::fail_point!("after_commit");
        Ok(())
    }

    /// Ends a transaction that failed; the producer stays only if it is certain how.
    fn give_up(
        &mut self,
        producer: Producer,
        records: &[&Finished],
        call: &'static str,
        error: &KafkaError,
    ) -> SinkError {
        if call != COMMIT {
            self.metrics.transaction_aborted();
        }
        match judge(error) {
            Verdict::Fatal => return self.fatal(call, error),
            // No answer, or none that fits. A late request could yet hit a later transaction of this producer (KIP-890),
            // so a new one settles it; of a commit, nobody knows yet whether it was done.
            Verdict::Repeat | Verdict::Broken => {
                self.in_doubt = call == COMMIT;
                return retry(call, error);
            }
            Verdict::Abort => {}
        }
        match producer.abort_transaction(self.options.transaction_timeout) {
            Ok(()) => {
                self.producer = Some(producer);
                self.refusal(records, call, error)
            }
            Err(e) if judge(&e) == Verdict::Fatal => self.fatal("abort_transaction", &e),
            // A commit that was called failed may have been done all the same, and then there is nothing to abort.
            Err(_) => {
                self.in_doubt = call == COMMIT;
                retry(call, error)
            }
        }
    }

    /// Whether the transaction in doubt was committed: then the group stands where it would have put it. The
    /// partitions are still ours (the committer holds the assignments), so nobody else can have moved them.
    fn was_committed(&self, offsets: &[(Partition, i64)], deadline: Instant) -> Result<bool, SinkError> {
        let mut list = TopicPartitionList::new();
        for (partition, _) in offsets {
            list.add_partition(&partition.topic, partition.id);
        }
        let committed = committed(&self.consumer, list, left(deadline)).map_err(|e| retry("committed_offsets", &e))?;
        Ok(offsets.iter().all(|(partition, next)| {
            let found = committed.find_partition(&partition.topic, partition.id).map(|element| element.offset());
            matches!(found, Some(Offset::Offset(offset)) if offset >= *next)
        }))
    }

    fn publish_at_least_once(&mut self, records: &[&Finished], offsets: &[(Partition, i64)]) -> Result<(), SinkError> {
        let deadline = Instant::now() + self.options.transaction_timeout;
        if !offsets.iter().all(|offset| self.delivered.contains(offset)) {
            let producer = self.take_producer(deadline)?;
            if let Err(error) = self.send_all(&producer, records, deadline) {
                // The producer goes, and with it what it still holds: it would be sent twice.
                return Err(self.refusal(records, "produce", &error));
            }
            self.producer = Some(producer);
            self.delivered = offsets.to_vec();
        }
        let list = self.offset_list(offsets).map_err(|e| retry("commit", &e))?;
        self.consumer.commit(&list, CommitMode::Sync).map_err(|e| retry("commit", &e))?;
        self.delivered.clear();
        Ok(())
    }

    /// Sends the records and waits until they have arrived.
    fn send_all(&self, producer: &Producer, records: &[&Finished], deadline: Instant) -> Result<(), KafkaError> {
        self.deliveries.take();
        for (place, record) in records.iter().enumerate() {
            let alone = self.suspects.contains(&place);
            if alone {
                settle(producer, deadline)?;
            }
            self.destinations.send(producer, record, place)?;
            if alone {
                settle(producer, deadline)?;
                self.deliveries.check()?;
            }
        }
        settle(producer, deadline)?;
        self.deliveries.check()
    }

    /// What the deliveries say of a publication that was undone: records too large for their topic, or an error that no
    /// repetition mends.
    fn refusal(&mut self, records: &[&Finished], call: &'static str, error: &KafkaError) -> SinkError {
        let failed = self.deliveries.take();
        if let Some((place, error)) = failed.iter().find(|(_, e)| !is_too_large(e) && !is_transient(e)) {
            let position = &records[*place].position;
            return SinkError::Fatal(format!("{call}: {} {}: {error}", position.partition, position.offset));
        }
        if is_forbidden(error) {
            return SinkError::Fatal(format!("{call}: {error}"));
        }
        let too_large: Vec<usize> = failed.iter().filter(|(_, e)| is_too_large(e)).map(|(place, _)| *place).collect();
        match too_large[..] {
            [] => retry(call, error),
            [_] => SinkError::TooLarge(too_large),
            _ => {
                self.suspects = too_large;
                retry(call, error)
            }
        }
    }

    fn offset_list(&self, offsets: &[(Partition, i64)]) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::new();
        for (partition, next) in offsets {
            let mut element = list.add_partition(&partition.topic, partition.id);
            element.set_offset(Offset::Offset(*next))?;
            if let Some(metadata) = self.options.offset_metadata.get(&partition.id) {
                element.set_metadata(metadata);
            }
        }
        Ok(list)
    }

    fn fatal(&self, call: &str, error: &KafkaError) -> SinkError {
        let advice = match &self.options.transactional_id {
            Some(id) if is_fenced(error) => format!(
                ": another worker has taken over as {id:?} (give every worker a worker.instance of its own), or the \
                 transaction outlived kafka.transaction_timeout_ms"
            ),
            _ => String::new(),
        };
        SinkError::Fatal(format!("{call}: {error}{advice}"))
    }
}

const COMMIT: &str = "commit_transaction";

impl Sink for KafkaSink {
    fn publish(&mut self, records: &[&Finished], offsets: &[(Partition, i64)]) -> Result<(), SinkError> {
        match self.options.transactional_id {
            Some(_) => self.publish_transaction(records, offsets)?,
            None => self.publish_at_least_once(records, offsets)?,
        }
        self.suspects.clear();
        self.destinations.count(records);
        Ok(())
    }

    fn settle(&mut self) -> Result<(), SinkError> {
        if self.options.transactional_id.is_some() && self.producer.is_none() {
            let deadline = self.transaction_deadline();
            self.producer = Some(self.start_producer(deadline)?);
            self.in_doubt = false;
        }
        Ok(())
    }
}

fn retry(call: &str, error: &KafkaError) -> SinkError {
    SinkError::Retry(format!("{call}: {error}"))
}

/// Rights that are missing: the worker stops, to be mended.
fn is_forbidden(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::GroupAuthorizationFailed
                | Code::TopicAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::TransactionalIdAuthorizationFailed
        )
    )
}
