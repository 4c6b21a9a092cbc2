//! Reading the layers: file, environment and command line become one list of entries, later ones win.

use std::path::{Path, PathBuf};

use config::{FileFormat, Format};
use serde_json::{Map, Value};

use super::error::Layer;

/// What the names of vitag's environment variables start with.
const ENV_PREFIX: &str = "VITAG__";

/// Where settings are read from.
#[derive(Clone, Default)]
pub struct Sources {
    /// The settings file: `.toml`, `.yaml` or `.yml`.
    pub file: Option<PathBuf>,
    /// The environment, names and values.
    pub env: Vec<(String, String)>,
    /// The `--set` arguments, `section.key=value`.
    pub sets: Vec<String>,
}

impl Sources {
    /// Sources with the environment of this process.
    pub fn of_process(file: Option<PathBuf>, sets: Vec<String>) -> Self {
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Self { file, env: std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect(), sets }
    }
}

/// A value as a layer gives it.
pub(super) struct Entry {
    /// Section, key, and for a property of librdkafka its name in one part or several.
    pub(super) path: Vec<String>,
    /// As parsed; from the environment always a string.
    pub(super) value: Value,
    /// As written, in the layers that are text.
    pub(super) text: Option<String>,
    pub(super) layer: Layer,
}

/// The entries of all layers, the ones that win last, and what could not be read.
pub(super) fn read(sources: &Sources) -> (Vec<Entry>, Vec<String>) {
    let (mut entries, mut problems) = (Vec::new(), Vec::new());
    if let Some(path) = &sources.file {
        match read_file(path) {
            Ok(table) => entries.extend(flatten(table, None, &Layer::File(path.clone()))),
            Err(problem) => problems.push(problem),
        }
    }
    entries.extend(read_env(&sources.env));
    for (index, set) in sources.sets.iter().enumerate() {
        match read_set(set, index + 1) {
            Ok(entry) => entries.push(entry),
            Err(problem) => problems.push(problem),
        }
    }
    (entries, problems)
}

/// The values of nested tables with their paths; an empty table is a value.
pub(super) fn flatten(table: Map<String, Value>, text: Option<&str>, layer: &Layer) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (name, value) in table {
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                let inner = flatten(inner, text, layer);
                entries.extend(inner.into_iter().map(|mut entry| {
                    entry.path.insert(0, name.clone());
                    entry
                }));
            }
            value => {
                entries.push(Entry { path: vec![name], value, text: text.map(str::to_owned), layer: layer.clone() })
            }
        }
    }
    entries
}

fn read_file(path: &Path) -> Result<Map<String, Value>, String> {
    let shown = path.display();
    let parse = match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => parse_toml,
        Some("yaml" | "yml") => parse_yaml,
        _ => return Err(format!("{shown}: the settings file must end in .toml, .yaml or .yml")),
    };
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read settings file {shown}: {error}"))?;
    parse(&text).map_err(|problem| format!("{shown}: {problem}"))
}

/// Errors say where and what, and never show the line: it may hold a secret.
fn parse_toml(text: &str) -> Result<Map<String, Value>, String> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = text.as_bytes().iter().take(start).filter(|&&byte| byte == b'\n').count() + 1;
        format!("not TOML: {} at line {line}", error.message())
    })
}

/// Errors of the scanner say where and show no content; others are kept back, as they might.
fn parse_yaml(text: &str) -> Result<Map<String, Value>, String> {
    let table = FileFormat::Yaml.parse(None, text).map_err(|error| {
        let message = error.to_string();
        if message.contains(" at byte ") { format!("not YAML: {message}") } else { "not one YAML mapping".to_owned() }
    })?;
    let read = |(name, value): (String, config::Value)| Some((name, value.try_deserialize().ok()?));
    table.into_iter().map(read).collect::<Option<_>>().ok_or_else(|| "not one YAML mapping".to_owned())
}

/// `VITAG__SECTION__KEY`, sorted so that the order of the environment does not matter.
fn read_env(env: &[(String, String)]) -> Vec<Entry> {
    let mut ours: Vec<_> = env.iter().filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
    ours.sort();
    let read = |(name, value): &(String, String)| Entry {
        path: env_path(&name[ENV_PREFIX.len()..]),
        value: Value::String(value.clone()),
        text: Some(value.clone()),
        layer: Layer::Env(name.clone()),
    };
    ours.into_iter().map(read).collect()
}

/// Parts are divided by two underscores; in the name of a property, one stands for a dot.
fn env_path(name: &str) -> Vec<String> {
    let parts = name.split("__").map(str::to_lowercase).enumerate();
    parts.map(|(depth, part)| if depth < 2 { part } else { part.replace('_', ".") }).collect()
}

/// `section.key=value`: a TOML key and a TOML value; what is no TOML value is text.
fn read_set(set: &str, number: usize) -> Result<Entry, String> {
    let malformed = || format!("--set number {number} is not of the form section.key=value");
    let (key, text) = set.split_once('=').ok_or_else(malformed)?;
    let (path, text) = (toml_path(key).ok_or_else(malformed)?, text.trim());
    let value = toml_value(text).unwrap_or_else(|| Value::String(text.to_owned()));
    Ok(Entry { path, value, text: Some(text.to_owned()), layer: Layer::Set })
}

/// The parts of a dotted TOML key.
fn toml_path(key: &str) -> Option<Vec<String>> {
    let mut value: Value = toml::from_str(&format!("{key} = 0")).ok()?;
    let mut path = Vec::new();
    while let Value::Object(table) = value {
        let mut entries = table.into_iter();
        let (name, inner) = entries.next().filter(|_| entries.len() == 0)?;
        path.push(name);
        value = inner;
    }
    (!path.is_empty()).then_some(path)
}

fn toml_value(text: &str) -> Option<Value> {
    let mut table: Map<String, Value> = toml::from_str(&format!("value = {text}")).ok()?;
    table.remove("value").filter(|_| table.is_empty())
}
