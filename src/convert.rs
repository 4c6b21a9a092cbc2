//! Annotations in other forms: CoNLL-U for tools, colours for people.
//!
//! # Layout
//! What the worker and `vitag tag` write is here. `kind` is `vitag convert`, to and from the forms of other tools: those
//! in `columns`, in `json_forms`, of `brat` and in `parquet`. `foreign` makes whole what others have written, `offsets`
//! counts in code points.

mod brat;
mod columns;
mod foreign;
mod json_forms;
mod kind;
mod offsets;
pub mod parquet;
#[cfg(test)]
mod round_trips;

use std::fmt::Write as _;

use owo_colors::{AnsiColors, OwoColorize};

use crate::encode::{Annotation, Entity, Extent, Token};

pub use self::kind::{ConvertError, Kind, convert};

/// Name of the field or comment in which a format carries along what it has no place for.
const EMBEDDED: &str = "vitag";

/// Whether text for people has colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// With ANSI colours.
    Colour,
    /// Plain.
    Plain,
}

/// The annotation as CoNLL-U, one block a sentence; entities as `NER=` in the last column, in BIO.
///
/// Lemma, features and syntax are `_`: vitag does not tell them.
pub fn conllu(annotation: &Annotation) -> String {
    let mut out = String::new();
    let document = match &annotation.id {
        Some(serde_json::Value::String(id)) => one_line(id),
        Some(id) => id.to_string(),
        None => format!("{}-{}-{}", annotation.source.topic, annotation.source.partition, annotation.source.offset),
    };
    let _ = writeln!(out, "# newdoc id = {document}");
    for (number, (tokens, sentence)) in sentences(annotation).enumerate() {
        let text = sentence_text(annotation, sentence, tokens.clone());
        let _ = writeln!(out, "# sent_id = {document}-{}\n# text = {text}", number + 1);
        for (id, index) in tokens.clone().enumerate() {
            let token = &annotation.tokens[index];
            let pos = token.pos.as_deref().unwrap_or("_");
            let misc = misc(annotation, index, index + 1 == tokens.end);
            let _ = writeln!(out, "{}\t{}\t_\t{pos}\t_\t_\t_\t_\t_\t{misc}", id + 1, one_line(&token.text));
        }
        out.push('\n');
    }
    out
}

/// Words with their parts of speech, entities in brackets; a line a sentence.
pub fn pretty(annotation: &Annotation, style: Style) -> String {
    let mut out = String::new();
    for (tokens, _) in sentences(annotation) {
        let mut words = Vec::with_capacity(tokens.len());
        for index in tokens {
            let entity = entity_at(annotation, index);
            words.push(pretty_word(&annotation.tokens[index], index, entity, style));
        }
        out.push_str(&words.join(" "));
        out.push('\n');
    }
    out
}

fn pretty_word(token: &Token, index: usize, entity: Option<&Entity>, style: Style) -> String {
    let word = one_line(&token.text).replace(' ', "_");
    let pos = token.pos.as_ref().map(|pos| format!("/{pos}")).unwrap_or_default();
    let Some(entity) = entity else {
        return match style {
            Style::Plain => word + &pos,
            Style::Colour => word + &pos.dimmed().to_string(),
        };
    };
    let open = if index == entity.token_start { "[" } else { "" };
    let close = if index + 1 == entity.token_end { format!("]{}", entity.label) } else { String::new() };
    match style {
        Style::Plain => format!("{open}{word}{pos}{close}"),
        Style::Colour => {
            let colour = entity_colour(&entity.label);
            format!("{}{}{}{}", open.color(colour), word.color(colour).bold(), pos.dimmed(), close.color(colour))
        }
    }
}

fn entity_colour(label: &str) -> AnsiColors {
    match label {
        "PER" => AnsiColors::Green,
        "LOC" => AnsiColors::Cyan,
        "ORG" => AnsiColors::Yellow,
        _ => AnsiColors::Magenta,
    }
}

/// The tokens of every sentence, as a range of the annotation's.
fn sentences(annotation: &Annotation) -> impl Iterator<Item = (std::ops::Range<usize>, &Extent)> {
    annotation.sentences.iter().map(|sentence| {
        let first = annotation.tokens.partition_point(|token| token.end <= sentence.start);
        let last = annotation.tokens.partition_point(|token| token.start < sentence.end);
        (first..last, sentence)
    })
}

