//! CoNLL-U, and the columns of the shared tasks of CoNLL: a word a line, an empty line after a sentence.

use std::fmt::Write as _;
use std::ops::Range;

use super::foreign::{Composed, bare, entities_of, relabel};
use super::{EMBEDDED, conllu, entity_at, one_line, sentences};
use crate::encode::{Annotation, Extent, Token};

/// A document in CoNLL-U; what the format has no place for is in a comment, unless it is left out.
pub(super) fn write_conllu(annotation: &Annotation, whole: Option<&str>) -> String {
    let text = conllu(annotation);
    let Some(whole) = whole else { return text };
    let (head, rest) = text.split_once('\n').unwrap_or((&text, ""));
    format!("{head}\n# {EMBEDDED} = {whole}\n{rest}")
}

/// A document in columns: the word and its entity, or the word, its part of speech, no chunk, and its entity.
pub(super) fn write_columns(annotation: &Annotation, four: bool) -> String {
    let mut out = String::from(if four { "-DOCSTART- -X- O O\n\n" } else { "-DOCSTART- O\n\n" });
    for (tokens, _) in sentences(annotation) {
        for index in tokens {
            let token = &annotation.tokens[index];
            let word = one_line(&token.text).replace(' ', "_");
            let tag = match entity_at(annotation, index) {
                Some(entity) if entity.token_start == index => format!("B-{}", entity.label),
                Some(entity) => format!("I-{}", entity.label),
                None => "O".to_owned(),
            };
            let pos = token.pos.as_deref().unwrap_or("-X-");
            let _ = if four { writeln!(out, "{word} {pos} O {tag}") } else { writeln!(out, "{word} {tag}") };
        }
        out.push('\n');
    }
    out
}

/// Begins a comment of CoNLL-U.
const COMMENT: &str = "#";
/// Begins a document in columns.
const DOCUMENT: &str = "-DOCSTART-";

/// A word on its line.
struct Word<'t> {
    text: String,
    pos: Option<&'t str>,
    tag: &'t str,
    space_after: bool,
}

/// Documents in CoNLL-U, by their comments.
pub(super) fn conllu_documents(text: &str) -> Vec<String> {
    blocks(text, COMMENT, |line| line.starts_with("# newdoc"))
}

/// Documents in columns, by their first lines.
pub(super) fn column_documents(text: &str) -> Vec<String> {
    blocks(text, DOCUMENT, |line| line.starts_with(DOCUMENT))
}

fn blocks(text: &str, head: &str, begins: impl Fn(&str) -> bool) -> Vec<String> {
    let mut documents: Vec<String> = Vec::new();
    for line in text.lines() {
        if documents.is_empty() || begins(line) {
            documents.push(String::new());
        }
        if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    documents.retain(|document| document.lines().any(|line| is_word(line, head)));
    documents
}

/// Of CoNLL-U, what is no comment; of columns, what is not the head of a document.
fn is_word(line: &str, head: &str) -> bool {
    !line.trim().is_empty() && !line.starts_with(head)
}

/// What was embedded in a document.
pub(super) fn embedded(document: &str) -> Option<&str> {
    document.lines().find_map(|line| line.strip_prefix("# ")?.strip_prefix(EMBEDDED)?.strip_prefix(" = "))
}

/// Reads a document in CoNLL-U.
pub(super) fn read_conllu(document: &str, number: usize) -> Result<Annotation, String> {
    let mut annotation = read((document, COMMENT), "conllu", number, |line| {
        let fields: Vec<&str> = line.split('\t').collect();
        let &[id, form, _, pos, _, _, _, _, _, misc] = &fields[..] else {
            return Err(format!("{} columns instead of 10: {line}", fields.len()));
        };
        // Tokens of several words, and words that are not written, have no place in the text of their own.
        if id.contains(['-', '.']) {
            return Ok(None);
        }
        let misc = |name: &str| misc.split('|').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        Ok(Some(Word {
            text: form.to_owned(),
            pos: Some(pos).filter(|pos| *pos != "_"),
            tag: misc("NER").unwrap_or("O"),
            space_after: misc("SpaceAfter") != Some("No"),
        }))
    })?;
    let id = document.lines().find_map(|line| line.strip_prefix("# newdoc id = "));
    annotation.id = id.map(Into::into);
    Ok(annotation)
}

/// Reads a document in columns; underscores in words were spaces.
pub(super) fn read_columns(document: &str, four: bool, number: usize) -> Result<Annotation, String> {
    read((document, DOCUMENT), if four { "conll4" } else { "conll2" }, number, |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (word, pos, tag) = match (&fields[..], four) {
            (&[word, tag], false) => (word, None, tag),
            (&[word, pos, _, tag], true) => (word, Some(pos).filter(|pos| *pos != "-X-"), tag),
            _ => return Err(format!("{} columns instead of {}: {line}", fields.len(), if four { 4 } else { 2 })),
        };
        let is_joined = word.chars().any(|c| c != '_');
        let text = if is_joined { word.replace('_', " ") } else { word.to_owned() };
        Ok(Some(Word { text, pos, tag, space_after: true }))
    })
}

fn read<'t>(
    (document, head): (&'t str, &str),
    format: &str,
    number: usize,
    word: impl Fn(&'t str) -> Result<Option<Word<'t>>, String>,
) -> Result<Annotation, String> {
    let (mut composed, mut tokens, mut sentences) = (Composed::default(), Vec::new(), Vec::new());
    let mut tags: Vec<(Range<usize>, &str)> = Vec::new();
    let (mut space, mut sentence): (bool, Option<Extent>) = (true, None);
    for line in document.lines() {
        if line.trim().is_empty() {
            sentences.extend(sentence.take());
            // An entity ends with its sentence.
            tags.push((0..0, "O"));
            continue;
        }
        let Some(word) = is_word(line, head).then(|| word(line)).transpose()?.flatten() else { continue };
        let range = composed.push(&word.text, space || sentence.is_none());
        space = word.space_after;
        let start = sentence.as_ref().map_or(range.start, |sentence| sentence.start);
        sentence = Some(Extent { start, end: range.end });
        let Range { start, end } = range;
        tokens.push(Token { text: word.text, start, end, pos: word.pos.map(Into::into), pos_score: None });
        tags.push((range, word.tag));
    }
    sentences.extend(sentence);
    let mut annotation = bare(&composed.text, format, number);
    (annotation.tokens, annotation.sentences) = (tokens, sentences);
    relabel(&mut annotation, entities_of(&tags))?;
    Ok(annotation)
}
