//! What goes wrong with connections, as librdkafka tells it: to its calls it is all one time-out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::ConnectError;

/// How long a refusal stands before it counts: another of the bootstrap servers may be in order.
const PATIENCE: Duration = Duration::from_secs(3);

/// The last complaint about a connection, and since when brokers refuse it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trouble(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    last: Option<String>,
    refused: Option<(Instant, String)>,
}

impl Trouble {
    /// Notes an error that librdkafka reports, and logs it.
    pub(crate) fn note(&self, error: &KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        if code == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        tracing::warn!(%error, reason, "librdkafka");
        let mut noted = self.lock();
        // Says nothing of why.
        if code != Some(RDKafkaErrorCode::AllBrokersDown) {
            noted.last = Some(reason.to_owned());
        }
        if is_refusal(code, reason) {
            noted.refused.get_or_insert_with(|| (Instant::now(), reason.to_owned()));
        }
    }

    /// The last complaint.
    pub(crate) fn last(&self) -> Option<String> {
        self.lock().last.clone()
    }

    /// A refusal that no waiting mends.
    pub(crate) fn refusal(&self) -> Option<ConnectError> {
        let noted = self.lock();
        let (since, reason) = noted.refused.as_ref().filter(|(since, _)| since.elapsed() >= PATIENCE)?;
        let _ = since;
        Some(ConnectError::Refused { reason: reason.clone(), settings: settings(reason) })
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_refusal(code: Option<RDKafkaErrorCode>, reason: &str) -> bool {
    matches!(
        code,
        Some(RDKafkaErrorCode::SSL | RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed)
    ) || reason.contains("alert")
}

/// The settings that decide over a refusal.
fn settings(_reason: &str) -> &'static str {
    "kafka.*"
}

/// A client's context that knows its trouble.
pub(crate) trait Troubled {
    fn trouble(&self) -> &Trouble;
}

/// The context of a client that only reads.
#[derive(Default)]
pub(crate) struct Onlooker(Trouble);

impl Troubled for Onlooker {
    fn trouble(&self) -> &Trouble {
        &self.0
    }
}

impl ClientContext for Onlooker {
    fn error(&self, error: KafkaError, reason: &str) {
        self.0.note(&error, reason);
    }
}

impl ConsumerContext for Onlooker {}
