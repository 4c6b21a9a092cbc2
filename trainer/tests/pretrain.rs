//! Pretraining learns, goes on after an interruption as if there had been none, and refuses what does not fit.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use tch::Tensor;
use tempfile::TempDir;
use vitag_trainer::checkpoint::{Checkpoint, Kind};
use vitag_trainer::metrics::{self, Part};
use vitag_trainer::optim::learning_rate;
use vitag_trainer::pretrain::checkpoint::{ENCODER_DIR, LAST};
use vitag_trainer::pretrain::config::Config;
use vitag_trainer::pretrain::{self, Options};
use vitag_trainer::shards;

const GENERATOR: &str = "[generator]\nhidden = 16\nlayers = 1\nheads = 2\nffn = 32\n";

/// A tokenised corpus with its tokenizer.
struct Corpus {
    dir: TempDir,
}

impl Corpus {
    /// Forty documents of a few sentences, written for the tests.
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let people = ["Bà Lan", "Ông An", "Cô Mai", "Chú Bình"];
        let acts = ["đi chợ mua cá", "ra sân tưới rau", "ngồi nhà đọc sách", "đến trường dạy học", "lên đồi hái chè"];
        let when = ["sáng nay", "chiều qua"];
        let sentence = |i: usize| format!("{} {} {}.", people[i % 4], acts[i % 5], when[i % 2]);
        let documents: Vec<String> = (0..40).map(|d| (d..d + 5).map(sentence).collect::<Vec<_>>().join("\n")).collect();
        fs::write(dir.path().join("text.txt"), documents.join("\n\n")).unwrap();
        let corpus = Self { dir };
        common::vocabulary(&corpus.text(), &corpus.tokenizer());
        shards::tokenize(&[corpus.text()], &corpus.tokenizer(), &corpus.shards()).unwrap();
        corpus
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self) -> PathBuf {
        self.path("text.txt")
    }

    fn tokenizer(&self) -> PathBuf {
        self.path("tokenizer.json")
    }

    fn shards(&self) -> PathBuf {
        self.path("shards")
    }

    fn pretrain(&self, kind: Kind, config: &str, out: &str, stop: bool, resume: bool) -> Result<()> {
        let options = Options {
            kind,
            shards: &self.shards(),
            tokenizer: Some(&self.tokenizer()),
            out: &self.path(out),
            budget: None,
            resume,
            stop: &AtomicBool::new(stop),
        };
        pretrain::pretrain(&Config::parse(config)?, &options).map(drop)
    }

    fn refused(&self, kind: Kind, config: &str) -> String {
        format!("{:#}", self.pretrain(kind, config, "refused", false, false).unwrap_err())
    }

    fn command(&self, config: &str, out: &str, more: &[&str]) -> Command {
        fs::write(self.path("config.toml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vitag-trainer"));
        command.current_dir(self.dir.path()).env("GOMP_SPINCOUNT", "0").stderr(Stdio::piped());
        command.args(["--threads", "1", "pretrain", "electra", "--config", "config.toml", "--out", out]).args(more);
        command
    }
}

fn config(steps: usize, rest: &str) -> String {
    format!(
        "seed = 5
        [encoder]
        dropout = 0.1
        [encoder.sizes]
        max_length = 32
        embedding = 24
        hidden = 32
        layers = 2
        heads = 4
        ffn = 64
        [train]
        steps = {steps}
        batch = 4
        accumulate = 2
        length = 24
        learning_rate = 5e-3
        warmup = 0.1
        weight_decay = 0.01
        clip = 1.0
        [held_out]
        share = 0.1
        sequences = 16
        [every]
        log = 1
        evaluate = 50
        checkpoint = 1
        {rest}"
    )
}

/// All tensors of a checkpoint but the one that tells the time it took.
fn tensors(dir: &Path) -> Vec<(String, Tensor)> {
    let mut tensors = Tensor::read_safetensors(dir.join(LAST)).unwrap();
    tensors.retain(|(name, _)| name != "progress");
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}

fn same_bits(a: &Path, b: &Path) -> bool {
    let (a, b) = (tensors(a), tensors(b));
    a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.0 == b.0 && a.1.equal(&b.1))
}

