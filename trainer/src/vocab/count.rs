//! The units of a text and how often each occurs, and the pieces that a tokenizer cuts them into.

use std::collections::HashMap;
use std::mem;
use std::path::PathBuf;

use anyhow::{Result, anyhow, ensure};
use rayon::prelude::*;
use tokenizers::Tokenizer;
use vitag::tokenize::{self, Unit};

use crate::input;

/// Blocks counted together.
const TOGETHER: usize = 64;
/// Units cut together.
const CHUNK: usize = 512;
/// Pieces that a chunk of units fits into.
const ROOM: usize = 1 << 24;

/// Distinct syllables and marks with their number, in the order of their bytes.
pub(super) fn units(inputs: &[PathBuf]) -> Result<Vec<(String, u64)>> {
    let (files, progress) = input::files(inputs)?;
    let (mut counts, mut waiting) = (HashMap::new(), Vec::new());
    for file in &files {
        input::blocks(file, &progress, |block| {
            waiting.push(block);
            if waiting.len() == TOGETHER {
                add(&mut counts, &mem::take(&mut waiting));
            }
            true
        })?;
    }
    add(&mut counts, &waiting);
    progress.finish_and_clear();
    ensure!(!counts.is_empty(), "the inputs hold no text");
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable();
    Ok(counts)
}

fn add(counts: &mut HashMap<String, u64>, blocks: &[Vec<u8>]) {
    let parts: Vec<HashMap<String, u64>> = blocks.par_iter().map(|block| of_block(block)).collect();
    for (unit, number) in parts.into_iter().flatten() {
        *counts.entry(unit).or_default() += number;
    }
}

fn of_block(block: &[u8]) -> HashMap<String, u64> {
    let text = String::from_utf8_lossy(block);
    let mut counts: HashMap<&str, u64> = HashMap::new();
    for line in text.lines() {
        for unit in tokenize::syllables(line, &(0..line.len())) {
            *counts.entry(&line[unit]).or_default() += 1;
        }
    }
    counts.into_iter().map(|(unit, number)| (unit.to_owned(), number)).collect()
}

/// The ids of the pieces of every unit, as the models see them.
pub(super) fn pieces(tokenizer: &Tokenizer, units: &[(String, u64)]) -> Result<Vec<Vec<u32>>> {
    let tokenizer = tokenize::Tokenizer::new(tokenizer.clone(), Unit::Syllable, ROOM)?;
    let chunk = |units: &[(String, u64)]| -> Result<Vec<Vec<u32>>> {
        let units: Vec<&str> = units.iter().map(|(unit, _)| unit.as_str()).collect();
        let windows = tokenizer.windows(&units).map_err(|e| anyhow!("cannot tokenise the text: {}", e.message))?;
        ensure!(windows.len() == 1, "a unit of the text is longer than {ROOM} pieces");
        let window = &windows[0];
        let ends = window.word_starts.iter().skip(1).copied().chain([window.ids.len() as u32 - 1]);
        let unit = |(&start, end): (&u32, u32)| window.ids[start as usize..end as usize].to_vec();
        Ok(window.word_starts.iter().zip(ends).map(unit).collect())
    };
    let chunks: Vec<_> = units.par_chunks(CHUNK).map(chunk).collect::<Result<_>>()?;
    Ok(chunks.into_iter().flatten().collect())
}
