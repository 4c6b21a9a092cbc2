//! The heads of the paper (§2.1.2): from the hidden states of the encoder to the logits of one task.
//!
//! | head | layers between the encoder and the labels |
//! |---|---|
//! | `linear` | none |
//! | `bilstm`, `bigru` | one bidirectional recurrent layer of h a direction |
//! | `bilstm_attn`, `bigru_attn` | the same, then attention |
//!
//! The paper names an attention layer with a hidden size of 64 and 3 heads (§3.1.1) and gives no formula. Here it is
//! attention of the sentence to itself over the recurrent outputs R \[T, 2h\]: queries, keys and values of 3 · 64,
//! 64 for each head as sizes of attention are given elsewhere, and the result added to what went in,
//! R + Attention(R) Wₒ. The sum lets the head begin as the recurrent head that it extends: without it the labels would
//! have to come through attention weights that at first mean nothing.

use tch::nn::{self, Init};
use tch::{Device, Kind, Tensor};

use super::Batch;
use super::layers::{Attention, Linear};
use crate::config::{self, HeadKind, Input};

/// From the hidden states to the logits of one task.
#[derive(Debug)]
pub struct Head {
    /// Its mix of all states; `None` reads the last layer alone.
    pub mix: Option<Mix>,
    /// Its recurrent layer, if it has one.
    pub recurrent: Option<Recurrent>,
    /// Its attention layer, if it has one.
    pub attention: Option<Attention>,
    /// To the labels.
    pub output: Linear,
    dropout: f64,
}

/// The learned mix of the embeddings and all layers, B = γ (w₀ E + Σ wᵢ hᵢ): §2.1.1 of the paper, with w the softmax
/// of free parameters as in Peters et al. 2018, which it follows.
#[derive(Debug)]
pub struct Mix {
    weights: Tensor,
    gamma: Tensor,
}

/// The unit of a recurrent layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Long short-term memory, gates i, f, g, o.
    Lstm,
    /// Gated recurrent unit, gates r, z, n.
    Gru,
}

/// A bidirectional recurrent layer.
#[derive(Debug)]
pub struct Recurrent {
    /// Its unit; G gates.
    pub cell: Cell,
    /// For each direction: input weights \[G·h, H\], recurrent weights \[G·h, h\] and their biases \[G·h\].
    pub parameters: [[Tensor; 4]; 2],
    /// Width of a direction, h.
    pub hidden: i64,
}

impl Head {
    /// Makes the variables of a head with so many `labels` on an encoder of `layers` layers of width `width`.
    pub fn new(path: &nn::Path, (layers, width): (i64, i64), config: &config::Head, labels: i64) -> Self {
        let cell = match config.kind {
            HeadKind::Linear => None,
            HeadKind::Bilstm | HeadKind::BilstmAttn => Some(Cell::Lstm),
            HeadKind::Bigru | HeadKind::BigruAttn => Some(Cell::Gru),
        };
        let recurrent = cell.map(|cell| Recurrent::new(&(path / "recurrent"), cell, width, config.hidden));
        let width = if recurrent.is_some() { 2 * config.hidden } else { width };
        let attention = matches!(config.kind, HeadKind::BilstmAttn | HeadKind::BigruAttn).then(|| {
            let (heads, each) = (config.attention_heads, config.attention_hidden);
            Attention::new(&(path / "attention"), width, (heads, heads * each), 1.0)
        });
        Self {
            mix: (config.input == Input::Mix).then(|| Mix::new(&(path / "mix"), layers + 1)),
            recurrent,
            attention,
            output: Linear::new(&(path / "output"), width, labels),
            dropout: config.dropout,
        }
    }

    /// Logits [U, labels] from the states of [`super::Encoder::forward`].
    pub fn forward(&self, batch: &Batch, states: &[Tensor], train: bool) -> Tensor {
        let drop = |x: Tensor| x.dropout(self.dropout, train);
        let mut rows = drop(match &self.mix {
            Some(mix) => mix.forward(states),
            None => states[states.len() - 1].shallow_clone(),
        });
        if let Some(recurrent) = &self.recurrent {
            rows = drop(recurrent.forward(batch, &rows));
        }
        if let Some(attention) = &self.attention {
            rows = &rows + drop(attention.forward(batch, &rows, 0.0));
        }
        self.output.forward(&rows.index_select(0, &batch.word_index))
    }
}

impl Mix {
    fn new(path: &nn::Path, states: i64) -> Self {
        Self { weights: path.zeros("weights", &[states]), gamma: path.ones("gamma", &[1]) }
    }

    /// γ wᵢ, the factor of every state.
    pub fn factors(&self) -> Tensor {
        self.weights.softmax(0, Kind::Float) * &self.gamma
    }

    fn forward(&self, states: &[Tensor]) -> Tensor {
        let factors = self.factors();
        let parts = states.iter().enumerate().map(|(i, state)| state * factors.get(i as i64));
        parts.reduce(|sum, part| sum + part).expect("the embeddings are always there")
    }
}

impl Cell {
    /// Number of gates, G.
    pub fn gates(self) -> i64 {
        match self {
            Cell::Lstm => 4,
            Cell::Gru => 3,
        }
    }
}

impl Recurrent {
    fn new(path: &nn::Path, cell: Cell, inputs: i64, hidden: i64) -> Self {
        let bound = 1.0 / (hidden as f64).sqrt();
        let uniform = Init::Uniform { lo: -bound, up: bound };
        let parameters = ["forward", "backward"].map(|direction| {
            let (path, gates) = (path / direction, cell.gates() * hidden);
            [
                path.var("input_weight", &[gates, inputs], uniform),
                path.var("recurrent_weight", &[gates, hidden], uniform),
                path.var("input_bias", &[gates], uniform),
                path.var("recurrent_bias", &[gates], uniform),
            ]
        });
        Self { cell, parameters, hidden }
    }

    /// Rows [T, H] to rows [T, 2h]; the backward direction starts at the last token of each sequence.
    fn forward(&self, batch: &Batch, rows: &Tensor) -> Tensor {
        let padded = batch.pad(rows);
        let (sequences, width) = (padded.size()[0], padded.size()[1]);
        // libtorch wants the longest sequence first, and the lengths on the CPU.
        let (lengths, order) = batch.lengths.sort(0, true);
        let lengths = lengths.to_device(Device::Cpu);
        let (data, sizes) = padded.index_select(0, &order).internal_pack_padded_sequence(&lengths, true);
        let start = Tensor::zeros([2, sequences, self.hidden], (rows.kind(), rows.device()));
        let parameters: Vec<&Tensor> = self.parameters.iter().flatten().collect();
        let found = match self.cell {
            Cell::Gru => Tensor::gru_data(&data, &sizes, &start, &parameters, true, 1, 0.0, false, true).0,
            Cell::Lstm => {
                let start = [&start, &start];
                Tensor::lstm_data(&data, &sizes, &start, &parameters, true, 1, 0.0, false, true).0
            }
        };
        let (found, _) = Tensor::internal_pad_packed_sequence(&found, &sizes, true, 0.0, width);
        batch.unpad(&found.index_select(0, &order.argsort(0, false)))
    }
}
