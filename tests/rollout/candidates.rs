//! Candidates that must not be served: each is refused with its reason, and the old version goes on.

use std::fs::File;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use vitag::rollout::{EXTENSION, pack, publish_model};

use crate::common::broker::{Broker, Message};
use crate::common::worker::wait_until;
use crate::fleet::{Fleet, desired, target, target_at};
use crate::model::{self, Copy};
use crate::versions;

/// A copy of the model with a change, its hashes in order.
fn changed(change: impl FnOnce(&Copy)) -> Copy {
    let copy = Copy::new();
    change(&copy);
    copy.rehash();
    copy
}

/// The model under another version: what has the hash of the one that serves would not be looked at.
fn renamed() -> Copy {
    changed(|copy| copy.edit("manifest.json", |manifest| manifest["version"] = "1.0.0".into()))
}

/// Rolls a candidate out as `generation` and holds its refusal against words of the reason.
#[track_caller]
fn refused(fleet: &Fleet<'_>, generation: u64, desired: &Value, words: &[&str]) {
    fleet.desire(desired);
    let status = fleet.wait_for(&["a"], generation, "failed").remove(0);
    let reason = status["reason"].as_str().unwrap();
    for word in words {
        assert!(reason.contains(word), "no {word:?} in {reason}");
    }
    assert_eq!(status["stable"]["version"], "0.1.0", "{status:#}");
}

