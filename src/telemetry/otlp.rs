//! The exporters to a collector: bounded queues, bounded retries, threads of their own.

use std::time::Duration;

use anyhow::Context;
use opentelemetry_otlp::{MetricExporter, Protocol, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::metrics::PeriodicReader;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, ParentBasedSampler, Sampler, SdkTracerProvider,
};

use super::ExportOptions;

/// Spans that wait for their export; further ones are dropped. About 2 MiB.
const SPAN_QUEUE: usize = 4096;
/// Most spans of one request.
const SPAN_BATCH: usize = 512;
/// Longest wait of a span for its batch to fill.
const SPAN_DELAY: Duration = Duration::from_secs(2);

/// Retries of one export, all within its timeout.
fn retries() -> RetryPolicy {
    RetryPolicy::recommended().with_max_retries(4).with_max_delay(Duration::from_secs(2))
}

/// Address of a signal under the base address.
fn address(endpoint: &str, path: &str) -> String {
    format!("{}{path}", endpoint.trim_end_matches('/'))
}

/// A reader that pushes all metrics every interval.
pub(super) fn metrics(endpoint: &str, options: &ExportOptions) -> anyhow::Result<PeriodicReader<MetricExporter>> {
    let exporter = MetricExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(address(endpoint, "/v1/metrics"))
        .with_timeout(options.timeout)
        .with_retry_policy(retries())
        .build()
        .context("cannot build the OTLP exporter of the metrics")?;
    Ok(PeriodicReader::builder(exporter).with_interval(options.metrics_interval).build())
}

/// A provider of spans that are pushed in batches.
pub(super) fn spans(endpoint: &str, options: &ExportOptions) -> anyhow::Result<SdkTracerProvider> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(address(endpoint, "/v1/traces"))
        .with_timeout(options.timeout)
        .with_retry_policy(retries())
        .build()
        .context("cannot build the OTLP exporter of the spans")?;
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(SPAN_QUEUE)
        .with_max_export_batch_size(SPAN_BATCH)
        .with_scheduled_delay(SPAN_DELAY)
        .build();
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    Ok(SdkTracerProvider::builder()
        .with_resource(options.resource())
        .with_sampler(sampler(options.trace_sample_ratio))
        .with_span_processor(processor)
        .build())
}

/// Keeps `ratio` of the traces, those that a producer began included: it may well sample all it writes, and a
/// stream is too much to follow it. The choice hangs on the trace id alone, so workers agree on it.
pub(super) fn sampler(ratio: f64) -> ParentBasedSampler {
    let share = Sampler::TraceIdRatioBased(ratio);
    Sampler::parent_based(share.clone()).with_remote_parent_sampled(share)
}
