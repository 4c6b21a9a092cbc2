//! Dead letters: `vitag dlq inspect` shows them, `vitag dlq replay` sends them back to where they came from.
//!
//! # Layout
//! `letter` is a dead letter and the filter over them, `inspect` sums them up, `replay` sends them back, by `outbox`, and
//! notes its `progress`; `show` is what people see.

mod inspect;
mod letter;
mod outbox;
mod progress;
mod replay;
mod show;

use std::time::Duration;

use rdkafka::error::KafkaError;

pub use self::inspect::{InspectOptions, Summary, inspect};
pub use self::letter::Filter;
pub use self::replay::{Left, Replay, ReplayOptions, ReplayReport};
pub use self::show::{json, replay_report};
use crate::config::Settings;
use crate::kafka::{ConnectError, ReadError, Reader};
use crate::record::Partition;
use crate::worker::{connection, owned};

/// The setting that names the topic of the dead letters.
const TOPIC_SETTING: &str = "output.dead_letter_topic";

/// Dead letters cannot be read or sent back.
#[derive(Debug, thiserror::Error)]
pub enum DlqError {
    /// Kafka cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A call to the brokers failed.
    #[error("{call}: {reason}; what was committed stands, and the command goes on from there, without --again")]
    Kafka {
        /// The call.
        call: &'static str,
        /// Why.
        reason: String,
    },
    /// What the replay group has committed is nothing that a replay writes, or lies beyond the topic's end.
    #[error(
        "{0}: the offset that the replay group has committed was not written by a replay of this topic: delete it \
         (kafka-consumer-groups.sh --delete-offsets), and every letter counts as not yet replayed"
    )]
    Progress(Partition),
    /// What was replayed lies too scattered.
    #[error(
        "{0}: too many letters would be left between those that are replayed, more than the committed offset's \
         metadata can tell: nothing of this batch was sent; replay with a wider filter, or what it leaves behind first"
    )]
    Scattered(Partition),
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Write(#[from] std::io::Error),
}

impl DlqError {
    fn kafka(call: &'static str, error: &KafkaError) -> Self {
        Self::Kafka { call, reason: error.to_string() }
    }
}

impl From<ReadError> for DlqError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Connect(error) => Self::Connect(error),
            ReadError::Call(call, error) => Self::kafka(call, &error),
        }
    }
}

/// A reader of the group that keeps the progress.
fn reader(settings: &Settings) -> Result<Reader, DlqError> {
    let properties = owned(&settings.kafka.consumer_properties);
    let timeout = Duration::from_millis(settings.worker.startup_timeout_ms);
    Ok(Reader::new(connection(settings), &properties, &replay_group(settings), timeout)?)
}

/// The group that keeps the progress of the worker's group, and the transactional id of its replay.
fn replay_group(settings: &Settings) -> String {
    format!("{}.dlq-replay", settings.kafka.group_id)
}

fn topic(settings: &Settings) -> &str {
    settings.output.dead_letter_topic.as_deref().unwrap_or_default()
}