#[test]
fn a_bad_candidate_is_refused_with_its_reason_and_the_old_one_serves_on() {
    let fleet = Fleet::new(Broker::shared(), 1);
    let worker = fleet.worker("a", &["rollout.max_model_bytes=20000000", "admin.address=127.0.0.1:0"], &[]);
    fleet.wait_for(&["a"], 0, "ready");
    let mut generation = 0;
    let mut candidate = |stable: &Value, words: &[&str]| {
        generation += 1;
        let mut message = desired(generation, stable);
        message["deadline_ms"] = 1500.into();
        refused(&fleet, generation, &message, words);
    };
    let folder = TempDir::new().unwrap();

    let mut other_hash = target(&model::original());
    other_hash["sha256"] = "0".repeat(64).into();
    candidate(&other_hash, &["the manifest has sha256", "the message says 000"]);
    let mut other_version = target(&model::original());
    other_version["version"] = "9.9.9".into();
    candidate(&other_version, &["is of version \"0.1.0\"", "\"9.9.9\""]);

    let damaged = renamed();
    File::options().write(true).open(damaged.file("model.onnx")).unwrap().set_len(1_000_000).unwrap();
    candidate(&target(damaged.path()), &["model.onnx", "sha256 is"]);
    let truncated = changed(|copy| {
        File::options().write(true).open(copy.file("model.onnx")).unwrap().set_len(1_000_000).unwrap();
        copy.edit("manifest.json", |manifest| manifest["version"] = "1.0.1".into());
    });
    candidate(&target(truncated.path()), &["model.onnx", "cannot load the graph"]);
    let labels = changed(|copy| {
        copy.edit("manifest.json", |m| m["heads"][1]["labels"].as_array_mut().unwrap().push("B-NEW".into()));
    });
    candidate(&target(labels.path()), &["head \"ner\" has 10 labels", "of the graph has 9"]);
    let golden = changed(|copy| {
        copy.edit("golden.json", |golden| golden["cases"][0]["heads"]["pos"]["tags"][0] = "B-X".into());
    });
    candidate(&target(golden.path()), &["golden.json", "tags are"]);
    let short = changed(|copy| copy.edit("manifest.json", |manifest| manifest["max_length"] = 1024.into()));
    candidate(&target(short.path()), &["warming up"]);
    let tokenizer = renamed();
    std::fs::remove_file(tokenizer.file("tokenizer.json")).unwrap();
    candidate(&target(tokenizer.path()), &["tokenizer.json", "it is not there"]);

    let large = changed(|copy| {
        File::create(copy.file("ballast")).unwrap().set_len(20_000_000).unwrap();
        copy.edit("manifest.json", |manifest| manifest["files"]["ballast"] = json!({ "sha256": "", "bytes": 0 }));
    });
    candidate(&target(large.path()), &["rollout.max_model_bytes, 20000000"]);
    let many = changed(|copy| {
        copy.edit("manifest.json", |manifest| {
            for n in 0..100 {
                std::fs::write(copy.file(&format!("f{n}")), "").unwrap();
                manifest["files"][format!("f{n}")] = json!({ "sha256": "", "bytes": 0 });
            }
        });
    });
    candidate(&target(many.path()), &["rollout.max_model_files, 64"]);

    let elsewhere = renamed();
    let escaping = folder.path().join(format!("escaping{EXTENSION}"));
    write_escaping(&escaping);
    let uri = format!("file://{}", escaping.display());
    candidate(&target_at(elsewhere.path(), &uri), &["\"../outside\"", "no file with a plain name"]);
    let broken = folder.path().join(format!("broken{EXTENSION}"));
    std::fs::write(&broken, "not an archive").unwrap();
    let uri = format!("file://{}", broken.display());
    candidate(&target_at(elsewhere.path(), &uri), &["cannot be unpacked"]);

    let unreachable = target_at(elsewhere.path(), "http://127.0.0.1:1/model");
    candidate(&unreachable, &["cannot fetch http://127.0.0.1:1/model/manifest.json", "refused"]);
    // Again and again until the deadline.
    assert!(worker.log().matches("trying again").count() >= 2, "{}", worker.log());
    candidate(&target_at(elsewhere.path(), "file:///nowhere/at/all"), &["/nowhere/at/all", "it is not there"]);

    // What is no desired state is told too, and nothing comes of it.
    let mut newer = desired(generation + 1, &target(&model::original()));
    newer["spec_version"] = 2.into();
    for (message, words) in [(newer.to_string(), "spec_version 2"), ("{".to_owned(), "not a desired state")] {
        fleet.write(Message::new(message));
        wait_until("the refusal", || {
            let status = &fleet.statuses()["a"];
            assert_eq!(status["stable"]["version"], "0.1.0");
            status["refused"]["reason"].as_str().is_some_and(|reason| reason.contains(words))
        });
    }
    // The probes and the metrics say the same.
    let ready = worker.page("/readyz");
    assert!(ready.contains(&format!("generation {generation} failed, 0.1.0 serves")), "{ready}");
    assert_eq!(worker.metric("vitag_rollout_generation"), [generation as f64]);
    let page = &serde_json::from_str::<Value>(&worker.page("/rollout")).unwrap()["default"];
    assert_eq!((&page["generation"], &page["state"]), (&generation.into(), &"failed".into()));

    // And it goes on with the next that is in order.
    let good = versions::contrary("0.2.0");
    let archive = format!("file://{}", folder.path().join(format!("good{EXTENSION}")).display());
    let published = serde_json::to_value(publish_model(good.path(), &archive, None).unwrap()).unwrap();
    fleet.desire(&desired(generation + 1, &published));
    let status = fleet.wait_for(&["a"], generation + 1, "ready").remove(0);
    assert_eq!((&status["stable"]["version"], &status["refused"]), (&"0.2.0".into(), &Value::Null));
    // A lower generation comes late, and is ignored; a tombstone withdraws the rest.
    fleet.desire(&desired(generation, &target(&model::original())));
    fleet.stream.feed(0..10);
    let served =
        |record: &crate::common::broker::Received| crate::common::worker::json(record)["models"][0]["version"].clone();
    assert!(fleet.stream.outputs(10).iter().all(|record| served(record) == "0.2.0"));
    fleet.write(Message::tombstone("default"));
    let status = fleet.wait_for(&["a"], 0, "ready").remove(0);
    assert_eq!(status["stable"]["version"], "0.1.0");
}

