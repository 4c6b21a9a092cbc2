//! Wires the stages: one thread a stage (more for tokenising and inference), channels between them.
//!
//! A stage ends when its input has; so the end of the source runs through the whole pipeline. The first failure stops
//! it all: the committer ends at once, and the stages before it when they find that nobody listens. What was not
//! committed is read again by the next worker.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Scope;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::batch::BatchOptions;
use crate::cache::{Key, TagCache};
use crate::commit::{Assignments, Command, CommitError, CommitOptions, Committer, Report};
use crate::decode::{DecodeOptions, Document, decode};
use crate::encode::{Annotation, EncodeOptions, Tags, annotate, encode, join, tags};
use crate::infer::Logits;
use crate::record::{Code, Growth, Position, Record, Reject, Stage};
use crate::serving::{Sample, Serving, Slot, Version, place};
use crate::sink::{Conclusion, Outcome, Sink, SinkError};
use crate::source::{Intake, OUTPUT_COPIES, Source, StopSignal, Ways};
use crate::telemetry::{Metrics, RecordSpan, RecordTracer};
use crate::tokenize::{Tokens, Window};

mod feed;
mod lane;

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

/// A document on its way through the model.
struct Request {
    record: Record<()>,
    /// Taken by the encoder, for the end of the way.
    span: Mutex<RecordSpan>,
    document: Document,
    /// By slot.
    readings: Vec<Reading>,
    /// Windows without an answer.
    missing: AtomicUsize,
}

/// A document as one model reads it.
struct Reading {
    /// What tags it, from here to the end of its way.
    version: Arc<Version>,
    /// Its tags, if the text came before; nothing goes through the model then.
    known: Option<Arc<Tags>>,
    /// Where its tags go, if they are kept.
    key: Option<Key>,
    tokens: Tokens,
    /// The answers by window.
    answers: Vec<OnceLock<Result<Logits, Reject>>>,
}

impl Reading {
    fn new(version: Arc<Version>, document: &Document, cache: Option<&TagCache>) -> Result<Self, Reject> {
        let key = cache.map(|_| Key::new(version.model(), document));
        if let Some(known) = cache.zip(key).and_then(|(cache, key)| cache.get(&key)) {
            let (tokens, answers) = (Tokens::default(), Vec::new());
            return Ok(Self { version, known: Some(known), key, tokens, answers });
        }
        let tokens = version.model().tokenizer.tokenize(&document.text, document.words.as_deref())?;
        if tokens.windows.is_empty() {
            return Err(Reject::new(Stage::Tokenize, Code::EmptyText, "the text has no words"));
        }
        let answers = tokens.windows.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { version, known: None, key, tokens, answers })
    }

    fn logits(&self) -> Result<Vec<&Logits>, Reject> {
        let answers = self.answers.iter().map(|answer| match answer.get() {
            Some(Ok(logits)) => Ok(logits),
            Some(Err(reject)) => Err(reject.clone()),
            None => Err(Reject::new(Stage::Infer, Code::InferenceFailed, "a window has no answer")),
        });
        answers.collect()
    }
}

/// One window of a document, as the model of a slot reads it.
struct Item {
    request: Arc<Request>,
    slot: usize,
    window: usize,
}

impl Item {
    fn reading(&self) -> &Reading {
        &self.request.readings[self.slot]
    }

    fn tokens(&self) -> usize {
        self.reading().tokens.windows[self.window].ids.len()
    }

    fn is_first(&self) -> bool {
        (self.slot, self.window) == (0, 0)
    }
}

impl std::borrow::Borrow<Window> for Item {
    fn borrow(&self) -> &Window {
        &self.reading().tokens.windows[self.window]
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

struct Decoder<'p> {
    serving: &'p Serving,
    options: &'p DecodeOptions,
    cache: Option<TagCache>,
    metrics: &'p Metrics,
    stop: &'p StopSignal,
}

/// Where a record goes from the decoder: its windows to the batcher, or it as a whole past the model.
type Onward<'a> = (&'a Sender<Item>, &'a Sender<Arc<Request>>, &'a Sender<Command>);

impl Decoder<'_> {
    fn run(&self, records: &Receiver<Record<RecordSpan>>, (to_batch, to_encode, to_commit): Onward) {
        for record in records {
            let outcome = match self.decode(&record) {
                Ok(Decoded::Document(document, readings)) => {
                    fail::fail_point!("after_tokenize");
                    if !send_windows(record, document, readings, (to_batch, to_encode)) {
                        return;
                    }
                    continue;
                }
                Ok(Decoded::Stopped) => return,
                Ok(Decoded::Tombstone) => Outcome::Tombstone,
                Err(reject) => {
                    self.metrics.dead_letter(reject.stage, reject.code);
                    Outcome::DeadLetter(reject)
                }
            };
            if to_commit.send(finish(record, outcome)).is_err() {
                return;
            }
        }
    }

    fn decode<T>(&self, record: &Record<T>) -> Result<Decoded, Reject> {
        let Some(value) = &record.original.value else { return Ok(Decoded::Tombstone) };
        let document = decode(value, self.options)?;
        let Some(versions) = self.serving.choose(|| place(&identity(record, &document)), self.stop) else {
            return Ok(Decoded::Stopped);
        };
        let read = |version| Reading::new(version, &document, self.cache.as_ref());
        let readings = versions.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
        if self.cache.is_some() {
            readings.iter().for_each(|reading| self.metrics.looked_up(reading.known.is_some()));
        }
        Ok(Decoded::Document(document, readings))
    }
}

