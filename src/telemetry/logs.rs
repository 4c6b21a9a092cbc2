//! Logs, always on standard error: readable on a terminal, JSON lines elsewhere.

use std::collections::HashMap;
use std::io::{IsTerminal, stderr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Filter, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use super::SCOPE;

/// Libraries whose messages below this are about themselves; the user's directives come after and win.
const QUIET: &str = "hyper=info,hyper_util=info,reqwest=info,h2=info,ort=warn";
/// Shortest time between two repetitions of one warning of the exports.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Pretty on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// For people, with colours on a terminal (unless `NO_COLOR` is set).
    Pretty,
    /// One JSON object a line.
    Json,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Directives as in `RUST_LOG`: `info`, or `info,vitag::sink=debug`.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Auto }
    }
}

/// Installs the process-wide subscriber. One that is there already stays, so a program that embeds the worker keeps
/// its own.
///
/// # Errors
/// When the directives cannot be parsed.
pub(super) fn install(options: &LogOptions, spans: Option<&SdkTracerProvider>) -> anyhow::Result<()> {
    let directives = EnvFilter::try_new(format!("{QUIET},{}", options.level))
        .with_context(|| format!("invalid log level {:?}", options.level))?;
    let lines =
        lines(options.format, stderr().is_terminal(), stderr).with_filter(directives.and(OnceInAWhile::default()));
    // Only the worker's own spans: the exports must not trace themselves.
    let exported = spans.map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(SCOPE))
            .with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with(SCOPE)))
    });
    let _ = tracing_subscriber::registry().with(lines).with(exported).try_init();
    Ok(())
}

fn lines<S, W>(format: LogFormat, terminal: bool, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    if format == LogFormat::Json || (format == LogFormat::Auto && !terminal) {
        return lines.json().flatten_event(true).with_span_list(false).boxed();
    }
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    lines.with_ansi(terminal && !plain).boxed()
}

/// Lets a warning of the exports through once a minute: while a collector is away, each export has the same to say.
#[derive(Debug, Default)]
struct OnceInAWhile {
    last: Mutex<HashMap<&'static str, Instant>>,
}

impl OnceInAWhile {
    fn is_due(&self, name: &'static str, now: Instant) -> bool {
        let mut last = self.last.lock().expect("nothing panics under this lock");
        let due = last.get(name).is_none_or(|&before| now.duration_since(before) >= REPEAT_AFTER);
        if due {
            last.insert(name, now);
        }
        due
    }
}

impl<S> Filter<S> for OnceInAWhile {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        !metadata.target().starts_with("opentelemetry") || self.is_due(metadata.name(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    /// What is logged to something that is no terminal.
    fn logged(format: LogFormat, say: impl FnOnce()) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let writer = File::create(file.path()).unwrap();
        let lines = lines(format, false, writer).with_filter(EnvFilter::new("info").and(OnceInAWhile::default()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), say);
        fs::read_to_string(file.path()).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn elsewhere_than_on_a_terminal_a_line_is_a_json_object() {
        let lines = logged(LogFormat::Auto, || tracing::info!(records = 3, "committed"));
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(
            (&line["message"], &line["records"], &line["level"]),
            (&"committed".into(), &3.into(), &"INFO".into())
        );
        let lines = logged(LogFormat::Pretty, || tracing::info!("committed"));
        assert!(lines[0].contains("INFO") && lines[0].ends_with("committed") && !lines[0].contains('\u{1b}'));
    }

    #[test]
    fn of_what_the_exports_repeat_one_line_is_logged() {
        let lines = logged(LogFormat::Pretty, || {
            for _ in 0..3 {
                tracing::error!(name: "ExportError", target: "opentelemetry_sdk", "no collector");
                tracing::warn!("own");
            }
        });
        assert_eq!(lines.iter().filter(|line| line.contains("no collector")).count(), 1);
        assert_eq!(lines.iter().filter(|line| line.contains("own")).count(), 3);
    }

    #[test]
    fn a_warning_of_the_exports_is_repeated_once_a_minute() {
        let (filter, start) = (OnceInAWhile::default(), Instant::now());
        assert!(filter.is_due("ExportError", start));
        assert!(!filter.is_due("ExportError", start + REPEAT_AFTER / 2));
        assert!(filter.is_due("QueueFull", start + REPEAT_AFTER / 2));
        assert!(filter.is_due("ExportError", start + REPEAT_AFTER));
    }

    #[test]
    fn invalid_directives_are_an_error_that_shows_them() {
        let options = LogOptions { level: "vitag=loud".into(), ..LogOptions::default() };
        assert!(install(&options, None).unwrap_err().to_string().contains("vitag=loud"));
    }
}
