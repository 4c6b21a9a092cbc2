//! Reading a topic from outside of any group: partition by partition, up to the end that it had at the start.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::{ConnectError, Connection, Onlooker, Troubled as _, partition_count};
use crate::record::Partition;
use crate::source::Message;
use crate::source::kafka::detach;

/// A topic cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// Kafka cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A call to the brokers failed.
    #[error("{0}: {1}")]
    Call(&'static str, KafkaError),
}

/// Pause before a coordinator that is on its way is asked again.
const AGAIN: Duration = Duration::from_millis(100);

/// Whether the group's coordinator is being elected, moved or loaded: it soon answers.
fn is_moving(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{CoordinatorLoadInProgress, CoordinatorNotAvailable, NotCoordinator};
    matches!(error.rdkafka_error_code(), Some(NotCoordinator | CoordinatorNotAvailable | CoordinatorLoadInProgress))
}

/// A partition from its first offset to where it ended at the start, both as a committed reader sees them.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) partition: Partition,
    pub(crate) offsets: Range<i64>,
}

/// The configuration of a consumer that joins no group and sees what is committed, with the ends of partitions. `group`
/// is the one whose offsets it can look up: librdkafka wants its name even where nothing is asked of one.
pub(crate) fn onlooker_config(
    connection: &Connection,
    properties: &BTreeMap<String, String>,
    group: &str,
) -> ClientConfig {
    let mut config = connection.client(properties);
    config.set("group.id", group).set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
    config.set("isolation.level", "read_committed").set("enable.partition.eof", "true");
    // What retention has deleted meanwhile is skipped.
    config.set("auto.offset.reset", "earliest").set("allow.auto.create.topics", "false");
    config
}

/// A consumer that is assigned what it is to read, and joins no group.
pub(crate) struct Reader {
    consumer: BaseConsumer<Onlooker>,
    connection: Connection,
    /// Longest silence of the brokers.
    timeout: Duration,
}

impl Reader {
    /// A reader that can look up what `group` has committed. `timeout` is the longest silence of the brokers.
    pub(crate) fn new(
        connection: Connection,
        properties: &BTreeMap<String, String>,
        group: &str,
        timeout: Duration,
    ) -> Result<Self, ConnectError> {
        let mut config = onlooker_config(&connection, properties, group);
        // A fetch that waits for more holds up the next partition.
        config.set("fetch.wait.max.ms", "10");
        let consumer = config.create_with_context(Onlooker::default()).map_err(|e| ConnectError::config(&e))?;
        Ok(Self { consumer, connection, timeout })
    }

    /// Number of partitions of a topic that `setting` names.
    pub(crate) fn partitions(&self, topic: &str, setting: &'static str) -> Result<i32, ReadError> {
        let deadline = Instant::now() + self.timeout;
        Ok(partition_count(&self.consumer, topic, setting, deadline, |reason| self.unavailable(reason))?)
    }

    /// The partitions of a topic as they are now.
    pub(crate) fn spans(&self, topic: &str, setting: &'static str) -> Result<Vec<Span>, ReadError> {
        let span = |id| {
            let partition = Partition { topic: topic.into(), id };
            Ok(Span { offsets: self.watermarks(&partition)?, partition })
        };
        (0..self.partitions(topic, setting)?).map(span).collect()
    }

    /// First offset and end of a partition now.
    pub(crate) fn watermarks(&self, partition: &Partition) -> Result<Range<i64>, ReadError> {
        let marks = self.consumer.fetch_watermarks(&partition.topic, partition.id, self.timeout);
        let (low, end) = marks.map_err(|e| self.unavailable(format!("{partition}: {e}")))?;
        Ok(low..end)
    }

