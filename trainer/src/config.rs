//! The settings of a run: one TOML file, unknown keys refused, values checked before any work starts.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tch::{Cuda, Device, Kind};
use vitag::manifest::{Task, TrainingData};
use vitag::tags::Scheme;
use vitag::tokenize::Unit;

use crate::data::{Columns, Layout, Reading};

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

/// The encoder: its sizes, or where a pretrained one is.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    /// An encoder directory to start from, which also gives the sizes and the tokenizer.
    pub from: Option<PathBuf>,
    /// Sizes of an encoder that starts from random weights.
    pub sizes: Option<Sizes>,
    /// Longest input in tokens, where it is to be below that of the encoder directory.
    pub max_length: Option<usize>,
    /// Probability of dropping a value in training.
    pub dropout: f64,
}

/// Sizes of an encoder.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
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
    /// Epsilon of the layer norms; 1e-12 if left out, as in BERT.
    #[serde(default = "norm_epsilon")]
    pub norm_epsilon: f64,
}

fn norm_epsilon() -> f64 {
    1e-12
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
    /// Peak learning rate of the heads, where it is another.
    pub head_learning_rate: Option<f64>,
    /// Share of all steps spent on the way to the peak.
    pub warmup: f64,
    /// Decoupled weight decay; none on norms and biases.
    pub weight_decay: f64,
    /// Epsilon of Adam; 1e-6 if left out.
    #[serde(default = "adam_epsilon")]
    pub epsilon: f64,
    /// Greatest norm of the gradient of a step.
    pub clip: f64,
    /// Probability of hiding a unit behind `[UNK]` in training.
    pub unit_dropout: f64,
    /// What the layers of the encoder multiply matrices in.
    #[serde(default)]
    pub precision: Precision,
}

fn adam_epsilon() -> f64 {
    1e-6
}

/// What matrices are multiplied in; weights, sums and norms are f32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// TensorFloat-32, on CUDA.
    Tf32,
    /// bfloat16, on CUDA and on processors that multiply in it.
    Bf16,
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
    /// Files whose score decides which epoch is kept; a random tenth of the training data if there are none.
    #[serde(default)]
    pub dev: Vec<PathBuf>,
    /// Files to report on, each alone.
    pub test: Vec<PathBuf>,
    /// How the files are laid out; CoNLL-U for parts of speech and TSV for entities if left out.
    pub layout: Option<Layout>,
    /// The column of the word, from 1, where it is not that of the layout.
    pub word_column: Option<usize>,
    /// The column of the tag, from 1, where it is not that of the layout.
    pub tag_column: Option<usize>,
    /// What the model labels, the same for all tasks; syllables if left out.
    #[serde(default = "syllable")]
    pub unit: Unit,
    /// How the labels relate; plain for the parts of speech of words and BIO for all else if left out.
    pub scheme: Option<Scheme>,
    /// The layers between the encoder and the labels; a linear one alone if left out.
    #[serde(default)]
    pub head: Head,
}

fn syllable() -> Unit {
    Unit::Syllable
}

/// Layers of a head, below its linear layer. The defaults are the sizes of the paper (§3.1.1).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Which layers there are.
    pub kind: HeadKind,
    /// What it reads of the encoder.
    #[serde(default)]
    pub input: Input,
    /// Width of each direction of the recurrent layer, where there is one.
    #[serde(default = "recurrent_hidden")]
    pub hidden: i64,
    /// Width of each head of the attention layer, where there is one.
    #[serde(default = "attention_hidden")]
    pub attention_hidden: i64,
    /// Heads of the attention layer, where there is one.
    #[serde(default = "attention_heads")]
    pub attention_heads: i64,
    /// Probability of dropping a value between two layers in training.
    #[serde(default = "head_dropout")]
    pub dropout: f64,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            kind: HeadKind::Linear,
            input: Input::default(),
            hidden: recurrent_hidden(),
            attention_hidden: attention_hidden(),
            attention_heads: attention_heads(),
            dropout: head_dropout(),
        }
    }
}

