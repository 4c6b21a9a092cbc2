//! From a topic to a topic, exactly once: a worker whose source has an end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use super::plan::{Part, Plan, Planner, metadata};
use super::progress;
use super::{BackfillError, Job, State, Summary, Watch, model_identity};
use crate::admin::Health;
use crate::commit::Report;
use crate::config::Settings;
use crate::pipeline;
use crate::sink::kafka::KafkaSink;
use crate::source::kafka::{Bounds, End, KafkaSource};
use crate::worker::{WorkerError, loader, pipeline_options, serve, sink_options, source_options};

/// Runs a job to its end, or until it is told to stop; the settings are those of the worker.
///
/// # Errors
/// When the range is empty, the job was begun with other arguments, or the worker fails.
pub fn run(settings: &Settings, job: &Job, watch: &Watch<'_>) -> Result<Summary, BackfillError> {
    job.check()?;
    let started = Instant::now();
    let fingerprint = job.fingerprint(settings, &model_identity(settings)?);
    let planner = Planner::new(settings, job, &fingerprint)?;
    let plan = planner.record()?;
    let summary = |state| {
        let tokens = (watch.tokens)();
        Summary::new(&job.name, state, settings, watch.tally.counts(), tokens, started.elapsed())
    };
    if plan.is_done() {
        return Ok(summary(State::FinishedBefore));
    }
    tracing::info!(job = job.name, offsets = plan.left(), "backfill begins");
    tag(settings, job, &bounds(job, &plan, &fingerprint, watch), watch)?;
    let is_done = planner.recorded()?.is_some_and(|plan| plan.is_done());
    Ok(summary(if is_done { State::Finished } else { State::Stopped }))
}

fn bounds(job: &Job, plan: &Plan, fingerprint: &str, watch: &Watch<'_>) -> Bounds {
    let end = |(&id, part): (&i32, &Part)| {
        let (range, passed) = (&part.range, Arc::new(AtomicU64::new(0)));
        let total = u64::try_from(range.end - part.next).unwrap_or_default();
        watch.progress.expect(total);
        if total > 0 {
            watch.progress.begin(&format!("{}[{id}]", job.topic), progress::Part { total, done: passed.clone() });
        }
        (id, End { end: range.end, metadata: metadata(fingerprint, range), start: part.next, passed })
    };
    let selection = job.selection.clone();
    Bounds {
        topic: job.topic.as_str().into(),
        ends: Arc::new(plan.parts.iter().map(end).collect::<BTreeMap<_, _>>()),
        choice: Arc::new(move |partition, message| selection.wants(partition, message)),
        pace: watch.pace.clone(),
    }
}

fn tag(settings: &Settings, job: &Job, bounds: &Bounds, watch: &Watch<'_>) -> Result<(), WorkerError> {
    let settings = &of_job(settings, job);
    let Watch { monitor, stop, .. } = watch;
    let serving = serve(settings, &loader(settings, &monitor.metrics)?)?;
    let beat = Health::new().register("poll", Duration::from_millis(settings.kafka.max_poll_interval_ms));
    let mut options = source_options(settings);
    options.bounds = Some(bounds.clone());
    let source = KafkaSource::connect(options, &monitor.metrics, beat)?;
    let mut options = sink_options(settings);
    options.offset_metadata = bounds.ends.iter().map(|(&id, end)| (id, end.metadata.clone())).collect();
    let sink = KafkaSink::connect(options, source.consumer(), monitor.metrics.clone())?;
    let report = Report::new(monitor.metrics.clone(), &settings.kafka.group_id, None);
    let sink = watch.watched(sink);
    Ok(pipeline::run(Box::new(source), sink, &serving, &pipeline_options(settings), (monitor, report), stop)?)
}

/// The settings with the group and the topic of the job.
fn of_job(settings: &Settings, job: &Job) -> Settings {
    let mut settings = settings.clone();
    settings.kafka.group_id = job.group(&settings);
    settings.input.topics = vec![job.topic.clone()];
    // What retention has deleted of the range meanwhile is skipped.
    settings.kafka.auto_offset_reset = crate::config::OffsetReset::Earliest;
    settings
}