    /// What the reader's group has committed of a partition, with its metadata.
    pub(crate) fn committed(&self, partition: &Partition) -> Result<Option<(i64, String)>, ReadError> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&partition.topic, partition.id);
        let failed = |e| ReadError::Call("committed_offsets", e);
        let deadline = Instant::now() + self.timeout;
        let committed = loop {
            match self.consumer.committed_offsets(list.clone(), self.timeout) {
                Err(error) if is_moving(&error) && Instant::now() < deadline => std::thread::sleep(AGAIN),
                committed => break committed.map_err(failed)?,
            }
        };
        let elements = committed.elements();
        let Some(element) = elements.first() else { return Ok(None) };
        element.error().map_err(failed)?;
        match element.offset() {
            Offset::Offset(next) => Ok(Some((next, element.metadata().to_owned()))),
            _ => Ok(None),
        }
    }

    /// The offset of the first record of this time or later; none if there is none.
    pub(crate) fn at_time(&self, partition: &Partition, ms: i64) -> Result<Option<i64>, ReadError> {
        let failed = |e| ReadError::Call("offsets_for_times", e);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&partition.topic, partition.id, Offset::Offset(ms)).map_err(failed)?;
        let found = self.consumer.offsets_for_times(list, self.timeout).map_err(failed)?;
        let elements = found.elements();
        let Some(element) = elements.first() else { return Ok(None) };
        element.error().map_err(failed)?;
        match element.offset() {
            Offset::Offset(offset) => Ok(Some(offset)),
            _ => Ok(None),
        }
    }

    /// Calls `each` with the messages of a span from the offset `from`.
    pub(crate) fn read<E: From<ReadError>>(
        &self,
        span: &Span,
        from: i64,
        mut each: impl FnMut(Message) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), E> {
        if from >= span.offsets.end {
            return Ok(());
        }
        self.assign(&span.partition, from)?;
        while let Some(message) = self.next(&span.partition)? {
            if message.offset >= span.offsets.end || each(message)?.is_break() {
                break;
            }
        }
        Ok(self.consumer.unassign().map_err(|e| ReadError::Call("unassign", e))?)
    }

    /// The message at an offset; none if it is gone.
    pub(crate) fn at(&self, partition: &Partition, offset: i64) -> Result<Option<Message>, ReadError> {
        let span = Span { partition: partition.clone(), offsets: self.watermarks(partition)? };
        let mut found = None;
        if span.offsets.contains(&offset) {
            self.read(&span, offset, |message| {
                found = (message.offset == offset).then_some(message);
                Ok::<_, ReadError>(ControlFlow::Break(()))
            })?;
        }
        Ok(found)
    }

    fn assign(&self, partition: &Partition, from: i64) -> Result<(), ReadError> {
        let mut list = TopicPartitionList::new();
        let assigned = list
            .add_partition_offset(&partition.topic, partition.id, Offset::Offset(from))
            .and_then(|()| self.consumer.assign(&list));
        assigned.map_err(|e| ReadError::Call("assign", e))
    }

    /// The next message; none at the end.
    fn next(&self, partition: &Partition) -> Result<Option<Message>, ReadError> {
        let deadline = Instant::now() + self.timeout;
        while Instant::now() < deadline {
            match self.consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) if message.partition() == partition.id && message.topic() == &*partition.topic => {
                    return Ok(Some(detach(&message)));
                }
                Some(Err(KafkaError::PartitionEOF(id))) if id == partition.id => return Ok(None),
                // librdkafka tries again, and says what is wrong to the context.
                Some(Ok(_) | Err(_)) | None => {}
            }
        }
        let reason = self.consumer.context().trouble().last().unwrap_or_else(|| "no answer".to_owned());
        Err(self.unavailable(format!("{partition}: {reason}")).into())
    }

    /// For what else can be asked: about the reader's group, for instance.
    pub(crate) fn consumer(&self) -> &BaseConsumer<Onlooker> {
        &self.consumer
    }

    fn unavailable(&self, reason: String) -> ConnectError {
        self.connection.unavailable(self.timeout, reason)
    }
}
