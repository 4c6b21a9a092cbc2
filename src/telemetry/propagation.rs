//! Trace context in the headers of messages: W3C `traceparent`, `tracestate` and `baggage`.

use std::str;

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};

use crate::record::Header;

/// The context that the producer of a message put into its headers; empty where it put none, or none that is valid.
pub fn extract(headers: &[Header]) -> Context {
    let carrier = Read(headers);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    BaggagePropagator::new().extract_with_context(&context, &carrier)
}

/// Puts `context` into `headers` in place of the one they hold. A context without a span or without baggage leaves
/// the headers of that kind as they are, so what a producer wrote passes through.
pub fn inject(context: &Context, headers: &mut Vec<Header>) {
    let mut carrier = Write(headers);
    TraceContextPropagator::new().inject_context(context, &mut carrier);
    BaggagePropagator::new().inject_context(context, &mut carrier);
}

struct Read<'a>(&'a [Header]);

impl Extractor for Read<'_> {
    /// Of repeated keys the last counts, as everywhere in Kafka.
    fn get(&self, key: &str) -> Option<&str> {
        let (_, value) = self.0.iter().rev().find(|(name, _)| name == key)?;
        str::from_utf8(value.as_deref()?).ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).collect()
    }
}

struct Write<'a>(&'a mut Vec<Header>);

impl Injector for Write<'_> {
    fn set(&mut self, key: &str, value: String) {
        self.0.retain(|(name, _)| name != key);
        if !value.is_empty() {
            self.0.push((key.to_owned(), Some(value.into())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::baggage::BaggageExt;
    use opentelemetry::trace::TraceContextExt;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn header(name: &str, value: &'static str) -> Header {
        (name.into(), Some(value.into()))
    }

    #[test]
    fn a_context_survives_extraction_and_injection() {
        let headers = [header("traceparent", PARENT), header("tracestate", "a=b"), header("baggage", "user=1")];
        let context = extract(&headers);
        assert!(context.span().span_context().is_remote());
        assert_eq!(context.baggage().get("user").map(ToString::to_string).as_deref(), Some("1"));
        let mut written = Vec::new();
        inject(&context, &mut written);
        assert_eq!(written, headers);
    }

    #[test]
    fn injection_replaces_every_older_context_and_keeps_the_rest() {
        let mut headers = vec![
            header("traceparent", "old"),
            header("key", "kept"),
            header("tracestate", "old=1"),
            header("traceparent", "older"),
        ];
        inject(&extract(&[header("traceparent", PARENT)]), &mut headers);
        assert_eq!(headers, [header("key", "kept"), header("traceparent", PARENT)]);
    }

    #[test]
    fn the_last_of_repeated_headers_counts() {
        let context = extract(&[header("traceparent", "nonsense"), header("traceparent", PARENT)]);
        assert!(context.span().span_context().is_valid());
    }

    #[test]
    fn without_a_valid_context_nothing_is_extracted_or_written() {
        let invalid = [header("traceparent", "00-xyz"), ("traceparent".into(), None)];
        let context = extract(&invalid);
        assert!(!context.has_active_span());
        let mut headers = invalid.to_vec();
        inject(&context, &mut headers);
        assert_eq!(headers, invalid);
    }
}