/// The heads of the paper, in the order of its tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadKind {
    /// A linear layer alone.
    Linear,
    /// A bidirectional LSTM below it.
    Bilstm,
    /// A bidirectional GRU below it.
    Bigru,
    /// A bidirectional LSTM, then attention.
    BilstmAttn,
    /// A bidirectional GRU, then attention.
    BigruAttn,
}

impl HeadKind {
    /// As settings have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Bilstm => "bilstm",
            Self::Bigru => "bigru",
            Self::BilstmAttn => "bilstm_attn",
            Self::BigruAttn => "bigru_attn",
        }
    }

    /// As the tables of the paper have it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Linear => "+Fine-Tune",
            Self::Bilstm => "+BiLSTM",
            Self::Bigru => "+BiGRU",
            Self::BilstmAttn => "+BiLSTM_Attn",
            Self::BigruAttn => "+BiGRU_Attn",
        }
    }
}

/// What a head reads of the encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// A learned mix of the embeddings and all layers.
    #[default]
    Mix,
    /// The last layer.
    Last,
}

fn recurrent_hidden() -> i64 {
    256
}

fn attention_hidden() -> i64 {
    64
}

fn attention_heads() -> i64 {
    3
}

fn head_dropout() -> f64 {
    0.5
}

/// Reads settings from a file; an error names it.
pub(crate) fn read<T>(path: &Path, parse: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
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
        config.validate()?;
        Ok(config)
    }

    /// Checks the values.
    ///
    /// # Errors
    /// When one makes no sense; the message names the key.
    pub fn validate(&self) -> Result<()> {
        self.encoder.validate()?;
        self.train.validate()?;
        ensure!(!self.tasks.is_empty(), "[[task]]: at least one is needed");
        let mut names = HashSet::new();
        for task in &self.tasks {
            ensure!(names.insert(&task.name), "task.name: {:?} stands twice", task.name);
            task.validate().with_context(|| format!("task {:?}", task.name))?;
        }
        let unit = self.tasks[0].unit;
        ensure!(self.tasks.iter().all(|task| task.unit == unit), "task.unit: the tasks of one encoder share it");
        Ok(())
    }
}

impl Encoder {
    /// Checks that there is one way to make it.
    ///
    /// # Errors
    /// When there is none or two, or a value makes no sense; the message names the key.
    pub fn validate(&self) -> Result<()> {
        match (&self.from, &self.sizes) {
            (None, None) => bail!("encoder: it needs \"from\", a pretrained encoder, or its sizes in [encoder.sizes]"),
            (Some(_), Some(_)) => bail!("encoder.sizes: leave them out, encoder.from gives them"),
            (None, Some(sizes)) => {
                ensure!(self.max_length.is_none(), "encoder.max_length: it belongs into [encoder.sizes] here");
                sizes.validate("encoder.sizes")?;
            }
            (Some(_), None) => {}
        }
        probability("encoder.dropout", self.dropout)
    }
}

impl Sizes {
    /// Checks them; `key` is where they stand.
    ///
    /// # Errors
    /// When one makes no sense; the message names it.
    pub fn validate(&self, key: &str) -> Result<()> {
        for (name, value) in [
            ("embedding", self.embedding),
            ("hidden", self.hidden),
            ("layers", self.layers),
            ("heads", self.heads),
            ("ffn", self.ffn),
        ] {
            ensure!(value > 0, "{key}.{name}: {value} must be greater than 0");
        }
        ensure!(self.max_length >= 8, "{key}.max_length: {} must be at least 8", self.max_length);
        let (hidden, heads) = (self.hidden, self.heads);
        ensure!(hidden % heads == 0, "{key}.heads: {heads} must divide {key}.hidden, {hidden}");
        ensure!(self.norm_epsilon > 0.0, "{key}.norm_epsilon: {} must be greater than 0", self.norm_epsilon);
        Ok(())
    }
}

