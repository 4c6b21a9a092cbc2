//! What consumer and producer share: the connection, and how errors are judged.

mod reader;
mod trouble;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, TopicPartitionList};

use crate::config;

pub(crate) use self::reader::{ReadError, Reader, Span, onlooker_config};
pub(crate) use self::trouble::{Onlooker, Trouble, Troubled};

/// The connection to a Kafka cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// Addresses to begin with, `host:port`, separated by commas.
    pub bootstrap_servers: String,
    /// Name of this client in the broker's logs and quotas.
    pub client_id: String,
    /// Properties of librdkafka for all clients: security, above all.
    pub properties: BTreeMap<String, String>,
}

impl Connection {
    /// A client configuration with `properties` on top of the connection's.
    pub fn client(&self, properties: &BTreeMap<String, String>) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap_servers).set("client.id", &self.client_id);
        for (key, value) in self.properties.iter().chain(properties) {
            config.set(key, value);
        }
        config
    }

    /// No broker answered for `waited`.
    pub(crate) fn unavailable(&self, waited: Duration, reason: String) -> ConnectError {
        ConnectError::Unavailable { servers: self.bootstrap_servers.clone(), waited, reason }
    }
}

/// Where the consumer's group stands in each of these partitions.
///
/// # Errors
/// When the offset of any is not known in time.
pub(crate) fn committed<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: TopicPartitionList,
    patience: Duration,
) -> Result<TopicPartitionList, KafkaError> {
    let committed = consumer.committed_offsets(partitions, patience)?;
    committed.elements().iter().try_for_each(|element| element.error())?;
    Ok(committed)
}

/// How long one request for metadata may take: between two, what librdkafka has to complain of is heard.
const METADATA: Duration = Duration::from_millis(500);

/// Number of partitions of a topic, asked for until `deadline`.
pub(crate) fn partition_count<C: ConsumerContext + Troubled>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    setting: &'static str,
    deadline: Instant,
    unavailable: impl Fn(String) -> ConnectError,
) -> Result<i32, ConnectError> {
    let trouble = consumer.context().trouble();
    loop {
        let left = left(deadline);
        let metadata = match consumer.fetch_metadata(Some(topic), left.min(METADATA)) {
            Ok(metadata) => metadata,
            Err(error) => {
                // Errors of the connection come out of a poll, one at a time, and of nothing else.
                while consumer.poll(Duration::from_millis(10)).is_some() {}
                let is_last = left <= METADATA;
                if let Some(refused) = trouble.refusal(is_last) {
                    return Err(refused);
                }
                if !is_last {
                    continue;
                }
                return Err(unavailable(trouble.last().unwrap_or_else(|| error.to_string())));
            }
        };
        let Some(found) = metadata.topics().first() else {
            return Err(ConnectError::NoTopic(topic.to_owned(), setting));
        };
        match found.error().map(RDKafkaErrorCode::from) {
            None if !found.partitions().is_empty() => return Ok(found.partitions().len() as i32),
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) | None => {
                return Err(ConnectError::NoTopic(topic.to_owned(), setting));
            }
            Some(RDKafkaErrorCode::LeaderNotAvailable) if !left.is_zero() => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Some(error) => return Err(unavailable(format!("topic {topic:?}: {error}"))),
        }
    }
}

/// Kafka cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No broker answered.
    #[error(
        "no broker at {servers} answered within {} s: {reason}; check kafka.bootstrap_servers and \
         kafka.security_protocol", waited.as_secs_f32()
    )]
    Unavailable {
        /// As set in `kafka.bootstrap_servers`.
        servers: String,
        /// How long it was tried.
        waited: Duration,
        /// The last error.
        reason: String,
    },
    /// A broker and this client do not trust each other.
    #[error("connection refused: {reason}; {advice}")]
    Refused {
        /// What librdkafka says.
        reason: String,
        /// What to do, with the settings that decide it.
        advice: &'static str,
    },
    /// A topic does not exist.
    #[error("topic {0:?} does not exist: create it, or set {1}")]
    NoTopic(String, &'static str),
    /// librdkafka refused the settings.
    #[error("kafka settings: {0}")]
    Config(String),
}

impl ConnectError {
    /// librdkafka refuses to make a client.
    pub(crate) fn config(error: &KafkaError) -> Self {
        Self::Config(without_value(error))
    }
}

/// Why librdkafka refuses to make a client, with the setting where there is one, and without the value: it might be a
/// secret under a property's name that is misspelt.
pub(crate) fn without_value(error: &KafkaError) -> String {
    let reason = match error {
        KafkaError::ClientConfig(_, reason, property, value) if !value.is_empty() => {
            format!("{property}: {}", reason.replace(value.as_str(), "***"))
        }
        other => other.to_string(),
    };
    match config::setting_of(|property| reason.contains(property)) {
        Some(setting) => format!("{setting}: {reason}"),
        None => reason,
    }
}

/// The time until `deadline`.
pub(crate) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Whether a producer was refused because another has taken its name, or its transaction lived too long.
pub(crate) fn is_fenced(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
    matches!(error.rdkafka_error_code(), Some(Fenced | ProducerFenced | InvalidProducerEpoch))
}

/// What to do about an error of a transactional producer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The producer is of no more use, and no other may take its place.
    Fatal,
    /// The producer is of no more use, and a new one settles what it left: the broker knows of another state of its
    /// transaction, as after a restart.
    Broken,
    /// Abort the transaction, then try it again.
    Abort,
    /// The same call may be repeated.
    Repeat,
}

/// Judges an error by what librdkafka says of it.
pub(crate) fn judge(error: &KafkaError) -> Verdict {
    match error {
        KafkaError::Transaction(e) if e.is_fatal() && e.code() == RDKafkaErrorCode::InvalidTransactionalState => {
            Verdict::Broken
        }
        KafkaError::Transaction(e) if e.is_fatal() => Verdict::Fatal,
        KafkaError::Transaction(e) if e.txn_requires_abort() => Verdict::Abort,
        KafkaError::Transaction(e) if e.is_retriable() => Verdict::Repeat,
        _ => match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced) => {
                Verdict::Fatal
            }
            _ => Verdict::Abort,
        },
    }
}
