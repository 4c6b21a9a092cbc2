//! Chosen letters back to where they came from, each once.
//!
//! A transaction holds a batch of letters and the progress over their partition of the dead-letter topic, so a replay
//! that is killed and repeated neither doubles nor loses a letter. Letters that were not chosen, or that could not be
//! sent, stay behind: the next replay finds them again.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{ControlFlow, Range};

use serde::Serialize;

use super::letter::{Filter, Letter, Reason, count_replays};
use super::outbox::{Outbox, Outgoing};
use super::progress::Progress;
use super::{DlqError, TOPIC_SETTING, reader, topic};
use crate::config::Settings;
use crate::kafka::{Reader, Span};
use crate::record::Partition;
use crate::source::Message;

/// Most letters in a transaction.
const BATCH_LETTERS: usize = 500;
/// A transaction that holds this much is committed.
const BATCH_BYTES: usize = 8 << 20;

/// What to send back.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// Which letters.
    pub filter: Filter,
    /// Also those that were sent back before: the chosen ones count as not yet replayed.
    pub again: bool,
    /// A letter that was sent back this often is left.
    pub max_replays: u32,
}

/// Why a chosen letter stays behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Left {
    /// It was sent back as often as it may be.
    MaxReplays,
    /// It has no value, being too large for the dead-letter topic, and the original is no longer at its offset.
    OriginalGone,
    /// The topic that it names is none of the worker's.
    ForeignTopic,
    /// Its headers do not say where it came from.
    NoReason,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Left::MaxReplays => "replayed as often as --max-replays allows",
            Left::OriginalGone => "too large to carry its value, and the original is gone",
            Left::ForeignTopic => "from a topic that is not one of input.topics",
            Left::NoReason => "without the headers of a dead letter of vitag",
        })
    }
}

/// What became of the letters, or would.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReplayReport {
    /// The dead-letter topic.
    pub topic: String,
    /// Nothing was sent.
    pub dry_run: bool,
    /// Whether an earlier replay is known. If none is, every letter counts as not yet sent back.
    pub continued: bool,
    /// Letters sent back.
    pub replayed: u64,
    /// The same, by the topic they were sent to.
    pub inputs: BTreeMap<String, u64>,
    /// Not chosen by the filter, and not sent back by an earlier replay: the next one finds them.
    pub not_chosen: u64,
    /// Chosen and left behind.
    pub left: BTreeMap<Left, u64>,
}

/// What a letter has coming.
enum Decision {
    Send(Outgoing),
    Leave(Left),
    NotChosen,
    SentBefore,
}

/// A replay of the letters that the topic holds now.
pub struct Replay<'s> {
    settings: &'s Settings,
    options: ReplayOptions,
    reader: Reader,
    /// Reads while the other is in the middle of a partition.
    originals: Reader,
    spans: Vec<Span>,
    /// Topics that may be written to, with the number of their partitions.
    inputs: BTreeMap<String, i32>,
}

impl<'s> Replay<'s> {
    /// Connects, and notes where the dead-letter topic ends: what comes later is not part of this replay.
    ///
    /// # Errors
    /// When no broker answers in time, or a topic is missing.
    pub fn new(settings: &'s Settings, options: ReplayOptions) -> Result<Self, DlqError> {
        let originals = reader(settings)?;
        let reader = reader(settings)?;
        let spans = reader.spans(topic(settings), TOPIC_SETTING)?;
        let count = |topic: &String| Ok((topic.clone(), reader.partitions(topic, "input.topics")?));
        let inputs = settings.input.topics.iter().map(count).collect::<Result<_, DlqError>>()?;
        Ok(Self { settings, options, originals, reader, spans, inputs })
    }

    /// What a run would do.
    ///
    /// # Errors
    /// When the letters cannot be read.
    pub fn plan(&self) -> Result<ReplayReport, DlqError> {
        self.walk(None)
    }

    /// Sends the letters back.
    ///
    /// # Errors
    /// When the letters cannot be read, or a transaction fails: those before it stand, and another run goes on.
    pub fn run(&self) -> Result<ReplayReport, DlqError> {
        // Before the progress is read: a commit in doubt is settled, and an older replay can add to it no more.
        let outbox = Outbox::open(self.settings)?;
        self.walk(Some(&outbox))
    }

    fn walk(&self, outbox: Option<&Outbox>) -> Result<ReplayReport, DlqError> {
        let topic = topic(self.settings).to_owned();
        let mut report = ReplayReport { topic, dry_run: outbox.is_none(), ..ReplayReport::default() };
        let mut partitions = Vec::new();
        for span in &self.spans {
            let noted = Progress::read(&self.reader, span)?;
            report.continued |= noted.is_some();
            let mut progress = noted.unwrap_or_default();
            progress.insert(0..span.offsets.start);
            if self.options.again {
                self.forget(span, &mut progress, outbox)?;
            }
            partitions.push((span, progress));
        }
        if self.options.again && outbox.is_some() {
            tracing::warn!("the chosen letters count as not sent back: repeat without --again if this is interrupted");
        }
        for (span, progress) in partitions {
            self.walk_partition(span, progress, outbox, &mut report)?;
        }
        Ok(report)
    }

