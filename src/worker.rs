//! A worker from its settings: model, sessions, source and sink, and the pipeline between them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::admin::Health;
use crate::batch::BatchOptions;
use crate::commit::{BreakerOptions, CommitOptions, Report};
use crate::config::{Delivery, GroupProtocol, OffsetReset, OutputMode, Settings};
use crate::encode::{EncodeOptions, Form};
use crate::infer::{InferOptions, RuntimeError};
use crate::kafka::{ConnectError, Connection};
use crate::pipeline::{self, Monitor, PipelineError, PipelineOptions};
use crate::registry::ModelError;
use crate::rollout::{Rollout, RolloutError};
use crate::serving::{LoadOptions, Loader, Routes, Serving, Slot, Version};
use crate::sink::kafka::{KafkaSink, KafkaSinkOptions};
use crate::source::kafka::{KafkaSource, KafkaSourceOptions};
use crate::source::{IntakeOptions, StopSignal};
use crate::telemetry::Metrics;

/// A worker cannot start, or stopped before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// ONNX Runtime is not to be had.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The model cannot be served.
    #[error("{model}: {source}")]
    Model {
        /// The setting that names it, and its directory.
        model: String,
        /// Why.
        source: ModelError,
    },
    /// Kafka cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Models cannot be rolled out.
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    /// A stage failed.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
}

/// What loads models as the settings have it.
///
/// # Errors
/// When ONNX Runtime is not to be had.
pub fn loader(settings: &Settings, metrics: &Metrics) -> Result<Loader, WorkerError> {
    let options = LoadOptions {
        variant: settings.model.variant,
        infer: InferOptions {
            device: settings.model.device,
            threads: settings.lanes.threads,
            provider_options: settings.model.provider_options.clone(),
        },
        lanes: lanes(settings),
    };
    Ok(Loader::new(settings.model.runtime_library.as_deref(), options, metrics.clone())?)
}

/// Loads and verifies the model of the settings, with a session for every lane.
///
/// # Errors
/// When the device or a file of the model is missing or not what it should be.
pub fn load_model(settings: &Settings, loader: &Loader) -> Result<Arc<Version>, WorkerError> {
    let refused = |source| refused(settings, source);
    loader.load(&settings.rollout.slot, &settings.model.path, loader.lanes()).map_err(refused)
}

/// The model of these settings, those of one slot, cannot be served.
pub(crate) fn refused(settings: &Settings, source: ModelError) -> WorkerError {
    let of_slot = format!("model.slots.{}", settings.rollout.slot);
    let setting = if settings.origin(&of_slot).is_some() { of_slot } else { "model.path".to_owned() };
    WorkerError::Model { model: format!("{setting} {}", settings.model.path.display()), source }
}

/// Loads and verifies the models of all slots, and serves them.
///
/// # Errors
/// As [`load_model`], and when two of them have one task.
pub fn serve(settings: &Settings, loader: &Loader) -> Result<Serving, WorkerError> {
    let serving = slots(settings);
    for (settings, slot) in settings.slots().iter().zip(serving.slots()) {
        let version = load_model(settings, loader)?;
        serving.admits(&version).map_err(|source| refused(settings, source))?;
        slot.route(Routes::to(version));
    }
    Ok(serving)
}

