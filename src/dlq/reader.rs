//! Reading a topic from outside of any group: partition by partition, up to the end that it had at the start.

use std::ops::{ControlFlow, Range};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use super::DlqError;
use super::progress::Progress;
use crate::config::Settings;
use crate::kafka::{ConnectError, Connection, Onlooker, Troubled as _, partition_count};
use crate::record::Partition;
use crate::source::Message;
use crate::source::kafka::detach;
use crate::worker::{connection, owned};

/// A partition from its first offset to where it ended at the start, both as a committed reader sees them.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) partition: Partition,
    pub(super) offsets: Range<i64>,
}

/// A consumer that is assigned what it is to read, and joins no group.
pub(super) struct Reader {
    consumer: BaseConsumer<Onlooker>,
    connection: Connection,
    /// Longest silence of the brokers.
    timeout: Duration,
}

impl Reader {
    /// A reader that can look up what `group` has committed.
    pub(super) fn new(settings: &Settings, group: &str) -> Result<Self, DlqError> {
        let connection = connection(settings);
        let mut config = connection.client(&owned(&settings.kafka.consumer_properties));
        config.set("group.id", group).set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
        config.set("isolation.level", "read_committed").set("enable.partition.eof", "true");
        // What retention has deleted meanwhile is skipped.
        config.set("auto.offset.reset", "earliest");
        // A fetch that waits for more holds up the next partition.
        config.set("fetch.wait.max.ms", "10");
        let consumer = config.create_with_context(Onlooker::default()).map_err(|e| ConnectError::config(&e))?;
        let timeout = Duration::from_millis(settings.worker.startup_timeout_ms);
        Ok(Self { consumer, connection, timeout })
    }

    /// Number of partitions of a topic that `setting` names.
    pub(super) fn partitions(&self, topic: &str, setting: &'static str) -> Result<i32, DlqError> {
        let deadline = Instant::now() + self.timeout;
        Ok(partition_count(&self.consumer, topic, setting, deadline, |reason| self.unavailable(reason))?)
    }

    /// The partitions of a topic as they are now.
    pub(super) fn spans(&self, topic: &str, setting: &'static str) -> Result<Vec<Span>, DlqError> {
        let span = |id| {
            let partition = Partition { topic: topic.into(), id };
            Ok(Span { offsets: self.watermarks(&partition)?, partition })
        };
        (0..self.partitions(topic, setting)?).map(span).collect()
    }

    fn watermarks(&self, partition: &Partition) -> Result<Range<i64>, DlqError> {
        let marks = self.consumer.fetch_watermarks(&partition.topic, partition.id, self.timeout);
        let (low, end) = marks.map_err(|e| self.unavailable(format!("{partition}: {e}")))?;
        Ok(low..end)
    }

    /// What the reader's group has noted of a partition; none if it has noted nothing, or too long ago.
    pub(super) fn progress(&self, span: &Span) -> Result<Option<Progress>, DlqError> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&span.partition.topic, span.partition.id);
        let committed = self.consumer.committed_offsets(list, self.timeout);
        let committed = committed.map_err(|e| DlqError::kafka("committed_offsets", &e))?;
        let elements = committed.elements();
        let Some(element) = elements.first() else { return Ok(None) };
        element.error().map_err(|e| DlqError::kafka("committed_offsets", &e))?;
        let Offset::Offset(next) = element.offset() else { return Ok(None) };
        // Another replay may have gone on since.
        let end = if next > span.offsets.end { self.watermarks(&span.partition)?.end } else { span.offsets.end };
        let progress = Progress::decode(next, element.metadata()).ok().filter(|_| next <= end);
        progress.map(Some).ok_or_else(|| DlqError::Progress(span.partition.clone()))
    }

    /// Calls `each` with the messages of a span from the offset `from`.
    pub(super) fn read(
        &self,
        span: &Span,
        from: i64,
        mut each: impl FnMut(Message) -> Result<ControlFlow<()>, DlqError>,
    ) -> Result<(), DlqError> {
        if from >= span.offsets.end {
            return Ok(());
        }
        self.assign(&span.partition, from)?;
        while let Some(message) = self.next(&span.partition)? {
            if message.offset >= span.offsets.end || each(message)?.is_break() {
                break;
            }
        }
        self.consumer.unassign().map_err(|e| DlqError::kafka("unassign", &e))
    }

    /// The message at an offset; none if it is gone.
    pub(super) fn at(&self, partition: &Partition, offset: i64) -> Result<Option<Message>, DlqError> {
        let span = Span { partition: partition.clone(), offsets: self.watermarks(partition)? };
        let mut found = None;
        if span.offsets.contains(&offset) {
            self.read(&span, offset, |message| {
                found = (message.offset == offset).then_some(message);
                Ok(ControlFlow::Break(()))
            })?;
        }
        Ok(found)
    }

    fn assign(&self, partition: &Partition, from: i64) -> Result<(), DlqError> {
        let mut list = TopicPartitionList::new();
        let assigned = list
            .add_partition_offset(&partition.topic, partition.id, Offset::Offset(from))
            .and_then(|()| self.consumer.assign(&list));
        assigned.map_err(|e| DlqError::kafka("assign", &e))
    }

    /// The next message; none at the end.
    fn next(&self, partition: &Partition) -> Result<Option<Message>, DlqError> {
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

    /// The group of this reader, which has no member.
    pub(super) fn consumer(&self) -> &BaseConsumer<Onlooker> {
        &self.consumer
    }

    fn unavailable(&self, reason: String) -> ConnectError {
        self.connection.unavailable(self.timeout, reason)
    }
}
