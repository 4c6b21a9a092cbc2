//! The settings of pretraining: one TOML file, unknown keys refused.

use std::path::Path;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::config::{Encoder, Precision, Sizes, probability, read};

/// A pretraining run.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Seeds the weights, the dropout, the masks and the order of the text.
    pub seed: u64,
    /// The encoder: ELECTRA's discriminator.
    pub encoder: Encoder,
    /// ELECTRA's generator, which shares the embeddings of the encoder.
    pub generator: Option<Generator>,
    /// The loop.
    pub train: Train,
    /// The text that is not trained on.
    pub held_out: HeldOut,
    /// How often things are done.
    pub every: Every,
}

/// Sizes of ELECTRA's generator, and how much its discriminator counts.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Generator {
    /// Width of the layers.
    pub hidden: i64,
    /// Number of layers.
    pub layers: i64,
    /// Attention heads; divides `hidden`.
    pub heads: i64,
    /// Width of the feed-forward part.
    pub ffn: i64,
    /// Steps in which the embeddings learn from the generator alone; 0 if left out.
    #[serde(default)]
    pub head_start: u64,
    /// Weight of the discriminator's loss beside the generator's, which has 1; 50 if left out (Clark et al. 2020).
    #[serde(default = "discriminator_weight")]
    pub discriminator_weight: f64,
}

fn discriminator_weight() -> f64 {
    50.0
}

/// The loop: AdamW with a linear warm-up and a linear decay to zero.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Steps in all.
    pub steps: usize,
    /// Sequences computed at a time.
    pub batch: usize,
    /// Batches in a step, whose gradients are averaged; 1 if left out.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// Longest sequence in tokens, special ones included.
    pub length: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Share of all steps spent on the way to the peak.
    pub warmup: f64,
    /// Decoupled weight decay; none on norms and biases.
    pub weight_decay: f64,
    /// Epsilon of Adam; 1e-6 if left out.
    #[serde(default = "epsilon")]
    pub epsilon: f64,
    /// Greatest norm of the gradient of a step.
    pub clip: f64,
    /// What matrices are multiplied in.
    #[serde(default)]
    pub precision: Precision,
}

fn one() -> usize {
    1
}

fn epsilon() -> f64 {
    1e-6
}

/// The text that is not trained on.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOut {
    /// Share of the documents.
    pub share: f64,
    /// Sequences of theirs that are scored, spread over all of them.
    pub sequences: usize,
}

/// How often things are done, in steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Every {
    /// A record of training.
    pub log: usize,
    /// Scores on held-out text.
    pub evaluate: usize,
    /// A checkpoint.
    pub checkpoint: usize,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, has an unknown or missing key, or a value that makes no sense; the message names the
    /// key.
    pub fn read(path: &Path) -> Result<Self> {
        read(path, Self::parse)
    }

    /// As [`Config::read`], from the text of a file.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text)?;
        config.encoder.validate()?;
        config.train.validate()?;
        config.held_out.validate()?;
        let every = config.every;
        for (key, value) in [("log", every.log), ("evaluate", every.evaluate), ("checkpoint", every.checkpoint)] {
            ensure!(value > 0, "every.{key}: must be greater than 0");
        }
        Ok(config)
    }
}

impl Generator {
    /// The sizes of the generator of an encoder.
    pub fn sizes(&self, encoder: &Sizes) -> Sizes {
        Sizes { hidden: self.hidden, layers: self.layers, heads: self.heads, ffn: self.ffn, ..encoder.clone() }
    }
}

impl Train {
    fn validate(&self) -> Result<()> {
        for (key, value) in [("steps", self.steps), ("batch", self.batch), ("accumulate", self.accumulate)] {
            ensure!(value > 0, "train.{key}: must be greater than 0");
        }
        for (key, value) in [("learning_rate", self.learning_rate), ("clip", self.clip), ("epsilon", self.epsilon)] {
            ensure!(value > 0.0, "train.{key}: {value} must be greater than 0");
        }
        ensure!(self.length >= 8, "train.length: {} must be at least 8", self.length);
        ensure!(self.weight_decay >= 0.0, "train.weight_decay: {} must not be negative", self.weight_decay);
        probability("train.warmup", self.warmup)
    }
}

impl HeldOut {
    fn validate(&self) -> Result<()> {
        ensure!(self.share > 0.0 && self.share <= 0.5, "held_out.share: {} must be in (0, 0.5]", self.share);
        ensure!(self.sequences > 0, "held_out.sequences: must be greater than 0");
        Ok(())
    }
}
