//! The encoder, the heads, and how they are computed: packed, without padding but around attention and recurrence.
//!
//! T tokens in all sequences of a batch, B sequences, S tokens in the longest, U units, H the hidden width.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use tch::nn::{self, Init, VarStore};
use tch::{Device, Kind, Tensor};
use vitag::pack::Packed;

use crate::config;

/// Epsilon of the layer norms (as in BERT).
pub const NORM_EPSILON: f64 = 1e-12;

/// Spread of new embeddings (as in BERT).
const EMBEDDING_STDEV: f64 = 0.02;

/// The tensors of a [`Packed`] batch.
#[derive(Debug)]
pub struct Batch {
    input_ids: Tensor,
    position_ids: Tensor,
    pad_index: Tensor,
    unpad_index: Tensor,
    lengths: Tensor,
    word_index: Tensor,
}

/// An encoder with one head for each task.
#[derive(Debug)]
pub struct Tagger {
    /// The encoder.
    pub encoder: Encoder,
    /// The heads, in the order of the tasks.
    pub heads: Vec<Head>,
}

/// A BERT encoder: learned word and position embeddings, layers normalised after each part.
#[derive(Debug)]
pub struct Encoder {
    /// Word embeddings \[vocabulary, embedding\].
    pub word: Tensor,
    /// Position embeddings \[max_length, embedding\].
    pub position: Tensor,
    /// Norm of their sum.
    pub norm: Norm,
    /// From the embedding width to H, where they differ.
    pub projection: Option<Linear>,
    /// The layers.
    pub layers: Vec<Layer>,
    /// Attention heads.
    pub attention_heads: i64,
    dropout: f64,
}

/// One layer of the encoder.
#[derive(Debug)]
pub struct Layer {
    /// Queries, keys and values, [3H, H].
    pub attention_in: Linear,
    /// What attention found, back to H.
    pub attention_out: Linear,
    /// Norm after attention.
    pub attention_norm: Norm,
    /// H to the feed-forward width.
    pub ffn_in: Linear,
    /// And back.
    pub ffn_out: Linear,
    /// Norm after the feed-forward part.
    pub ffn_norm: Norm,
}

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
}

