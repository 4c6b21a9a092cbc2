//! What is wrong with an input is said with its place.

mod common;

use std::fs;
use std::path::Path;

use vitag::manifest::Task;
use vitag::tags::Scheme;
use vitag::tokenize::{Tokenizer, Unit};
use vitag_trainer::config::Config;
use vitag_trainer::data::{self, Corpus, Reading};
use vitag_trainer::{paper, pretrain, shards, vocab};

fn reading(task: Task) -> Reading {
    let config = common::config(common::LINEAR, 1);
    config.tasks.iter().find(|other| other.kind == task).unwrap().reading()
}

fn error(name: &str, task: Task) -> String {
    format!("{:#}", Corpus::read(&common::fixture(name), reading(task)).unwrap_err())
}

fn config_error(from: &str, to: &str) -> String {
    let text = common::config_text(common::LINEAR, 1);
    assert!(text.contains(from), "{from:?}");
    format!("{:#}", Config::parse(&text.replace(from, to)).unwrap_err())
}

#[test]
fn malformed_corpora_are_refused_with_file_and_line() {
    let columns = error("bad_columns.tsv", Task::Ner);
    assert!(columns.contains("bad_columns.tsv:3: expected a unit, a tab and a tag, found \"đến O\""), "{columns}");
    let fields = error("bad_fields.conllu", Task::Pos);
    assert!(fields.contains("bad_fields.conllu:4: expected the 10 columns of CoNLL-U, found 7"), "{fields}");
    assert!(error("empty.tsv", Task::Ner).contains("empty.tsv: the file holds no sentence"));
    assert!(error("missing.tsv", Task::Ner).contains("cannot read"));
    let tag = error("pos_train.conllu", Task::Ner);
    assert!(tag.contains("pos_train.conllu:1: expected a unit, a tab and a tag"), "{tag}");
}

#[test]
fn an_inside_tag_after_outside_begins_an_entity() {
    let corpus = Corpus::read(&common::fixture("bad_bio.tsv"), reading(Task::Ner)).unwrap();
    assert_eq!(corpus.sentences[0].labels, ["O", "O", "B-PER", "O"]);
}

#[test]
fn a_label_that_training_does_not_know_is_refused_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::from_file(&common::tokenizer(dir.path()), Unit::Syllable, 64).unwrap();
    let train = [Corpus::read(&common::fixture("bad_bio.tsv"), reading(Task::Ner)).unwrap()];
    let labels = data::label_set(&train, Scheme::Bio).unwrap();
    let dev = Corpus::read(&common::fixture("ner_dev.tsv"), reading(Task::Ner)).unwrap();
    let error = dev.examples(&tokenizer, &labels).unwrap_err().to_string();
    assert!(error.contains("ner_dev.tsv:") && error.contains("does not occur in the training data"), "{error}");
}

#[test]
fn settings_are_refused_by_their_key() {
    assert!(config_error("seed = 7", "seed = 7\nsede = 8").contains("unknown field `sede`"));
    assert!(config_error("layers = 2\n", "").contains("missing field `layers`"));
    assert!(
        config_error("heads = 4", "heads = 5").contains("encoder.sizes.heads: 5 must divide encoder.sizes.hidden, 32")
    );
    assert!(config_error("epochs = 1", "epochs = 0").contains("train.epochs"));
    assert!(config_error("learning_rate = 5e-3", "learning_rate = 0.0").contains("train.learning_rate"));
    assert!(config_error("name = \"ner\"", "name = \"pos\"").contains("task.name: \"pos\" stands twice"));
    assert!(config_error("\"linear\"", "\"conv\"").contains("unknown variant `conv`"));
}

#[test]
fn a_vocabulary_needs_text() {
    let options = vocab::Options { size: 100, min_frequency: 1 };
    let error = vocab::train(&[common::fixture("empty.tsv")], options, Path::new("unused")).unwrap_err().to_string();
    assert!(error.contains("the inputs hold no text"), "{error}");
}

#[test]
fn a_vocabulary_and_shards_are_the_same_from_a_packed_text_in_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, folder) = (common::fixture("raw.txt"), dir.path().join("packed"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("text.zst"), zstd::encode_all(&*fs::read(&plain).unwrap(), 0).unwrap()).unwrap();
    let made = [plain, folder].map(|input| {
        let (tokenizer, shards) = (dir.path().join("tokenizer.json"), dir.path().join("shards"));
        // The letters alone: which longer pieces there are differs from run to run where they tie.
        let options = vocab::Options { size: 100, min_frequency: 1 };
        vocab::train(std::slice::from_ref(&input), options, &tokenizer).unwrap();
        let pieces: serde_json::Value = serde_json::from_slice(&fs::read(&tokenizer).unwrap()).unwrap();
        let mut pieces: Vec<String> = pieces["model"]["vocab"].as_object().unwrap().keys().cloned().collect();
        pieces.sort();
        let summary = shards::tokenize(&[input], &common::tokenizer(dir.path()), &shards).unwrap();
        (pieces, summary)
    });
    assert_eq!(made[0], made[1]);
}

#[test]
fn the_settings_that_come_with_the_trainer_are_in_order() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    Config::read(&configs.join("vi-tagger.toml")).unwrap();
    paper::Matrix::read(&configs.join("paper/matrix.toml")).unwrap();
    let pretraining = [
        ("bert-small", false),
        ("electra-small", true),
        ("vibert-small", false),
        ("paper/vibert", false),
        ("paper/velectra", true),
    ];
    for (name, electra) in pretraining {
        let config = pretrain::config::Config::read(&configs.join(name).with_extension("toml")).unwrap();
        assert_eq!(config.generator.is_some(), electra, "{name}");
    }
}
