//! The pieces of a job that writes files: splits of files, or stretches of a topic. Each is done or not done.

use std::ops::{ControlFlow, Range};

use bytes::Bytes;
use serde_json::{Value, json};

use super::input::Split;
use super::output::{Manifest, manifest_path};
use super::rows::{self, RowOptions};
use super::select::Selection;
use super::store::Folder;
use super::{BackfillError, plan::Plan};
use crate::config::Settings;
use crate::kafka::{Reader, Span};
use crate::record::Partition;
use crate::source::Message;

/// A piece of a job.
pub(super) struct Task {
    /// Its name, and that of its output without the end.
    pub(super) name: String,
    /// Where its records come from. Two tasks of one partition are never on their way at the same time.
    pub(super) partition: Partition,
    pub(super) from: From,
}

/// What a task reads.
pub(super) enum From {
    File(Split),
    Topic(Range<i64>),
}

/// Offsets of a task over a topic.
const TASK_OFFSETS: usize = 50_000;

/// Cuts the plan of a topic into tasks, the partitions in turn.
pub(super) fn of_plan(topic: &str, plan: &Plan) -> Vec<Task> {
    let of_partition = |(&id, part): (&i32, &super::plan::Part)| {
        let Range { start, end } = part.range.clone();
        let starts = (start..end).step_by(TASK_OFFSETS).enumerate();
        let task = move |(turn, start): (usize, i64)| {
            let range = start..end.min(start + TASK_OFFSETS as i64);
            let partition = Partition { topic: topic.into(), id };
            (turn, Task { name: format!("{topic}-{id}-{start:012}"), partition, from: From::Topic(range) })
        };
        starts.map(task).collect::<Vec<_>>()
    };
    let mut tasks: Vec<_> = plan.parts.iter().flat_map(of_partition).collect();
    tasks.sort_by_key(|(turn, _)| *turn);
    tasks.into_iter().map(|(_, task)| task).collect()
}

/// A split as a task.
pub(super) fn of_split(split: Split) -> Task {
    let topic = split.folder.display(&split.file.path);
    Task {
        name: split.name.clone(),
        partition: Partition { topic: topic.as_str().into(), id: 0 },
        from: From::File(split),
    }
}

/// What tasks are read with.
pub(super) struct TaskReader {
    /// For files.
    pub(super) rows: RowOptions,
    /// For a topic.
    pub(super) topic: Option<Reader>,
    pub(super) selection: Selection,
}

impl TaskReader {
    pub(super) fn of_topic(reader: Reader, selection: Selection) -> Self {
        Self { rows: RowOptions::default(), topic: Some(reader), selection }
    }

    pub(super) fn of_files(settings: &Settings, selection: Selection) -> Self {
        Self { rows: RowOptions::new(settings), topic: None, selection }
    }
}

impl Task {
    /// What identifies its input: another version of a file is another input.
    pub(super) fn input(&self) -> Value {
        match &self.from {
            From::File(split) => {
                let file = &split.file;
                json!({ "file": &*self.partition.topic, "bytes": file.bytes, "version": file.version, "piece": split.piece })
            }
            From::Topic(range) => {
                let Partition { topic, id } = &self.partition;
                json!({ "topic": &**topic, "partition": id, "start": range.start, "end": range.end })
            }
        }
    }

    /// Whether its output is there, made of this input.
    pub(super) fn is_done(&self, folder: &Folder, fingerprint: &str) -> Result<bool, BackfillError> {
        let manifest = folder.get(&manifest_path(&self.name)).map_err(BackfillError::Store)?;
        let manifest = manifest.and_then(|bytes| serde_json::from_slice::<Manifest>(&bytes).ok());
        Ok(manifest.is_some_and(|done| done.fingerprint == fingerprint && done.input == self.input()))
    }

    /// How much there is to read, in offsets, bytes or rows.
    pub(super) fn total(&self) -> u64 {
        match &self.from {
            From::File(split) => split.size(),
            From::Topic(range) => u64::try_from(range.end - range.start).unwrap_or_default(),
        }
    }

    /// How much of it is read when the record at `offset` is.
    pub(super) fn passed(&self, offset: i64) -> u64 {
        let start = match &self.from {
            From::File(split) => split.start(),
            From::Topic(range) => range.start,
        };
        u64::try_from(offset - start).unwrap_or_default()
    }

    /// How many units a value of so many bytes takes; a line has its end.
    pub(super) fn width(&self, bytes: usize) -> i64 {
        match &self.from {
            From::File(split) if split.counts_bytes() => bytes as i64 + 1,
            _ => 1,
        }
    }

    /// Calls `each` with the chosen messages of the task.
    ///
    /// # Errors
    /// Why the input cannot be read to its end.
    pub(super) fn read(
        &self,
        reader: &TaskReader,
        each: &mut dyn FnMut(Message) -> ControlFlow<()>,
    ) -> Result<(), String> {
        self.read_all(reader, &mut |message, is_chosen| {
            if is_chosen { each(message) } else { ControlFlow::Continue(()) }
        })
    }

    /// Calls `each` with every message of the task, and whether it is chosen.
    ///
    /// # Errors
    /// Why the input cannot be read to its end.
    pub(super) fn read_all(
        &self,
        reader: &TaskReader,
        each: &mut dyn FnMut(Message, bool) -> ControlFlow<()>,
    ) -> Result<(), String> {
        let mut choose = |message: Message| {
            let is_chosen = reader.selection.wants(&self.partition, &message);
            each(message, is_chosen)
        };
        match &self.from {
            From::File(split) => rows::read(split, &reader.rows, &mut |offset, value: Bytes| {
                choose(Message { offset, key: None, value: Some(value), headers: vec![], timestamp_ms: None })
            }),
            From::Topic(range) => {
                let topic = reader.topic.as_ref().ok_or("no topic is connected")?;
                let span = Span { partition: self.partition.clone(), offsets: range.clone() };
                let read = topic.read(&span, range.start, |message| Ok::<_, BackfillError>(choose(message)));
                read.map_err(|e| e.to_string())
            }
        }
    }
}
