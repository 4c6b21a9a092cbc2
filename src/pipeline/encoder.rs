//! The thread that writes annotations.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};

use super::request::{Reading, Request, finish, identity};
use crate::cache::TagCache;
use crate::commit::Command;
use crate::decode::Document;
use crate::encode::{Annotation, EncodeOptions, Tags, annotate, encode, join, tags};
use crate::record::{Code, Growth, Record, Reject, Stage};
use crate::serving::{Sample, Serving, Slot, place};
use crate::sink::Outcome;
use crate::telemetry::Metrics;

/// Makes annotations of answers, and of rejects dead letters.
pub(super) struct Encoder<'p> {
    pub(super) serving: &'p Serving,
    pub(super) options: &'p EncodeOptions,
    pub(super) cache: Option<TagCache>,
    pub(super) growth: Growth,
    pub(super) metrics: &'p Metrics,
}

impl Encoder<'_> {
    pub(super) fn run(&self, requests: &Receiver<Arc<Request>>, to_commit: &Sender<Command>) {
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
