//! Wires the stages: one thread a stage (more for tokenising and inference), channels between them.
//!
//! A stage ends when its input has; so the end of the source runs through the whole pipeline. The first failure stops
//! it all: the committer ends at once, and the stages before it when they find that nobody listens. What was not
//! committed is read again by the next worker.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;

use crossbeam_channel::{bounded, unbounded};

use crate::batch::BatchOptions;
use crate::cache::TagCache;
use crate::commit::{Assignments, CommitError, CommitOptions, Committer, Report};
use crate::decode::DecodeOptions;
use crate::encode::EncodeOptions;
use crate::record::Growth;
use crate::serving::Serving;
use crate::sink::{Sink, SinkError};
use crate::source::{Intake, Source, StopSignal, Ways};
use crate::telemetry::{Metrics, RecordTracer};

mod decoder;
mod encoder;
mod feed;
mod lane;
mod request;

use decoder::Decoder;
use encoder::Encoder;
use feed::batch;
use lane::Lane;

/// The options of every stage between source and sink.
#[derive(Clone, Debug)]
pub struct PipelineOptions {
    /// How values are read.
    pub decode: DecodeOptions,
    /// Threads that decode and tokenise.
    pub tokenize_threads: usize,
    /// Threads that run the model; every version has a session for each.
    pub lanes: usize,
    /// How batches form.
    pub batch: BatchOptions,
    /// Bytes of tags that are kept for texts that come again; 0 keeps none.
    pub cache_bytes: usize,
    /// How annotations are written.
    pub encode: EncodeOptions,
    /// When results are committed.
    pub commit: CommitOptions,
}

/// The pipeline failed; what it had not committed is read again by the next worker.
#[derive(Debug, thiserror::Error)]
#[error("{stage}: {reason}")]
pub struct PipelineError {
    /// The stage that failed.
    pub stage: &'static str,
    /// Why.
    pub reason: String,
}

/// Where the stages report.
#[derive(Clone)]
pub struct Monitor {
    /// Instruments.
    pub metrics: Metrics,
    /// Starts the spans of records.
    pub tracer: RecordTracer,
}

impl Monitor {
    /// Reports nothing.
    pub fn disabled() -> Self {
        Self { metrics: Metrics::disabled(), tracer: RecordTracer::disabled() }
    }
}

/// Windows that wait for a batch: enough for the batcher to choose from, few enough to bound the memory.
const WAITING_WINDOWS: usize = 1024;
/// Documents that wait to be written.
const WAITING_DOCUMENTS: usize = 256;

/// Runs records from `source` to `sink` until the source ends or `stop` says so, each tagged by the versions that
/// `serving` chooses for it.
///
/// # Errors
/// The first failure of any stage.
pub fn run(
    source: Box<dyn Source + '_>,
    sink: impl Sink,
    serving: &Serving,
    options: &PipelineOptions,
    (monitor, report): (&Monitor, Report),
    stop: &StopSignal,
) -> Result<(), PipelineError> {
    let failure = Failure { first: Mutex::new(None), stop };
    let (short, short_records) = unbounded();
    let (long, long_records) = unbounded();
    let (to_lanes, batches) = bounded(options.lanes);
    let (to_encode, requests) = bounded(WAITING_DOCUMENTS);
    // Unbounded like the first: what is in flight is bounded in bytes, by the intake.
    let (to_commit, commands) = unbounded();
    let cache = (options.cache_bytes > 0).then(|| TagCache::new(options.cache_bytes));
    let assignments = Assignments::default();
    let growth = Growth::default();
    let ways = Ways { short, long };
    let intake = Intake::new(ways, to_commit.clone(), assignments.clone(), growth.clone(), monitor.clone());
    let committer = Committer::new(sink, report, options.commit.clone(), assignments, stop.clone());
    std::thread::scope(|scope| {
        failure.spawn(scope, "source", move || source.run(intake, stop).map_err(|e| e.to_string()));
        // Short documents and long ones wait apart up to the batcher, which takes turns between them.
        let ways = [(short_records, options.tokenize_threads), (long_records, 1)];
        let items = ways.map(|(records, threads)| {
            let (to_batch, items) = bounded(WAITING_WINDOWS);
            for _ in 0..threads {
                let (cache, metrics) = (cache.clone(), &monitor.metrics);
                let decoder = Decoder { serving, options: &options.decode, cache, metrics, stop };
                let (records, to_batch) = (records.clone(), to_batch.clone());
                let (to_encode, to_commit) = (to_encode.clone(), to_commit.clone());
                failure.spawn(scope, "tokenize", move || {
                    decoder.run(&records, (&to_batch, &to_encode, &to_commit));
                    Ok(())
                });
            }
            items
        });
        failure.spawn(scope, "batch", move || {
            batch(Vec::from(items), &to_lanes, &options.batch);
            Ok(())
        });
        for number in 0..options.lanes {
            let lane = Lane::new(number, options.batch.max_tokens, &monitor.metrics);
            let (batches, to_encode) = (batches.clone(), to_encode.clone());
            failure.spawn(scope, "infer", move || lane.run(&batches, &to_encode));
        }
        let encoder = Encoder { serving, options: &options.encode, cache, growth, metrics: &monitor.metrics };
        failure.spawn(scope, "encode", move || {
            encoder.run(&requests, &to_commit);
            Ok(())
        });
        failure.spawn(scope, "commit", move || match committer.run(&commands) {
            Err(CommitError::Sink(SinkError::Closed)) => {
                stop.abandon();
                Ok(())
            }
            result => result.map_err(|e| e.to_string()),
        });
        // The stages hold the channels now; the copies here would keep them open.
        drop((batches, to_encode));
    });
    match failure.first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        None => Ok(()),
        Some(error) => Err(error),
    }
}

/// The first failure, which stops the source.
struct Failure<'s> {
    first: Mutex<Option<PipelineError>>,
    stop: &'s StopSignal,
}

impl Failure<'_> {
    fn spawn<'scope, 'env: 'scope>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        stage: &'static str,
        work: impl FnOnce() -> Result<(), String> + Send + 'scope,
    ) {
        let body = move || {
            let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panic_message(&*panic)));
            if let Err(reason) = result {
                tracing::error!(stage, %reason, "stage failed");
                let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert(PipelineError { stage, reason });
                self.stop.abandon();
            }
        };
        std::thread::Builder::new().name(stage.to_owned()).spawn_scoped(scope, body).expect("a thread can be started");
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_default())
}
