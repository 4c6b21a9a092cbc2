//! Workers that follow a control topic, and what they say in the status topic.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use tempfile::TempDir;
use vitag::manifest::sha256_file;

use crate::common::broker::{Broker, Message};
use crate::common::worker::{SOON, Stream, Worker, wait_until};

/// A stream with the topics of rollouts, and the cache that its workers share.
pub(crate) struct Fleet<'b> {
    pub(crate) stream: Stream<'b>,
    pub(crate) prefix: String,
    cache: TempDir,
    said: Mutex<Option<Said>>,
}

/// The status topic, read as it grows.
struct Said {
    consumer: BaseConsumer,
    topic: String,
    /// The offset after the last message that was read.
    next: i64,
    last: BTreeMap<String, Value>,
}

impl Said {
    fn follow(broker: &Broker, topic: &str) -> Self {
        let mut config = broker.client();
        config.set("group.id", "unused").set("enable.auto.commit", "false").set("fetch.wait.max.ms", "20");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
        consumer.assign(&partitions).unwrap();
        Self { consumer, topic: topic.to_owned(), next: 0, last: BTreeMap::new() }
    }

    /// Reads up to the end as it is now: workers write all the time.
    fn read(&mut self) -> &BTreeMap<String, Value> {
        let (_, end) = self.consumer.fetch_watermarks(&self.topic, 0, SOON).unwrap();
        while self.next < end {
            let message = self.consumer.poll(SOON).expect("the status topic has more").unwrap();
            self.next = message.offset() + 1;
            let key = std::str::from_utf8(message.key().unwrap()).unwrap();
            let instance = key.split_once('/').unwrap().0.to_owned();
            match message.payload() {
                Some(value) => drop(self.last.insert(instance, serde_json::from_slice(value).unwrap())),
                None => drop(self.last.remove(&instance)),
            }
        }
        &self.last
    }
}

impl<'b> Fleet<'b> {
    pub(crate) fn new(broker: &'b Broker, partitions: i32) -> Self {
        let fleet = Self::without_topics(broker, partitions);
        fleet.create_topics();
        fleet
    }

    pub(crate) fn without_topics(broker: &'b Broker, partitions: i32) -> Self {
        let stream = Stream::new(broker, partitions);
        let prefix = format!("{}.models", stream.group);
        Self { stream, prefix, cache: TempDir::new().unwrap(), said: Mutex::default() }
    }

    pub(crate) fn create_topics(&self) {
        for topic in [self.control(), self.status()] {
            self.stream.broker.create_topic_with(&topic, 1, &[("cleanup.policy", "compact")]);
        }
    }

    pub(crate) fn control(&self) -> String {
        format!("{}.control", self.prefix)
    }

    fn status(&self) -> String {
        format!("{}.status", self.prefix)
    }

    /// The settings that make a worker follow the topics.
    pub(crate) fn settings(&self) -> Vec<String> {
        vec![
            format!("rollout.topic_prefix={}", self.prefix),
            format!("rollout.cache_dir={}", self.cache.path().display()),
            "rollout.keep_previous_ms=0".into(),
            "rollout.status_interval_ms=500".into(),
            "model.device=cpu".into(),
        ]
    }

    pub(crate) fn worker(&self, instance: &str, settings: &[&str], env: &[(&str, &str)]) -> Worker {
        let own = self.settings();
        let all: Vec<&str> = own.iter().map(String::as_str).chain(settings.iter().copied()).collect();
        self.stream.worker_with(instance, &all, env)
    }

    /// Writes a desired state.
    pub(crate) fn desire(&self, desired: &Value) {
        self.write(Message::new(desired.to_string()));
    }

    pub(crate) fn write(&self, message: Message) {
        self.stream.broker.produce(&self.control(), [message.key("default")]);
    }

    /// What every worker said last.
    pub(crate) fn statuses(&self) -> BTreeMap<String, Value> {
        let mut said = self.said.lock().unwrap();
        said.get_or_insert_with(|| Said::follow(self.stream.broker, &self.status())).read().clone()
    }

    /// Waits until these workers are in this state with the generation; returns what they say.
    #[track_caller]
    pub(crate) fn wait_for(&self, instances: &[&str], generation: u64, state: &str) -> Vec<Value> {
        let mut found = Vec::new();
        wait_until(&format!("{instances:?} to be {state} at generation {generation}"), || {
            let statuses = self.statuses();
            found = instances.iter().filter_map(|instance| statuses.get(*instance).cloned()).collect();
            let is_there = |status: &Value| status["generation"] == generation && status["state"] == state;
            if let Some(other) =
                found.iter().find(|s| s["generation"] == generation && is_final(s) && s["state"] != state)
            {
                panic!("{other:#}");
            }
            let all = found.len() == instances.len() && found.iter().all(is_there);
            if !all {
                // Who looks all the time takes it from the workers.
                std::thread::sleep(Duration::from_millis(80));
            }
            all
        });
        found
    }
}

fn is_final(status: &Value) -> bool {
    ["ready", "failed", "rolled_back"].iter().any(|state| status["state"] == *state)
}

/// A model in a folder, as a message names it.
pub(crate) fn target(dir: &Path) -> Value {
    target_at(dir, &format!("file://{}", dir.display()))
}

/// The model of a folder, at another place.
pub(crate) fn target_at(dir: &Path, uri: &str) -> Value {
    let manifest = dir.join("manifest.json");
    let version = serde_json::from_slice::<Value>(&std::fs::read(&manifest).unwrap()).unwrap()["version"].clone();
    json!({ "version": version, "uri": uri, "sha256": sha256_file(&manifest).unwrap() })
}

pub(crate) fn desired(generation: u64, stable: &Value) -> Value {
    json!({ "spec_version": 1, "generation": generation, "stable": stable })
}
