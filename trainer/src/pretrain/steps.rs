//! The loop of pretraining: steps, records, scores on held-out text, checkpoints.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use super::checkpoint::{self, Progress};
use super::config::Config;
use super::corpus::{Corpus, Example};
use super::loader::{Loader, Plan};
use super::objective::{Inputs, Objective, Scores};
use super::seed;
use crate::checkpoint::Description;
use crate::metrics::{Metrics, Part, Record};
use crate::model;
use crate::optim::{self, AdamW};

/// A pretraining run.
pub(super) struct Steps<'a> {
    pub config: &'a Config,
    pub store: &'a VarStore,
    pub objective: &'a dyn Objective,
    pub corpus: Arc<Corpus>,
    /// What the layers multiply in.
    pub kind: Kind,
    pub out: &'a Path,
    /// What the encoder was before.
    pub description: &'a Description,
    pub tokenizer: &'a [u8],
    /// The time after which it ends, and by which the learning rate falls then.
    pub budget: Option<Duration>,
    /// Set when it should stop.
    pub stop: &'a AtomicBool,
}

/// What was measured since the last record.
#[derive(Default)]
struct Since {
    steps: u64,
    tokens: u64,
    waiting: Duration,
    spent: Duration,
    sums: BTreeMap<&'static str, f64>,
}

