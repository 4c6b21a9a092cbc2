//! Text to shards.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use indicatif::ProgressBar;
use rayon::prelude::*;
use vitag::tokenize::{Tokenizer, Unit, Window};

use super::{Header, Text};
use crate::{files, input};

/// Tokens after which a shard is full; it goes on to the end of its document.
const FULL: usize = 1 << 26;
/// No sentence is longer than this, so that each is one window of the tokenizer.
const LONGEST: usize = 1 << 30;

/// What was tokenised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Sentences.
    pub sentences: u64,
    /// Syllables and punctuation marks.
    pub syllables: u64,
    /// Tokens.
    pub tokens: u64,
    /// Tokens that stand for what the vocabulary lacks.
    pub unknown: u64,
}

/// A shard in the making.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    ends: Vec<u32>,
    ids: Vec<u32>,
    bits: Vec<u8>,
}

/// Cuts `texts`, files or folders, packed or not, with sentences or paragraphs on lines and a blank line between documents, as the worker cuts raw text,
/// and writes the shards of `out`, all or none.
///
/// # Errors
/// When a file cannot be read or written, is not UTF-8, or there is no text.
pub fn tokenize(texts: &[PathBuf], tokenizer: &Path, out: &Path) -> Result<Summary> {
    let hash =
        files::sha256(&std::fs::read(tokenizer).with_context(|| format!("cannot read {}", tokenizer.display()))?);
    let tokenizer =
        Tokenizer::from_file(tokenizer, Unit::Syllable, LONGEST).with_context(|| tokenizer.display().to_string())?;
    let (texts, progress) = input::files(texts)?;
    let mut summary = Summary::default();
    files::replace_dir(out, |dir| {
        let mut writer = Writer { dir, hash, tokenizer: &tokenizer, buffer: Buffer::default(), written: 0 };
        for path in &texts {
            writer.read(path, &mut summary, &progress)?;
        }
        writer.flush()?;
        ensure!(summary.sentences > 0, "the inputs hold no text");
        Ok(())
    })?;
    progress.finish_and_clear();
    Ok(summary)
}

struct Writer<'a> {
    dir: &'a Path,
    hash: [u8; 32],
    tokenizer: &'a Tokenizer,
    buffer: Buffer,
    written: usize,
}

impl Writer<'_> {
    fn read(&mut self, path: &Path, summary: &mut Summary, progress: &ProgressBar) -> Result<()> {
        let mut taken = Ok(());
        input::blocks(path, progress, |block| {
            taken = self.take(&block, summary);
            taken.is_ok()
        })?;
        taken.with_context(|| path.display().to_string())?;
        self.push(&Text::default(), summary) // a file ends its last document
    }

    fn take(&mut self, block: &[u8], summary: &mut Summary) -> Result<()> {
        let lines: Vec<&str> = str::from_utf8(block).context("the text is not UTF-8")?.lines().collect();
        let texts: Vec<Vec<Text>> = lines.par_iter().map(|line| self.cut(line)).collect::<Result<_>>()?;
        texts.iter().flatten().try_for_each(|text| self.push(text, summary))
    }

    /// The sentences of a line; a blank line is one without tokens.
    fn cut(&self, line: &str) -> Result<Vec<Text>> {
        let tokens = self.tokenizer.tokenize(line, None).map_err(|reject| anyhow!("{reject}"))?;
        // Without the special tokens at both ends.
        let text = |window: &Window| Text {
            ids: window.ids[1..window.ids.len() - 1].to_vec(),
            starts: window.word_starts.iter().map(|start| start - 1).collect(),
        };
        let texts: Vec<Text> = tokens.windows.iter().map(text).collect();
        Ok(if texts.is_empty() { vec![Text::default()] } else { texts })
    }

    fn push(&mut self, text: &Text, summary: &mut Summary) -> Result<()> {
        let unknown = self.tokenizer.unknown();
        summary.sentences += u64::from(!text.ids.is_empty());
        summary.syllables += text.starts.len() as u64;
        summary.tokens += text.ids.len() as u64;
        summary.unknown += text.ids.iter().filter(|&&id| id == unknown).count() as u64;
        self.buffer.push(text);
        if text.ids.is_empty() && self.buffer.ids.len() >= FULL {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        if buffer.ids.is_empty() {
            return Ok(());
        }
        let width = if self.tokenizer.vocabulary_size() <= 1 << 16 { 2 } else { 4 };
        let path = self.dir.join(format!("{:05}.shard", self.written));
        self.written += 1;
        buffer.write(&path, width, self.hash)
    }
}

impl Buffer {
    pub(super) fn push(&mut self, text: &Text) {
        let before = self.ids.len();
        self.ids.extend_from_slice(&text.ids);
        self.bits.resize(self.ids.len().div_ceil(8), 0);
        for start in text.starts.iter().map(|&start| before + start as usize) {
            self.bits[start / 8] |= 1 << (start % 8);
        }
        self.ends.push(self.ids.len() as u32);
    }

    pub(super) fn write(&self, path: &Path, width: usize, tokenizer: [u8; 32]) -> Result<()> {
        let (sentences, tokens) = (self.ends.len() as u64, self.ids.len() as u64);
        let header = Header { width: width as u32, sentences, tokens, tokenizer };
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&header.bytes())?;
        self.ends.iter().try_for_each(|end| file.write_all(&end.to_le_bytes()))?;
        self.ids.iter().try_for_each(|id| file.write_all(&id.to_le_bytes()[..width]))?;
        file.write_all(&self.bits)?;
        Ok(file.flush()?)
    }
}
