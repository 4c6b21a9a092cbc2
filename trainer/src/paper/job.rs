//! Trains and scores the cells of a matrix, one after the other.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::matrix::{Cell, Matrix};
use crate::config::Config;
use crate::evaluate::{self, Part, Report};
use crate::finetune::{self, Paths};
use crate::fit;
use crate::run::{self, Run};

const LOCK: &str = "lock";

/// What became of the cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Trained and scored now.
    pub trained: usize,
    /// Scored before.
    pub done: usize,
    /// In the hands of another process.
    pub taken: usize,
    /// Failed; why was printed.
    pub failed: usize,
}

/// Trains and scores those of the `cells` that are not yet; one that was interrupted goes on after its last epoch. What
/// goes wrong with one does not keep the others from running.
pub fn train(matrix: &Matrix, cells: &[Cell], data: &Path, out: &Path) -> Outcome {
    let (start, mut outcome) = (Instant::now(), Outcome::default());
    for (i, cell) in cells.iter().enumerate() {
        eprintln!("{} of {}, after {:.0} min: {cell}", i + 1, cells.len(), start.elapsed().as_secs_f64() / 60.0);
        match one(matrix, cell, data, &out.join(cell.to_string())) {
            Ok(State::Trained) => outcome.trained += 1,
            Ok(State::Done) => outcome.done += 1,
            Ok(State::Taken) => outcome.taken += 1,
            Err(error) => {
                eprintln!("{cell}: {error:#}");
                outcome.failed += 1;
            }
        }
    }
    outcome
}

enum State {
    Trained,
    Done,
    Taken,
}

fn one(matrix: &Matrix, cell: &Cell, data: &Path, dir: &Path) -> Result<State> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // Held until the end of this function, and by a process that dies no longer than it lives.
    let lock = File::create(dir.join(LOCK)).with_context(|| format!("cannot write in {}", dir.display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(State::Taken),
        Err(TryLockError::Error(error)) => return Err(error).context("cannot lock it"),
    }
    let config = matrix.config(cell)?;
    is_the_same(dir, &config)?;
    if Report::read(dir, Part::Test).is_ok() {
        return Ok(State::Done);
    }
    let resume = dir.join(fit::LAST).exists();
    let tokenizer = matrix.encoder(&cell.encoder)?.tokenizer.as_deref();
    finetune::finetune(config, Paths { data, tokenizer, out: dir }, resume)?;
    let (report, details) = evaluate::in_detail(&Run::open(dir)?, data, Part::Test)?;
    evaluate::write_details(dir, &report, &details)?;
    report.write(dir)?; // the last: with it, the cell is done
    fs::remove_file(dir.join(fit::LAST)).context("cannot remove the checkpoint")?;
    Ok(State::Trained)
}

/// Checks that what is there was trained with the settings that the matrix has now.
fn is_the_same(dir: &Path, config: &Config) -> Result<()> {
    let path = dir.join(run::CONFIG);
    if let Ok(before) = fs::read_to_string(&path) {
        ensure!(
            before == toml::to_string(config)?,
            "{} was trained with other settings: remove the directory to train it again, or choose another --out",
            path.display()
        );
    }
    Ok(())
}
