//! An encoder directory: whole or not there, and refused with file and tensor where its parts do not fit.

mod common;

use std::fs;
use std::path::Path;

use tch::Device;
use tch::nn::VarStore;
use tempfile::TempDir;
use vitag_trainer::checkpoint::{Checkpoint, DESCRIPTION, Description, Kind, Start, TOKENIZER, WEIGHTS};
use vitag_trainer::config::{self, Config, Sizes};
use vitag_trainer::finetune::{Paths, finetune};
use vitag_trainer::model::{self, Encoder};
use vitag_trainer::{files, run::Run};

fn sizes() -> Sizes {
    Sizes { max_length: 64, embedding: 24, hidden: 32, layers: 2, heads: 4, ffn: 48, norm_epsilon: 1e-12 }
}

fn checkpoint(dir: &Path) -> Checkpoint {
    let tokenizer = fs::read(common::tokenizer(dir)).unwrap();
    let description = Description::random(sizes(), &tokenizer).unwrap();
    let store = VarStore::new(Device::Cpu);
    let _encoder = Encoder::new(&store.root(), &sizes(), description.vocabulary as i64, 0.1);
    Checkpoint { description, tensors: model::variables(&store), tokenizer }
}

fn read_error(dir: &Path) -> String {
    format!("{:#}", Checkpoint::read(dir).unwrap_err())
}

#[test]
fn what_is_written_comes_back() {
    let dir = TempDir::new().unwrap();
    let (written, path) = (checkpoint(dir.path()), dir.path().join("encoder"));
    written.write(&path).unwrap();
    let read = Checkpoint::read(&path).unwrap();
    assert_eq!(read.description, written.description);
    assert_eq!(read.tokenizer, written.tokenizer);
    let names = |all: &Checkpoint| all.tensors.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&read), names(&written));
    assert!(read.tensors.iter().zip(&written.tensors).all(|(a, b)| a.1 == b.1));
}

#[test]
fn the_shapes_are_those_of_the_variables() {
    for (embedding, hidden) in [(24, 32), (32, 32)] {
        let sizes = Sizes { embedding, hidden, ..sizes() };
        let store = VarStore::new(Device::Cpu);
        let _encoder = Encoder::new(&store.root(), &sizes, 100, 0.1);
        let mut shapes = Encoder::shapes(&sizes, 100);
        shapes.sort();
        let found: Vec<_> = model::variables(&store).into_iter().map(|(name, tensor)| (name, tensor.size())).collect();
        assert_eq!(found, shapes);
    }
}

#[test]
fn parts_that_do_not_fit_are_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("encoder");
    assert!(read_error(&path).contains("encoder.json"));

    checkpoint(dir.path()).write(&path).unwrap();
    let text = fs::read_to_string(path.join(DESCRIPTION)).unwrap();
    fs::write(path.join(DESCRIPTION), text.replace("\"ffn\": 48", "\"ffn\": 64")).unwrap();
    let shape = read_error(&path);
    assert!(shape.contains(WEIGHTS) && shape.contains("\"layers.0.ffn_in.weight\" has shape [48, 32]"), "{shape}");
    assert!(shape.contains("asks for [64, 32]"), "{shape}");
    fs::write(path.join(DESCRIPTION), text.replace("\"layers\": 2", "\"layers\": 3")).unwrap();
    let missing = read_error(&path);
    assert!(missing.contains("encoder.safetensors lacks \"layers.2.attention.input.weight\""), "{missing}");
    fs::write(path.join(DESCRIPTION), text.replace("\"sizes\"", "\"size\"")).unwrap();
    assert!(read_error(&path).contains("encoder.json: unknown field `size`"));
    fs::write(path.join(DESCRIPTION), &text).unwrap();

    fs::write(path.join(TOKENIZER), "{}").unwrap();
    assert!(read_error(&path).contains("tokenizer.json: not a tokenizer"));
    let weights = fs::read(path.join(WEIGHTS)).unwrap();
    fs::write(path.join(WEIGHTS), &weights[..weights.len() / 2]).unwrap();
    assert!(read_error(&path).contains("cannot read") && read_error(&path).contains(WEIGHTS));

    let mut wrong = checkpoint(dir.path());
    wrong.description.vocabulary += 1;
    let refused = format!("{:#}", wrong.write(&dir.path().join("wrong")).unwrap_err());
    assert!(refused.contains("\"embeddings.word\" has shape"), "{refused}");
    assert!(!dir.path().join("wrong").exists());
}

