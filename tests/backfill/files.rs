//! From a topic to files.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::common::broker::{Broker, End, Message};
use super::common::worker::{Stream, wait_until};
use super::{backfill, document, ids, summary};

/// The lines of the outputs in a folder, in the order of their names.
pub(super) fn lines(folder: &Path) -> Vec<Value> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.is_file()).collect();
    files.sort();
    let text: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_is_committed_comes_to_files_with_its_places() {
    let stream = Stream::new(Broker::shared(), 3);
    let broker = stream.broker;
    for (ids, partition, how) in
        [(0..5, 0, End::Commit), (90..95, 0, End::Abort), (5..8, 0, End::Commit), (8..9, 1, End::Commit)]
    {
        broker.produce_in_transaction(&stream.input, ids.map(|id| document(id).partition(partition)), how);
    }
    broker.produce(&stream.input, [Message::new("not JSON").partition(1)]);
    let folder = TempDir::new().unwrap();
    let output = ["--output", folder.path().to_str().unwrap()];
    let ended = backfill(&stream, &output);
    ended.refused(65, &["1 of the records were refused"]);
    let places = |line: &Value| (line["source"]["partition"].clone(), line["source"]["offset"].clone());
    let found = lines(folder.path());
    let read = broker.read_committed_to_end(&stream.input);
    let expected: Vec<_> = (0..2)
        .flat_map(|id| read.iter().filter(move |record| record.partition == id))
        .filter(|r| r.text() != "not JSON")
        .collect();
    assert_eq!(
        found.iter().map(|line| line["id"].clone()).collect::<Vec<_>>(),
        (0..9).map(|id| json!(id)).collect::<Vec<_>>()
    );
    let expected: Vec<_> = expected.iter().map(|record| (json!(record.partition), json!(record.offset))).collect();
    assert_eq!(found.iter().map(places).collect::<Vec<_>>(), expected);
    let rejects = lines(&folder.path().join("_rejects"));
    assert_eq!((rejects.len(), &rejects[0]["code"]), (1, &json!("invalid_json")));
    // What comes later is not of the job.
    stream.feed(20..30);
    let again = summary(&backfill(&stream, &output));
    assert_eq!((&again["state"], &again["records"]), (&json!("finished_before"), &json!(0)));
    assert_eq!(lines(folder.path()), found);
}

#[test]
fn a_range_may_begin_and_end_where_compaction_left_nothing() {
    let stream = Stream::new(Broker::shared(), 1);
    let input = format!("{}.compacted", stream.input);
    let soon = [("cleanup.policy", "compact"), ("segment.ms", "50"), ("min.cleanable.dirty.ratio", "0.001")];
    stream.broker.create_topic_with(&input, 1, &soon);
    let keyed = |id: u32| document(id).key(if id == 10 { "alone".to_owned() } else { format!("key-{}", id % 4) });
    stream.broker.produce(&input, (0..44).map(keyed));
    // The last segment is never compacted: others come after it.
    wait_until("the compaction", || {
        stream.broker.produce(&input, [document(90).key("last")]);
        let kept = stream.broker.read_committed_to_end(&input);
        kept.iter().filter(|record| record.offset < 40).map(|record| record.offset).eq([10])
    });
    let range = ["--topic", &input, "--from", "5", "--to", "40"];
    let folder = TempDir::new().unwrap();
    let files = [&range[..], &["--output", folder.path().to_str().unwrap()]].concat();
    assert_eq!(summary(&backfill(&stream, &files))["records"], 1);
    assert_eq!(lines(folder.path()).iter().map(|line| &line["id"]).collect::<Vec<_>>(), [10]);
    let told = summary(&backfill(&stream, &range));
    assert_eq!((&told["state"], &told["records"]), (&json!("finished"), &json!(1)));
    assert_eq!(ids(&stream), [10]);
}
