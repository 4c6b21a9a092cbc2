//! Pretrains an encoder on plain text: [`bert`] or [`electra`], from random weights or from an encoder directory.
//!
//! A run leaves in its folder `encoder/`, the encoder directory; `last.safetensors`, from which it can go on;
//! `metrics.jsonl`, events for TensorBoard and `curves.svg`; and its settings. What is drawn at a step, masks, order,
//! dropout and guesses, depends on the seed and the number of the step alone: on one thread of one machine, a run that
//! was interrupted and resumed comes to the same weights, to the bit, as one that was not. With a budget of time the
//! learning rate follows the clock, so no two runs are the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tch::Device;
use tch::nn::VarStore;

use crate::checkpoint::{Description, Kind, Start, TOKENIZER};
use crate::files;
use crate::masking::{Masking, Pieces};
use crate::shards::Shards;

pub mod bert;
pub mod checkpoint;
pub mod config;
pub mod corpus;
pub mod electra;
mod loader;
pub mod objective;
mod seed;
mod steps;

use bert::Bert;
use config::Config;
use corpus::Corpus;
use electra::Electra;
use objective::Objective;
use steps::Steps;

/// The settings as they were when the run began.
const CONFIG: &str = "config.toml";

/// What a run needs beside its settings.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// What is learnt.
    pub kind: Kind,
    /// Folder of the tokenised corpus.
    pub shards: &'a Path,
    /// `tokenizer.json`, where the encoder begins with random weights.
    pub tokenizer: Option<&'a Path>,
    /// Folder of the run.
    pub out: &'a Path,
    /// Time after which it ends.
    pub budget: Option<Duration>,
    /// Whether to go on from the last checkpoint in the folder.
    pub resume: bool,
    /// Set from outside when the run should save and end.
    pub stop: &'a AtomicBool,
}

/// Pretrains an encoder and returns its scores on held-out text.
///
/// # Errors
/// When the settings or the parts do not fit each other, a file cannot be read or written, the loss is not a number, or
/// it was stopped.
pub fn pretrain(config: &Config, options: &Options) -> Result<BTreeMap<String, f64>> {
    let start = Start::new(&config.encoder, options.tokenizer)?;
    let (sizes, vocabulary) = (&start.description.sizes, start.description.vocabulary as i64);
    let device = Device::cuda_if_available();
    let kind = config.train.precision.kind(device)?;
    let length = config.train.length;
    ensure!(length <= sizes.max_length, "train.length: {length} is more than the encoder reads, {}", sizes.max_length);
    let corpus = corpus(&start, config, options)?;
    eprintln!("{} tokens of text, {} sequences to train on", corpus.tokens(), corpus.sequences());
    prepare(config, options)?;

    tch::manual_seed(config.seed as i64);
    let store = VarStore::new(device);
    let dropout = config.encoder.dropout;
    let objective: Box<dyn Objective> = match (options.kind, &config.generator) {
        (Kind::Bert, None) => Box::new(Bert::new(&store, sizes, vocabulary, dropout)),
        (Kind::Electra, Some(generator)) => {
            generator.sizes(sizes).validate("generator")?;
            Box::new(Electra::new(&store, sizes, generator, vocabulary, dropout))
        }
        (Kind::Bert, Some(_)) => bail!("generator: BERT has none, leave it out"),
        (Kind::Electra, None) => bail!("generator: missing, ELECTRA needs one"),
    };
    if let Some(checkpoint) = start.checkpoint.as_ref().filter(|_| !options.resume) {
        let random = checkpoint::start_from(checkpoint, &store)?;
        eprintln!("from {}; random: {random:?}", start.description.origin);
    }
    let description = Description { kind: options.kind, ..start.description };
    Steps {
        config,
        store: &store,
        objective: &*objective,
        corpus: Arc::new(corpus),
        kind,
        out: options.out,
        description: &description,
        tokenizer: &start.tokenizer,
        budget: options.budget,
        stop: options.stop,
    }
    .run(options.resume)
}

/// Makes the folder with the settings in it, or checks that those in it are the same.
fn prepare(config: &Config, options: &Options) -> Result<()> {
    let path = options.out.join(CONFIG);
    if options.resume {
        let before = Config::read(&path).context("cannot resume")?;
        ensure!(before == *config, "cannot resume: the settings are not those in {}", path.display());
        return Ok(());
    }
    fs::create_dir_all(options.out).with_context(|| format!("cannot make {}", options.out.display()))?;
    files::write_atomically(&path, toml::to_string(config)?.as_bytes())
}

fn corpus(start: &Start, config: &Config, options: &Options) -> Result<Corpus> {
    let shards = Shards::open(options.shards, &files::sha256(&start.tokenizer))?;
    let tokenizer = tokenizers::Tokenizer::from_bytes(&start.tokenizer).map_err(|e| anyhow!("{TOKENIZER}: {e}"))?;
    let pieces = Pieces::of(&tokenizer).context(TOKENIZER)?;
    let masking = if options.kind == Kind::Bert { Masking::BERT } else { Masking::ELECTRA };
    Corpus::new(shards, pieces, masking, config.train.length, config.held_out)
        .with_context(|| options.shards.display().to_string())
}
