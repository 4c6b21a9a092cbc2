//! Trains the encoder and all heads on the labelled data of their tasks.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tch::{Kind, Reduction, Tensor};
use vitag::pack::Packed;
use vitag::tokenize::Window;

use crate::config::Config;
use crate::data::{self, Corpus, Example, IGNORED, Instance};
use crate::evaluate;
use crate::fit::{Fit, Objective};
use crate::model::Batch;
use crate::run::Run;

/// Batches in a stretch of the shuffled data that is sorted by length, so that a batch holds like lengths.
const SORTED_BATCHES: usize = 40;

/// Where a run reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Paths<'a> {
    /// The folder of the corpora.
    pub data: &'a Path,
    /// `tokenizer.json`, where the encoder begins with random weights.
    pub tokenizer: Option<&'a Path>,
    /// The run's directory.
    pub out: &'a Path,
}

/// Trains a model, or goes on with it; returns the best score on the development data.
///
/// # Errors
/// When the data is malformed or a file cannot be read or written.
pub fn finetune(config: Config, paths: Paths, resume: bool) -> Result<f64> {
    let parts = config.tasks.iter().map(|task| data::train_and_dev(paths.data, task, config.seed));
    let (train, held): (Vec<Vec<Corpus>>, Vec<Vec<Corpus>>) = parts.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let tasks = config.tasks.iter().zip(&train);
    let labels = tasks.map(|(task, corpora)| data::label_set(corpora, task.reading().scheme)).collect::<Result<_>>()?;
    let run = Run::create(paths.out, config, paths.tokenizer, labels)?;
    let unknown = run.tokenizer.unknown();
    let kind = run.config.train.precision.kind(run.store.device())?;
    let mut instances = Vec::new();
    let mut dev = Vec::new();
    for (i, labels) in run.labels.iter().enumerate() {
        for corpus in &train[i] {
            instances.extend(data::instances(i, &corpus.examples(&run.tokenizer, labels)?));
        }
        let mut examples = Vec::new();
        for corpus in &held[i] {
            examples.extend(corpus.examples(&run.tokenizer, labels)?);
        }
        dev.push(examples);
    }
    eprintln!("{} sequences to train on, {} variables", instances.len(), run.store.len());
    let tagging = Tagging { run: &run, kind, unknown, instances, dev };
    Fit { train: &run.config.train, seed: run.config.seed, store: &run.store, out: paths.out }
        .run(&tagging, resume)
        .context("training stopped")
}

/// The objective: cross-entropy of the labels, summed over the heads.
struct Tagging<'a> {
    run: &'a Run,
    /// What the layers multiply in.
    kind: Kind,
    unknown: u32,
    instances: Vec<Instance>,
    /// Development data by task.
    dev: Vec<Vec<Example>>,
}

/// The sequences of a step.
struct Step {
    batch: Batch,
    /// For each head the label of every unit, [`IGNORED`] where the sequence is of another task; `None` where none is
    /// its own.
    labels: Vec<Option<Tensor>>,
}

impl Objective for Tagging<'_> {
    type Batch = Step;

    fn epoch(&self, epoch: usize) -> Vec<Step> {
        let size = self.run.config.train.batch;
        let mut rng = StdRng::seed_from_u64((self.run.config.seed << 16) + epoch as u64);
        let mut order: Vec<&Instance> = self.instances.iter().collect();
        order.shuffle(&mut rng);
        for stretch in order.chunks_mut(size * SORTED_BATCHES) {
            stretch.sort_by_key(|instance| instance.window.ids.len());
        }
        let mut batches: Vec<&[&Instance]> = order.chunks(size).collect();
        batches.shuffle(&mut rng);
        batches.into_iter().map(|batch| self.step(batch, &mut rng)).collect()
    }

    fn loss(&self, step: &Step) -> Tensor {
        let logits = self.run.tagger.forward(&step.batch, true);
        let losses = logits.iter().zip(&step.labels).filter_map(|(logits, labels)| {
            let labels = labels.as_ref()?;
            Some(logits.cross_entropy_loss::<&Tensor>(labels, None, Reduction::Mean, IGNORED, 0.0))
        });
        losses.reduce(|sum, loss| sum + loss).expect("every sequence belongs to a task")
    }

    fn scores(&self) -> Result<BTreeMap<String, f64>> {
        let score = |(i, examples): (usize, &Vec<Example>)| {
            let (task, labels) = (&self.run.config.tasks[i], &self.run.labels[i]);
            let paths = evaluate::predict(self.run, i, examples);
            (task.name.clone(), evaluate::score(task.kind, labels, examples, &paths).spans.f1)
        };
        Ok(self.dev.iter().enumerate().map(score).collect())
    }
}

impl Tagging<'_> {
    fn step(&self, instances: &[&Instance], rng: &mut StdRng) -> Step {
        let windows: Vec<Window> = instances.iter().map(|instance| self.hide_units(&instance.window, rng)).collect();
        let device = self.run.store.device();
        let labels = |task| {
            let own = |instance: &&Instance| instance.task == task;
            instances.iter().any(own).then(|| {
                let labels = instances.iter().flat_map(|instance| {
                    instance.labels.iter().map(move |&label| if own(instance) { label } else { IGNORED })
                });
                Tensor::from_slice(&labels.collect::<Vec<i64>>()).to_device(device)
            })
        };
        Step {
            batch: Batch::new(&Packed::new(&windows), device).in_kind(self.kind),
            labels: (0..self.run.labels.len()).map(labels).collect(),
        }
    }

    /// Puts `[UNK]` for the pieces of some units, so that the model learns to go by the context.
    fn hide_units(&self, window: &Window, rng: &mut StdRng) -> Window {
        let mut hidden = window.clone();
        let ends = window.word_starts.iter().skip(1).copied().chain([window.ids.len() as u32 - 1]);
        for (&start, end) in window.word_starts.iter().zip(ends) {
            if rng.random_bool(self.run.config.train.unit_dropout) {
                hidden.ids[start as usize..end as usize].fill(self.unknown);
            }
        }
        hidden
    }
}
