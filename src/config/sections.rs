//! The settings themselves, a struct a section; the doc of a field is its line in the reference.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::choices::{
    AssignmentStrategy, Compression, Delivery, GroupProtocol, OffsetReset, OnLowMemory, OutputMode, Partitioner,
    SaslMechanism, SecurityProtocol,
};
use super::secret::{Properties, Secret};
use crate::decode::{self, DecodeOptions};
use crate::encode::OffsetUnit;
use crate::infer::Device;
use crate::manifest::Variant;
use crate::telemetry::LogFormat;

/// A day, the longest time a timeout may have.
const DAY_MS: u64 = 86_400_000;

/// The process as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Worker {
    /// Name of this worker, stable over restarts and unique in the group; the host name if empty.
    pub instance: String,
    /// What a restart may do to a record.
    pub delivery: Delivery,
    /// Longest time a shutdown or a revoked partition may take to finish its records, in milliseconds.
    #[schemars(range(min = 1, max = DAY_MS))]
    pub drain_timeout_ms: u64,
    /// Longest wait for the brokers at the start, in milliseconds.
    #[schemars(range(min = 1, max = DAY_MS))]
    pub startup_timeout_ms: u64,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            instance: String::new(),
            delivery: Delivery::default(),
            drain_timeout_ms: 30_000,
            startup_timeout_ms: 30_000,
        }
    }
}

/// What comes in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Input {
    /// Topics to read; `vitag run` needs at least one.
    pub topics: Vec<String>,
    /// What a message value holds.
    pub format: decode::Format,
    /// JSON pointer (RFC 6901) to the text.
    pub text_pointer: String,
    /// JSON pointer to the document's id; none if empty.
    pub id_pointer: Option<String>,
    /// JSON pointer to an array of words, tagged instead of the text where it leads to a value; none if empty.
    pub words_pointer: Option<String>,
    /// Longest text accepted, in bytes of UTF-8.
    #[schemars(range(min = 1))]
    pub max_text_bytes: usize,
    /// What happens to a longer one.
    pub on_too_large: decode::OnTooLarge,
}

impl Default for Input {
    fn default() -> Self {
        Self {
            topics: Vec::new(),
            format: decode::Format::default(),
            text_pointer: "/text".into(),
            id_pointer: Some("/id".into()),
            words_pointer: None,
            max_text_bytes: 262_144,
            on_too_large: decode::OnTooLarge::default(),
        }
    }
}

impl Input {
    /// The options of the decoding stage.
    pub fn decode_options(&self) -> DecodeOptions {
        DecodeOptions {
            format: self.format,
            text_pointer: self.text_pointer.clone(),
            id_pointer: self.id_pointer.clone(),
            words_pointer: self.words_pointer.clone(),
            max_text_bytes: self.max_text_bytes,
            on_too_large: self.on_too_large,
        }
    }
}

/// What goes out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Output {
    /// Topic of the annotations; `vitag run` needs it.
    pub topic: Option<String>,
    /// Topic of the records that could not be tagged; `<output.topic>.dead-letters` if empty.
    pub dead_letter_topic: Option<String>,
    /// What an output value is.
    pub mode: OutputMode,
    /// Key of the annotation in the input object, for the mode `merge`.
    pub merge_key: String,
    /// What offsets in an annotation count.
    pub offset_unit: OffsetUnit,
    /// Largest output value, in bytes; an annotation larger than this becomes a dead letter.
    #[schemars(range(min = 1))]
    pub max_record_bytes: usize,
}

impl Default for Output {
    fn default() -> Self {
        Self {
            topic: None,
            dead_letter_topic: None,
            mode: OutputMode::default(),
            merge_key: "annotation".into(),
            offset_unit: OffsetUnit::default(),
            max_record_bytes: 1_000_000,
        }
    }
}

