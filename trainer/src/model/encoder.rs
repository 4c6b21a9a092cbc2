//! The encoder: learned word and position embeddings, layers normalised after each part (Devlin et al. 2019).
//!
//! BERT and ELECTRA's discriminator are one architecture: they differ in how they are pretrained, and in that the
//! embeddings of ELECTRA's small models are narrower than its layers.

use tch::nn::{self, Init};
use tch::{Device, Kind, Tensor};

use super::Batch;
use super::layers::{Attention, Linear, Norm};
use crate::config::Sizes;

/// Spread of new embeddings (as in BERT).
const EMBEDDING_STDEV: f64 = 0.02;

/// The name of the position embeddings.
pub const POSITIONS: &str = "embeddings.position";

/// An encoder of width H.
#[derive(Debug)]
pub struct Encoder {
    /// Word embeddings \[vocabulary, embedding\].
    pub word: Tensor,
    /// Position embeddings \[max_length, embedding\]; BERT's embedding of the first segment is folded in.
    pub position: Tensor,
    /// Norm of their sum.
    pub norm: Norm,
    /// From the embedding width to H, where they differ.
    pub projection: Option<Linear>,
    /// The layers.
    pub layers: Vec<Layer>,
    dropout: f64,
}

/// One layer of the encoder.
#[derive(Debug)]
pub struct Layer {
    /// Attention of the sequence to itself.
    pub attention: Attention,
    /// Norm after attention.
    pub attention_norm: Norm,
    /// H to the feed-forward width.
    pub ffn_in: Linear,
    /// And back.
    pub ffn_out: Linear,
    /// Norm after the feed-forward part.
    pub ffn_norm: Norm,
}

impl Encoder {
    /// Makes the variables with random values; `dropout` is the probability of dropping a value in training.
    pub fn new(path: &nn::Path, sizes: &Sizes, vocabulary: i64, dropout: f64) -> Self {
        let embeddings = path / "embeddings";
        let spread = Init::Randn { mean: 0.0, stdev: EMBEDDING_STDEV };
        let word = embeddings.var("word", &[vocabulary, sizes.embedding], spread);
        let position = embeddings.var_copy("position", &waves(sizes.max_length as i64, sizes.embedding));
        Self::on(path, sizes, (word, position), dropout)
    }

    /// An encoder that shares its word and position embeddings with `other`, of the same embedding width.
    pub fn tied(path: &nn::Path, sizes: &Sizes, other: &Encoder, dropout: f64) -> Self {
        Self::on(path, sizes, (other.word.shallow_clone(), other.position.shallow_clone()), dropout)
    }

    /// Names and shapes of the variables of an encoder that shares none.
    pub fn shapes(sizes: &Sizes, vocabulary: i64) -> Vec<(String, Vec<i64>)> {
        let (embedding, hidden, ffn) = (sizes.embedding, sizes.hidden, sizes.ffn);
        let linear = |name: String, inputs, outputs| {
            [(format!("{name}.weight"), vec![outputs, inputs]), (format!("{name}.bias"), vec![outputs])]
        };
        let norm = |name: String, width| ["weight", "bias"].map(|part| (format!("{name}.{part}"), vec![width]));
        let mut shapes = vec![
            ("embeddings.word".to_owned(), vec![vocabulary, embedding]),
            (POSITIONS.to_owned(), vec![sizes.max_length as i64, embedding]),
        ];
        shapes.extend(norm("embeddings.norm".into(), embedding));
        if embedding != hidden {
            shapes.extend(linear("embeddings.projection".into(), embedding, hidden));
        }
        for layer in (0..sizes.layers).map(|i| format!("layers.{i}")) {
            shapes.extend(linear(format!("{layer}.attention.input"), hidden, 3 * hidden));
            shapes.extend(linear(format!("{layer}.attention.output"), hidden, hidden));
            shapes.extend(norm(format!("{layer}.attention_norm"), hidden));
            shapes.extend(linear(format!("{layer}.ffn_in"), hidden, ffn));
            shapes.extend(linear(format!("{layer}.ffn_out"), ffn, hidden));
            shapes.extend(norm(format!("{layer}.ffn_norm"), hidden));
        }
        shapes
    }

