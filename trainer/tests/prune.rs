//! A pruned vocabulary cuts what it kept as before, and everything else into something.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;
use vitag::tokenize::{Tokenizer, Unit};
use vitag_trainer::checkpoint::{Checkpoint, Description};
use vitag_trainer::config::Sizes;
use vitag_trainer::model::{self, Encoder};
use vitag_trainer::vocab::prune::{self, Pruned};

struct Case {
    before: tokenizers::Tokenizer,
    after: tokenizers::Tokenizer,
    pruned: Pruned,
}

/// The first third of the text of the fixtures.
fn text(dir: &Path) -> PathBuf {
    let path = dir.join("text.txt");
    let raw = fs::read_to_string(common::fixture("raw.txt")).unwrap();
    fs::write(&path, raw.lines().take(50).collect::<Vec<_>>().join("\n")).unwrap();
    path
}

/// A WordPiece and a Unigram vocabulary, pruned to it.
fn cases(min_uses: u64) -> [Case; 2] {
    let dir = TempDir::new().unwrap();
    let text = text(dir.path());
    [common::tokenizer(dir.path()), common::unigram(dir.path())].map(|path| {
        let pruned = prune::prune(&fs::read(&path).unwrap(), std::slice::from_ref(&text), min_uses).unwrap();
        let before = tokenizers::Tokenizer::from_file(path).unwrap();
        Case { before, after: tokenizers::Tokenizer::from_bytes(&pruned.tokenizer).unwrap(), pruned }
    })
}

fn ids(tokenizer: &tokenizers::Tokenizer, text: &str) -> Vec<u32> {
    let tokenizer = Tokenizer::new(tokenizer.clone(), Unit::Syllable, 1 << 20).unwrap();
    tokenizer.tokenize(text, None).unwrap().windows.into_iter().flat_map(|window| window.ids).collect()
}

impl Case {
    /// Whether `text` is cut as before, where all its pieces were kept.
    fn check(&self, text: &str) -> bool {
        let (before, after) = (ids(&self.before, text), ids(&self.after, text));
        let after: Vec<u32> = after.iter().map(|&id| self.pruned.kept[id as usize]).collect();
        let kept = before.iter().all(|id| self.pruned.kept.contains(id));
        assert!(!kept || before == after, "{text:?} was cut into {before:?}, now into {after:?}");
        kept
    }
}

#[test]
fn text_whose_pieces_are_all_kept_is_cut_as_before() {
    for case in cases(2) {
        let raw = fs::read_to_string(common::fixture("raw.txt")).unwrap();
        let kept = raw.lines().filter(|line| case.check(line)).count();
        assert!(kept > 0 && kept < raw.lines().count(), "{kept} lines are kept");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn any_text_is_cut_into_pieces_that_are_there(text in "[a-zà-ỹ ,.]{0,60}\\PC{0,5}") {
        for case in cases(3) {
            case.check(&text);
        }
    }
}

#[test]
fn kept_are_special_pieces_frequent_pieces_and_frequent_characters() {
    for case in cases(3) {
        let Case { before, after, pruned } = case;
        assert!(pruned.kept.is_sorted() && pruned.kept.len() < before.get_vocab_size(true));
        assert_eq!(pruned.kept.len(), after.get_vocab_size(true));
        for (new, &old) in pruned.kept.iter().enumerate() {
            assert_eq!(after.id_to_token(new as u32), before.id_to_token(old));
        }
        for (id, token) in before.get_added_tokens_decoder() {
            assert!(pruned.kept.contains(&id));
            assert!(after.get_added_tokens_decoder().values().any(|other| *other == token));
        }
        assert!(after.token_to_id("a").is_some());
        let report = pruned.report;
        assert!(report.coverage > 0.5 && report.coverage < 1.0 && report.same < 1.0, "{report}");
        assert!(report.after.pieces_per_syllable > report.before.pieces_per_syllable, "{report}");
    }
}

#[test]
fn with_one_use_everything_in_the_text_is_as_before() {
    for Case { pruned, .. } in cases(1) {
        let report = pruned.report;
        assert_eq!((report.coverage, report.same, report.units > 100), (1.0, 1.0, true));
        assert_eq!(report.before.unknown, report.after.unknown);
    }
}

#[test]
fn the_rows_of_an_encoder_follow_their_pieces() {
    let dir = TempDir::new().unwrap();
    let tokenizer = fs::read(common::unigram(dir.path())).unwrap();
    let sizes = Sizes { max_length: 16, embedding: 8, hidden: 12, layers: 1, heads: 2, ffn: 8, norm_epsilon: 1e-12 };
    let description = Description::random(sizes.clone(), &tokenizer).unwrap();
    let store = VarStore::new(Device::Cpu);
    let _encoder = Encoder::new(&store.root(), &sizes, description.vocabulary as i64, 0.0);
    let mut tensors = model::variables(&store);
    tensors
        .push(("generator.mlm.bias".into(), Tensor::arange(description.vocabulary as i64, (Kind::Float, Device::Cpu))));
    let whole = Checkpoint { description, tensors, tokenizer };
    whole.write(&dir.path().join("whole")).unwrap();

    let pruned = prune::prune(&whole.tokenizer, &[text(dir.path())], 3).unwrap();
    let kept = pruned.kept.clone();
    prune::encoder(whole, pruned).write(&dir.path().join("pruned")).unwrap();
    let whole = Checkpoint::read(&dir.path().join("whole")).unwrap();
    let pruned = Checkpoint::read(&dir.path().join("pruned")).unwrap();
    assert_eq!(pruned.description.vocabulary, kept.len());
    let rows = Tensor::from_slice(&kept.iter().map(|&id| i64::from(id)).collect::<Vec<_>>());
    for ((name, before), (other, after)) in whole.tensors.iter().zip(&pruned.tensors) {
        assert_eq!(name, other);
        let by_piece = ["embeddings.word", "generator.mlm.bias"].contains(&name.as_str());
        let expected = if by_piece { before.index_select(0, &rows) } else { before.shallow_clone() };
        assert_eq!(*after, expected, "{name}");
    }
}

#[test]
fn other_models_and_empty_texts_are_refused() {
    let dir = TempDir::new().unwrap();
    let bpe = r#"{"version": "1.0", "added_tokens": [{"id": 0, "content": "<unk>", "special": true, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false}, {"id": 1, "content": "<s>", "special": true, "single_word":
        false, "lstrip": false, "rstrip": false, "normalized": false}, {"id": 2, "content": "</s>", "special": true,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}],
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}, "merges": []}}"#;
    let error = |tokenizer: &[u8], text: PathBuf| format!("{:#}", prune::prune(tokenizer, &[text], 1).unwrap_err());
    assert!(error(bpe.as_bytes(), text(dir.path())).contains(r#""BPE", expected WordPiece or Unigram"#));
    let tokenizer = fs::read(common::tokenizer(dir.path())).unwrap();
    assert!(error(&tokenizer, common::fixture("empty.tsv")).contains("hold no text"));
}
