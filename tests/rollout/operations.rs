//! What operators do: publish, roll out as a canary or a shadow, promote, go back; and what the rules do without them.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;
use vitag::serving::place;

use crate::cli::{feed, file, vitag};
use crate::common::broker::{Broker, Message};
use crate::common::worker::{Worker, id, json, wait_until};
use crate::fleet::{Fleet, desired, target};
use crate::model::Copy;
use crate::{model, versions};

/// Runs `vitag model` with the settings of the fleet.
pub(crate) fn operate(fleet: &Fleet<'_>, arguments: &[&str]) -> crate::cli::Ended {
    let mut command = vitag(["model"]);
    command.args(arguments);
    for setting in fleet.stream.settings("operator").iter().cloned().chain(fleet.settings()) {
        command.args(["--set", &setting]);
    }
    feed(&mut command, "")
}

/// The JSON of a command that must have gone well; librdkafka may have complained of a slow broker meanwhile.
#[track_caller]
pub(crate) fn report(ended: &crate::cli::Ended) -> Value {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}

/// Writes `count` documents of as many keys.
pub(crate) fn feed_keys(fleet: &Fleet<'_>, count: u32) {
    let document = |id: u32| {
        let text = "Bác sĩ Tôn Thất Tùng sinh tại Thanh Hóa.";
        Message::new(serde_json::json!({ "id": id, "text": text }).to_string()).key(format!("key-{id}"))
    };
    fleet.stream.broker.produce(&fleet.stream.input, (0..count).map(document));
}

/// The ids of the records that a version tagged, among the records from the `skip`th on of those that came out.
fn tagged_by(fleet: &Fleet<'_>, version: &str) -> BTreeSet<u32> {
    let records = fleet.stream.broker.read_committed_to_end(&fleet.stream.output);
    records.iter().filter(|record| json(record)["models"][0]["version"] == version).map(id).collect()
}

#[test]
fn an_operator_publishes_tries_on_some_keys_promotes_and_goes_back() {
    let contrary = versions::contrary("0.2.0");
    let fleet = Fleet::new(Broker::shared(), 2);
    let start = || fleet.worker("a", &[], &[]);
    let worker = start();
    fleet.wait_for(&["a"], 0, "ready");
    let folder = TempDir::new().unwrap();
    let publish = |name: &str, dir: &Path| {
        let uri = format!("file://{}/{name}.tar.zst", folder.path().display());
        let published = feed(&mut vitag(["model", "publish", dir.to_str().unwrap(), "--to", &uri]), "").output();
        file(folder.path(), &format!("{name}.json"), &published).display().to_string()
    };
    let (old, new) = (publish("old", &model::original()), publish("new", contrary.path()));

    // There is nothing to go beside, to promote or to go back to yet.
    for arguments in [&["rollout", &new, "--canary", "10"][..], &["promote"], &["rollback"]] {
        operate(&fleet, arguments).refused(1, &["the control topic says nothing of it"]);
    }
    let status = report(&operate(&fleet, &["rollout", &old, "--wait", "--json"]));
    assert_eq!((&status["desired"]["generation"], &status["workers"][0]["state"]), (&1.into(), &"ready".into()));
    operate(&fleet, &["rollout", &new, "--canary", "101"]).refused(1, &["canary.weight_percent"]);

    let table = operate(&fleet, &["rollout", &new, "--canary", "30", "--reason", "a try", "--wait"]);
    assert_eq!(table.code, Some(0), "{table:?}");
    assert!(table.stdout.contains("generation 2, version 0.1.0, canary 0.2.0 at 30 % (a try)"), "{}", table.stdout);
    let expected: BTreeSet<u32> = (0..300).filter(|id| place(format!("key-{id}").as_bytes()) < 30.0).collect();
    feed_keys(&fleet, 300);
    fleet.stream.outputs(300);
    assert_eq!(tagged_by(&fleet, "0.2.0"), expected);
    // The same keys after a restart.
    drop(worker);
    let _worker = start();
    fleet.wait_for(&["a"], 2, "ready");
    feed_keys(&fleet, 300);
    fleet.stream.outputs(600);
    assert_eq!(tagged_by(&fleet, "0.2.0"), expected);

    let promoted = report(&operate(&fleet, &["promote", "--wait", "--json"]));
    assert_eq!(promoted["workers"][0]["stable"]["version"], "0.2.0");
    assert_eq!(promoted["desired"]["previous"]["version"], "0.1.0");
    let back = report(&operate(&fleet, &["rollback", "--wait", "--json"]));
    assert_eq!(
        (&back["desired"]["generation"], &back["workers"][0]["stable"]["version"]),
        (&4.into(), &"0.1.0".into())
    );

    // A generation that fails is seen in the exit code.
    std::fs::remove_file(folder.path().join("new.tar.zst")).unwrap();
    let broken = contrary.path().join("model.onnx");
    std::fs::write(&broken, "no graph").unwrap();
    contrary.rehash();
    let bad = file(folder.path(), "bad.json", &target(contrary.path()).to_string()).display().to_string();
    operate(&fleet, &["rollout", &bad, "--wait"]).refused(1, &["do not serve the generation in force"]);
    let table = operate(&fleet, &["status"]);
    assert!(table.stdout.contains("failed") && table.stdout.contains("cannot load the graph"), "{table:?}");
}

