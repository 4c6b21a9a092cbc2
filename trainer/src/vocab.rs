//! Vocabularies: WordPiece from plain text, and any [pruned](prune) to what a text uses.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use anyhow::{Result, anyhow, ensure};
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainerBuilder};
use tokenizers::normalizers::{BertNormalizer, NFC, Sequence};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

use crate::{files, input};

mod count;
pub mod prune;
mod subset;

/// Ids 0 to 4, in the order of BERT.
pub(crate) const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Most characters of the text kept as pieces of their own; the rest, rarer, are unknown. Vietnamese needs about 200.
const ALPHABET: usize = 400;

/// Blocks of text read ahead.
const BLOCKS: usize = 16;

/// What the vocabulary should be.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Number of pieces, special ones included.
    pub size: usize,
    /// A piece must occur this often.
    pub min_frequency: u64,
}

/// Trains a cased WordPiece tokenizer (NFC, no accents stripped) on `inputs`, files or folders, packed or not, and writes it to `out` as
/// `tokenizer.json`. Returns the number of pieces.
///
/// # Errors
/// When an input is missing, there is no text, or `out` cannot be written.
pub fn train(inputs: &[PathBuf], options: Options, out: &Path) -> Result<usize> {
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
    let (inputs, progress) = input::files(inputs)?;
    thread::scope(|scope| {
        let (sender, blocks) = mpsc::sync_channel(BLOCKS);
        let mut inputs = inputs.iter();
        let reader = scope.spawn(move || {
            inputs.try_for_each(|path| input::blocks(path, &progress, |block| sender.send(block).is_ok()))
        });
        let lines = blocks
            .into_iter()
            .flat_map(|block| String::from_utf8_lossy(&block).lines().map(str::to_owned).collect::<Vec<_>>());
        let trained = tokenizer.train(&mut trainer, lines).map(drop);
        reader.join().expect("reading does not panic")?;
        trained.map_err(|e| anyhow!("cannot train the vocabulary: {e}"))
    })?;
    let tokenizer: Tokenizer = tokenizer.into();
    let pieces = tokenizer.get_vocab_size(true);
    ensure!(pieces > SPECIAL.len(), "the inputs hold no text");
    let json = tokenizer.to_string(false).map_err(|e| anyhow!("{e}"))?;
    files::write_atomically(out, json.as_bytes())?;
    Ok(pieces)
}
