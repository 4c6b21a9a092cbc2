//! Scores of a model on labelled data, beside those of the plainest tagger there is.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use vitag::manifest::Task;
use vitag::pack::Packed;
use vitag::score::{Accuracy, Counts, Labelled, Spans};
use vitag::tags::{self, Labels, Scheme};
use vitag::tokenize::Window;

use crate::data::{self, Corpus, Example};
use crate::files;
use crate::model::Batch;
use crate::run::Run;

mod bootstrap;
mod details;
mod html;

pub use bootstrap::{Interval, f1_interval};
pub use details::{Answers, Details, Worst};

/// Windows in a batch of inference.
const BATCH: usize = 32;

/// Precision, recall and F1 of spans. Spans are compared in units; as all text is cut into the same units, that is
/// the same as comparing them in characters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prf {
    /// Share of right spans among those found.
    pub precision: f64,
    /// Share of right spans among those of the reference.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
    /// Spans of the reference.
    pub support: usize,
}

/// The scores of one tagger on one corpus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Share of units with the right label.
    pub accuracy: f64,
    /// Words without their part of speech; for [`Task::Pos`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segmentation: Option<Prf>,
    /// Words with their part of speech, or entities with their type.
    pub spans: Prf,
    /// The same by part of speech or type.
    pub by_label: BTreeMap<String, Prf>,
}

/// The scores of a model and of the baseline on one corpus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Name of the task.
    pub task: String,
    /// The corpus, relative to the data folder.
    pub file: String,
    /// Sentences in it.
    pub sentences: usize,
    /// Units in it.
    pub units: usize,
    /// How the labels relate.
    pub scheme: Scheme,
    /// The model.
    pub model: Scores,
    /// Every unit its most frequent label in the training data.
    pub baseline: Scores,
}

/// All scores of a run on one part of its data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the model.
    pub model: String,
    /// Its version.
    pub version: String,
    /// Its seed.
    pub seed: u64,
    /// The part of the data.
    pub part: Part,
    /// Scores by task and corpus.
    pub results: Vec<Comparison>,
}

/// Part of the data to score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The development data.
    Dev,
    /// The test data.
    Test,
}

impl Report {
    /// Reads what [`Report::write`] wrote.
    ///
    /// # Errors
    /// When the file is not there or not of this form.
    pub fn read(run: &Path, part: Part) -> Result<Self> {
        files::read_json(&run.join(part.file()))
    }

    /// Writes the report into the run's directory and returns its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, run: &Path) -> Result<PathBuf> {
        let path = run.join(self.part.file());
        files::write_json(&path, self)?;
        Ok(path)
    }
}

impl Part {
    fn file(self) -> &'static str {
        match self {
            Self::Dev => "scores-dev.json",
            Self::Test => "scores-test.json",
        }
    }
}

/// Scores a run on every corpus of a part.
///
/// # Errors
/// When a corpus cannot be read or has labels that the model does not know.
pub fn evaluate(run: &Run, folder: &Path, part: Part) -> Result<Report> {
    Ok(in_detail(run, folder, part)?.0)
}

/// As [`evaluate`], with the details of every corpus.
///
/// # Errors
/// As [`evaluate`].
pub fn in_detail(run: &Run, folder: &Path, part: Part) -> Result<(Report, Vec<Details>)> {
    let (mut results, mut details) = (Vec::new(), Vec::new());
    for (head, (task, labels)) in run.config.tasks.iter().zip(&run.labels).enumerate() {
        let kind = task.kind;
        let (train, dev) = data::train_and_dev(folder, task, run.config.seed)?;
        let baseline = MostFrequent::learn(&train, labels);
        let corpora = if part == Part::Dev { dev } else { Corpus::read_all(folder, &task.test, task.reading())? };
        for corpus in corpora {
            let examples = corpus.examples(&run.tokenizer, labels)?;
            let guesses: Vec<_> = corpus.sentences.iter().map(|sentence| baseline.tag(&sentence.units)).collect();
            let paths = predict(run, head, &examples);
            let file = corpus.path.strip_prefix(folder).unwrap_or(&corpus.path).display().to_string();
            let (task, seed) = (&task.name, run.config.seed);
            let answers = Answers {
                task,
                file: &file,
                labels,
                corpus: &corpus,
                examples: &examples,
                paths: &paths,
                train: &train,
                seed,
            };
            details.push(answers.details());
            results.push(Comparison {
                task: task.clone(),
                sentences: examples.len(),
                units: examples.iter().map(|example| example.labels.len()).sum(),
                scheme: labels.scheme(),
                model: score(kind, labels, &examples, &paths),
                baseline: score(kind, labels, &examples, &guesses),
                file,
            });
        }
    }
    let (model, seed) = (&run.config.model, run.config.seed);
    let report = Report { model: model.name.clone(), version: model.version.clone(), seed, part, results };
    Ok((report, details))
}