#[test]
fn a_model_is_verified_and_compared_where_it_lies() {
    let contrary = versions::contrary("0.2.0");
    let (a, b) = (model::original().display().to_string(), contrary.path().display().to_string());
    let run = |arguments: &[&str]| feed(vitag(["model"]).args(arguments).args(["--set", "model.device=cpu"]), "");
    assert!(run(&["verify", &b]).output().contains("vi-tagger 0.2.0 is in order"));
    let table = run(&["diff", &a, &b]).output();
    assert!(table.contains("labels.ner") && table.contains("bytes.model.onnx"), "{table}");
    std::fs::remove_file(contrary.file("golden.json")).unwrap();
    run(&["verify", &b]).refused(78, &["golden.json"]);
}

#[test]
fn a_shadow_finds_what_a_comparison_of_the_two_models_finds() {
    let contrary = versions::contrary("0.2.0");
    let fleet = Fleet::new(Broker::shared(), 1);
    let worker = fleet.worker("a", &["rollout.shadow_max_load=1", "admin.address=127.0.0.1:0"], &[]);
    let mut message = desired(1, &target(&model::original()));
    message["shadow"] = serde_json::json!({ "target": target(contrary.path()), "sample_percent": 100 });
    fleet.desire(&message);
    let status = fleet.wait_for(&["a"], 1, "ready").remove(0);
    assert_eq!(status["shadow"]["version"], "0.2.0");
    fleet.stream.feed(0..40);
    let records = fleet.stream.outputs(40);
    assert!(
        records.iter().all(|record| json(record)["models"][0]["version"] == "0.1.0"),
        "the shadow publishes nothing"
    );
    wait_until("all to be compared", || worker.metric("vitag_shadow_duration_seconds_count") == [40.0]);
    let folder = TempDir::new().unwrap();
    let texts: Vec<String> = records.iter().map(|record| json(record)["text"].as_str().unwrap().to_owned()).collect();
    let sample = file(folder.path(), "texts", &texts.join("\n"));
    let (a, b) = (model::original().display().to_string(), contrary.path().display().to_string());
    let arguments =
        ["model", "diff", &a, &b, "--json", "--set", "model.device=cpu", "--sample", sample.to_str().unwrap()];
    let report: Value = serde_json::from_str(&feed(&mut vitag(arguments), "").output()).unwrap();
    let offline = report["sample"]["agreement"].as_f64().unwrap();
    assert!(offline < 1.0, "{report}");
    assert_eq!(worker.metric("vitag_shadow_agreement"), [offline]);
}

#[test]
fn a_bad_canary_is_taken_back_by_the_rules_on_the_whole_fleet() {
    let contrary = versions::contrary("0.2.0");
    let fleet = Fleet::new(Broker::shared(), 2);
    let rules = ["rollback.min_agreement=0.9", "rollback.min_records=20", "rollout.shadow_max_load=1"];
    let _workers: Vec<Worker> = vec![fleet.worker("a", &rules, &[]), fleet.worker("b", &[], &[])];
    fleet.desire(&desired(1, &target(&model::original())));
    fleet.wait_for(&["a", "b"], 1, "ready");
    let mut message = desired(2, &target(&model::original()));
    message["canary"] = serde_json::json!({ "target": target(contrary.path()), "weight_percent": 10 });
    fleet.desire(&message);
    fleet.wait_for(&["b"], 2, "ready");
    wait_until("the rules to take it back", || {
        feed_keys(&fleet, 100);
        fleet.statuses()["a"]["rollback"].is_object()
    });
    let statuses = fleet.wait_for(&["a", "b"], 3, "ready");
    for status in &statuses {
        assert_eq!((&status["stable"]["version"], &status["canary"]), (&"0.1.0".into(), &Value::Null), "{status:#}");
    }
    let rollback = &statuses[0]["rollback"];
    assert_eq!((&rollback["generation"], &rollback["rule"]), (&2.into(), &"rollback.min_agreement".into()));
    assert!(rollback["found"].as_f64() < Some(0.9) && rollback["records"].as_u64() >= Some(20), "{rollback}");
    assert!(statuses[1]["reason"].as_str().unwrap().contains("taken back by a: rollback.min_agreement"));
}

/// The model as a version whose tokenizer has a word that its graph does not know: texts with it become dead letters, and
/// the golden set has none.
fn with_an_unknown_word(version: &str) -> Copy {
    let model = versions::contrary(version);
    model.edit("tokenizer.json", |tokenizer| tokenizer["model"]["vocab"]["Tùng"] = 1_000_000.into());
    model.rehash();
    model
}

