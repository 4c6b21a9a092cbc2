//! The command line of the trainer: arguments to one call.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use signal_hook::consts::{SIGINT, SIGTERM};
use vitag_trainer::config::{self, Config};
use vitag_trainer::evaluate::{self, Part};
use vitag_trainer::export::{self, Int8, Options};
use vitag_trainer::finetune::{self, Paths};
use vitag_trainer::run::Run;
use vitag_trainer::{checkpoint, pretrain, shards};

mod prepare;
mod repeat;

use prepare::{CleanArgs, ExportHfArgs, ImportArgs, VocabCommand};
use repeat::PaperCommand;

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
  vitag-trainer clean --out text raw/
  vitag-trainer vocab train --size 6000 --out tokenizer.json text
  vitag-trainer tokenize --tokenizer tokenizer.json --out shards text
  vitag-trainer pretrain electra --config configs/electra-small.toml --shards shards --out electra --max-minutes 60
  vitag-trainer finetune --config configs/vi-tagger.toml --data corpora --tokenizer tokenizer.json --out run
  vitag-trainer evaluate --run run --data corpora
  vitag-trainer export --run run --texts configs/golden.txt --models models";

#[derive(Subcommand)]
enum Command {
    /// Makes training text of raw text: sentences of Vietnamese, each once.
    Clean(CleanArgs),
    /// Makes vocabularies.
    #[command(subcommand)]
    Vocab(VocabCommand),
    /// Makes an encoder directory of a checkpoint of Hugging Face.
    Import(ImportArgs),
    /// Makes a checkpoint of Hugging Face of an encoder directory.
    ExportHf(ExportHfArgs),
    /// Cuts plain text into the tokenised corpus that `pretrain` reads.
    Tokenize(TokenizeArgs),
    /// Trains an encoder on a tokenised corpus.
    Pretrain(PretrainArgs),
    /// Trains an encoder with its heads on labelled data.
    Finetune(FinetuneArgs),
    /// Scores a trained run beside the most-frequent-label baseline.
    Evaluate(EvaluateArgs),
    /// Writes the model directory that vitag serves.
    Export(ExportArgs),
    /// Repeats the experiments of the paper: every task with every encoder and every head.
    #[command(subcommand)]
    Paper(PaperCommand),
}

#[derive(Args)]
#[command(
    after_help = "Example:\n  vitag-trainer tokenize --tokenizer tokenizer.json --out shards wiki.txt statutes.txt"
)]
struct TokenizeArgs {
    /// Files, folders, or - for standard input: UTF-8, sentences or paragraphs on lines, a blank line between documents;
    /// plain, gzip, xz or Zstandard.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// The tokenizer.
    #[arg(long, default_value = "tokenizer.json")]
    tokenizer: PathBuf,
    /// Folder of the shards; what is in it is replaced.
    #[arg(long, default_value = "shards")]
    out: PathBuf,
}

#[derive(Args)]
#[command(after_help = "Examples:
  vitag-trainer pretrain electra --config configs/electra-small.toml --shards shards --out electra --max-minutes 60
  vitag-trainer pretrain bert --config configs/bert-small.toml --encoder imported --shards shards --out bert
  vitag-trainer pretrain bert --config configs/bert-small.toml --encoder imported --shards shards --out bert --resume")]
struct PretrainArgs {
    /// What is learnt: to fill in masked words, or to tell replaced tokens.
    #[arg(value_enum)]
    kind: checkpoint::Kind,
    /// Settings (TOML).
    #[arg(long)]
    config: PathBuf,
    /// Folder of the tokenised corpus.
    #[arg(long, default_value = "shards")]
    shards: PathBuf,
    /// The tokenizer; `tokenizer.json` if left out. A pretrained encoder brings its own.
    #[arg(long, conflicts_with = "encoder")]
    tokenizer: Option<PathBuf>,
    /// The encoder directory to start from, instead of the sizes or the directory in the settings.
    #[arg(long)]
    encoder: Option<PathBuf>,
    /// Folder of the run.
    #[arg(long, default_value = "pretrained")]
    out: PathBuf,
    /// Seed, instead of that of the settings.
    #[arg(long)]
    seed: Option<u64>,
    /// Ends after so many minutes of training in all; the learning rate then falls by the clock.
    #[arg(long, value_parser = minutes)]
    max_minutes: Option<Duration>,
    /// Goes on from the last checkpoint in the run's folder.
    #[arg(long)]
    resume: bool,
}

