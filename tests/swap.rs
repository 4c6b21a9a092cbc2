//! Versions that change while the stream runs: each record is tagged by the version that it names, and the old one goes.

#![cfg(feature = "worker")]

#[path = "common/model.rs"]
mod model;
#[path = "common/versions.rs"]
mod versions;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use vitag::commit::Report;
use vitag::config::{Settings, Sources};
use vitag::encode::Annotation;
use vitag::pipeline::{self, Monitor};
use vitag::record::Partition;
use vitag::serving::{Canary, Loader, Routes, Serving, Slot, Version, place};
use vitag::sink::{Finished, Outcome, Sink, SinkError};
use vitag::source::{Intake, Message, Source, SourceError, StopSignal};
use vitag::worker::{loader, pipeline_options};

/// Texts of many lengths, some of several windows, each with persons and places.
fn text(n: usize) -> String {
    let sentence = "Bác sĩ Tôn Thất Tùng sinh tại Thanh Hóa và mất ở Hà Nội năm 1982. ";
    let long = "Trần Hưng Đạo đi từ Huế ra Hà Nội và ".repeat(40);
    match n % 20 {
        19 => format!("{long}{sentence}"),
        short => sentence.repeat(1 + short % 5),
    }
}

/// Admits records until it is told that there are enough.
struct Endless {
    enough: Arc<AtomicBool>,
}

