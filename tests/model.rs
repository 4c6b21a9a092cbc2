//! Models that must not be served, refused by the binary with their reason; and what one that is served promises.

#![cfg(feature = "worker")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/model.rs"]
mod model;

use cli::{Ended, feed, vitag};
use model::Copy;
use serde_json::{Value, json};
use tempfile::TempDir;
use vitag::infer::{Device, InferOptions, Runtime};
use vitag::manifest::Variant;
use vitag::registry::Model;
use vitag::tokenize::Window;

fn serve(model: &Copy) -> Ended {
    let path = model.path().to_str().unwrap();
    feed(&mut vitag(["tag", "--set", "lanes.count=1", "--model", path]), "Chào Huế!\n")
}

/// Holds the refusal of a model against words of its reason; the model itself is always named.
#[track_caller]
fn refused(model: &Copy, words: &[&str]) {
    let ended = serve(model);
    ended.refused(78, words);
    ended.refused(78, &["model.path", model.path().to_str().unwrap()]);
    assert_eq!(ended.stdout, "");
}

#[track_caller]
fn refused_manifest(change: impl FnOnce(&mut Value), words: &[&str]) {
    let model = Copy::new();
    model.edit("manifest.json", change);
    refused(&model, words);
}

#[test]
fn a_copy_is_served() {
    let model = Copy::new();
    model.rehash();
    assert!(serve(&model).output().contains("Huế"));
}

