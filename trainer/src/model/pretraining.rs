//! The heads that an encoder is pretrained with; names and shapes are those of BERT and ELECTRA.

use tch::Tensor;
use tch::nn;

use super::layers::{Linear, Norm};
use crate::config::Sizes;

/// Fills in masked tokens: the logits of piece u at a state h are x_uᵀ t(h) + b_u, with x the word embeddings (tied) and
/// t a linear layer, the activation and a norm. Their softmax is p_G of §2.2 of the paper.
#[derive(Debug)]
pub struct MlmHead {
    /// H to the embedding width.
    pub dense: Linear,
    /// Norm after the activation.
    pub norm: Norm,
    /// \[vocabulary\].
    pub bias: Tensor,
}

/// Tells replaced tokens from original ones: D = σ(wᵀ t(h) + b) of §2.2 of the paper, with t a linear layer and the
/// activation, as in the ELECTRA that was published.
#[derive(Debug)]
pub struct Discriminator {
    /// H to H.
    pub dense: Linear,
    /// w and b, \[1, H\].
    pub output: Linear,
}

impl MlmHead {
    /// Makes the variables, for states of these sizes.
    pub fn new(path: &nn::Path, sizes: &Sizes, vocabulary: i64) -> Self {
        Self {
            dense: Linear::new(&(path / "dense"), sizes.hidden, sizes.embedding),
            norm: Norm::new(&(path / "norm"), sizes.embedding, sizes.norm_epsilon),
            bias: path.zeros("bias", &[vocabulary]),
        }
    }

    /// States [M, H] to logits [M, vocabulary]; `word` are the embeddings of the encoder.
    pub fn forward(&self, states: &Tensor, word: &Tensor) -> Tensor {
        let rows = self.norm.forward(&self.dense.forward(states).gelu("none"));
        rows.linear(word, Some(&self.bias))
    }
}

impl Discriminator {
    /// Makes the variables, for states of width `hidden`.
    pub fn new(path: &nn::Path, hidden: i64) -> Self {
        Self {
            dense: Linear::new(&(path / "dense"), hidden, hidden),
            output: Linear::new(&(path / "output"), hidden, 1),
        }
    }

    /// States [T, H] to the logits \[T\] of being replaced.
    pub fn forward(&self, states: &Tensor) -> Tensor {
        self.output.forward(&self.dense.forward(states).gelu("none")).squeeze_dim(1)
    }
}
