//! The commands one after the other, from plain text to a model.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use vitag::manifest::ModelDir;

fn trainer(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vitag-trainer"));
    command.current_dir(dir).env("GOMP_SPINCOUNT", "0").args(["--threads", "1"]).args(arguments).output().unwrap()
}

fn succeed(dir: &Path, arguments: &[&str]) -> String {
    let output = trainer(dir, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn vocabulary_training_scores_and_export_follow_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, fixtures) = (dir.path(), common::fixtures());
    let data = fixtures.to_str().unwrap();
    fs::write(dir.join("config.toml"), common::config_text(common::BIGRU, 2)).unwrap();
    fs::write(dir.join("texts.txt"), "Bà Lan ở Huế.\n").unwrap();

    succeed(
        dir,
        &["vocab", "train", "--size", "400", "--min-frequency", "1", common::fixture("raw.txt").to_str().unwrap()],
    );
    let early = trainer(dir, &["export", "--texts", "texts.txt"]);
    assert_eq!(early.status.code(), Some(1));
    succeed(dir, &["finetune", "--config", "config.toml", "--data", data, "--seed", "3"]);
    let no_scores = trainer(dir, &["export", "--texts", "texts.txt"]);
    assert!(String::from_utf8_lossy(&no_scores.stderr).contains("evaluate the run on its test data"));
    let table = succeed(dir, &["evaluate", "--data", data]);
    assert!(table.contains("word segmentation F1") && table.contains("entity F1"), "{table}");
    succeed(dir, &["export", "--texts", "texts.txt", "--git-commit", "abc"]);

    let model = ModelDir::open(&dir.join("models/tiny/0.0.1")).unwrap();
    assert_eq!(model.manifest.git_commit.as_deref(), Some("abc"));
    assert!(fs::read_to_string(model.file("README.md")).unwrap().starts_with("---\nlicense: cc0-1.0\n"));
    assert!(fs::read_to_string(model.file("metrics.json")).unwrap().contains("\"seed\": 3"));
}

#[test]
fn help_shows_examples() {
    let dir = tempfile::tempdir().unwrap();
    for command in [
        "clean",
        "vocab train",
        "vocab prune",
        "import",
        "export-hf",
        "tokenize",
        "pretrain",
        "finetune",
        "evaluate",
        "export",
        "paper train",
        "paper time",
        "paper report",
    ] {
        let arguments: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        assert!(succeed(dir.path(), &arguments).contains("Example"), "{command}");
    }
}

/// Where no file may grow beyond `bytes`, as on a disk that is full.
fn trainer_on_full_disk(dir: &Path, bytes: u64, arguments: &[&str]) -> Output {
    let script = r#"trap '' XFSZ; ulimit -f "$0"; exec "$@""#;
    let mut command = Command::new("sh");
    command.args(["-c", script, &(bytes / 512).to_string(), env!("CARGO_BIN_EXE_vitag-trainer")]);
    command.current_dir(dir).env("GOMP_SPINCOUNT", "0").args(["--threads", "1"]).args(arguments).output().unwrap()
}

#[test]
fn a_full_disk_ends_a_run_with_the_file_and_leaves_none_that_is_half_written() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, fixtures) = (dir.path(), common::fixtures());
    fs::write(dir.join("config.toml"), common::config_text(common::LINEAR, 1)).unwrap();
    let tokenizer = common::tokenizer(dir);
    let finetune = ["finetune", "--config", "config.toml", "--data", fixtures.to_str().unwrap()];
    succeed(dir, &[&finetune[..], &["--out", "whole"]].concat());
    let (small, weights) = (tokenizer.metadata().unwrap().len() + 4096, dir.join("whole/model.safetensors"));
    assert!(small < weights.metadata().unwrap().len());

    let output = trainer_on_full_disk(dir, small, &[&finetune[..], &["--out", "full"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write full/model.safetensors"), "{said}");
    let left: Vec<String> = fs::read_dir(dir.join("full"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(!left.iter().any(|name| name.starts_with(".new-") || name.ends_with(".safetensors")), "{left:?}");
}
