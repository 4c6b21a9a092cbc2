//! What travels: a payload that changes from stage to stage, beside the position and the bytes it came from.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;

/// A header of a message: its key and, unless null, its value.
pub type Header = (String, Option<Bytes>);

/// A partition of a topic; for files, the path and 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    /// Topic name, or path of a file.
    pub topic: Arc<str>,
    /// Partition number.
    pub id: i32,
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.id)
    }
}

/// Where a record stands in its input, and in which assignment of its partition it was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// The partition it was read from.
    pub partition: Partition,
    /// Its offset there. For files of `vitag tag`, the number of the line, from 0; for those of `vitag backfill`, the
    /// byte at which the line begins, or the number of the row.
    pub offset: i64,
    /// The assignment of the partition: work of an older one is never committed.
    pub epoch: u64,
    /// Its number in the order of admission within the assignment, from 0 and without gaps
    /// (offsets have gaps where a topic was compacted or holds transaction markers).
    pub slot: u64,
}

/// The message as it was read, kept to pass its parts on and for the dead letter.
#[derive(Debug)]
pub struct Original {
    /// Message key.
    pub key: Option<Bytes>,
    /// Message value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Headers in their order; keys may repeat.
    pub headers: Vec<Header>,
    /// Milliseconds since the epoch, where the input has a time.
    pub timestamp_ms: Option<i64>,
    /// When the worker read it.
    pub received: Instant,
    /// The bytes it holds of the intake budget, given back when the last copy of the record is gone.
    pub held: Held,
}

/// A payload on its way, with all that must come out beside it.
#[derive(Clone, Debug)]
pub struct Record<T> {
    /// Where it came from.
    pub position: Position,
    /// What it came as.
    pub original: Arc<Original>,
    /// What the stages have made of it so far.
    pub payload: T,
}

impl<T> Record<T> {
    /// The same record with another payload.
    pub fn with<U>(self, payload: U) -> Record<U> {
        Record { position: self.position, original: self.original, payload }
    }
}

/// What one partition has in flight, shared by the source (which pauses on it) and the records that hold it.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<InFlight>);

#[derive(Debug, Default)]
struct InFlight {
    bytes: AtomicUsize,
    records: AtomicUsize,
}

impl Gauge {
    /// Bytes held at this moment.
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Records that hold some.
    pub fn records(&self) -> usize {
        self.0.records.load(Ordering::Relaxed)
    }

    /// Takes `bytes` for a record, and `expected` for what the stages will make of it, until the returned value is
    /// dropped.
    pub fn hold(&self, bytes: usize, expected: usize) -> Held {
        self.0.bytes.fetch_add(bytes + expected, Ordering::Relaxed);
        self.0.records.fetch_add(1, Ordering::Relaxed);
        Held { gauge: self.clone(), bytes, result: AtomicUsize::new(expected) }
    }
}

/// What a record holds of a [`Gauge`].
#[derive(Debug)]
pub struct Held {
    gauge: Gauge,
    bytes: usize,
    /// What the result takes: at first what is expected.
    result: AtomicUsize,
}

impl Held {
    /// The bytes that the result takes, now that there is one.
    pub fn settle(&self, bytes: usize) {
        let expected = self.result.swap(bytes, Ordering::Relaxed);
        let in_flight = &self.gauge.0;
        in_flight.bytes.fetch_add(bytes, Ordering::Relaxed);
        in_flight.bytes.fetch_sub(expected, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let in_flight = &self.gauge.0;
        in_flight.bytes.fetch_sub(self.bytes + *self.result.get_mut(), Ordering::Relaxed);
        in_flight.records.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many bytes of output come of one of input: learned from the records that have passed.
#[derive(Clone, Debug)]
pub struct Growth(Arc<AtomicUsize>);

/// The unit of [`Growth`].
const GROWTH_UNIT: usize = 1024;
/// What an output has beside what grows with its input.
const GROWTH_BASE_BYTES: usize = 1024;

impl Default for Growth {
    /// More than most models and texts have.
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(16 * GROWTH_UNIT)))
    }
}