/// Slots that nothing serves yet.
fn slots(settings: &Settings) -> Serving {
    Serving::new(settings.slots().iter().map(|_| Slot::default()))
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn lanes(settings: &Settings) -> usize {
    if settings.lanes.count == 0 { cores() } else { settings.lanes.count }
}

/// The options of the stages between source and sink.
pub fn pipeline_options(settings: &Settings) -> PipelineOptions {
    let form = match settings.output.mode {
        OutputMode::Envelope => Form::Envelope,
        OutputMode::Merge => Form::Merge(settings.output.merge_key.clone()),
    };
    PipelineOptions {
        decode: settings.input.decode_options(),
        tokenize_threads: settings.lanes.tokenize_threads,
        lanes: lanes(settings),
        batch: BatchOptions {
            max_tokens: settings.batch.max_tokens,
            max_sequences: settings.batch.max_sequences,
            max_padding: settings.batch.max_padding,
            max_wait: Duration::from_millis(settings.batch.max_wait_ms),
            sort_window_tokens: settings.batch.sort_window_tokens,
        },
        cache_bytes: settings.cache.max_bytes,
        encode: EncodeOptions {
            form,
            offset_unit: settings.output.offset_unit,
            max_record_bytes: settings.output.max_record_bytes,
        },
        commit: CommitOptions {
            interval: Duration::from_millis(settings.commit.interval_ms),
            records: settings.commit.records,
            breaker: BreakerOptions {
                max_ratio: settings.breaker.max_ratio,
                window_records: settings.breaker.window_records,
                min_records: settings.breaker.min_records,
                max_run: settings.breaker.max_run,
            },
        },
    }
}

/// How much may be in flight.
pub fn intake_options(settings: &Settings) -> IntakeOptions {
    IntakeOptions {
        max_bytes: settings.intake.max_bytes,
        partition_high_bytes: settings.intake.partition_high_bytes,
        partition_low_bytes: settings.intake.partition_low_bytes,
    }
}

/// Runs a worker between topics until `stop` says so.
///
/// # Errors
/// When it cannot start, or a stage fails.
pub fn run(settings: &Settings, monitor: &Monitor, health: &Health, stop: &StopSignal) -> Result<(), WorkerError> {
    let loader = loader(settings, &monitor.metrics)?;
    let (serving, _rollout) = match &settings.rollout.topic_prefix {
        None => (serve(settings, &loader)?, None),
        Some(prefix) => {
            let serving = slots(settings);
            match Rollout::start(prefix, settings, (&loader, &serving), (monitor, health), stop)? {
                None => return Ok(()),
                started => (serving, started),
            }
        }
    };
    let poll_bound = Duration::from_millis(settings.kafka.max_poll_interval_ms);
    let commit_bound = 3 * Duration::from_millis(settings.kafka.transaction_timeout_ms);
    let source = KafkaSource::connect(source_options(settings), &monitor.metrics, health.register("poll", poll_bound))?;
    let sink = KafkaSink::connect(sink_options(settings), source.consumer(), monitor.metrics.clone())?;
    let commit_beat = health.register("commit", commit_bound);
    let report = Report::new(monitor.metrics.clone(), &settings.kafka.group_id, Some(commit_beat));
    health.set_started();
    health.set_ready(true, "reading");
    let options = pipeline_options(settings);
    pipeline::run(Box::new(source), sink, &serving, &options, (monitor, report), stop)?;
    Ok(())
}

/// The cluster, from the settings.
pub(crate) fn connection(settings: &Settings) -> Connection {
    let kafka = &settings.kafka;
    let mut properties: BTreeMap<String, String> = owned(&kafka.properties);
    let mut set = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            properties.insert(key.to_owned(), value);
        }
    };
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let secret = |secret: &Option<crate::config::Secret>| secret.as_ref().map(|secret| secret.reveal().to_owned());
    set("security.protocol", Some(kafka.security_protocol.to_string()));
    set("sasl.mechanism", kafka.sasl_mechanism.map(|mechanism| mechanism.to_string()));
    set("sasl.username", kafka.sasl_username.clone());
    set("sasl.password", secret(&kafka.sasl_password));
    set("ssl.ca.location", path(&kafka.ssl_ca_file));
    set("ssl.certificate.location", path(&kafka.ssl_certificate_file));
    set("ssl.key.location", path(&kafka.ssl_key_file));
    set("ssl.key.password", secret(&kafka.ssl_key_password));
    Connection {
        bootstrap_servers: kafka.bootstrap_servers.join(","),
        client_id: settings.worker.instance.clone(),
        properties,
    }
}

/// The options of the source.
pub(crate) fn source_options(settings: &Settings) -> KafkaSourceOptions {
    let kafka = &settings.kafka;
    let mut properties = owned(&kafka.consumer_properties);
    let mut set = |key: &str, value: String| properties.insert(key.to_owned(), value);
    set(
        "auto.offset.reset",
        match kafka.auto_offset_reset {
            OffsetReset::Earliest => "earliest".into(),
            OffsetReset::Latest => "latest".into(),
            OffsetReset::Error => "error".into(),
        },
    );
    set("max.poll.interval.ms", kafka.max_poll_interval_ms.to_string());
    set("group.protocol", kafka.group_protocol.to_string());
    let is_classic = kafka.group_protocol == GroupProtocol::Classic;
    if is_classic {
        set("session.timeout.ms", kafka.session_timeout_ms.to_string());
        set("partition.assignment.strategy", kafka.assignment_strategy.to_string());
    }
    KafkaSourceOptions {
        connection: connection(settings),
        topics: settings.input.topics.clone(),
        group_id: kafka.group_id.clone(),
        group_instance_id: (is_classic && kafka.static_membership).then(|| settings.worker.instance.clone()),
        startup_timeout: Duration::from_millis(settings.worker.startup_timeout_ms),
        drain_timeout: Duration::from_millis(settings.worker.drain_timeout_ms),
        intake: intake_options(settings),
        properties,
        bounds: None,
    }
}

/// The options of the sink.
pub(crate) fn sink_options(settings: &Settings) -> KafkaSinkOptions {
    let kafka = &settings.kafka;
    let transactional_id = || format!("{}-{}", kafka.group_id, settings.worker.instance);
    KafkaSinkOptions {
        connection: connection(settings),
        output_topic: settings.output.topic.clone().unwrap_or_default(),
        dead_letter_topic: settings.output.dead_letter_topic.clone().unwrap_or_default(),
        transactional_id: (settings.worker.delivery == Delivery::ExactlyOnce).then(transactional_id),
        transaction_timeout: Duration::from_millis(kafka.transaction_timeout_ms),
        startup_timeout: Duration::from_millis(settings.worker.startup_timeout_ms),
        properties: producer_properties(settings),
        offset_metadata: BTreeMap::new(),
    }
}

/// The properties of every producer.
pub(crate) fn producer_properties(settings: &Settings) -> BTreeMap<String, String> {
    let kafka = &settings.kafka;
    let mut properties = owned(&kafka.producer_properties);
    properties.insert("compression.type".into(), kafka.compression.to_string());
    properties.insert("partitioner".into(), kafka.partitioner.to_string());
    properties
}

pub(crate) fn owned(properties: &crate::config::Properties) -> BTreeMap<String, String> {
    properties.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
