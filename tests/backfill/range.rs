//! Which records are in a range.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::common::broker::{Broker, End, Message};
use super::common::worker::{SOON, Stream, wait_until};
use super::{backfill, document, ids, summary};

#[test]
fn a_range_ends_in_what_nobody_reads_and_in_empty_partitions() {
    let stream = Stream::new(Broker::shared(), 3);
    let broker = stream.broker;
    broker.produce_in_transaction(&stream.input, (0..5).map(|id| document(id).partition(0)), End::Commit);
    broker.produce_in_transaction(&stream.input, (90..95).map(|id| document(id).partition(0)), End::Abort);
    broker.produce_in_transaction(&stream.input, (95..99).map(|id| document(id).partition(2)), End::Abort);
    let first = summary(&backfill(&stream, &[]));
    assert_eq!((&first["state"], &first["records"]), (&json!("finished"), &json!(5)));
    assert_eq!(ids(&stream), [0, 1, 2, 3, 4]);
    // The group stands at the ends, behind the markers.
    let group = format!("{}.backfill.june", stream.group);
    let committed = broker.committed(&group, &stream.input);
    for partition in 0..3 {
        let end = broker.last_stable_offset(&stream.input, partition);
        assert_eq!(committed.get(&partition), Some(&end), "{partition}");
    }
}

#[test]
fn times_bound_a_range_at_the_first_record_of_each_partition_that_is_not_older() {
    let stream = Stream::new(Broker::shared(), 3);
    let at = |id: u32, partition, ms: i64| document(id).partition(partition).timestamp(ms);
    let (from, to) = (1_767_225_600_000_i64, 1_767_225_660_000);
    stream.broker.produce(
        &stream.input,
        [
            at(90, 0, from - 1),
            at(0, 0, from),
            at(1, 0, to - 1),
            at(91, 0, to),
            // All before, and all behind.
            at(92, 1, from - 5),
            at(93, 1, from - 1),
            at(94, 2, to),
            at(95, 2, to + 1),
        ],
    );
    let range = ["--from", "2026-01-01T00:00:00Z", "--to", "2026-01-01T00:01:00Z"];
    assert_eq!(summary(&backfill(&stream, &range))["records"], 2);
    assert_eq!(ids(&stream), [0, 1]);
}

#[test]
fn records_are_chosen_by_partition_header_content_and_number() {
    let choose = |more: &[&str]| {
        let stream = Stream::new(Broker::shared(), 2);
        let message = |id: u32| {
            let lang = if id.is_multiple_of(2) { "vi" } else { "en" };
            let value = json!({ "id": id, "text": "Huế đẹp.", "lang": lang }).to_string();
            Message::new(value).partition((id % 4 / 2) as i32).header("source", if id < 20 { "web" } else { "print" })
        };
        stream.broker.produce(&stream.input, (0..40).map(message));
        summary(&backfill(&stream, more));
        ids(&stream)
    };
    let every = |keep: fn(&u32) -> bool| (0..40).filter(keep).collect::<Vec<u32>>();
    assert_eq!(choose(&["--partitions", "1"]), every(|id| id % 4 / 2 == 1));
    assert_eq!(choose(&["--header", "source=web", "--where", "/lang=vi"]), every(|id| *id < 20 && id % 2 == 0));
    assert_eq!(choose(&["--where", "/lang=vi", "--limit", "5"]), [0, 2, 4, 6, 8]);
    assert_eq!(choose(&["--from", "5", "--to", "7"]), [9, 11, 12, 14]);
    let sample: BTreeSet<u32> = choose(&["--sample", "0.5"]).into_iter().collect();
    assert!((5..35).contains(&sample.len()), "{sample:?}");
}

#[test]
fn where_the_live_group_stands_a_job_may_end() {
    let stream = Stream::new(Broker::shared(), 1);
    stream.feed_and_tag(0..10);
    stream.feed(10..20);
    let other = Stream { output: format!("{}.again", stream.output), ..Stream { ..stream } };
    for topic in [other.output.clone(), format!("{}.dead-letters", other.output)] {
        other.broker.create_topic(&topic, 1);
    }
    summary(&backfill(&other, &["--to", "committed"]));
    assert_eq!(ids(&other), (0..10).collect::<Vec<_>>());
}

#[test]
fn what_cannot_be_tagged_is_a_dead_letter_and_told() {
    let stream = Stream::new(Broker::shared(), 1);
    stream.broker.produce(&stream.input, [document(1), Message::new("not JSON"), Message::new("{}")]);
    let ended = backfill(&stream, &[]);
    ended.refused(65, &["2 of the records were refused"]);
    let told: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(told["rejects"], json!({ "invalid_json": 1, "missing_field": 1 }));
    assert_eq!(stream.broker.read_committed(&stream.dead_letters, 2, SOON).len(), 2);
}

#[test]
fn what_cannot_be_a_job_is_refused_and_leaves_no_trace() {
    let stream = Stream::new(Broker::shared(), 2);
    let refused = |more: &[&str], code, words: &[&str]| backfill(&stream, more).refused(code, words);
    refused(&["--from", "7", "--to", "6"], 2, &["--from 7 lies after --to 6"]);
    refused(&["--from=-1h", "--to=-2h"], 2, &["--from -1h lies after --to -2h"]);
    refused(&["--from", "soon"], 2, &["--from soon"]);
    refused(&["--partitions", "1,2"], 2, &["no partition 2, it has 2"]);
    refused(&[], 65, &["the range holds no records"]);
    refused(&["--topic", "nowhere"], 69, &["\"nowhere\" does not exist"]);
    refused(&["--model", "vi-tagger@9.9.9"], 78, &["vi-tagger/9.9.9"]);
    let group = format!("{}.backfill.june", stream.group);
    assert!(stream.broker.committed(&group, &stream.input).is_empty());
    stream.feed(0..10);
    summary(&backfill(&stream, &["--to", "latest"]));
    refused(&["--to", "1"], 2, &["begun with another range"]);
    wait_until("the outputs", || ids(&stream).len() == 10);
}
