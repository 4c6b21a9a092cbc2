//! Decoding time (§3.3 of the paper): from the tokens of one sentence to its labels.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::matrix::Cell;
use crate::data::{Corpus, Example};
use crate::evaluate;
use crate::files;
use crate::run::Run;

const FILE: &str = "decoding.json";

/// Milliseconds a sentence, of a cell.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Decoding {
    /// The test file, relative to the data folder.
    pub file: String,
    /// Sentences decoded in each round, one at a time.
    pub sentences: usize,
    /// Their mean length in units.
    pub units: f64,
    /// The mean of every round, in milliseconds.
    pub rounds: Vec<f64>,
    /// Threads of libtorch.
    pub threads: i32,
    /// The processor.
    pub machine: String,
}

impl Decoding {
    /// Reads what [`time()`] wrote.
    ///
    /// # Errors
    /// When the file is missing or malformed.
    pub fn read(run: &Path) -> Result<Self> {
        files::read_json(&run.join(FILE))
    }

    /// The median of the rounds.
    pub fn median(&self) -> f64 {
        let mut rounds = self.rounds.clone();
        rounds.sort_by(f64::total_cmp);
        rounds[rounds.len() / 2]
    }
}

/// Measures the cells that are trained, in rounds over all of them, so that what slows the machine down for a while
/// does not fall on one alone. The first `sentences` of the first test file are decoded.
///
/// # Errors
/// When none is trained, or a run or its data cannot be read.
pub fn time(cells: &[Cell], data: &Path, out: &Path, sentences: usize, rounds: usize) -> Result<usize> {
    let dirs: Vec<PathBuf> = cells.iter().map(|cell| out.join(cell.to_string())).collect();
    let trained = |dir: &&PathBuf| evaluate::Report::read(dir, evaluate::Part::Test).is_ok();
    let mut subjects =
        dirs.iter().filter(trained).map(|dir| Subject::open(dir, data, sentences)).collect::<Result<Vec<_>>>()?;
    ensure!(!subjects.is_empty(), "no cell is trained yet: run \"paper train\" first");
    for round in 0..rounds {
        eprintln!("round {} of {rounds}, {} cells", round + 1, subjects.len());
        for subject in &mut subjects {
            subject.round();
        }
    }
    for subject in &subjects {
        files::write_json(&subject.run.dir.join(FILE), &subject.decoding)?;
    }
    Ok(subjects.len())
}

struct Subject {
    run: Run,
    examples: Vec<Example>,
    decoding: Decoding,
}

impl Subject {
    fn open(dir: &Path, data: &Path, sentences: usize) -> Result<Self> {
        let run = Run::open(dir)?;
        let task = &run.config.tasks[0];
        let file = task.test.first().context("task.test: there is nothing to decode")?;
        let corpus = Corpus::read(&data.join(file), task.reading())?;
        let mut examples = corpus.examples(&run.tokenizer, &run.labels[0])?;
        examples.truncate(sentences);
        let units: usize = examples.iter().map(|example| example.labels.len()).sum();
        let decoding = Decoding {
            file: file.display().to_string(),
            sentences: examples.len(),
            units: units as f64 / examples.len() as f64,
            rounds: Vec::new(),
            threads: tch::get_num_threads(),
            machine: machine(),
        };
        Ok(Self { run, examples, decoding })
    }

    fn round(&mut self) {
        let decode = |example: &Example| evaluate::predict(&self.run, 0, std::slice::from_ref(example));
        self.examples.iter().take(10).for_each(|example| drop(decode(example))); // warms up
        let start = Instant::now();
        self.examples.iter().for_each(|example| drop(decode(example)));
        self.decoding.rounds.push(start.elapsed().as_secs_f64() * 1e3 / self.examples.len() as f64);
    }
}

fn machine() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{}, {cores} cores", model.map_or("unknown processor", |(_, name)| name.trim()))
}
