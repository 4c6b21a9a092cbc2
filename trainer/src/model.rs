//! The encoder, the heads, and how they are computed: packed, without padding but around attention and recurrence.
//!
//! T tokens in all sequences of a batch, B sequences, S tokens in the longest, U units, H the hidden width.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use vitag::pack::Packed;

use crate::checkpoint::Description;
use crate::config;

mod encoder;
mod heads;
mod layers;
mod pretraining;

pub use encoder::{Encoder, Layer, POSITIONS};
pub use heads::{Cell, Head, Mix, Recurrent};
pub use layers::{Attention, Linear, Norm};
pub use pretraining::{Discriminator, MlmHead};

/// The tensors of a [`Packed`] batch.
#[derive(Debug)]
pub struct Batch {
    /// Token ids \[T\].
    pub input_ids: Tensor,
    position_ids: Tensor,
    pad_index: Tensor,
    unpad_index: Tensor,
    lengths: Tensor,
    word_index: Tensor,
    /// True where the padded view holds a token, [B, 1, 1, S].
    mask: Tensor,
    /// What the layers of the encoder multiply matrices in; norms and sums are always f32.
    kind: Kind,
}

/// An encoder with one head for each task.
#[derive(Debug)]
pub struct Tagger {
    /// The encoder.
    pub encoder: Encoder,
    /// The heads, in the order of the tasks.
    pub heads: Vec<Head>,
}

impl Batch {
    /// Makes the tensors.
    pub fn new(packed: &Packed, device: Device) -> Self {
        let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        let width = packed.width as i64;
        let lengths = Tensor::from_slice(&packed.lengths).to_kind(Kind::Int64).to_device(device);
        let slots = Tensor::arange(width, (Kind::Int64, device));
        Self {
            input_ids: tensor(&packed.input_ids),
            position_ids: tensor(&packed.position_ids),
            pad_index: tensor(&packed.pad_index).view([-1, width]),
            unpad_index: tensor(&packed.unpad_index),
            word_index: tensor(&packed.word_index),
            mask: slots.unsqueeze(0).lt_tensor(&lengths.unsqueeze(1)).view([-1, 1, 1, width]),
            lengths,
            kind: Kind::Float,
        }
    }

    /// The same sequences with other tokens, \[T\].
    pub fn with_ids(&self, input_ids: Tensor) -> Self {
        let same = Tensor::shallow_clone;
        Self {
            input_ids,
            position_ids: same(&self.position_ids),
            pad_index: same(&self.pad_index),
            unpad_index: same(&self.unpad_index),
            lengths: same(&self.lengths),
            word_index: same(&self.word_index),
            mask: same(&self.mask),
            kind: self.kind,
        }
    }

    /// The same, with matrix products computed in `kind`.
    pub fn in_kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// Rows [T, n] as the padded view [B, S, n].
    fn pad(&self, rows: &Tensor) -> Tensor {
        let (sequences, width) = (self.pad_index.size()[0], self.pad_index.size()[1]);
        rows.index_select(0, &self.pad_index.view([-1])).view([sequences, width, -1])
    }

    /// The padded view [B, S, n] as rows [T, n].
    fn unpad(&self, padded: &Tensor) -> Tensor {
        padded.reshape([-1, padded.size()[2]]).index_select(0, &self.unpad_index)
    }
}

impl Tagger {
    /// Makes the variables of a model on such an `encoder` and, for each task of `config`, as many labels as `labels`
    /// says.
    pub fn new(store: &VarStore, config: &config::Config, encoder: &Description, labels: &[usize]) -> Self {
        let (root, sizes, vocabulary) = (store.root(), &encoder.sizes, encoder.vocabulary as i64);
        let encoder = Encoder::new(&(&root / ENCODER), sizes, vocabulary, config.encoder.dropout);
        let head = |(task, &labels): (&config::TaskConfig, &usize)| {
            let path = &root / HEADS / &task.name;
            Head::new(&path, (sizes.layers, sizes.hidden), &task.head, labels as i64)
        };
        Self { encoder, heads: config.tasks.iter().zip(labels).map(head).collect() }
    }

    /// Logits [U, labels] of every head.
    pub fn forward(&self, batch: &Batch, train: bool) -> Vec<Tensor> {
        let states = self.encoder.forward(batch, train);
        self.heads.iter().map(|head| head.forward(batch, &states, train)).collect()
    }

    /// Logits [U, labels] of one head, without dropout and gradients.
    pub fn predict(&self, batch: &Batch, head: usize) -> Tensor {
        tch::no_grad(|| self.heads[head].forward(batch, &self.encoder.forward(batch, false), false))
    }
}

/// The first part of the name of the variables of a tagger's encoder.
pub const ENCODER: &str = "encoder";
/// And of those of its heads.
pub const HEADS: &str = "heads";

/// The variables of a model by name, in the order of their names.
pub fn variables(store: &VarStore) -> Vec<(String, Tensor)> {
    let mut named: Vec<_> = store.variables().into_iter().collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    named
}

/// The variables below `root`, by the rest of their names.
pub fn variables_below(store: &VarStore, root: &str) -> Vec<(String, Tensor)> {
    let rest = |name: &str| Some(name.strip_prefix(root)?.strip_prefix('.')?.to_owned());
    variables(store).into_iter().filter_map(|(name, tensor)| Some((rest(&name)?, tensor))).collect()
}

/// Copies the values of `tensors` into the `targets` of the same names.
///
/// # Errors
/// When one is missing or has another shape.
pub fn restore(targets: &[(String, Tensor)], tensors: &[(String, Tensor)]) -> Result<()> {
    let found: HashMap<&str, &Tensor> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    for (name, target) in targets {
        let tensor = found.get(name.as_str()).with_context(|| format!("the checkpoint lacks {name:?}"))?;
        let (expected, shape) = (target.size(), tensor.size());
        ensure!(shape == expected, "{name:?} has shape {shape:?} in the checkpoint, expected {expected:?}");
        tch::no_grad(|| target.shallow_clone().copy_(tensor));
    }
    Ok(())
}
