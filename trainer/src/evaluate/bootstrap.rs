//! How far a score may be off by the choice of the sentences.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use vitag::score::Counts;

/// Samples drawn.
const SAMPLES: usize = 1000;

/// The interval that 95 % of the samples fall into.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end: the 2.5th percentile.
    pub low: f64,
    /// Its upper end: the 97.5th.
    pub high: f64,
}

/// The interval of F1 when as many sentences as there are, each with the counts of `sentences`, are drawn with
/// replacement (the percentile bootstrap of Efron 1979). The same seed gives the same interval.
pub fn f1_interval(sentences: &[Counts], seed: u64) -> Interval {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut scores: Vec<f64> = (0..SAMPLES).map(|_| sample(sentences, &mut rng).f1()).collect();
    scores.sort_by(f64::total_cmp);
    let at = |share: f64| scores[(share * (SAMPLES - 1) as f64).round() as usize];
    Interval { low: at(0.025), high: at(0.975) }
}

fn sample(sentences: &[Counts], rng: &mut StdRng) -> Counts {
    let mut sum = Counts::default();
    for _ in 0..sentences.len() {
        let counts = sentences[rng.random_range(0..sentences.len())];
        sum.reference += counts.reference;
        sum.found += counts.found;
        sum.correct += counts.correct;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_holds_the_score_and_narrows_with_the_sentences() {
        let counts = |correct| Counts { reference: 1, found: 1, correct };
        let sentences = |n: usize| (0..n).map(|i| counts(usize::from(i % 5 != 0))).collect::<Vec<_>>();
        let (few, many) = (f1_interval(&sentences(50), 1), f1_interval(&sentences(5000), 1));
        assert!(few.low < 0.8 && 0.8 < few.high && many.low < 0.8 && 0.8 < many.high);
        assert!(many.high - many.low < (few.high - few.low) / 5.0);
        assert_eq!(f1_interval(&sentences(50), 1), few);
        // Of 5,000 answers with a probability of 0.8, the standard error is 0.0057.
        assert!((many.high - many.low - 2.0 * 1.96 * 0.00566).abs() < 0.005);
        assert_eq!(f1_interval(&[counts(1); 3], 1), Interval { low: 1.0, high: 1.0 });
    }
}
