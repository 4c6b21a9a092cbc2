//! A vocabulary down to the pieces that a text uses, and an encoder with it: the step from multilingual BERT to viBERT
//! (§3.1.1 of the paper).
//!
//! Kept are the pieces that the text uses at least n times, all added tokens, and whatever stands for one character that
//! occurs at least n times, so that a word of such characters can still be spelt. Text whose pieces are all kept is cut
//! as before: WordPiece takes the longest piece, and that is still there; Unigram takes the likeliest cut, and there are
//! only fewer of them. An unknown character costs a Unigram model 10 more than its least likely piece, so that one is
//! kept too.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use serde_json::Value;
use tch::Tensor;
use tokenizers::{NormalizedString, Normalizer, Tokenizer};

use super::{count, subset};
use crate::checkpoint::Checkpoint;

/// A vocabulary of fewer pieces.
#[derive(Debug)]
pub struct Pruned {
    /// The text of its `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// For every piece its id before.
    pub kept: Vec<u32>,
    /// What the text is cut into before and after.
    pub report: Report,
}

/// What a vocabulary makes of a text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cut {
    /// Pieces of the vocabulary.
    pub vocabulary: usize,
    /// Pieces in the mean for a unit that holds a letter.
    pub pieces_per_syllable: f64,
    /// Units with an unknown piece.
    pub unknown: u64,
}

/// A vocabulary before and after.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Syllables and marks in the text.
    pub units: u64,
    /// Uses that a piece must have.
    pub min_uses: u64,
    /// Before.
    pub before: Cut,
    /// After.
    pub after: Cut,
    /// Share of the pieces in the text that were kept, each counted as often as it was used.
    pub coverage: f64,
    /// Share of the units that are cut as before.
    pub same: f64,
}

/// Prunes a tokenizer (the text of its `tokenizer.json`, WordPiece or Unigram) to the pieces that the files, folders and
/// standard input (`-`) among `inputs` use at least `min_uses` times.
///
/// # Errors
/// When an input cannot be read or holds no text, or the tokenizer is of another kind.
pub fn prune(tokenizer: &[u8], inputs: &[PathBuf], min_uses: u64) -> Result<Pruned> {
    let json: Value = serde_json::from_slice(tokenizer).context("the tokenizer")?;
    let old = parse(tokenizer)?;
    let units = count::units(inputs)?;
    let pieces = count::pieces(&old, &units)?;
    let mut uses = vec![0; old.get_vocab_size(true)];
    for ((_, number), pieces) in units.iter().zip(&pieces) {
        pieces.iter().for_each(|&piece| uses[piece as usize] += number);
    }
    let mut kept = special(&old, &json);
    kept.extend(characters(&old, &units, min_uses)?);
    kept.extend((0..uses.len() as u32).filter(|&piece| uses[piece as usize] >= min_uses));
    let kept: Vec<u32> = kept.into_iter().collect();

    let tokenizer = serde_json::to_vec(&subset::of(json, &kept)?)?;
    let new = parse(&tokenizer)?;
    let again: Vec<Vec<u32>> = count::pieces(&new, &units)?;
    let old_ids = |pieces: &Vec<u32>| pieces.iter().map(|&piece| kept[piece as usize]).collect();
    let again: Vec<Vec<u32>> = again.iter().map(old_ids).collect();
    let unknown = unknown(&old).context("the tokenizer has no unknown piece")?;
    let used: u64 = uses.iter().sum();
    let same = units.iter().zip(pieces.iter().zip(&again)).filter(|(_, (a, b))| a == b).map(|((_, number), _)| number);
    let total: u64 = units.iter().map(|(_, number)| number).sum();
    let report = Report {
        units: total,
        min_uses,
        before: Cut::new(uses.len(), &units, &pieces, unknown),
        after: Cut::new(kept.len(), &units, &again, unknown),
        coverage: kept.iter().map(|&piece| uses[piece as usize]).sum::<u64>() as f64 / used as f64,
        same: same.sum::<u64>() as f64 / total as f64,
    };
    Ok(Pruned { tokenizer, kept, report })
}

