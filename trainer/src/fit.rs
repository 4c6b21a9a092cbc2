//! The one loop: epochs of steps, a score after each, the best weights kept, and a checkpoint to go on from.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use crate::config::Train;
use crate::optim::{self, AdamW};
use crate::{files, model};

/// The best weights so far.
pub const BEST: &str = "model.safetensors";
/// The last weights with all that is needed to go on.
pub const LAST: &str = "last.safetensors";
/// One line of JSON for every epoch.
pub const LOG: &str = "metrics.jsonl";

/// What is learnt.
pub trait Objective {
    /// The input of one step.
    type Batch;

    /// The batches of an epoch, as many in every epoch.
    fn epoch(&self, epoch: usize) -> Vec<Self::Batch>;

    /// The loss on a batch, with dropout.
    fn loss(&self, batch: &Self::Batch) -> Tensor;

    /// Scores on the development data, by name; their mean decides which weights are kept.
    ///
    /// # Errors
    /// When the data cannot be scored.
    fn scores(&self) -> Result<BTreeMap<String, f64>>;
}

/// How far a run is; what a checkpoint holds beside tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Progress {
    /// Epochs done.
    epoch: usize,
    best: f64,
    /// Epochs since the best score.
    stale: usize,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Record {
    /// Epochs done.
    pub epoch: usize,
    /// Steps done.
    pub step: i64,
    /// Mean loss of the epoch.
    pub loss: f64,
    /// Of its last step.
    pub learning_rate: f64,
    /// Mean norm of its gradients, before clipping.
    pub gradient_norm: f64,
    /// On the development data, by task.
    pub scores: BTreeMap<String, f64>,
    /// Their mean.
    pub score: f64,
    /// What the epoch took.
    pub seconds: f64,
}

/// Reads the log of a run.
///
/// # Errors
/// When it is missing or malformed.
pub fn log(run: &Path) -> Result<Vec<Record>> {
    let path = run.join(LOG);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines().map(serde_json::from_str).collect::<Result<_, _>>().with_context(|| path.display().to_string())
}

/// A training run.
#[derive(Debug)]
pub struct Fit<'a> {
    /// Its settings.
    pub train: &'a Train,
    /// Its seed.
    pub seed: u64,
    /// The variables it changes.
    pub store: &'a VarStore,
    /// Where its files go.
    pub out: &'a Path,
}

impl Fit<'_> {
    /// Trains until the epochs are over or the score stays behind its best for too long, and returns the best score.
    /// With `resume` it goes on from the last checkpoint, and comes to the same weights as without the interruption.
    ///
    /// # Errors
    /// When the data cannot be scored, the loss is not a number, or a file cannot be read or written.
    pub fn run<O: Objective>(&self, objective: &O, resume: bool) -> Result<f64> {
        let mut optimizer = self.optimizer();
        let mut progress = Progress { epoch: 0, best: f64::NEG_INFINITY, stale: 0 };
        if resume {
            progress = self.restore(&mut optimizer)?;
        } else if self.path(LOG).exists() {
            std::fs::remove_file(self.path(LOG))?;
        }
        while progress.epoch < self.train.epochs && progress.stale < self.train.patience {
            // Every epoch has a seed of its own, so that one can begin anywhere.
            tch::manual_seed((self.seed << 16) as i64 + progress.epoch as i64);
            let record = self.epoch(objective, &mut optimizer, progress.epoch)?;
            progress.epoch += 1;
            progress.stale += 1;
            if record.score > progress.best {
                (progress.best, progress.stale) = (record.score, 0);
                save(&self.path(BEST), &model::variables(self.store))?;
            }
            self.log(&record)?;
            self.save(&optimizer, progress)?;
        }
        Ok(progress.best)
    }

    fn optimizer(&self) -> AdamW {
        let train = self.train;
        let settings = optim::Settings { weight_decay: train.weight_decay, epsilon: train.epsilon };
        let mut optimizer = AdamW::new(model::variables(self.store), settings);
        if let Some(rate) = train.head_learning_rate {
            optimizer.scale_rate(model::HEADS, rate / train.learning_rate);
        }
        optimizer
    }

    fn epoch<O: Objective>(&self, objective: &O, optimizer: &mut AdamW, epoch: usize) -> Result<Record> {
        let (train, start) = (self.train, Instant::now());
        let batches = objective.epoch(epoch);
        let total = batches.len() * train.epochs;
        let bar = progress_bar(batches.len(), epoch);
        let (mut loss_sum, mut norm_sum, mut rate) = (0.0, 0.0, 0.0);
        for (i, batch) in batches.iter().enumerate() {
            rate = optim::learning_rate(optimizer.step as f64, total, train.warmup, train.learning_rate);
            let (loss, norm) = optimizer.descend(1, |_| objective.loss(batch), train.clip, rate)?;
            (loss_sum, norm_sum) = (loss_sum + loss, norm_sum + norm);
            bar.set_message(format!("loss {:.4}", loss_sum / (i + 1) as f64));
            bar.inc(1);
        }
        bar.finish_and_clear();
        let scores = objective.scores()?;
        let score = scores.values().sum::<f64>() / scores.len().max(1) as f64;
        let steps = batches.len() as f64;
        Ok(Record {
            epoch: epoch + 1,
            step: optimizer.step,
            loss: loss_sum / steps,
            learning_rate: rate,
            gradient_norm: norm_sum / steps,
            scores,
            score,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.out.join(name)
    }

    fn log(&self, record: &Record) -> Result<()> {
        let line = serde_json::to_string(record)?;
        eprintln!("{line}");
        let path = self.path(LOG);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| writeln!(file, "{line}")).with_context(|| format!("cannot write {}", path.display()))
    }

    fn save(&self, optimizer: &AdamW, progress: Progress) -> Result<()> {
        let mut tensors = model::variables(self.store);
        tensors.extend(optimizer.state());
        let numbers = [optimizer.step as f64, progress.epoch as f64, progress.best, progress.stale as f64];
        tensors.push((PROGRESS.into(), Tensor::from_slice(&numbers)));
        save(&self.path(LAST), &tensors)
    }

    fn restore(&self, optimizer: &mut AdamW) -> Result<Progress> {
        let path = self.path(LAST);
        let tensors =
            Tensor::read_safetensors(&path).with_context(|| format!("cannot resume from {}", path.display()))?;
        model::restore(&model::variables(self.store), &tensors)?;
        model::restore(&optimizer.state(), &tensors)?;
        let numbers = [(PROGRESS.into(), Tensor::zeros([4], (Kind::Double, tch::Device::Cpu)))];
        model::restore(&numbers, &tensors)?;
        let numbers = Vec::<f64>::try_from(&numbers[0].1)?;
        optimizer.step = numbers[0] as i64;
        Ok(Progress { epoch: numbers[1] as usize, best: numbers[2], stale: numbers[3] as usize })
    }
}

/// Step, epochs done, best score and epochs since, in a checkpoint: one file holds all of its parts, so that they
/// always belong together.
const PROGRESS: &str = "progress";

/// Writes tensors as safetensors, whole or not at all.
///
/// # Errors
/// When the file cannot be written.
pub fn save(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    files::replace(path, |temporary| Ok(Tensor::write_safetensors(tensors, temporary)?))
}

fn progress_bar(steps: usize, epoch: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg} {eta}");
    let bar = ProgressBar::new(steps as u64).with_prefix(format!("epoch {}", epoch + 1));
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
