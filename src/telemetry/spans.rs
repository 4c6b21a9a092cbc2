//! Spans of records, after the OpenTelemetry messaging conventions.
//!
//! A record has a span `process <topic>` of kind CONSUMER and its output a span `publish <topic>` of kind PRODUCER
//! below it, whose context goes out in the headers. The conventions correlate by links, and allow the producer's
//! context as the parent where a span stands for a single message and no other span is around it. Both hold here,
//! so the process span has the producer's context as its parent and as a link: one trace runs through the worker,
//! and tools that look for links find them.

use std::sync::Arc;

use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};

use super::metrics::{DESTINATION, ERROR, GROUP, OPERATION, OPERATION_TYPE, PARTITION, STAGE, SYSTEM};
use super::propagation;
use crate::record::{Header, Record, Reject};

#[derive(Debug)]
struct Source {
    tracer: SdkTracer,
    group: String,
}

/// What starts the spans of records. A clone shares it.
#[derive(Clone, Debug)]
pub struct RecordTracer(Option<Arc<Source>>);

impl RecordTracer {
    /// Starts no spans: for files, and where nothing is exported.
    pub fn disabled() -> Self {
        Self(None)
    }

    /// Starts the spans of records read by consumer group `group`.
    pub fn new(provider: &SdkTracerProvider, group: &str) -> Self {
        Self(Some(Arc::new(Source { tracer: provider.tracer(super::SCOPE), group: group.to_owned() })))
    }

    /// Whether any record may get a span.
    pub fn is_enabled(&self) -> bool {
        self.0.is_some()
    }
}

/// How the processing of a record ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// With an output.
    Output,
    /// As a dead letter.
    DeadLetter(&'a Reject),
}

impl Outcome<'_> {
    fn as_str(self) -> &'static str {
        match self {
            Outcome::Output => "output",
            Outcome::DeadLetter(_) => "dead_letter",
        }
    }
}

#[derive(Debug)]
struct Active {
    source: Arc<Source>,
    span: Span,
}

/// The span of a record's processing, or nothing where the record is not sampled. Dropped, it ends without an
/// outcome.
#[derive(Debug, Default)]
pub struct RecordSpan(Option<Box<Active>>);

impl RecordSpan {
    /// Starts the span `process <topic>` of a record. A record that is not sampled costs a look at its headers; with
    /// a disabled tracer, not even that.
    pub fn start<T>(tracer: &RecordTracer, record: &Record<T>) -> Self {
        let Some(source) = &tracer.0 else { return Self(None) };
        let producer = propagation::extract(&record.original.headers);
        let builder = SpanBuilder::from_name("process").with_kind(SpanKind::Consumer);
        let mut span = source.tracer.build_with_context(builder, &producer);
        if !span.is_recording() {
            return Self(None);
        }
        let partition = &record.position.partition;
        span.update_name(format!("process {}", partition.topic));
        span.set_attributes([
            KeyValue::new(SYSTEM, "kafka"),
            KeyValue::new(OPERATION, "process"),
            KeyValue::new(OPERATION_TYPE, "process"),
            KeyValue::new(DESTINATION, partition.topic.clone()),
            KeyValue::new(PARTITION, partition.id.to_string()),
            KeyValue::new(GROUP, source.group.clone()),
            KeyValue::new("messaging.kafka.offset", record.position.offset),
        ]);
        if record.original.value.is_none() {
            span.set_attribute(KeyValue::new("messaging.kafka.message.tombstone", true));
        }
        let creation = producer.span().span_context().clone();
        if creation.is_valid() {
            span.add_link(creation, Vec::new());
        }
        Self(Some(Box::new(Active { source: source.clone(), span })))
    }

    /// Whether the record is sampled.
    pub fn is_recording(&self) -> bool {
        self.0.is_some()
    }

    /// Starts the span `publish <topic>` of the record's output and puts its context into the output's headers. A
    /// record that is not sampled keeps the headers it came with.
    pub fn inject(&self, topic: &str, headers: &mut Vec<Header>) -> PublishSpan {
        let Some(active) = &self.0 else { return PublishSpan(None) };
        let parent = Context::new().with_remote_span_context(active.span.span_context().clone());
        let builder =
            SpanBuilder::from_name(format!("publish {topic}")).with_kind(SpanKind::Producer).with_attributes([
                KeyValue::new(SYSTEM, "kafka"),
                KeyValue::new(OPERATION, "publish"),
                KeyValue::new(OPERATION_TYPE, "send"),
                KeyValue::new(DESTINATION, topic.to_owned()),
            ]);
        let span = active.source.tracer.build_with_context(builder, &parent);
        let created = Context::new().with_remote_span_context(span.span_context().clone());
        propagation::inject(&created, headers);
        PublishSpan(Some(Box::new(span)))
    }

    /// Ends the span.
    pub fn finish(self, outcome: Outcome<'_>) {
        let Some(mut active) = self.0 else { return };
        active.span.set_attribute(KeyValue::new("vitag.outcome", outcome.as_str()));
        if let Outcome::DeadLetter(reject) = outcome {
            // The message may quote the record, so it stays in the dead letter.
            active.span.set_attribute(KeyValue::new(STAGE, reject.stage.as_str()));
            fail(&mut active.span, reject.code.as_str());
        }
        active.span.end();
    }
}

