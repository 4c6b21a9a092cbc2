//! Merging entries: each is matched to its key, brought to its type and checked, with errors that name key and layer.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::error::Layer;
use super::keys::{self, Key, Kind};
use super::layers::{Entry, flatten};
use super::rules;

/// The values that were given, and where each came from.
#[derive(Default)]
pub(super) struct Merged {
    /// By section, then key.
    pub(super) values: Map<String, Value>,
    /// By `section.key`, or `section.key.property`.
    pub(super) origins: BTreeMap<String, Layer>,
}

/// Merges entries, the last of a key wins; problems are added to the list.
pub(super) fn merge(entries: Vec<Entry>, problems: &mut Vec<String>) -> Merged {
    let mut merged = Merged::default();
    for entry in entries {
        if let Err(mut found) = merged.add(entry) {
            problems.append(&mut found);
        }
    }
    merged
}

impl Merged {
    fn add(&mut self, entry: Entry) -> Result<(), Vec<String>> {
        match entry.path.as_slice() {
            [section] if keys::sections().any(|known| known == section) => empty_section(&entry).map_err(|e| vec![e]),
            [section, name, property @ ..] => match keys::find(section, name) {
                Some(key) if key.kind == Kind::Table => {
                    let property = property.join(".");
                    self.add_properties(key, property, entry)
                }
                Some(key) => self.add_value(key, &entry).map_err(|problem| vec![problem]),
                None => Err(vec![unknown(&entry)]),
            },
            _ => Err(vec![unknown(&entry)]),
        }
    }

    fn add_value(&mut self, key: &Key, entry: &Entry) -> Result<(), String> {
        let value = if entry.path.len() > 2 { Err(expected(&key.kind, "a table")) } else { checked(key, entry) };
        let value = value.map_err(|problem| complaint(&key.path(), &entry.layer, &problem))?;
        self.origins.insert(key.path(), entry.layer.clone());
        self.section(key).insert(key.name.clone(), value);
        Ok(())
    }

