//! Sentences to numbered files.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A sentence a line, a blank line between documents. A file ends with a document, at the latest when it is twice as
/// large as asked for.
#[derive(Debug)]
pub(super) struct Shards {
    dir: PathBuf,
    size: u64,
    file: Option<BufWriter<File>>,
    /// Bytes in that file.
    written: u64,
    /// Files begun.
    pub(super) count: usize,
}

impl Shards {
    /// In `dir`, each of about `size` bytes.
    pub(super) fn new(dir: &Path, size: u64) -> Self {
        Self { dir: dir.to_owned(), size, file: None, written: 0, count: 0 }
    }

    /// Writes a sentence, the `first` of its document or not.
    pub(super) fn push(&mut self, sentence: &str, first: bool) -> Result<()> {
        if self.written >= if first { self.size } else { 2 * self.size } {
            self.end()?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let path = self.dir.join(format!("text-{:05}.txt", self.count));
                self.count += 1;
                let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
                self.file.insert(BufWriter::with_capacity(1 << 20, file))
            }
        };
        if first && self.written > 0 {
            file.write_all(b"\n")?;
            self.written += 1;
        }
        file.write_all(sentence.as_bytes())?;
        file.write_all(b"\n")?;
        self.written += sentence.len() as u64 + 1;
        Ok(())
    }

    /// Finishes the file at hand.
    pub(super) fn end(&mut self) -> Result<()> {
        if let Some(file) = &mut self.file.take() {
            file.flush()?;
        }
        self.written = 0;
        Ok(())
    }
}