fn held_out(dir: &Path, name: &str) -> Vec<f64> {
    let records = metrics::read(dir).unwrap();
    records.iter().filter(|record| record.part == Part::HeldOut).map(|record| record.values[name]).collect()
}

#[test]
fn bert_learns_to_fill_in_words_of_held_out_text() {
    let (_alone, corpus) = (common::alone(), Corpus::new());
    corpus.pretrain(Kind::Bert, &config(150, ""), "run", false, false).unwrap();
    let run = corpus.path("run");
    let (loss, accuracy) = (held_out(&run, "masked_loss"), held_out(&run, "masked_accuracy"));
    assert!(loss[loss.len() - 1] < loss[0] / 2.0, "{loss:?}");
    assert!(accuracy[accuracy.len() - 1] > accuracy[0] + 0.15, "{accuracy:?}");

    let encoder = Checkpoint::read(&run.join(ENCODER_DIR)).unwrap();
    assert_eq!(encoder.description.kind, Kind::Bert);
    assert!(encoder.description.origin.starts_with("random weights, then 150 steps of pretraining on"));
    assert!(encoder.tensors.iter().any(|(name, _)| name == "mlm.bias"));
    assert!(fs::read_to_string(run.join("curves.svg")).unwrap().contains("accuracy on masked tokens"));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn bert_learns_in_bf16_where_the_processor_can() {
    let (_alone, corpus) = (common::alone(), Corpus::new());
    let config = config(150, "").replace("clip = 1.0", "clip = 1.0\nprecision = \"bf16\"");
    let done = corpus.pretrain(Kind::Bert, &config, "run", false, false);
    if std::is_x86_feature_detected!("avx512bf16") {
        done.unwrap();
        let loss = held_out(&corpus.path("run"), "masked_loss");
        assert!(loss[loss.len() - 1] < loss[0] / 2.0, "{loss:?}");
    } else if !tch::Cuda::is_available() {
        let refused = format!("{:#}", done.unwrap_err());
        assert!(refused.contains("train.precision: bf16 needs a CUDA device or a processor with AVX512"), "{refused}");
    }
}

#[test]
fn electra_learns_to_tell_replaced_tokens_of_held_out_text() {
    let (_alone, corpus) = (common::alone(), Corpus::new());
    corpus.pretrain(Kind::Electra, &config(150, GENERATOR), "run", false, false).unwrap();
    let run = corpus.path("run");
    let (masked, replaced) = (held_out(&run, "masked_loss"), held_out(&run, "replaced_loss"));
    assert!(masked[masked.len() - 1] < masked[0] / 1.5, "{masked:?}");
    assert!(replaced[replaced.len() - 1] < replaced[0] / 1.5, "{replaced:?}");
    let share = held_out(&run, "replaced_share");
    assert!(share.iter().all(|&share| share > 0.0 && share <= 0.2), "{share:?}");
}

#[test]
fn a_run_stopped_after_every_step_comes_to_the_same_bits() {
    let (_alone, corpus) = (common::alone(), Corpus::new());
    let head_start = format!("{GENERATOR}head_start = 3\n");
    for (kind, rest) in [(Kind::Bert, ""), (Kind::Electra, head_start.as_str())] {
        let (whole, broken) = (format!("{kind:?}-whole"), format!("{kind:?}-broken"));
        let config = config(6, rest);
        corpus.pretrain(kind, &config, &whole, false, false).unwrap();
        for step in 1..=6 {
            let stopped = corpus.pretrain(kind, &config, &broken, true, step > 1).unwrap_err();
            assert!(stopped.to_string().contains(&format!("interrupted after step {step}")), "{stopped:#}");
        }
        corpus.pretrain(kind, &config, &broken, false, true).unwrap();
        let (whole, broken) = (corpus.path(&whole), corpus.path(&broken));
        assert!(same_bits(&whole, &broken));
        let losses = |dir: &Path| -> Vec<f64> {
            let records = metrics::read(dir).unwrap();
            records.iter().filter(|r| r.part == Part::Train).map(|r| r.values["loss"]).collect()
        };
        assert_eq!(losses(&whole), losses(&broken));
        assert_eq!(losses(&whole).len(), 6);
    }
}

/// Waits until the run has saved `step` or a later one.
fn wait_for_step(child: &mut Child, run: &Path, step: u64) {
    let reached = || metrics::read(run).is_ok_and(|records| records.iter().any(|record| record.step >= step));
    while !reached() {
        assert_eq!(child.try_wait().unwrap(), None, "the run ended too soon");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_killed_run_leaves_whole_files_and_goes_on() {
    let (_alone, corpus) = (common::alone(), Corpus::new());
    let config = config(60, GENERATOR);
    corpus.pretrain(Kind::Electra, &config, "whole", false, false).unwrap();
    let run = corpus.path("run");
    let mut more: &[&str] = &[];
    for step in [3, 17, 31] {
        let mut child = corpus.command(&config, "run", more).spawn().unwrap();
        wait_for_step(&mut child, &run, step);
        child.kill().unwrap();
        child.wait().unwrap();
        Checkpoint::read(&run.join(ENCODER_DIR)).unwrap();
        more = &["--resume"];
    }
    assert!(corpus.command(&config, "run", more).status().unwrap().success());
    assert!(same_bits(&corpus.path("whole"), &run));
}

#[test]
fn sigterm_saves_and_ends() {
    let (_alone, corpus) = (common::alone(), Corpus::new());
    let config = config(1_000_000, GENERATOR).replace("checkpoint = 1\n", "checkpoint = 1000000\n");
    let run = corpus.path("run");
    let mut child = corpus.command(&config, "run", &[]).spawn().unwrap();
    wait_for_step(&mut child, &run, 2);
    assert!(!run.join(LAST).exists());
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("which is saved: go on with --resume"), "{message}");
    assert_eq!(output.status.code(), Some(1));
    assert!(run.join(LAST).exists());
    Checkpoint::read(&run.join(ENCODER_DIR)).unwrap();
}

#[test]
fn a_budget_of_time_ends_a_run_and_its_rate_follows_the_clock() {
    let (_alone, corpus) = (common::alone(), Corpus::new());
    const STEPS: usize = 1_000_000;
    let output = corpus.command(&config(STEPS, GENERATOR), "run", &["--max-minutes", "0.02"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let records = metrics::read(&corpus.path("run")).unwrap();
    let train: Vec<_> = records.iter().filter(|record| record.part == Part::Train).collect();
    let mut spent = 0.0;
    for record in &train {
        assert!(spent < 1.2, "a step began after the budget was spent");
        let position = spent / 1.2 * STEPS as f64;
        assert!((record.values["learning_rate"] - learning_rate(position, STEPS, 0.1, 5e-3)).abs() < 1e-9);
        spent = record.values["seconds"];
    }
    assert!(spent >= 1.2 && train[train.len() - 1].step < STEPS as u64);
}

#[test]
fn pretraining_goes_on_from_an_encoder_with_its_heads() {
    let (_alone, corpus) = (common::alone(), Corpus::new());
    let config = config(60, GENERATOR).replace("accumulate = 2\n", "");
    corpus.pretrain(Kind::Electra, &config, "first", false, false).unwrap();
    let from = corpus.path("first").join(ENCODER_DIR);
    let (before, rest) = config.split_once("[encoder.sizes]").unwrap();
    let again = format!("{before}from = {from:?}\n[train]{}", rest.split_once("[train]").unwrap().1);
    let run = |config: &str, tokenizer: Option<&Path>| {
        let options = Options {
            kind: Kind::Electra,
            shards: &corpus.shards(),
            tokenizer,
            out: &corpus.path("second"),
            budget: None,
            resume: false,
            stop: &AtomicBool::new(false),
        };
        pretrain::pretrain(&Config::parse(config).unwrap(), &options)
    };
    run(&again, None).unwrap();
    let (first, second) = (corpus.path("first"), corpus.path("second"));
    for measure in ["masked_loss", "replaced_loss"] {
        let (ended, began) = (held_out(&first, measure), held_out(&second, measure));
        assert_eq!(ended[ended.len() - 1], began[0], "{measure}");
    }
    let origin = Checkpoint::read(&second.join(ENCODER_DIR)).unwrap().description.origin;
    assert_eq!(origin.matches("then 60 steps of pretraining").count(), 2, "{origin}");

    let tokenizer = format!("{:#}", run(&again, Some(&corpus.tokenizer())).unwrap_err());
    assert!(tokenizer.contains("--tokenizer: leave it out"), "{tokenizer}");
    let shape = format!("{:#}", run(&again.replace("hidden = 16", "hidden = 8"), None).unwrap_err());
    assert!(shape.contains("\"generator.") && shape.contains("has shape"), "{shape}");
}

#[test]
fn what_does_not_fit_is_refused_with_its_reason() {
    let (_alone, corpus) = (common::alone(), Corpus::new());
    let bert = config(1, "");
    assert!(corpus.refused(Kind::Electra, &bert).contains("generator: missing"));
    assert!(corpus.refused(Kind::Bert, &config(1, GENERATOR)).contains("generator: BERT has none"));
    let heads = corpus.refused(Kind::Electra, &config(1, &GENERATOR.replace("heads = 2", "heads = 3")));
    assert!(heads.contains("generator.heads: 3 must divide generator.hidden, 16"), "{heads}");
    assert!(corpus.refused(Kind::Bert, &bert.replace("length = 24", "length = 33")).contains("train.length: 33"));
    assert!(corpus.refused(Kind::Bert, &bert.replace("share = 0.1", "share = 0.0")).contains("held_out.share"));
    assert!(corpus.refused(Kind::Bert, &bert.replace("log = 1", "log = 0")).contains("every.log"));
    if !tch::Cuda::is_available() {
        let tf32 = corpus.refused(Kind::Bert, &bert.replace("clip = 1.0", "clip = 1.0\nprecision = \"tf32\""));
        assert!(tf32.contains("train.precision: tf32 needs a CUDA device"), "{tf32}");
    }

    corpus.pretrain(Kind::Bert, &bert, "run", false, false).unwrap();
    let other = corpus.pretrain(Kind::Bert, &config(2, ""), "run", false, true).unwrap_err();
    assert!(format!("{other:#}").contains("the settings are not those in"), "{other:#}");
    let none = corpus.pretrain(Kind::Bert, &bert, "nowhere", false, true).unwrap_err();
    assert!(format!("{none:#}").contains("cannot resume"), "{none:#}");
}

#[test]
fn shards_that_are_damaged_or_of_another_tokenizer_are_refused() {
    let corpus = Corpus::new();
    let bert = config(1, "");
    let shard = corpus.shards().join("00000.shard");
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, &whole[..whole.len() - 1]).unwrap();
    let short = corpus.refused(Kind::Bert, &bert);
    assert!(short.contains("00000.shard") && short.contains("it is damaged"), "{short}");
    let mut wrong = whole.clone();
    wrong[64..68].copy_from_slice(&u32::MAX.to_le_bytes());
    fs::write(&shard, &wrong).unwrap();
    assert!(corpus.refused(Kind::Bert, &bert).contains("a sentence ends at token 4294967295"));
    fs::write(&shard, b"not a shard").unwrap();
    assert!(corpus.refused(Kind::Bert, &bert).contains("not a shard of a tokenised corpus"));
    fs::write(&shard, &whole).unwrap();

    common::vocabulary(&common::fixture("raw.txt"), &corpus.tokenizer());
    let tokenizer = corpus.refused(Kind::Bert, &bert);
    assert!(tokenizer.contains("00000.shard: made with another tokenizer"), "{tokenizer}");
    fs::remove_file(&shard).unwrap();
    assert!(corpus.refused(Kind::Bert, &bert).contains("no shard in it"));
}

#[test]
fn text_that_cannot_be_tokenised_leaves_the_shards_that_were_there() {
    let corpus = Corpus::new();
    let before = fs::read(corpus.shards().join("00000.shard")).unwrap();
    let bad = corpus.path("bad.txt");
    fs::write(&bad, b"tr\xff\n").unwrap();
    let tokenize = |path: &Path| shards::tokenize(&[path.to_owned()], &corpus.tokenizer(), &corpus.shards());
    assert!(format!("{:#}", tokenize(&bad).unwrap_err()).contains("bad.txt: the text is not UTF-8"));
    fs::write(&bad, b"\n\n").unwrap();
    assert!(format!("{:#}", tokenize(&bad).unwrap_err()).contains("the inputs hold no text"));
    assert!(format!("{:#}", tokenize(&corpus.path("none.txt")).unwrap_err()).contains("none.txt"));
    assert_eq!(fs::read(corpus.shards().join("00000.shard")).unwrap(), before);
}
