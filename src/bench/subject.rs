//! What is measured: a model with its sessions, and the documents that it reads.

use std::sync::Arc;

use super::BenchError;
use super::ceiling::Ceiling;
use super::mix::documents;
use super::options::{BenchOptions, Size};
use crate::config::Settings;
use crate::pipeline::Monitor;
use crate::serving::{Loader, Version};
use crate::tokenize::Window;
use crate::worker::{load_model, loader};

/// A model that is loaded, and documents for it.
pub struct Subject {
    /// All settings, those of the input made to fit the documents.
    pub settings: Settings,
    /// The model.
    pub version: Arc<Version>,
    /// The documents, as messages.
    pub documents: Vec<String>,
    /// The windows of every text; documents repeat the texts.
    windows: Vec<Vec<Window>>,
    texts: Vec<String>,
}

/// Tokens that tell how fast the machine is, for a start.
const SAMPLE_TOKENS: usize = 20_000;

impl Subject {
    /// Loads the model and makes as many documents of `texts` as are asked for.
    ///
    /// # Errors
    /// When the model cannot be loaded or run, or it cannot read a text.
    pub fn prepare(settings: &Settings, mut texts: Vec<String>, options: &BenchOptions) -> Result<Self, BenchError> {
        if let Size::Documents(count) = options.size {
            texts.truncate(count);
        }
        let version = load_model(settings, &open_loader(settings)?)?;
        let tokenizer = &version.model().tokenizer;
        let tokenize = |text: &String| tokenizer.tokenize(text, None).map(|tokens| tokens.windows);
        let windows = texts.iter().map(tokenize).collect::<Result<Vec<_>, _>>()?;
        let (texts, windows) = texts.into_iter().zip(windows).filter(|(_, windows)| !windows.is_empty()).unzip();
        let mut subject = Self { settings: settings.clone(), version, documents: Vec::new(), windows, texts };
        let count = match options.size {
            Size::Documents(count) => count,
            Size::Seconds(seconds) => subject.documents_in(seconds)?,
        };
        subject.documents = documents(&subject.texts, count);
        Ok(subject)
    }

    /// The same documents for a model of other settings, loaded anew.
    ///
    /// # Errors
    /// When the model cannot be loaded.
    pub fn with(&self, settings: &Settings) -> Result<Self, BenchError> {
        Ok(Self {
            settings: settings.clone(),
            version: load_model(settings, &open_loader(settings)?)?,
            documents: self.documents.clone(),
            windows: self.windows.clone(),
            texts: self.texts.clone(),
        })
    }

    /// The windows of all documents.
    pub fn windows(&self) -> impl Iterator<Item = &Window> {
        self.windows.iter().cycle().take(self.documents.len()).flatten()
    }

    /// The windows of the first documents, up to so many tokens, and how many documents these are.
    pub fn sample(&self, tokens: usize) -> (Vec<&Window>, usize) {
        let (mut found, mut count, mut sample) = (0, 0, Vec::new());
        let mut texts = self.windows.iter().cycle();
        while found < tokens
            && let Some(windows) = texts.next()
        {
            found += windows.iter().map(|window| window.ids.len()).sum::<usize>();
            count += 1;
            sample.extend(windows);
        }
        (sample, count)
    }

    /// How many documents take so long.
    fn documents_in(&self, seconds: f64) -> Result<usize, BenchError> {
        let (sample, count) = self.sample(SAMPLE_TOKENS);
        let ceiling = Ceiling::with_budget(sample, count, self.settings.batch.max_tokens);
        ceiling.run(&self.version)?;
        let run = ceiling.run(&self.version)?;
        Ok((seconds * run.documents / run.seconds).ceil() as usize)
    }
}

fn open_loader(settings: &Settings) -> Result<Loader, BenchError> {
    Ok(loader(settings, &Monitor::disabled().metrics)?)
}
