//! `vitag bench` as a process: what it measures is the work that it says, and its report has the published form. How
//! fast anything is, no test asks.

#![cfg(feature = "worker")]

#[path = "common/cli.rs"]
mod cli;
mod common;

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use common::broker::Broker;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::Value;
use tempfile::tempdir;
use vitag::schema::Schema;

/// The report of a bench, held against its schema.
#[track_caller]
fn report(arguments: &[&str]) -> Value {
    let ended = cli::run(&[&["bench", "--json"], arguments].concat(), "");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let schema = serde_json::from_str(&Schema::Bench.text()).expect("JSON");
    let validator = jsonschema::draft202012::new(&schema).expect("a schema");
    let problems: Vec<_> = validator.iter_errors(&report).map(|e| e.to_string()).collect();
    assert_eq!(problems, Vec::<String>::new());
    report
}

#[test]
fn ceiling_and_pipeline_do_the_same_work() {
    let folder = tempdir().expect("a temporary folder");
    let saved = folder.path().join("documents.jsonl");
    let path = saved.to_str().expect("UTF-8");
    let report = report(&["ceiling", "pipeline", "--documents", "160", "--repeats", "2", "--save-documents", path]);

    let names: Vec<_> = report["stages"].as_array().unwrap().iter().map(|stage| stage["stage"].clone()).collect();
    assert_eq!(names, ["ceiling", "pipeline"]);
    for stage in report["stages"].as_array().unwrap() {
        assert_eq!(stage["documents_per_second"]["values"].as_array().unwrap().len(), 2);
        let share = stage["padded_share"]["median"].as_f64().unwrap();
        assert!((0.0..0.5).contains(&share), "{share}");
    }
    // The same documents and tokens in the same time: the two rates of a run have one quotient.
    let quotient = |stage: usize, run: usize| {
        let of = |key: &str| report["stages"][stage][key]["values"][run].as_f64().unwrap();
        of("tokens_per_second") / of("documents_per_second")
    };
    let tokens = report["documents"]["tokens"].as_f64().unwrap();
    for (stage, run) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        assert!((quotient(stage, run) / (tokens / 160.0) - 1.0).abs() < 1e-9);
    }
    assert_eq!(report["ratios"][0]["of"], "pipeline");
    assert_eq!(report["ratios"][0]["of_time"]["values"].as_array().unwrap().len(), 2);

    // The documents are those that were counted.
    let tagged = cli::run(&["tag", path], "").output();
    assert_eq!(tagged.lines().count(), 160);
    assert_eq!(fs::read_to_string(&saved).unwrap().lines().count(), 160);
}

#[test]
fn every_mix_can_be_measured() {
    for mix in ["articles", "sentences", "zipf", "short", "long", "huge"] {
        let report = report(&["pipeline", "--documents", "20", "--repeats", "1", "--mix", mix]);
        assert_eq!((&report["documents"]["mix"], &report["documents"]["count"]), (&mix.into(), &20.into()));
    }
}

#[test]
fn latency_is_measured_at_the_rate_that_was_asked_for() {
    let report = report(&["latency", "--documents", "40", "--repeats", "1", "--rate", "80"]);
    let latency = &report["latency"];
    assert_eq!((&latency["rate"], &latency["load"]), (&80.0.into(), &Value::Null));
    let of = |key: &str| latency[key]["median"].as_f64().unwrap();
    assert!(0.0 < of("median_ms") && of("median_ms") <= of("p99_ms") && of("p99_ms") <= of("p999_ms"), "{latency}");
}

#[test]
fn a_search_writes_settings_that_can_be_used() {
    let folder = tempdir().expect("a temporary folder");
    let tuned = folder.path().join("tuned.toml");
    let path = tuned.to_str().expect("UTF-8");
    let report = report(&["search", "--documents", "4", "--repeats", "1", "--tuned", path]);
    let trials = report["search"]["trials"].as_array().unwrap();
    let chosen: Vec<&str> = trials
        .iter()
        .filter(|trial| trial["chosen"] == true)
        .map(|trial| trial["settings"].as_str().unwrap())
        .collect();
    assert_eq!(chosen.len(), 4, "lanes, tokens, window, delay: {chosen:?}");
    let effective = cli::run(&["tag", "--config", path], "Chào Hà Nội!\n").output();
    assert_eq!(effective.lines().count(), 1);
    let settings = fs::read_to_string(&tuned).unwrap();
    for setting in chosen.iter().flat_map(|names| names.split(' ')) {
        let (key, value) = setting.split_once('=').unwrap();
        let line = format!("{} = {value}", key.split_once('.').unwrap().1);
        assert!(settings.contains(&line), "{line} in {settings}");
    }
}

#[test]
fn kafka_leaves_the_broker_as_it_was() {
    let broker = Broker::shared();
    let before = topics(broker);
    let servers = format!("kafka.bootstrap_servers={}", broker.bootstrap());
    let size = ["--documents", "120", "--repeats", "1", "--partitions", "3"];
    let report = report(&[&["kafka", "--set", &servers, "--set", "commit.interval_ms=20"], &size[..]].concat());
    assert_eq!(report["stages"][0]["stage"], "kafka");
    assert!(report["stages"][0]["documents_per_second"]["median"].as_f64().unwrap() > 0.0);
    // A broker answers before all of it knows that a topic is gone.
    let deadline = Instant::now() + Duration::from_secs(30);
    while topics(broker) != before {
        assert!(Instant::now() < deadline, "{:?}, before {before:?}", topics(broker));
    }
}

/// All topics but those of the broker itself.
fn topics(broker: &Broker) -> BTreeSet<String> {
    let consumer: BaseConsumer = broker.client().create().expect("a consumer");
    let metadata = consumer.fetch_metadata(None, Duration::from_secs(20)).expect("metadata");
    metadata.topics().iter().map(|topic| topic.name().to_owned()).filter(|name| !name.starts_with("__")).collect()
}

#[test]
fn what_cannot_be_measured_is_refused_with_the_reason() {
    cli::run(&["bench", "kafka"], "").refused(78, &["kafka.bootstrap_servers"]);
    cli::run(&["bench", "ceiling", "--text", "/nowhere/at/all"], "").refused(65, &["--text", "/nowhere/at/all"]);
    cli::run(&["bench", "ceiling", "--repeats", "0"], "").refused(2, &["--repeats"]);
    cli::run(&["bench"], "").refused(2, &["STAGE"]);
}
