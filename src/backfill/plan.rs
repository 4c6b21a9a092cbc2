//! The plan of a job: which offsets it tags. It is made once, at the first start, and kept with the job's progress:
//! every offset that the job's group commits carries the range of its partition in its metadata.
//!
//! So all processes of a job agree, a job that goes on tags what it began with, however the topic has grown, and whoever
//! deletes the group has deleted all there is of the job.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer as _;
use rdkafka::{Offset, TopicPartitionList};

use super::bound::Lookup;
use super::{BackfillError, Job};
use crate::config::Settings;
use crate::kafka::{ConnectError, Reader, is_fenced, left};
use crate::record::Partition;
use crate::sink::kafka::delivery::{Deliveries, Producer, init_transactions, producer_config};
use crate::worker::{connection, owned, producer_properties};

/// What the metadata begins with.
const VERSION: &str = "vitag-backfill-1";
/// How soon a process that another has forestalled looks again.
const AGAIN: Duration = Duration::from_millis(200);

/// A partition of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// What is tagged.
    pub(super) range: Range<i64>,
    /// The next offset to read, as committed.
    pub(super) next: i64,
}

impl Part {
    fn is_done(&self) -> bool {
        self.next >= self.range.end
    }
}

/// The ranges of a job, by partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) parts: BTreeMap<i32, Part>,
}

impl Plan {
    pub(super) fn is_done(&self) -> bool {
        self.parts.values().all(Part::is_done)
    }

    /// Offsets that are not read yet; there need not be a record at each.
    pub(super) fn left(&self) -> u64 {
        self.parts.values().map(|part| part.range.end.saturating_sub(part.next).max(0) as u64).sum()
    }
}

/// What is committed beside the offsets of a partition.
pub(super) fn metadata(fingerprint: &str, range: &Range<i64>) -> String {
    format!("{VERSION} {fingerprint} {} {}", range.start, range.end)
}

/// The fingerprint and the range in it.
fn parse(metadata: &str) -> Option<(&str, Range<i64>)> {
    let mut words = metadata.strip_prefix(VERSION)?.split_ascii_whitespace();
    let (fingerprint, start, end) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    words.next().is_none().then_some((fingerprint, start..end))
}

/// Reads and makes the plan of a job.
pub(super) struct Planner<'j> {
    settings: &'j Settings,
    job: &'j Job,
    fingerprint: &'j str,
    reader: Reader,
    live: Reader,
}

impl<'j> Planner<'j> {
    /// Connects.
    pub(super) fn new(settings: &'j Settings, job: &'j Job, fingerprint: &'j str) -> Result<Self, BackfillError> {
        let properties = owned(&settings.kafka.consumer_properties);
        let timeout = Duration::from_millis(settings.worker.startup_timeout_ms);
        let reader = |group: &str| Reader::new(connection(settings), &properties, group, timeout);
        let (live, own) = (reader(&settings.kafka.group_id)?, reader(&job.group(settings))?);
        Ok(Self { settings, job, fingerprint, reader: own, live })
    }

    /// The reader of the topic.
    pub(super) fn into_reader(self) -> Reader {
        self.reader
    }

