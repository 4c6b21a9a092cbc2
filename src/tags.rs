//! Logits to tags: label schemes, constrained decoding, spans.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::tokenize::{Sentence, Tokens};

/// How the labels of a head relate to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Every unit has a label of its own.
    Plain,
    /// `B-X` begins a span of type X, `I-X` continues one, `O` is outside.
    Bio,
}

/// A stretch of units with one type.
#[derive(Clone, Debug, PartialEq)]
pub struct Span<'l> {
    /// Units of the span.
    pub units: Range<usize>,
    /// Its type: the label without `B-` or `I-`.
    pub label: &'l str,
    /// Mean probability of its labels.
    pub score: f32,
}

/// The labels of a head, in the order of its logits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    names: Vec<String>,
    scheme: Scheme,
    /// For each label, the labels that may stand before it, if not all may.
    allowed_before: Vec<Option<Vec<usize>>>,
}

/// One logit row a unit, [units, labels], from the rows of all windows: where windows overlap, each unit's row is that
/// of the window that keeps it.
///
/// `windows[i]` is row-major [units of window i, labels].
pub fn stitch(tokens: &Tokens, windows: &[impl AsRef<[f32]>], labels: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(tokens.units.len() * labels);
    for (window, logits) in tokens.windows.iter().zip(windows) {
        let kept = window.keep.start - window.units.start..window.keep.end - window.units.start;
        rows.extend_from_slice(&logits.as_ref()[kept.start * labels..kept.end * labels]);
    }
    rows
}

/// The labels do not make a scheme.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelsError {
    /// There are none.
    #[error("a head needs at least one label")]
    Empty,
    /// One stands twice.
    #[error("label {0:?} stands twice")]
    Twice(String),
    /// A label that BIO does not know.
    #[error("label {0:?} is not O, B-… or I-…, as the scheme bio wants")]
    NotBio(String),
    /// An `I-X` that no `B-X` can begin.
    #[error("label {0:?} has no B-… of its type")]
    NoBegin(String),
}

impl Labels {
    /// Checks `names` against `scheme`.
    ///
    /// # Errors
    /// When there are no labels, one stands twice, or one does not fit the scheme.
    pub fn new(names: Vec<String>, scheme: Scheme) -> Result<Self, LabelsError> {
        if names.is_empty() {
            return Err(LabelsError::Empty);
        }
        for (i, name) in names.iter().enumerate() {
            if names[..i].contains(name) {
                return Err(LabelsError::Twice(name.clone()));
            }
        }
        let allowed_before = names.iter().map(|name| allowed_before(name, &names, scheme)).collect::<Result<_, _>>()?;
        Ok(Self { names, scheme, allowed_before })
    }

    /// Label names in the order of the logits.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of labels: the width of a row of logits.
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The best sequence of labels that the scheme allows: the one with the greatest sum of logits (Viterbi with
    /// transitions of 0 or −∞; an `I-X` follows a `B-X` or an `I-X` only).
    ///
    /// `logits` is row-major [units, labels].
    pub fn best(&self, logits: &[f32]) -> Vec<usize> {
        let (width, rows) = (self.count(), logits.len() / self.count());
        // The best label of every row is a path that none beats; mostly the scheme allows it.
        let path: Vec<usize> = logits.chunks_exact(width).map(argmax).collect();
        if self.allows(&path) {
            return path;
        }
        let mut scores: Vec<f32> = logits[..width].to_vec();
        for (score, allowed) in scores.iter_mut().zip(&self.allowed_before) {
            if allowed.is_some() {
                *score = f32::NEG_INFINITY;
            }
        }
        let mut back = vec![0usize; rows * width];
        for row in 1..rows {
            let best = argmax(&scores);
            let mut next = vec![f32::NEG_INFINITY; width];
            for (label, allowed) in self.allowed_before.iter().enumerate() {
                let from = match allowed {
                    None => best,
                    Some(before) => {
                        before.iter().copied().max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap_or(best)
                    }
                };
                next[label] = scores[from] + logits[row * width + label];
                back[row * width + label] = from;
            }
            scores = next;
        }
        let mut path = vec![argmax(&scores); rows];
        for row in (1..rows).rev() {
            path[row - 1] = back[row * width + path[row]];
        }
        path
    }

    /// Whether the scheme has no label of the path stand where it may not.
    fn allows(&self, path: &[usize]) -> bool {
        (0..path.len()).all(|i| match &self.allowed_before[path[i]] {
            None => true,
            Some(before) => i > 0 && before.contains(&path[i - 1]),
        })
    }

    /// [`Labels::best`] for every sentence alone. `logits` is row-major [units of the text, labels].
    pub fn best_by_sentence(&self, sentences: &[Sentence], logits: &[f32]) -> Vec<usize> {
        let width = self.count();
        let rows = |sentence: &Sentence| &logits[sentence.units.start * width..sentence.units.end * width];
        sentences.iter().flat_map(|sentence| self.best(rows(sentence))).collect()
    }

    /// Probability (softmax of its row) of the label chosen for each unit. `logits` is row-major [units, labels].
    pub fn probabilities(&self, logits: &[f32], path: &[usize]) -> Vec<f32> {
        logits.chunks_exact(self.count()).zip(path).map(|(row, &label)| softmax_at(row, label)).collect()
    }

    /// The spans of a sequence of labels. With [`Scheme::Plain`] every unit is a span. An `I-X` that follows no span
    /// of its type begins one, as the evaluation of CoNLL-2000 has it.
    pub fn spans<'l>(&'l self, path: &[usize], probabilities: &[f32]) -> Vec<Span<'l>> {
        let mut spans: Vec<Span<'l>> = Vec::new();
        for (unit, &label) in path.iter().enumerate() {
            let Some((begins, label)) = self.part(label) else { continue };
            let score = probabilities.get(unit).copied().unwrap_or(1.0);
            match spans.last_mut() {
                Some(last) if !begins && last.units.end == unit && last.label == label => {
                    let length = last.units.len() as f32;
                    last.score += (score - last.score) / (length + 1.0);
                    last.units.end = unit + 1;
                }
                _ => spans.push(Span { units: unit..unit + 1, label, score }),
            }
        }
        spans
    }

    /// Whether a label begins a span, and the type; `None` for `O`.
    fn part(&self, label: usize) -> Option<(bool, &str)> {
        let name = &self.names[label];
        match self.scheme {
            Scheme::Plain => Some((true, name)),
            Scheme::Bio => match name.split_once('-') {
                Some(("B", kind)) => Some((true, kind)),
                Some(("I", kind)) => Some((false, kind)),
                _ => None,
            },
        }
    }
}

