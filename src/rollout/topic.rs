//! The topics of rollouts: one partition, compacted, read from the start without a group.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::config::Settings;
use crate::kafka::{ConnectError, Onlooker, Troubled as _, onlooker_config};
use crate::sink::kafka::delivery::{Deliveries, Producer, producer_config};
use crate::source::Message;
use crate::source::kafka::detach;
use crate::worker::{connection, owned, producer_properties};

/// The only partition.
const PARTITION: i32 = 0;
/// How long one request for metadata, or for the end of the topic, may take.
const METADATA: Duration = Duration::from_secs(2);
/// Pause before a topic that is not there, or a broker that does not answer, is asked for again.
const AGAIN: Duration = Duration::from_secs(1);

/// What a poll found.
#[derive(Debug)]
pub(crate) enum Read {
    /// The next message.
    Message(Message),
    /// All there is has been read.
    End,
    /// The topic does not exist.
    Absent,
    /// Nothing for now.
    Nothing,
}

/// Reads the topic from its start, and what comes after.
pub(crate) struct Reader {
    consumer: BaseConsumer<Onlooker>,
    topic: String,
    /// The offset after the last message when the reading began; none while it has not.
    end: Option<i64>,
    /// All up to `end` was read, which is to be told.
    is_at_end: bool,
    ask_at: Instant,
}

impl Reader {
    /// A reader of `topic`, which need not exist.
    pub(crate) fn open(settings: &Settings, topic: &str) -> Result<Self, ConnectError> {
        let (properties, group) = (owned(&settings.kafka.consumer_properties), &settings.kafka.group_id);
        let config = onlooker_config(&connection(settings), &properties, &format!("{group}.rollout"));
        let consumer = config.create_with_context(Onlooker::default()).map_err(|e| ConnectError::config(&e))?;
        Ok(Self { consumer, topic: topic.to_owned(), end: None, is_at_end: false, ask_at: Instant::now() })
    }

    /// Reads the topic from its start again.
    pub(crate) fn rewind(&mut self) {
        (self.end, self.is_at_end) = (None, false);
        self.ask_at = Instant::now();
    }

    /// What comes next, waited for up to `patience`.
    pub(crate) fn poll(&mut self, patience: Duration) -> Read {
        if std::mem::take(&mut self.is_at_end) {
            return Read::End;
        }
        let Some(end) = self.end else { return self.begin(patience) };
        match self.consumer.poll(patience) {
            Some(Ok(message)) if message.topic() == self.topic => {
                // Where others write all the time, the consumer never sees an end.
                self.is_at_end = message.offset() + 1 >= end;
                Read::Message(detach(&message))
            }
            Some(Err(KafkaError::PartitionEOF(_))) => Read::End,
            Some(Err(error)) => {
                tracing::debug!(%error, topic = self.topic, "cannot read, starting over");
                self.rewind();
                self.ask_at = Instant::now() + AGAIN;
                Read::Nothing
            }
            _ => Read::Nothing,
        }
    }

    /// Begins to read, if the topic is there.
    fn begin(&mut self, patience: Duration) -> Read {
        if Instant::now() < self.ask_at {
            // Errors of the connection come out of a poll.
            let _ = self.consumer.poll(patience);
            return Read::Nothing;
        }
        self.ask_at = Instant::now() + AGAIN;
        if !self.exists() {
            return Read::Absent;
        }
        match self.assign() {
            Ok(end) => self.end = Some(end),
            Err(error) => tracing::debug!(%error, topic = self.topic, "cannot begin to read"),
        }
        Read::Nothing
    }

    /// False only where the broker says so.
    fn exists(&self) -> bool {
        let Ok(metadata) = self.consumer.fetch_metadata(Some(&self.topic), METADATA) else { return true };
        let Some(topic) = metadata.topics().first() else { return false };
        match topic.error().map(RDKafkaErrorCode::from) {
            None => !topic.partitions().is_empty(),
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => false,
            Some(_) => true,
        }
    }

    /// Assigns the partition from its start; returns where it ends now.
    fn assign(&self) -> Result<i64, KafkaError> {
        let (_, end) = self.consumer.fetch_watermarks(&self.topic, PARTITION, METADATA)?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, PARTITION, Offset::Beginning)?;
        self.consumer.assign(&list)?;
        Ok(end)
    }

    /// The last complaint of librdkafka.
    fn trouble(&self) -> String {
        self.consumer.context().trouble().last().unwrap_or_else(|| "no answer".to_owned())
    }
}

/// The last value of every key, as the topic has it now; tombstones are left out.
pub(crate) fn read_all(settings: &Settings, topic: &str) -> Result<BTreeMap<String, Message>, ConnectError> {
    let patience = Duration::from_millis(settings.worker.startup_timeout_ms);
    let deadline = Instant::now() + patience;
    let mut reader = Reader::open(settings, topic)?;
    let mut last = BTreeMap::new();
    while Instant::now() < deadline {
        match reader.poll(Duration::from_millis(100)) {
            Read::Message(message) => {
                let key = String::from_utf8_lossy(message.key.as_deref().unwrap_or_default()).into_owned();
                match message.value {
                    Some(_) => last.insert(key, message),
                    None => last.remove(&key),
                };
            }
            Read::End => return Ok(last),
            Read::Absent => return Err(ConnectError::NoTopic(topic.to_owned(), "rollout.topic_prefix")),
            Read::Nothing => {}
        }
        if let Some(refused) = reader.consumer.context().trouble().refusal(false) {
            return Err(refused);
        }
    }
    if let Some(refused) = reader.consumer.context().trouble().refusal(true) {
        return Err(refused);
    }
    Err(connection(settings).unavailable(patience, reader.trouble()))
}

/// Writes messages to the topics.
pub(crate) struct Writer {
    producer: Producer,
}

impl Writer {
    /// A writer; it speaks to the broker when it has something to write.
    pub(crate) fn open(settings: &Settings) -> Result<Self, ConnectError> {
        let lifetime = Duration::from_millis(settings.kafka.transaction_timeout_ms);
        let config = producer_config(&connection(settings), &producer_properties(settings), None, lifetime);
        let producer = config.create_with_context(Deliveries::default()).map_err(|e| ConnectError::config(&e))?;
        Ok(Self { producer })
    }

    /// Hands a message over; [`Writer::failure`] tells later if it did not arrive.
    pub(crate) fn send(&self, topic: &str, key: &str, value: Option<&[u8]>) -> Result<(), String> {
        let mut record = BaseRecord::with_opaque_to(topic, 0).key(key).partition(PARTITION);
        record.payload = value;
        self.producer.send(record).map_err(|(error, _)| error.to_string())
    }

    /// Why a message handed over since the last question did not arrive.
    pub(crate) fn failure(&self) -> Option<String> {
        self.producer.context().take().first().map(|(_, error)| error.to_string())
    }

    /// Waits until everything has arrived, up to `patience`.
    pub(crate) fn flush(&self, patience: Duration) -> Result<(), String> {
        self.producer.flush(patience).map_err(|error| error.to_string())?;
        self.failure().map_or(Ok(()), Err)
    }
}
