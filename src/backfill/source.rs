//! Tasks into the pipeline, one after the other, and their outputs out of it: published when all of a task has arrived.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError};

use super::output::{OutputFormat, SplitWriter, Writers};
use super::progress::{Part, Progress};
use super::store::Folder;
use super::summary::Unread;
use super::tally::Tally;
use super::task::{Task, TaskReader};
use crate::record::Partition;
use crate::source::{Intake, IntakeOptions, NO_DEADLINE, Pace, Source, SourceError, StopSignal};

/// Tasks that are read or on their way at a time: while the last records of one are tagged, the next is read.
const TASKS_AT_ONCE: usize = 4;
/// How often a wait looks again.
const LOOK: Duration = Duration::from_millis(2);
/// How late it may look.
const LONGEST_LOOK: Duration = Duration::from_millis(50);

/// Tasks that could not be read.
pub(super) type Failed = Arc<Mutex<Vec<Unread>>>;

/// A source of tasks.
pub(super) struct TaskSource {
    pub(super) tasks: Vec<Task>,
    pub(super) reader: TaskReader,
    pub(super) folder: Folder,
    pub(super) format: OutputFormat,
    pub(super) fingerprint: String,
    pub(super) intake: IntakeOptions,
    pub(super) writers: Writers,
    pub(super) tally: Tally,
    pub(super) progress: Progress,
    pub(super) pace: Pace,
    pub(super) failed: Failed,
}

/// A task whose records are on their way.
struct Sent {
    task: Task,
    /// Whether all of it was read, or else why not; none if it was stopped.
    read: Option<Result<(), String>>,
    arrived: Receiver<bool>,
}

impl TaskSource {
    /// Reads a task into the pipeline.
    fn send(&self, task: Task, intake: &mut Intake, stop: &StopSignal) -> Result<Sent, SourceError> {
        let writer = SplitWriter::new(&self.folder, &task.name, self.format);
        let writer = writer.map_err(|e| SourceError(format!("cannot write: {e}")))?;
        let partition = task.partition.clone();
        self.writers.open(partition.clone(), writer);
        intake.assign(partition.clone());
        let (mut stopped, done) = (false, Arc::new(AtomicU64::new(0)));
        self.progress.begin(&task.name, Part { total: task.total(), done: done.clone() });
        let read = task.read(&self.reader, &mut |message| {
            self.wait(intake, stop);
            self.pace.took(&message);
            done.store(task.passed(message.offset), Ordering::Relaxed);
            stopped = stop.is_draining() || intake.admit(&partition, message).is_err();
            if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let arrived = intake.drain(&[partition], NO_DEADLINE);
        Ok(Sent { task, read: (!stopped).then_some(read), arrived })
    }

    /// Waits until there is room, and time, for a record.
    fn wait(&self, intake: &Intake, stop: &StopSignal) {
        loop {
            let wait = self.pace.wait();
            let full = intake.total_bytes() >= self.intake.max_bytes;
            if stop.is_draining() || !full && !self.pace.rests() && wait.is_zero() {
                return;
            }
            std::thread::sleep(wait.clamp(LOOK, LONGEST_LOOK));
        }
    }

    /// Publishes what has arrived whole. The rest stays.
    fn settle(&self, sent: &mut Vec<Sent>, intake: &mut Intake) -> Result<(), SourceError> {
        for one in std::mem::take(sent) {
            match one.arrived.try_recv() {
                Err(TryRecvError::Empty) => sent.push(one),
                // The committer has failed, and says why.
                Err(TryRecvError::Disconnected) => return Err(SourceError("the committer has stopped".to_owned())),
                Ok(_) => self.finish(one, intake)?,
            }
        }
        Ok(())
    }

    fn finish(&self, Sent { task, read, .. }: Sent, intake: &mut Intake) -> Result<(), SourceError> {
        intake.release(std::slice::from_ref(&task.partition));
        self.progress.end(&task.name);
        let Some(writer) = self.writers.close(&task.partition) else { return Ok(()) };
        match read {
            // Dropped with its writer: half a split is none.
            None => Ok(()),
            Some(Err(reason)) => {
                tracing::error!(split = task.name, reason, "split failed");
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                let input = task.partition.topic.to_string();
                // One split tells of its file.
                if !failed.iter().any(|unread| unread.input == input) {
                    failed.push(Unread { input, reason });
                }
                Ok(())
            }
            Some(Ok(())) => {
                let published = writer.publish(&self.fingerprint, task.input());
                let counts = published.map_err(|e| SourceError(format!("cannot write: {e}")))?;
                tracing::info!(split = task.name, records = counts.records, "split finished");
                self.tally.add(&counts);
                Ok(())
            }
        }
    }
}

impl Source for TaskSource {
    fn run(mut self: Box<Self>, mut intake: Intake, stop: &StopSignal) -> Result<(), SourceError> {
        let mut sent: Vec<Sent> = Vec::new();
        for task in std::mem::take(&mut self.tasks) {
            let is_sent =
                |sent: &[Sent], partition: &Partition| sent.iter().any(|one| one.task.partition == *partition);
            while (sent.len() >= TASKS_AT_ONCE || is_sent(&sent, &task.partition)) && !stop.is_abandoned() {
                self.settle(&mut sent, &mut intake)?;
                std::thread::sleep(LOOK);
            }
            if stop.is_draining() {
                break;
            }
            sent.push(self.send(task, &mut intake, stop)?);
            self.settle(&mut sent, &mut intake)?;
        }
        while !sent.is_empty() && !stop.is_abandoned() {
            self.settle(&mut sent, &mut intake)?;
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}
