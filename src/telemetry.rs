//! What the worker tells about itself: logs, metrics and traces.
//!
//! Metrics go two ways, to the registry that [`crate::admin`] serves under `/metrics` and, where an endpoint is
//! configured, to an OpenTelemetry collector over OTLP (HTTP, protobuf). Spans go to the collector alone. Both
//! exports run on threads of their own behind bounded queues: a slow or missing collector costs telemetry, never
//! records. `docs/observability.md` lists what is exported.
//!
//! Providers are passed, not global: the one global that [`init`] touches is the subscriber of the logs.

mod handles;
mod logs;
mod metrics;
mod otlp;
pub mod propagation;
mod spans;
mod watch;

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;

pub use handles::{InputMetrics, LaneMetrics, OutputMetrics, RolloutMetrics};
pub use logs::{LogFormat, LogOptions};
pub use metrics::Metrics;
pub use spans::{Outcome, PublishSpan, RecordSpan, RecordTracer};
pub use watch::{ModelInfo, ModelWatch, PartitionWatch};

/// Name of the instrumentation scope of all instruments and spans.
const SCOPE: &str = "vitag";

/// Where metrics and spans go, beside `/metrics`.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportOptions {
    /// Base address of a collector that speaks OTLP over HTTP, such as `http://localhost:4318`; the paths of the
    /// signals are appended. `None` exports nothing. Plain HTTP only: encryption is the matter of a collector
    /// beside the worker.
    pub otlp_endpoint: Option<String>,
    /// Longest time for one export, its retries included.
    pub timeout: Duration,
    /// Time between two exports of the metrics.
    pub metrics_interval: Duration,
    /// Share of records to trace, 0 to 1. Of the records whose producer sampled a trace, the same share is kept;
    /// those whose producer decided against one are never traced. 0 turns tracing off.
    pub trace_sample_ratio: f64,
    /// `service.name` of the exported resource.
    pub service_name: String,
    /// `service.instance.id` of the exported resource: the worker's stable name.
    pub instance: String,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            timeout: Duration::from_secs(10),
            metrics_interval: Duration::from_secs(15),
            trace_sample_ratio: 0.0,
            service_name: "vitag".into(),
            instance: "vitag-0".into(),
        }
    }
}

impl ExportOptions {
    fn check(&self) -> anyhow::Result<()> {
        ensure!(
            (0.0..=1.0).contains(&self.trace_sample_ratio),
            "trace_sample_ratio is {}, not between 0 and 1",
            self.trace_sample_ratio
        );
        ensure!(!self.timeout.is_zero(), "the export timeout is 0");
        ensure!(!self.metrics_interval.is_zero(), "the export interval of the metrics is 0");
        if let Some(endpoint) = &self.otlp_endpoint {
            ensure!(
                endpoint.starts_with("http://"),
                "otlp_endpoint {endpoint:?} does not start with http:// (put a collector beside the worker for TLS)"
            );
        }
        Ok(())
    }

    fn resource(&self) -> Resource {
        Resource::builder()
            .with_service_name(self.service_name.clone())
            .with_attributes([
                KeyValue::new("service.instance.id", self.instance.clone()),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            ])
            .build()
    }
}

/// Starts logging and the exports. Called once, by a command that runs to the end of the process; if a subscriber
/// is installed already, it stays and takes the logs.
///
/// # Errors
/// When a setting is invalid or an exporter cannot be built; never because a collector cannot be reached.
pub fn init(logs: &LogOptions, export: &ExportOptions) -> anyhow::Result<Telemetry> {
    let telemetry = Telemetry::new(export)?;
    logs::install(logs, telemetry.spans.as_ref())?;
    Ok(telemetry)
}

/// The providers behind the metrics and the spans, and the registry behind `/metrics`.
#[derive(Debug)]
pub struct Telemetry {
    meters: SdkMeterProvider,
    spans: Option<SdkTracerProvider>,
    registry: prometheus::Registry,
}

impl Telemetry {
    /// The exports alone, without any global: what [`init`] does but for the logs.
    ///
    /// # Errors
    /// As [`init`].
    pub fn new(options: &ExportOptions) -> anyhow::Result<Self> {
        options.check()?;
        let registry = prometheus::Registry::new();
        let scraped = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
            .context("cannot build the exporter behind /metrics")?;
        let mut meters = SdkMeterProvider::builder().with_resource(options.resource()).with_reader(scraped);
        let mut spans = None;
        if let Some(endpoint) = &options.otlp_endpoint {
            meters = meters.with_reader(otlp::metrics(endpoint, options)?);
            if options.trace_sample_ratio > 0.0 {
                spans = Some(otlp::spans(endpoint, options)?);
            }
        }
        Ok(Self { meters: meters.build(), spans, registry })
    }

    /// The instruments. Call it once and clone the result: two calls would register the gauges twice.
    pub fn metrics(&self) -> Metrics {
        Metrics::new(&self.meters.meter(SCOPE))
    }

    /// What starts the spans of records read by consumer group `group`; disabled where nothing is exported.
    pub fn tracer(&self, group: &str) -> RecordTracer {
        self.spans.as_ref().map_or_else(RecordTracer::disabled, |provider| RecordTracer::new(provider, group))
    }

    /// The registry that `/metrics` gathers from.
    pub fn registry(&self) -> &prometheus::Registry {
        &self.registry
    }

    /// Sends what is still queued and stops the exports, within `bound`. Afterwards `/metrics` is empty. Blocks, so
    /// from asynchronous code call it on a blocking thread. Without it, dropping this value may take five seconds.
    pub fn shutdown(&self, bound: Duration) {
        let deadline = Instant::now() + bound;
        let (done, finished) = mpsc::channel();
        // The provider of the metrics waits five seconds whatever bound it is given: it is left behind instead.
        let (meters, meters_done) = (self.meters.clone(), done.clone());
        thread::spawn(move || meters_done.send(("metrics", meters.shutdown())));
        if let Some(spans) = self.spans.clone() {
            thread::spawn(move || done.send(("spans", spans.shutdown_with_timeout(bound))));
        } else {
            drop(done);
        }
        loop {
            match finished.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((_, Ok(()))) => {}
                Ok((signal, Err(error))) => tracing::warn!(signal, %error, "telemetry was lost at shutdown"),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    tracing::warn!(bound_ms = bound.as_millis() as u64, "telemetry was not sent in time at shutdown");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_options_are_named() {
        let refused = |options: ExportOptions| Telemetry::new(&options).unwrap_err().to_string();
        let ratio = ExportOptions { trace_sample_ratio: 1.5, ..ExportOptions::default() };
        assert!(refused(ratio).contains("trace_sample_ratio"));
        let encrypted = ExportOptions { otlp_endpoint: Some("https://collector".into()), ..ExportOptions::default() };
        assert!(refused(encrypted).contains("otlp_endpoint"));
        let hasty = ExportOptions { metrics_interval: Duration::ZERO, ..ExportOptions::default() };
        assert!(refused(hasty).contains("interval"));
    }

    #[test]
    fn without_an_endpoint_metrics_are_scraped_and_nothing_is_traced() {
        let telemetry = Telemetry::new(&ExportOptions { trace_sample_ratio: 1.0, ..ExportOptions::default() }).unwrap();
        telemetry.metrics().transaction_aborted();
        let names: Vec<_> = telemetry.registry().gather().iter().map(|family| family.name().to_owned()).collect();
        assert!(names.contains(&"vitag_transactions_aborted_total".to_owned()), "{names:?}");
        assert!(!telemetry.tracer("group").is_enabled());
    }
}
