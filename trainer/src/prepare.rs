//! The commands before training: text, vocabularies and encoders.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use vitag_trainer::clean::{self, Rules};
use vitag_trainer::vocab;

#[derive(Args)]
#[command(after_help = "Examples:
  vitag-trainer clean --out text raw/
  xz -dc crawl.xz | vitag-trainer clean --out text --min-words 5 -")]
pub(crate) struct CleanArgs {
    /// Files, folders, or - for standard input: UTF-8, a paragraph a line, a blank line between documents; plain, gzip,
    /// xz or Zstandard.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// The directory to make, with the shards and report.json.
    #[arg(long, default_value = "text")]
    out: PathBuf,
    /// Drops sentences of fewer words.
    #[arg(long, default_value_t = 4)]
    min_words: usize,
    /// Drops sentences of whose letters a greater share is not Vietnamese (0 to 1).
    #[arg(long, default_value_t = 0.05)]
    max_foreign: f64,
    /// Megabytes of a shard.
    #[arg(long, default_value_t = 256)]
    shard_mb: u64,
}

#[expect(clippy::print_stdout, reason = "the table is the output of the command")]
pub(crate) fn clean(args: &CleanArgs, threads: Option<i32>) -> Result<()> {
    let threads = threads.and_then(|threads| usize::try_from(threads).ok());
    let options = clean::Options {
        rules: Rules { min_words: args.min_words, max_foreign: args.max_foreign },
        shard_bytes: args.shard_mb * 1_000_000,
        threads: threads.map_or_else(|| std::thread::available_parallelism().map(usize::from), Ok)?,
    };
    let start = std::time::Instant::now();
    let report = clean::clean(&args.inputs, options, &args.out)?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{report}");
    let rate = report.bytes as f64 / 1e6 / seconds;
    eprintln!("{seconds:.1} s, {rate:.1} MB/s; shards and report in {}", args.out.display());
    Ok(())
}

#[derive(Subcommand)]
pub(crate) enum VocabCommand {
    /// Trains a WordPiece vocabulary on plain text.
    Train(TrainArgs),
}

#[derive(Args)]
#[command(after_help = "Example:\n  vitag-trainer vocab train --size 6000 --out tokenizer.json text/*.txt")]
pub(crate) struct TrainArgs {
    /// Plain text files, UTF-8.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Number of pieces, special ones included.
    #[arg(long, default_value_t = 6000)]
    size: usize,
    /// How often a piece must occur.
    #[arg(long, default_value_t = 2)]
    min_frequency: u64,
    /// Where the tokenizer goes.
    #[arg(long, default_value = "tokenizer.json")]
    out: PathBuf,
}

pub(crate) fn vocab(command: &VocabCommand) -> Result<()> {
    match command {
        VocabCommand::Train(args) => train_vocab(args),
    }
}

fn train_vocab(args: &TrainArgs) -> Result<()> {
    let options = vocab::Options { size: args.size, min_frequency: args.min_frequency };
    let pieces = vocab::train(&args.inputs, options, &args.out)?;
    eprintln!("{pieces} pieces in {}", args.out.display());
    Ok(())
}