/// The encoder with the rows of the kept pieces only: of its word embeddings and of the biases of the heads that are tied
/// to them.
pub fn encoder(checkpoint: Checkpoint, pruned: Pruned) -> Checkpoint {
    let Checkpoint { mut description, tensors, .. } = checkpoint;
    let rows: Vec<i64> = pruned.kept.iter().map(|&piece| i64::from(piece)).collect();
    let rows = Tensor::from_slice(&rows);
    let by_piece = |name: &str| name == "embeddings.word" || name.ends_with("mlm.bias");
    let tensor = |(name, tensor): (String, Tensor)| match by_piece(&name) {
        true => (name, tensor.index_select(0, &rows)),
        false => (name, tensor),
    };
    description.origin = format!(
        "{}; {} of {} pieces kept, those with {} uses",
        description.origin,
        pruned.kept.len(),
        description.vocabulary,
        pruned.report.min_uses
    );
    description.vocabulary = pruned.kept.len();
    Checkpoint { description, tensors: tensors.into_iter().map(tensor).collect(), tokenizer: pruned.tokenizer }
}

fn parse(tokenizer: &[u8]) -> Result<Tokenizer> {
    Tokenizer::from_bytes(tokenizer).map_err(|e| anyhow!("not a tokenizer: {e}"))
}

fn unknown(tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer.token_to_id("[UNK]").or_else(|| tokenizer.token_to_id("<unk>"))
}

/// Pieces that are kept however seldom they are used.
fn special(tokenizer: &Tokenizer, json: &Value) -> BTreeSet<u32> {
    let mut kept: BTreeSet<u32> = tokenizer.get_added_tokens_decoder().keys().copied().collect();
    kept.extend(unknown(tokenizer));
    let model = &json["model"];
    if let Some(pieces) = model["vocab"].as_array() {
        kept.extend(model["unk_id"].as_u64().map(|id| id as u32));
        let scores = pieces.iter().map(|piece| piece[1].as_f64().unwrap_or_default()).enumerate();
        kept.extend(scores.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(id, _)| id as u32));
    }
    if model["byte_fallback"] == true {
        kept.extend((0..=255_u8).filter_map(|byte| tokenizer.token_to_id(&format!("<0x{byte:02X}>"))));
    }
    kept
}

/// What spells the characters that occur at least `min_uses` times.
fn characters(tokenizer: &Tokenizer, units: &[(String, u64)], min_uses: u64) -> Result<Vec<u32>> {
    let mut uses = std::collections::HashMap::<char, u64>::from([('▁', min_uses)]);
    for (unit, number) in units {
        let mut normal = NormalizedString::from(unit.as_str());
        if let Some(normalizer) = tokenizer.get_normalizer() {
            normalizer.normalize(&mut normal).map_err(|e| anyhow!("cannot normalise {unit:?}: {e}"))?;
        }
        normal.get().chars().for_each(|c| *uses.entry(c).or_default() += number);
    }
    let frequent = uses.into_iter().filter(|(_, number)| *number >= min_uses);
    let pieces = frequent.flat_map(|(c, _)| [c.to_string(), format!("##{c}")]);
    Ok(pieces.filter_map(|piece| tokenizer.token_to_id(&piece)).collect())
}

impl Cut {
    fn new(vocabulary: usize, units: &[(String, u64)], pieces: &[Vec<u32>], unknown: u32) -> Self {
        let (mut syllables, mut used, mut without) = (0, 0, 0);
        for ((unit, number), pieces) in units.iter().zip(pieces) {
            if unit.contains(char::is_alphabetic) {
                syllables += number;
                used += number * pieces.len() as u64;
            }
            without += if pieces.contains(&unknown) { *number } else { 0 };
        }
        let pieces_per_syllable = used as f64 / syllables.max(1) as f64;
        Self { vocabulary, pieces_per_syllable, unknown: without }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { units, min_uses, before, after, coverage, same } = self;
        writeln!(f, "{:<24} {:>12} {:>12}", "", "before", "after")?;
        writeln!(f, "{:<24} {:>12} {:>12}", "pieces", before.vocabulary, after.vocabulary)?;
        let per = "pieces per syllable";
        writeln!(f, "{per:<24} {:>12.4} {:>12.4}", before.pieces_per_syllable, after.pieces_per_syllable)?;
        writeln!(f, "{:<24} {:>12} {:>12}", "unknown units", before.unknown, after.unknown)?;
        write!(
            f,
            "of the pieces in {units} units, {:.3} % are kept (those used at least {min_uses} times, characters and special \
             pieces); {:.3} % of the units are cut as before",
            100.0 * coverage,
            100.0 * same
        )
    }
}
