//! The thread of a lane.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

use super::request::{Item, Request};
use crate::infer::{InferError, Logits, Recovery, Session};
use crate::record::{Code, Reject, Stage};
use crate::telemetry::{LaneMetrics, Metrics};

/// One after the other, runs batches on its own session of their version, and does what can be done about failures.
pub(super) struct Lane<'p> {
    number: usize,
    recovery: Recovery,
    metrics: &'p Metrics,
    own: LaneMetrics,
}

impl<'p> Lane<'p> {
    /// Lane `number`, whose batches have up to `max_tokens` slots.
    pub(super) fn new(number: usize, max_tokens: usize, metrics: &'p Metrics) -> Self {
        Self { number, recovery: Recovery::new(max_tokens), metrics, own: metrics.lane(number) }
    }

    pub(super) fn run(mut self, batches: &Receiver<Vec<Item>>, to_encode: &Sender<Arc<Request>>) -> Result<(), String> {
        self.own.budget(self.recovery.slots());
        for batch in batches {
            let started = Instant::now();
            for item in batch.iter().filter(|item| item.is_first()) {
                self.metrics.queued(started.duration_since(item.request.record.original.received));
            }
            let lengths = batch.iter().map(Item::tokens);
            let width = lengths.clone().max().unwrap_or_default();
            self.metrics.batch(batch.len(), lengths.sum(), width * batch.len());
            self.answer(&batch)?;
            self.own.busy(started.elapsed());
            for Item { request, .. } in batch {
                if request.missing.fetch_sub(1, Ordering::AcqRel) == 1 && to_encode.send(request).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Answers every item: with its logits, or with why the model fails on it.
    fn answer(&mut self, items: &[Item]) -> Result<(), String> {
        let Some(first) = items.first() else { return Ok(()) };
        let Self { number, recovery, own, .. } = self;
        // The batcher mixes no versions.
        let version = &first.reading().version;
        let mut session = version.session(*number);
        let budget = recovery.slots();
        let tally = version.tally();
        let answers = recovery.answer(items, Item::tokens, |part| {
            let started = Instant::now();
            let answers = infer(&mut session, part);
            own.inferred(started.elapsed());
            let lengths = part.iter().map(Item::tokens);
            let slots = lengths.clone().max().unwrap_or_default() * part.len();
            tally.ran(lengths.sum(), slots, started.elapsed());
            answers.inspect_err(|error| own.failed(error.cause))
        });
        if recovery.slots() != budget {
            own.budget(recovery.slots());
        }
        let answers = answers.map_err(|error| {
            let advice = "give the worker or its device more memory, or set fewer lanes.count or a smaller model";
            format!("{error}, again and again, at last on a single sequence: {advice}")
        })?;
        for (item, answer) in items.iter().zip(answers) {
            let answer = answer.map_err(|e| Reject::new(Stage::Infer, Code::InferenceFailed, e.to_string()));
            // Each window is in one batch, so its answer is set once.
            let _ = item.reading().answers[item.window].set(answer);
        }
        Ok(())
    }
}

fn infer(session: &mut Session, items: &[Item]) -> Result<Vec<Logits>, InferError> {
    fail::fail_point!("infer", |fault| Err(InferError::injected(fault)));
    session.run(items)
}