/// The sentence as its tokens spell it, so that `# text` and `SpaceAfter` agree.
fn sentence_text(annotation: &Annotation, sentence: &Extent, tokens: std::ops::Range<usize>) -> String {
    let mut text = String::new();
    for index in tokens {
        let token = &annotation.tokens[index];
        text.push_str(&one_line(&token.text));
        if token.end < sentence.end && space_after(annotation, index) {
            text.push(' ');
        }
    }
    text
}

fn misc(annotation: &Annotation, index: usize, ends_sentence: bool) -> String {
    let mut parts = Vec::new();
    if let Some(entity) = entity_at(annotation, index) {
        let prefix = if index == entity.token_start { 'B' } else { 'I' };
        parts.push(format!("NER={prefix}-{}", entity.label));
    }
    if !ends_sentence && !space_after(annotation, index) {
        parts.push("SpaceAfter=No".to_owned());
    }
    if parts.is_empty() { "_".to_owned() } else { parts.join("|") }
}

fn space_after(annotation: &Annotation, index: usize) -> bool {
    let end = annotation.tokens[index].end;
    annotation.tokens.get(index + 1).is_none_or(|next| next.start > end)
}

fn entity_at(annotation: &Annotation, index: usize) -> Option<&Entity> {
    annotation.entities.iter().find(|entity| (entity.token_start..entity.token_end).contains(&index))
}

/// Every run of white space as one space: fields of CoNLL-U hold no other.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{ModelInfo, OffsetUnit, SCHEMA_VERSION, Source};
    use crate::manifest::Task;

    fn annotation() -> Annotation {
        let text = "Bác  sĩ Hoa,\nở Huế.";
        let token = |word: &str, pos: &str| {
            let start = text.find(word).map(|byte| text[..byte].chars().count()).unwrap();
            let end = start + word.chars().count();
            Token { text: word.into(), start, end, pos: Some(pos.into()), pos_score: Some(1.0) }
        };
        let tokens = vec![
            token("Bác  sĩ", "NOUN"),
            token("Hoa", "PROPN"),
            token(",", "PUNCT"),
            token("ở", "ADP"),
            token("Huế", "PROPN"),
            token(".", "PUNCT"),
        ];
        let entity = |index: usize, label: &str| Entity {
            start: tokens[index].start,
            end: tokens[index].end,
            label: label.into(),
            text: tokens[index].text.clone(),
            score: 1.0,
            token_start: index,
            token_end: index + 1,
        };
        Annotation {
            schema_version: SCHEMA_VERSION,
            id: Some("a".into()),
            source: Source { topic: "in".into(), partition: 0, offset: 0, timestamp: None },
            models: vec![ModelInfo {
                slot: "default".into(),
                tasks: vec![Task::Pos, Task::Ner],
                name: "m".into(),
                version: "1".into(),
                sha256: "0".into(),
                variant: "f32".into(),
            }],
            text: text.into(),
            offset_unit: OffsetUnit::CodePoint,
            truncated: false,
            sentences: vec![Extent { start: 0, end: text.chars().count() }],
            entities: vec![entity(1, "PER"), entity(4, "LOC")],
            tokens,
        }
    }

    #[test]
    fn conllu_keeps_spaces_and_entities() {
        let expected = "# newdoc id = a\n# sent_id = a-1\n# text = Bác sĩ Hoa, ở Huế.\n\
            1\tBác sĩ\t_\tNOUN\t_\t_\t_\t_\t_\t_\n\
            2\tHoa\t_\tPROPN\t_\t_\t_\t_\t_\tNER=B-PER|SpaceAfter=No\n\
            3\t,\t_\tPUNCT\t_\t_\t_\t_\t_\t_\n\
            4\tở\t_\tADP\t_\t_\t_\t_\t_\t_\n\
            5\tHuế\t_\tPROPN\t_\t_\t_\t_\t_\tNER=B-LOC|SpaceAfter=No\n\
            6\t.\t_\tPUNCT\t_\t_\t_\t_\t_\t_\n\n";
        assert_eq!(conllu(&annotation()), expected);
    }

    #[test]
    fn pretty_brackets_entities() {
        let expected = "Bác_sĩ/NOUN [Hoa/PROPN]PER ,/PUNCT ở/ADP [Huế/PROPN]LOC ./PUNCT\n";
        assert_eq!(pretty(&annotation(), Style::Plain), expected);
    }
}