impl Train {
    fn validate(&self) -> Result<()> {
        for (key, value) in [("epochs", self.epochs), ("patience", self.patience), ("batch", self.batch)] {
            ensure!(value > 0, "train.{key}: must be greater than 0");
        }
        let head = self.head_learning_rate.unwrap_or(self.learning_rate);
        let positive = [("learning_rate", self.learning_rate), ("head_learning_rate", head), ("clip", self.clip)];
        for (key, value) in positive {
            ensure!(value > 0.0, "train.{key}: {value} must be greater than 0");
        }
        ensure!(self.weight_decay >= 0.0, "train.weight_decay: {} must not be negative", self.weight_decay);
        probability("train.warmup", self.warmup)?;
        probability("train.unit_dropout", self.unit_dropout)
    }
}

impl TaskConfig {
    /// How its files are read.
    pub fn reading(&self) -> Reading {
        let layout = self.layout.unwrap_or(match self.kind {
            Task::Pos => Layout::Conllu,
            Task::Ner => Layout::Tsv,
        });
        let (word, tag) = match (layout, self.kind) {
            (Layout::Conllu, _) => (2, 4),
            (Layout::Conll2003, _) | (Layout::Vlsp, Task::Ner) => (1, 4),
            (Layout::Tsv | Layout::Slash, _) | (Layout::Vlsp, Task::Pos) => (1, 2),
        };
        let scheme = match (self.kind, self.unit) {
            (Task::Pos, Unit::Word) => Scheme::Plain,
            _ => Scheme::Bio,
        };
        Reading {
            task: self.kind,
            layout,
            columns: Columns { word: self.word_column.unwrap_or(word), tag: self.tag_column.unwrap_or(tag) },
            unit: self.unit,
            scheme: self.scheme.unwrap_or(scheme),
        }
    }

    fn validate(&self) -> Result<()> {
        ensure!(!self.train.is_empty(), "task.train: at least one file is needed");
        for (key, column) in [("word_column", self.word_column), ("tag_column", self.tag_column)] {
            ensure!(column != Some(0), "task.{key}: columns are counted from 1");
        }
        let plain = self.reading().scheme == Scheme::Plain;
        ensure!(self.kind == Task::Pos || !plain, "task.scheme: entities need \"bio\"");
        self.head.validate()
    }
}

impl Head {
    fn validate(&self) -> Result<()> {
        for (key, value) in [
            ("hidden", self.hidden),
            ("attention_hidden", self.attention_hidden),
            ("attention_heads", self.attention_heads),
        ] {
            ensure!(value > 0, "task.head.{key}: {value} must be greater than 0");
        }
        probability("task.head.dropout", self.dropout)
    }
}

/// Libtorch reads this variable once, before the first product: it cannot be set from here.
const TF32: &str = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE";

impl Precision {
    /// What the layers multiply in on `device`.
    ///
    /// # Errors
    /// When the device cannot do it.
    pub fn kind(self, device: Device) -> Result<Kind> {
        let cuda = device.is_cuda();
        let needs = |what: &str| {
            let devices = Cuda::device_count();
            format!("train.precision: {what}, and libtorch found {devices} CUDA devices; \"f32\" works everywhere")
        };
        match self {
            Self::F32 => Ok(Kind::Float),
            Self::Tf32 => {
                ensure!(cuda, needs("tf32 needs a CUDA device"));
                let allowed = std::env::var(TF32).is_ok_and(|value| value == "1");
                ensure!(allowed, "train.precision: tf32 needs {TF32}=1 in the environment");
                Ok(Kind::Float)
            }
            Self::Bf16 => {
                let can = cuda || processor_multiplies_bf16();
                ensure!(can, needs("bf16 needs a CUDA device or a processor with AVX512-BF16"));
                Ok(Kind::BFloat16)
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn processor_multiplies_bf16() -> bool {
    std::arch::is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn processor_multiplies_bf16() -> bool {
    false
}

/// Checks that a value is one, and not one that is always met.
pub(crate) fn probability(key: &str, value: f64) -> Result<()> {
    ensure!((0.0..1.0).contains(&value), "{key}: {value} must be at least 0 and less than 1");
    Ok(())
}
