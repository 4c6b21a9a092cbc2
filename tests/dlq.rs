//! Dead letters on a real broker: what `vitag dlq` shows of them, and that it sends them back once.
#![cfg(feature = "worker")]

#[path = "common/cli.rs"]
mod cli;
mod common;

use std::process::Stdio;

use cli::{Ended, feed, vitag};
use common::broker::{Broker, Message, Received};
use common::worker::{SOON, Stream, id, json, wait_until};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::{Value, json};

fn arguments(stream: &Stream<'_>, command: &str, more: &[&str]) -> Vec<String> {
    let settings = [
        format!("kafka.bootstrap_servers={}", stream.broker.bootstrap()),
        format!("kafka.group_id={}", stream.group),
        format!("input.topics={}", stream.input),
        format!("output.topic={}", stream.output),
        format!("output.dead_letter_topic={}", stream.dead_letters),
    ];
    let sets = settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]);
    ["dlq", command].into_iter().chain(more.iter().copied()).map(str::to_owned).chain(sets).collect()
}

fn dlq(stream: &Stream<'_>, command: &str, more: &[&str]) -> Ended {
    feed(&mut vitag(arguments(stream, command, more)), "")
}

fn summary(stream: &Stream<'_>, more: &[&str]) -> Value {
    let ended = dlq(stream, "inspect", &[more, &["--json"]].concat());
    serde_json::from_str(&ended.output()).unwrap()
}

/// The report of a replay, and its exit code.
fn replay(stream: &Stream<'_>, more: &[&str]) -> (Value, Option<i32>) {
    let ended = dlq(stream, "replay", &[more, &["--yes", "--json"]].concat());
    let report = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
    (report, ended.code)
}

/// A letter as the worker writes them.
fn letter(topic: &str, partition: i32, offset: i64, code: &str) -> Message {
    Message::new(json!({ "body": "Chào Huế.", "id": offset }).to_string())
        .header("__connect.errors.topic", topic)
        .header("__connect.errors.partition", partition.to_string())
        .header("__connect.errors.offset", offset.to_string())
        .header("__connect.errors.stage", "decode")
        .header("__connect.errors.exception.class.name", "vitag.Reject")
        .header("__connect.errors.exception.message", "reason")
        .header("vitag.error.code", code)
}

fn with_body(id: u32) -> Message {
    Message::new(json!({ "id": id, "body": "Bác sĩ ở Huế." }).to_string()).key(format!("key-{id}"))
}

/// Runs a worker that is set up wrongly until it has refused `count` records in all.
fn refuse(stream: &Stream<'_>, count: usize) {
    let dead_letters = format!("output.dead_letter_topic={}", stream.dead_letters);
    let mut worker = stream.worker("a", &[&dead_letters]);
    stream.broker.read_committed(&stream.dead_letters, count, SOON);
    worker.terminate();
    assert!(worker.wait().success(), "{}", worker.log());
}

#[test]
fn letters_are_counted_and_shown_and_no_group_is_left_behind() {
    let stream = Stream::new(Broker::shared(), 2);
    let messages = [
        with_body(0).partition(0).timestamp(1_700_000_000_000),
        Message::new(&b"\x1b[2J\xff"[..]).key("k\u{202e}").partition(1).timestamp(1_700_000_100_000),
        with_body(1).partition(1).timestamp(1_700_000_200_000),
    ];
    stream.broker.produce(&stream.input, messages);
    refuse(&stream, 3);
    stream.broker.produce(&stream.dead_letters, [Message::new("of another")]);

    let of_input = json!({ stream.input.as_str(): { "0": 1, "1": 2 } });
    let all = summary(&stream, &[]);
    assert_eq!((&all["letters"], &all["without_reason"], &all["replayed"]), (&json!(4), &json!(1), &json!(0)));
    assert_eq!(all["codes"], json!({ "invalid_utf8": 1, "missing_field": 2 }));
    assert_eq!((&all["stages"], &all["inputs"]), (&json!({ "decode": 3 }), &of_input));
    let chosen = summary(&stream, &["--partition", "1", "--since", "2023-11-14T22:16:40Z", "--stage", "decode"]);
    assert_eq!((&chosen["letters"], &chosen["codes"]), (&json!(1), &json!({ "missing_field": 1 })));
    assert_eq!((&chosen["first"], &chosen["last"]), (&json!(1_700_000_200_000_i64), &json!(1_700_000_200_000_i64)));

    let lines = dlq(&stream, "inspect", &["--code", "invalid_utf8", "--records", "--json"]).output();
    let shown: Value = serde_json::from_str(&lines).unwrap();
    assert_eq!(shown["input"], json!({ "topic": stream.input, "partition": 1, "offset": 0 }));
    assert_eq!((&shown["key"], &shown["value"]), (&json!("k\u{202e}"), &json!({ "base64": "G1sySv8=" })));
    let text = dlq(&stream, "inspect", &["-n", "3"]).output();
    assert!(text.contains("code missing_field") && text.contains("3 of 4"), "{text}");
    for printed in [lines, text] {
        assert!(!printed.contains(['\u{1b}', '\u{202e}']), "{printed:?}");
    }

    let consumer: BaseConsumer = stream.broker.client().set("group.id", "onlooker").create().unwrap();
    let groups = consumer.fetch_group_list(None, SOON).unwrap();
    let ours: Vec<&str> =
        groups.groups().iter().map(|g| g.name()).filter(|name| name.starts_with(&stream.group)).collect();
    assert_eq!(ours, [stream.group.as_str()]);
}

