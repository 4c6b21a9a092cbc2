//! Standoff of brat: a text in `.txt`, its entities in `.ann`, a pair of files a document.

use std::fmt::Write as _;

use super::foreign::{Labelled, bare, relabel, split_words};
use super::one_line;
use crate::encode::Annotation;

/// The entities, a line each. Brat has no places across line ends: such an entity is in pieces.
pub(super) fn write_ann(annotation: &Annotation) -> String {
    let mut out = String::new();
    for (number, entity) in annotation.entities.iter().enumerate() {
        let pieces: Vec<String> =
            pieces(&entity.text, entity.start).iter().map(|(start, end)| format!("{start} {end}")).collect();
        let text = one_line(&entity.text);
        let _ = writeln!(out, "T{}\t{} {}\t{text}", number + 1, entity.label, pieces.join(";"));
    }
    out
}

fn pieces(text: &str, start: usize) -> Vec<(usize, usize)> {
    let mut at = start;
    let mut pieces = Vec::new();
    for line in text.split('\n') {
        let length = line.chars().count();
        let skipped = line.chars().take_while(|c| c.is_whitespace()).count();
        let kept = line.trim().chars().count();
        if kept > 0 {
            pieces.push((at + skipped, at + skipped + kept));
        }
        at += length + 1;
    }
    pieces
}

/// Reads a pair of files; pieces of an entity are joined.
pub(super) fn read(text: &str, ann: &str, number: usize) -> Result<Annotation, String> {
    let mut annotation = bare(text, "brat", number);
    split_words(&mut annotation);
    let labels = ann.lines().filter(|line| line.starts_with('T')).map(label).collect::<Result<Vec<_>, _>>()?;
    relabel(&mut annotation, labels)?;
    Ok(annotation)
}

fn label(line: &str) -> Result<Labelled, String> {
    let wrong = || format!("not an entity of brat: {line}");
    let body = line.split('\t').nth(1).ok_or_else(wrong)?;
    let (label, places) = body.split_once(' ').ok_or_else(wrong)?;
    let mut ends = places.split([' ', ';']).map(|offset| offset.parse::<usize>().map_err(|_| wrong()));
    let first = ends.next().ok_or_else(wrong)??;
    let last = ends.next_back().ok_or_else(wrong)??;
    Ok(Labelled::new(first, last, label))
}
