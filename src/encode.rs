//! Tags to output bytes: builds the [`Annotation`] of a document and writes it.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use crate::convert;
use crate::decode::Document;
use crate::infer::Logits;
use crate::manifest::Task;
use crate::record::{Code, Position, Reject, Stage};
use crate::registry::Model;
use crate::tags::{Labels, Span, stitch};
use crate::tokenize::Tokens;

/// Version of the annotation format.
pub const SCHEMA_VERSION: u32 = 1;

/// What a record says of its text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Annotation {
    /// Version of this format.
    pub schema_version: u32,
    /// The id of the input, as it came.
    #[schemars(schema_with = "id_schema")]
    pub id: Option<Value>,
    /// Where the input stood.
    pub source: Source,
    /// What tagged it, a model for each slot of the worker.
    pub models: Vec<ModelInfo>,
    /// The text, as it came; the offsets refer to it.
    pub text: String,
    /// What the offsets count.
    pub offset_unit: OffsetUnit,
    /// The text was longer than a hard limit, and only its head was tagged.
    pub truncated: bool,
    /// Sentences, in order.
    pub sentences: Vec<Extent>,
    /// Words and punctuation marks, in order.
    pub tokens: Vec<Token>,
    /// Named entities, in order.
    pub entities: Vec<Entity>,
}

/// Where an input stood.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Topic, or path of the file.
    pub topic: String,
    /// Partition; 0 for files.
    pub partition: i32,
    /// Offset; for files the number of the line, from 0, and of `vitag backfill` the byte of the line or the number of the
    /// row.
    pub offset: i64,
    /// Time of the message in milliseconds since the epoch, where it has one.
    pub timestamp: Option<i64>,
}

/// A model that tagged a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelInfo {
    /// The slot that it serves.
    pub slot: String,
    /// What of the annotation comes from it: `pos` is the words, with or without parts of speech, `ner` the entities.
    pub tasks: Vec<Task>,
    /// Name of the model.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of its manifest, which names the hashes of its files.
    pub sha256: String,
    /// Which of its graphs ran.
    pub variant: String,
}

/// What offsets count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OffsetUnit {
    /// Unicode code points.
    #[default]
    CodePoint,
    /// Bytes of UTF-8.
    Byte,
    /// Units of UTF-16, as Java and JavaScript count.
    Utf16,
}

/// A half-open range of the text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// Where it starts.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
}

/// A word or punctuation mark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// The text between `start` and `end`.
    pub text: String,
    /// Where it starts.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// Part of speech, where the model tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pos: Option<String>,
    /// Mean probability of the labels that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pos_score: Option<f32>,
}

/// A named entity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Entity {
    /// Where it starts.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// Its type.
    pub label: String,
    /// The text between `start` and `end`.
    pub text: String,
    /// Mean probability of the labels that made it.
    pub score: f32,
    /// First token that it touches.
    pub token_start: usize,
    /// The token after the last that it touches.
    pub token_end: usize,
}

fn id_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": ["string", "number", "null"] })
}

/// How annotations are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// The form of the output.
    pub form: Form,
    /// What the offsets count.
    pub offset_unit: OffsetUnit,
    /// Largest output accepted, in bytes.
    pub max_record_bytes: usize,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self { form: Form::Envelope, offset_unit: OffsetUnit::CodePoint, max_record_bytes: 1_000_000 }
    }
}

/// The form of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// The annotation alone, as JSON.
    Envelope,
    /// The input object with the annotation under this key.
    Merge(String),
    /// CoNLL-U.
    Conllu,
    /// For people.
    Pretty(convert::Style),
}

/// What a model says of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Tags {
    /// Sentences, in order.
    pub sentences: Vec<Extent>,
    /// Words and punctuation marks, in order.
    pub tokens: Vec<Token>,
    /// Named entities, in order.
    pub entities: Vec<Entity>,
}

impl Tags {
    /// The memory that they take.
    pub fn bytes(&self) -> usize {
        let Self { sentences, tokens, entities } = self;
        let token = |token: &Token| token.text.capacity() + token.pos.as_ref().map_or(0, String::capacity);
        let entity = |entity: &Entity| entity.text.capacity() + entity.label.capacity();
        size_of::<Self>()
            + size_of_val(sentences.as_slice())
            + size_of_val(tokens.as_slice())
            + size_of_val(entities.as_slice())
            + tokens.iter().map(token).sum::<usize>()
            + entities.iter().map(entity).sum::<usize>()
    }
}

