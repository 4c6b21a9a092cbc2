//! Checkpoints of Hugging Face give here what they give there, and come back as they were.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use tch::nn::VarStore;
use tch::{Device, Kind as Number, Tensor};
use tempfile::TempDir;
use vitag::pack::Packed;
use vitag::tokenize::Window;
use vitag_trainer::checkpoint::{Checkpoint, Kind};
use vitag_trainer::hub;
use vitag_trainer::model::{Batch, Encoder};

const CHECKPOINTS: [&str; 4] = ["bert", "bert-mlm", "electra", "electra-generator"];

fn checkpoint(name: &str) -> PathBuf {
    common::fixture("hub").join(name)
}

/// What transformers gave.
fn expected(name: &str) -> Vec<(String, Tensor)> {
    Tensor::read_safetensors(checkpoint(name).join("expected.safetensors")).unwrap()
}

fn find<'t>(tensors: &'t [(String, Tensor)], name: &str) -> &'t Tensor {
    &tensors.iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("no {name}")).1
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

/// The states of two sequences in one batch, every layer's rows of the `sequence`.
fn states(imported: &Checkpoint, ids: [&Tensor; 2], sequence: usize) -> Vec<Tensor> {
    let store = VarStore::new(Device::Cpu);
    let description = &imported.description;
    let encoder = Encoder::new(&(store.root() / "encoder"), &description.sizes, description.vocabulary as i64, 0.0);
    imported.restore(&store, "encoder").unwrap();
    let window = |ids: &Tensor| {
        let ids: Vec<i64> = Vec::try_from(ids).unwrap();
        Window { units: 0..1, keep: 0..1, ids: ids.iter().map(|&id| id as u32).collect(), word_starts: vec![1] }
    };
    let windows = ids.map(window);
    let batch = Batch::new(&Packed::new(&windows), Device::Cpu);
    let rows = [0, windows[0].ids.len() as i64, windows.iter().map(|window| window.ids.len() as i64).sum()];
    let rows = |all: Tensor| all.slice(0, rows[sequence], rows[sequence + 1], 1);
    tch::no_grad(|| encoder.forward(&batch, false)).into_iter().map(rows).collect()
}

#[test]
fn hidden_states_are_those_of_transformers() {
    let _alone = common::alone();
    for name in CHECKPOINTS {
        let (imported, expected) = (hub::import(&checkpoint(name)).unwrap(), expected(name));
        let ids = ["first", "second"].map(|key| find(&expected, &format!("{key}.ids")));
        for (sequence, key) in ["first", "second"].into_iter().enumerate() {
            for (layer, found) in states(&imported, ids, sequence).iter().enumerate() {
                let distance = distance(found, find(&expected, &format!("{key}.states.{layer}")));
                assert!(distance < 1e-4, "{name}, {key}, layer {layer}: {distance}");
            }
        }
    }
}

#[test]
fn the_logits_of_the_heads_are_those_of_transformers() {
    let _alone = common::alone();
    for name in &CHECKPOINTS[1..] {
        let (imported, expected) = (hub::import(&checkpoint(name)).unwrap(), expected(name));
        let ids = ["first", "second"].map(|key| find(&expected, &format!("{key}.ids")));
        let states = states(&imported, ids, 0);
        let of = |name: &str| find(&imported.tensors, name);
        let linear =
            |x: &Tensor, layer: &str| x.linear(of(&format!("{layer}.weight")), Some(of(&format!("{layer}.bias"))));
        let last = states.last().unwrap();
        let logits = if imported.description.kind == Kind::Electra {
            linear(&linear(last, "discriminator.dense").gelu("none"), "discriminator.output").squeeze_dim(1)
        } else {
            let wide = linear(last, "mlm.dense").gelu("none");
            let (gain, offset) = (of("mlm.norm.weight"), of("mlm.norm.bias"));
            let rows = wide.layer_norm(gain.size(), Some(gain), Some(offset), 1e-12, true);
            rows.linear(of("embeddings.word"), Some(of("mlm.bias")))
        };
        let distance = distance(&logits, find(&expected, "first.logits"));
        assert!(distance < 1e-4, "{name}: {distance}");
    }
}

#[test]
fn what_is_imported_can_be_written_and_comes_back_from_hugging_face() {
    for name in CHECKPOINTS {
        let dir = TempDir::new().unwrap();
        let imported = hub::import(&checkpoint(name)).unwrap();
        imported.write(&dir.path().join("encoder")).unwrap();
        hub::export(&Checkpoint::read(&dir.path().join("encoder")).unwrap(), &dir.path().join("hf")).unwrap();
        let again = hub::import(&dir.path().join("hf")).unwrap();
        assert_eq!(again.description.kind, imported.description.kind, "{name}");
        assert_eq!(again.description.sizes, imported.description.sizes, "{name}");
        assert_eq!(again.tensors.len(), imported.tensors.len(), "{name}");
        for ((a, value), (b, expected)) in again.tensors.iter().zip(&imported.tensors) {
            assert_eq!((a, value.kind()), (b, Number::Float), "{name}");
            assert_eq!(value, expected, "{name}: {a}");
        }
    }
}

/// The error of importing `bert` with `from` in its config replaced.
fn error(from: &str, to: &str) -> String {
    let dir = TempDir::new().unwrap();
    for file in ["config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"] {
        fs::copy(checkpoint("bert").join(file), dir.path().join(file)).unwrap();
    }
    change(&dir.path().join("config.json"), from, to);
    format!("{:#}", hub::import(dir.path()).unwrap_err())
}

fn change(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn what_the_encoder_does_not_compute_is_refused_by_name() {
    let cases = [
        (r#""hidden_act": "gelu""#, r#""hidden_act": "relu""#, r#"hidden_act is "relu", expected gelu"#),
        (
            r#""model_type": "bert""#,
            r#""model_type": "bert", "position_embedding_type": "relative_key""#,
            r#"position_embedding_type is "relative_key""#,
        ),
        (
            r#""model_type": "bert""#,
            r#""model_type": "roberta""#,
            r#"model_type is "roberta", expected bert or electra"#,
        ),
        (
            r#""num_hidden_layers": 2"#,
            r#""num_hidden_layers": 3"#,
            r#"lacks "encoder.layer.2.attention.self.query.weight""#,
        ),
        (r#""intermediate_size": 48"#, r#""intermediate_size": 64"#, "has shape [48, 32]"),
        (r#""hidden_size": 32"#, r#""hidden_sized": 32"#, "missing field `hidden_size`"),
    ];
    for (from, to, expected) in cases {
        let error = error(from, to);
        assert!(error.contains(expected) && error.contains("config.json") | error.contains("safetensors"), "{error}");
    }
}

#[test]
fn missing_files_are_named() {
    let dir = TempDir::new().unwrap();
    let error = || format!("{:#}", hub::import(dir.path()).unwrap_err());
    assert!(error().contains("config.json"));
    fs::copy(checkpoint("bert").join("config.json"), dir.path().join("config.json")).unwrap();
    assert!(error().contains("neither tokenizer.json nor vocab.txt"));
    fs::copy(checkpoint("bert").join("vocab.txt"), dir.path().join("vocab.txt")).unwrap();
    assert!(error().contains("no model.safetensors"));
}