/// Writes the details as `report.json` and as `report.html`, one page that needs nothing else; returns the page's path.
///
/// # Errors
/// When they cannot be written.
pub fn write_details(run: &Path, report: &Report, details: &[Details]) -> Result<PathBuf> {
    files::write_json(&run.join("report.json"), &details)?;
    let path = run.join("report.html");
    files::write_atomically(&path, html::page(report, details)?.as_bytes())?;
    Ok(path)
}

/// The best labels of every example under the scheme, by one head of the model.
pub fn predict(run: &Run, head: usize, examples: &[Example]) -> Vec<Vec<usize>> {
    best(&run.labels[head], examples, &window_logits(run, head, examples))
}

/// The best labels of every example under the scheme, from the logits of its windows.
pub fn best(labels: &Labels, examples: &[Example], logits: &[Vec<Vec<f32>>]) -> Vec<Vec<usize>> {
    let best = |(example, windows): (&Example, &Vec<Vec<f32>>)| {
        labels.best(&tags::stitch(&example.tokens, windows, labels.count()))
    };
    examples.iter().zip(logits).map(best).collect()
}

/// Logits of one head for every window of every example, row-major [units, labels].
pub fn window_logits(run: &Run, head: usize, examples: &[Example]) -> Vec<Vec<Vec<f32>>> {
    let width = run.labels[head].count();
    let logits = by_window(examples, |windows| {
        let packed = Packed::new(windows.iter().copied());
        let rows = run.tagger.predict(&Batch::new(&packed, run.store.device()), head).view([-1]);
        let mut rows = Vec::<f32>::try_from(&rows).expect("logits are floats").into_iter();
        let mut of_window = |window: &&Window| rows.by_ref().take(window.units.len() * width).collect();
        Ok(windows.iter().map(&mut of_window).collect())
    });
    logits.expect("libtorch always answers")
}

/// What `answer` gives for every window of every example; it is asked in batches of windows of like length.
///
/// # Errors
/// As `answer`.
pub fn by_window<T: Clone + Default>(
    examples: &[Example],
    mut answer: impl FnMut(&[&Window]) -> Result<Vec<T>>,
) -> Result<Vec<Vec<T>>> {
    let mut answers: Vec<Vec<T>> =
        examples.iter().map(|example| vec![T::default(); example.tokens.windows.len()]).collect();
    let windows = |i: usize| (0..examples[i].tokens.windows.len()).map(move |j| (i, j));
    let mut order: Vec<(usize, usize)> = (0..examples.len()).flat_map(windows).collect();
    order.sort_by_key(|&(i, j)| examples[i].tokens.windows[j].ids.len());
    for places in order.chunks(BATCH) {
        let windows: Vec<&Window> = places.iter().map(|&(i, j)| &examples[i].tokens.windows[j]).collect();
        for (&(i, j), found) in places.iter().zip(answer(&windows)?) {
            answers[i][j] = found;
        }
    }
    Ok(answers)
}

/// Scores the labels that a tagger chose.
pub fn score(task: Task, labels: &Labels, examples: &[Example], paths: &[Vec<usize>]) -> Scores {
    let (mut accuracy, mut spans, mut words) = (Accuracy::default(), Spans::default(), Spans::default());
    for (example, path) in examples.iter().zip(paths) {
        accuracy.add(&example.labels, path);
        let (reference, found) = (labelled(labels, &example.labels), labelled(labels, path));
        words.add(&without_type(&reference), &without_type(&found));
        spans.add(&reference, &found);
    }
    Scores {
        accuracy: accuracy.value(),
        segmentation: (task == Task::Pos && labels.scheme() == Scheme::Bio).then(|| Prf::from(&words.all)),
        spans: Prf::from(&spans.all),
        by_label: spans.by_label.iter().map(|(label, counts)| (label.clone(), Prf::from(counts))).collect(),
    }
}

