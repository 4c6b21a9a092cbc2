//! What goes wrong with connections, as librdkafka tells it: to its calls it is all one time-out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::ConnectError;

/// How long a refusal stands before it counts: another of the bootstrap servers may be in order.
const PATIENCE: Duration = Duration::from_secs(3);

/// Reasons by which a connection is refused, and the settings that decide it.
const REFUSALS: [(&str, &str); 4] = [
    (
        "certificate verify failed",
        "kafka.ssl_ca_file must hold the authority of the broker's certificate, and kafka.bootstrap_servers a name or \
         address that is in the certificate",
    ),
    (
        " alert ",
        "kafka.ssl_certificate_file and kafka.ssl_key_file must be a certificate that the broker trusts and that has \
         not expired",
    ),
    ("SASL", "check kafka.sasl_username, kafka.sasl_password_file and kafka.sasl_mechanism"),
    ("SSL", "check kafka.security_protocol: the listener seems to speak another"),
];

/// The last complaint about a connection, and since when brokers refuse it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trouble(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    last: Option<String>,
    refused: Option<(Instant, String)>,
}

impl Trouble {
    /// Notes an error that librdkafka reports; its log has it too.
    pub(crate) fn note(&self, error: &KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        tracing::debug!(%error, reason, "librdkafka reports an error");
        // Neither says why.
        if matches!(code, Some(Code::PartitionEOF | Code::AllBrokersDown)) {
            return;
        }
        let mut noted = self.lock();
        noted.last = Some(reason.to_owned());
        let is_refused = matches!(code, Some(Code::SSL | Code::Authentication | Code::SaslAuthenticationFailed))
            // With TLS 1.3 the broker looks at the client's certificate when the client thinks that all is well.
            || reason.contains("SSL routines");
        if is_refused {
            noted.refused.get_or_insert_with(|| (Instant::now(), reason.to_owned()));
        }
    }

    /// The last complaint.
    pub(crate) fn last(&self) -> Option<String> {
        self.lock().last.clone()
    }

    /// A refusal that no waiting mends; `is_last`, if there is no time left to wait.
    pub(crate) fn refusal(&self, is_last: bool) -> Option<ConnectError> {
        let noted = self.lock();
        let (_, reason) = noted.refused.as_ref().filter(|(since, _)| is_last || since.elapsed() >= PATIENCE)?;
        let advice = REFUSALS.iter().find(|(part, _)| reason.contains(part)).map_or("", |(_, advice)| *advice);
        Some(ConnectError::Refused { reason: reason.clone(), advice })
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
