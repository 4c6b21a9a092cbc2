//! What is learnt: to fill in masked tokens, or to tell replaced ones.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::corpus::Example;
use crate::model::Batch;

/// An [`Example`] as tensors.
#[derive(Debug)]
pub struct Inputs {
    /// The masked sequences, T tokens.
    pub batch: Batch,
    /// Row in T of every masked token, \[M\].
    pub rows: Tensor,
    /// What stood there, \[M\].
    pub originals: Tensor,
}

/// An objective with its variables.
pub trait Objective {
    /// Its loss on a batch, after so many steps, and the parts of that by name.
    fn loss(&self, inputs: &Inputs, step: u64) -> (Tensor, Vec<(&'static str, f64)>);

    /// Adds what it does on a batch of held-out text, without dropout and gradients.
    fn score(&self, inputs: &Inputs, scores: &mut Scores);
}

/// Counts on held-out text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// Masked tokens.
    pub masked: Filled,
    /// All tokens, for ELECTRA.
    pub replaced: Option<Detected>,
}

/// Masked tokens that were filled in.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Filled {
    tokens: f64,
    right: f64,
    /// Sum of the losses.
    loss: f64,
}

/// Tokens that were judged replaced or original.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Detected {
    tokens: f64,
    replaced: f64,
    found: f64,
    right: f64,
    /// Sum of the losses.
    loss: f64,
}

impl Inputs {
    /// Makes the tensors; the layers multiply in `kind`.
    pub fn new(example: &Example, device: Device, kind: Kind) -> Self {
        Self {
            batch: Batch::new(&example.packed, device).in_kind(kind),
            rows: Tensor::from_slice(&example.rows).to_device(device),
            originals: Tensor::from_slice(&example.originals).to_device(device),
        }
    }
}

impl Filled {
    /// Adds masked tokens: logits [M, vocabulary] and the ids that stood there.
    pub fn add(&mut self, logits: &Tensor, originals: &Tensor) {
        let tokens = originals.size1().expect("a list of ids") as f64;
        self.tokens += tokens;
        self.right += logits.argmax(1, false).eq_tensor(originals).sum(Kind::Double).double_value(&[]);
        self.loss += logits.cross_entropy_for_logits(originals).double_value(&[]) * tokens;
    }
}

impl Detected {
    /// Adds tokens: logits \[T\] of being replaced, and whether they are.
    pub fn add(&mut self, logits: &Tensor, replaced: &Tensor) {
        let count = |which: &Tensor| which.sum(Kind::Double).double_value(&[]);
        let found = logits.gt(0.0);
        self.tokens += replaced.numel() as f64;
        self.replaced += count(replaced);
        self.found += count(&found);
        self.right += count(&found.logical_and(replaced));
        self.loss += super::electra::detection_loss(logits, replaced).double_value(&[]) * replaced.numel() as f64;
    }
}

impl Scores {
    /// The measures by name.
    pub fn measures(&self) -> BTreeMap<String, f64> {
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let Filled { tokens, right, loss } = self.masked;
        let mut measures = BTreeMap::from([
            ("masked_accuracy".to_owned(), share(right, tokens)),
            ("masked_loss".to_owned(), share(loss, tokens)),
        ]);
        if let Some(Detected { tokens, replaced, found, right, loss }) = self.replaced {
            let (precision, recall) = (share(right, found), share(right, replaced));
            measures.extend([
                ("replaced_share".to_owned(), share(replaced, tokens)),
                ("replaced_precision".to_owned(), precision),
                ("replaced_recall".to_owned(), recall),
                ("replaced_f1".to_owned(), share(2.0 * precision * recall, precision + recall)),
                ("replaced_loss".to_owned(), share(loss, tokens)),
            ]);
        }
        measures
    }
}