/// Reads the tags of a document from the logits of its windows.
pub fn tags(document: &Document, tokens: &Tokens, windows: &[&Logits], model: &Model, offset_unit: OffsetUnit) -> Tags {
    let text = document.text.as_str();
    let mut offsets = Offsets::new(text, offset_unit);
    let words = task_spans(Task::Pos, tokens, windows, model);
    let named = task_spans(Task::Ner, tokens, windows, model).unwrap_or_default();
    // A model that tells no words leaves the units themselves.
    let words: Vec<(std::ops::Range<usize>, Option<Span<'_>>)> = match words {
        Some(spans) => spans.into_iter().map(|span| (span.units.clone(), Some(span))).collect(),
        None => (0..tokens.units.len()).map(|unit| (unit..unit + 1, None)).collect(),
    };
    let bytes = |units: &std::ops::Range<usize>| tokens.units[units.start].start..tokens.units[units.end - 1].end;
    Tags {
        sentences: tokens.sentences.iter().map(|sentence| offsets.extent(&sentence.range)).collect(),
        tokens: words
            .iter()
            .map(|(units, span)| {
                let range = bytes(units);
                let Extent { start, end } = offsets.extent(&range);
                let pos = span.as_ref().map(|span| span.label.to_owned());
                Token {
                    text: text[range].to_owned(),
                    start,
                    end,
                    pos,
                    pos_score: span.as_ref().map(|s| round(s.score)),
                }
            })
            .collect(),
        entities: named
            .iter()
            .map(|span| {
                let range = bytes(&span.units);
                let Extent { start, end } = offsets.extent(&range);
                Entity {
                    start,
                    end,
                    label: span.label.to_owned(),
                    text: text[range].to_owned(),
                    score: round(span.score),
                    token_start: words.partition_point(|(units, _)| units.end <= span.units.start),
                    token_end: words.partition_point(|(units, _)| units.start < span.units.end),
                }
            })
            .collect(),
    }
}

/// Builds the annotation of a document from its tags by the model of a slot.
pub fn annotate(
    document: &Document,
    tags: Tags,
    (slot, model): (&str, &Model),
    (position, timestamp): (&Position, Option<i64>),
    offset_unit: OffsetUnit,
) -> Annotation {
    let manifest = &model.dir.manifest;
    let Tags { sentences, tokens, entities } = tags;
    Annotation {
        schema_version: SCHEMA_VERSION,
        id: document.id.clone(),
        source: Source {
            topic: position.partition.topic.to_string(),
            partition: position.partition.id,
            offset: position.offset,
            timestamp,
        },
        models: vec![ModelInfo {
            slot: slot.to_owned(),
            tasks: model.tasks().collect(),
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            sha256: model.dir.sha256.clone(),
            variant: model.variant.to_string(),
        }],
        text: document.text.clone(),
        offset_unit,
        truncated: document.truncated,
        sentences,
        tokens,
        entities,
    }
}

/// Makes one annotation of what the models of several slots say of a document: words from the one that tells parts of
/// speech, entities from the one that finds them. Nothing comes of nothing.
pub fn join(parts: Vec<Annotation>) -> Option<Annotation> {
    let mut parts = parts.into_iter();
    let mut joined = parts.next()?;
    for part in parts {
        let tells = |task| part.models.iter().any(|model| model.tasks.contains(&task));
        if tells(Task::Ner) {
            joined.entities = part.entities;
        }
        if tells(Task::Pos) {
            joined.tokens = part.tokens;
        }
        joined.models.extend(part.models);
    }
    let Annotation { tokens, entities, .. } = &mut joined;
    for entity in entities {
        entity.token_start = tokens.partition_point(|token| token.end <= entity.start);
        entity.token_end = tokens.partition_point(|token| token.start < entity.end);
    }
    Some(joined)
}

/// The spans that the model's head for `task` finds, if it has one.
fn task_spans<'m>(task: Task, tokens: &Tokens, windows: &[&Logits], model: &'m Model) -> Option<Vec<Span<'m>>> {
    let (head, labels): (usize, &Labels) = model.head(task)?;
    let of_head: Vec<&Vec<f32>> = windows.iter().map(|logits| &logits[head]).collect();
    let logits = stitch(tokens, &of_head, labels.count());
    let path = labels.best_by_sentence(&tokens.sentences, &logits);
    // A sentence never begins with an `I-…`, so no span runs on into the next one.
    Some(labels.spans(&path, &labels.probabilities(&logits, &path)))
}

