//! Exactly once, as far as workers come, go and die; the real broker tells what was committed.

#![cfg(feature = "worker")]

mod common;

use common::broker::{Broker, End, Message};
use common::worker::{Stream, Worker, wait_until};

const RECORDS: u32 = 400;

#[test]
fn two_workers_share_the_partitions() {
    let stream = Stream::new(Broker::shared(), 4);
    let first = stream.worker("a", &[]);
    first.wait_for_log("partition assigned");
    stream.feed(0..RECORDS / 2);
    let second = stream.worker("b", &[]);
    second.wait_for_log("partition assigned");
    stream.feed(RECORDS / 2..RECORDS);
    stream.assert_exactly_once(RECORDS);
    stream.wait_until_committed();
}

#[test]
fn a_terminated_worker_finishes_what_it_read_and_another_goes_on() {
    let stream = Stream::new(Broker::shared(), 4);
    stream.feed(0..RECORDS);
    let mut first = stream.worker("a", &["batch.max_sequences=4"]);
    stream.outputs(20);
    first.terminate();
    assert!(first.wait().success(), "{}", first.log());
    let log = first.log();
    assert!(log.contains("drained"), "{log}");
    // What it published is committed, and what it committed is published.
    let published = stream.broker.read_committed_to_end(&stream.output).len();
    assert_eq!(stream.broker.committed_in_all(&stream.group, &stream.input), published as u64);
    let _second = stream.worker("a", &[]);
    stream.assert_exactly_once(RECORDS);
}

#[test]
fn a_killed_worker_started_again_loses_and_doubles_nothing() {
    let stream = Stream::new(Broker::shared(), 2);
    stream.feed(0..RECORDS);
    for round in 0..3 {
        let worker = stream.worker("a", &["batch.max_sequences=4"]);
        stream.outputs(20 * (round + 1));
        worker.kill();
    }
    let _last = stream.worker("a", &[]);
    stream.assert_exactly_once(RECORDS);
    stream.wait_until_committed();
}

/// As long as a transaction holds them, nobody knows where to begin: neither at the first record nor at the last.
#[test]
fn partitions_whose_offsets_a_transaction_holds_are_read_from_where_they_come_to_stand() {
    let stream = Stream::new(Broker::shared(), 2);
    stream.feed_and_tag(0..RECORDS / 2);
    let held = stream.broker.hold_offsets(&stream.group, &stream.input);
    stream.feed(RECORDS / 2..RECORDS);
    let first = stream.worker("a", &["telemetry.log_level=debug"]);
    let says = |text| first.log().matches(text).count();
    let second = stream.worker("b", &[]);
    first.wait_for_log("when their offsets are settled");
    second.wait_for_log("when their offsets are settled");
    // While it waits for the offset of one partition, the first is given the other.
    second.kill();
    wait_until("the partition of the second to come to the first", || says("when their offsets are settled") > 1);
    let asked = says("its offset is not known yet");
    wait_until("librdkafka to have asked again", || says("its offset is not known yet") > asked + 8);
    drop(held);
    stream.assert_exactly_once(RECORDS);
    stream.wait_until_committed();
}

/// A worker that dies at `point` with its transaction open, and the one that follows it.
#[cfg(feature = "failpoints")]
fn survives_a_death_at(point: &str) {
    let stream = Stream::new(Broker::shared(), 2);
    // The third time, so that something was committed before.
    let plan = format!("{point}=2*off->panic");
    let mut worker = stream.worker_with("a", &["batch.max_sequences=2"], &[("FAILPOINTS", &plan)]);
    // However few transactions the worker makes of a chunk, the third comes.
    let mut fed = 0;
    wait_until("the worker to die", || {
        stream.feed(fed..fed + 20);
        fed += 20;
        worker.has_ended()
    });
    assert_eq!(worker.wait().code(), Some(1), "{}", worker.log());
    assert!(worker.log().contains("panicked"), "{}", worker.log());
    let _next = stream.worker("a", &[]);
    stream.assert_exactly_once(fed);
    stream.wait_until_committed();
}

#[cfg(feature = "failpoints")]
mod deaths {
    use super::survives_a_death_at;

    #[test]
    fn after_the_transaction_began() {
        survives_a_death_at("after_begin");
    }

    #[test]
    fn after_the_offsets_were_sent() {
        survives_a_death_at("after_send_offsets");
    }

    #[test]
    fn before_the_commit() {
        survives_a_death_at("before_commit");
    }

    #[test]
    fn after_the_commit() {
        survives_a_death_at("after_commit");
    }
}

/// The broker gives a static member that starts again what it was to keep, and takes the rest for given away.
#[test]
#[cfg(feature = "failpoints")]
fn what_a_member_was_to_give_up_when_it_died_is_not_left_to_nobody() {
    let stream = Stream::new(Broker::shared(), 4);
    // Its first rebalance gives it everything, its second takes a half for the other.
    let mut first = stream.worker_with("a", &[], &[("VITAG_KILL_AT", "rebalance:2:0")]);
    first.wait_for_log("partition assigned");
    let _second = stream.worker("b", &[]);
    first.wait();
    let _again = stream.worker("a", &["worker.drain_timeout_ms=2000"]);
    stream.feed(0..RECORDS);
    stream.assert_exactly_once(RECORDS);
    stream.wait_until_committed();
}

