//! Batches made ahead by a thread of their own, so that the step does not wait for text.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::corpus::{Corpus, Example, Order};

/// Steps whose batches may wait.
const AHEAD: usize = 4;

/// Which batches are wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// The first step.
    pub first: u64,
    /// Sequences in a batch.
    pub batch: usize,
    /// Batches in a step.
    pub accumulate: usize,
    /// Seed of the run.
    pub seed: u64,
}

/// The thread and its queue.
#[derive(Debug)]
pub(super) struct Loader {
    steps: Receiver<Vec<Example>>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    pub(super) fn start(corpus: Arc<Corpus>, plan: Plan) -> Result<Self> {
        let (sender, steps) = sync_channel(AHEAD);
        let work = move || {
            let mut order = Order::default();
            for step in plan.first.. {
                let batches = step * plan.accumulate as u64..(step + 1) * plan.accumulate as u64;
                let examples = batches.map(|n| corpus.batch(n, plan.batch, plan.seed, &mut order)).collect();
                if sender.send(examples).is_err() {
                    return; // the run is over
                }
            }
        };
        let thread = thread::Builder::new().name("loader".to_owned()).spawn(work).context("cannot start a thread")?;
        Ok(Self { steps, thread: Some(thread) })
    }

    /// The batches of the next step, and how long they were waited for.
    pub(super) fn next(&mut self) -> Result<(Vec<Example>, Duration)> {
        let start = Instant::now();
        let examples = self.steps.recv().context("the thread that loads the text has panicked")?;
        Ok((examples, start.elapsed()))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // A queue without a receiver ends the thread.
        self.steps = sync_channel(1).1;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic was told by `next`
        }
    }
}
