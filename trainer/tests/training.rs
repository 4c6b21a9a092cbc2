//! Training learns, repeats, and goes on after an interruption as if there had been none.

mod common;

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use vitag_trainer::evaluate::{self, Part};
use vitag_trainer::finetune::{Paths, finetune};
use vitag_trainer::fit;
use vitag_trainer::run::Run;

fn train(out: &Path, tokenizer: &Path, epochs: usize, resume: bool) {
    let paths = Paths { data: &common::fixtures(), tokenizer: Some(tokenizer), out };
    finetune(common::config(common::BIGRU, epochs), paths, resume).unwrap();
}

#[test]
fn a_tiny_model_learns_its_training_data() {
    let _alone = common::alone();
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("run");
    train(&out, &common::tokenizer(dir.path()), 30, false);

    let log = fs::read_to_string(out.join(fit::LOG)).unwrap();
    let losses: Vec<f64> = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap())
        .collect();
    assert!(losses[losses.len() - 1] < losses[0] / 3.0, "{losses:?}");

    let run = Run::open(&out).unwrap();
    let report = evaluate::evaluate(&run, &common::fixtures(), Part::Test).unwrap();
    for result in report.results {
        assert!(
            result.model.accuracy > 0.9,
            "{}: accuracy on what it learnt is {}",
            result.task,
            result.model.accuracy
        );
    }
}

#[test]
fn one_seed_and_one_thread_give_the_same_bits() {
    let _alone = common::alone();
    let dir = TempDir::new().unwrap();
    let tokenizer = common::tokenizer(dir.path());
    let weights = ["a", "b"].map(|name| {
        let out = dir.path().join(name);
        train(&out, &tokenizer, 2, false);
        fs::read(out.join(fit::LAST)).unwrap()
    });
    assert!(weights[0] == weights[1]);
}
