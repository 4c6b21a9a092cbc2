//! What pretraining keeps: all that is needed to go on, in one file, and the encoder as others use it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::checkpoint::{Checkpoint, Description};
use crate::fit;
use crate::model::{self, ENCODER};
use crate::optim::AdamW;

/// The last weights and the state of the optimiser.
pub const LAST: &str = "last.safetensors";
/// The encoder directory, as of the last checkpoint.
pub const ENCODER_DIR: &str = "encoder";
/// Name of [`Progress`] among the tensors: one file holds all of its parts, so that they always belong together.
const PROGRESS: &str = "progress";

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Tokens learnt from.
    pub tokens: u64,
    /// Time spent in them.
    pub seconds: f64,
    /// Tokens of the corpus.
    pub corpus: u64,
}

impl Progress {
    fn tensor(&self) -> Tensor {
        Tensor::from_slice(&[self.step as f64, self.tokens as f64, self.seconds, self.corpus as f64])
    }
}

/// Writes [`LAST`].
///
/// # Errors
/// When it cannot be written.
pub fn save(dir: &Path, store: &VarStore, optimizer: &AdamW, progress: &Progress) -> Result<()> {
    let mut tensors = model::variables(store);
    tensors.extend(optimizer.state());
    tensors.push((PROGRESS.into(), progress.tensor()));
    fit::save(&dir.join(LAST), &tensors)
}

/// Puts what [`save`] wrote into the variables and the optimiser.
///
/// # Errors
/// When there is none, it is of another model, or was made on a corpus of another size.
pub fn resume(dir: &Path, store: &VarStore, optimizer: &mut AdamW, corpus: u64) -> Result<Progress> {
    let path = dir.join(LAST);
    let read = || -> Result<Progress> {
        let tensors = Tensor::read_safetensors(&path)?;
        model::restore(&model::variables(store), &tensors)?;
        model::restore(&optimizer.state(), &tensors)?;
        let numbers = [(PROGRESS.into(), Tensor::zeros([4], (Kind::Double, Device::Cpu)))];
        model::restore(&numbers, &tensors)?;
        let numbers = Vec::<f64>::try_from(&numbers[0].1)?;
        let progress = Progress {
            step: numbers[0] as u64,
            tokens: numbers[1] as u64,
            seconds: numbers[2],
            corpus: numbers[3] as u64,
        };
        ensure!(
            progress.corpus == corpus,
            "it was made on {} tokens of text, the shards hold {corpus}",
            progress.corpus
        );
        Ok(progress)
    };
    let progress = read().with_context(|| format!("cannot resume from {}", path.display()))?;
    optimizer.step = progress.step as i64;
    Ok(progress)
}

/// Writes [`ENCODER_DIR`], the heads of pretraining in it.
///
/// # Errors
/// When it cannot be written.
pub fn write_encoder(dir: &Path, store: &VarStore, description: Description, tokenizer: Vec<u8>) -> Result<()> {
    let name = |name: String| match name.strip_prefix(ENCODER).and_then(|rest| rest.strip_prefix('.')) {
        Some(rest) => rest.to_owned(),
        None => name,
    };
    let mut tensors: Vec<_> = model::variables(store).into_iter().map(|(n, tensor)| (name(n), tensor)).collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    Checkpoint { description, tensors, tokenizer }.write(&dir.join(ENCODER_DIR))
}

/// Copies the encoder of `start` into the variables, and of its heads of pretraining those that are there. Returns the
/// names of the parts that keep their random values.
///
/// # Errors
/// When a tensor has another shape.
pub fn start_from(start: &Checkpoint, store: &VarStore) -> Result<Vec<String>> {
    start.restore(store, ENCODER)?;
    let mut random = Vec::new();
    for part in ["mlm", "generator", "discriminator"] {
        let variables: Vec<_> =
            model::variables(store).into_iter().filter(|(name, _)| name.starts_with(&format!("{part}."))).collect();
        let known = |name: &str| start.tensors.iter().any(|(other, _)| other == name);
        if variables.iter().all(|(name, _)| known(name)) {
            model::restore(&variables, &start.tensors)?;
        } else {
            random.push(part.to_owned());
        }
    }
    Ok(random)
}
