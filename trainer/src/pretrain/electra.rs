//! ELECTRA: tell replaced tokens from original ones (§2.2 of the paper, Clark et al. 2020).
//!
//! A small generator G fills in the masked tokens; its guesses, drawn from its softmax p_G, replace them. The encoder, as
//! the discriminator D, says of every token whether it was replaced. Both learn at once, on the sum over the text of
//!
//! L_MLM(G) + λ L_RTD(D), with
//! L_MLM = −1/M Σ_t∈masked log p_G(x_t | masked x) and
//! L_RTD = −1/T Σ_t [1(x̂_t = x_t) log (1 − D(x̂, t)) + 1(x̂_t ≠ x_t) log D(x̂, t)] over all T tokens,
//!
//! where x̂ is the text with the guesses and D here the probability of being replaced: the paper writes its complement. A
//! guess that equals the original counts as original. No gradient flows through the draw. λ is 50 unless set.
//!
//! G and D share their embeddings. λ L_RTD moves them a good deal more than L_MLM does, and while G has learnt nothing yet
//! that is no help to G. So they can be left to G for a while: `generator.head_start`.

use tch::nn::VarStore;
use tch::{Kind, Tensor};

use super::bert::fill_in;
use super::config::Generator;
use super::objective::{Detected, Inputs, Objective, Scores};
use crate::config::Sizes;
use crate::model::{Batch, Discriminator, ENCODER, Encoder, MlmHead};

/// Generator and discriminator.
#[derive(Debug)]
pub struct Electra {
    encoder: Encoder,
    discriminator: Discriminator,
    generator: Encoder,
    head: MlmHead,
    /// λ.
    weight: f64,
    /// Steps in which no gradient of the discriminator reaches the embeddings.
    head_start: u64,
}

impl Electra {
    /// Makes the variables; the generator shares the word and position embeddings of the encoder.
    pub fn new(store: &VarStore, sizes: &Sizes, generator: &Generator, vocabulary: i64, dropout: f64) -> Self {
        let root = store.root();
        let encoder = Encoder::new(&(&root / ENCODER), sizes, vocabulary, dropout);
        let path = &root / "generator";
        let small = generator.sizes(sizes);
        Self {
            generator: Encoder::tied(&path, &small, &encoder, dropout),
            head: MlmHead::new(&(&path / "mlm"), &small, vocabulary),
            discriminator: Discriminator::new(&(&root / "discriminator"), sizes.hidden),
            encoder,
            weight: generator.discriminator_weight,
            head_start: generator.head_start,
        }
    }

    /// The text with what is drawn from the generator's logits [M, vocabulary], and whether each token [T] was replaced.
    fn replace(inputs: &Inputs, guesses: &Tensor) -> (Batch, Tensor) {
        let (ids, replaced) = replace(&inputs.batch.input_ids, &inputs.rows, &inputs.originals, &draw(guesses));
        (inputs.batch.with_ids(ids), replaced)
    }

    /// Logits [T] of being replaced.
    fn detect(&self, batch: &Batch, embeddings: &Tensor, train: bool) -> Tensor {
        let states = self.encoder.forward_from(batch, embeddings, train);
        self.discriminator.forward(&states[states.len() - 1])
    }
}

/// One piece for every row of logits [M, vocabulary], drawn from their softmax.
fn draw(logits: &Tensor) -> Tensor {
    tch::no_grad(|| logits.detach().softmax(-1, Kind::Float).multinomial(1, true).squeeze_dim(1))
}

/// The text \[T\] with guesses \[M\] in the `rows` that were masked, and whether each token now differs from the original.
pub fn replace(masked: &Tensor, rows: &Tensor, originals: &Tensor, guesses: &Tensor) -> (Tensor, Tensor) {
    let original = masked.scatter(0, rows, originals);
    let ids = masked.scatter(0, rows, guesses);
    let replaced = ids.not_equal_tensor(&original);
    (ids, replaced)
}

/// L_RTD of logits \[T\] of being replaced.
pub fn detection_loss(logits: &Tensor, replaced: &Tensor) -> Tensor {
    let target = replaced.to_kind(Kind::Float);
    logits.binary_cross_entropy_with_logits::<Tensor>(&target, None, None, tch::Reduction::Mean)
}