#[test]
fn once_the_cause_is_mended_the_chosen_letters_are_tagged_once() {
    let stream = Stream::new(Broker::shared(), 2);
    let bad = (10..13).map(|_| Message::new("no JSON"));
    stream.broker.produce(&stream.input, (0..10).map(with_body).chain(bad).chain((13..20).map(with_body)));
    refuse(&stream, 20);

    let chosen = ["--code", "missing_field"];
    let ended = dlq(&stream, "replay", &[&chosen[..], &["--dry-run", "--json"]].concat());
    let plan: Value = serde_json::from_str(&ended.output()).unwrap();
    assert_eq!((&plan["dry_run"], &plan["replayed"], &plan["not_chosen"]), (&json!(true), &json!(17), &json!(3)));
    dlq(&stream, "replay", &chosen).refused(2, &["--yes", "--dry-run"]);
    assert_eq!(stream.broker.read_committed_to_end(&stream.input).len(), 20, "nothing was sent yet");

    let (report, code) = replay(&stream, &chosen);
    assert_eq!((&report["replayed"], code), (&json!(17), Some(0)), "{report}");
    assert_eq!((&plan["continued"], &report["continued"]), (&json!(false), &json!(false)));
    assert_eq!(report["inputs"], json!({ stream.input.as_str(): 17 }));
    let (again, _) = replay(&stream, &chosen);
    assert_eq!((&again["replayed"], &again["not_chosen"]), (&json!(0), &json!(3)), "{again}");
    assert_eq!(again["continued"], true);
    assert_eq!(summary(&stream, &[])["replayed"], 17);

    let mut worker = stream.worker("a", &["input.text_pointer=/body"]);
    stream.outputs(17);
    worker.terminate();
    worker.wait();
    let mut ids: Vec<u32> = stream.broker.read_committed_to_end(&stream.output).iter().map(id).collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq((0..10).chain(13..20)), "each once");

    // What was not chosen is still to be had, and nothing else with it.
    let (rest, _) = replay(&stream, &[]);
    assert_eq!((&rest["replayed"], &rest["not_chosen"]), (&json!(3), &json!(0)), "{rest}");
    // Only the chosen ones of those that were sent back are sent again.
    let (again, _) = replay(&stream, &["--again", "--code", "invalid_json"]);
    assert_eq!((&again["replayed"], &again["not_chosen"]), (&json!(3), &json!(0)), "{again}");
}