#[test]
fn partitions_added_while_no_worker_looked_are_not_left_to_nobody() {
    let stream = Stream::new(Broker::shared(), 2);
    let first = stream.worker("a", &[]);
    first.wait_for_log("partition assigned");
    first.kill();
    stream.broker.grow_topic(&stream.input, 4);
    let metadata = "kafka.properties.topic.metadata.refresh.interval.ms=300000";
    let _again = stream.worker("a", &[metadata, "worker.drain_timeout_ms=2000"]);
    stream.feed(0..RECORDS);
    stream.assert_exactly_once(RECORDS);
    Stream { partitions: 4, ..stream }.wait_until_committed();
}

#[test]
fn what_others_aborted_is_never_read() {
    let stream = Stream::new(Broker::shared(), 1);
    let document = |id: u32| Message::new(serde_json::json!({ "id": id, "text": "Chào Huế." }).to_string());
    stream.broker.produce_in_transaction(&stream.input, (100..120).map(document), End::Abort);
    stream.broker.produce_in_transaction(&stream.input, (0..5).map(document), End::Commit);
    let _worker = stream.worker("a", &[]);
    stream.assert_exactly_once(5);
}

#[test]
fn a_worker_that_may_hold_little_pauses_and_goes_on() {
    let stream = Stream::new(Broker::shared(), 2);
    stream.feed(0..RECORDS);
    let worker = stream.worker(
        "a",
        &[
            "intake.max_bytes=40000",
            "intake.partition_high_bytes=10000",
            "intake.partition_low_bytes=5000",
            "telemetry.log_level=info,vitag::source=debug",
        ],
    );
    stream.assert_exactly_once(RECORDS);
    worker.wait_for_log("partition paused");
    worker.wait_for_log("partition resumed");
}

/// A compacted topic takes no record without a key.
fn stops_uncommitted_where_the_output_refuses(delivery: &str) {
    let broker = Broker::shared();
    let stream = Stream::new(broker, 1);
    let output = format!("{}.compacted", stream.output);
    let stream = Stream { output, ..stream };
    broker.create_topic_with(&stream.output, 1, &[("cleanup.policy", "compact")]);
    let document = |id: u32| Message::new(serde_json::json!({ "id": id, "text": "Chào Huế." }).to_string());
    broker.produce(&stream.input, [document(0)]);
    let dead_letters = format!("output.dead_letter_topic={}", stream.dead_letters);
    let mut worker = stream.worker("a", &[&format!("worker.delivery={delivery}"), &dead_letters]);
    assert_eq!(worker.wait().code(), Some(1), "{}", worker.log());
    assert!(worker.log().contains(&format!("{}[0] 0", stream.input)), "{}", worker.log());
    assert!(broker.committed(&stream.group, &stream.input).is_empty());
}

#[test]
fn exactly_once_stops_uncommitted_where_the_output_refuses() {
    stops_uncommitted_where_the_output_refuses("exactly_once");
}

#[test]
fn at_least_once_stops_uncommitted_where_the_output_refuses() {
    stops_uncommitted_where_the_output_refuses("at_least_once");
}

#[test]
fn at_least_once_loses_nothing_when_its_worker_is_killed() {
    let stream = Stream::new(Broker::shared(), 2);
    stream.feed(0..RECORDS);
    let settings = ["worker.delivery=at_least_once", "batch.max_sequences=4"];
    for round in 0..2 {
        let worker = stream.worker("a", &settings);
        stream.outputs(20 * (round + 1));
        worker.kill();
    }
    let _last = stream.worker("a", &settings);
    stream.wait_until_committed();
    let records = stream.broker.read_committed_to_end(&stream.output);
    let ids: std::collections::BTreeSet<u32> = records.iter().map(common::worker::id).collect();
    assert!(ids.into_iter().eq(0..RECORDS), "each at least once");
}

#[test]
fn a_second_worker_of_the_same_name_fences_the_first() {
    let stream = Stream::new(Broker::shared(), 1);
    let mut first = stream.worker("same", &[]);
    first.wait_for_log("partition assigned");
    let _second = stream.worker("same", &[]);
    stream.feed(0..50);
    assert_eq!(first.wait().code(), Some(1), "{}", first.log());
    assert!(first.log().contains("worker.instance"), "{}", first.log());
    stream.assert_exactly_once(50);
}

#[test]
fn a_broker_that_is_absent_is_waited_for_and_then_named() {
    let settings = [
        "kafka.bootstrap_servers=127.0.0.1:1",
        "input.topics=in",
        "output.topic=out",
        "worker.startup_timeout_ms=1000",
        "admin.address=",
    ];
    let mut worker = Worker::start(settings, &[]);
    assert_eq!(worker.wait().code(), Some(69), "{}", worker.log());
    let log = worker.log();
    assert!(log.contains("127.0.0.1:1") && log.contains("no broker"), "{log}");
}

#[test]
fn a_topic_that_is_missing_is_named() {
    let broker = Broker::shared();
    let servers = format!("kafka.bootstrap_servers={}", broker.bootstrap());
    let settings = [&servers, "input.topics=nowhere", "output.topic=neither", "admin.address="];
    let mut worker = Worker::start(settings, &[]);
    assert_eq!(worker.wait().code(), Some(69), "{}", worker.log());
    assert!(worker.log().contains("\"nowhere\" does not exist"), "{}", worker.log());
}

#[test]
fn a_broker_that_restarts_is_survived() {
    let mut broker = Broker::start();
    let stream = Stream::new(&broker, 2);
    let (input, output, group) = (stream.input.clone(), stream.output.clone(), stream.group.clone());
    let dead_letters = stream.dead_letters.clone();
    stream.feed(0..50);
    let _worker = stream.worker("a", &[]);
    stream.outputs(50);
    broker.kill();
    broker.restart();
    let stream = Stream { broker: &broker, input, output, group, dead_letters, partitions: 2 };
    stream.feed(50..100);
    stream.assert_exactly_once(100);
}
