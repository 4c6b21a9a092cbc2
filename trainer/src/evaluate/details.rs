//! Where a tagger is right and where it is wrong.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};
use vitag::score::{Accuracy, Convention, Counts, Labelled, Spans, spans};
use vitag::tags::{Labels, Scheme};

use super::bootstrap::{Interval, f1_interval};
use super::{Prf, labelled};
use crate::data::{Corpus, Example, Sentence};

/// Sentences listed as the worst.
const WORST: usize = 20;

/// The details of one task on one corpus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Details {
    /// Name of the task.
    pub task: String,
    /// The corpus, relative to the data folder.
    pub file: String,
    /// Share of units with the right label.
    pub accuracy: f64,
    /// Spans with their type (of a plain scheme: units with their label), as conlleval and seqeval by default count.
    pub spans: Prf,
    /// The 95 % interval of their F1 over the choice of the sentences.
    pub interval: Interval,
    /// As seqeval counts in strict mode; of a BIO scheme.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<Prf>,
    /// Spans of the reference whose text is no span of the training data: how many of them were found.
    pub unseen: Accuracy,
    /// Precision, recall and F1 by type or label, with the number in the reference as support.
    pub by_label: BTreeMap<String, Prf>,
    /// How often a unit with one label (first) was given another (second), the most frequent first.
    pub confusion: Vec<(String, String, usize)>,
    /// The sentences with the most wrong units.
    pub worst: Vec<Worst>,
}

/// A sentence with wrong labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worst {
    /// Line of the file that it begins on.
    pub line: usize,
    /// Units with a wrong label.
    pub wrong: usize,
    /// Its units with the label of the reference and, where it differs, the one found.
    pub units: Vec<(String, String, Option<String>)>,
}

/// What is compared: a corpus, as the model sees it, and the labels that a tagger chose.
#[derive(Clone, Copy, Debug)]
pub struct Answers<'a> {
    /// Name of the task.
    pub task: &'a str,
    /// Name of the corpus.
    pub file: &'a str,
    /// The labels of the task.
    pub labels: &'a Labels,
    /// The corpus.
    pub corpus: &'a Corpus,
    /// Its sentences with the indices of their labels.
    pub examples: &'a [Example],
    /// The label of every unit that the tagger chose.
    pub paths: &'a [Vec<usize>],
    /// The training data.
    pub train: &'a [Corpus],
    /// Seeds the choice of sentences for the interval.
    pub seed: u64,
}

impl Answers<'_> {
    /// Compares.
    pub fn details(&self) -> Details {
        let (mut accuracy, mut all, mut unseen) = (Accuracy::default(), Spans::default(), Accuracy::default());
        let mut by_sentence = Vec::new();
        let known = self.known_spans();
        let sentences = self.corpus.sentences.iter().zip(self.examples).zip(self.paths);
        for ((sentence, example), path) in sentences {
            accuracy.add(&example.labels, path);
            let (reference, found) = (labelled(self.labels, &example.labels), labelled(self.labels, path));
            let mut one = Spans::default();
            one.add(&reference, &found);
            all.add(&reference, &found);
            by_sentence.push(one.all);
            count_unseen(sentence, &reference, &found, &known, &mut unseen);
        }
        Details {
            task: self.task.to_owned(),
            file: self.file.to_owned(),
            accuracy: accuracy.value(),
            spans: Prf::from(&all.all),
            interval: f1_interval(&by_sentence, self.seed),
            strict: (self.labels.scheme() == Scheme::Bio).then(|| Prf::from(&self.strict())),
            unseen,
            by_label: all.by_label.iter().map(|(label, counts)| (label.clone(), Prf::from(counts))).collect(),
            confusion: self.confusion(),
            worst: self.worst(),
        }
    }

    fn names(&self, path: &[usize]) -> Vec<&str> {
        path.iter().map(|&label| self.labels.names()[label].as_str()).collect()
    }

    fn strict(&self) -> Counts {
        let mut all = Spans::default();
        for (example, path) in self.examples.iter().zip(self.paths) {
            let of = |path| spans(&self.names(path), Convention::Strict);
            all.add(&of(&example.labels), &of(path));
        }
        all.all
    }

    fn known_spans(&self) -> HashSet<String> {
        let sentences = self.train.iter().flat_map(|corpus| &corpus.sentences);
        let texts = sentences.flat_map(|sentence| {
            let spans: Vec<Labelled> = match self.labels.scheme() {
                Scheme::Bio => spans(&sentence.labels, Convention::Conll),
                Scheme::Plain => (0..sentence.units.len()).map(|unit| (unit..unit + 1, String::new())).collect(),
            };
            spans.into_iter().map(|(units, _)| sentence.units[units].join(" "))
        });
        texts.collect()
    }

    fn confusion(&self) -> Vec<(String, String, usize)> {
        let mut counts = BTreeMap::new();
        for (example, path) in self.examples.iter().zip(self.paths) {
            for (reference, found) in example.labels.iter().zip(path).filter(|(reference, found)| reference != found) {
                *counts.entry((*reference, *found)).or_insert(0) += 1;
            }
        }
        let name = |label: usize| self.labels.names()[label].clone();
        let mut counts: Vec<_> = counts.into_iter().map(|((r, f), count)| (name(r), name(f), count)).collect();
        counts.sort_by_key(|&(.., count)| std::cmp::Reverse(count));
        counts
    }

    fn worst(&self) -> Vec<Worst> {
        let sentences = self.corpus.sentences.iter().zip(self.examples).zip(self.paths);
        let mut all: Vec<Worst> =
            sentences.map(|((sentence, example), path)| self.listed(sentence, example, path)).collect();
        all.retain(|sentence| sentence.wrong > 0);
        all.sort_by_key(|sentence| (std::cmp::Reverse(sentence.wrong), sentence.line));
        all.truncate(WORST);
        all
    }

    fn listed(&self, sentence: &Sentence, example: &Example, path: &[usize]) -> Worst {
        let (reference, found) = (self.names(&example.labels), self.names(path));
        let unit = |i: usize| {
            let wrong = (reference[i] != found[i]).then(|| found[i].to_owned());
            (sentence.units[i].clone(), reference[i].to_owned(), wrong)
        };
        let units: Vec<_> = (0..reference.len()).map(unit).collect();
        Worst { line: sentence.lines[0], wrong: units.iter().filter(|unit| unit.2.is_some()).count(), units }
    }
}

fn count_unseen(
    sentence: &Sentence,
    reference: &[Labelled],
    found: &[Labelled],
    known: &HashSet<String>,
    unseen: &mut Accuracy,
) {
    let found: HashSet<&Labelled> = found.iter().collect();
    for span in reference.iter().filter(|span| !known.contains(&sentence.units[span.0.clone()].join(" "))) {
        unseen.correct += usize::from(found.contains(span));
        unseen.total += 1;
    }
}