#[test]
fn a_letter_goes_back_as_it_came_to_where_it_was() {
    let stream = Stream::new(Broker::shared(), 3);
    let message = Message::new(&b"\x00\xff"[..])
        .key([0xfe, 0x01])
        .header("a", "1")
        .header("vitag.error.code", "of another system")
        .header("a", [0xfd])
        .null_header("b")
        .header("c", "")
        .timestamp(1_600_000_000_123)
        // Not where its key would send it, whichever partitioner: each partition gets one.
        .header("d", "last");
    stream.broker.produce(&stream.input, (0..3).map(|id| message.clone().partition(id)));
    let before = stream.broker.read_committed_to_end(&stream.input);
    refuse(&stream, 3);
    assert_eq!(replay(&stream, &[]).0["replayed"], 3);
    let after = stream.broker.read_committed(&stream.input, 6, SOON);
    for original in before {
        let back = after.iter().find(|r| r.partition == original.partition && r.offset > original.offset).unwrap();
        assert_eq!((&back.key, &back.value, back.timestamp), (&original.key, &original.value, original.timestamp));
        let counted = ("vitag.dlq.replays".to_owned(), Some(b"1".to_vec()));
        assert_eq!(back.headers, [original.headers, vec![counted]].concat());
    }
}

#[test]
fn a_letter_that_comes_back_too_often_is_left() {
    let stream = Stream::new(Broker::shared(), 1);
    stream.broker.produce(&stream.input, [Message::new("no JSON")]);
    for round in 1..=3 {
        refuse(&stream, round);
        let (report, code) = replay(&stream, &["--max-replays", "2"]);
        let (sent, left) = if round <= 2 { (1, json!({})) } else { (0, json!({ "max_replays": 1 })) };
        assert_eq!((&report["replayed"], &report["left"]), (&json!(sent), &left), "round {round}: {report}");
        assert_eq!(code, Some(if round <= 2 { 0 } else { 65 }));
    }
    let letters = stream.broker.read_committed_to_end(&stream.dead_letters);
    let counts: Vec<_> = letters.iter().map(|letter| letter.header("vitag.dlq.replays")).collect();
    assert_eq!(counts, [None, Some(&b"1"[..]), Some(&b"2"[..])], "the worker passes the count on, once");
    // Left is not lost.
    assert_eq!(replay(&stream, &["--max-replays", "3"]).0["replayed"], 1);
}

#[test]
fn what_was_too_large_for_the_dead_letters_is_fetched_from_where_it_was() {
    let broker = Broker::shared();
    let stream = Stream::new(broker, 1);
    let tiny = Stream { dead_letters: format!("{}.tiny", stream.output), ..stream };
    broker.create_topic_with(&tiny.dead_letters, 1, &[("max.message.bytes", "1000")]);
    let large = Message::new("no JSON ".repeat(1000)).key("k").header("h", "kept").timestamp(7);
    broker.produce(&tiny.input, [Message::new("no JSON"), large]);
    let dead_letter_topic = format!("output.dead_letter_topic={}", tiny.dead_letters);
    let mut worker = tiny.worker("a", &[&dead_letter_topic, "kafka.compression=none"]);
    broker.read_committed(&tiny.dead_letters, 2, SOON);
    worker.terminate();
    worker.wait();
    // One whose original was deleted, and one whose offset holds another record by now.
    let without_value = |offset| letter(&tiny.input, 0, offset, "x").without_value();
    broker.produce(&tiny.dead_letters, [without_value(1_000), without_value(1).key("k").timestamp(8)]);
    assert_eq!(summary(&tiny, &[])["without_value"], 3);
    let (report, code) = replay(&tiny, &[]);
    assert_eq!((&report["replayed"], &report["left"]), (&json!(2), &json!({ "original_gone": 2 })), "{report}");
    assert_eq!(code, Some(65));
    let records = broker.read_committed_to_end(&tiny.input);
    let [_, original, _, back] = records.as_slice() else { panic!("{records:#?}") };
    assert_eq!((&back.key, &back.value, back.timestamp), (&original.key, &original.value, original.timestamp));
    let names: Vec<&str> = back.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["h", "vitag.dlq.replays"]);
}

#[test]
fn letters_lead_to_no_topic_but_those_of_the_worker() {
    let broker = Broker::shared();
    let stream = Stream::new(broker, 1);
    let other = format!("{}.other", stream.input);
    broker.create_topic(&other, 1);
    let letters = [letter(&other, 0, 0, "x"), Message::new("x"), letter(&stream.input, 7, 0, "x").key("k")];
    broker.produce(&stream.dead_letters, letters);
    let (report, code) = replay(&stream, &[]);
    assert_eq!(report["left"], json!({ "foreign_topic": 1, "no_reason": 1 }));
    // Its partition is no more: the key decides.
    assert_eq!((&report["replayed"], code), (&json!(1), Some(65)));
    assert!(broker.read_committed_to_end(&other).is_empty());
}

