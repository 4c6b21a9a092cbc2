//! Several slots: a model for each, every record tagged by all of them.

use serde_json::{Value, json};

use crate::common::broker::Broker;
use crate::common::worker::{Worker, json as value_of, wait_until};
use crate::fleet::{Fleet, target};
use crate::model::Copy;
use crate::operations::{feed_keys, operate, report};
use crate::versions::{contrary, only};

const RECORDS: u32 = 40;

/// A worker with a model for parts of speech and one for entities.
fn worker(fleet: &Fleet<'_>, pos: &Copy, ner: &Copy, settings: &[&str]) -> Worker {
    let slots =
        [("pos", pos), ("ner", ner)].map(|(slot, model)| format!("model.slots.{slot}={}", model.path().display()));
    let settings: Vec<&str> = slots.iter().map(String::as_str).chain(settings.iter().copied()).collect();
    fleet.worker("a", &settings, &[])
}

/// What the last records say, `count` of them: the versions by slot, and what was found.
fn said(fleet: &Fleet<'_>, count: u32) -> Vec<Value> {
    let records = fleet.stream.outputs(count as usize);
    records.iter().map(value_of).collect()
}

#[test]
fn two_slots_tell_what_one_model_with_both_heads_tells() {
    let parts = ["pos", "ner"].map(|task| only(task, Copy::new()));
    let (whole, split) = (Fleet::without_topics(Broker::shared(), 1), Fleet::without_topics(Broker::shared(), 1));
    for fleet in [&whole, &split] {
        feed_keys(fleet, RECORDS);
    }
    let _one = whole.worker("a", &["rollout.topic_prefix="], &[]);
    let _two = worker(&split, &parts[0], &parts[1], &["rollout.topic_prefix="]);
    let (of_one, of_two) = (said(&whole, RECORDS), said(&split, RECORDS));
    for (one, two) in of_one.iter().zip(&of_two) {
        for member in ["id", "text", "sentences", "tokens", "entities"] {
            assert_eq!(one[member], two[member], "{member}");
        }
        let told = |annotation: &Value| -> Vec<Value> {
            let models = annotation["models"].as_array().unwrap();
            models.iter().map(|model| json!([model["slot"], model["tasks"], model["name"]])).collect()
        };
        assert_eq!(told(one), [json!(["default", ["pos", "ner"], "vi-tagger"])]);
        assert_eq!(told(two), [json!(["ner", ["ner"], "ner"]), json!(["pos", ["pos"], "pos"])]);
    }
    assert!(of_one.iter().all(|annotation| annotation["entities"][0]["token_end"].as_u64() > Some(0)));
}

#[test]
fn a_slot_changes_its_model_and_the_other_keeps_its_own() {
    let (pos, ner) = (only("pos", Copy::new()), only("ner", Copy::new()));
    let next = only("ner", contrary("0.2.0"));
    let fleet = Fleet::new(Broker::shared(), 1);
    let worker = worker(&fleet, &pos, &ner, &["admin.address=127.0.0.1:0"]);
    let desire = |slot: &str, generation: u64, model: &Copy| {
        let desired = json!({ "spec_version": 1, "generation": generation, "stable": target(model.path()) });
        let message = crate::common::broker::Message::new(desired.to_string()).key(slot);
        fleet.stream.broker.produce(&fleet.control(), [message]);
    };
    let status = |slot: &str| {
        let setting = format!("rollout.slot={slot}");
        report(&operate(&fleet, &["status", "--json", "--set", &setting]))["workers"][0].clone()
    };
    feed_keys(&fleet, RECORDS);
    let before = said(&fleet, RECORDS);

    desire("ner", 1, &next);
    wait_until("the slot to serve the next version", || status("ner")["stable"]["version"] == "0.2.0");
    feed_keys(&fleet, RECORDS);
    let after = said(&fleet, 2 * RECORDS).split_off(RECORDS as usize);
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before["tokens"], after["tokens"]);
        assert_ne!(before["entities"], after["entities"]);
        assert_eq!(after["models"][0]["version"], "0.2.0");
        assert_eq!(before["models"][1], after["models"][1]);
    }
    assert_eq!(status("pos")["stable"]["version"], "0.1.0");

    // A model for what the other slot tells is not let in.
    desire("ner", 2, &pos);
    wait_until("the slot to refuse a model for parts of speech", || {
        let status = status("ner");
        status["state"] == "failed" && status["reason"].as_str().unwrap_or_default().contains("slot \"pos\"")
    });
    let ready = worker.page("/readyz");
    assert!(ready.contains("rollout ner") && ready.contains("rollout pos"), "{ready}");
}

#[test]
fn two_slots_for_one_task_are_refused_at_the_start() {
    let model = only("ner", Copy::new());
    let fleet = Fleet::without_topics(Broker::shared(), 1);
    let slots = ["a", "b"].map(|slot| format!("model.slots.{slot}={}", model.path().display()));
    let mut worker = fleet.worker("a", &[&slots[0], &slots[1], "rollout.topic_prefix="], &[]);
    assert!(!worker.wait().success());
    let log = worker.log();
    assert!(log.contains("slot \"a\" has a model for the same task"), "{log}");
}