/// The brokers and how to speak to them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Kafka {
    /// Brokers to start from, as `host:port`; `vitag run` needs at least one.
    pub bootstrap_servers: Vec<String>,
    /// Consumer group; the workers of one group share the partitions.
    pub group_id: String,
    /// Whether a restart within the session timeout keeps its partitions, by the name in `worker.instance`; for
    /// `group_protocol = "classic"`, as with `consumer` the broker refuses a name until the session of the dead is over.
    pub static_membership: bool,
    /// Silence after which the group takes a worker for dead, in milliseconds; for `group_protocol = "classic"`, as
    /// with `consumer` the broker sets it.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub session_timeout_ms: u64,
    /// Longest time between two polls before a worker loses its partitions, in milliseconds.
    #[schemars(range(min = 1, max = DAY_MS))]
    pub max_poll_interval_ms: u64,
    /// Longest time a transaction may stay open before the broker aborts it, in milliseconds. A transactional producer
    /// waits as long for an answer, whatever `socket.timeout.ms` says.
    #[schemars(range(min = 1_000, max = 2_147_483_647))]
    pub transaction_timeout_ms: u64,
    /// Where a group without a committed offset starts.
    pub auto_offset_reset: OffsetReset,
    /// Who computes the group's assignment: the members (`classic`) or the broker (`consumer`, KIP-848).
    pub group_protocol: GroupProtocol,
    /// How partitions are spread over the members, for `group_protocol = "classic"`.
    pub assignment_strategy: AssignmentStrategy,
    /// How the worker speaks to the brokers.
    pub security_protocol: SecurityProtocol,
    /// How name and password are proved, for the protocols `sasl_*`.
    pub sasl_mechanism: Option<SaslMechanism>,
    /// Name for SASL.
    pub sasl_username: Option<String>,
    /// Password for SASL; a secret.
    pub sasl_password: Option<Secret>,
    /// File that holds the password for SASL, instead of `sasl_password`.
    pub sasl_password_file: Option<PathBuf>,
    /// File of the certificate authorities to trust (PEM); the system's if empty.
    pub ssl_ca_file: Option<PathBuf>,
    /// File of the client's certificate (PEM).
    pub ssl_certificate_file: Option<PathBuf>,
    /// File of the client's private key (PEM).
    pub ssl_key_file: Option<PathBuf>,
    /// Password of the private key; a secret.
    pub ssl_key_password: Option<Secret>,
    /// File that holds the password of the private key, instead of `ssl_key_password`.
    pub ssl_key_password_file: Option<PathBuf>,
    /// How produced batches are compressed.
    pub compression: Compression,
    /// How an output's key picks its partition; the default agrees with the Java client.
    pub partitioner: Partitioner,
    /// Properties of librdkafka for every client.
    pub properties: Properties,
    /// Properties of librdkafka for the consumer; win over `properties`.
    pub consumer_properties: Properties,
    /// Properties of librdkafka for the producer; win over `properties`.
    pub producer_properties: Properties,
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            bootstrap_servers: Vec::new(),
            group_id: "vitag".into(),
            static_membership: true,
            session_timeout_ms: 45_000,
            max_poll_interval_ms: 300_000,
            transaction_timeout_ms: 60_000,
            auto_offset_reset: OffsetReset::default(),
            group_protocol: GroupProtocol::default(),
            assignment_strategy: AssignmentStrategy::default(),
            security_protocol: SecurityProtocol::default(),
            sasl_mechanism: None,
            sasl_username: None,
            sasl_password: None,
            sasl_password_file: None,
            ssl_ca_file: None,
            ssl_certificate_file: None,
            ssl_key_file: None,
            ssl_key_password: None,
            ssl_key_password_file: None,
            compression: Compression::default(),
            partitioner: Partitioner::default(),
            properties: Properties::default(),
            consumer_properties: Properties::default(),
            producer_properties: Properties::default(),
        }
    }
}

/// The model and what runs it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// Directory of the model, the one with its `manifest.json`.
    pub path: PathBuf,
    /// Directories of several models by the slots that they serve, in place of `path`: every record is tagged by all of them.
    /// No two may have one task.
    pub slots: BTreeMap<String, PathBuf>,
    /// Which of its graphs runs.
    pub variant: Variant,
    /// Where it runs: `auto`, `cpu`, `cuda:N` or `tensorrt:N`; a device that is named and missing is an error.
    #[schemars(with = "String")]
    pub device: Device,
    /// Options of CUDA or TensorRT by the names that ONNX Runtime has for them, such as `gpu_mem_limit`; of a device that is
    /// named.
    pub provider_options: BTreeMap<String, String>,
    /// File of the ONNX Runtime library; if empty, `ORT_DYLIB_PATH`, or without that the first found in the set-up's
    /// folder, the executable's folder, its `lib`, `/usr/local/lib` and `/usr/lib`.
    pub runtime_library: Option<PathBuf>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            path: "models/vi-tagger/0.1.0".into(),
            slots: BTreeMap::new(),
            variant: Variant::default(),
            device: Device::default(),
            provider_options: BTreeMap::new(),
            runtime_library: None,
        }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.slots.is_empty() {
            return self.path.display().fmt(f);
        }
        let slots: Vec<_> = self.slots.iter().map(|(slot, path)| format!("{slot}={}", path.display())).collect();
        f.write_str(&slots.join(" "))
    }
}

