//! An encoder directory: a pretrained encoder with all that is needed to use it or to train it further. It is written
//! whole or not at all.
//!
//! | file | holds |
//! |---|---|
//! | `encoder.safetensors` | the tensors, by the names of the variables of [`Encoder`]; heads of pretraining under `mlm.`, `generator.` and `discriminator.` |
//! | `encoder.json` | the [`Description`] |
//! | `tokenizer.json` | the tokenizer, of Hugging Face |

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::VarStore;

use crate::config::{self, Sizes};
use crate::files;
use crate::model::{self, Encoder};

/// The tensors.
pub const WEIGHTS: &str = "encoder.safetensors";
/// The description.
pub const DESCRIPTION: &str = "encoder.json";
/// The tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";

/// What the tensors are.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// How it was pretrained.
    pub kind: Kind,
    /// Pieces of its tokenizer.
    pub vocabulary: usize,
    /// Its other sizes.
    pub sizes: Sizes,
    /// What it was made from, in words.
    pub origin: String,
}

/// How an encoder is pretrained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// By filling in masked words.
    Bert,
    /// By telling replaced tokens from original ones.
    Electra,
}

impl Description {
    /// An encoder that nothing has trained yet, for a tokenizer (the text of its `tokenizer.json`).
    ///
    /// # Errors
    /// When that is no tokenizer.
    pub fn random(sizes: Sizes, tokenizer: &[u8]) -> Result<Self> {
        Ok(Self { kind: Kind::Bert, vocabulary: pieces(tokenizer)?, sizes, origin: "random weights".to_owned() })
    }
}

pub(crate) fn pieces(tokenizer: &[u8]) -> Result<usize> {
    let tokenizer = tokenizers::Tokenizer::from_bytes(tokenizer).map_err(|e| anyhow!("not a tokenizer: {e}"))?;
    Ok(tokenizer.get_vocab_size(true))
}

/// An encoder directory in memory.
#[derive(Debug)]
pub struct Checkpoint {
    /// What it is.
    pub description: Description,
    /// Its tensors in the order of their names: those of the encoder, and the heads of pretraining where they were kept.
    pub tensors: Vec<(String, Tensor)>,
    /// The text of `tokenizer.json`.
    pub tokenizer: Vec<u8>,
}

impl Checkpoint {
    /// Reads a directory and checks that its parts fit each other.
    ///
    /// # Errors
    /// When a file is missing or malformed, a tensor is missing or has another shape than the description says, or
    /// the tokenizer has another number of pieces; the message names the file and the tensor.
    pub fn read(dir: &Path) -> Result<Self> {
        let bytes =
            |name: &str| fs::read(dir.join(name)).with_context(|| format!("cannot read {}", dir.join(name).display()));
        let description = serde_json::from_slice(&bytes(DESCRIPTION)?)
            .with_context(|| dir.join(DESCRIPTION).display().to_string())?;
        let weights = dir.join(WEIGHTS);
        let mut tensors =
            Tensor::read_safetensors(&weights).with_context(|| format!("cannot read {}", weights.display()))?;
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let checkpoint = Self { description, tensors, tokenizer: bytes(TOKENIZER)? };
        checkpoint.check().with_context(|| dir.display().to_string())?;
        Ok(checkpoint)
    }

    /// Writes the directory, in the place of one that is there.
    ///
    /// # Errors
    /// When its parts do not fit each other, or it cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        self.check().with_context(|| format!("cannot write {}", dir.display()))?;
        files::replace_dir(dir, |dir| {
            Tensor::write_safetensors(&self.tensors, dir.join(WEIGHTS))?;
            fs::write(dir.join(TOKENIZER), &self.tokenizer)?;
            files::write_json(&dir.join(DESCRIPTION), &self.description)
        })
    }

    /// Copies the encoder into the variables that stand below `root` in `store`.
    ///
    /// # Errors
    /// When one is missing here or has another shape.
    pub fn restore(&self, store: &VarStore, root: &str) -> Result<()> {
        model::restore(&model::variables_below(store, root), &self.tensors).context(WEIGHTS)
    }

    /// Leaves out the positions from `length` on.
    fn shorten(&mut self, length: usize) -> Result<()> {
        let sizes = &mut self.description.sizes;
        let longest = sizes.max_length;
        ensure!(length <= longest, "encoder.max_length: {length} is more than the {longest} of the encoder");
        sizes.max_length = length;
        sizes.validate("encoder")?;
        for (_, tensor) in self.tensors.iter_mut().filter(|(name, _)| name == model::POSITIONS) {
            *tensor = tensor.narrow(0, 0, length as i64);
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let Description { vocabulary, sizes, .. } = &self.description;
        sizes.validate("sizes").context(DESCRIPTION)?;
        let found: BTreeMap<&str, Vec<i64>> =
            self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.size())).collect();
        for (name, expected) in Encoder::shapes(sizes, *vocabulary as i64) {
            let shape = found.get(name.as_str()).with_context(|| format!("{WEIGHTS} lacks {name:?}"))?;
            ensure!(*shape == expected, "{WEIGHTS}: {name:?} has shape {shape:?}, {DESCRIPTION} asks for {expected:?}");
        }
        let pieces = pieces(&self.tokenizer).context(TOKENIZER)?;
        ensure!(pieces == *vocabulary, "{TOKENIZER} has {pieces} pieces, {DESCRIPTION} says {vocabulary}");
        Ok(())
    }
}

/// What a run begins with.
#[derive(Debug)]
pub struct Start {
    /// The encoder.
    pub description: Description,
    /// The text of its `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// Its weights, if they are not random.
    pub checkpoint: Option<Checkpoint>,
}

impl Start {
    /// Reads the encoder directory that the settings name, or the tokenizer for an encoder with random weights:
    /// `tokenizer`, or `tokenizer.json` here.
    ///
    /// # Errors
    /// When it cannot be read, or a tokenizer is given for an encoder that brings its own.
    pub fn new(encoder: &config::Encoder, tokenizer: Option<&Path>) -> Result<Self> {
        if let Some(from) = &encoder.from {
            ensure!(tokenizer.is_none(), "--tokenizer: leave it out, {} has its own", from.display());
            let mut checkpoint = Checkpoint::read(from)?;
            if let Some(length) = encoder.max_length {
                checkpoint.shorten(length)?;
            }
            let (description, tokenizer) = (checkpoint.description.clone(), checkpoint.tokenizer.clone());
            return Ok(Self { description, tokenizer, checkpoint: Some(checkpoint) });
        }
        let path = tokenizer.unwrap_or(Path::new(TOKENIZER));
        let sizes = encoder.sizes.clone().context("encoder.sizes: missing")?;
        let tokenizer = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let description = Description::random(sizes, &tokenizer).with_context(|| path.display().to_string())?;
        Ok(Self { description, tokenizer, checkpoint: None })
    }
}
