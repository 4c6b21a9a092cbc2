//! The settings of a run: one TOML file, unknown keys refused, values checked before any work starts.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use vitag::manifest::{Task, TrainingData};

/// A fine-tuning run: what is trained, on what, how, and how the result is named.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Seeds the weights, the dropout and the order of the examples.
    pub seed: u64,
    /// The model that comes out.
    pub model: Model,
    /// The encoder.
    pub encoder: Encoder,
    /// The loop.
    pub train: Train,
    /// The tasks: each a head on the one encoder, with its data.
    #[serde(rename = "task")]
    pub tasks: Vec<TaskConfig>,
}

/// Name, version and licence of the model, as its manifest will have them.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Licence of the weights (SPDX).
    pub licence: String,
    /// What it is trained on, for the manifest and the model card.
    pub data: Vec<TrainingData>,
}

/// Sizes of the encoder.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    /// Longest input in tokens, special ones included.
    pub max_length: usize,
    /// Width of word and position embeddings; projected to `hidden` where they differ.
    pub embedding: i64,
    /// Width of the layers.
    pub hidden: i64,
    /// Number of layers.
    pub layers: i64,
    /// Attention heads; divides `hidden`.
    pub heads: i64,
    /// Width of the feed-forward part.
    pub ffn: i64,
    /// Probability of dropping a value in training.
    pub dropout: f64,
}

/// The loop: AdamW with a linear warm-up and a linear decay to zero.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Passes over the training data at most.
    pub epochs: usize,
    /// Epochs without a better development score after which it ends.
    pub patience: usize,
    /// Sequences in a batch.
    pub batch: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Share of all steps spent on the way to the peak.
    pub warmup: f64,
    /// Decoupled weight decay; none on norms and biases.
    pub weight_decay: f64,
    /// Greatest norm of the gradient of a step.
    pub clip: f64,
    /// Probability of hiding a unit behind `[UNK]` in training.
    pub unit_dropout: f64,
}

/// One task.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TaskConfig {
    /// Name of the head.
    pub name: String,
    /// What its spans are.
    pub kind: Task,
    /// Files to train on, relative to the data folder.
    pub train: Vec<PathBuf>,
    /// Files whose score decides which epoch is kept.
    pub dev: Vec<PathBuf>,
    /// Files to report on, each alone.
    pub test: Vec<PathBuf>,
    /// The layers between the encoder and the labels.
    pub head: Head,
}

/// Layers of a head, below its linear layer.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Head {
    /// None.
    Linear {
        /// Probability of dropping an input of the linear layer in training.
        dropout: f64,
    },
    /// A bidirectional GRU over the tokens.
    Bigru {
        /// Width of each direction.
        hidden: i64,
        /// Probability of dropping an input of the linear layer in training.
        dropout: f64,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, has an unknown or missing key, or a value that makes no sense; the message names the
    /// key.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// As [`Config::read`], from the text of a file.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text)?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<()> {
        self.encoder.validate()?;
        self.train.validate()?;
        ensure!(!self.tasks.is_empty(), "[[task]]: at least one is needed");
        let mut names = HashSet::new();
        for task in &self.tasks {
            ensure!(names.insert(&task.name), "task.name: {:?} stands twice", task.name);
            task.validate().with_context(|| format!("task {:?}", task.name))?;
        }
        Ok(())
    }
}

impl Encoder {
    fn validate(&self) -> Result<()> {
        for (key, value) in [
            ("embedding", self.embedding),
            ("hidden", self.hidden),
            ("layers", self.layers),
            ("heads", self.heads),
            ("ffn", self.ffn),
        ] {
            ensure!(value > 0, "encoder.{key}: {value} must be greater than 0");
        }
        ensure!(self.max_length >= 8, "encoder.max_length: {} must be at least 8", self.max_length);
        let (hidden, heads) = (self.hidden, self.heads);
        ensure!(hidden % heads == 0, "encoder.heads: {heads} must divide encoder.hidden, {hidden}");
        probability("encoder.dropout", self.dropout)
    }
}

impl Train {
    fn validate(&self) -> Result<()> {
        for (key, value) in [("epochs", self.epochs), ("patience", self.patience), ("batch", self.batch)] {
            ensure!(value > 0, "train.{key}: must be greater than 0");
        }
        for (key, value) in [("learning_rate", self.learning_rate), ("clip", self.clip)] {
            ensure!(value > 0.0, "train.{key}: {value} must be greater than 0");
        }
        ensure!(self.weight_decay >= 0.0, "train.weight_decay: {} must not be negative", self.weight_decay);
        probability("train.warmup", self.warmup)?;
        probability("train.unit_dropout", self.unit_dropout)
    }
}

impl TaskConfig {
    fn validate(&self) -> Result<()> {
        for (key, files) in [("train", &self.train), ("dev", &self.dev)] {
            ensure!(!files.is_empty(), "task.{key}: at least one file is needed");
        }
        match self.head {
            Head::Linear { dropout } => probability("task.head.dropout", dropout),
            Head::Bigru { hidden, dropout } => {
                ensure!(hidden > 0, "task.head.hidden: {hidden} must be greater than 0");
                probability("task.head.dropout", dropout)
            }
        }
    }
}

fn probability(key: &str, value: f64) -> Result<()> {
    ensure!((0.0..1.0).contains(&value), "{key}: {value} must be at least 0 and less than 1");
    Ok(())
}
