//! The command line of the trainer: arguments to one call.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use vitag_trainer::config::{self, Config};
use vitag_trainer::evaluate::{self, Part};
use vitag_trainer::export::{self, Options};
use vitag_trainer::finetune::{self, Paths};
use vitag_trainer::run::Run;
use vitag_trainer::vocab;

/// Trains, scores and exports the models that vitag serves.
#[derive(Parser)]
#[command(version, about, after_help = EXAMPLES)]
struct Cli {
    /// Threads for the arithmetic; libtorch decides if left out. Runs repeat to the bit with 1.
    #[arg(long, global = true)]
    threads: Option<i32>,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples, from plain text to a model that vitag serves:
  vitag-trainer vocab --size 6000 --out tokenizer.json wiki.txt statutes.txt
  vitag-trainer finetune --config configs/vi-tagger.toml --data corpora --tokenizer tokenizer.json --out run
  vitag-trainer evaluate --run run --data corpora
  vitag-trainer export --run run --texts configs/golden.txt --models models";

#[derive(Subcommand)]
enum Command {
    /// Trains a WordPiece vocabulary on plain text.
    Vocab(VocabArgs),
    /// Trains an encoder with its heads on labelled data.
    Finetune(FinetuneArgs),
    /// Scores a trained run beside the most-frequent-label baseline.
    Evaluate(EvaluateArgs),
    /// Writes the model directory that vitag serves.
    Export(ExportArgs),
}

#[derive(Args)]
#[command(after_help = "Example:\n  vitag-trainer vocab --size 6000 --out tokenizer.json wiki.txt statutes.txt")]
struct VocabArgs {
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

#[derive(Args)]
#[command(after_help = "Examples:
  vitag-trainer finetune --config configs/vi-tagger.toml --data corpora --tokenizer tokenizer.json --out run
  vitag-trainer finetune --config configs/vi-tagger.toml --data corpora --tokenizer tokenizer.json --out run --resume")]
struct FinetuneArgs {
    /// Settings (TOML).
    #[arg(long)]
    config: PathBuf,
    /// Folder of the corpora that the settings name.
    #[arg(long, default_value = ".")]
    data: PathBuf,
    /// The tokenizer, as made by `vocab`; `tokenizer.json` if left out. A pretrained encoder brings its own.
    #[arg(long, conflicts_with = "encoder")]
    tokenizer: Option<PathBuf>,
    /// The encoder directory to start from, instead of the sizes or the directory in the settings.
    #[arg(long)]
    encoder: Option<PathBuf>,
    /// Folder of the run.
    #[arg(long, default_value = "run")]
    out: PathBuf,
    /// Seed, instead of that of the settings.
    #[arg(long)]
    seed: Option<u64>,
    /// Goes on from the last checkpoint in the run's folder.
    #[arg(long)]
    resume: bool,
}

#[derive(Args)]
#[command(after_help = "Example:\n  vitag-trainer evaluate --run run --data corpora --part test")]
struct EvaluateArgs {
    /// Folder of the run.
    #[arg(long, default_value = "run")]
    run: PathBuf,
    /// Folder of the corpora that the run's settings name.
    #[arg(long, default_value = ".")]
    data: PathBuf,
    /// Part of the data.
    #[arg(long, value_enum, default_value = "test")]
    part: Part,
}

#[derive(Args)]
#[command(after_help = "Example:\n  vitag-trainer export --run run --texts configs/golden.txt --models models")]
struct ExportArgs {
    /// Folder of the run; it must hold the scores on the test data.
    #[arg(long, default_value = "run")]
    run: PathBuf,
    /// Texts, one a line, whose answers every worker checks before it serves the model.
    #[arg(long)]
    texts: PathBuf,
    /// Folder of all models.
    #[arg(long, default_value = "models")]
    models: PathBuf,
    /// Commit of the code, for the manifest.
    #[arg(long)]
    git_commit: Option<String>,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vitag-trainer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    if let Some(threads) = cli.threads {
        tch::set_num_threads(threads);
    }
    match cli.command {
        Command::Vocab(args) => vocab(&args),
        Command::Finetune(args) => finetune(&args),
        Command::Evaluate(args) => evaluate(&args),
        Command::Export(args) => export(&args),
    }
}

fn vocab(args: &VocabArgs) -> Result<()> {
    let options = vocab::Options { size: args.size, min_frequency: args.min_frequency };
    let pieces = vocab::train(&args.inputs, options, &args.out)?;
    eprintln!("{pieces} pieces in {}", args.out.display());
    Ok(())
}

fn finetune(args: &FinetuneArgs) -> Result<()> {
    let mut config = Config::read(&args.config)?;
    config.seed = args.seed.unwrap_or(config.seed);
    if let Some(encoder) = &args.encoder {
        config.encoder = config::Encoder { from: Some(encoder.clone()), sizes: None, ..config.encoder };
    }
    let paths = Paths { data: &args.data, tokenizer: args.tokenizer.as_deref(), out: &args.out };
    let best = finetune::finetune(config, paths, args.resume)?;
    eprintln!("best development score {best:.4}, weights in {}", args.out.display());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the table is the output of the command")]
fn evaluate(args: &EvaluateArgs) -> Result<()> {
    let run = Run::open(&args.run)?;
    let report = evaluate::evaluate(&run, &args.data, args.part)?;
    let path = report.write(&args.run)?;
    println!("{}", evaluate::table(&report.results));
    eprintln!("scores in {}", path.display());
    Ok(())
}

fn export(args: &ExportArgs) -> Result<()> {
    let run = Run::open(&args.run)?;
    let git_commit = args.git_commit.as_deref();
    let dir = export::export(&run, Options { models: &args.models, texts: &args.texts, git_commit })?;
    eprintln!("model in {}", dir.display());
    Ok(())
}