/// Writes an annotation; `input` is the value that it annotates.
///
/// # Errors
/// When the output is too large, or the input is no object to merge into.
pub fn encode(annotation: &Annotation, input: &[u8], options: &EncodeOptions) -> Result<Vec<u8>, Reject> {
    let bytes = match &options.form {
        Form::Envelope => serde_json::to_vec(annotation).map_err(|e| not_an_object(&e))?,
        Form::Merge(key) => merge(annotation, input, key)?,
        Form::Conllu => convert::conllu(annotation).into_bytes(),
        Form::Pretty(style) => convert::pretty(annotation, *style).into_bytes(),
    };
    let (length, limit) = (bytes.len(), options.max_record_bytes);
    if length > limit {
        let message = format!("the annotation has {length} bytes, the limit is {limit}");
        return Err(Reject::new(Stage::Encode, Code::OutputTooLarge, message));
    }
    Ok(bytes)
}

/// The members of the input stay as they were written, numbers and order included.
fn merge(annotation: &Annotation, input: &[u8], key: &str) -> Result<Vec<u8>, Reject> {
    let mut object: IndexMap<String, Box<RawValue>> = serde_json::from_slice(input).map_err(|e| not_an_object(&e))?;
    object.insert(key.to_owned(), to_raw_value(annotation).map_err(|e| not_an_object(&e))?);
    serde_json::to_vec(&object).map_err(|e| not_an_object(&e))
}

fn not_an_object(error: &serde_json::Error) -> Reject {
    Reject::new(Stage::Encode, Code::WrongType, format!("the input is not an object to merge into: {error}"))
}

/// Four digits tell all that a probability can.
fn round(score: f32) -> f32 {
    (score * 1e4).round() / 1e4
}

/// Turns byte offsets, asked for in any order, into those of a unit.
struct Offsets<'t> {
    text: &'t str,
    unit: OffsetUnit,
    /// The last answer: bytes and units from the start of the text.
    last: (usize, usize),
}

impl<'t> Offsets<'t> {
    fn new(text: &'t str, unit: OffsetUnit) -> Self {
        Self { text, unit, last: (0, 0) }
    }

    fn extent(&mut self, range: &std::ops::Range<usize>) -> Extent {
        Extent { start: self.at(range.start), end: self.at(range.end) }
    }

    /// Counts on from the last answer: questions come nearly in order.
    fn at(&mut self, byte: usize) -> usize {
        let (from, units) = if byte >= self.last.0 { self.last } else { (0, 0) };
        let between = &self.text[from..byte];
        let more = match self.unit {
            OffsetUnit::Byte => between.len(),
            OffsetUnit::CodePoint => between.chars().count(),
            OffsetUnit::Utf16 => between.chars().map(char::len_utf16).sum(),
        };
        self.last = (byte, units + more);
        self.last.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn offsets_point_at_the_same_text_in_every_unit(text in "(\\PC|e\u{301}|👍🏽|\r\n|ệ){0,40}", picks in prop::collection::vec((0usize..60, 0usize..60), 1..8)) {
            let bounds: Vec<usize> = text.char_indices().map(|(i, _)| i).chain([text.len()]).collect();
            for unit in [OffsetUnit::Byte, OffsetUnit::CodePoint, OffsetUnit::Utf16] {
                let mut offsets = Offsets::new(&text, unit);
                for &(a, b) in &picks {
                    let (a, b) = (bounds[a % bounds.len()], bounds[b % bounds.len()]);
                    let (start, end) = (a.min(b), a.max(b));
                    let extent = offsets.extent(&(start..end));
                    let found = match unit {
                        OffsetUnit::Byte => text[extent.start..extent.end].to_owned(),
                        OffsetUnit::CodePoint => text.chars().skip(extent.start).take(extent.end - extent.start).collect(),
                        OffsetUnit::Utf16 => {
                            let units: Vec<u16> = text.encode_utf16().collect();
                            String::from_utf16(&units[extent.start..extent.end]).unwrap()
                        }
                    };
                    prop_assert_eq!(found, &text[start..end]);
                }
            }
        }
    }
}
