//! What a text must look like, by key.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::properties;
use crate::infer::Device;

/// Longest name of a topic that Kafka takes, in characters.
const MAX_TOPIC_CHARS: usize = 249;

/// Checks a text that is not empty against the rule of its key.
pub(super) fn text(path: &str, text: &str) -> Result<(), String> {
    match path {
        "worker.instance" | "rollout.slot" => instance(text),
        "rollout.topic_prefix" | "input.topics" | "output.topic" | "output.dead_letter_topic" => topic(text),
        "input.text_pointer" | "input.id_pointer" | "input.words_pointer" => pointer(text),
        "kafka.bootstrap_servers" => host_port(text.rsplit("://").next().unwrap_or(text)),
        "model.device" => text.parse::<Device>().map(drop).map_err(|error| error.to_string()),
        "rollout.labels" => label(text),
        "admin.address" => host_port(text),
        "telemetry.otlp_endpoint" => endpoint(text),
        "telemetry.log_level" => log_level(text),
        _ => Ok(()),
    }
}

/// Checks the name of an entry in a table.
pub(super) fn entry(path: &str, name: &str) -> Result<(), String> {
    match path {
        "model.slots" => instance(name),
        _ => properties::allowed(name),
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn instance(text: &str) -> Result<(), String> {
    if is_name(text) {
        return Ok(());
    }
    Err(format!("may hold letters, digits, `.`, `_` and `-` only, found {text:?}"))
}

fn label(text: &str) -> Result<(), String> {
    match text.split_once('=') {
        Some((name, value)) if is_name(name) && is_name(value) => Ok(()),
        _ => Err(format!("a label is name=value of letters, digits, `.`, `_` and `-`, found {text:?}")),
    }
}

fn topic(text: &str) -> Result<(), String> {
    if is_name(text) && text.len() <= MAX_TOPIC_CHARS && text != "." && text != ".." {
        return Ok(());
    }
    Err(format!("a topic is 1 to {MAX_TOPIC_CHARS} letters, digits, `.`, `_` and `-`, found {text:?}"))
}

fn pointer(text: &str) -> Result<(), String> {
    if !text.starts_with('/') {
        return Err(format!("a JSON pointer starts with `/`, found {text:?}"));
    }
    if text.split('~').skip(1).any(|rest| !rest.starts_with(['0', '1'])) {
        return Err(format!("in a JSON pointer `~` is written `~0`, found {text:?}"));
    }
    Ok(())
}

fn host_port(text: &str) -> Result<(), String> {
    let (host, port) = text.rsplit_once(':').unwrap_or_default();
    let is_bare_ipv6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    if host.is_empty() || is_bare_ipv6 {
        return Err(format!("expected host:port, found {text:?}"));
    }
    match port.parse::<u16>() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("the port must be a number up to 65535, found {text:?}")),
    }
}

/// The URL is not shown where it may hold a password.
fn endpoint(text: &str) -> Result<(), String> {
    let rest = text.strip_prefix("http://").or(text.strip_prefix("https://"));
    let authority = rest.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
    if text.contains('@') {
        return Err("must hold no user and password; the URL would show them in logs".to_owned());
    }
    if authority.is_empty() {
        return Err(format!("expected a URL such as http://localhost:4318, found {text:?}"));
    }
    Ok(())
}

/// A word alone must be a level: as a filter a misspelt one would name a target, and silence everything else.
fn log_level(text: &str) -> Result<(), String> {
    let mut words = text.split(',').map(str::trim).filter(|directive| !directive.contains(['=', '[', ']']));
    if let Some(word) = words.find(|word| word.parse::<LevelFilter>().is_err()) {
        return Err(format!("expected off, error, warn, info, debug, trace or target=level, found {word:?}"));
    }
    EnvFilter::try_new(text).map(drop).map_err(|error| format!("{error} in {text:?}"))
}