fn labelled(labels: &Labels, path: &[usize]) -> Vec<Labelled> {
    labels.spans(path, &[]).into_iter().map(|span| (span.units, span.label.to_owned())).collect()
}

fn without_type(spans: &[Labelled]) -> Vec<Labelled> {
    spans.iter().map(|(units, _)| (units.clone(), String::new())).collect()
}

impl From<&Counts> for Prf {
    fn from(counts: &Counts) -> Self {
        Self { precision: counts.precision(), recall: counts.recall(), f1: counts.f1(), support: counts.reference }
    }
}

/// Gives every unit its most frequent label in the training data, and the most frequent label of all to a unit that
/// does not occur there.
struct MostFrequent {
    by_unit: HashMap<String, usize>,
    overall: usize,
}

impl MostFrequent {
    fn learn(corpora: &[Corpus], labels: &Labels) -> Self {
        let mut counts: HashMap<&str, Vec<usize>> = HashMap::new();
        let mut overall = vec![0; labels.count()];
        for sentence in corpora.iter().flat_map(|corpus| &corpus.sentences) {
            for (unit, label) in sentence.units.iter().zip(&sentence.labels) {
                let Some(label) = labels.names().iter().position(|name| name == label) else { continue };
                counts.entry(unit).or_insert_with(|| vec![0; labels.count()])[label] += 1;
                overall[label] += 1;
            }
        }
        let by_unit = counts.iter().map(|(&unit, counts)| (unit.to_owned(), most(counts))).collect();
        Self { by_unit, overall: most(&overall) }
    }

    fn tag(&self, units: &[String]) -> Vec<usize> {
        units.iter().map(|unit| self.by_unit.get(unit).copied().unwrap_or(self.overall)).collect()
    }
}

/// The first of the greatest counts.
fn most(counts: &[usize]) -> usize {
    (0..counts.len()).max_by_key(|&i| (counts[i], std::cmp::Reverse(i))).unwrap_or(0)
}

/// The scores as a table in Markdown, in percent.
pub fn table(comparisons: &[Comparison]) -> String {
    let mut out =
        String::from("| data | measure | support | model | most frequent label |\n|---|---|---:|---:|---:|\n");
    for comparison in comparisons {
        let (model, baseline) = (&comparison.model, &comparison.baseline);
        let mut row = |measure: &str, support: usize, model: f64, baseline: f64| {
            let file = &comparison.file;
            let line = format!("| {file} | {measure} | {support} | {:.2} | {:.2} |", model * 100.0, baseline * 100.0);
            writeln!(out, "{line}").expect("writing to a string");
        };
        if let (Some(model), Some(baseline)) = (model.segmentation, baseline.segmentation) {
            row("word segmentation F1", model.support, model.f1, baseline.f1);
            row(
                "word and UPOS F1",
                comparison.model.spans.support,
                comparison.model.spans.f1,
                comparison.baseline.spans.f1,
            );
            row("syllable label accuracy", comparison.units, comparison.model.accuracy, comparison.baseline.accuracy);
            continue;
        }
        if comparison.scheme == Scheme::Plain {
            row("accuracy", comparison.units, model.accuracy, baseline.accuracy);
            continue;
        }
        let zero = Prf { precision: 0.0, recall: 0.0, f1: 0.0, support: 0 };
        row("entity precision", model.spans.support, model.spans.precision, baseline.spans.precision);
        row("entity recall", model.spans.support, model.spans.recall, baseline.spans.recall);
        row("entity F1", model.spans.support, model.spans.f1, baseline.spans.f1);
        for (label, prf) in &model.by_label {
            let other = baseline.by_label.get(label).unwrap_or(&zero);
            row(&format!("{label} F1"), prf.support, prf.f1, other.f1);
        }
    }
    out
}
