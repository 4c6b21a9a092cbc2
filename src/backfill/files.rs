//! From files or a topic to files: split by split, each published whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::input::{self, Cut};
use super::output::{OutputFormat, Writers};
use super::plan::{Part, Plan, Planner};
use super::source::{Failed, TaskSource};
use super::store::Folder;
use super::tally::Tally;
use super::task::{self, Task, TaskReader};
use super::{BackfillError, Job, Selection, State, Summary, Unread, Watch, fingerprint, model_identity};
use crate::commit::Report;
use crate::config::Settings;
use crate::decode::Format;
use crate::pipeline::{self, PipelineOptions};
use crate::worker::{intake_options, loader, pipeline_options, serve};

/// Where the arguments of a job are noted, beside its outputs.
const JOB: &str = "_vitag/job.json";

/// A job that writes files.
#[derive(Clone, Debug)]
pub struct FileJob {
    /// Its name, for the summary.
    pub name: String,
    /// What is read.
    pub input: FileInput,
    /// The folder that is written: a path, or a URL.
    pub output: String,
    /// What is written.
    pub format: OutputFormat,
    /// Which of how many processes this is: it does every n-th split.
    pub share: (usize, usize),
}

/// What a job that writes files reads.
#[derive(Clone, Debug)]
pub enum FileInput {
    /// A part of a topic.
    Topic(Job),
    /// Files, whose documents come as JSON: a line of text and a row of columns are objects.
    Files {
        /// Paths or URLs, with wildcards.
        patterns: Vec<String>,
        /// How they are cut.
        cut: Cut,
        /// Which documents.
        selection: Selection,
    },
}

/// What is noted of a job.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    fingerprint: String,
    /// By partition; of files there are none.
    #[serde(default)]
    ranges: BTreeMap<i32, (i64, i64)>,
}

/// Runs a job to its end, or until it is told to stop.
///
/// # Errors
/// When there is nothing to read, the folder holds another job, or a stage fails. Files that cannot be read are in the
/// summary.
pub fn run(settings: &Settings, job: &FileJob, watch: &Watch<'_>) -> Result<Summary, BackfillError> {
    let started = Instant::now();
    let fingerprint = job.fingerprint(settings)?;
    let folder = Folder::new(&job.output).map_err(BackfillError::Store)?;
    let (tasks, mut unread) = job.tasks(settings, &folder, &fingerprint, true)?;
    let left = job.not_done(tasks, &folder, &fingerprint)?;
    let nothing_left = left.is_empty();
    if job.share.1 == 1 {
        folder.clear_unfinished();
    }
    // Records of splits that were stopped or could not be read to their end are not done.
    let finished = Tally::default();
    if !nothing_left {
        unread.extend(job.tag(settings, left, &folder, &fingerprint, (watch, &finished))?);
    }
    let state = match (watch.stop.is_draining(), nothing_left) {
        (true, _) => State::Stopped,
        (false, true) => State::FinishedBefore,
        (false, false) => State::Finished,
    };
    let mut summary = Summary::new(&job.name, state, settings, finished.counts(), (watch.tokens)(), started.elapsed());
    summary.unread = unread;
    Ok(summary)
}

impl FileJob {
    fn fingerprint(&self, settings: &Settings) -> Result<String, BackfillError> {
        let model = model_identity(settings)?;
        Ok(match &self.input {
            FileInput::Topic(job) => fingerprint(&(job.fingerprint(settings, &model), self.format)),
            FileInput::Files { patterns, cut, selection } => {
                let cut = (cut.format, cut.split_bytes);
                fingerprint(&(patterns, cut, selection, self.format, &settings.input, &settings.output, model))
            }
        })
    }

    /// What is left to do, with what reads it, and what cannot be read; nothing is noted.
    pub(super) fn left(&self, settings: &Settings) -> Result<(Vec<Task>, TaskReader, Vec<Unread>), BackfillError> {
        let fingerprint = self.fingerprint(settings)?;
        let folder = Folder::new(&self.output).map_err(BackfillError::Store)?;
        let (tasks, unread) = self.tasks(settings, &folder, &fingerprint, false)?;
        Ok((self.not_done(tasks, &folder, &fingerprint)?, self.reader(settings, &fingerprint)?, unread))
    }

    /// Those of this process that are not done.
    fn not_done(&self, tasks: Vec<Task>, folder: &Folder, fingerprint: &str) -> Result<Vec<Task>, BackfillError> {
        let (this, of) = self.share;
        let own = tasks.into_iter().enumerate().filter(|(number, _)| number % of == this).map(|(_, task)| task);
        let is_left = |task: Task| match task.is_done(folder, fingerprint) {
            Ok(done) => (!done).then_some(Ok(task)),
            Err(error) => Some(Err(error)),
        };
        own.filter_map(is_left).collect()
    }

    fn reader(&self, settings: &Settings, fingerprint: &str) -> Result<TaskReader, BackfillError> {
        Ok(match &self.input {
            FileInput::Topic(job) => {
                let reader = Planner::new(settings, job, fingerprint)?.into_reader();
                TaskReader::of_topic(reader, job.selection.clone())
            }
            FileInput::Files { selection, .. } => TaskReader::of_files(settings, selection.clone()),
        })
    }

