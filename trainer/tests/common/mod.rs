//! What the tests share: fixtures, a tiny model, ONNX Runtime.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ort::session::Session;
use ort::value::TensorRef;
use tempfile::TempDir;
use tokenizers::models::unigram::{Unigram, UnigramTrainerBuilder};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::metaspace::Metaspace;
use tokenizers::{AddedToken, DecoderWrapper, PostProcessorWrapper, TokenizerBuilder};
use vitag::infer::Runtime;
use vitag::pack::Packed;
use vitag::tags::{Labels, Scheme};
use vitag::tokenize::Window;
use vitag_trainer::config::Config;
use vitag_trainer::run::Run;
use vitag_trainer::vocab;

/// libtorch has one generator of random numbers a process: runs that must repeat may not share it.
static GENERATOR: Mutex<()> = Mutex::new(());

pub(crate) fn alone() -> MutexGuard<'static, ()> {
    tch::set_num_threads(1);
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    fixtures().join(name)
}

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Settings of a model that trains on the fixtures in seconds; both heads are `head` (TOML).
pub(crate) fn config_text(head: &str, epochs: usize) -> String {
    format!(
        r#"
seed = 7
model = {{ name = "tiny", version = "0.0.1", licence = "CC0-1.0", data = [
    {{ name = "fixtures", licence = "CC0-1.0", attribution = "written for the tests" }} ] }}
[encoder]
dropout = 0.1
[encoder.sizes]
max_length = 64
embedding = 24
hidden = 32
layers = 2
heads = 4
ffn = 64
[train]
epochs = {epochs}
patience = 50
batch = 8
learning_rate = 5e-3
warmup = 0.1
weight_decay = 0.01
clip = 1.0
unit_dropout = 0.05
[[task]]
name = "pos"
kind = "pos"
train = ["pos_train.conllu"]
dev = ["pos_dev.conllu"]
test = ["pos_train.conllu"]
head = {head}
[[task]]
name = "ner"
kind = "ner"
train = ["ner_train.tsv"]
dev = ["ner_dev.tsv"]
test = ["ner_train.tsv"]
head = {head}
"#
    )
}

pub(crate) const LINEAR: &str = r#"{ kind = "linear", dropout = 0.1 }"#;
pub(crate) const BIGRU: &str = r#"{ kind = "bigru", hidden = 16, dropout = 0.1 }"#;

pub(crate) fn config(head: &str, epochs: usize) -> Config {
    Config::parse(&config_text(head, epochs)).unwrap()
}

/// A tokenizer trained on the fixtures.
pub(crate) fn tokenizer(dir: &Path) -> PathBuf {
    let path = dir.join("tokenizer.json");
    vocabulary(&fixture("raw.txt"), &path);
    path
}

/// A tokenizer trained on a text.
pub(crate) fn vocabulary(text: &Path, path: &Path) {
    let options = vocab::Options { size: 400, min_frequency: 1 };
    vocab::train(&[text.to_owned()], options, path).unwrap();
}

/// As SentencePiece makes them, trained on the fixtures: `▁` before every word, special tokens as in RoBERTa.
pub(crate) fn unigram(dir: &Path) -> PathBuf {
    let special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"].map(|token| AddedToken::from(token, true)).to_vec();
    let mut trainer = UnigramTrainerBuilder::default()
        .vocab_size(400)
        .unk_token(Some("<unk>".to_owned()))
        .special_tokens(special.clone())
        .show_progress(false)
        .build()
        .unwrap();
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(Unigram::default())
        .with_normalizer(Some(NFC))
        .with_pre_tokenizer(Some(Metaspace::default()))
        .with_post_processor(None::<PostProcessorWrapper>)
        .with_decoder(None::<DecoderWrapper>)
        .build()
        .unwrap();
    tokenizer.train_from_files(&mut trainer, vec![fixture("raw.txt").to_str().unwrap().to_owned()]).unwrap();
    let path = dir.join("unigram.json");
    tokenizer.save(&path, false).unwrap();
    path
}

/// A model with random weights; the norms and biases too, so that no mistake in them hides behind ones and zeros.
pub(crate) fn random_run(dir: &TempDir, head: &str) -> Run {
    random_run_on(dir, head, 24)
}

/// [`random_run`] with embeddings of this width; the layers are 32 wide.
pub(crate) fn random_run_on(dir: &TempDir, head: &str, embedding: i64) -> Run {
    let labels = |names: &[&str]| Labels::new(names.iter().map(|&n| n.into()).collect(), Scheme::Bio).unwrap();
    let labels = vec![labels(&["B-A", "I-A", "B-B", "I-B"]), labels(&["O", "B-A", "I-A"])];
    let mut config = config(head, 1);
    config.encoder.sizes.as_mut().unwrap().embedding = embedding;
    let run = Run::create(&dir.path().join("run"), config, Some(&tokenizer(dir.path())), labels).unwrap();
    tch::no_grad(|| {
        for mut variable in run.store.trainable_variables().into_iter().filter(|variable| variable.dim() == 1) {
            let _ = variable.g_add_(&(variable.randn_like() * 0.2));
        }
    });
    run
}

/// Sequences of these lengths with ids and unit starts that differ from place to place.
pub(crate) fn windows(lengths: &[u32]) -> Vec<Window> {
    let window = |(i, &length): (usize, &u32)| {
        let ids = (0..length).map(|slot| (7 * slot + 31 * i as u32) % 390 + 5).collect();
        let word_starts: Vec<u32> = (0..length).filter(|slot| slot % 3 != 1).collect();
        let units = 0..word_starts.len();
        Window { keep: units.clone(), units, ids, word_starts }
    };
    lengths.iter().enumerate().map(window).collect()
}

/// A session of the real ONNX Runtime.
pub(crate) fn session(model: &Path) -> Session {
    let runtime = Runtime::load(None).unwrap();
    let builder = Session::builder(runtime.environment()).unwrap();
    builder.with_intra_threads(1).unwrap().commit_from_file(model).unwrap()
}

/// The logits of one output, row-major [units, labels].
pub(crate) fn run_onnx(session: &mut Session, packed: &Packed, output: &str) -> Vec<f32> {
    let (tokens, units, batch) = (packed.tokens(), packed.word_index.len(), packed.lengths.len());
    let outputs = session
        .run(ort::inputs![
            "input_ids" => TensorRef::from_array_view(([tokens], &packed.input_ids[..])).unwrap(),
            "position_ids" => TensorRef::from_array_view(([tokens], &packed.position_ids[..])).unwrap(),
            "pad_index" => TensorRef::from_array_view(([batch, packed.width], &packed.pad_index[..])).unwrap(),
            "unpad_index" => TensorRef::from_array_view(([tokens], &packed.unpad_index[..])).unwrap(),
            "lengths" => TensorRef::from_array_view(([batch], &packed.lengths[..])).unwrap(),
            "word_index" => TensorRef::from_array_view(([units], &packed.word_index[..])).unwrap(),
        ])
        .unwrap();
    outputs[output].try_extract_tensor::<f32>().unwrap().1.to_vec()
}

/// The greatest difference between two lists of one length.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
