//! The parts that encoder and heads are made of.

use tch::nn;
use tch::{Device, Kind, Tensor};

use super::Batch;

/// A linear layer.
#[derive(Debug)]
pub struct Linear {
    /// \[out, in\].
    pub weight: Tensor,
    /// \[out\].
    pub bias: Tensor,
}

/// A layer norm.
#[derive(Debug)]
pub struct Norm {
    /// Gain.
    pub weight: Tensor,
    /// Offset.
    pub bias: Tensor,
    /// What keeps the division from zero.
    pub epsilon: f64,
}

/// Attention of each sequence to itself with several heads (Vaswani et al. 2017), A = heads × width of one.
#[derive(Debug)]
pub struct Attention {
    /// Queries, keys and values, \[3A, in\].
    pub input: Linear,
    /// What attention found, \[out, A\].
    pub output: Linear,
    /// Number of heads.
    pub heads: i64,
}

impl Linear {
    /// Weights as Glorot and Bengio 2010 spread them: BERT's 0.02 suits its width and stalls a narrow encoder that
    /// starts from nothing.
    pub fn new(path: &nn::Path, inputs: i64, outputs: i64) -> Self {
        Self::scaled(path, inputs, outputs, 1.0)
    }

    /// [`Linear::new`] with weights smaller by a factor.
    pub fn scaled(path: &nn::Path, inputs: i64, outputs: i64, factor: f64) -> Self {
        let stdev = (2.0 / (inputs + outputs) as f64).sqrt() * factor;
        Self { weight: path.randn("weight", &[outputs, inputs], 0.0, stdev), bias: path.zeros("bias", &[outputs]) }
    }

    /// Rows \[T, in\] to rows \[T, out\], computed in the kind of `x`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        x.linear(&self.weight.to_kind(kind), Some(self.bias.to_kind(kind)))
    }
}

impl Norm {
    /// Gain one, offset zero.
    pub fn new(path: &nn::Path, width: i64, epsilon: f64) -> Self {
        Self { weight: path.ones("weight", &[width]), bias: path.zeros("bias", &[width]), epsilon }
    }

    /// Every row to mean zero and variance one, then gain and offset.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.epsilon, true)
    }
}

impl Attention {
    /// From rows of `width` back to rows of `width`, over `heads` heads of `attended / heads`; `factor` makes the output
    /// smaller at first.
    pub fn new(path: &nn::Path, width: i64, (heads, attended): (i64, i64), factor: f64) -> Self {
        let input = Linear::new(&(path / "input"), width, 3 * attended);
        Self { input, output: Linear::scaled(&(path / "output"), attended, width, factor), heads }
    }

    /// Rows [T, in] to rows [T, out]; `dropout` acts on the weights of attention, 0 outside training.
    pub fn forward(&self, batch: &Batch, rows: &Tensor, dropout: f64) -> Tensor {
        // Cut up by heads the matrices are small, and a processor multiplies small ones faster in f32.
        let kind = if rows.device() == Device::Cpu { Kind::Float } else { rows.kind() };
        let padded = batch.pad(&self.input.forward(rows).to_kind(kind));
        let (sequences, width) = (padded.size()[0], padded.size()[1]);
        let parts = padded.view([sequences, width, 3, self.heads, -1]).permute([2, 0, 3, 1, 4]);
        let (query, key, value) = (parts.get(0), parts.get(1), parts.get(2));
        let mask = Some(&batch.mask);
        let found = Tensor::scaled_dot_product_attention(&query, &key, &value, mask, dropout, false, None, false);
        let found = batch.unpad(&found.transpose(1, 2).reshape([sequences, width, -1]));
        self.output.forward(&found.to_kind(rows.kind()))
    }
}