    /// All splits of the job, in an order that is the same for all its processes.
    fn tasks(
        &self,
        settings: &Settings,
        folder: &Folder,
        fingerprint: &str,
        is_noted: bool,
    ) -> Result<(Vec<Task>, Vec<Unread>), BackfillError> {
        match &self.input {
            FileInput::Topic(job) => {
                job.check()?;
                let planner = Planner::new(settings, job, fingerprint)?;
                let noted = match noted(folder)? {
                    Some(noted) => noted,
                    None => {
                        let plan = planner.draw()?;
                        let ranges = plan.parts.iter().map(|(&id, part)| (id, (part.range.start, part.range.end)));
                        let job = Noted { fingerprint: fingerprint.to_owned(), ranges: ranges.collect() };
                        if is_noted { self.note(folder, job)? } else { job }
                    }
                };
                let part = |(id, (start, end))| (id, Part { range: start..end, next: start });
                let plan = Plan { parts: self.of_this_job(noted, fingerprint)?.ranges.into_iter().map(part).collect() };
                Ok((task::of_plan(&job.topic, &plan), Vec::new()))
            }
            FileInput::Files { patterns, cut, .. } => {
                let (tasks, unread) = splits(patterns, cut)?;
                let job = Noted { fingerprint: fingerprint.to_owned(), ranges: BTreeMap::new() };
                self.of_this_job(if is_noted { self.note(folder, job)? } else { job }, fingerprint)?;
                Ok((tasks, unread))
            }
        }
    }

    /// Notes the job unless one is noted; returns what is noted then.
    fn note(&self, folder: &Folder, job: Noted) -> Result<Noted, BackfillError> {
        if job.ranges.values().all(|(start, end)| start >= end) && matches!(self.input, FileInput::Topic(_)) {
            return Err(BackfillError::Empty);
        }
        let text = serde_json::to_vec_pretty(&job).expect("a job is numbers and texts");
        if folder.put_new(JOB, &text).map_err(BackfillError::Store)? {
            return Ok(job);
        }
        Ok(noted(folder)?.unwrap_or(job))
    }

    fn of_this_job(&self, noted: Noted, fingerprint: &str) -> Result<Noted, BackfillError> {
        if noted.fingerprint == fingerprint { Ok(noted) } else { Err(BackfillError::Occupied(self.output.clone())) }
    }

    /// Tags the tasks; returns the inputs that could not be read.
    fn tag(
        &self,
        settings: &Settings,
        tasks: Vec<Task>,
        folder: &Folder,
        fingerprint: &str,
        (watch, finished): (&Watch<'_>, &Tally),
    ) -> Result<Vec<Unread>, BackfillError> {
        let serving = serve(settings, &loader(settings, &watch.monitor.metrics)?)?;
        let stages = self.stages(settings);
        let writers = Writers::default();
        let failed = Failed::default();
        watch.progress.expect(tasks.iter().map(Task::total).sum());
        let source = TaskSource {
            tasks,
            reader: self.reader(settings, fingerprint)?,
            folder: folder.clone(),
            format: self.format,
            fingerprint: fingerprint.to_owned(),
            intake: intake_options(settings),
            writers: writers.clone(),
            tally: finished.clone(),
            progress: watch.progress.clone(),
            pace: watch.pace.clone(),
            failed: failed.clone(),
        };
        let report = Report::new(watch.monitor.metrics.clone(), &self.name, None);
        pipeline::run(
            Box::new(source),
            watch.watched(writers),
            &serving,
            &stages,
            (&watch.monitor, report),
            &watch.stop,
        )
        .map_err(crate::worker::WorkerError::from)?;
        Ok(std::mem::take(&mut *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }

    fn stages(&self, settings: &Settings) -> PipelineOptions {
        let mut stages = pipeline_options(settings);
        if settings.origin("output.max_record_bytes").is_none() {
            // Its default is for topics.
            stages.encode.max_record_bytes = usize::MAX;
        }
        if matches!(self.input, FileInput::Files { .. }) {
            stages.decode.format = Format::Json;
        }
        stages
    }
}

fn noted(folder: &Folder) -> Result<Option<Noted>, BackfillError> {
    let Some(bytes) = folder.get(JOB).map_err(BackfillError::Store)? else { return Ok(None) };
    let noted = serde_json::from_slice(&bytes);
    noted.map(Some).map_err(|_| BackfillError::Occupied(folder.display(JOB)))
}

/// The splits of all files, and the files that cannot be cut.
fn splits(patterns: &[String], cut: &Cut) -> Result<(Vec<Task>, Vec<Unread>), BackfillError> {
    let (mut tasks, mut unread, mut names) = (Vec::new(), Vec::new(), BTreeSet::new());
    for pattern in patterns {
        let (folder, files) = input::find(pattern)?;
        if files.is_empty() {
            return Err(BackfillError::NoFile(pattern.clone()));
        }
        for file in files {
            let name = folder.display(&file.path);
            if !names.insert(file.path.clone()) {
                return Err(BackfillError::SameName(name));
            }
            match input::cut(&folder, file, cut) {
                Ok(splits) => tasks.extend(splits.into_iter().map(task::of_split)),
                Err(reason) => unread.push(Unread { input: name, reason }),
            }
        }
    }
    Ok((tasks, unread))
}
