//! Where results go.

use bytes::Bytes;

use crate::record::{Code, Partition, Record, Reject, Stage};
use crate::telemetry::RecordSpan;

pub mod file;
pub mod kafka;

/// How a record ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Tagged: the bytes to publish.
    Output(Bytes),
    /// A tombstone, passed on.
    Tombstone,
    /// Refused: its original goes to the dead letters.
    DeadLetter(Reject),
    /// Refused, and too large for the topic of the dead letters: the reason goes there alone. The original stays in its
    /// topic, at the position that the headers name.
    DeadLetterWithoutValue(Reject),
}

impl Outcome {
    /// Why the record was refused, if it was.
    pub fn reject(&self) -> Option<&Reject> {
        match self {
            Outcome::DeadLetter(reject) | Outcome::DeadLetterWithoutValue(reject) => Some(reject),
            Outcome::Output(_) | Outcome::Tombstone => None,
        }
    }

    /// What becomes of an outcome that is too large for its topic; none where that has been tried.
    pub(crate) fn shrunk(&self) -> Option<Self> {
        match self {
            Outcome::Output(_) => {
                let message = "the output topic does not take a record of this size (max.message.bytes)";
                Some(Outcome::DeadLetter(Reject::new(Stage::Encode, Code::OutputTooLarge, message)))
            }
            Outcome::DeadLetter(reject) => Some(Outcome::DeadLetterWithoutValue(reject.clone())),
            Outcome::Tombstone | Outcome::DeadLetterWithoutValue(_) => None,
        }
    }
}

/// The end of a record's way, with the span that covers it.
#[derive(Debug)]
pub struct Conclusion {
    /// How it ended.
    pub outcome: Outcome,
    /// Ends when the record is committed.
    pub span: RecordSpan,
}

/// A record that needs nothing more but to be published.
pub type Finished = Record<Conclusion>;

/// Where results are published.
pub trait Sink: Send {
    /// Publishes `records` and notes `offsets` as the next to read, both or neither as far as the sink can promise.
    ///
    /// # Errors
    /// [`SinkError::Retry`] when nothing of it was published for good and the same may be tried again.
    fn publish(&mut self, records: &[&Finished], offsets: &[(Partition, i64)]) -> Result<(), SinkError>;

    /// Ends what an attempt has left open that is not repeated, as others may wait for it.
    ///
    /// # Errors
    /// [`SinkError::Retry`] when it stays open; the next publication ends it.
    fn settle(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Publishing failed.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// For now: the same call may succeed later.
    #[error("{0}")]
    Retry(String),
    /// The topics do not take these records of the call, by their places in it; nothing of it was published.
    #[error("{} records are too large for their topic", .0.len())]
    TooLarge(Vec<usize>),
    /// For good: the worker must stop without committing.
    #[error("{0}")]
    Fatal(String),
    /// Whoever read the output has closed it: there is nothing left to do, and nothing wrong.
    #[error("the output is closed")]
    Closed,
}