impl Model {
    /// Serves one model and no other, whatever was set.
    pub fn serve_only(&mut self, path: PathBuf) {
        self.slots.clear();
        self.path = path;
    }
}

/// How sequences are put together for one run of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Batch {
    /// Most tokens in the padded view of a batch (its sequences times the longest of them).
    #[schemars(range(min = 1))]
    pub max_tokens: usize,
    /// Most sequences in a batch.
    #[schemars(range(min = 1))]
    pub max_sequences: usize,
    /// Largest share of padding in the padded view of a batch, 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_padding: f64,
    /// Longest time a sequence waits for company, in milliseconds; it waits less where none is to be expected by the pace of
    /// the stream, and not at all where enough is there.
    #[schemars(range(max = DAY_MS))]
    pub max_wait_ms: u64,
    /// Waiting tokens that are looked over for sequences of like length.
    #[schemars(range(min = 1))]
    pub sort_window_tokens: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self { max_tokens: 512, max_sequences: 64, max_padding: 0.15, max_wait_ms: 20, sort_window_tokens: 8_192 }
    }
}

/// Tags of texts that came before, for streams that repeat themselves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// Most bytes that they take, the least used go first; 0 keeps none.
    pub max_bytes: usize,
}

/// The threads that compute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Lanes {
    /// Sessions of ONNX Runtime side by side; 0 for one a core.
    #[schemars(range(max = 1_024))]
    pub count: usize,
    /// Threads of one session.
    #[schemars(range(min = 1, max = 1_024))]
    pub threads: usize,
    /// Threads that decode and tokenise.
    #[schemars(range(min = 1, max = 1_024))]
    pub tokenize_threads: usize,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { count: 0, threads: 1, tokenize_threads: 1 }
    }
}

/// How much may be under way before reading pauses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Intake {
    /// Most bytes in flight over all partitions: inputs, and outputs twice, as librdkafka holds a copy of each; an output
    /// that is not made yet counts as what is to be expected of its input.
    #[schemars(range(min = 1))]
    pub max_bytes: usize,
    /// Bytes in flight at which a partition pauses.
    #[schemars(range(min = 1))]
    pub partition_high_bytes: usize,
    /// Bytes in flight at which a paused partition resumes.
    pub partition_low_bytes: usize,
}

impl Default for Intake {
    fn default() -> Self {
        Self { max_bytes: 134_217_728, partition_high_bytes: 16_777_216, partition_low_bytes: 8_388_608 }
    }
}

/// When finished records are committed: at the first of the two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Commit {
    /// Longest time between commits, in milliseconds.
    #[schemars(range(min = 1, max = DAY_MS))]
    pub interval_ms: u64,
    /// Finished records that are committed without waiting for the interval.
    #[schemars(range(min = 1))]
    pub records: usize,
}

impl Default for Commit {
    fn default() -> Self {
        Self { interval_ms: 200, records: 5_000 }
    }
}

/// When dead letters are so many that something else must be wrong: the worker stops, without committing those that
/// made it stop, before the stream runs into the dead letters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Breaker {
    /// Largest share of dead letters among the last records, 0 to 1; 1 for no limit.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_ratio: f64,
    /// How many of the last records the share is taken of.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub window_records: usize,
    /// Records since the start before which no share is taken.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_records: usize,
    /// Dead letters in a row at which the worker stops; 0 for no limit.
    #[schemars(range(max = 1_000_000))]
    pub max_run: usize,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { max_ratio: 0.5, window_records: 1_000, min_records: 100, max_run: 200 }
    }
}

