//! What a run says of itself: `metrics.jsonl`, events for TensorBoard, and curves drawn from the former.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::events::Events;
use crate::{curves, files};

/// One JSON object a line, the [`Record`]s of a run.
pub const LOG: &str = "metrics.jsonl";

/// What was measured at a step.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Record {
    /// Steps done.
    pub step: u64,
    /// On which data.
    pub part: Part,
    /// The measures by name.
    #[serde(flatten)]
    pub values: BTreeMap<String, f64>,
}

/// Which data a measure is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// What is trained on, since the last record.
    Train,
    /// What was held out.
    HeldOut,
}

/// The log of a run.
#[derive(Debug)]
pub struct Metrics {
    dir: PathBuf,
    records: Vec<Record>,
    events: Events,
}

impl Metrics {
    /// Opens the log in `dir`, without the records of steps after `step`: a run that goes on from there makes them again.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn open(dir: &Path, step: u64) -> Result<Self> {
        let mut records = if step == 0 { Vec::new() } else { read(dir)? };
        records.retain(|record| record.step <= step);
        let lines: Vec<String> = records.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        files::write_atomically(&dir.join(LOG), text.as_bytes())?;
        Ok(Self { dir: dir.to_owned(), records, events: Events::create(dir)? })
    }

    /// Adds a record.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn push(&mut self, record: Record) -> Result<()> {
        let path = self.dir.join(LOG);
        let file = OpenOptions::new().append(true).open(&path);
        file.and_then(|mut file| writeln!(file, "{}", serde_json::to_string(&record)?))
            .with_context(|| format!("cannot write {}", path.display()))?;
        let part = if record.part == Part::Train { "train" } else { "held_out" };
        self.events
            .scalars(record.step, record.values.iter().map(|(name, value)| (format!("{part}/{name}"), value)))?;
        self.records.push(record);
        Ok(())
    }

    /// Draws the curves so far.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn draw(&self) -> Result<()> {
        files::write_atomically(&self.dir.join(curves::FILE), curves::draw(&self.records)?.as_bytes())
    }
}

/// Reads the records of a run.
///
/// # Errors
/// When the file is missing or malformed; the message names the line.
pub fn read(dir: &Path) -> Result<Vec<Record>> {
    let path = dir.join(LOG);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let parse = |(i, line)| serde_json::from_str(line).with_context(|| format!("{}:{}", path.display(), i + 1));
    text.lines().enumerate().map(parse).collect()
}
