//! Corpora to labelled units, and those to the windows that the model sees.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use vitag::manifest::Task;
use vitag::tags::{Labels, Scheme};
use vitag::tokenize::{self, Tokenizer, Tokens, Unit, Window};

use crate::config::TaskConfig;

mod layout;

pub use layout::{Columns, Layout};

use layout::Line;

/// Label of a unit that the loss must not see.
pub const IGNORED: i64 = -100;

/// How the files of a task are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What the tags are.
    pub task: Task,
    /// How the files are laid out.
    pub layout: Layout,
    /// Where word and tag stand.
    pub columns: Columns,
    /// What the model labels: words as they are, or their syllables.
    pub unit: Unit,
    /// How its labels relate. Parts of speech become `B-X` and `I-X` on the syllables of a word for [`Scheme::Bio`],
    /// and stay as they are for [`Scheme::Plain`].
    pub scheme: Scheme,
}

/// A sentence with one label a unit: a tag, or `B-X` and `I-X` for the units of a word or entity, `O` for those of none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// Syllables and punctuation marks, cut as the worker cuts raw text, or words, whose syllables `_` joins.
    pub units: Vec<String>,
    /// Their labels.
    pub labels: Vec<String>,
    /// The line of the file that each unit stands on, from 1.
    pub lines: Vec<usize>,
}

/// The sentences of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    /// The file.
    pub path: PathBuf,
    /// Its sentences.
    pub sentences: Vec<Sentence>,
}

/// A sentence ready for the model.
#[derive(Clone, Debug)]
pub struct Example {
    /// Units, one sentence, and its windows.
    pub tokens: Tokens,
    /// Index of the label of every unit.
    pub labels: Vec<usize>,
}

/// A window with its labels, to train on.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Index of the task, in the order of the config.
    pub task: usize,
    /// The tokens.
    pub window: Window,
    /// Index of the label of every unit, [`IGNORED`] where another window counts.
    pub labels: Vec<i64>,
}

impl Corpus {
    /// Reads a file. A sentence without words is left out.
    ///
    /// # Errors
    /// When the file is missing, empty or malformed; the message names file and line.
    pub fn read(path: &Path, reading: Reading) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut sentences = vec![Sentence::new()];
        for (number, line) in text.lines().enumerate() {
            let last = sentences.last_mut().expect("never empty");
            let read = reading.layout.line(reading.columns, line).and_then(|line| match line {
                Line::Word(form, tag) => last.push(number + 1, form, tag, reading).map(|()| false),
                Line::Sentence(words) => {
                    words.iter().try_for_each(|(form, tag)| last.push(number + 1, form, tag, reading)).map(|()| true)
                }
                Line::End => Ok(true),
                Line::Skip => Ok(false),
            });
            if read.with_context(|| format!("{}:{}", path.display(), number + 1))? {
                sentences.push(Sentence::new());
            }
        }
        sentences.retain(|sentence| !sentence.units.is_empty());
        ensure!(!sentences.is_empty(), "{}: the file holds no sentence", path.display());
        Ok(Self { path: path.to_owned(), sentences })
    }

    /// [`Corpus::read`] for every file of a list, relative to `folder`.
    ///
    /// # Errors
    /// As [`Corpus::read`].
    pub fn read_all(folder: &Path, files: &[PathBuf], reading: Reading) -> Result<Vec<Self>> {
        files.iter().map(|file| Self::read(&folder.join(file), reading)).collect()
    }

    /// Every sentence as the model sees it.
    ///
    /// # Errors
    /// When a label is not among `labels`, or the tokenizer refuses a unit.
    pub fn examples(&self, tokenizer: &Tokenizer, labels: &Labels) -> Result<Vec<Example>> {
        let index: HashMap<&str, usize> = labels.names().iter().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
        self.sentences.iter().map(|sentence| self.example(sentence, tokenizer, &index)).collect()
    }

    fn example(&self, sentence: &Sentence, tokenizer: &Tokenizer, index: &HashMap<&str, usize>) -> Result<Example> {
        let known = |(label, line): (&String, &usize)| {
            index.get(label.as_str()).copied().ok_or_else(|| {
                anyhow!("{}:{line}: label {label:?} does not occur in the training data", self.path.display())
            })
        };
        let labels = sentence.labels.iter().zip(&sentence.lines).map(known).collect::<Result<_>>()?;
        let units: Vec<&str> = sentence.units.iter().map(String::as_str).collect();
        let tokens = Tokens {
            // Scores are counted in units: where they stand in the text does not matter here.
            units: vec![0..0; units.len()],
            sentences: vec![tokenize::Sentence { range: 0..0, units: 0..units.len() }],
            windows: tokenizer.windows(&units)?,
        };
        Ok(Example { tokens, labels })
    }
}