/// Models that change while the worker runs, by what a topic says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rollout {
    /// What the names of the topics start with: `<prefix>.control` says which model to serve, `<prefix>.status` how far
    /// each worker is; off if empty, and the worker serves `model.path`.
    pub topic_prefix: Option<String>,
    /// The slot that this worker serves: the key of its messages in the control topic. With `model.slots` only for
    /// `vitag model`: the one that is meant.
    pub slot: String,
    /// Labels of this worker, as `name=value`, for messages that select workers by them.
    pub labels: Vec<String>,
    /// Folder of fetched models; if empty, `models` in `VITAG_CACHE` or in `vitag` in the user's cache folder.
    pub cache_dir: Option<PathBuf>,
    /// Largest size of that folder, in bytes; a model in use is never removed.
    pub cache_max_bytes: u64,
    /// Largest model accepted, in bytes.
    #[schemars(range(min = 1))]
    pub max_model_bytes: u64,
    /// Most files of a model accepted.
    #[schemars(range(min = 1))]
    pub max_model_files: usize,
    /// How the URI of a model must start; anything if empty.
    pub allowed_uris: Vec<String>,
    /// Public key (Ed25519, PEM) that signatures of models are checked with.
    pub public_key_file: Option<PathBuf>,
    /// Whether a model without a signature is refused.
    pub require_signature: bool,
    /// Longest time that a store which does not answer is asked again, in milliseconds.
    #[schemars(range(min = 1, max = DAY_MS))]
    pub deadline_ms: u64,
    /// How long a model that no longer serves stays in memory, so that going back takes no time, in milliseconds.
    #[schemars(range(max = DAY_MS))]
    pub keep_previous_ms: u64,
    /// What happens where the old model and the new do not fit into memory together.
    pub on_low_memory: OnLowMemory,
    /// Longest time between two messages about this worker's state, in milliseconds.
    #[schemars(range(min = 100, max = DAY_MS))]
    pub status_interval_ms: u64,
    /// Largest share of the time that a shadow model may compute, 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub shadow_max_load: f64,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            topic_prefix: None,
            slot: crate::serving::DEFAULT_SLOT.into(),
            labels: Vec::new(),
            cache_dir: None,
            cache_max_bytes: 10 << 30,
            max_model_bytes: 4 << 30,
            max_model_files: 64,
            allowed_uris: Vec::new(),
            public_key_file: None,
            require_signature: false,
            deadline_ms: 600_000,
            keep_previous_ms: 600_000,
            on_low_memory: OnLowMemory::default(),
            status_interval_ms: 10_000,
            shadow_max_load: 0.1,
        }
    }
}

/// When a canary, or a model that serves since less than the window, is taken back by the worker itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rollback {
    /// Time over which the rules count, in milliseconds.
    #[schemars(range(min = 100, max = DAY_MS))]
    pub window_ms: u64,
    /// Records of the new model in the window before which no rule counts.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_records: u64,
    /// Largest share of dead letters among the records of the new model, 0 to 1; 1 for no limit.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_dead_letter_ratio: f64,
    /// Largest ratio of the mean time that the new model takes for a token to that of the old; 0 for no limit.
    #[schemars(range(min = 0.0, max = 1_000.0))]
    pub max_latency_ratio: f64,
    /// Smallest share of labels in which the new model agrees with the old on the records that a shadow compares, 0 to 1;
    /// 0 for no limit.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_agreement: f64,
}

impl Default for Rollback {
    fn default() -> Self {
        Self {
            window_ms: 60_000,
            min_records: 200,
            max_dead_letter_ratio: 0.2,
            max_latency_ratio: 0.0,
            min_agreement: 0.0,
        }
    }
}

/// Health and metrics over HTTP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Address to listen on, as `host:port`; off if empty.
    pub address: Option<String>,
    /// Whoever shows this as a bearer token may write desired states to the control topic by `POST /rollout/SLOT`; nobody
    /// may if it is empty; a secret.
    pub token: Option<Secret>,
    /// File that holds the token, instead of `token`.
    pub token_file: Option<PathBuf>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { address: Some("127.0.0.1:9464".into()), token: None, token_file: None }
    }
}

/// Logs, traces and metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Least severe log level, or filter directives such as `info,vitag=debug`.
    pub log_level: String,
    /// What a log line looks like; `auto` is pretty on a terminal and JSON elsewhere.
    pub log_format: LogFormat,
    /// URL of an OpenTelemetry collector (OTLP over HTTP); off if empty.
    pub otlp_endpoint: Option<String>,
    /// Longest time an export may take, in milliseconds.
    #[schemars(range(min = 1, max = DAY_MS))]
    pub otlp_timeout_ms: u64,
    /// Time between exports of metrics, in milliseconds.
    #[schemars(range(min = 1, max = DAY_MS))]
    pub metrics_interval_ms: u64,
    /// Share of records that are traced, 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub trace_sample_ratio: f64,
    /// `service.name` of the telemetry.
    pub service_name: String,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            log_level: "info".into(),
            log_format: LogFormat::default(),
            otlp_endpoint: None,
            otlp_timeout_ms: 5_000,
            metrics_interval_ms: 30_000,
            trace_sample_ratio: 0.01,
            service_name: "vitag".into(),
        }
    }
}