impl Source for Endless {
    fn run(self: Box<Self>, mut intake: Intake, stop: &StopSignal) -> Result<(), SourceError> {
        let partition = Partition { topic: "in".into(), id: 0 };
        intake.assign(partition.clone());
        let mut next = 0;
        while !stop.is_abandoned() && !self.enough.load(Ordering::Relaxed) {
            if intake.total_bytes() > 2 << 20 {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let value = serde_json::json!({ "id": next, "text": text(next) }).to_string();
            let key = Some(Bytes::from(format!("key-{next}")));
            let message =
                Message { offset: next as i64, key, value: Some(value.into()), headers: vec![], timestamp_ms: None };
            intake.admit(&partition, message).map_err(|_| SourceError("the pipeline has stopped".into()))?;
            next += 1;
        }
        let done = intake.drain(std::slice::from_ref(&partition), Duration::from_secs(600));
        let _ = done.recv();
        intake.release(&[partition]);
        Ok(())
    }
}

#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<(i64, Annotation)>>>);

impl Sink for Collected {
    fn publish(&mut self, records: &[&Finished], _: &[(Partition, i64)]) -> Result<(), SinkError> {
        for record in records {
            let Outcome::Output(bytes) = &record.payload.outcome else { panic!("refused: {record:?}") };
            self.0.lock().unwrap().push((record.position.offset, serde_json::from_slice(bytes).unwrap()));
        }
        Ok(())
    }
}

fn settings(more: &[&str]) -> Settings {
    let sets = ["lanes.count=2", "commit.interval_ms=5", "model.device=cpu"];
    let sets = sets.iter().chain(more).map(|&set| set.to_owned()).collect();
    Settings::load(&Sources { file: None, env: vec![("HOSTNAME".into(), "test".into())], sets }).unwrap()
}

/// Runs a stream over `serving` while `meanwhile` does what it does; returns what came out.
fn stream(serving: &Serving, settings: &Settings, meanwhile: impl FnOnce(&Collected) + Send) -> Vec<(i64, Annotation)> {
    let (enough, collected, stop) = (Arc::new(AtomicBool::new(false)), Collected::default(), StopSignal::default());
    let monitor = Monitor::disabled();
    let report = Report::new(monitor.metrics.clone(), "", None);
    std::thread::scope(|scope| {
        let (ended, sink) = (enough.clone(), collected.clone());
        scope.spawn(move || {
            let _end = Finally(|| ended.store(true, Ordering::Relaxed));
            meanwhile(&sink);
        });
        let source = Box::new(Endless { enough });
        let options = pipeline_options(settings);
        pipeline::run(source, collected.clone(), serving, &options, (&monitor, report), &stop).unwrap();
    });
    std::mem::take(&mut *collected.0.lock().unwrap())
}

/// Ends the stream even where a check has failed.
struct Finally<F: Fn()>(F);

impl<F: Fn()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn wait_for(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Start, end and label of an entity.
type Mark = (usize, usize, String);

/// The entities of the texts, by number.
type Reference = BTreeMap<usize, Vec<Mark>>;

fn entities(annotation: &Annotation) -> Vec<Mark> {
    annotation.entities.iter().map(|entity| (entity.start, entity.end, entity.label.clone())).collect()
}

/// The entities of the texts, by a version that is served alone.
fn reference(loader: &Loader, dir: &Path) -> Reference {
    let serving = Serving::of(loader.load("default", dir, loader.lanes()).unwrap());
    let enough = |seen: &Collected| wait_for(|| seen.0.lock().unwrap().len() >= 20);
    let records = stream(&serving, &settings(&[]), enough);
    records.iter().take(20).map(|(offset, annotation)| (*offset as usize, entities(annotation))).collect()
}

/// Each record came once and in order, with the entities that the version that it names finds in its text.
fn check(records: &[(i64, Annotation)], references: &BTreeMap<String, Reference>) {
    assert!(records.iter().map(|(offset, _)| *offset).eq(0..records.len() as i64), "each once, in order");
    for (offset, annotation) in records {
        let expected = &references[&annotation.models[0].version][&(*offset as usize % 20)];
        assert_eq!(entities(annotation), *expected, "record {offset} by {}", annotation.models[0].version);
    }
}

/// Waits until nobody else holds the version, and frees it.
fn retire(version: Arc<Version>) {
    wait_for(|| Arc::strong_count(&version) == 1);
}

#[test]
fn records_are_tagged_by_the_version_that_they_name_while_it_changes() {
    changes_are_seen(&settings(&[]));
}

/// The texts are few and come again and again, so after each change the cache is full of tags by the other model.
#[test]
fn a_cache_gives_no_version_the_tags_of_another() {
    changes_are_seen(&settings(&["cache.max_bytes=10000000"]));
}

fn changes_are_seen(settings: &Settings) {
    let contrary = versions::contrary("0.2.0");
    let dirs = [model::original(), contrary.path().to_owned()];
    let loader = loader(settings, &Monitor::disabled().metrics).unwrap();
    let versions = ["0.1.0", "0.2.0"].map(str::to_owned);
    let references = versions.iter().cloned().zip(dirs.iter().map(|dir| reference(&loader, dir))).collect();
    let serving = Serving::of(loader.load("default", &dirs[0], loader.lanes()).unwrap());
    let records = stream(&serving, settings, |seen| {
        for round in 1..=8 {
            let next = loader.load("default", &dirs[round % 2], loader.lanes()).unwrap();
            next.warm_up(256).unwrap();
            let before = seen.0.lock().unwrap().len();
            let old = serving.slots()[0].route(Routes::to(next));
            retire(old.stable.expect("one has served"));
            wait_for(|| seen.0.lock().unwrap().len() > before + 20);
        }
    });
    check(&records, &references);
    let mut runs: Vec<&str> = records.iter().map(|(_, annotation)| annotation.models[0].version.as_str()).collect();
    runs.dedup();
    assert!(runs.len() >= 9, "eight changes were seen: {runs:?}");
}

#[test]
fn a_canary_takes_the_same_keys_every_time_and_records_wait_while_nothing_serves() {
    let contrary = versions::contrary("0.2.0");
    let settings = settings(&[]);
    let loader = loader(&settings, &Monitor::disabled().metrics).unwrap();
    let stable = loader.load("default", &model::original(), loader.lanes()).unwrap();
    let canary = loader.load("default", contrary.path(), loader.lanes()).unwrap();
    let both = || Routes {
        stable: Some(stable.clone()),
        canary: Some(Canary { version: canary.clone(), weight_percent: 30.0 }),
        compare: None,
    };
    let serving = Serving::new([Slot::default()]);
    let records = stream(&serving, &settings, |seen| {
        serving.slots()[0].route(both());
        wait_for(|| seen.0.lock().unwrap().len() > 200);
        // Nobody serves: what comes waits.
        serving.slots()[0].route(Routes::default());
        wait_for(|| Arc::strong_count(&stable) == 1 && Arc::strong_count(&canary) == 1);
        let standing = seen.0.lock().unwrap().len();
        serving.slots()[0].route(both());
        wait_for(|| seen.0.lock().unwrap().len() > standing + 200);
    });
    let by_canary = |(_, annotation): &&(i64, Annotation)| annotation.models[0].version == "0.2.0";
    let taken: BTreeSet<i64> = records.iter().filter(by_canary).map(|(offset, _)| *offset).collect();
    let expected = (0..records.len() as i64).filter(|n| place(format!("key-{n}").as_bytes()) < 30.0).collect();
    assert_eq!(taken, expected);
}
