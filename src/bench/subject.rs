//! What is measured: a model with its sessions, and the documents that it reads.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::BenchError;
use super::ceiling::Ceiling;
use super::mix::documents;
use super::options::{BenchOptions, Size};
use crate::config::Settings;
use crate::pipeline::Monitor;
use crate::record::Reject;
use crate::serving::{Loader, Version};
use crate::tokenize::{Sentence, Window};
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

    /// Writes the documents to a file, each with the units of its sentences as offsets in code points: another tagger on
    /// the same documents need not find them itself.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), BenchError> {
        let mut file = BufWriter::new(File::create(path)?);
        let sentences = self.texts.iter().map(|text| self.sentences(text)).collect::<Result<Vec<_>, _>>()?;
        let cycled = self.texts.iter().zip(&sentences).cycle().take(self.documents.len()).enumerate();
        for (id, (text, sentences)) in cycled {
            writeln!(file, "{}", json!({ "id": id, "text": text, "sentences": sentences }))?;
        }
        Ok(file.flush()?)
    }

    fn sentences(&self, text: &str) -> Result<Vec<Vec<[usize; 2]>>, Reject> {
        let tokens = self.version.model().tokenizer.tokenize(text, None)?;
        let mut code_points = vec![0; text.len() + 1];
        text.char_indices().enumerate().for_each(|(number, (at, _))| code_points[at] = number);
        code_points[text.len()] = text.chars().count();
        let offsets = |unit: &Range<usize>| [code_points[unit.start], code_points[unit.end]];
        let units = |sentence: &Sentence| tokens.units[sentence.units.clone()].iter().map(offsets).collect();
        Ok(tokens.sentences.iter().map(units).collect())
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