/// From the hidden states to the logits of one task.
#[derive(Debug)]
pub struct Head {
    /// What it reads of the encoder.
    pub mix: Mix,
    /// Its recurrent layer, if it has one.
    pub recurrent: Option<BiGru>,
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

/// A bidirectional GRU of one layer.
#[derive(Debug)]
pub struct BiGru {
    /// For each direction: input weights \[3h, H\], recurrent weights \[3h, h\] and their biases \[3h\]; gates r, z, n.
    pub parameters: [[Tensor; 4]; 2],
    /// Width of a direction, h.
    pub hidden: i64,
}

impl Batch {
    /// Makes the tensors.
    pub fn new(packed: &Packed, device: Device) -> Self {
        let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        Self {
            input_ids: tensor(&packed.input_ids),
            position_ids: tensor(&packed.position_ids),
            pad_index: tensor(&packed.pad_index).view([-1, packed.width as i64]),
            unpad_index: tensor(&packed.unpad_index),
            lengths: Tensor::from_slice(&packed.lengths).to_kind(Kind::Int64).to_device(device),
            word_index: tensor(&packed.word_index),
        }
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

    /// True where the padded view holds a token, [B, 1, 1, S].
    fn mask(&self) -> Tensor {
        let width = self.pad_index.size()[1];
        let slots = Tensor::arange(width, (Kind::Int64, self.lengths.device()));
        slots.unsqueeze(0).lt_tensor(&self.lengths.unsqueeze(1)).view([-1, 1, 1, width])
    }
}

impl Tagger {
    /// Makes the variables of a model with `vocabulary` pieces and, for each task of `config`, as many labels as
    /// `labels` says.
    pub fn new(store: &VarStore, config: &config::Config, vocabulary: usize, labels: &[usize]) -> Self {
        let root = store.root();
        let encoder = Encoder::new(&(&root / "encoder"), &config.encoder, vocabulary as i64);
        let head = |(task, &labels): (&config::TaskConfig, &usize)| {
            Head::new(&(&root / "heads" / &task.name), &config.encoder, &task.head, labels as i64)
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

impl Encoder {
    fn new(path: &nn::Path, config: &config::Encoder, vocabulary: i64) -> Self {
        let (embedding, hidden) = (config.embedding, config.hidden);
        let embeddings = path / "embeddings";
        let table = |name: &str, rows| embeddings.randn(name, &[rows, embedding], 0.0, EMBEDDING_STDEV);
        Self {
            word: table("word", vocabulary),
            position: table("position", config.max_length as i64),
            norm: Norm::new(&(&embeddings / "norm"), embedding),
            projection: (embedding != hidden).then(|| Linear::new(&(&embeddings / "projection"), embedding, hidden)),
            layers: (0..config.layers).map(|i| Layer::new(&(path / "layers" / i), config)).collect(),
            attention_heads: config.heads,
            dropout: config.dropout,
        }
    }

    /// The embeddings and the output of every layer, each [T, H].
    fn forward(&self, batch: &Batch, train: bool) -> Vec<Tensor> {
        let word = Tensor::embedding(&self.word, &batch.input_ids, -1, false, false);
        let position = Tensor::embedding(&self.position, &batch.position_ids, -1, false, false);
        let embedded = self.norm.forward(&(word + position)).dropout(self.dropout, train);
        let mut states = vec![match &self.projection {
            Some(projection) => projection.forward(&embedded),
            None => embedded,
        }];
        let mask = batch.mask();
        for layer in &self.layers {
            let input = &states[states.len() - 1];
            let drop = |x: Tensor| x.dropout(self.dropout, train);
            let found = drop(layer.attention_out.forward(&self.attention(layer, input, batch, &mask, train)));
            let middle = layer.attention_norm.forward(&(input + found));
            let wide = layer.ffn_in.forward(&middle).gelu("none");
            states.push(layer.ffn_norm.forward(&(&middle + drop(layer.ffn_out.forward(&wide)))));
        }
        states
    }

    fn attention(&self, layer: &Layer, input: &Tensor, batch: &Batch, mask: &Tensor, train: bool) -> Tensor {
        let padded = batch.pad(&layer.attention_in.forward(input));
        let (sequences, width) = (padded.size()[0], padded.size()[1]);
        let parts = padded.view([sequences, width, 3, self.attention_heads, -1]).permute([2, 0, 3, 1, 4]);
        let (query, key, value) = (parts.get(0), parts.get(1), parts.get(2));
        let dropout = if train { self.dropout } else { 0.0 };
        let found = Tensor::scaled_dot_product_attention(&query, &key, &value, Some(mask), dropout, false, None, false);
        batch.unpad(&found.transpose(1, 2).reshape([sequences, width, -1]))
    }
}

impl Layer {
    fn new(path: &nn::Path, config: &config::Encoder) -> Self {
        let (hidden, ffn) = (config.hidden, config.ffn);
        Self {
            attention_in: Linear::new(&(path / "attention_in"), hidden, 3 * hidden),
            attention_out: Linear::new(&(path / "attention_out"), hidden, hidden),
            attention_norm: Norm::new(&(path / "attention_norm"), hidden),
            ffn_in: Linear::new(&(path / "ffn_in"), hidden, ffn),
            ffn_out: Linear::new(&(path / "ffn_out"), ffn, hidden),
            ffn_norm: Norm::new(&(path / "ffn_norm"), hidden),
        }
    }
}

impl Linear {
    /// Weights as Glorot and Bengio 2010 spread them: BERT's 0.02 suits its width and stalls a narrow encoder that
    /// starts from nothing.
    fn new(path: &nn::Path, inputs: i64, outputs: i64) -> Self {
        let stdev = (2.0 / (inputs + outputs) as f64).sqrt();
        Self { weight: path.randn("weight", &[outputs, inputs], 0.0, stdev), bias: path.zeros("bias", &[outputs]) }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }
}

impl Norm {
    fn new(path: &nn::Path, width: i64) -> Self {
        Self { weight: path.ones("weight", &[width]), bias: path.zeros("bias", &[width]) }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), NORM_EPSILON, true)
    }
}

impl Head {
    fn new(path: &nn::Path, encoder: &config::Encoder, config: &config::Head, labels: i64) -> Self {
        let (recurrent, width, dropout) = match *config {
            config::Head::Linear { dropout } => (None, encoder.hidden, dropout),
            config::Head::Bigru { hidden, dropout } => {
                (Some(BiGru::new(&(path / "gru"), encoder.hidden, hidden)), 2 * hidden, dropout)
            }
        };
        let output = Linear::new(&(path / "output"), width, labels);
        Self { mix: Mix::new(&(path / "mix"), encoder.layers + 1), recurrent, output, dropout }
    }

    fn forward(&self, batch: &Batch, states: &[Tensor], train: bool) -> Tensor {
        let mixed = self.mix.forward(states).dropout(self.dropout, train);
        let rows = match &self.recurrent {
            Some(gru) => gru.forward(batch, &mixed).dropout(self.dropout, train),
            None => mixed,
        };
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

impl BiGru {
    fn new(path: &nn::Path, inputs: i64, hidden: i64) -> Self {
        let bound = 1.0 / (hidden as f64).sqrt();
        let uniform = Init::Uniform { lo: -bound, up: bound };
        let parameters = ["forward", "backward"].map(|direction| {
            let (path, gates) = (path / direction, 3 * hidden);
            [
                path.var("input_weight", &[gates, inputs], uniform),
                path.var("recurrent_weight", &[gates, hidden], uniform),
                path.var("input_bias", &[gates], uniform),
                path.var("recurrent_bias", &[gates], uniform),
            ]
        });
        Self { parameters, hidden }
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
        let (found, _) = Tensor::gru_data(&data, &sizes, &start, &parameters, true, 1, 0.0, false, true);
        let (found, _) = Tensor::internal_pad_packed_sequence(&found, &sizes, true, 0.0, width);
        batch.unpad(&found.index_select(0, &order.argsort(0, false)))
    }
}

/// The variables of a model by name, in the order of their names.
pub fn variables(store: &VarStore) -> Vec<(String, Tensor)> {
    let mut named: Vec<_> = store.variables().into_iter().collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    named
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
