//! An encoder with a vocabulary of SentencePiece goes all the way, from its directory to a model that answers.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use tch::Device;
use tch::nn::VarStore;
use tempfile::TempDir;
use vitag::manifest::{ModelDir, Variant};
use vitag::pack::Packed;
use vitag::tags;
use vitag::tokenize::Tokenizer;
use vitag_trainer::checkpoint::{Checkpoint, Description};
use vitag_trainer::config::{self, Config};
use vitag_trainer::evaluate::{self, Part};
use vitag_trainer::export::{self, Options};
use vitag_trainer::finetune::{Paths, finetune};
use vitag_trainer::model::{self, Encoder};
use vitag_trainer::run::Run;
use vitag_trainer::vocab::prune;

/// Settings that start from an encoder directory with random weights and a pruned Unigram vocabulary.
fn settings(dir: &Path) -> Config {
    let mut config = common::config(common::LINEAR, 1);
    let sizes = config.encoder.sizes.take().unwrap();
    let tokenizer = fs::read(common::unigram(dir)).unwrap();
    let description = Description::random(sizes.clone(), &tokenizer).unwrap();
    let store = VarStore::new(Device::Cpu);
    let _encoder = Encoder::new(&store.root(), &sizes, description.vocabulary as i64, 0.1);
    let whole = Checkpoint { description, tensors: model::variables(&store), tokenizer };
    let pruned = prune::prune(&whole.tokenizer, &[common::fixture("raw.txt")], 2).unwrap();
    let from = dir.join("encoder");
    prune::encoder(whole, pruned).write(&from).unwrap();
    config.encoder = config::Encoder { from: Some(from), ..config.encoder };
    config
}

fn train_and_export(dir: &Path) -> PathBuf {
    let (out, data) = (dir.join("run"), common::fixtures());
    finetune(settings(dir), Paths { data: &data, tokenizer: None, out: &out }, false).unwrap();
    let run = Run::open(&out).unwrap();
    evaluate::evaluate(&run, &data, Part::Test).unwrap().write(&out).unwrap();
    let texts = dir.join("texts.txt");
    fs::write(&texts, "Bà Lan (Huế) nói: “Trời mưa!”, rồi đi.\nÔng An đi chợ…\n").unwrap();
    let options = Options { models: &dir.join("models"), texts: &texts, git_commit: None, int8: None };
    export::export(&run, options).unwrap().dir
}

#[test]
fn a_unigram_vocabulary_is_trained_exported_and_served() {
    let _alone = common::alone();
    let dir = TempDir::new().unwrap();
    let model = ModelDir::open(&train_and_export(dir.path())).unwrap();
    let config = fs::read_to_string(model.file("config.json")).unwrap();
    assert!(config.contains("\"pad_token_id\": 1"), "{config}");

    let manifest = &model.manifest;
    let tokenizer = Tokenizer::from_file(&model.file("tokenizer.json"), manifest.unit, manifest.max_length).unwrap();
    let mut session = common::session(&model.file("model.onnx"));
    let golden = model.golden(Variant::F32).unwrap();
    for case in &golden.cases {
        let tokens = tokenizer.tokenize(&case.text, None).unwrap();
        for head in &manifest.heads {
            let window = |window| common::run_onnx(&mut session, &Packed::new([window]), &head.output);
            let windows: Vec<Vec<f32>> = tokens.windows.iter().map(window).collect();
            let logits = tags::stitch(&tokens, &windows, head.labels().unwrap().count());
            assert!(common::distance(&case.heads[&head.name].logits.concat(), &logits) <= 1e-4);
        }
    }
    assert_eq!(golden.cases.len(), 2);
}