#[test]
fn a_directory_is_replaced_whole_or_not_at_all() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("encoder");
    let mut written = checkpoint(dir.path());
    written.write(&path).unwrap();

    // What a killed writer leaves, and one that ran out of space.
    fs::create_dir(dir.path().join(".new-encoder")).unwrap();
    fs::write(dir.path().join(".new-encoder").join(WEIGHTS), b"half").unwrap();
    let full = files::replace_dir(&path, |dir| {
        fs::write(dir.join(WEIGHTS), b"half")?;
        anyhow::bail!("no space left")
    });
    assert!(format!("{:#}", full.unwrap_err()).contains("no space left"));
    assert_eq!(Checkpoint::read(&path).unwrap().description.origin, "random weights");

    written.description.origin = "a second time".to_owned();
    written.write(&path).unwrap();
    assert_eq!(Checkpoint::read(&path).unwrap().description.origin, "a second time");
    assert!(!dir.path().join(".new-encoder").exists());
}

#[test]
fn finetuning_starts_from_a_pretrained_encoder() {
    let _alone = common::alone();
    let dir = TempDir::new().unwrap();
    let (path, out) = (dir.path().join("encoder"), dir.path().join("run"));
    let mut pretrained = checkpoint(dir.path());
    pretrained.description.kind = Kind::Electra;
    pretrained.description.origin = "a test".to_owned();
    pretrained.write(&path).unwrap();
    let text = common::config_text(common::LINEAR, 1);
    let (head, rest) = text.split_once("[encoder.sizes]").unwrap();
    let (_, train) = rest.split_once("[train]").unwrap();
    let from = |rate: &str| {
        let path = format!("from = {:?}\n[train]\n", path.to_str().unwrap());
        Config::parse(&format!("{head}{path}{train}").replace("learning_rate = 5e-3", rate)).unwrap()
    };
    let paths = Paths { data: &common::fixtures(), tokenizer: None, out: &out };

    // So slow a rate for the encoder leaves it where it was, while the heads learn.
    finetune(from("learning_rate = 1e-30\nhead_learning_rate = 5e-3"), paths, false).unwrap();
    let run = Run::open(&out).unwrap();
    assert_eq!(run.encoder, pretrained.description);
    let after = model::variables_below(&run.store, model::ENCODER);
    let near = |a: &tch::Tensor, b: &tch::Tensor| f64::try_from((a - b).abs().max()).unwrap() < 1e-20;
    assert!(after.iter().zip(&pretrained.tensors).all(|(a, b)| a.0 == b.0 && near(&a.1, &b.1)));
    let output = model::variables_below(&run.store, "heads.pos.output");
    assert!(output.iter().any(|(name, bias)| name == "bias" && f64::try_from(bias.abs().max()).unwrap() > 1e-4));

    let tokenizer = path.join(TOKENIZER);
    let twice = finetune(from("learning_rate = 1e-3"), Paths { tokenizer: Some(&tokenizer), ..paths }, false);
    assert!(format!("{:#}", twice.unwrap_err()).contains("--tokenizer: leave it out"));
}

#[test]
fn a_run_can_read_shorter_inputs_than_the_encoder() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("encoder");
    checkpoint(dir.path()).write(&path).unwrap();
    let start = |max_length| {
        Start::new(&config::Encoder { from: Some(path.clone()), sizes: None, max_length, dropout: 0.1 }, None)
    };
    let (whole, short) = (start(None).unwrap(), start(Some(40)).unwrap());
    assert_eq!((whole.description.sizes.max_length, short.description.sizes.max_length), (64, 40));
    let positions = |start: Start| {
        let store = VarStore::new(Device::Cpu);
        let (root, sizes) = (store.root() / model::ENCODER, &start.description.sizes);
        let encoder = Encoder::new(&root, sizes, start.description.vocabulary as i64, 0.1);
        let _ = tch::no_grad(|| encoder.position.shallow_clone().fill_(7.0));
        start.checkpoint.unwrap().restore(&store, model::ENCODER).unwrap();
        encoder.position.detach().copy()
    };
    assert_eq!(positions(whole).narrow(0, 0, 40), positions(short));
    let longer = format!("{:#}", start(Some(65)).unwrap_err());
    assert!(longer.contains("encoder.max_length: 65 is more than the 64"), "{longer}");
}