impl Sentence {
    fn new() -> Self {
        Self { units: Vec::new(), labels: Vec::new(), lines: Vec::new() }
    }

    fn push(&mut self, number: usize, form: &str, tag: &str, reading: Reading) -> Result<()> {
        match (reading.task, reading.scheme) {
            (Task::Pos, Scheme::Plain) => self.push_units(number, form, reading.unit, |_| tag.to_owned()),
            (Task::Pos, Scheme::Bio) => {
                self.push_units(number, form, reading.unit, |first| format!("{}-{tag}", if first { 'B' } else { 'I' }))
            }
            (Task::Ner, _) => self.push_entity(number, form, tag, reading.unit),
        }
    }

    fn push_entity(&mut self, number: usize, form: &str, tag: &str, unit: Unit) -> Result<()> {
        if tag == "O" {
            return self.push_units(number, form, unit, |_| tag.to_owned());
        }
        let (prefix, kind) = match tag.split_once('-') {
            Some((prefix @ ("B" | "I"), kind)) if !kind.is_empty() => (prefix, kind),
            _ => bail!("expected the tag O, B-… or I-…, found {tag:?}"),
        };
        let previous = self.labels.last().and_then(|label| label.split_once('-'));
        // As in the evaluation of CoNLL-2000: an I-X that continues nothing begins a span.
        let begins = prefix == "B" || previous.is_none_or(|(_, other)| other != kind);
        self.push_units(number, form, unit, |first| format!("{}-{kind}", if first && begins { 'B' } else { 'I' }))
    }

    /// Cuts a form as raw text is cut, so that units in training and in serving are the same.
    fn push_units(&mut self, number: usize, form: &str, unit: Unit, label: impl Fn(bool) -> String) -> Result<()> {
        let before = self.units.len();
        let mut push = |unit: String| {
            self.labels.push(label(self.units.len() == before));
            self.units.push(unit);
            self.lines.push(number);
        };
        match unit {
            Unit::Syllable => {
                tokenize::syllables(form, &(0..form.len())).for_each(|range| push(form[range].to_owned()));
            }
            Unit::Word if form.trim().is_empty() => {}
            Unit::Word => push(form.split_whitespace().collect::<Vec<_>>().join("_")),
        }
        ensure!(self.units.len() > before, "expected a word, found white space");
        Ok(())
    }
}

/// The training and development data of a task. Where the settings name no development files, every tenth sentence of
/// the training data in a random order is taken out for it, the same with the same seed.
///
/// # Errors
/// As [`Corpus::read`].
pub fn train_and_dev(folder: &Path, task: &TaskConfig, seed: u64) -> Result<(Vec<Corpus>, Vec<Corpus>)> {
    let mut train = Corpus::read_all(folder, &task.train, task.reading())?;
    if !task.dev.is_empty() {
        return Ok((train, Corpus::read_all(folder, &task.dev, task.reading())?));
    }
    let mut places: Vec<(usize, usize)> = train
        .iter()
        .enumerate()
        .flat_map(|(file, corpus)| (0..corpus.sentences.len()).map(move |sentence| (file, sentence)))
        .collect();
    places.shuffle(&mut StdRng::seed_from_u64(seed));
    let taken: BTreeSet<_> = places.iter().take(places.len().div_ceil(10)).copied().collect();
    let mut dev = Vec::new();
    for (file, corpus) in train.iter_mut().enumerate() {
        let all = std::mem::take(&mut corpus.sentences).into_iter().enumerate();
        let (held, kept): (Vec<_>, Vec<_>) = all.partition(|(sentence, _)| taken.contains(&(file, *sentence)));
        corpus.sentences = kept.into_iter().map(|(_, sentence)| sentence).collect();
        let sentences = held.into_iter().map(|(_, sentence)| sentence).collect();
        dev.push(Corpus { path: corpus.path.clone(), sentences });
    }
    ensure!(train.iter().any(|corpus| !corpus.sentences.is_empty()), "the training data is a single sentence");
    Ok((train, dev))
}

