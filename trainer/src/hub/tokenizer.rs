//! The tokenizer of a checkpoint of Hugging Face, as one `tokenizer.json`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

use crate::checkpoint::TOKENIZER;
use crate::vocab::SPECIAL;

pub(super) const SETTINGS: &str = "tokenizer_config.json";
const WORDPIECE: &str = "vocab.txt";

/// The settings of BERT's tokenizer that a `vocab.txt` leaves open, with their defaults there.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Settings {
    do_lower_case: Option<bool>,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
}

/// The text of `tokenizer.json` in `dir`, or of one made of `vocab.txt`.
pub(super) fn in_dir(dir: &Path) -> Result<Vec<u8>> {
    let path = [TOKENIZER, WORDPIECE].map(|name| dir.join(name)).into_iter().find(|path| path.exists());
    read(&path.with_context(|| format!("{} has neither {TOKENIZER} nor {WORDPIECE}", dir.display()))?)
}

/// The text of a `tokenizer.json`, or of one made of a `vocab.txt` (a piece a line) and the `tokenizer_config.json` beside
/// it.
///
/// # Errors
/// When a file cannot be read or makes no tokenizer.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|end| end != "txt") {
        return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let settings = match path.with_file_name(SETTINGS) {
        file if file.exists() => {
            serde_json::from_slice(&fs::read(&file)?).with_context(|| file.display().to_string())?
        }
        _ => Settings::default(),
    };
    let made = wordpiece(path, &settings).and_then(|tokenizer| tokenizer.to_string(false));
    made.map(String::into_bytes).map_err(|e| anyhow!("{}: {e}", path.display()))
}

fn wordpiece(path: &Path, settings: &Settings) -> tokenizers::Result<Tokenizer> {
    let chinese = settings.tokenize_chinese_chars.unwrap_or(true);
    let lower_case = settings.do_lower_case.unwrap_or(true);
    let normalizer = BertNormalizer::new(true, chinese, settings.strip_accents, lower_case);
    let tokenizer = TokenizerBuilder::new()
        .with_model(WordPiece::from_file(&path.to_string_lossy()).unk_token("[UNK]".into()).build()?)
        .with_normalizer(Some(normalizer))
        .with_pre_tokenizer(Some(BertPreTokenizer))
        .with_post_processor(None::<tokenizers::PostProcessorWrapper>)
        .with_decoder(None::<tokenizers::DecoderWrapper>)
        .build()?;
    let mut tokenizer: Tokenizer = tokenizer.into();
    let known = |token: &&str| tokenizer.token_to_id(token).is_some();
    let special: Vec<_> = SPECIAL.iter().copied().filter(known).map(|token| AddedToken::from(token, true)).collect();
    tokenizer.add_special_tokens(special)?;
    Ok(tokenizer)
}

/// `tokenizer_config.json` for a tokenizer: what its special tokens are for.
pub(super) fn settings(tokenizer: &Tokenizer, max_length: usize) -> Value {
    let mut settings = json!({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length});
    let roles = ["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"];
    for (role, names) in roles.into_iter().zip(SPECIAL.into_iter().zip(["<pad>", "<unk>", "<s>", "</s>", "<mask>"])) {
        let known = [names.0, names.1].into_iter().find(|name| tokenizer.token_to_id(name).is_some());
        if let Some(name) = known {
            settings[role] = name.into();
        }
    }
    settings
}
