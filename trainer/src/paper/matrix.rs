//! The settings of a matrix: one TOML file, unknown keys refused, and the cells that it asks for.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::config::{self, Config, Encoder, HeadKind, Model, TaskConfig, Train};

/// Which experiments to run, and what to say beside them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    /// What the results are called.
    pub title: String,
    /// What to know before reading them, in Markdown.
    #[serde(default)]
    pub about: String,
    /// Every cell is trained once with each.
    pub seeds: Vec<u64>,
    /// Name, licence and data of the models that come out.
    pub model: Model,
    /// The loop.
    pub train: Train,
    /// The encoders.
    #[serde(rename = "encoder")]
    pub encoders: Vec<NamedEncoder>,
    /// The tasks, each alone on its encoder. The kind of their head is that of the cell.
    #[serde(rename = "task")]
    pub tasks: Vec<TaskConfig>,
    /// The cells.
    #[serde(rename = "block")]
    pub blocks: Vec<Block>,
    /// Which encoders to set against each other.
    #[serde(default, rename = "claim")]
    pub claims: Vec<Claim>,
    /// What the paper reports.
    #[serde(default, rename = "reported")]
    pub reported: Vec<Reported>,
}

/// An encoder with a name.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedEncoder {
    /// The name in tables and directories.
    pub name: String,
    /// What it is, in words.
    pub about: String,
    /// Its sizes or its directory.
    pub start: Encoder,
    /// The tokenizer of one that begins with random weights.
    pub tokenizer: Option<PathBuf>,
    /// Its learning rate, where it is other than `train.learning_rate`.
    pub learning_rate: Option<f64>,
}

/// Cells: each of the tasks with each of the encoders and each of the heads.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// Names of tasks.
    pub tasks: Vec<String>,
    /// Names of encoders.
    pub encoders: Vec<String>,
    /// Heads.
    pub heads: Vec<HeadKind>,
    /// Epochs at most, where they are other than `train.epochs`.
    pub epochs: Option<usize>,
}

/// A claim of the paper that compares two encoders.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The claim, with the paper's figures.
    pub claim: String,
    /// The encoder that should score higher.
    pub better: String,
    /// The one that should score lower.
    pub than: String,
}

/// A table of the paper.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reported {
    /// What was measured, on which data.
    pub title: String,
    /// The encoders, one a column.
    pub encoders: Vec<String>,
    /// The scores by head, in percent.
    pub scores: BTreeMap<HeadKind, Vec<f64>>,
}

/// One training run of the matrix.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cell {
    /// Name of the task.
    pub task: String,
    /// Name of the encoder.
    pub encoder: String,
    /// The head.
    pub head: HeadKind,
    /// The seed.
    pub seed: u64,
    /// Epochs at most, where they are not those of the matrix.
    pub epochs: Option<usize>,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.task, self.encoder, self.head.name(), self.seed)
    }
}

impl Matrix {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, has an unknown key, or names an encoder or a task that it does not describe.
    pub fn read(path: &Path) -> Result<Self> {
        config::read(path, Self::parse)
    }

    /// As [`Matrix::read`], from the text of a file.
    ///
    /// # Errors
    /// As [`Matrix::read`].
    pub fn parse(text: &str) -> Result<Self> {
        let matrix: Self = toml::from_str(text)?;
        matrix.validate()?;
        Ok(matrix)
    }

    fn validate(&self) -> Result<()> {
        ensure!(!self.seeds.is_empty(), "seeds: at least one is needed");
        let names = |key: &str, names: Vec<&String>| {
            let mut seen = HashSet::new();
            for name in names {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                ensure!(
                    !name.is_empty() && name.chars().all(plain),
                    "{key}: {name:?} is also the name of a directory: use letters, digits, - and _"
                );
                ensure!(seen.insert(name), "{key}: {name:?} stands twice");
            }
            Ok(())
        };
        names("encoder.name", self.encoders.iter().map(|encoder| &encoder.name).collect())?;
        names("task.name", self.tasks.iter().map(|task| &task.name).collect())?;
        for claim in &self.claims {
            self.encoder(&claim.better).context("claim.better")?;
            self.encoder(&claim.than).context("claim.than")?;
        }
        for table in &self.reported {
            let (title, columns) = (&table.title, table.encoders.len());
            ensure!(
                table.scores.values().all(|scores| scores.len() == columns),
                "reported.scores: {title:?} needs {columns} a head, one for each of its encoders"
            );
        }
        self.cells().iter().try_for_each(|cell| self.config(cell).map(drop))
    }

    /// The cells, in the order of the file, each once.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for block in &self.blocks {
            for (task, encoder) in block.tasks.iter().flat_map(|task| block.encoders.iter().map(move |e| (task, e))) {
                for (&head, &seed) in block.heads.iter().flat_map(|head| self.seeds.iter().map(move |s| (head, s))) {
                    cells.push(Cell { task: task.clone(), encoder: encoder.clone(), head, seed, epochs: block.epochs });
                }
            }
        }
        let mut seen = HashSet::new();
        cells.retain(|cell| seen.insert(cell.to_string()));
        cells
    }

    /// The cells whose path begins with one of `only`, or all if there are none.
    ///
    /// # Errors
    /// When nothing does.
    pub fn chosen(&self, only: &[String]) -> Result<Vec<Cell>> {
        let mut cells = self.cells();
        let under = |cell: &Cell, prefix: &str| {
            let path = cell.to_string();
            path.strip_prefix(prefix.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        for prefix in only {
            if !cells.iter().any(|cell| under(cell, prefix)) {
                bail!("--only {prefix}: the matrix has no such cell (a cell is task/encoder/head/seed)");
            }
        }
        cells.retain(|cell| only.is_empty() || only.iter().any(|prefix| under(cell, prefix)));
        Ok(cells)
    }

    /// An encoder by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn encoder(&self, name: &str) -> Result<&NamedEncoder> {
        self.encoders
            .iter()
            .find(|encoder| encoder.name == name)
            .with_context(|| format!("no [[encoder]] is named {name:?}"))
    }

    /// A task by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn task(&self, name: &str) -> Result<&TaskConfig> {
        self.tasks.iter().find(|task| task.name == name).with_context(|| format!("no [[task]] is named {name:?}"))
    }

    /// The settings of a cell's run.
    ///
    /// # Errors
    /// When they make no sense.
    pub fn config(&self, cell: &Cell) -> Result<Config> {
        let mut task = self.task(&cell.task)?.clone();
        task.head.kind = cell.head;
        let encoder = self.encoder(&cell.encoder)?;
        let train = Train {
            epochs: cell.epochs.unwrap_or(self.train.epochs),
            learning_rate: encoder.learning_rate.unwrap_or(self.train.learning_rate),
            ..self.train.clone()
        };
        let config = Config {
            seed: cell.seed,
            model: Model { name: format!("{}-{}-{}", cell.task, cell.encoder, cell.head.name()), ..self.model.clone() },
            encoder: encoder.start.clone(),
            train,
            tasks: vec![task],
        };
        config.validate().with_context(|| cell.to_string())?;
        Ok(config)
    }
}