    fn walk_partition(
        &self,
        span: &Span,
        mut progress: Progress,
        outbox: Option<&Outbox>,
        report: &mut ReplayReport,
    ) -> Result<(), DlqError> {
        let mut batch: Vec<Outgoing> = Vec::new();
        self.each(span, progress.next(), |letter, stretch| {
            let decision = self.decide(letter, &progress)?;
            report.count(&decision);
            if let (Decision::Send(record), Some(outbox)) = (decision, outbox) {
                batch.push(record);
                progress.insert(stretch);
                if is_full(&batch) {
                    outbox.commit(&batch, &span.partition, &progress, self.reader.consumer())?;
                    batch.clear();
                }
            }
            Ok(())
        })?;
        match outbox {
            // With nothing to send it renews what is noted, which the broker keeps for a time only.
            Some(outbox) if !batch.is_empty() || progress != Progress::default() => {
                outbox.commit(&batch, &span.partition, &progress, self.reader.consumer())
            }
            _ => Ok(()),
        }
    }

    /// Takes the chosen letters out of the progress, for good and before anything is sent: from there it is a replay
    /// like any other, to be killed and repeated.
    fn forget(&self, span: &Span, progress: &mut Progress, outbox: Option<&Outbox>) -> Result<(), DlqError> {
        let before = progress.clone();
        self.each(span, span.offsets.start, |letter, stretch| {
            if self.options.filter.matches(&letter) {
                progress.remove(stretch);
            }
            Ok(())
        })?;
        match outbox {
            Some(outbox) if *progress != before => {
                outbox.commit(&[], &span.partition, progress, self.reader.consumer())
            }
            _ => Ok(()),
        }
    }

    /// Calls `each` with the letters of a span from the offset `from`, and the stretch of offsets that ends with the
    /// letter and begins behind the one before: there is nothing else in it.
    fn each(
        &self,
        span: &Span,
        from: i64,
        mut each: impl FnMut(Letter, Range<i64>) -> Result<(), DlqError>,
    ) -> Result<(), DlqError> {
        let mut start = from;
        self.reader.read(span, from, |message| {
            let stretch = start..message.offset + 1;
            start = stretch.end;
            each(Letter::new(span.partition.id, message), stretch)?;
            Ok(ControlFlow::Continue(()))
        })
    }

    fn decide(&self, letter: Letter, progress: &Progress) -> Result<Decision, DlqError> {
        if progress.contains(letter.message.offset) {
            return Ok(Decision::SentBefore);
        }
        if !self.options.filter.matches(&letter) {
            return Ok(Decision::NotChosen);
        }
        let Letter { partition, message, reason } = letter;
        let (offset, input) = (message.offset, reason.as_ref().map(|reason| (reason.input.clone(), reason.offset)));
        let decision = self.outgoing(message, reason)?;
        if let Decision::Leave(why) = &decision {
            let input = input.map(|(partition, offset)| format!("{partition} {offset}"));
            tracing::warn!(partition, offset, input, "letter left: {why}");
        }
        Ok(decision)
    }

    fn outgoing(&self, message: Message, reason: Option<Reason>) -> Result<Decision, DlqError> {
        let Some(reason) = reason else { return Ok(Decision::Leave(Left::NoReason)) };
        // The headers of a letter are whatever its writer put there: they must not open a way to other topics.
        let Some(&partitions) = self.inputs.get(&*reason.input.topic) else {
            return Ok(Decision::Leave(Left::ForeignTopic));
        };
        if reason.replays >= self.options.max_replays {
            return Ok(Decision::Leave(Left::MaxReplays));
        }
        let letter = message.offset;
        let original = match message.value {
            Some(_) => Some(Message { headers: reason.headers.strip(message.headers), ..message }),
            None => self.original(&message, &reason.input, reason.offset, partitions)?,
        };
        let Some(original) = original else { return Ok(Decision::Leave(Left::OriginalGone)) };
        Ok(Decision::Send(Outgoing {
            topic: reason.input.topic.to_string(),
            // Where it was, whatever partitioner put it there.
            partition: Some(reason.input.id).filter(|id| (0..partitions).contains(id)),
            key: original.key,
            value: original.value,
            headers: count_replays(original.headers, reason.replays + 1),
            timestamp_ms: original.timestamp_ms,
            letter,
        }))
    }

    /// The message that a letter without a value came from, if it is still there.
    fn original(
        &self,
        letter: &Message,
        input: &Partition,
        offset: i64,
        partitions: i32,
    ) -> Result<Option<Message>, DlqError> {
        if !(0..partitions).contains(&input.id) {
            return Ok(None);
        }
        let found = self.originals.at(input, offset)?;
        // A topic that was made anew holds something else there.
        Ok(found.filter(|found| {
            found.key == letter.key && found.timestamp_ms == letter.timestamp_ms && found.value.is_some()
        }))
    }
}

fn is_full(batch: &[Outgoing]) -> bool {
    batch.len() >= BATCH_LETTERS || batch.iter().map(Outgoing::bytes).sum::<usize>() >= BATCH_BYTES
}

impl ReplayReport {
    fn count(&mut self, decision: &Decision) {
        match decision {
            Decision::Send(record) => {
                self.replayed += 1;
                *self.inputs.entry(record.topic.clone()).or_default() += 1;
            }
            Decision::Leave(why) => *self.left.entry(*why).or_default() += 1,
            Decision::NotChosen => self.not_chosen += 1,
            Decision::SentBefore => {}
        }
    }

    /// Chosen letters that stay behind.
    pub fn left(&self) -> u64 {
        self.left.values().sum()
    }
}