    /// One property, or without a name a whole table of them.
    fn add_properties(&mut self, key: &Key, property: String, entry: Entry) -> Result<(), Vec<String>> {
        if !property.is_empty() {
            return self.add_property(key, property, &entry).map_err(|problem| vec![problem]);
        }
        let table = match (entry.value, &entry.text) {
            (Value::Object(table), _) => table,
            (_, Some(text)) if text.is_empty() => Map::new(),
            (_, Some(text)) => serde_json::from_str(text).map_err(|_| {
                let example = r#"{"socket.keepalive.enable": "true"}"#;
                vec![complaint(&key.path(), &entry.layer, &format!("expected a JSON object such as {example}"))]
            })?,
            (other, None) => {
                let problem = expected(&key.kind, &found(&other, true));
                return Err(vec![complaint(&key.path(), &entry.layer, &problem)]);
            }
        };
        let properties = flatten(table, None, &entry.layer);
        let add = |one: Entry| self.add_property(key, one.path.join("."), &one).err();
        let problems: Vec<_> = properties.into_iter().filter_map(add).collect();
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    fn add_property(&mut self, key: &Key, property: String, entry: &Entry) -> Result<(), String> {
        let path = format!("{}.{property}", key.path());
        let fail = |problem: String| complaint(&path, &entry.layer, &problem);
        rules::entry(&key.path(), &property).map_err(fail)?;
        let value = match (&entry.value, &entry.text) {
            (Value::String(text), _) | (_, Some(text)) => text.clone(),
            (value @ (Value::Bool(_) | Value::Number(_)), None) => value.to_string(),
            (other, None) => return Err(fail(expected(&Kind::Text, &found(other, true)))),
        };
        self.origins.insert(path.clone(), entry.layer.clone());
        let table = self.section(key).entry(&key.name).or_insert_with(|| Value::Object(Map::new()));
        table.as_object_mut().expect("a table of properties").insert(property, Value::String(value));
        Ok(())
    }

    fn section(&mut self, key: &Key) -> &mut Map<String, Value> {
        let section = self.values.entry(&key.section).or_insert_with(|| Value::Object(Map::new()));
        section.as_object_mut().expect("a section is a table")
    }
}

/// A value for a section itself: fine if there is nothing in it.
fn empty_section(entry: &Entry) -> Result<(), String> {
    match &entry.value {
        Value::Null => Ok(()),
        Value::Object(table) if table.is_empty() => Ok(()),
        other => Err(complaint(&entry.path[0], &entry.layer, &expected(&Kind::Table, &found(other, true)))),
    }
}

fn unknown(entry: &Entry) -> String {
    let hint = keys::nearest(&entry.path).map(|known| format!("; did you mean `{known}`?")).unwrap_or_default();
    format!("unknown key `{}` in {}{hint}", entry.path.join("."), entry.layer)
}

/// The value in the type of its key, within its bounds and rules.
fn checked(key: &Key, entry: &Entry) -> Result<Value, String> {
    let value = typed(key, entry)?;
    match &value {
        Value::Number(number) => bounds(key, number.as_f64().unwrap_or(f64::NAN), number)?,
        Value::String(text) if text.is_empty() && !key.may_be_empty() => return Err("must not be empty".to_owned()),
        Value::String(text) if !text.is_empty() => rules::text(&key.path(), text)?,
        Value::Array(items) => {
            items.iter().filter_map(Value::as_str).try_for_each(|item| rules::text(&key.path(), item))?;
        }
        _ => {}
    }
    Ok(value)
}

fn typed(key: &Key, entry: &Entry) -> Result<Value, String> {
    let value = match key.kind {
        Kind::Text | Kind::Choice(_) => as_text(entry),
        Kind::List => as_list(entry),
        _ => as_data(entry),
    };
    let wrong = || Err(expected(&key.kind, &found(&value, key.secret)));
    match (&key.kind, &value) {
        (_, Value::String(text)) if text.is_empty() && key.optional => Ok(Value::Null),
        (Kind::Choice(words), Value::String(text)) if !words.iter().any(|(word, _)| word == text) => wrong(),
        (Kind::Text | Kind::Choice(_), Value::String(_)) | (Kind::Bool, Value::Bool(_)) => Ok(value),
        (Kind::Integer, Value::Number(number)) if !number.is_f64() => Ok(value),
        (Kind::Number, Value::Number(_)) => Ok(value),
        (Kind::List, Value::String(text)) => Ok(comma_separated(text)),
        (Kind::List, Value::Array(items)) => match items.iter().find(|item| !item.is_string()) {
            None => Ok(value),
            Some(other) => Err(expected(&key.kind, &format!("{} in it", found(other, false)))),
        },
        _ => wrong(),
    }
}

/// For a key that holds text: as written, unless it was a quoted string.
fn as_text(entry: &Entry) -> Value {
    match (&entry.value, &entry.text) {
        (Value::String(_), _) | (_, None) => entry.value.clone(),
        (_, Some(text)) => Value::String(text.clone()),
    }
}

/// For a list: text in brackets is JSON, other text is comma-separated.
fn as_list(entry: &Entry) -> Value {
    match &entry.text {
        Some(text) if text.starts_with('[') => as_data(entry),
        _ => as_text(entry),
    }
}

/// For numbers and the like: as parsed; what came as text is read as JSON.
fn as_data(entry: &Entry) -> Value {
    match (&entry.value, &entry.text) {
        (Value::String(_), Some(text)) if !text.starts_with(['"', '\'']) => {
            serde_json::from_str(text).unwrap_or_else(|_| entry.value.clone())
        }
        _ => entry.value.clone(),
    }
}

fn comma_separated(text: &str) -> Value {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()
}

fn bounds(key: &Key, value: f64, shown: &serde_json::Number) -> Result<(), String> {
    let (low, high) = (key.minimum.unwrap_or(f64::NEG_INFINITY), key.maximum.unwrap_or(f64::INFINITY));
    if (low..=high).contains(&value) {
        return Ok(());
    }
    match (key.minimum, key.maximum) {
        (Some(low), Some(high)) => Err(format!("must be between {low} and {high}, found {shown}")),
        (Some(low), None) => Err(format!("must be at least {low}, found {shown}")),
        _ => Err(format!("must be at most {high}, found {shown}")),
    }
}

fn complaint(key: &str, layer: &Layer, problem: &str) -> String {
    format!("`{key}` in {layer}: {problem}")
}

fn expected(kind: &Kind, found: &str) -> String {
    format!("expected {kind}, found {found}")
}

/// What a value is, without its content where that must not be shown.
fn found(value: &Value, hide: bool) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a table".to_owned(),
        Value::String(_) if hide => "a string".to_owned(),
        Value::String(text) => format!("the string {text:?}"),
        _ if hide => "a number or boolean".to_owned(),
        scalar => format!("`{scalar}`"),
    }
}
