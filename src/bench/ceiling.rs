//! How fast the model alone can be: its graph in a bare loop, the inputs ready.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::run::{Clock, ModelWork, Run};
use super::subject::Subject;
use crate::infer::InferError;
use crate::pack::Packed;
use crate::serving::Version;
use crate::tokenize::Window;

/// Slots of the padded view that are tried for a batch.
const BUDGETS: [usize; 7] = [128, 256, 512, 1024, 2048, 4096, 8192];
/// Tokens on which they are tried, and how often.
const TRIAL_TOKENS: usize = 20_000;
const TRIALS: usize = 3;

/// Batches for a bare loop, with sequences of equal length together as far as there are any: no batcher that knows only
/// what has arrived can do better.
pub struct Ceiling {
    /// Slots of the padded view that a batch may have.
    pub budget: usize,
    batches: Vec<Packed>,
    documents: usize,
}

impl Ceiling {
    /// All documents of `subject`, in batches of the shape that is fastest on a part of them.
    ///
    /// # Errors
    /// When the model cannot be run.
    pub fn search(subject: &Subject) -> Result<Self, InferError> {
        let all = subject.windows().map(|window| window.ids.len()).sum();
        let (sample, count) = subject.sample(TRIAL_TOKENS.min(all));
        let shapes = BUDGETS.map(|budget| Self::with_budget(sample.clone(), count, budget));
        let mut best = [f64::INFINITY; BUDGETS.len()];
        for _ in 0..TRIALS {
            for (shape, best) in shapes.iter().zip(&mut best) {
                *best = best.min(shape.run(&subject.version)?.seconds);
            }
        }
        let fastest = (0..BUDGETS.len()).min_by(|&a, &b| best[a].total_cmp(&best[b])).expect("there are budgets");
        Ok(Self::with_budget(subject.windows().collect(), subject.documents.len(), BUDGETS[fastest]))
    }

    /// The windows of so many documents in batches of at most `budget` slots, the longest sequences first.
    pub fn with_budget(mut windows: Vec<&Window>, documents: usize, budget: usize) -> Self {
        windows.sort_by_key(|window| Reverse(window.ids.len()));
        let mut batches = Vec::new();
        let mut left = windows.as_slice();
        while let Some(widest) = left.first() {
            let (batch, rest) = left.split_at((budget / widest.ids.len()).clamp(1, left.len()));
            batches.push(Packed::new(batch.iter().copied()));
            left = rest;
        }
        Self { budget, batches, documents }
    }

    /// Runs all batches, in the sessions of all lanes side by side.
    ///
    /// # Errors
    /// When ONNX Runtime fails.
    pub fn run(&self, version: &Version) -> Result<Run, InferError> {
        let (clock, next) = (Clock::start(), AtomicUsize::new(0));
        let lane = &|lane: usize| -> Result<f64, InferError> {
            let mut session = version.session(lane);
            let started = Instant::now();
            while let Some(batch) = self.batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                session.run_packed(batch)?;
            }
            Ok(started.elapsed().as_secs_f64())
        };
        let busy: Result<Vec<f64>, InferError> = std::thread::scope(|scope| {
            let lanes: Vec<_> = (0..version.sessions()).map(|number| scope.spawn(move || lane(number))).collect();
            lanes.into_iter().map(|lane| lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        let sum = |of: fn(&Packed) -> usize| self.batches.iter().map(of).sum::<usize>() as f64;
        let model = ModelWork {
            tokens: sum(Packed::tokens),
            slots: sum(Packed::slots),
            seconds: busy?.into_iter().sum(),
            lanes: version.sessions() as f64,
        };
        Ok(clock.stop(self.documents, Some(model)))
    }

    /// Time of one batch of at most `budget` slots while every lane has one, in seconds: the median.
    ///
    /// # Errors
    /// When ONNX Runtime fails.
    pub fn batch_seconds(&self, version: &Version) -> Result<f64, InferError> {
        let run = self.run(version)?;
        Ok(run.model.map_or(0.0, |model| model.seconds) / self.batches.len().max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn batches_hold_every_window_within_the_budget(lengths in prop::collection::vec(1usize..60, 1..80), budget in 1usize..300) {
            let window = |&length: &usize| Window { units: 0..0, keep: 0..0, ids: vec![1; length], word_starts: vec![] };
            let windows: Vec<Window> = lengths.iter().map(window).collect();
            let ceiling = Ceiling::with_budget(windows.iter().collect(), 1, budget);
            prop_assert!(ceiling.batches.iter().all(|batch| batch.lengths.len() == 1 || batch.slots() <= budget));
            let mut found: Vec<usize> = ceiling.batches.iter().flat_map(|batch| &batch.lengths).map(|&n| n as usize).collect();
            found.reverse();
            let mut sorted = lengths.clone();
            sorted.sort_unstable();
            prop_assert_eq!(found, sorted);
        }
    }
}
