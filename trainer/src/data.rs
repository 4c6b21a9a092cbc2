//! Corpora to labelled units, and those to the windows that the model sees.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use vitag::manifest::Task;
use vitag::tags::{Labels, Scheme};
use vitag::tokenize::{self, Tokenizer, Tokens, Window};

/// Label of a unit that the loss must not see.
pub const IGNORED: i64 = -100;

/// A sentence with one label a unit: `B-X` and `I-X` for the units of a word or entity, `O` for those of none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// Syllables and punctuation marks, cut as the worker cuts raw text.
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
    /// Reads a file: CoNLL-U for [`Task::Pos`], `unit<TAB>tag` in BIO for [`Task::Ner`].
    ///
    /// # Errors
    /// When the file is missing, empty or malformed; the message names file and line.
    pub fn read(path: &Path, task: Task) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut sentences = vec![Sentence::new()];
        for (number, line) in text.lines().enumerate() {
            let last = sentences.last_mut().expect("never empty");
            if line.trim().is_empty() {
                if !last.units.is_empty() {
                    sentences.push(Sentence::new());
                }
                continue;
            }
            let read = match task {
                Task::Pos => last.push_conllu(number + 1, line),
                Task::Ner => last.push_tsv(number + 1, line),
            };
            read.with_context(|| format!("{}:{}", path.display(), number + 1))?;
        }
        sentences.retain(|sentence| !sentence.units.is_empty());
        ensure!(!sentences.is_empty(), "{}: the file holds no sentence", path.display());
        Ok(Self { path: path.to_owned(), sentences })
    }

    /// [`Corpus::read`] for every file of a list, relative to `folder`.
    ///
    /// # Errors
    /// As [`Corpus::read`].
    pub fn read_all(folder: &Path, files: &[PathBuf], task: Task) -> Result<Vec<Self>> {
        files.iter().map(|file| Self::read(&folder.join(file), task)).collect()
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

    fn push_conllu(&mut self, number: usize, line: &str) -> Result<()> {
        if line.starts_with('#') {
            return Ok(());
        }
        let columns: Vec<&str> = line.split('\t').collect();
        let [id, form, _, upos, ..] = columns[..] else {
            bail!("expected the 10 columns of CoNLL-U, found {}", columns.len());
        };
        ensure!(columns.len() == 10, "expected the 10 columns of CoNLL-U, found {}", columns.len());
        if id.contains(['-', '.']) {
            return Ok(()); // a multiword token or an empty node: its words follow
        }
        ensure!(id.parse::<usize>().is_ok(), "expected a number in column 1 (ID), found {id:?}");
        let is_tag = !upos.is_empty() && upos.chars().all(|c| c.is_ascii_uppercase());
        ensure!(is_tag, "expected a part of speech in column 4 (UPOS), found {upos:?}");
        self.push_units(number, form, |first| format!("{}-{upos}", if first { 'B' } else { 'I' }))
    }

    fn push_tsv(&mut self, number: usize, line: &str) -> Result<()> {
        let Some((unit, tag)) = line.split_once('\t') else {
            bail!("expected a unit, a tab and a tag, found {line:?}");
        };
        if tag == "O" {
            return self.push_units(number, unit, |_| tag.to_owned());
        }
        let (prefix, kind) = match tag.split_once('-') {
            Some((prefix @ ("B" | "I"), kind)) if !kind.is_empty() => (prefix, kind),
            _ => bail!("expected the tag O, B-… or I-…, found {tag:?}"),
        };
        let previous = self.labels.last().and_then(|label| label.split_once('-'));
        // As in the evaluation of CoNLL-2000: an I-X that continues nothing begins a span.
        let begins = prefix == "B" || previous.is_none_or(|(_, other)| other != kind);
        self.push_units(number, unit, |first| format!("{}-{kind}", if first && begins { 'B' } else { 'I' }))
    }

    /// Cuts a form as raw text is cut, so that units in training and in serving are the same.
    fn push_units(&mut self, number: usize, form: &str, label: impl Fn(bool) -> String) -> Result<()> {
        let before = self.units.len();
        for range in tokenize::syllables(form, &(0..form.len())) {
            self.labels.push(label(self.units.len() == before));
            self.units.push(form[range].to_owned());
            self.lines.push(number);
        }
        ensure!(self.units.len() > before, "expected a word, found white space");
        Ok(())
    }
}

/// The label set of a task: `O` if it occurs, then `B-X` and `I-X` for every type X in the training data.
///
/// # Errors
/// When the labels do not make a BIO scheme.
pub fn label_set(corpora: &[Corpus]) -> Result<Labels> {
    let sentences = corpora.iter().flat_map(|corpus| &corpus.sentences);
    let used: BTreeSet<&str> = sentences.flat_map(|sentence| &sentence.labels).map(String::as_str).collect();
    let types: BTreeSet<&str> = used.iter().filter_map(|label| label.split_once('-')).map(|(_, kind)| kind).collect();
    let outside = used.contains("O").then(|| "O".to_owned());
    let inside = types.iter().flat_map(|kind| [format!("B-{kind}"), format!("I-{kind}")]);
    Ok(Labels::new(outside.into_iter().chain(inside).collect(), Scheme::Bio)?)
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

    fn sentence(task: Task, lines: &[&str]) -> Sentence {
        let mut sentence = Sentence::new();
        for (number, line) in lines.iter().enumerate() {
            match task {
                Task::Pos => sentence.push_conllu(number + 1, line).unwrap(),
                Task::Ner => sentence.push_tsv(number + 1, line).unwrap(),
            }
        }
        sentence
    }

    #[test]
    fn words_are_cut_as_the_worker_cuts_text() {
        let lines = ["1\tbác sĩ\t_\tNOUN\t_\t_\t0\t_\t_\t_", "2\t...\t_\tPUNCT\t_\t_\t1\t_\t_\t_"];
        let read = sentence(Task::Pos, &lines);
        assert_eq!(read.units, ["bác", "sĩ", ".", ".", "."]);
        assert_eq!(read.labels, ["B-NOUN", "I-NOUN", "B-PUNCT", "I-PUNCT", "I-PUNCT"]);
        assert_eq!(read.lines, [1, 1, 2, 2, 2]);
    }

    #[test]
    fn an_inside_tag_that_continues_nothing_begins_an_entity() {
        let read = sentence(Task::Ner, &["Minh\tI-PER", "Lan\tI-PER", "Huế\tI-LOC", "U.S.A.\tI-LOC", "x\tO"]);
        assert_eq!(read.labels, ["B-PER", "I-PER", "B-LOC", "I-LOC", "I-LOC", "O"]);
        assert_eq!(read.units[3..5], ["U.S.A", "."]);
    }

    #[test]
    fn the_label_set_pairs_every_type() {
        let corpus = Corpus { path: "x".into(), sentences: vec![sentence(Task::Ner, &["x\tO", "Lan\tB-PER"])] };
        assert_eq!(label_set(&[corpus]).unwrap().names(), ["O", "B-PER", "I-PER"]);
    }
}
