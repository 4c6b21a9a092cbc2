//! What a job would do, from a sample: `--dry-run`.

use std::fmt;
use std::ops::ControlFlow;

use serde::Serialize;

use super::compare::Second;
use super::plan::Planner;
use super::task::{Task, TaskReader};
use super::{BackfillError, FileJob, Job, Unread, model_identity, task};
use crate::config::Settings;
use crate::source::Message;

/// Records that are tagged to see how fast it goes.
const SAMPLE: usize = 256;
/// Records that are looked at to find them.
const LOOK_AT: usize = 100 * SAMPLE;

/// What is left to do, and how long it may take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The job.
    pub job: String,
    /// Partitions or splits that are not done.
    pub parts: usize,
    /// What they hold: offsets of a topic, bytes or rows of files.
    pub units: u64,
    /// Records to tag, if the rest is like the sample.
    pub records: u64,
    /// Records of the sample.
    pub sampled: usize,
    /// Records a second, on this machine as it is now.
    pub records_per_second: f64,
    /// Time of one process.
    pub seconds: f64,
    /// Files that cannot be read.
    pub unread: Vec<Unread>,
}

/// What a part of the job shows of the whole.
#[derive(Default)]
struct Sample {
    messages: Vec<Message>,
    looked_at: usize,
    /// Units that were passed.
    units: u64,
}

impl Estimate {
    /// Of a job from topic to topic.
    ///
    /// # Errors
    /// As the job itself.
    pub fn of_topic(settings: &Settings, job: &Job) -> Result<Self, BackfillError> {
        job.check()?;
        let fingerprint = job.fingerprint(settings, &model_identity(settings)?);
        let planner = Planner::new(settings, job, &fingerprint)?;
        let mut plan = planner.recorded()?.map_or_else(|| planner.draw(), Ok)?;
        plan.parts.values_mut().for_each(|part| part.range.start = part.next);
        plan.parts.retain(|_, part| !part.range.is_empty());
        let reader = TaskReader::of_topic(planner.into_reader(), job.selection.clone());
        Self::of_tasks(settings, &job.name, task::of_plan(&job.topic, &plan), plan.parts.len(), &reader)
    }

    /// Of a job that writes files.
    ///
    /// # Errors
    /// As the job itself.
    pub fn of_files(settings: &Settings, job: &FileJob) -> Result<Self, BackfillError> {
        let (tasks, reader, unread) = job.left(settings)?;
        let parts = tasks.len();
        Ok(Self { unread, ..Self::of_tasks(settings, &job.name, tasks, parts, &reader)? })
    }

    fn of_tasks(
        settings: &Settings,
        job: &str,
        tasks: Vec<Task>,
        parts: usize,
        reader: &TaskReader,
    ) -> Result<Self, BackfillError> {
        let units: u64 = tasks.iter().map(Task::total).sum();
        let mut sample = Sample::default();
        for task in &tasks {
            sample.draw(task, reader);
            if sample.is_enough() {
                break;
            }
        }
        let (sampled, share) = (sample.messages.len(), sample.units as f64 / units.max(1) as f64);
        let records = if share > 0.0 { sampled as f64 / share } else { 0.0 };
        let rate = if sampled == 0 { 0.0 } else { sampled as f64 / time(settings, sample.messages)? };
        Ok(Self {
            job: job.to_owned(),
            parts,
            units,
            records: records as u64,
            sampled,
            records_per_second: rate,
            seconds: if rate > 0.0 { records / rate } else { 0.0 },
            unread: Vec::new(),
        })
    }
}

/// Seconds that the model takes for the messages.
fn time(settings: &Settings, messages: Vec<Message>) -> Result<f64, BackfillError> {
    let mut model = Second::start(settings.clone(), None)?;
    let elapsed = model.time(messages).map_err(|e| BackfillError::Store(std::io::Error::other(e)))?;
    Ok(elapsed.as_secs_f64())
}

impl Sample {
    fn is_enough(&self) -> bool {
        self.messages.len() >= SAMPLE || self.looked_at >= LOOK_AT
    }

    /// Takes records of a task. One that cannot be read is told by the job itself.
    fn draw(&mut self, task: &Task, reader: &TaskReader) {
        let mut passed = 0;
        let mut ended = true;
        let read = task.read_all(reader, &mut |message, is_chosen| {
            self.looked_at += 1;
            let end = message.offset + message.value.as_ref().map_or(1, |value| task.width(value.len()));
            passed = task.passed(end);
            if is_chosen {
                self.messages.push(message);
            }
            ended = !self.is_enough();
            if ended { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if let Err(reason) = read {
            tracing::warn!(task = task.name, reason, "cannot be read");
        }
        self.units += if ended { task.total() } else { passed.min(task.total()) };
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { job, parts, units, records, sampled, records_per_second: rate, seconds, unread } = self;
        writeln!(f, "job {job}: a dry run, nothing was written")?;
        writeln!(f, "  left     {parts} partitions or splits of {units} offsets, bytes or rows")?;
        for Unread { input, reason } in unread {
            writeln!(f, "  unread   {input}: {reason}")?;
        }
        writeln!(f, "  records  about {records}, from a sample of {sampled}")?;
        writeln!(f, "  time     about {seconds:.0} s for one process, at {rate:.1} records/s")
    }
}