/// The span of an output's publication, or nothing where the record is not sampled. Dropped, it ends.
#[derive(Debug, Default)]
pub struct PublishSpan(Option<Box<Span>>);

impl PublishSpan {
    /// The broker has the output.
    pub fn finish(self) {
        if let Some(mut span) = self.0 {
            span.end();
        }
    }
}

fn fail(span: &mut Span, code: &'static str) {
    span.set_attribute(KeyValue::new(ERROR, code));
    span.set_status(Status::error(code));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Code, Gauge, Original, Partition, Position, Stage};
    use crate::telemetry::otlp::sampler;
    use bytes::Bytes;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SpanData, SpanExporter};
    use std::sync::Mutex;
    use std::time::Instant;

    const PRODUCER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Kept {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().extend(batch);
            Ok(())
        }
    }

    impl Kept {
        fn named(&self, name: &str) -> SpanData {
            let spans = self.0.lock().unwrap();
            spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name:?}: {spans:?}")).clone()
        }
    }

    fn tracer(ratio: f64) -> (RecordTracer, Kept) {
        let kept = Kept::default();
        let provider =
            SdkTracerProvider::builder().with_sampler(sampler(ratio)).with_simple_exporter(kept.clone()).build();
        (RecordTracer::new(&provider, "group"), kept)
    }

    fn record(traceparent: Option<&'static str>) -> Record<()> {
        let headers = traceparent.map(|value| ("traceparent".into(), Some(value.into()))).into_iter().collect();
        let original = Original {
            key: None,
            value: Some(Bytes::from_static(b"text")),
            headers,
            timestamp_ms: None,
            received: Instant::now(),
            held: Gauge::default().hold(4, 0),
        };
        let partition = Partition { topic: "in".into(), id: 3 };
        let position = Position { partition, offset: 42, epoch: 0, slot: 0 };
        Record { position, original: Arc::new(original), payload: () }
    }

    fn attribute(span: &SpanData, key: &str) -> Option<String> {
        span.attributes.iter().find(|attribute| attribute.key.as_str() == key).map(|found| found.value.to_string())
    }

    #[test]
    fn a_record_is_traced_from_its_producer_to_its_output() {
        let (tracer, kept) = tracer(1.0);
        let record = record(Some(PRODUCER));
        let mut headers = record.original.headers.clone();
        let span = RecordSpan::start(&tracer, &record);
        span.inject("out", &mut headers).finish();
        span.finish(Outcome::Output);

        let (process, publish) = (kept.named("process in"), kept.named("publish out"));
        assert_eq!((&process.span_kind, &publish.span_kind), (&SpanKind::Consumer, &SpanKind::Producer));
        assert_eq!(process.parent_span_id.to_string(), "00f067aa0ba902b7");
        assert_eq!(process.links[0].span_context.span_id(), process.parent_span_id);
        assert_eq!(publish.parent_span_id, process.span_context.span_id());
        assert_eq!(attribute(&process, "messaging.destination.partition.id").as_deref(), Some("3"));
        assert_eq!(attribute(&process, "messaging.kafka.offset").as_deref(), Some("42"));
        assert_eq!(attribute(&process, "messaging.consumer.group.name").as_deref(), Some("group"));
        assert_eq!(attribute(&process, "vitag.outcome").as_deref(), Some("output"));

        let next = propagation::extract(&headers);
        assert_eq!(next.span().span_context().span_id(), publish.span_context.span_id());
        assert_eq!(headers.len(), 1, "the context replaces the producer's");
    }

    #[test]
    fn a_dead_letter_fails_the_span_without_quoting_the_record() {
        let (tracer, kept) = tracer(1.0);
        let reject = Reject::new(Stage::Decode, Code::InvalidJson, "secret");
        RecordSpan::start(&tracer, &record(None)).finish(Outcome::DeadLetter(&reject));
        let process = kept.named("process in");
        assert_eq!(process.status, Status::error("invalid_json"));
        assert_eq!(attribute(&process, "error.type").as_deref(), Some("invalid_json"));
        assert!(!format!("{process:?}").contains("secret"));
    }

    #[test]
    fn records_that_are_not_sampled_keep_their_headers() {
        let sampled_elsewhere = record(Some(PRODUCER));
        for (tracer, record) in [
            (RecordTracer::disabled(), &sampled_elsewhere),
            (tracer(0.0).0, &sampled_elsewhere),
            (tracer(1.0).0, &record(Some(UNSAMPLED))),
        ] {
            let span = RecordSpan::start(&tracer, record);
            let mut headers = record.original.headers.clone();
            span.inject("out", &mut headers).finish();
            assert!(!span.is_recording());
            assert_eq!(headers, record.original.headers);
        }
    }

    #[test]
    fn a_share_of_what_producers_sample_is_kept() {
        let (tracer, _) = tracer(0.5);
        let (low, high) = (
            "00-4bf92f3577b34da60000000000000001-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6ffffffffffffffff-00f067aa0ba902b7-01",
        );
        assert!(RecordSpan::start(&tracer, &record(Some(low))).is_recording());
        assert!(!RecordSpan::start(&tracer, &record(Some(high))).is_recording());
    }
}
