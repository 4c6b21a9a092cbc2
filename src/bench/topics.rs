//! Topics of a run's own, which go with it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};
use tokio::runtime::Runtime;

use super::BenchError;
use crate::config::Settings;
use crate::kafka::Connection;
use crate::worker::{connection, owned};

/// How long the broker may take for what is asked of it.
const REQUEST: Duration = Duration::from_secs(30);

/// The topics of one run. Dropping it removes them, and the group.
pub(super) struct Topics {
    pub(super) input: String,
    pub(super) output: String,
    pub(super) dead_letters: String,
    pub(super) group: String,
    pub(super) partitions: i32,
    pub(super) connection: Connection,
    pub(super) consumer_properties: BTreeMap<String, String>,
    admin: AdminClient<DefaultClientContext>,
    runtime: Runtime,
}

impl Topics {
    pub(super) fn create(settings: &Settings, partitions: i32) -> Result<Self, BenchError> {
        if settings.kafka.bootstrap_servers.is_empty() {
            return Err(BenchError::NoBroker);
        }
        let connection = connection(settings);
        let group = name();
        let topics = Self {
            input: format!("{group}.in"),
            output: format!("{group}.out"),
            dead_letters: format!("{group}.dead-letters"),
            group,
            partitions,
            consumer_properties: owned(&settings.kafka.consumer_properties),
            admin: connection.client(&BTreeMap::new()).create()?,
            connection,
            runtime: tokio::runtime::Builder::new_current_thread().build()?,
        };
        // The broker's default, as whoever creates topics without a thought has it.
        let topic = |name| NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
        let wanted = topics.names().map(topic);
        let made = topics.runtime.block_on(topics.admin.create_topics(&wanted, &options()));
        let results = made.map_err(|e| topics.unavailable(&e))?;
        match results.into_iter().find_map(Result::err) {
            Some((topic, code)) => Err(BenchError::Topic { topic, code }),
            None => Ok(topics),
        }
    }

    /// Writes documents to the input, to each partition in turn.
    pub(super) fn feed(&self, documents: &[String]) -> Result<(), BenchError> {
        let producer: ThreadedProducer<_> = self.connection.client(&BTreeMap::new()).set("linger.ms", "5").create()?;
        for (number, document) in documents.iter().enumerate() {
            let key = number.to_string();
            let partition = (number % self.partitions as usize) as i32;
            let mut record = BaseRecord::to(&self.input).partition(partition).key(&key).payload(document);
            while let Err((error, returned)) = producer.send(record) {
                if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                    return Err(error.into());
                }
                std::thread::sleep(Duration::from_millis(10));
                record = returned;
            }
        }
        Ok(producer.flush(REQUEST)?)
    }

    fn names(&self) -> [&str; 3] {
        [&self.input, &self.output, &self.dead_letters]
    }

    fn unavailable(&self, error: &KafkaError) -> BenchError {
        BenchError::Connect(self.connection.unavailable(REQUEST, error.to_string()))
    }
}

impl Drop for Topics {
    fn drop(&mut self) {
        let removed = self.runtime.block_on(self.admin.delete_topics(&self.names(), &options()));
        if let Err(error) = removed {
            tracing::warn!(%error, topics = ?self.names(), "topics of the bench are left behind");
        }
        // A group that is still coming apart goes by itself, once its offsets expire.
        let _ = self.runtime.block_on(self.admin.delete_groups(&[&self.group], &options()));
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(REQUEST)).operation_timeout(Some(REQUEST))
}

/// A name that nobody else has.
fn name() -> String {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    format!("vitag-bench-{}-{}-{run}", now.as_millis(), std::process::id())
}