    /// The plan that was recorded, or else a new one, which it records.
    pub(super) fn record(&self) -> Result<Plan, BackfillError> {
        let deadline = Instant::now() + Duration::from_millis(self.settings.worker.startup_timeout_ms);
        loop {
            if let Some(plan) = self.recorded()? {
                return Ok(plan);
            }
            match self.try_record(deadline) {
                Ok(plan) => return Ok(plan),
                Err(BackfillError::Kafka { fenced: true, .. }) if Instant::now() < deadline => {
                    std::thread::sleep(AGAIN)
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The plan that a start before this one has recorded.
    pub(super) fn recorded(&self) -> Result<Option<Plan>, BackfillError> {
        let mut plan = Plan::default();
        let count = self.reader.partitions(&self.job.topic, "--topic or input.topics")?;
        for id in 0..count {
            let Some((next, metadata)) = self.reader.committed(&self.partition(id))? else { continue };
            let Some((fingerprint, range)) = parse(&metadata) else {
                return Err(BackfillError::Foreign(self.job.group(self.settings)));
            };
            if fingerprint != self.fingerprint {
                return Err(BackfillError::Changed(self.job.name.clone()));
            }
            plan.parts.insert(id, Part { range, next });
        }
        Ok((!plan.parts.is_empty()).then_some(plan))
    }

    /// The plan as the topic is now. A partition that is not chosen has an empty range, so that the group starts nowhere
    /// else in it.
    pub(super) fn draw(&self) -> Result<Plan, BackfillError> {
        let Job { topic, partitions, from, to, limit, .. } = self.job;
        let spans = self.reader.spans(topic, "--topic or input.topics")?;
        if let Some(id) = partitions.iter().flatten().find(|&&id| !(0..spans.len() as i32).contains(&id)) {
            return Err(BackfillError::NoPartition { topic: topic.clone(), id: *id, count: spans.len() });
        }
        let lookup = Lookup { reader: &self.reader, live: &self.live };
        let mut plan = Plan::default();
        for span in &spans {
            let id = span.partition.id;
            let is_chosen = partitions.as_ref().is_none_or(|chosen| chosen.contains(&id));
            let range = if is_chosen { lookup.range(span, (*from, *to))? } else { span.offsets.end..span.offsets.end };
            plan.parts.insert(id, Part { next: range.start, range });
        }
        if let Some(limit) = limit {
            self.shorten(&mut plan, *limit)?;
        }
        Ok(plan)
    }

    /// Ends the ranges so that they hold `limit` chosen records in all, spread over the partitions.
    fn shorten(&self, plan: &mut Plan, limit: u64) -> Result<(), BackfillError> {
        let mut more = limit;
        let mut partitions = plan.parts.values().filter(|part| !part.is_done()).count() as u64;
        for (&id, part) in plan.parts.iter_mut().filter(|(_, part)| !part.is_done()) {
            let share = more.div_ceil(partitions);
            let (mut found, mut end) = (0, if share == 0 { part.range.start } else { part.range.end });
            let partition = self.partition(id);
            let span = crate::kafka::Span { partition: partition.clone(), offsets: part.range.clone() };
            self.reader.read(&span, if share == 0 { part.range.end } else { part.range.start }, |message| {
                found += u64::from(self.job.selection.wants(&partition, &message));
                if found < share {
                    return Ok(ControlFlow::Continue(()));
                }
                end = message.offset + 1;
                Ok::<_, BackfillError>(ControlFlow::Break(()))
            })?;
            part.range.end = end;
            (more, partitions) = (more - found, partitions - 1);
        }
        Ok(())
    }

    fn try_record(&self, deadline: Instant) -> Result<Plan, BackfillError> {
        let settings = self.settings;
        let group = self.job.group(settings);
        let timeout = Duration::from_millis(settings.kafka.transaction_timeout_ms);
        let (connection, properties) = (connection(settings), producer_properties(settings));
        let config = producer_config(&connection, &properties, Some(&group), timeout);
        let producer: Producer =
            config.create_with_context(Deliveries::default()).map_err(|e| ConnectError::config(&e))?;
        init_transactions(&producer, deadline).map_err(|e| failed("init_transactions", &e))?;
        // Another may have recorded its plan until it was fenced just now.
        if let Some(plan) = self.recorded()? {
            return Ok(plan);
        }
        let plan = self.draw()?;
        if plan.is_done() {
            return Err(BackfillError::Empty);
        }
        let offsets = self.offsets(&plan).map_err(|e| failed("offsets", &e))?;
        producer.begin_transaction().map_err(|e| failed("begin_transaction", &e))?;
        let metadata = self.reader.consumer().group_metadata();
        let metadata = metadata.ok_or_else(|| failed("group_metadata", &KafkaError::Canceled))?;
        producer
            .send_offsets_to_transaction(&offsets, &metadata, left(deadline))
            .map_err(|e| failed("send_offsets_to_transaction", &e))?;
        producer.commit_transaction(left(deadline)).map_err(|e| failed("commit_transaction", &e))?;
        Ok(plan)
    }

    fn offsets(&self, plan: &Plan) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::new();
        for (&id, part) in &plan.parts {
            let mut element = list.add_partition(&self.job.topic, id);
            element.set_offset(Offset::Offset(part.next))?;
            element.set_metadata(metadata(self.fingerprint, &part.range));
        }
        Ok(list)
    }

    fn partition(&self, id: i32) -> Partition {
        Partition { topic: self.job.topic.as_str().into(), id }
    }
}

fn failed(call: &'static str, error: &KafkaError) -> BackfillError {
    BackfillError::Kafka { call, reason: error.to_string(), fenced: is_fenced(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_comes_back_and_that_of_others_is_none() {
        assert_eq!(parse(&metadata("ab12", &(3..70))), Some(("ab12", 3..70)));
        for other in ["", "1:CBCoB", "vitag-backfill-1 a 1", "vitag-backfill-1 a 1 2 3", "vitag-backfill-2 a 1 2"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