impl Steps<'_> {
    /// Runs to the end, from the last checkpoint with `resume`, and returns the last scores on held-out text.
    pub(super) fn run(&self, resume: bool) -> Result<BTreeMap<String, f64>> {
        let train = &self.config.train;
        let settings = optim::Settings { weight_decay: train.weight_decay, epsilon: train.epsilon };
        let mut optimizer = AdamW::new(model::variables(self.store), settings);
        let mut progress = Progress { corpus: self.corpus.tokens(), ..Progress::default() };
        if resume {
            progress = checkpoint::resume(self.out, self.store, &mut optimizer, self.corpus.tokens())?;
        }
        let mut metrics = Metrics::open(self.out, progress.step)?;
        let held_out = self.corpus.held_out(train.batch);
        if progress.step == 0 {
            self.evaluate(&held_out, 0, &mut metrics)?;
        }
        let (batch, accumulate, seed) = (train.batch, train.accumulate, self.config.seed);
        let mut loader =
            Loader::start(Arc::clone(&self.corpus), Plan { first: progress.step, batch, accumulate, seed })?;
        let (bar, mut since) = (progress_bar(train.steps), Since::default());
        while self.position(&progress) < train.steps as f64 {
            self.step(&mut loader, &mut optimizer, &mut progress, &mut since)?;
            bar.set_position((self.position(&progress) as u64).min(train.steps as u64));
            let every = &self.config.every;
            let due = |every: usize| progress.step.is_multiple_of(every as u64);
            if due(every.log) {
                bar.set_message(since.message());
                metrics.push(since.record(&progress))?;
                since = Since::default();
            }
            if due(every.evaluate) {
                self.evaluate(&held_out, progress.step, &mut metrics)?;
            }
            let stop = self.stop.load(Ordering::Relaxed);
            if due(every.checkpoint) || stop {
                self.checkpoint(&optimizer, &progress)?;
            }
            if stop {
                bail!("interrupted after step {}, which is saved: go on with --resume", progress.step);
            }
        }
        bar.finish_and_clear();
        let scores = self.evaluate(&held_out, progress.step, &mut metrics)?;
        self.checkpoint(&optimizer, &progress)?;
        Ok(scores)
    }

    /// How far the run is, in steps: those done, or what the clock says where there is a budget of time. Then the
    /// learning rate falls by the clock too, and comes to zero when the time is over however fast the machine is.
    fn position(&self, progress: &Progress) -> f64 {
        let by_time = |budget: Duration| progress.seconds / budget.as_secs_f64() * self.config.train.steps as f64;
        self.budget.map_or(0.0, by_time).max(progress.step as f64)
    }

    fn step(
        &self,
        loader: &mut Loader,
        optimizer: &mut AdamW,
        progress: &mut Progress,
        since: &mut Since,
    ) -> Result<()> {
        let (train, start) = (&self.config.train, Instant::now());
        let (examples, waiting) = loader.next()?;
        let rate = optim::learning_rate(self.position(progress), train.steps, train.warmup, train.learning_rate);
        let parts = examples.len();
        let loss = |i: usize| self.loss(&examples[i], progress.step, (i, parts), since);
        let (loss, norm) = optimizer.descend(parts, loss, train.clip, rate)?;
        let spent = start.elapsed();
        let tokens: usize = examples.iter().map(|example| example.packed.tokens()).sum();
        progress.step += 1;
        progress.tokens += tokens as u64;
        progress.seconds += spent.as_secs_f64();
        since.steps += 1;
        since.tokens += tokens as u64;
        since.spent += spent;
        since.waiting += waiting;
        for (name, value) in [("loss", loss), ("gradient_norm", norm), ("learning_rate", rate)] {
            since.add(name, value);
        }
        Ok(())
    }

    /// The loss of one of the `parts` of a step.
    fn loss(&self, example: &Example, step: u64, (part, parts): (usize, usize), since: &mut Since) -> Tensor {
        let number = step * parts as u64 + part as u64;
        tch::manual_seed(seed::of(self.config.seed, seed::TORCH, number) as i64);
        let (loss, named) = self.objective.loss(&Inputs::new(example, self.store.device(), self.kind), step);
        for (name, value) in named {
            since.add(name, value / parts as f64);
        }
        loss
    }

    fn evaluate(&self, held_out: &[Example], step: u64, metrics: &mut Metrics) -> Result<BTreeMap<String, f64>> {
        let mut scores = Scores::default();
        tch::no_grad(|| {
            for (i, example) in held_out.iter().enumerate() {
                tch::manual_seed(i as i64); // the same draws of the generator each time
                self.objective.score(&Inputs::new(example, self.store.device(), self.kind), &mut scores);
            }
        });
        let values = scores.measures();
        metrics.push(Record { step, part: Part::HeldOut, values: values.clone() })?;
        metrics.draw()?;
        Ok(values)
    }

    fn checkpoint(&self, optimizer: &AdamW, progress: &Progress) -> Result<()> {
        checkpoint::save(self.out, self.store, optimizer, progress)?;
        let (steps, tokens, before) = (progress.step, progress.tokens, &self.description.origin);
        let origin = format!("{before}, then {steps} steps of pretraining on {tokens} tokens");
        let description = Description { origin, ..self.description.clone() };
        checkpoint::write_encoder(self.out, self.store, description, self.tokenizer.to_vec())
    }
}

impl Since {
    fn add(&mut self, name: &'static str, value: f64) {
        *self.sums.entry(name).or_default() += value;
    }

    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.spent.as_secs_f64()
    }

    fn waiting_share(&self) -> f64 {
        self.waiting.as_secs_f64() / self.spent.as_secs_f64()
    }

    fn message(&self) -> String {
        let loss = self.sums["loss"] / self.steps as f64;
        format!(
            "loss {loss:.4}, {:.0} tokens/s, {:.1} % waiting",
            self.tokens_per_second(),
            self.waiting_share() * 100.0
        )
    }

    fn record(&self, progress: &Progress) -> Record {
        let mean = |(&name, sum): (&&str, &f64)| (name.to_owned(), sum / self.steps as f64);
        let mut values: BTreeMap<String, f64> = self.sums.iter().map(mean).collect();
        values.extend([
            ("tokens".to_owned(), progress.tokens as f64),
            ("seconds".to_owned(), progress.seconds),
            ("tokens_per_second".to_owned(), self.tokens_per_second()),
            ("waiting_share".to_owned(), self.waiting_share()),
        ]);
        Record { step: progress.step, part: Part::Train, values }
    }
}

fn progress_bar(steps: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg} {eta}");
    ProgressBar::new(steps as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
