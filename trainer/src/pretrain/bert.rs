//! BERT: fill in masked words (§2.1.1 of the paper).

use tch::Tensor;
use tch::nn::VarStore;

use super::objective::{Inputs, Objective, Scores};
use crate::config::Sizes;
use crate::model::{ENCODER, Encoder, MlmHead};

/// The cross-entropy of the masked tokens, −1/M Σ log p(x_t | masked x).
#[derive(Debug)]
pub struct Bert {
    encoder: Encoder,
    head: MlmHead,
}

impl Bert {
    /// Makes the variables.
    pub fn new(store: &VarStore, sizes: &Sizes, vocabulary: i64, dropout: f64) -> Self {
        let root = store.root();
        Self {
            encoder: Encoder::new(&(&root / ENCODER), sizes, vocabulary, dropout),
            head: MlmHead::new(&(&root / "mlm"), sizes, vocabulary),
        }
    }

    fn logits(&self, inputs: &Inputs, train: bool) -> Tensor {
        fill_in(&self.encoder, &self.head, inputs, train)
    }
}

/// Logits [M, vocabulary] of the masked tokens.
pub(super) fn fill_in(encoder: &Encoder, head: &MlmHead, inputs: &Inputs, train: bool) -> Tensor {
    let states = encoder.forward(&inputs.batch, train);
    head.forward(&states[states.len() - 1].index_select(0, &inputs.rows), &encoder.word)
}

impl Objective for Bert {
    fn loss(&self, inputs: &Inputs, _step: u64) -> (Tensor, Vec<(&'static str, f64)>) {
        (self.logits(inputs, true).cross_entropy_for_logits(&inputs.originals), Vec::new())
    }

    fn score(&self, inputs: &Inputs, scores: &mut Scores) {
        scores.masked.add(&self.logits(inputs, false), &inputs.originals);
    }
}