/// An archive that holds `../outside`, as no library would write it.
fn write_escaping(path: &Path) {
    let mut tar = tar::Builder::new(zstd::Encoder::new(File::create(path).unwrap(), 1).unwrap());
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..10].copy_from_slice(b"../outside");
    header.set_size(0);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append(&header, &b""[..]).unwrap();
    tar.into_inner().unwrap().finish().unwrap();
}

#[test]
fn without_memory_for_two_the_new_one_is_refused_or_the_old_one_drained() {
    let contrary = versions::contrary("0.2.0");
    let fleet = Fleet::new(Broker::shared(), 1);
    let short = [("FAILPOINTS", "rollout_memory=return(1000)")];
    let refusing = fleet.worker("a", &[], &short);
    fleet.wait_for(&["a"], 0, "ready");
    refused(
        &fleet,
        1,
        &desired(1, &target(contrary.path())),
        &["out of memory", "1000 available", "rollout.on_low_memory"],
    );
    drop(refusing);
    let _draining = fleet.worker("b", &["rollout.on_low_memory=drain"], &short);
    fleet.wait_for(&["b"], 1, "ready");
    fleet.stream.feed(0..100);
    fleet.desire(&desired(2, &target(&model::original())));
    let status = fleet.wait_for(&["b"], 2, "ready").remove(0);
    assert_eq!(status["stable"]["version"], "0.1.0");
    fleet.stream.feed(100..200);
    fleet.stream.assert_exactly_once(200);
    // A device that has none left while it loads.
    let failing = Fleet::new(Broker::shared(), 1);
    let _worker = failing.worker("a", &[], &[("FAILPOINTS", "rollout_load=return")]);
    failing.wait_for(&["a"], 0, "ready");
    refused(&failing, 1, &desired(1, &target(contrary.path())), &["out of memory"]);
}

#[test]
fn a_signature_that_is_wanted_must_be_there_and_right() {
    let keys = TempDir::new().unwrap();
    let key = |name: &str| make_key(keys.path(), name);
    let ((private, public), (stranger, _)) = (key("ours"), key("stranger"));
    let fleet = Fleet::new(Broker::shared(), 1);
    let required = format!("rollout.public_key_file={}", public.display());
    let _worker = fleet.worker("a", &[&required, "rollout.require_signature=true"], &[]);
    fleet.wait_for(&["a"], 0, "ready");
    let contrary = versions::contrary("0.2.0");
    refused(&fleet, 1, &desired(1, &target(contrary.path())), &["there is no manifest.json.sig"]);
    let publish = |name: &str, key: &Path| {
        let uri = format!("file://{}", keys.path().join(name).display());
        serde_json::to_value(publish_model(contrary.path(), &uri, Some(key)).unwrap()).unwrap()
    };
    refused(
        &fleet,
        2,
        &desired(2, &publish("bad", &stranger)),
        &["manifest.json.sig is not of rollout.public_key_file"],
    );
    fleet.desire(&desired(3, &publish("good", &private)));
    let status = fleet.wait_for(&["a"], 3, "ready").remove(0);
    assert_eq!(status["stable"]["version"], "0.2.0");
}

fn make_key(folder: &Path, name: &str) -> (std::path::PathBuf, std::path::PathBuf) {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let (private, public) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.pub")));
    std::fs::write(&private, pair.serialize_pem()).unwrap();
    std::fs::write(&public, pair.public_key_pem()).unwrap();
    (private, public)
}

#[test]
fn a_packed_model_is_the_same_every_time() {
    let folder = TempDir::new().unwrap();
    let archive = |name: &str| {
        let path = folder.path().join(name);
        pack(&[model::original().join("manifest.json"), model::original().join("tokenizer.json")], &path).unwrap();
        std::fs::read(path).unwrap()
    };
    assert_eq!(archive("a"), archive("b"));
}