impl Growth {
    /// Bytes of output to expect of `input` bytes.
    pub fn expect(&self, input: usize) -> usize {
        GROWTH_BASE_BYTES + input.saturating_mul(self.0.load(Ordering::Relaxed)) / GROWTH_UNIT
    }

    /// Learns from a record: more at once, less bit by bit.
    pub fn learn(&self, input: usize, output: usize) {
        let seen = output.saturating_sub(GROWTH_BASE_BYTES).saturating_mul(GROWTH_UNIT) / input.max(1);
        // A lane's worth of records that race for it changes little.
        let known = self.0.load(Ordering::Relaxed);
        self.0.store(seen.max(known - known / 256), Ordering::Relaxed);
    }
}

/// The stage that refused a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Bytes to document.
    Decode,
    /// Document to token ids.
    Tokenize,
    /// Token ids to logits.
    Infer,
    /// Annotation to bytes.
    Encode,
}

impl Stage {
    /// Name in dead letters and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Decode => "decode",
            Stage::Tokenize => "tokenize",
            Stage::Infer => "infer",
            Stage::Encode => "encode",
        }
    }
}

/// Why a record cannot be processed, for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The value is not UTF-8.
    InvalidUtf8,
    /// The value is not JSON.
    InvalidJson,
    /// A configured pointer leads nowhere.
    MissingField,
    /// A configured pointer leads to a value of another type.
    WrongType,
    /// The text is empty or white space alone.
    EmptyText,
    /// The text is longer than the limit.
    TextTooLarge,
    /// The tokenizer refused the text.
    TokenizerFailed,
    /// The model failed on this record alone.
    InferenceFailed,
    /// The annotation is larger than the output accepts.
    OutputTooLarge,
}

impl Code {
    /// Name in dead letters and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::InvalidUtf8 => "invalid_utf8",
            Code::InvalidJson => "invalid_json",
            Code::MissingField => "missing_field",
            Code::WrongType => "wrong_type",
            Code::EmptyText => "empty_text",
            Code::TextTooLarge => "text_too_large",
            Code::TokenizerFailed => "tokenizer_failed",
            Code::InferenceFailed => "inference_failed",
            Code::OutputTooLarge => "output_too_large",
        }
    }
}

/// This record cannot be processed: it becomes a dead letter and the stream moves on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", stage.as_str())]
pub struct Reject {
    /// The stage that refused it.
    pub stage: Stage,
    /// The reason, for machines.
    pub code: Code,
    /// The reason, for people.
    pub message: String,
}

impl Reject {
    /// A refusal by `stage`.
    pub fn new(stage: Stage, code: Code, message: impl Into<String>) -> Self {
        Self { stage, code, message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_bytes_return_when_the_record_is_gone() {
        let gauge = Gauge::default();
        let (held, other) = (gauge.hold(10, 100), gauge.hold(1, 2));
        assert_eq!((gauge.bytes(), gauge.records()), (113, 2));
        held.settle(5);
        assert_eq!(gauge.bytes(), 18);
        drop(held);
        assert_eq!((gauge.bytes(), gauge.records()), (3, 1));
        drop(other);
        assert_eq!((gauge.bytes(), gauge.records()), (0, 0));
    }

    #[test]
    fn growth_rises_at_once_and_falls_slowly() {
        let growth = Growth::default();
        growth.learn(100, 100_000);
        assert!((99_990..102_000).contains(&growth.expect(100)), "{}", growth.expect(100));
        growth.learn(100, 2_000);
        assert!((98_000..100_000).contains(&growth.expect(100)), "{}", growth.expect(100));
        (0..2_000).for_each(|_| growth.learn(100, 2_024));
        assert!((2_000..2_300).contains(&growth.expect(100)), "{}", growth.expect(100));
    }
}
