//! One quantity over the repeats of a measurement.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A quantity as it was in each repeat, with median and spread.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Figure {
    /// The middle value, or the mean of the middle two.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
    /// All of them, in the order of the repeats.
    pub values: Vec<f64>,
}

impl Figure {
    /// The figure of `values`; all zero where there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let (Some(&least), Some(&most)) = (sorted.first(), sorted.last()) else { return Self::default() };
        let median = f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Self { median, least, most, values }
    }

    /// The figure of the quotients of two quantities, repeat by repeat.
    pub fn ratio(of: &[f64], to: &[f64]) -> Self {
        Self::of(of.iter().zip(to).map(|(of, to)| of / to))
    }
}

/// The value that a share of `values` does not exceed (nearest rank); zero where there are none.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_its_median_and_spread() {
        let figure = Figure::of([3.0, 1.0, 2.0, 10.0]);
        assert_eq!((figure.median, figure.least, figure.most), (2.5, 1.0, 10.0));
        assert_eq!(figure.values, [3.0, 1.0, 2.0, 10.0]);
        assert_eq!(Figure::of([]), Figure::default());
        assert_eq!(Figure::ratio(&[1.0, 9.0], &[2.0, 3.0]).values, [0.5, 3.0]);
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.5), 50.0);
        assert_eq!(percentile(&hundred, 0.99), 99.0);
        assert_eq!(percentile(&hundred, 0.999), 100.0);
        assert_eq!(percentile(&[7.0], 0.01), 7.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
