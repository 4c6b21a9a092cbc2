//! The written reference and the example file, held against the code.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::keys::{self, KEYS, Key, Kind};
use super::{Settings, Sources};

/// Set to 1, the test writes the reference in place of comparing it.
const UPDATE: &str = "UPDATE_REFERENCE";
const BEGIN: &str = "<!-- keys: written by the test `the_reference_lists_every_key` -->\n";
const END: &str = "<!-- end of keys -->\n";

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn the_reference_lists_every_key() {
    let path = repository("docs/configuration.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = page.split_once(BEGIN).expect("the begin marker");
    let (written, tail) = rest.split_once(END).expect("the end marker");
    let expected = reference();
    if std::env::var(UPDATE).is_ok_and(|value| value == "1") {
        std::fs::write(&path, format!("{head}{BEGIN}{expected}{END}{tail}")).unwrap();
        return;
    }
    assert!(written == expected, "docs/configuration.md is out of date; run the test with {UPDATE}=1 to write it");
}

#[test]
fn the_example_runs_and_is_the_defaults_but_for_what_a_run_needs() {
    let example = Settings::load(&sources(&repository("deploy/config/vitag.toml"))).unwrap();
    example.validate_run().unwrap();
    let given: Vec<_> = example.origins.keys().filter(|key| !key.ends_with("instance")).collect();
    assert_eq!(given, ["input.topics", "kafka.bootstrap_servers", "output.dead_letter_topic", "output.topic"]);
}

#[test]
fn the_example_shows_every_key_with_its_default() {
    let text = std::fs::read_to_string(repository("deploy/config/vitag.toml")).unwrap();
    let uncommented: String = text.lines().map(|line| uncomment(line) + "\n").collect();
    let shown: BTreeMap<String, BTreeMap<String, Value>> = toml::from_str(&uncommented).unwrap();
    for key in KEYS.iter() {
        let path = key.path();
        let value = shown[&key.section].get(&key.name).unwrap_or_else(|| panic!("`{path}` is not in the example"));
        if !["input.topics", "output.topic", "kafka.bootstrap_servers"].contains(&path.as_str())
            && key.kind != Kind::Table
        {
            let default = if key.default.is_null() { Value::from("") } else { key.default.clone() };
            assert_eq!(*value, default, "{path}");
        }
    }
    let full = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(full.path(), uncommented).unwrap();
    Settings::load(&sources(full.path())).unwrap();
}

fn sources(file: &Path) -> Sources {
    Sources { file: Some(file.to_owned()), ..Sources::default() }
}

/// A line `# key = value` or `# [table]` without its mark; prose stays as it is.
fn uncomment(line: &str) -> String {
    let Some(rest) = line.strip_prefix("# ") else { return line.to_owned() };
    let name = rest.split(" = ").next().unwrap_or_default();
    let is_key = name.len() < rest.len() && !name.contains(' ');
    let is_table = rest.starts_with('[') && rest.ends_with(']');
    if is_key || is_table { rest.to_owned() } else { line.to_owned() }
}

fn reference() -> String {
    let schema = keys::schema();
    let mut out = String::new();
    for section in keys::sections() {
        let about = schema["properties"][section]["description"].as_str().unwrap();
        write!(out, "\n### `[{section}]`\n\n{about}\n\n| key | type | default | meaning |\n|---|---|---|---|\n")
            .unwrap();
        for key in KEYS.iter().filter(|key| key.section == section) {
            writeln!(out, "| `{}` | {} | {} | {} |", key.name, type_of(key), default_of(key), meaning_of(key)).unwrap();
        }
    }
    out.push('\n');
    out
}

fn type_of(key: &Key) -> String {
    let name = match key.kind {
        Kind::Bool => "boolean",
        Kind::Integer => "integer",
        Kind::Number => "number",
        Kind::Text => "string",
        Kind::Choice(_) => "choice",
        Kind::List => "list of strings",
        Kind::Table => "table of strings",
    };
    match (key.minimum, key.maximum) {
        (Some(low), Some(high)) => format!("{name}, {low} to {high}"),
        (Some(low), None) if low > 0.0 => format!("{name}, at least {low}"),
        _ => name.to_owned(),
    }
}

fn default_of(key: &Key) -> String {
    match &key.default {
        Value::Null => "`\"\"`".to_owned(),
        other => format!("`{other}`"),
    }
}

fn meaning_of(key: &Key) -> String {
    let words = match &key.kind {
        Kind::Choice(words) => words.as_slice(),
        _ => &[],
    };
    let words: String = words.iter().map(|(word, meaning)| format!("<br>`{word}`: {meaning}")).collect();
    format!("{}{words}", key.doc.replace('|', "\\|"))
}
