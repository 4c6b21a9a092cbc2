//! The known keys, read off the section structs, so that checks, suggestions and the reference cannot drift from them.

use std::fmt;
use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::Settings;

/// Least likeness of a known key that is worth suggesting, 0 to 1.
const LEAST_LIKENESS: f64 = 0.6;

/// One setting.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) section: String,
    pub(super) name: String,
    pub(super) kind: Kind,
    /// An empty string leaves it unset.
    pub(super) optional: bool,
    pub(super) secret: bool,
    pub(super) minimum: Option<f64>,
    pub(super) maximum: Option<f64>,
    pub(super) default: Value,
    /// Only the reference shows it.
    #[cfg_attr(not(test), expect(dead_code))]
    pub(super) doc: String,
}

impl Key {
    /// `section.name`.
    pub(super) fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// Whether an empty string is a value (or unsets it).
    pub(super) fn may_be_empty(&self) -> bool {
        self.optional || self.default == ""
    }
}

/// What a setting holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Integer,
    Number,
    Text,
    /// The words and their meanings.
    Choice(Vec<(String, String)>),
    List,
    Table,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("true or false"),
            Self::Integer => f.write_str("an integer"),
            Self::Number => f.write_str("a number"),
            Self::Text => f.write_str("a string"),
            Self::Choice(words) => {
                let words: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
                write!(f, "one of {}", words.join(", "))
            }
            Self::List => f.write_str("a list of strings"),
            Self::Table => f.write_str("a table"),
        }
    }
}

/// Every key, in the order of the structs.
pub(super) static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| {
    let order = declared_order();
    let root = schema();
    order.iter().flat_map(|(section, names)| names.iter().map(|name| key(&root, section, name))).collect()
});

/// The sections, in the order of the structs.
pub(super) fn sections() -> impl Iterator<Item = &'static str> {
    KEYS.chunk_by(|a, b| a.section == b.section).map(|keys| keys[0].section.as_str())
}

/// The key `section.name`.
pub(super) fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

/// The known key or section most like an unknown one.
pub(super) fn nearest(path: &[String]) -> Option<String> {
    let known = KEYS.iter().map(Key::path).chain(sections().map(str::to_owned));
    let scored = known.map(|known| (likeness(path, &known), known));
    let (score, known) = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (score >= LEAST_LIKENESS).then_some(known)
}

/// How alike an unknown and a known key are: the whole of both, or the last part where the first is missing or wrong.
fn likeness(path: &[String], known: &str) -> f64 {
    let whole = strsim::normalized_damerau_levenshtein(&path[..path.len().min(2)].join("."), known);
    let Some((_, name)) = known.split_once('.') else { return whole };
    let last = strsim::normalized_damerau_levenshtein(&path[path.len().min(2) - 1], name);
    whole.max(0.95 * last)
}

/// The JSON Schema of the settings, without references.
pub(super) fn schema() -> Value {
    let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<Settings>().to_value()
}

fn key(root: &Value, section: &str, name: &str) -> Key {
    let schema = &root["properties"][section]["properties"][name];
    Key {
        section: section.to_owned(),
        name: name.to_owned(),
        kind: kind(schema),
        optional: is_nullable(schema),
        secret: schema["writeOnly"] == true,
        minimum: schema["minimum"].as_f64(),
        maximum: schema["maximum"].as_f64(),
        default: schema["default"].clone(),
        doc: schema["description"].as_str().unwrap_or_default().replace('\n', " "),
    }
}

fn kind(schema: &Value) -> Kind {
    let words = words(schema);
    if !words.is_empty() {
        return Kind::Choice(words);
    }
    let is = |name: &str| schema["type"] == name || schema["type"][0] == name;
    match () {
        () if is("boolean") => Kind::Bool,
        () if is("integer") => Kind::Integer,
        () if is("number") => Kind::Number,
        () if is("array") => Kind::List,
        () if is("object") => Kind::Table,
        () => Kind::Text,
    }
}

/// The words of a choice and what they mean; an optional choice holds them one level deeper.
fn words(schema: &Value) -> Vec<(String, String)> {
    let variants = schema["oneOf"].as_array().or(schema["anyOf"].as_array()).into_iter().flatten();
    let read = |variant: &Value| match variant["const"].as_str() {
        Some(word) => vec![(word.to_owned(), variant["description"].as_str().unwrap_or_default().to_owned())],
        None => words(variant),
    };
    variants.flat_map(read).collect()
}

fn is_nullable(schema: &Value) -> bool {
    let in_types = schema["type"].as_array().is_some_and(|types| types.iter().any(|name| name == "null"));
    let in_variants = schema["anyOf"].as_array().is_some_and(|all| all.iter().any(|one| one["type"] == "null"));
    in_types || in_variants
}

/// Sections and their keys as the structs declare them; a JSON Schema sorts them by name.
fn declared_order() -> Vec<(String, Vec<String>)> {
    let json = serde_json::to_string(&Settings::default()).expect("settings serialise");
    let sections: Pairs<Pairs<IgnoredAny>> = serde_json::from_str(&json).expect("what was written can be read");
    sections.0.into_iter().map(|(section, keys)| (section, keys.0.into_iter().map(|(key, _)| key).collect())).collect()
}

/// A JSON object in the order it is written.
struct Pairs<T>(Vec<(String, T)>);

impl<'de, T: serde::Deserialize<'de>> serde::Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor(std::marker::PhantomData))
    }
}

struct PairsVisitor<T>(std::marker::PhantomData<T>);

impl<'de, T: serde::Deserialize<'de>> Visitor<'de> for PairsVisitor<T> {
    type Value = Pairs<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Pairs(pairs))
    }
}
