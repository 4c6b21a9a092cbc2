//! The command that repeats the paper's experiments.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use vitag_trainer::paper::{self, Matrix};

#[derive(Subcommand)]
pub(crate) enum PaperCommand {
    /// Trains and scores the cells that are not yet; interrupted ones go on. Several processes can share a matrix.
    Train(TrainArgs),
    /// Measures the decoding time of the trained cells.
    Time(TimeArgs),
    /// Writes the tables and figures.
    Report(ReportArgs),
}

#[derive(Args)]
struct Common {
    /// The matrix (TOML): encoders, tasks, heads and seeds.
    #[arg(long)]
    matrix: PathBuf,
    /// Folder of the runs.
    #[arg(long, default_value = "paper")]
    out: PathBuf,
}

#[derive(Args)]
struct Chosen {
    #[command(flatten)]
    common: Common,
    /// Folder of the corpora that the matrix names.
    #[arg(long, default_value = ".")]
    data: PathBuf,
    /// Only the cells below this path, task/encoder/head/seed; may be given several times.
    #[arg(long)]
    only: Vec<String>,
}

#[derive(Args)]
#[command(after_help = "Examples:
  vitag-trainer --threads 1 paper train --matrix configs/paper/matrix.toml --data corpora
  vitag-trainer --threads 1 paper train --matrix configs/paper/matrix.toml --data corpora --only upos/vibert --only ner")]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    chosen: Chosen,
}

#[derive(Args)]
#[command(after_help = "Example:
  vitag-trainer --threads 1 paper time --matrix configs/paper/matrix.toml --data corpora --rounds 5")]
pub(crate) struct TimeArgs {
    #[command(flatten)]
    chosen: Chosen,
    /// Sentences of the first test file to decode, one at a time.
    #[arg(long, default_value_t = 200)]
    sentences: usize,
    /// Rounds over all cells.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

#[derive(Args)]
#[command(after_help = "Example:
  vitag-trainer paper report --matrix configs/paper/matrix.toml --page docs/results.md")]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    common: Common,
    /// The page to write; figures go into a folder of its name beside it.
    #[arg(long, default_value = "results.md")]
    page: PathBuf,
}

pub(crate) fn paper(command: &PaperCommand) -> Result<()> {
    match command {
        PaperCommand::Train(TrainArgs { chosen }) => train(chosen),
        PaperCommand::Time(TimeArgs { chosen, sentences, rounds }) => {
            let cells = Matrix::read(&chosen.common.matrix)?.chosen(&chosen.only)?;
            let timed = paper::time(&cells, &chosen.data, &chosen.common.out, *sentences, *rounds)?;
            eprintln!("{timed} cells timed");
            Ok(())
        }
        PaperCommand::Report(ReportArgs { common, page }) => {
            paper::report(&Matrix::read(&common.matrix)?, &common.out, page)?;
            eprintln!("results in {}", page.display());
            Ok(())
        }
    }
}

fn train(chosen: &Chosen) -> Result<()> {
    let matrix = Matrix::read(&chosen.common.matrix)?;
    let cells = matrix.chosen(&chosen.only)?;
    let outcome = paper::train(&matrix, &cells, &chosen.data, &chosen.common.out);
    let paper::Outcome { trained, done, taken, failed } = outcome;
    eprintln!("{trained} trained, {done} were done before, {taken} are being trained elsewhere, {failed} failed");
    ensure!(failed == 0, "{failed} cells failed");
    Ok(())
}