/// The label set of a task: its tags for [`Scheme::Plain`]; for [`Scheme::Bio`] `O` if it occurs, then `B-X` and `I-X`
/// for every type X in the training data.
///
/// # Errors
/// When the labels do not make the scheme.
pub fn label_set(corpora: &[Corpus], scheme: Scheme) -> Result<Labels> {
    let sentences = corpora.iter().flat_map(|corpus| &corpus.sentences);
    let used: BTreeSet<&str> = sentences.flat_map(|sentence| &sentence.labels).map(String::as_str).collect();
    if scheme == Scheme::Plain {
        return Ok(Labels::new(used.into_iter().map(str::to_owned).collect(), scheme)?);
    }
    let types: BTreeSet<&str> = used.iter().filter_map(|label| label.split_once('-')).map(|(_, kind)| kind).collect();
    let outside = used.contains("O").then(|| "O".to_owned());
    let inside = types.iter().flat_map(|kind| [format!("B-{kind}"), format!("I-{kind}")]);
    Ok(Labels::new(outside.into_iter().chain(inside).collect(), scheme)?)
}

/// The windows of the examples of a task, to train on.
pub fn instances(task: usize, examples: &[Example]) -> Vec<Instance> {
    let windows = examples.iter().flat_map(|example| example.tokens.windows.iter().map(move |w| (example, w)));
    windows
        .map(|(example, window)| {
            let label = |unit| if window.keep.contains(&unit) { example.labels[unit] as i64 } else { IGNORED };
            Instance { task, window: window.clone(), labels: window.units.clone().map(label).collect() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(task: Task, unit: Unit, scheme: Scheme, words: &[(&str, &str)]) -> Sentence {
        let columns = Columns { word: 1, tag: 2 };
        let reading = Reading { task, layout: Layout::Tsv, columns, unit, scheme };
        let mut sentence = Sentence::new();
        for (number, (form, tag)) in words.iter().enumerate() {
            sentence.push(number + 1, form, tag, reading).unwrap();
        }
        sentence
    }

    #[test]
    fn words_are_cut_as_the_worker_cuts_text() {
        let words = [("bác sĩ", "NOUN"), ("...", "PUNCT")];
        let read = sentence(Task::Pos, Unit::Syllable, Scheme::Bio, &words);
        assert_eq!(read.units, ["bác", "sĩ", ".", ".", "."]);
        assert_eq!(read.labels, ["B-NOUN", "I-NOUN", "B-PUNCT", "I-PUNCT", "I-PUNCT"]);
        assert_eq!(read.lines, [1, 1, 2, 2, 2]);
    }

    #[test]
    fn an_inside_tag_that_continues_nothing_begins_an_entity() {
        let words = [("Minh", "I-PER"), ("Lan", "I-PER"), ("Huế", "I-LOC"), ("U.S.A.", "I-LOC"), ("x", "O")];
        let read = sentence(Task::Ner, Unit::Syllable, Scheme::Bio, &words);
        assert_eq!(read.labels, ["B-PER", "I-PER", "B-LOC", "I-LOC", "I-LOC", "O"]);
        assert_eq!(read.units[3..5], ["U.S.A", "."]);
    }

    #[test]
    fn the_label_set_pairs_every_type() {
        let words = [("x", "O"), ("Lan", "B-PER")];
        let entities = sentence(Task::Ner, Unit::Syllable, Scheme::Bio, &words);
        let corpus = Corpus { path: "x".into(), sentences: vec![entities] };
        assert_eq!(label_set(&[corpus], Scheme::Bio).unwrap().names(), ["O", "B-PER", "I-PER"]);
    }

    #[test]
    fn words_stay_whole_where_the_unit_is_the_word() {
        let words = [("bác sĩ", "N"), ("Hà_Nội", "Np")];
        let read = sentence(Task::Pos, Unit::Word, Scheme::Plain, &words);
        assert_eq!(read.units, ["bác_sĩ", "Hà_Nội"]);
        assert_eq!(read.labels, ["N", "Np"]);
        let entities = sentence(Task::Ner, Unit::Syllable, Scheme::Bio, &[("Hà_Nội", "B-LOC"), ("mới", "I-LOC")]);
        assert_eq!(entities.units, ["Hà", "Nội", "mới"]);
        assert_eq!(entities.labels, ["B-LOC", "I-LOC", "I-LOC"]);
    }
}
