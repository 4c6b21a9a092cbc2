//! The exported graph computes what libtorch computes, whatever batch a sequence is in.

mod common;

use std::fs;
use std::path::PathBuf;

use ort::session::Session;
use tch::Device;
use tempfile::TempDir;
use vitag::infer::{InferOptions, Runtime};
use vitag::manifest::Variant;
use vitag::pack::Packed;
use vitag::registry::Model;
use vitag_trainer::evaluate::{self, Part};
use vitag_trainer::export::{self, Int8, Options};
use vitag_trainer::finetune::{Paths, finetune};
use vitag_trainer::model::Batch;
use vitag_trainer::run::Run;
use vitag_trainer::{fit, graph, model};

const OUTPUTS: [&str; 2] = ["pos_logits", "ner_logits"];

/// Every head on the encoder of BERT, whose embeddings are as wide as its layers, or of a small ELECTRA.
fn check_graph(head: &str) {
    let _alone = common::alone();
    let sizes =
        [r#"{ kind = "KIND", input = "mix", hidden = 12, dropout = 0.1 }"#, r#"{ kind = "KIND", input = "last" }"#];
    for (embedding, head) in [(32, sizes[0]), (24, sizes[0]), (24, sizes[1])].map(|(e, h)| (e, h.replace("KIND", head)))
    {
        let dir = TempDir::new().unwrap();
        let run = common::random_run_on(&dir, &head, embedding);
        let path = dir.path().join("model.onnx");
        fs::write(&path, graph::build(&run.tagger, Variant::F32, "tiny", &OUTPUTS.map(String::from))).unwrap();
        check_session(&run, &mut common::session(&path));
    }
}

/// How near a graph comes to libtorch, of logits whose spread is `spread`, and what batch mates may change.
fn check_int8(head: &str) {
    let _alone = common::alone();
    let dir = TempDir::new().unwrap();
    let run = common::random_run_on(&dir, &format!("{{ kind = {head:?}, hidden = 12 }}"), 24);
    let path = dir.path().join("model.onnx");
    fs::write(&path, graph::build(&run.tagger, Variant::Int8, "tiny", &OUTPUTS.map(String::from))).unwrap();
    let mut session = common::session(&path);
    let windows = common::windows(&[5, 64, 3, 17, 17, 9]);
    let packed = Packed::new(&windows);
    for (head, output) in OUTPUTS.iter().enumerate() {
        let expected = run.tagger.predict(&Batch::new(&packed, Device::Cpu), head);
        let spread = expected.std(false).double_value(&[]) as f32;
        let expected = Vec::<f32>::try_from(&expected.view([-1])).unwrap();
        let found = common::run_onnx(&mut session, &packed, output);
        let distance = common::distance(&expected, &found) / spread;
        assert!(distance > 1e-6, "{output}: nothing is rounded");
        assert!(distance <= 0.1, "{output}: off by {distance} of the spread of the logits");
        let alone: Vec<f32> =
            windows.iter().flat_map(|window| common::run_onnx(&mut session, &Packed::new([window]), output)).collect();
        let distance = common::distance(&alone, &found) / spread;
        assert!(distance <= 0.02, "{output}: batch mates change it by {distance} of the spread of the logits");
    }
}

#[test]
fn a_graph_in_int8_comes_near_libtorch_with_every_head() {
    for head in ["linear", "bilstm", "bigru", "bilstm_attn", "bigru_attn"] {
        check_int8(head);
    }
}

fn check_session(run: &Run, session: &mut Session) {
    // Ragged, one row, the full length, the shortest input there is.
    for lengths in [vec![5, 64, 3, 17, 17, 9], vec![12], vec![64, 64], vec![2]] {
        let windows = common::windows(&lengths);
        let packed = Packed::new(&windows);
        for (head, output) in OUTPUTS.iter().enumerate() {
            let expected = run.tagger.predict(&Batch::new(&packed, Device::Cpu), head).view([-1]);
            let expected = Vec::<f32>::try_from(&expected).unwrap();
            let found = common::run_onnx(session, &packed, output);
            let distance = common::distance(&expected, &found);
            assert!(distance <= 1e-4, "{output}, lengths {lengths:?}: off by {distance}");

            let alone: Vec<f32> =
                windows.iter().flat_map(|window| common::run_onnx(session, &Packed::new([window]), output)).collect();
            let distance = common::distance(&alone, &found);
            assert!(distance <= 1e-5, "{output}, lengths {lengths:?}: batch mates change it by {distance}");
        }
    }
}

#[test]
fn a_linear_head_gives_the_logits_of_libtorch_in_any_batch() {
    check_graph("linear");
}

#[test]
fn a_bilstm_head_gives_the_logits_of_libtorch_in_any_batch() {
    check_graph("bilstm");
}

#[test]
fn a_bigru_head_gives_the_logits_of_libtorch_in_any_batch() {
    check_graph("bigru");
}

#[test]
fn a_bilstm_attn_head_gives_the_logits_of_libtorch_in_any_batch() {
    check_graph("bilstm_attn");
}

#[test]
fn a_bigru_attn_head_gives_the_logits_of_libtorch_in_any_batch() {
    check_graph("bigru_attn");
}

/// A run that can be exported: with weights and scores.
fn exportable(dir: &TempDir) -> (Run, PathBuf) {
    let run = common::random_run(dir, common::BIGRU);
    fit::save(&run.dir.join(fit::BEST), &model::variables(&run.store)).unwrap();
    let (model, version) = ("tiny".into(), "0.0.1".into());
    evaluate::Report { model, version, seed: 7, part: Part::Test, results: Vec::new() }.write(&run.dir).unwrap();
    let texts = dir.path().join("texts.txt");
    // One line is longer than the window of 64 tokens.
    fs::write(&texts, format!("Bà Lan ở Huế. Trời mưa!\n{}\n", "Ông An đi chợ mua cá , ".repeat(12))).unwrap();
    (run, texts)
}

#[test]
fn an_exported_directory_opens_and_keeps_its_golden_answers() {
    let _alone = common::alone();
    let dir = TempDir::new().unwrap();
    let (run, texts) = exportable(&dir);
    let models = dir.path().join("models");
    let options = Options { models: &models, texts: &texts, git_commit: Some("abc"), int8: None };
    let path = export::export(&run, options).unwrap().dir;

    let model = Model::load(&path, Variant::F32).unwrap();
    model.session(&Runtime::load(None).unwrap(), &InferOptions::default()).unwrap();
    let golden = model.dir.golden(Variant::F32).unwrap();
    assert!(golden.cases.iter().any(|case| model.tokenizer.tokenize(&case.text, None).unwrap().windows.len() > 1));
    let none = Model::load(&path, Variant::Int8).unwrap_err().to_string();
    assert!(none.contains("lists no \"model.int8.onnx\""), "{none}");
}

/// A run on the fixtures, trained far enough to be sure of its labels.
fn trained(dir: &TempDir) -> Run {
    let out = dir.path().join("trained");
    let tokenizer = common::tokenizer(dir.path());
    let paths = Paths { data: &common::fixtures(), tokenizer: Some(&tokenizer), out: &out };
    finetune(common::config(common::BIGRU, 12), paths, false).unwrap();
    let run = Run::open(&out).unwrap();
    evaluate::evaluate(&run, &common::fixtures(), Part::Test).unwrap().write(&out).unwrap();
    run
}

#[test]
fn a_model_in_int8_is_compared_served_and_refused_over_its_price() {
    let _alone = common::alone();
    let dir = TempDir::new().unwrap();
    let run = trained(&dir);
    let texts = dir.path().join("texts.txt");
    fs::write(&texts, "Bà Lan ở Huế. Trời mưa!\n").unwrap();
    let (models, data) = (dir.path().join("models"), common::fixtures());
    let export = |max_loss: f64| {
        let int8 = Some(Int8 { data: &data, max_loss });
        export::export(&run, Options { models: &models, texts: &texts, git_commit: None, int8 })
    };
    // Less than nothing: even an equal score is refused.
    let refused = format!("{:#}", export(-0.5).unwrap_err());
    assert!(refused.contains("points of its development score, --max-int8-loss allows -50.00"), "{refused}");
    assert!(!models.join("tiny/0.0.1").exists());

    let exported = export(0.1).unwrap();
    for agreement in &exported.agreement {
        assert!(agreement.argmax > 0.95, "{agreement:?}");
    }
    let runtime = Runtime::load(None).unwrap();
    for variant in [Variant::F32, Variant::Int8] {
        let model = Model::load(&exported.dir, variant).unwrap();
        model.session(&runtime, &InferOptions::default()).unwrap();
    }
    let size = |name: &str| fs::metadata(exported.dir.join(name)).unwrap().len();
    assert!(size("model.int8.onnx") < size("model.onnx"));
    let card = fs::read_to_string(exported.dir.join("README.md")).unwrap();
    assert!(card.contains("## int8") && card.contains("| pos | "), "{card}");
}
