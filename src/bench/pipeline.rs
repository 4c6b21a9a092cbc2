//! File to file, as `vitag tag` does it.

use std::fs::File;
use std::path::PathBuf;

use tempfile::TempDir;

use super::BenchError;
use super::run::{Clock, ModelWork, Run};
use super::subject::Subject;
use crate::decode::Format;
use crate::serving::Serving;
use crate::tag::{TagOptions, tag_with};

/// The documents of a subject in a file, and a place for what is made of them.
pub struct Files {
    folder: TempDir,
}

impl Files {
    /// Writes the documents.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(subject: &Subject) -> Result<Self, BenchError> {
        let files = Self { folder: TempDir::with_prefix("vitag-bench-")? };
        std::fs::write(files.input(), subject.documents.join("\n") + "\n")?;
        Ok(files)
    }

    /// Tags the documents with the model of `subject`, from file to file. Loading the model is no part of it.
    ///
    /// # Errors
    /// When a stage fails, or a document is refused.
    pub fn run(&self, subject: &Subject) -> Result<Run, BenchError> {
        let serving = Serving::of(subject.version.clone());
        let options = TagOptions { inputs: vec![self.input()], format: Some(Format::Json), form: None };
        let output = File::create(self.folder.path().join("tagged.jsonl"))?;
        let before = subject.version.tally().counts();
        let clock = Clock::start();
        let refused = tag_with(&subject.settings, &serving, &options, output, std::io::sink())?;
        let counts = subject.version.tally().counts().since(&before);
        let run = clock.stop(subject.documents.len(), Some(ModelWork::counted(&counts, subject.version.sessions())));
        if refused > 0 { Err(BenchError::Refused(refused)) } else { Ok(run) }
    }

    fn input(&self) -> PathBuf {
        self.folder.path().join("documents.jsonl")
    }
}
