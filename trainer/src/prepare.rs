//! The commands before training: text, vocabularies and encoders.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use vitag_trainer::checkpoint::Checkpoint;
use vitag_trainer::clean::{self, Rules};
use vitag_trainer::vocab::{self, prune};
use vitag_trainer::{files, hub};

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
    /// Keeps of a vocabulary, and of its encoder, the pieces that a text uses.
    Prune(PruneArgs),
}

#[derive(Args)]
#[command(after_help = "Example:\n  vitag-trainer vocab train --size 6000 --out tokenizer.json text")]
pub(crate) struct TrainArgs {
    /// The text: files, folders, or - for standard input, plain, gzip, xz or Zstandard.
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
        VocabCommand::Prune(args) => prune_vocab(args),
    }
}

#[derive(Args)]
#[command(after_help = "Examples:
  vitag-trainer vocab prune --encoder mbert --min-uses 5 --out vibert text
  vitag-trainer vocab prune --tokenizer vocab.txt --min-uses 5 --out tokenizer.json text")]
pub(crate) struct PruneArgs {
    /// The text: files, folders, or - for standard input, plain, gzip, xz or Zstandard.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// The encoder directory whose tokenizer is pruned, and its embeddings with it.
    #[arg(long, required_unless_present = "tokenizer")]
    encoder: Option<PathBuf>,
    /// The tokenizer alone, instead: tokenizer.json (WordPiece or Unigram) or vocab.txt.
    #[arg(long, conflicts_with = "encoder")]
    tokenizer: Option<PathBuf>,
    /// Uses that a piece must have in the text.
    #[arg(long, default_value_t = 5)]
    min_uses: u64,
    /// The encoder directory, or tokenizer.json, to make.
    #[arg(long)]
    out: PathBuf,
    /// Where the report goes, as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
}

#[expect(clippy::print_stdout, reason = "the table is the output of the command")]
fn prune_vocab(args: &PruneArgs) -> Result<()> {
    is_free(&args.out)?;
    let report = match (&args.encoder, &args.tokenizer) {
        (Some(dir), _) => {
            let checkpoint = Checkpoint::read(dir)?;
            let pruned = prune::prune(&checkpoint.tokenizer, &args.inputs, args.min_uses)?;
            let report = pruned.report;
            prune::encoder(checkpoint, pruned).write(&args.out)?;
            report
        }
        (None, path) => {
            let tokenizer = hub::tokenizer(path.as_deref().unwrap_or(Path::new("tokenizer.json")))?;
            let pruned = prune::prune(&tokenizer, &args.inputs, args.min_uses)?;
            files::write_atomically(&args.out, &pruned.tokenizer)?;
            pruned.report
        }
    };
    println!("{report}");
    if let Some(path) = &args.report {
        files::write_json(path, &report)?;
    }
    Ok(())
}

fn train_vocab(args: &TrainArgs) -> Result<()> {
    let options = vocab::Options { size: args.size, min_frequency: args.min_frequency };
    let pieces = vocab::train(&args.inputs, options, &args.out)?;
    eprintln!("{pieces} pieces in {}", args.out.display());
    Ok(())
}

#[derive(Args)]
#[command(after_help = "Example:\n  vitag-trainer import bert-base-multilingual-cased --out encoder")]
pub(crate) struct ImportArgs {
    /// The checkpoint of Hugging Face, BERT or ELECTRA: config.json, model.safetensors, and tokenizer.json or vocab.txt.
    checkpoint: PathBuf,
    /// The encoder directory to make.
    #[arg(long, default_value = "encoder")]
    out: PathBuf,
}

pub(crate) fn import(args: &ImportArgs) -> Result<()> {
    is_free(&args.out)?;
    let checkpoint = hub::import(&args.checkpoint)?;
    checkpoint.write(&args.out)?;
    eprintln!("{} pieces; encoder in {}", checkpoint.description.vocabulary, args.out.display());
    Ok(())
}

#[derive(Args)]
#[command(after_help = "Example:\n  vitag-trainer export-hf run/encoder --out vibert")]
pub(crate) struct ExportHfArgs {
    /// The encoder directory.
    encoder: PathBuf,
    /// The directory to make, for `from_pretrained` of transformers.
    #[arg(long)]
    out: PathBuf,
}

pub(crate) fn export_hf(args: &ExportHfArgs) -> Result<()> {
    is_free(&args.out)?;
    hub::export(&Checkpoint::read(&args.encoder)?, &args.out)?;
    eprintln!("checkpoint in {}", args.out.display());
    Ok(())
}

fn is_free(out: &Path) -> Result<()> {
    ensure!(!out.exists(), "{} is there: remove it or choose another name", out.display());
    Ok(())
}
