//! Scores of a labelling: accuracy, and precision, recall and F1 of spans (§3.1.2 of the paper: a span is right when
//! its limits and its type are).

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A span of units with its type.
pub type Labelled = (Range<usize>, String);

/// Counts of right answers among all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Right answers.
    pub correct: usize,
    /// All answers.
    pub total: usize,
}

impl Accuracy {
    /// Counts one sequence of answers against the reference.
    pub fn add<T: PartialEq>(&mut self, reference: &[T], answers: &[T]) {
        self.correct += reference.iter().zip(answers).filter(|(r, a)| r == a).count();
        self.total += reference.len();
    }

    /// Share of right answers; 0 where there are none.
    pub fn value(&self) -> f64 {
        ratio(self.correct, self.total)
    }
}

/// Spans counted over many texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Spans of the reference (`NE_ref`).
    pub reference: usize,
    /// Spans found (`NE_sys`).
    pub found: usize,
    /// Spans found that are of the reference (`NE_true`).
    pub correct: usize,
}

impl Counts {
    /// `NE_true / NE_sys`.
    pub fn precision(&self) -> f64 {
        ratio(self.correct, self.found)
    }

    /// `NE_true / NE_ref`.
    pub fn recall(&self) -> f64 {
        ratio(self.correct, self.reference)
    }

    /// Harmonic mean of precision and recall; 0 where both are.
    pub fn f1(&self) -> f64 {
        ratio(2 * self.correct, self.found + self.reference)
    }
}

/// Span scores in all and by type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spans {
    /// All types together (micro average).
    pub all: Counts,
    /// Each type alone.
    pub by_label: BTreeMap<String, Counts>,
}

impl Spans {
    /// Counts the spans of one text; a span counts as found once.
    pub fn add(&mut self, reference: &[Labelled], found: &[Labelled]) {
        let reference: HashSet<&Labelled> = reference.iter().collect();
        let found: HashSet<&Labelled> = found.iter().collect();
        for span in &reference {
            self.count(&span.1, |counts| counts.reference += 1);
        }
        for span in &found {
            let correct = usize::from(reference.contains(*span));
            self.count(&span.1, |counts| {
                counts.found += 1;
                counts.correct += correct;
            });
        }
    }

    fn count(&mut self, label: &str, add: impl Fn(&mut Counts)) {
        add(&mut self.all);
        add(self.by_label.entry(label.to_owned()).or_default());
    }
}

/// Which tags of a BIO sequence make a span, where the sequence is not sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Convention {
    /// An `I-X` that follows no span of its type begins one: conlleval, and seqeval by default.
    Conll,
    /// Only `B-X` begins a span, and an `I-X` that continues none is outside: seqeval's strict mode with IOB2.
    Strict,
}

/// The spans of a sequence of BIO tags. What is neither `B-X` nor `I-X` is outside.
pub fn spans(tags: &[impl AsRef<str>], convention: Convention) -> Vec<Labelled> {
    let mut spans: Vec<Labelled> = Vec::new();
    for (unit, tag) in tags.iter().enumerate() {
        let Some((prefix @ ("B" | "I"), kind)) = tag.as_ref().split_once('-') else { continue };
        match spans.last_mut() {
            Some((range, open)) if prefix == "I" && range.end == unit && open == kind => range.end = unit + 1,
            _ if prefix == "I" && convention == Convention::Strict => {}
            _ => spans.push((unit..unit + 1, kind.to_owned())),
        }
    }
    spans
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worked_example() {
        let span = |range: Range<usize>, label: &str| (range, label.to_owned());
        let mut spans = Spans::default();
        let reference = [span(0..2, "PER"), span(4..5, "LOC"), span(6..8, "ORG")];
        let found = [span(0..2, "PER"), span(4..5, "ORG"), span(6..7, "ORG"), span(9..10, "LOC")];
        spans.add(&reference, &found);
        assert_eq!(spans.all, Counts { reference: 3, found: 4, correct: 1 });
        assert_eq!(spans.all.precision(), 0.25);
        assert!((spans.all.recall() - 1.0 / 3.0).abs() < 1e-12);
        assert!((spans.all.f1() - 2.0 / 7.0).abs() < 1e-12);
        assert_eq!(spans.by_label["PER"].f1(), 1.0);
        assert_eq!(Spans::default().all.f1(), 0.0);
    }

    #[test]
    fn accuracy_is_the_share_of_right_answers() {
        let mut accuracy = Accuracy::default();
        accuracy.add(&["N", "V"], &["N", "N"]);
        accuracy.add(&["N", "V"], &["N", "V"]);
        assert_eq!(accuracy.value(), 0.75);
    }
}