fn minutes(text: &str) -> Result<Duration, String> {
    let minutes: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    Some(minutes)
        .filter(|&minutes| minutes > 0.0)
        .and_then(|minutes| Duration::try_from_secs_f64(minutes * 60.0).ok())
        .ok_or_else(|| "must be greater than 0".to_owned())
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
#[command(after_help = "Examples:
  vitag-trainer export --run run --texts configs/golden.txt --models models
  vitag-trainer export --run run --texts configs/golden.txt --models models --int8 --data corpora")]
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
    /// Adds a graph in int8 and compares it on the development data; needs ONNX Runtime.
    #[arg(long)]
    int8: bool,
    /// Folder of the corpora that the run's settings name; read with --int8.
    #[arg(long, default_value = ".")]
    data: PathBuf,
    /// What int8 may cost a head of its development score, in points of a hundred.
    #[arg(long, default_value_t = 0.5)]
    max_int8_loss: f64,
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
        Command::Clean(args) => prepare::clean(&args, cli.threads),
        Command::Vocab(command) => prepare::vocab(&command),
        Command::Import(args) => prepare::import(&args),
        Command::ExportHf(args) => prepare::export_hf(&args),
        Command::Tokenize(args) => tokenize(&args),
        Command::Pretrain(args) => pretrain(&args),
        Command::Finetune(args) => finetune(&args),
        Command::Evaluate(args) => evaluate(&args),
        Command::Export(args) => export(&args),
        Command::Paper(command) => repeat::paper(&command),
    }
}

fn tokenize(args: &TokenizeArgs) -> Result<()> {
    let summary = shards::tokenize(&args.inputs, &args.tokenizer, &args.out)?;
    let shards::Summary { sentences, syllables, tokens, unknown } = summary;
    let (pieces, share) = (tokens as f64 / syllables as f64, unknown as f64 / tokens as f64 * 100.0);
    eprintln!(
        "{sentences} sentences, {tokens} tokens ({pieces:.3} a syllable, {share:.3} % unknown) in {}",
        args.out.display()
    );
    Ok(())
}

fn pretrain(args: &PretrainArgs) -> Result<()> {
    let mut config = pretrain::config::Config::read(&args.config)?;
    config.seed = args.seed.unwrap_or(config.seed);
    if let Some(encoder) = &args.encoder {
        config.encoder = config::Encoder { from: Some(encoder.clone()), sizes: None, ..config.encoder };
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The first saves and ends, the second ends at once.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let options = pretrain::Options {
        kind: args.kind,
        shards: &args.shards,
        tokenizer: args.tokenizer.as_deref(),
        out: &args.out,
        budget: args.max_minutes,
        resume: args.resume,
        stop: &stop,
    };
    for (name, value) in pretrain::pretrain(&config, &options)? {
        eprintln!("held out: {name} {value:.4}");
    }
    eprintln!("encoder in {}", args.out.join(pretrain::checkpoint::ENCODER_DIR).display());
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
    let (report, details) = evaluate::in_detail(&run, &args.data, args.part)?;
    let path = report.write(&args.run)?;
    let page = evaluate::write_details(&args.run, &report, &details)?;
    println!("{}", evaluate::table(&report.results));
    eprintln!("scores in {}, details in {}", path.display(), page.display());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the table is the output of the command")]
fn export(args: &ExportArgs) -> Result<()> {
    let run = Run::open(&args.run)?;
    let int8 = args.int8.then_some(Int8 { data: &args.data, max_loss: args.max_int8_loss / 100.0 });
    let git_commit = args.git_commit.as_deref();
    let exported = export::export(&run, Options { models: &args.models, texts: &args.texts, git_commit, int8 })?;
    if int8.is_some() {
        println!("{}", export::agreement_table(&exported.agreement));
    }
    eprintln!("model in {}", exported.dir.display());
    Ok(())
}