#[test]
fn a_file_that_is_not_what_the_manifest_says_is_refused() {
    for name in ["model.onnx", "tokenizer.json", "golden.json", "config.json"] {
        let model = Copy::new();
        let mut bytes = std::fs::read(model.file(name)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(model.file(name), bytes).unwrap();
        refused(&model, &[name, "sha256 is ", "the manifest says "]);
    }
}

#[test]
fn a_file_that_is_missing_is_named() {
    for name in ["manifest.json", "model.onnx", "tokenizer.json", "golden.json"] {
        let model = Copy::new();
        std::fs::remove_file(model.file(name)).unwrap();
        refused(&model, &[name, "No such file"]);
    }
    for name in ["model.onnx", "tokenizer.json", "golden.json"] {
        let unlist = |manifest: &mut Value| drop(manifest["files"].as_object_mut().unwrap().remove(name));
        refused_manifest(unlist, &["the manifest lists no", name]);
    }
}

#[test]
fn a_file_outside_the_directory_is_refused() {
    for name in ["../model.onnx", "a/../../b", "/etc/hostname", "..", "sub/file", ""] {
        let list = |manifest: &mut Value| manifest["files"][name] = json!({ "sha256": "0", "bytes": 0 });
        refused_manifest(list, &[&format!("file name {name:?}"), "inside the model directory"]);
    }
}

#[test]
fn a_manifest_of_another_form_is_refused() {
    refused_manifest(|manifest| manifest["schema_version"] = 2.into(), &["schema_version 2", "reads 1"]);
    refused_manifest(|manifest| manifest["surprise"] = 1.into(), &["manifest.json", "surprise"]);
    refused_manifest(|manifest| drop(manifest.as_object_mut().unwrap().remove("unit")), &["manifest.json", "unit"]);
    refused_manifest(|manifest| manifest["heads"] = json!([]), &["at least one head"]);
    refused_manifest(|manifest| manifest["heads"][1]["task"] = "pos".into(), &["two heads"]);
    refused_manifest(|manifest| manifest["max_length"] = 2.into(), &["max_length 2"]);
}

#[test]
fn labels_that_do_not_fit_the_graph_are_refused() {
    let grow = |manifest: &mut Value| manifest["heads"][1]["labels"].as_array_mut().unwrap().push("B-NEW".into());
    refused_manifest(grow, &["head \"ner\" has ", "\"ner_logits\" of the graph has "]);
    let twice = |manifest: &mut Value| manifest["heads"][1]["labels"][1] = manifest["heads"][1]["labels"][0].clone();
    refused_manifest(twice, &["head \"ner\"", "stands twice"]);
}

#[test]
fn an_output_that_the_graph_lacks_is_refused_with_those_it_has() {
    let rename = |manifest: &mut Value| manifest["heads"][0]["output"] = "tags".into();
    refused_manifest(rename, &["head \"pos\"", "no output \"tags\"", "pos_logits", "ner_logits"]);
}

/// A model whose golden set says something else than its graph, hashes in order.
#[track_caller]
fn refused_golden(change: impl FnOnce(&mut Value), words: &[&str]) {
    let model = Copy::new();
    model.edit("golden.json", change);
    model.rehash();
    refused(&model, &[&["golden.json"], words].concat());
}

#[test]
fn a_model_that_gives_other_answers_than_its_golden_set_is_refused() {
    refused_golden(|golden| golden["cases"][0]["heads"]["pos"]["tags"][0] = "B-NONE".into(), &["\"pos\"", "tags are"]);
    let shift = |golden: &mut Value| {
        let logit = &mut golden["cases"][1]["heads"]["ner"]["logits"][0][0];
        *logit = (logit.as_f64().unwrap() + 0.5).into();
    };
    refused_golden(shift, &["\"ner\"", "logits differ by ", "is accepted"]);
    let shorten = |golden: &mut Value| drop(golden["cases"][0]["heads"]["pos"]["logits"].as_array_mut().unwrap().pop());
    refused_golden(shorten, &["\"pos\"", "logits, expected"]);
    let forget = |golden: &mut Value| drop(golden["cases"][0]["heads"].as_object_mut().unwrap().remove("ner"));
    refused_golden(forget, &["no answers for head \"ner\""]);
    refused_golden(|golden| golden["cases"] = json!([]), &["no cases"]);
}

#[test]
fn files_that_are_broken_with_their_hashes_in_order_are_refused() {
    for (name, content) in
        [("tokenizer.json", "{\"version\": \"1.0\"}"), ("model.onnx", "not a graph"), ("golden.json", "{}")]
    {
        let model = Copy::new();
        std::fs::write(model.file(name), content).unwrap();
        model.rehash();
        refused(&model, &[name]);
    }
    let model = Copy::new();
    model.edit("tokenizer.json", |tokenizer| {
        let rename = |text: String| text.replace("[CLS]", "[BEGIN]");
        *tokenizer = serde_json::from_str(&rename(tokenizer.to_string())).unwrap();
    });
    model.rehash();
    refused(&model, &["tokenizer.json", "no [CLS] token"]);
}

#[test]
fn a_device_that_is_asked_for_and_missing_is_an_error() {
    // No machine has so many.
    for device in ["cuda:99", "tensorrt:99"] {
        let ended = feed(&mut vitag(["tag", "--set", &format!("model.device={device}")]), "Chào!\n");
        ended.refused(78, &[&format!("model.device is {device}, which cannot be used")]);
        assert_eq!(ended.stdout, "");
    }
    feed(&mut vitag(["tag", "--set", "model.device=gpu"]), "").refused(78, &["model.device", "cuda:N"]);
}

#[test]
fn without_onnx_runtime_it_says_where_it_looked() {
    let folder = TempDir::new().unwrap();
    let nowhere = folder.path().join("libonnxruntime.so");
    let nowhere = nowhere.to_str().unwrap();
    let words = ["no library of ONNX Runtime; looked at:", "make setup", "model.runtime_library", nowhere];
    feed(vitag(["tag"]).env("ORT_DYLIB_PATH", nowhere), "a\n").refused(78, &words);
    feed(&mut vitag(["tag", "--set", &format!("model.runtime_library={nowhere}")]), "a\n").refused(78, &words);

    std::fs::write(nowhere, "not a library").unwrap();
    feed(vitag(["tag"]).env("ORT_DYLIB_PATH", nowhere), "a\n").refused(78, &["cannot load ONNX Runtime from", nowhere]);
}

#[test]
fn the_cache_folder_is_one_of_the_places() {
    if ["/usr/lib", "/usr/local/lib"]
        .iter()
        .any(|folder| std::path::Path::new(folder).join("libonnxruntime.so").exists())
    {
        // The system has one, which would be found.
        return;
    }
    let folder = TempDir::new().unwrap();
    let (home, cache) = (folder.path().join("home"), folder.path().join("cache"));
    let mut command = vitag(["tag"]);
    command.env_remove("ORT_DYLIB_PATH").env_remove("XDG_CACHE_HOME").env_remove("VITAG_CACHE").env("HOME", &home);
    let default = home.join(".cache/vitag/onnxruntime");
    feed(&mut command, "a\n").refused(78, &["looked at:", default.to_str().unwrap(), "/usr/lib"]);
    let moved = cache.join("onnxruntime");
    feed(command.env("VITAG_CACHE", &cache), "a\n").refused(78, &["looked at:", moved.to_str().unwrap()]);
}

/// Largest difference of a logit between runs alone and in company.
const TOLERANCE: f32 = 1e-5;

#[test]
fn an_answer_does_not_depend_on_the_company_in_its_batch() {
    let model = Model::load(&model::original(), Variant::F32).unwrap();
    let runtime = Runtime::load(None).unwrap();
    let mut session =
        model.session(&runtime, &InferOptions { device: Device::Cpu, ..InferOptions::default() }).unwrap();
    let window = |text: &str| model.tokenizer.tokenize(text, None).unwrap().windows.remove(0);
    let subject = window("Bác sĩ Tôn Thất Tùng sinh tại Thanh Hóa và mất ở Hà Nội năm 1982.");
    let alone = session.run(std::slice::from_ref(&subject)).unwrap().remove(0);
    for place in [0, 13, 30] {
        let mut batch: Vec<Window> = (0..30).map(|n| window(&"Trời mưa to ở Huế ".repeat(1 + n % 9))).collect();
        batch.insert(place, subject.clone());
        let among = session.run(&batch).unwrap().remove(place);
        for (labels, (alone, among)) in model.labels.iter().zip(alone.iter().zip(&among)) {
            let difference = alone.iter().zip(among).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(alone.len() == among.len() && difference <= TOLERANCE, "place {place}: {difference}");
            assert_eq!(labels.best(alone), labels.best(among), "place {place}");
        }
    }
}

#[test]
fn sessions_that_share_their_weights_answer_as_one_alone() {
    let runtime = Runtime::load(None).unwrap();
    let options = InferOptions { device: Device::Cpu, ..InferOptions::default() };
    for variant in [Variant::F32, Variant::Int8] {
        let model = Model::load(&model::original(), variant).unwrap();
        let text = "Bác sĩ Tôn Thất Tùng sinh tại Thanh Hóa và mất ở Hà Nội năm 1982.";
        let windows = model.tokenizer.tokenize(text, None).unwrap().windows;
        let alone = model.session(&runtime, &options).unwrap().run(&windows).unwrap();
        let mut sessions = model.sessions(&runtime, &options, 3).unwrap();
        // The first, whose weights were packed, goes before the others answer.
        drop(sessions.remove(0));
        std::thread::scope(|scope| {
            for mut session in sessions {
                let (alone, windows) = (&alone, &windows);
                scope.spawn(move || assert_eq!(session.run(windows).unwrap(), *alone, "{variant}"));
            }
        });
    }
}

#[test]
fn both_graphs_of_the_model_give_their_golden_answers() {
    let runtime = Runtime::load(None).unwrap();
    for variant in [Variant::F32, Variant::Int8] {
        let model = Model::load(&model::original(), variant).unwrap();
        model.session(&runtime, &InferOptions { device: Device::Cpu, ..InferOptions::default() }).unwrap();
    }
}

#[test]
fn a_variant_that_the_model_lacks_is_refused() {
    let copy = model::Copy::new();
    copy.edit("manifest.json", |manifest| {
        manifest["files"].as_object_mut().unwrap().retain(|file, _| !file.contains("int8"));
    });
    let error = Model::load(copy.path(), Variant::Int8).unwrap_err().to_string();
    assert!(error.contains("the manifest lists no \"model.int8.onnx\""), "{error}");
}
