//! A run's directory: the settings, the tokenizer and the labels that its weights belong to.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tch::nn::VarStore;
use tch::{Device, Tensor};
use vitag::tags::Labels;
use vitag::tokenize::Tokenizer;

use crate::checkpoint::{DESCRIPTION, Description, Start, TOKENIZER};
use crate::config::Config;
use crate::files;
use crate::fit;
use crate::model::{self, Tagger};

/// The settings of a run.
pub const CONFIG: &str = "config.toml";
const LABELS: &str = "labels.json";

/// A model with all that is needed to use it.
#[derive(Debug)]
pub struct Run {
    /// Where it lives.
    pub dir: PathBuf,
    /// Its settings.
    pub config: Config,
    /// Its encoder as it was when the run began.
    pub encoder: Description,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// The labels of each task, in the order of the config.
    pub labels: Vec<Labels>,
    /// Its variables.
    pub store: VarStore,
    /// The model.
    pub tagger: Tagger,
}

impl Run {
    /// Makes the directory with everything but weights, and a model with random ones, or with those of the encoder
    /// directory that the settings name. `tokenizer` is for an encoder that begins with random weights.
    ///
    /// # Errors
    /// When the encoder or the tokenizer cannot be used or the directory not be written.
    pub fn create(dir: &Path, config: Config, tokenizer: Option<&Path>, labels: Vec<Labels>) -> Result<Self> {
        let start = Start::new(&config.encoder, tokenizer)?;
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        files::write_atomically(&dir.join(TOKENIZER), &start.tokenizer)?;
        files::write_json(&dir.join(DESCRIPTION), &start.description)?;
        files::write_atomically(&dir.join(CONFIG), toml::to_string(&config)?.as_bytes())?;
        let names: BTreeMap<&str, &[String]> =
            config.tasks.iter().zip(&labels).map(|(task, labels)| (task.name.as_str(), labels.names())).collect();
        files::write_json(&dir.join(LABELS), &names)?;
        let run = Self::build(dir, config, start.description, labels)?;
        if let Some(checkpoint) = start.checkpoint {
            checkpoint.restore(&run.store, model::ENCODER)?;
        }
        Ok(run)
    }

    /// Opens the directory of a finished run with its best weights.
    ///
    /// # Errors
    /// When a file is missing or does not fit the others.
    pub fn open(dir: &Path) -> Result<Self> {
        let config = Config::read(&dir.join(CONFIG))?;
        let path = dir.join(LABELS);
        let mut names: BTreeMap<String, Vec<String>> = files::read_json(&path)?;
        let labels = config.tasks.iter().map(|task| {
            let names = names.remove(&task.name);
            let names = names.with_context(|| format!("{}: no task {:?}", path.display(), task.name))?;
            Ok(Labels::new(names, task.reading().scheme)?)
        });
        let labels = labels.collect::<Result<_>>()?;
        let encoder = files::read_json(&dir.join(DESCRIPTION))?;
        let run = Self::build(dir, config, encoder, labels)?;
        run.load()?;
        Ok(run)
    }

    /// Puts the best weights of the directory into the model.
    ///
    /// # Errors
    /// When there are none or they do not fit.
    pub fn load(&self) -> Result<()> {
        let path = self.dir.join(fit::BEST);
        ensure!(path.exists(), "{}: the run has no weights yet", path.display());
        let tensors = Tensor::read_safetensors(&path)?;
        model::restore(&model::variables(&self.store), &tensors).with_context(|| path.display().to_string())
    }

    /// Path of the tokenizer.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.dir.join(TOKENIZER)
    }

    fn build(dir: &Path, config: Config, encoder: Description, labels: Vec<Labels>) -> Result<Self> {
        let path = dir.join(TOKENIZER);
        let tokenizer = Tokenizer::from_file(&path, config.tasks[0].unit, encoder.sizes.max_length)
            .with_context(|| path.display().to_string())?;
        tch::manual_seed(config.seed as i64);
        let store = VarStore::new(Device::cuda_if_available());
        let counts: Vec<usize> = labels.iter().map(Labels::count).collect();
        let tagger = Tagger::new(&store, &config, &encoder, &counts);
        Ok(Self { dir: dir.to_owned(), config, encoder, tokenizer, labels, store, tagger })
    }
}