enum Decoded {
    Document(Document, Vec<Reading>),
    Tombstone,
    /// There is no model, and the worker stops.
    Stopped,
}

/// What a record is known by: its key, else its document's id, else its place in the input.
fn identity<T>(record: &Record<T>, document: &Document) -> Vec<u8> {
    match (&record.original.key, &document.id) {
        (Some(key), _) => key.to_vec(),
        (None, Some(serde_json::Value::String(id))) => id.clone().into_bytes(),
        (None, Some(id)) => id.to_string().into_bytes(),
        (None, None) => {
            let Position { partition, offset, .. } = &record.position;
            format!("{}-{}-{offset}", partition.topic, partition.id).into_bytes()
        }
    }
}

fn finish(record: Record<RecordSpan>, outcome: Outcome) -> Command {
    let Record { position, original, payload: span } = record;
    original.held.settle(match &outcome {
        Outcome::Output(bytes) => OUTPUT_COPIES * bytes.len(),
        // librdkafka's copy of the value.
        _ => original.value.as_ref().map_or(0, Bytes::len),
    });
    Command::Finish(Record { position, original, payload: Conclusion { outcome, span } })
}

fn send_windows(
    record: Record<RecordSpan>,
    document: Document,
    readings: Vec<Reading>,
    (to_batch, to_encode): (&Sender<Item>, &Sender<Arc<Request>>),
) -> bool {
    let windows = readings.iter().map(|reading| reading.answers.len()).sum();
    let Record { position, original, payload: span } = record;
    let request = Arc::new(Request {
        record: Record { position, original, payload: () },
        span: Mutex::new(span),
        document,
        readings,
        missing: AtomicUsize::new(windows),
    });
    if windows == 0 {
        return to_encode.send(request).is_ok();
    }
    let windows = |(slot, reading): (usize, &Reading)| (0..reading.answers.len()).map(move |window| (slot, window));
    let mut items = request.readings.iter().enumerate().flat_map(windows);
    items.all(|(slot, window)| to_batch.send(Item { request: request.clone(), slot, window }).is_ok())
}

struct Encoder<'p> {
    serving: &'p Serving,
    options: &'p EncodeOptions,
    cache: Option<TagCache>,
    growth: Growth,
    metrics: &'p Metrics,
}

impl Encoder<'_> {
    fn run(&self, requests: &Receiver<Arc<Request>>, to_commit: &Sender<Command>) {
        for request in requests {
            let outcome = self.encode(&request).unwrap_or_else(|reject| {
                self.metrics.dead_letter(reject.stage, reject.code);
                Outcome::DeadLetter(reject)
            });
            if let (Outcome::Output(bytes), Some(input)) = (&outcome, &request.record.original.value) {
                self.growth.learn(input.len(), bytes.len());
            }
            for reading in &request.readings {
                reading.version.tally().record(outcome.reject().is_some());
            }
            let span = std::mem::take(&mut *request.span.lock().unwrap_or_else(PoisonError::into_inner));
            if to_commit.send(finish(request.record.clone().with(span), outcome)).is_err() {
                return;
            }
        }
    }

    fn encode(&self, request: &Request) -> Result<Outcome, Reject> {
        let Record { position, original, .. } = &request.record;
        let place = (position, original.timestamp_ms);
        let unit = self.options.offset_unit;
        let annotate = |reading: &Reading| {
            let tags = self.tags(&request.document, reading)?;
            let model = (reading.version.slot(), reading.version.model());
            Ok(annotate(&request.document, tags, model, place, unit))
        };
        let parts = request.readings.iter().map(annotate).collect::<Result<Vec<_>, Reject>>()?;
        let samples = self.samples(request, &parts);
        let no_slot = || Reject::new(Stage::Encode, Code::InferenceFailed, "no slot has a model");
        let annotation = join(parts).ok_or_else(no_slot)?;
        let input = original.value.as_deref().unwrap_or_default();
        let bytes = encode(&annotation, input, self.options)?;
        for (sender, sample) in samples {
            // Never waits for who compares.
            let _ = sender.try_send(sample);
        }
        Ok(Outcome::Output(Bytes::from(bytes)))
    }

    /// The tags of a document: those that are known, or those of the model, which are then.
    fn tags(&self, document: &Document, reading: &Reading) -> Result<Tags, Reject> {
        if let Some(known) = &reading.known {
            return Ok(Tags::clone(known));
        }
        let windows = reading.logits()?;
        let tags = tags(document, &reading.tokens, &windows, reading.version.model(), self.options.offset_unit);
        if let (Some(cache), Some(key)) = (&self.cache, reading.key) {
            cache.insert(key, Arc::new(tags.clone()));
            self.metrics.cache_size(cache.bytes());
        }
        Ok(tags)
    }

    /// What those who compare versions want to see of the record, if it is in their share.
    fn samples(&self, request: &Request, parts: &[Annotation]) -> Vec<(Sender<Sample>, Sample)> {
        let Request { record, document, readings, .. } = request;
        // Other keys than those of a canary with the same share.
        let salted = || place(&[b"sample:".as_slice(), &identity(record, document)].concat());
        let slots = self.serving.slots().iter().zip(readings).zip(parts);
        let sample = |((slot, reading), part): ((&Slot, &Reading), &Annotation)| {
            let sender = slot.sampler(&reading.version, salted)?;
            Some((sender, Sample { document: document.clone(), annotation: part.clone() }))
        };
        slots.filter_map(sample).collect()
    }
}
