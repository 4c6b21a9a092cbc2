//! The threads that decode and tokenise.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender};

use super::request::{Item, Reading, Request, finish, identity};
use crate::cache::TagCache;
use crate::commit::Command;
use crate::decode::{DecodeOptions, Document, decode};
use crate::record::{Record, Reject};
use crate::serving::{Serving, place};
use crate::sink::Outcome;
use crate::source::StopSignal;
use crate::telemetry::{Metrics, RecordSpan};

/// Reads records, chooses the versions that tag them, and tokenises.
pub(super) struct Decoder<'p> {
    pub(super) serving: &'p Serving,
    pub(super) options: &'p DecodeOptions,
    pub(super) cache: Option<TagCache>,
    pub(super) metrics: &'p Metrics,
    pub(super) stop: &'p StopSignal,
}

/// Where a record goes from the decoder: its windows to the batcher, or it as a whole past the model.
type Onward<'a> = (&'a Sender<Item>, &'a Sender<Arc<Request>>, &'a Sender<Command>);

impl Decoder<'_> {
    pub(super) fn run(&self, records: &Receiver<Record<RecordSpan>>, (to_batch, to_encode, to_commit): Onward) {
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

/// Whether anybody listens.
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
