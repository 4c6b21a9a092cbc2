//! Vocabularies: WordPiece from plain text, and any [pruned](prune) to what a text uses.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainerBuilder};
use tokenizers::normalizers::{BertNormalizer, NFC, Sequence};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

use crate::files;

mod count;
pub mod prune;
mod subset;

/// Ids 0 to 4, in the order of BERT.
pub(crate) const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Most characters of the text kept as pieces of their own; the rest, rarer, are unknown. Vietnamese needs about 200.
const ALPHABET: usize = 400;

/// What the vocabulary should be.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Number of pieces, special ones included.
    pub size: usize,
    /// A piece must occur this often.
    pub min_frequency: u64,
}

/// Trains a cased WordPiece tokenizer (NFC, no accents stripped) on `inputs` and writes it to `out` as
/// `tokenizer.json`. Returns the number of pieces.
///
/// # Errors
/// When an input is missing or empty, or `out` cannot be written.
pub fn train(inputs: &[PathBuf], options: Options, out: &Path) -> Result<usize> {
    for input in inputs {
        let metadata = input.metadata().with_context(|| format!("cannot read {}", input.display()))?;
        ensure!(metadata.len() > 0, "{}: the file is empty", input.display());
    }
    let mut trainer = WordPieceTrainerBuilder::new()
        .vocab_size(options.size)
        .min_frequency(options.min_frequency)
        .limit_alphabet(ALPHABET)
        .initial_alphabet(HashSet::new())
        .special_tokens(SPECIAL.map(|token| AddedToken::from(token, true)).to_vec())
        .show_progress(true)
        .build();
    let normalizer = Sequence::new(vec![NFC.into(), BertNormalizer::new(true, false, Some(false), false).into()]);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(WordPiece::default())
        .with_normalizer(Some(normalizer))
        .with_pre_tokenizer(Some(BertPreTokenizer))
        .with_post_processor(None::<tokenizers::PostProcessorWrapper>)
        .with_decoder(None::<tokenizers::DecoderWrapper>)
        .build()
        .map_err(|e| anyhow!("{e}"))?;
    let names = inputs.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    tokenizer.train_from_files(&mut trainer, names).map_err(|e| anyhow!("cannot train the vocabulary: {e}"))?;
    let tokenizer: Tokenizer = tokenizer.into();
    let json = tokenizer.to_string(false).map_err(|e| anyhow!("{e}"))?;
    files::write_atomically(out, json.as_bytes())?;
    Ok(tokenizer.get_vocab_size(true))
}
