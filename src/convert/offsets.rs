//! Offsets of an annotation in code points, which is what the tools of Python count.

use crate::encode::{Annotation, OffsetUnit};

/// The same annotation with its offsets in code points.
pub(super) fn in_code_points(mut annotation: Annotation) -> Annotation {
    let unit = std::mem::replace(&mut annotation.offset_unit, OffsetUnit::CodePoint);
    if unit == OffsetUnit::CodePoint {
        return annotation;
    }
    let starts = starts(&annotation.text, unit);
    // An offset within a character, which nobody should write, is that of the character after it.
    let place = |offset: &mut usize| *offset = starts.partition_point(|start| start < offset);
    let Annotation { sentences, tokens, entities, .. } = &mut annotation;
    sentences.iter_mut().for_each(|s| [&mut s.start, &mut s.end].into_iter().for_each(place));
    tokens.iter_mut().for_each(|t| [&mut t.start, &mut t.end].into_iter().for_each(place));
    entities.iter_mut().for_each(|e| [&mut e.start, &mut e.end].into_iter().for_each(place));
    annotation
}

/// Where each character starts.
fn starts(text: &str, unit: OffsetUnit) -> Vec<usize> {
    let width = |c: char| match unit {
        OffsetUnit::CodePoint => 1,
        OffsetUnit::Byte => c.len_utf8(),
        OffsetUnit::Utf16 => c.len_utf16(),
    };
    let start = |next: &mut usize, c| {
        let start = *next;
        *next += width(c);
        Some(start)
    };
    text.chars().scan(0, start).collect()
}

/// A text by code points.
pub(super) struct Points<'t> {
    text: &'t str,
    bytes: Vec<usize>,
}

impl<'t> Points<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let bytes = text.char_indices().map(|(byte, _)| byte).chain([text.len()]).collect();
        Self { text, bytes }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - 1
    }

    /// The text between two offsets; none where they are none of it.
    pub(super) fn get(&self, start: usize, end: usize) -> Option<&'t str> {
        self.text.get(*self.bytes.get(start)?..*self.bytes.get(end)?)
    }
}