#[test]
fn a_choice_too_scattered_to_note_stops_and_a_wider_one_goes_on() {
    let stream = Stream::new(Broker::shared(), 1);
    let codes = ["x", "y"].into_iter().cycle();
    let letters = (0..5000).zip(codes).map(|(offset, code)| letter(&stream.input, 0, offset, code));
    stream.broker.produce(&stream.dead_letters, letters);
    dlq(&stream, "replay", &["--code", "x", "--yes"]).refused(1, &["wider filter", &stream.dead_letters]);
    let (rest, code) = replay(&stream, &[]);
    assert_eq!((&rest["replayed"], code), (&json!(3000), Some(0)), "four batches of 500 went before");
    let records = stream.broker.read_committed_to_end(&stream.input);
    let mut ids: Vec<i64> = records.iter().map(|record| json(record)["id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..5000), "each once");
}

#[test]
fn an_empty_topic_is_no_error_and_a_missing_one_is_named() {
    let stream = Stream::new(Broker::shared(), 1);
    assert_eq!(summary(&stream, &[])["letters"], 0);
    let text = dlq(&stream, "inspect", &["--records"]).output();
    assert!(text.contains(&stream.dead_letters), "{text}");
    let (report, code) = replay(&stream, &[]);
    assert_eq!((&report["replayed"], code), (&json!(0), Some(0)));
    let missing = Stream { dead_letters: "nowhere".into(), ..stream };
    for command in ["inspect", "replay"] {
        dlq(&missing, command, &[]).refused(69, &["\"nowhere\" does not exist", "output.dead_letter_topic"]);
    }
    feed(&mut vitag(["dlq", "inspect"]), "").refused(78, &["output.topic", "kafka.bootstrap_servers"]);
}

#[cfg(feature = "failpoints")]
mod deaths {
    use super::*;

    const LETTERS: i64 = 1100;

    /// A replay that is killed at a fail point in its second transaction, and repeated.
    fn survives_a_death_at(point: &str, committed: usize) {
        let stream = Stream::new(Broker::shared(), 1);
        let codes = ["x", "x", "y"].into_iter().cycle();
        let letters = (0..LETTERS).zip(codes).map(|(offset, code)| letter(&stream.input, 0, offset, code));
        stream.broker.produce(&stream.dead_letters, letters);
        let mut command = vitag(arguments(&stream, "replay", &["--yes", "--code", "x"]));
        command.env("FAILPOINTS", format!("{point}=1*off->pause"));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // 500 letters, a marker, and those of the second transaction.
        wait_until("the second transaction to hold its records", || {
            stream.broker.high_watermark(&stream.input, 0) >= 501 + 234 + i64::from(committed > 500)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        let (report, code) = replay(&stream, &["--code", "x"]);
        assert_eq!((&report["replayed"], code), (&json!(734 - committed), Some(0)), "{report}");
        let records = stream.broker.read_committed_to_end(&stream.input);
        let ids: Vec<i64> = records.iter().map(|record: &Received| json(record)["id"].as_i64().unwrap()).collect();
        assert!(ids.into_iter().eq((0..LETTERS).filter(|id| id % 3 != 2)), "each once and in order");
        let (rest, _) = replay(&stream, &[]);
        assert_eq!(rest["replayed"], 366, "{rest}");
    }

    #[test]
    fn before_the_commit() {
        survives_a_death_at("replay_before_commit", 500);
    }

    #[test]
    fn after_the_commit() {
        survives_a_death_at("replay_after_commit", 734);
    }

    #[test]
    fn a_second_replay_fences_the_first() {
        let stream = Stream::new(Broker::shared(), 1);
        stream.broker.produce(&stream.dead_letters, (0..5).map(|offset| letter(&stream.input, 0, offset, "x")));
        let mut command = vitag(arguments(&stream, "replay", &["--yes"]));
        command.env("FAILPOINTS", "replay_before_commit=sleep(3000)");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        wait_until("the first transaction to hold its records", || stream.broker.high_watermark(&stream.input, 0) >= 5);
        assert_eq!(replay(&stream, &[]).0["replayed"], 5);
        let ended = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("another replay"), "{stderr}");
        assert_eq!(stream.broker.read_committed_to_end(&stream.input).len(), 5);
    }
}