impl Objective for Electra {
    fn loss(&self, inputs: &Inputs, step: u64) -> (Tensor, Vec<(&'static str, f64)>) {
        let guesses = fill_in(&self.generator, &self.head, inputs, true);
        let masked = guesses.cross_entropy_for_logits(&inputs.originals);
        let (batch, replaced) = Self::replace(inputs, &guesses);
        let embeddings = self.encoder.embed(&batch);
        let embeddings = if step < self.head_start { embeddings.detach() } else { embeddings };
        let logits = self.detect(&batch, &embeddings, true);
        let detection = detection_loss(&logits, &replaced);
        let parts = vec![("masked_loss", masked.double_value(&[])), ("replaced_loss", detection.double_value(&[]))];
        (masked + detection * self.weight, parts)
    }

    fn score(&self, inputs: &Inputs, scores: &mut Scores) {
        let guesses = fill_in(&self.generator, &self.head, inputs, false);
        scores.masked.add(&guesses, &inputs.originals);
        let (batch, replaced) = Self::replace(inputs, &guesses);
        let logits = self.detect(&batch, &self.encoder.embed(&batch), false);
        scores.replaced.get_or_insert_with(Detected::default).add(&logits, &replaced);
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;
    use vitag::pack::Packed;
    use vitag::tokenize::Window;

    use super::*;
    use crate::pretrain::corpus::Example;

    #[test]
    fn in_a_head_start_the_embeddings_learn_from_the_generator_alone() {
        let sizes =
            Sizes { max_length: 8, embedding: 8, hidden: 16, layers: 1, heads: 2, ffn: 16, norm_epsilon: 1e-12 };
        let generator =
            Generator { hidden: 8, layers: 1, heads: 2, ffn: 16, head_start: 3, discriminator_weight: 50.0 };
        let store = VarStore::new(Device::Cpu);
        let electra = Electra::new(&store, &sizes, &generator, 20, 0.0);
        let window = Window { keep: 0..3, units: 0..3, ids: vec![2, 10, 4, 12, 3], word_starts: vec![1, 2, 3] };
        let example = Example { packed: Packed::new([&window]), rows: vec![2], originals: vec![11] };
        let inputs = Inputs::new(&example, Device::Cpu, Kind::Float);
        let embeddings = [&electra.encoder.word, &electra.encoder.position];
        let gradients = |loss: Tensor| {
            store.variables().values_mut().for_each(Tensor::zero_grad);
            loss.backward();
            embeddings.map(|embeddings| embeddings.grad().copy())
        };
        let guesses = fill_in(&electra.generator, &electra.head, &inputs, true);
        let alone = gradients(guesses.cross_entropy_for_logits(&inputs.originals));
        for (step, same) in [(0, true), (2, true), (3, false)] {
            let found = gradients(electra.loss(&inputs, step).0);
            assert!(found.iter().zip(&alone).all(|(a, b)| a.allclose(b, 1e-5, 1e-7, false) == same), "step {step}");
            assert!(electra.discriminator.dense.weight.grad().abs().max().double_value(&[]) > 0.0);
        }
    }

    #[test]
    fn a_guess_that_equals_the_original_counts_as_original() {
        let masked = Tensor::from_slice(&[2i64, 4, 11, 4, 4, 3]);
        let rows = Tensor::from_slice(&[1i64, 3, 4]);
        let originals = Tensor::from_slice(&[10i64, 12, 13]);
        let guesses = Tensor::from_slice(&[10i64, 99, 13]);
        let (ids, replaced) = replace(&masked, &rows, &originals, &guesses);
        assert_eq!(Vec::<i64>::try_from(&ids).unwrap(), [2, 10, 11, 99, 13, 3]);
        assert_eq!(Vec::<bool>::try_from(&replaced).unwrap(), [false, false, false, true, false, false]);
    }

    #[test]
    fn guesses_are_drawn_by_their_probability() {
        let logits = Tensor::from_slice(&[0.0f32, 3.0f32.ln()]).view([1, 2]).repeat([4000, 1]);
        tch::manual_seed(1);
        let share = draw(&logits).mean(Kind::Double).double_value(&[]);
        // 3/4 expected: five standard deviations of 4,000 draws are 0.034.
        assert!((share - 0.75).abs() < 0.034, "{share}");
    }

    #[test]
    fn the_loss_of_detection_is_the_mean_over_all_tokens() {
        let logits = Tensor::from_slice(&[0.0f32, 2.0, -1.0]);
        let replaced = Tensor::from_slice(&[false, true, false]);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let expected = -(sigmoid(0.0).ln() + sigmoid(2.0).ln() + (1.0 - sigmoid(-1.0)).ln()) / 3.0;
        assert!((detection_loss(&logits, &replaced).double_value(&[]) - expected).abs() < 1e-6);
    }
}