#[test]
fn a_version_whose_records_become_dead_letters_is_taken_back_after_a_full_swap() {
    let bad = with_an_unknown_word("0.2.0");
    let fleet = Fleet::new(Broker::shared(), 1);
    let rules =
        ["rollback.min_records=20", "rollback.max_dead_letter_ratio=0.1", "breaker.max_ratio=1", "breaker.max_run=0"];
    let _worker = fleet.worker("a", &rules, &[]);
    fleet.desire(&desired(1, &target(&model::original())));
    fleet.wait_for(&["a"], 1, "ready");
    feed_keys(&fleet, 10);
    fleet.stream.outputs(10);
    fleet.desire(&desired(2, &target(bad.path())));
    fleet.wait_for(&["a"], 2, "ready");
    wait_until("the rules to take it back", || {
        feed_keys(&fleet, 10);
        fleet.statuses()["a"]["rollback"].is_object()
    });
    // The topic says so too: a worker that starts now serves the version before.
    let _late = fleet.worker("b", &[], &[]);
    let statuses = fleet.wait_for(&["a", "b"], 3, "ready");
    for status in &statuses {
        assert_eq!(status["stable"]["version"], "0.1.0", "{status:#}");
        assert!(status["reason"].as_str().unwrap().contains("taken back by a: rollback.max_dead_letter_ratio"));
    }
    let rollback = &statuses[0]["rollback"];
    assert_eq!(
        (&rollback["generation"], &rollback["rule"]),
        (&2.into(), &"rollback.max_dead_letter_ratio".into()),
        "{rollback}"
    );
    assert!(rollback["found"].as_f64() > Some(0.1) && rollback["records"].as_u64() >= Some(20), "{rollback}");
}

#[test]
fn a_version_that_is_too_slow_is_taken_back_to_the_model_of_the_settings() {
    let contrary = versions::contrary("0.2.0");
    let fleet = Fleet::new(Broker::shared(), 1);
    // No model is a hundred times as fast as another.
    let rules = ["rollback.min_records=20", "rollback.max_latency_ratio=0.01"];
    let _worker = fleet.worker("a", &rules, &[]);
    fleet.wait_for(&["a"], 0, "ready");
    feed_keys(&fleet, 20);
    fleet.stream.outputs(20);
    fleet.desire(&desired(1, &target(contrary.path())));
    wait_until("the rules to take it back", || {
        feed_keys(&fleet, 20);
        fleet.statuses()["a"]["rollback"].is_object()
    });
    let status = fleet.wait_for(&["a"], 1, "rolled_back").remove(0);
    assert_eq!(status["stable"]["version"], "0.1.0");
    let rollback = &status["rollback"];
    assert_eq!((&rollback["generation"], &rollback["rule"]), (&1.into(), &"rollback.max_latency_ratio".into()));
    assert!(rollback["found"].as_f64() > Some(0.01), "{rollback}");
    // It serves on: what is fed now has the version before.
    let served = fleet.stream.broker.read_committed_to_end(&fleet.stream.output).len();
    feed_keys(&fleet, 1);
    wait_until("a record of the version before", || {
        let records = fleet.stream.broker.read_committed_to_end(&fleet.stream.output);
        records[served..].iter().any(|record| json(record)["models"][0]["version"] == "0.1.0")
    });
}

#[test]
fn who_has_the_token_writes_to_the_topic_over_http() {
    let contrary = versions::contrary("0.2.0");
    let folder = TempDir::new().unwrap();
    let token = file(folder.path(), "token", "wide-open-sesame\n").display().to_string();
    let fleet = Fleet::new(Broker::shared(), 1);
    let admin = "admin.address=127.0.0.1:0";
    let (writer, reader) =
        (fleet.worker("a", &[admin, &format!("admin.token_file={token}")], &[]), fleet.worker("b", &[admin], &[]));
    fleet.wait_for(&["a", "b"], 0, "ready");
    let next = desired(1, &target(contrary.path())).to_string();
    let post = |token, slot: &str, value: &str| writer.post(&format!("/rollout/{slot}"), token, value);
    assert_eq!(post(None, "default", &next).0, 401);
    assert_eq!(post(Some("wide-open-sesam"), "default", &next).0, 401);
    let token = Some("wide-open-sesame");
    assert_eq!(reader.post("/rollout/default", token, &next).0, 403);
    assert_eq!(post(token, "other", &next).0, 404);
    let (status, answer) = post(token, "default", &next.replace("spec_version\":1", "spec_version\":9"));
    assert_eq!(status, 400);
    assert!(answer["error"].as_str().unwrap().contains("spec_version 9 is not supported"), "{answer}");

    assert_eq!(post(token, "default", &next), (202, serde_json::json!({ "generation": 1 })));
    // Both learn it from the topic.
    for status in fleet.wait_for(&["a", "b"], 1, "ready") {
        assert_eq!(status["stable"]["version"], "0.2.0");
    }
    let (status, answer) = post(token, "default", &next);
    assert_eq!((status, answer["error"].as_str()), (409, Some("generation 1 is not above 1, which is in force")));
    assert!(!writer.log().contains("sesame"));
}