    fn on(path: &nn::Path, sizes: &Sizes, (word, position): (Tensor, Tensor), dropout: f64) -> Self {
        let (embedding, hidden) = (sizes.embedding, sizes.hidden);
        let embeddings = path / "embeddings";
        Self {
            word,
            position,
            norm: Norm::new(&(&embeddings / "norm"), embedding, sizes.norm_epsilon),
            projection: (embedding != hidden).then(|| Linear::new(&(&embeddings / "projection"), embedding, hidden)),
            layers: (0..sizes.layers).map(|i| Layer::new(&(path / "layers" / i), sizes)).collect(),
            dropout,
        }
    }

    /// The embeddings and the output of every layer, each [T, H].
    pub fn forward(&self, batch: &Batch, train: bool) -> Vec<Tensor> {
        self.forward_from(batch, &self.embed(batch), train)
    }

    /// Word and position embeddings, summed, [T, embedding].
    pub fn embed(&self, batch: &Batch) -> Tensor {
        let word = Tensor::embedding(&self.word, &batch.input_ids, -1, false, false);
        word + Tensor::embedding(&self.position, &batch.position_ids, -1, false, false)
    }

    /// As [`Encoder::forward`], from what [`Encoder::embed`] gave.
    pub fn forward_from(&self, batch: &Batch, embeddings: &Tensor, train: bool) -> Vec<Tensor> {
        let embedded = self.norm.forward(embeddings).dropout(self.dropout, train);
        let mut states = vec![match &self.projection {
            Some(projection) => projection.forward(&embedded),
            None => embedded,
        }];
        let dropout = if train { self.dropout } else { 0.0 };
        for layer in &self.layers {
            let output = layer.forward(batch, &states[states.len() - 1], dropout);
            states.push(output);
        }
        states
    }
}

/// What position embeddings [positions, width] begin as: the sinusoids of Vaswani et al. (2017, §3.5), as large as the
/// other embeddings. With random ones a model must first learn for each position which one is next to it, and little
/// text is used up before it looks beyond single words.
fn waves(positions: i64, width: i64) -> Tensor {
    let even = Tensor::arange_start_step(0, width, 2, (Kind::Float, Device::Cpu));
    let frequencies = (even * (-(10_000f64.ln()) / width as f64)).exp();
    let angles = Tensor::arange(positions, (Kind::Float, Device::Cpu)).unsqueeze(1) * frequencies.unsqueeze(0);
    let waves = Tensor::stack(&[angles.sin(), angles.cos()], 2).view([positions, -1]).narrow(1, 0, width);
    waves * (EMBEDDING_STDEV * std::f64::consts::SQRT_2)
}

impl Layer {
    fn new(path: &nn::Path, sizes: &Sizes) -> Self {
        let (hidden, ffn) = (sizes.hidden, sizes.ffn);
        // What the 2 · layers parts add to the states grows no faster than the states (Radford et al. 2019, §2.3):
        // otherwise the words are lost on the way up, and a deep encoder learns nothing for long.
        let factor = 1.0 / (2.0 * sizes.layers as f64).sqrt();
        let norm = |name: &str| Norm::new(&(path / name), hidden, sizes.norm_epsilon);
        Self {
            attention: Attention::new(&(path / "attention"), hidden, (sizes.heads, hidden), factor),
            attention_norm: norm("attention_norm"),
            ffn_in: Linear::new(&(path / "ffn_in"), hidden, ffn),
            ffn_out: Linear::scaled(&(path / "ffn_out"), ffn, hidden, factor),
            ffn_norm: norm("ffn_norm"),
        }
    }

    fn forward(&self, batch: &Batch, input: &Tensor, dropout: f64) -> Tensor {
        let drop = |x: Tensor| x.dropout(dropout, dropout > 0.0);
        let found = drop(self.attention.forward(batch, &input.to_kind(batch.kind), dropout));
        let middle = self.attention_norm.forward(&(input + found));
        let wide = self.ffn_in.forward(&middle.to_kind(batch.kind)).gelu("none");
        self.ffn_norm.forward(&(&middle + drop(self.ffn_out.forward(&wide))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_positions_are_sines_and_cosines_of_falling_frequency() {
        let found = Vec::<Vec<f64>>::try_from(waves(3, 5) / (EMBEDDING_STDEV * 2f64.sqrt())).unwrap();
        for (position, row) in found.iter().enumerate() {
            let angle = |pair: f64| position as f64 / 10_000f64.powf(2.0 * pair / 5.0);
            let expected = [angle(0.0).sin(), angle(0.0).cos(), angle(1.0).sin(), angle(1.0).cos(), angle(2.0).sin()];
            assert!(row.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{row:?} for {expected:?}");
        }
    }
}