fn allowed_before(name: &str, names: &[String], scheme: Scheme) -> Result<Option<Vec<usize>>, LabelsError> {
    if scheme == Scheme::Plain {
        return Ok(None);
    }
    match name.split_once('-') {
        None if name == "O" => Ok(None),
        Some(("B", _)) => Ok(None),
        Some(("I", kind)) => {
            let index = |prefix: &str| names.iter().position(|other| *other == format!("{prefix}-{kind}"));
            let begin = index("B").ok_or_else(|| LabelsError::NoBegin(name.to_owned()))?;
            Ok(Some([Some(begin), index("I")].into_iter().flatten().collect()))
        }
        _ => Err(LabelsError::NotBio(name.to_owned())),
    }
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a))).unwrap_or(0)
}

fn softmax_at(row: &[f32], label: usize) -> f32 {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = row.iter().map(|logit| (logit - top).exp()).sum();
    (row[label] - top).exp() / sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bio() -> Labels {
        let names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"];
        Labels::new(names.map(String::from).to_vec(), Scheme::Bio).unwrap()
    }

    #[test]
    fn labels_must_fit_their_scheme() {
        let new = |names: &[&str]| Labels::new(names.iter().map(|&n| n.into()).collect(), Scheme::Bio).unwrap_err();
        assert_eq!(new(&[]), LabelsError::Empty);
        assert_eq!(new(&["O", "O"]), LabelsError::Twice("O".into()));
        assert_eq!(new(&["O", "NOUN"]), LabelsError::NotBio("NOUN".into()));
        assert_eq!(new(&["O", "I-PER"]), LabelsError::NoBegin("I-PER".into()));
    }

    #[test]
    fn a_worked_example() {
        let labels = bio();
        // The second row's best label, I-LOC, may not follow B-PER; I-PER is the best that may.
        let logits = [0.0, 5.0, 0.0, 0.0, 0.0, /**/ 0.0, 0.0, 3.0, 0.0, 4.0, /**/ 9.0, 0.0, 0.0, 0.0, 0.0];
        let path = labels.best(&logits);
        assert_eq!(path, [1, 2, 0]);
        let spans = labels.spans(&path, &labels.probabilities(&logits, &path));
        assert_eq!((spans.len(), spans[0].units.clone(), spans[0].label), (1, 0..2, "PER"));
        assert!(spans[0].score > 0.6 && spans[0].score < 1.0);
    }

    fn score(logits: &[f32], path: &[usize], width: usize) -> f32 {
        path.iter().enumerate().map(|(row, label)| logits[row * width + label]).sum()
    }

    proptest! {
        #[test]
        fn the_best_path_is_valid_and_no_valid_path_beats_it(logits in prop::collection::vec(-5f32..5.0, 5..=20)) {
            let labels = bio();
            let rows = logits.len() / 5;
            let logits = &logits[..rows * 5];
            let best = labels.best(logits);
            prop_assert!(labels.allows(&best));
            for n in 0..5usize.pow(rows as u32) {
                let path: Vec<usize> = (0..rows).map(|i| n / 5usize.pow(i as u32) % 5).collect();
                if labels.allows(&path) {
                    prop_assert!(score(logits, &path, 5) <= score(logits, &best, 5) + 1e-4);
                }
            }
        }

        #[test]
        fn spans_hold_exactly_the_units_that_are_not_outside(path in prop::collection::vec(0usize..5, 0..20)) {
            let labels = bio();
            let spans = labels.spans(&path, &[]);
            let inside: Vec<usize> = spans.iter().flat_map(|span| span.units.clone()).collect();
            let expected: Vec<usize> = (0..path.len()).filter(|&i| path[i] != 0).collect();
            prop_assert_eq!(inside, expected);
        }
    }
}
