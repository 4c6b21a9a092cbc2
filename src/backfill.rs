//! `vitag backfill`: tags a bounded past, through the pipeline of the worker.
//!
//! # Layout
//! A job that reads a topic and writes to one is in `topic`: its `plan` says which offsets, by `bound`s, and `select`
//! which records of them. A job that writes files is in `files`: its `input` is cut into splits, a `task` is one of them
//! or a stretch of a topic, `source` brings the `rows` of one after the other into the pipeline, and `output` publishes
//! them; `store` is the disk or an object store, `parquet` reads there. `tally` counts, `progress`
//! shows how far it is, `summary` how it ended; `polite` leaves room for others, and
//! `compare` has a second model look at the same records; `estimate` is the dry run.

mod bound;
mod compare;
mod estimate;
mod files;
mod input;
mod output;
mod parquet;
mod plan;
mod polite;
mod progress;
mod rows;
mod select;
mod source;
mod store;
mod summary;
mod tally;
mod task;
mod topic;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

pub use self::bound::Bound;
use self::compare::Compared;
pub use self::compare::{Agreement, Comparison, Second};
pub use self::estimate::Estimate;
pub use self::files::{FileInput, FileJob, run as run_files};
pub use self::input::{Compression, Cut, FileFormat};
pub use self::output::OutputFormat;
pub use self::polite::{Live, give_way};
pub use self::progress::{Progress, Show, show};
pub use self::select::{Condition, Selection};
pub use self::summary::{State, Summary, Unread};
use self::tally::Counted;
pub use self::tally::{Counts, Tally};
pub use self::topic::run as run_topic;
use crate::config::Settings;
use crate::kafka::{ConnectError, ReadError};
use crate::manifest::ModelDir;
use crate::pipeline::Monitor;
use crate::sink::Sink;
use crate::source::{Pace, StopSignal};
use crate::worker::{WorkerError, refused};

/// A job over a part of a topic.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name: a job of this name goes on where it was.
    pub name: String,
    /// The topic that is read.
    pub topic: String,
    /// Which of its partitions; all if none are given.
    pub partitions: Option<Vec<i32>>,
    /// Where it begins.
    pub from: Bound,
    /// Where it ends.
    pub to: Bound,
    /// The two as they were given: a time before now means another time at every start.
    pub range: [String; 2],
    /// Most records, spread over the partitions.
    pub limit: Option<u64>,
    /// Which records.
    pub selection: Selection,
}

/// What a job reports to, and what stops it.
pub struct Watch<'w> {
    /// Metrics and spans.
    pub monitor: Monitor,
    /// Tokens given to the model so far.
    pub tokens: &'w (dyn Fn() -> f64 + Sync),
    /// What was published.
    pub tally: Tally,
    /// How far it is.
    pub progress: Progress,
    /// How fast it may read.
    pub pace: Pace,
    /// A second model to compare with; the job takes it.
    pub second: Mutex<Option<Second>>,
    /// Stops it before its end.
    pub stop: StopSignal,
}

impl Watch<'_> {
    /// A sink whose publications are counted, and compared if that is wanted.
    fn watched<S: Sink>(&self, sink: S) -> impl Sink + use<S> {
        let second = self.second.lock().unwrap_or_else(PoisonError::into_inner).take();
        Compared { sink: Counted { sink, tally: self.tally.clone() }, second }
    }
}

/// A job cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    /// The worker failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// Kafka cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A call to the brokers failed.
    #[error("{call}: {reason}; repeat the command to go on")]
    Kafka {
        /// The call.
        call: &'static str,
        /// Why.
        reason: String,
        /// Another process has taken over.
        fenced: bool,
    },
    /// The range begins after its end.
    #[error("--from {0} lies after --to {1}")]
    Crossed(String, String),
    /// There is nothing to tag.
    #[error("the range holds no records: nothing was done, and nothing noted of the job")]
    Empty,
    /// A partition that was asked for does not exist.
    #[error("--partitions: {topic:?} has no partition {id}, it has {count}")]
    NoPartition {
        /// The topic.
        topic: String,
        /// What was asked for.
        id: i32,
        /// How many it has.
        count: usize,
    },
    /// The job was begun otherwise.
    #[error(
        "a job {0:?} was begun with another range, choice, output or model: repeat its arguments to go on, or give \
         the new job another --job"
    )]
    Changed(String),
    /// A folder cannot be read or written.
    #[error("{0}")]
    Store(std::io::Error),
    /// A pattern cannot be understood.
    #[error("{0}: {1}")]
    Pattern(String, String),
    /// No file is meant.
    #[error("{0}: there is no such file")]
    NoFile(String),
    /// Two files would have one output.
    #[error("{0}: another input has a file of this name: tag them into folders apart, or by one pattern for both")]
    SameName(String),
    /// The folder holds other outputs.
    #[error(
        "{0} holds the outputs of a job with another input, choice, form or model: repeat its arguments to go on, or \
         choose another --output"
    )]
    Occupied(String),
    /// The group is not one of a job.
    #[error("the group {0:?} has committed offsets that no backfill has written: give the job another --job")]
    Foreign(String),
}

impl From<ReadError> for BackfillError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Connect(error) => Self::Connect(error),
            ReadError::Call(call, error) => Self::Kafka { call, reason: error.to_string(), fenced: false },
        }
    }
}

impl Job {
    /// The consumer group that shares the work and keeps the progress.
    pub fn group(&self, settings: &Settings) -> String {
        format!("{}.backfill.{}", settings.kafka.group_id, self.name)
    }

    /// # Errors
    /// When no record can lie in the range, whatever the topic holds.
    pub fn check(&self) -> Result<(), BackfillError> {
        let [from, to] = self.range.clone();
        if self.from.is_after(self.to) { Err(BackfillError::Crossed(from, to)) } else { Ok(()) }
    }

    /// What must stay the same from one start to the next.
    fn fingerprint(&self, settings: &Settings, model: &str) -> String {
        let Job { topic, partitions, range, limit, selection, .. } = self;
        fingerprint(&(topic, partitions, range, limit, selection, &settings.output, &settings.input, model))
    }
}

/// A short hash of arguments.
fn fingerprint(arguments: &impl Serialize) -> String {
    let text = serde_json::to_vec(arguments).expect("arguments are numbers, texts and lists of them");
    Sha256::digest(text)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The directory of a model that is named `name@version`, beside the one of the settings; a path stays as it is.
pub fn model_path(settings: &Settings, model: &str) -> PathBuf {
    match model.split_once('@') {
        Some((name, version)) if !model.contains('/') => {
            let models = settings.model.path.ancestors().nth(2).unwrap_or(Path::new(""));
            models.join(name).join(version)
        }
        _ => PathBuf::from(model),
    }
}

/// The identity of the models of the settings, which are not loaded.
fn model_identity(settings: &Settings) -> Result<String, BackfillError> {
    let of_slot = |settings: &Settings| {
        let dir = ModelDir::open(&settings.model.path).map_err(|e| refused(settings, e.into()))?;
        Ok(format!("{}-{}", dir.sha256, settings.model.variant))
    };
    Ok(settings.slots().iter().map(of_slot).collect::<Result<Vec<_>, BackfillError>>()?.join(" "))
}
