//! `vitag bench`: how fast this machine tags with a model, and what of that the worker makes.
//!
//! # Layout
//! `options` says what is measured and `mix` on which documents; `subject` holds both with the loaded model. `ceiling`,
//! `pipeline`, `kafka` (with `topics`), `latency` and `search` are the stages. A stage that is timed gives a `run`;
//! repeated runs become a `figure`, and figures a `report`, with the `machine` that they were taken on.
//!
//! Ratios are of runs that took turns: what else the machine does falls on both.

pub mod ceiling;
pub mod figure;
pub mod kafka;
pub mod latency;
pub mod machine;
pub mod mix;
pub mod options;
pub mod pipeline;
pub mod report;
pub mod run;
pub mod search;
pub mod subject;
mod topics;

use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use self::ceiling::Ceiling;
use self::latency::LatencyReport;
use self::machine::Machine;
use self::options::{Arrivals, BenchOptions, Size, Stage};
use self::pipeline::Files;
use self::report::{Report, SearchReport};
use self::run::{Ratio, Run, StageReport, in_turns};
use self::subject::Subject;
use crate::config::{Input, Settings};
use crate::infer::InferError;
use crate::kafka::ConnectError;
use crate::record::Reject;
use crate::worker::WorkerError;

/// A bench could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The texts cannot be read.
    #[error("--text: {0}")]
    Text(std::io::Error),
    /// A file of the bench cannot be written or read.
    #[error("cannot write the files of the bench: {0}")]
    File(#[from] std::io::Error),
    /// The worker failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The bare model failed.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// The model cannot read a text.
    #[error("a text cannot be tokenised: {0}")]
    Tokenize(#[from] Reject),
    /// Documents became dead letters: the rest was not the work that was to be timed.
    #[error("{0} or more documents were refused: nothing can be said of the rest")]
    Refused(usize),
    /// There is no broker to measure with.
    #[error("kafka.bootstrap_servers is empty: the stage kafka needs a broker")]
    NoBroker,
    /// The broker cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A topic cannot be made.
    #[error("topic {topic:?} cannot be made: {code}; the stage kafka needs the right to create and delete topics")]
    Topic {
        /// The topic.
        topic: String,
        /// What the broker says.
        code: RDKafkaErrorCode,
    },
    /// Kafka failed in the middle.
    #[error("kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// The worker hangs, or something is between it and the broker.
    #[error("{of} of {all} documents were tagged, then nothing came for {} s", waited.as_secs())]
    Silence {
        /// Documents that came.
        of: usize,
        /// Documents in all.
        all: usize,
        /// How long nothing came.
        waited: Duration,
    },
    /// The worker has ended by itself, and not with an error.
    #[error("the worker ended before it had tagged all documents")]
    Ended,
}

/// Seconds of a run of [`Stage::Latency`] where the size is given in documents, unless these take longer to arrive.
const LEAST_LATENCY_SECONDS: f64 = 0.5;

/// Runs the stages, and tells of every run to `say`.
///
/// # Errors
/// When a stage cannot be run to its end.
pub fn bench(settings: &Settings, options: &BenchOptions, say: &mut dyn FnMut(&str)) -> Result<Report, BenchError> {
    let machine = Machine::here();
    let mut settings = settings.clone();
    settings.input = Input { topics: settings.input.topics, ..Input::default() };
    let texts =
        mix::texts(options.mix, options.text.as_deref(), settings.input.max_text_bytes).map_err(BenchError::Text)?;
    let subject = Subject::prepare(&settings, texts, options)?;
    if let Some(path) = &options.save_documents {
        subject.save(path)?;
    }
    let mut report = Report::new(machine, &subject, options);
    let capacity = throughput(&subject, options, &mut report, say)?;
    if options.stages.contains(&Stage::Latency) {
        report.latency = Some(latencies(&subject, options, capacity, say)?);
    }
    if options.stages.contains(&Stage::Search) {
        let (tuned, trials) = search::search(&subject, options, say)?;
        std::fs::write(&options.tuned, search::tuned_toml(&tuned, &report.about()))?;
        report.search = Some(SearchReport { trials, file: options.tuned.clone() });
    }
    Ok(report)
}

/// Runs the stages that have a throughput, in turns, and compares each with the ceiling. Returns documents a second of
/// the ceiling, if it was run.
fn throughput(
    subject: &Subject,
    options: &BenchOptions,
    report: &mut Report,
    say: &mut dyn FnMut(&str),
) -> Result<Option<f64>, BenchError> {
    let timed = [Stage::Ceiling, Stage::Pipeline, Stage::Kafka];
    let stages: Vec<Stage> = timed.into_iter().filter(|stage| options.stages.contains(stage)).collect();
    let ceiling = stages.contains(&Stage::Ceiling).then(|| Ceiling::search(subject)).transpose()?;
    let files = Files::write(subject)?;
    let runs = in_turns(stages.len(), (1, options.repeats), |number, repeat| {
        let run = match (stages[number], &ceiling) {
            (Stage::Ceiling, Some(ceiling)) => ceiling.run(&subject.version)?,
            (Stage::Kafka, _) => kafka::run(subject, options.partitions)?,
            _ => files.run(subject)?,
        };
        let name = if repeat == 0 { "warm-up".to_owned() } else { format!("run {repeat} of {}", options.repeats) };
        say(&format!("{}, {name}: {:.0} documents/s", stages[number].name(), run.documents / run.seconds));
        Ok(run)
    })?;
    let note = |stage: Stage| match (stage, &ceiling) {
        (Stage::Ceiling, Some(ceiling)) => format!("batches of {} slots", ceiling.budget),
        (Stage::Kafka, _) => format!("{} partitions", options.partitions),
        _ => String::new(),
    };
    let of_stage = |(stage, runs): (&Stage, &Vec<Run>)| StageReport::of(stage.name(), note(*stage), runs);
    report.stages = stages.iter().zip(&runs).map(of_stage).collect();
    if let [ceiling, others @ ..] = report.stages.as_slice()
        && ceiling.stage == Stage::Ceiling.name()
    {
        report.ratios = others.iter().map(|stage| Ratio::of(stage, ceiling)).collect();
        return Ok(Some(ceiling.documents_per_second.median));
    }
    Ok(None)
}

fn latencies(
    subject: &Subject,
    options: &BenchOptions,
    capacity: Option<f64>,
    say: &mut dyn FnMut(&str),
) -> Result<LatencyReport, BenchError> {
    let (rate, load) = match (options.arrivals, capacity) {
        (Arrivals::Rate(rate), None) => (rate, None),
        (Arrivals::Rate(rate), Some(capacity)) => (rate, Some(rate / capacity)),
        (Arrivals::Load(load), Some(capacity)) => (load * capacity, Some(load)),
        (Arrivals::Load(load), None) => {
            let run = Ceiling::search(subject)?.run(&subject.version)?;
            (load * run.documents / run.seconds, Some(load))
        }
    };
    let seconds = match options.size {
        Size::Documents(count) => (count as f64 / rate).max(LEAST_LATENCY_SECONDS),
        Size::Seconds(seconds) => seconds,
    };
    let batch_seconds = latency::batch_seconds(subject)?;
    let mut runs = Vec::new();
    for repeat in 1..=options.repeats {
        let run = latency::run(subject, rate, seconds, options.partitions)?;
        let p99 = figure::percentile(&run, 0.99) * 1e3;
        say(&format!("latency, run {repeat} of {}: 99th percentile {p99:.1} ms", options.repeats));
        runs.push(run);
    }
    Ok(LatencyReport::of(&runs, rate, load, subject, batch_seconds))
}
