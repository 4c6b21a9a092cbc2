//! What fails while a worker runs, and who pays for it: the record alone, the lane for a while, or the worker.

#![cfg(feature = "worker")]

mod common;
#[path = "common/model.rs"]
mod model;

use std::collections::BTreeSet;

use common::broker::{Broker, Message};
use common::worker::{SOON, Stream, Worker, id, wait_until};
use model::Copy;

fn document(id: u32, text: &str) -> Message {
    Message::new(serde_json::json!({ "id": id, "text": text }).to_string())
}

/// A character that the poisoned model has a token for and no embedding.
const POISON: &str = "☢";

/// A model whose graph fails on [`POISON`], as ONNX Runtime fails on an index out of bounds.
fn poisoned_model() -> Copy {
    let model = Copy::new();
    model.edit("tokenizer.json", |tokenizer| tokenizer["model"]["vocab"][POISON] = 5_000_000.into());
    model.rehash();
    model
}

#[test]
fn a_record_that_the_model_fails_on_is_found_in_its_batch_and_goes_alone() {
    let stream = Stream::new(Broker::shared(), 1);
    let model = poisoned_model();
    let text = |id: u32| if id % 20 == 7 { format!("Chào {POISON} Huế.") } else { "Chào cả Huế.".to_owned() };
    stream.broker.produce(&stream.input, (0..60).map(|id| document(id, &text(id))));
    let path = format!("model.path={}", model.path().display());
    let worker = stream.worker("a", &[&path, "batch.max_wait_ms=500"]);
    let tagged: BTreeSet<u32> = stream.outputs(57).iter().map(id).collect();
    assert!(tagged.into_iter().eq((0..60).filter(|id| id % 20 != 7)));
    let dead = stream.broker.read_committed(&stream.dead_letters, 3, SOON);
    assert_eq!(dead.iter().map(id).collect::<Vec<_>>(), [7, 27, 47]);
    for letter in &dead {
        assert_eq!(letter.header("vitag.error.code"), Some(&b"inference_failed"[..]));
        assert_eq!(letter.header("__connect.errors.stage"), Some(&b"infer"[..]));
    }
    stream.wait_until_committed();
    assert!(worker.log().contains("a batch failed and is halved"), "{}", worker.log());
}

/// Faults that only a test can bring about.
#[cfg(feature = "failpoints")]
mod injected {
    use super::*;

    fn worker(stream: &Stream<'_>, faults: &str) -> Worker {
        stream.worker_with("a", &["batch.max_wait_ms=500"], &[("FAILPOINTS", &format!("infer={faults}"))])
    }

    /// The worker has ended with exit code 1 and left everything to the next, which the test starts.
    fn leaves_all_to_the_next(stream: &Stream<'_>, mut worker: Worker, words: &[&str]) {
        assert_eq!(worker.wait().code(), Some(1), "{}", worker.log());
        let log = worker.log();
        for word in words {
            assert!(log.contains(word), "no {word:?} in {log}");
        }
        assert!(stream.broker.committed(&stream.group, &stream.input).is_empty());
        let _next = stream.worker("a", &[]);
        stream.assert_exactly_once(40);
        assert!(stream.broker.read_committed_to_end(&stream.dead_letters).is_empty());
    }

    #[test]
    fn want_of_memory_costs_no_record() {
        let stream = Stream::new(Broker::shared(), 1);
        stream.feed(0..40);
        let worker = worker(&stream, "4*return(memory)");
        stream.assert_exactly_once(40);
        stream.wait_until_committed();
        assert!(worker.log().contains("memory or device failed"), "{}", worker.log());
        assert!(stream.broker.read_committed_to_end(&stream.dead_letters).is_empty());
    }

    #[test]
    fn memory_that_does_not_come_back_ends_the_worker_uncommitted() {
        let stream = Stream::new(Broker::shared(), 1);
        stream.feed(0..40);
        let worker = worker(&stream, "return(memory)");
        leaves_all_to_the_next(&stream, worker, &["on a single sequence", "lanes.count"]);
    }

    #[test]
    fn a_panic_inside_inference_ends_the_worker_uncommitted() {
        let stream = Stream::new(Broker::shared(), 1);
        stream.feed(0..40);
        let worker = worker(&stream, "panic(the native code is broken)");
        leaves_all_to_the_next(&stream, worker, &["infer: panicked: ", "the native code is broken"]);
    }
}

/// Dead letters of the stream so far.
fn dead_letters(stream: &Stream<'_>) -> usize {
    stream.broker.read_committed_to_end(&stream.dead_letters).len()
}

#[test]
fn a_stream_of_dead_letters_stops_the_worker_before_they_are_committed() {
    let stream = Stream::new(Broker::shared(), 1);
    stream.feed(0..30);
    let commit_when_all_are_there = ["commit.records=1000", "commit.interval_ms=1000"];
    let mut worker = stream.worker("a", &commit_when_all_are_there);
    stream.outputs(30);
    let bad = |id: u32| Message::new(serde_json::json!({ "id": id, "body": "Chào Huế." }).to_string());
    stream.broker.produce(&stream.input, (30..230).map(bad));
    assert_eq!(worker.wait().code(), Some(1), "{}", worker.log());
    let log = worker.log();
    for words in ["missing_field", "input.text_pointer", "breaker.max_ratio is 0.5"] {
        assert!(log.contains(words), "no {words:?} in {log}");
    }
    // Fewer than the breaker judges by may have been let pass before.
    let (committed, passed) = (stream.broker.committed(&stream.group, &stream.input)[&0], dead_letters(&stream));
    assert!(passed < 100 && committed == 30 + passed as i64, "{committed} committed, {passed} dead letters");
    // What stopped it is what the settings say, and with the right ones it is read again.
    let _next = stream.worker("a", &["input.text_pointer=/body", "breaker.max_run=0"]);
    stream.outputs(230 - passed);
    stream.wait_until_committed();
}

#[test]
fn a_run_of_dead_letters_stops_a_worker_that_has_seen_many_good_records() {
    let stream = Stream::new(Broker::shared(), 1);
    stream.feed(0..100);
    let mut worker = stream.worker("a", &["breaker.max_run=20", "commit.records=1000", "commit.interval_ms=1000"]);
    stream.outputs(100);
    stream.broker.produce(&stream.input, (0..25).map(|_| Message::new("no JSON")));
    assert_eq!(worker.wait().code(), Some(1), "{}", worker.log());
    assert!(worker.log().contains("20 records in a row"), "{}", worker.log());
    assert!(worker.log().contains("raise breaker.max_run"), "{}", worker.log());
    assert!((100..120).contains(&stream.broker.committed(&stream.group, &stream.input)[&0]));
}

#[test]
fn a_burst_of_dead_letters_among_good_records_stops_nothing() {
    let stream = Stream::new(Broker::shared(), 2);
    let bad = || (0..40).map(|_| Message::new("no JSON"));
    // Before the breaker judges, and after.
    stream.broker.produce(&stream.input, bad());
    stream.feed(0..200);
    stream.broker.produce(&stream.input, bad());
    let mut worker = stream.worker("a", &[]);
    wait_until("all records to end somewhere", || dead_letters(&stream) == 80);
    stream.assert_exactly_once(200);
    stream.wait_until_committed();
    assert!(!worker.has_ended(), "{}", worker.log());
}
