//! Annotations that others have written: made whole from what their formats hold.

use std::ops::Range;

use super::offsets::Points;
use crate::encode::{Annotation, Entity, Extent, OffsetUnit, SCHEMA_VERSION, Source, Token};

/// A labelled stretch of a text, in code points.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Labelled {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) label: String,
}

impl Labelled {
    pub(super) fn new(start: usize, end: usize, label: impl Into<String>) -> Self {
        Self { start, end, label: label.into() }
    }
}

/// The entities of an annotation.
pub(super) fn labels(annotation: &Annotation) -> Vec<Labelled> {
    annotation.entities.iter().map(|e| Labelled::new(e.start, e.end, e.label.clone())).collect()
}

/// An annotation of a text that says nothing of it.
pub(super) fn bare(text: &str, format: &str, number: usize) -> Annotation {
    Annotation {
        schema_version: SCHEMA_VERSION,
        id: None,
        source: Source { topic: format.to_owned(), partition: 0, offset: number as i64, timestamp: None },
        models: Vec::new(),
        text: text.to_owned(),
        offset_unit: OffsetUnit::CodePoint,
        truncated: false,
        sentences: Vec::new(),
        tokens: Vec::new(),
        entities: Vec::new(),
    }
}

/// Words by white space, in one sentence, for a format that has none.
pub(super) fn split_words(annotation: &mut Annotation) {
    let mut start = None;
    let points: Vec<char> = annotation.text.chars().collect();
    for (at, c) in points.iter().chain([&' ']).enumerate() {
        match (start, c.is_whitespace()) {
            (None, false) => start = Some(at),
            (Some(from), true) => {
                let text = points[from..at].iter().collect();
                annotation.tokens.push(Token { text, start: from, end: at, pos: None, pos_score: None });
                start = None;
            }
            _ => {}
        }
    }
    annotation.sentences = vec![Extent { start: 0, end: points.len() }];
}

/// Puts `labels` in place of the entities of an annotation; those that it had already keep their scores.
///
/// # Errors
/// When a label lies outside of the text.
pub(super) fn relabel(annotation: &mut Annotation, mut labels: Vec<Labelled>) -> Result<(), String> {
    labels.sort();
    let had = std::mem::take(&mut annotation.entities);
    let points = Points::new(&annotation.text);
    for Labelled { start, end, label } in labels {
        let text = points.get(start, end).filter(|text| !text.is_empty());
        let text = text.ok_or_else(|| format!("the label {label} at {start} to {end} lies outside of the text"))?;
        let same = had.iter().find(|old| (old.start, old.end) == (start, end) && old.label == label);
        let token_start = annotation.tokens.partition_point(|token| token.end <= start);
        let token_end = annotation.tokens.partition_point(|token| token.start < end).max(token_start);
        let new = || Entity { start, end, label, text: text.to_owned(), score: 1.0, token_start, token_end };
        annotation.entities.push(same.cloned().unwrap_or_else(new));
    }
    Ok(())
}

/// A text that is put together from words, with their places.
#[derive(Default)]
pub(super) struct Composed {
    pub(super) text: String,
    length: usize,
}

impl Composed {
    /// Adds a word, and a space before it if there is to be one.
    pub(super) fn push(&mut self, word: &str, space: bool) -> Range<usize> {
        if space && self.length > 0 {
            self.text.push(' ');
            self.length += 1;
        }
        let start = self.length;
        self.text.push_str(word);
        self.length += word.chars().count();
        start..self.length
    }
}

/// Entities of tags in BIO, by tokens; a tag I that continues nothing begins one.
pub(super) fn entities_of(tags: &[(Range<usize>, &str)]) -> Vec<Labelled> {
    let mut found: Vec<Labelled> = Vec::new();
    let mut open = false;
    for (range, tag) in tags {
        let Some((prefix, label)) = tag.split_once('-') else {
            open = false;
            continue;
        };
        match found.last_mut().filter(|last| open && prefix == "I" && last.label == label) {
            Some(last) => last.end = range.end,
            None => found.push(Labelled::new(range.start, range.end, label)),
        }
        open = true;
    }
    found
}
