//! Room for others.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Instant;

use serde_json::json;
use tempfile::TempDir;

use super::common::broker::Broker;
use super::common::worker::Stream;
use super::files::lines;
use super::{backfill, command, end, summary};

#[test]
fn a_job_rests_while_the_live_group_lags() {
    let stream = Stream::new(Broker::shared(), 1);
    stream.feed_and_tag(0..5);
    stream.feed(5..40);
    let folder = TempDir::new().unwrap();
    let polite = ["--output", folder.path().to_str().unwrap(), "--max-lag-of", &stream.group, "--max-lag", "10"];
    let mut job = command(&stream, "a", &polite);
    job.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut job = job.spawn().unwrap();
    let log = BufReader::new(job.stderr.take().unwrap()).lines().map(|line| line.unwrap());
    let mut log = log.skip_while(|line| !line.contains("resting while the group lags"));
    assert!(log.next().is_some_and(|line| line.contains("\"lag\":3")), "it did not rest");
    // The rest of the log must be read, lest the job wait for that.
    let reader = std::thread::spawn(move || log.any(|line| line.contains("going on")));
    assert!(lines(folder.path()).is_empty() && job.try_wait().unwrap().is_none());
    let worker = stream.worker("live", &[]);
    let told = summary(&end(job));
    assert_eq!((&told["state"], &told["records"]), (&json!("finished"), &json!(40)));
    assert!(reader.join().unwrap(), "it did not say that it goes on");
    drop(worker);
    assert_eq!(lines(folder.path()).len(), 40);
}

#[test]
fn a_rate_is_not_exceeded() {
    let stream = Stream::new(Broker::shared(), 2);
    stream.feed(0..100);
    let started = Instant::now();
    assert_eq!(summary(&backfill(&stream, &["--rate", "10"]))["records"], 100);
    // What could have been read within a second may be made up for.
    assert!(started.elapsed().as_secs_f64() > 99.0 / 10.0 - 1.0, "{:?}", started.elapsed());
    stream.assert_exactly_once(100);
}
