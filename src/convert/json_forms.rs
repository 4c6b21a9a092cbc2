//! The JSON of other tools: spaCy, doccano, Label Studio, and what the token classification of Hugging Face answers.

use serde_json::{Value, json};

use super::EMBEDDED;
use super::foreign::{Labelled, bare, labels, relabel, split_words};
use super::offsets::Points;
use crate::encode::{Annotation, Extent, Token};

/// What `pipeline("token-classification", aggregation_strategy="simple")` gives for a text.
pub(super) fn write_hugging_face(annotation: &Annotation) -> Value {
    let entity = |e: &crate::encode::Entity| json!({ "entity_group": e.label, "score": e.score, "word": e.text, "start": e.start, "end": e.end });
    annotation.entities.iter().map(entity).collect()
}

/// What `Doc.to_json` of spaCy gives. It knows single spaces between tokens, and other white space as tokens.
pub(super) fn write_spacy(annotation: &Annotation) -> Value {
    let mut tokens = Vec::new();
    let mut push = |start: usize, end: usize, tag: &str| {
        let id = tokens.len();
        tokens.push(json!({ "id": id, "start": start, "end": end, "tag": tag }));
    };
    let points = Points::new(&annotation.text);
    let mut before = 0;
    for token in &annotation.tokens {
        if let Some((start, end)) = gap(&points, before, token.start) {
            push(start, end, "_SP");
        }
        push(token.start, token.end, token.pos.as_deref().unwrap_or_default());
        before = token.end;
    }
    if let Some((start, end)) = gap(&points, before, points.len()) {
        push(start, end, "_SP");
    }
    let ent = |l: Labelled| json!({ "start": l.start, "end": l.end, "label": l.label });
    // To spaCy every token is in a sentence, white space before the first one too.
    let sent = |(number, s): (usize, &Extent)| json!({ "start": if number == 0 { 0 } else { s.start }, "end": s.end });
    json!({
        "text": annotation.text,
        "ents": labels(annotation).into_iter().map(ent).collect::<Value>(),
        "sents": annotation.sentences.iter().enumerate().map(sent).collect::<Value>(),
        "tokens": tokens,
    })
}

/// What stands between two tokens beyond one space.
fn gap(points: &Points<'_>, start: usize, end: usize) -> Option<(usize, usize)> {
    let between = points.get(start, end)?;
    let space = usize::from(start > 0 && between.starts_with(' '));
    (end > start + space).then_some((start + space, end))
}

/// A document of doccano's sequence labelling.
pub(super) fn write_doccano(annotation: &Annotation) -> Value {
    let label = |l: Labelled| json!([l.start, l.end, l.label]);
    json!({ "text": annotation.text, "label": labels(annotation).into_iter().map(label).collect::<Value>() })
}

/// A task of Label Studio with a prediction, for a labelling interface with `<Text name="text">` and
/// `<Labels name="label">`.
pub(super) fn write_label_studio(annotation: &Annotation) -> Value {
    let names = annotation.models.iter().map(|model| format!("{}@{}", model.name, model.version));
    let region = |(number, e): (usize, &crate::encode::Entity)| {
        json!({
            "id": number.to_string(), "from_name": "label", "to_name": "text", "type": "labels", "score": e.score,
            "value": { "start": e.start, "end": e.end, "text": e.text, "labels": [e.label] },
        })
    };
    json!({
        "data": { "text": annotation.text },
        "predictions": [{
            "model_version": names.collect::<Vec<_>>().join(" "),
            "result": annotation.entities.iter().enumerate().map(region).collect::<Value>(),
        }],
    })
}

/// Where a document of a form holds what it has no place for.
pub(super) fn embed(document: &mut Value, annotation: Value) {
    let holder = if document.get("data").is_some() { &mut document["data"] } else { document };
    holder[EMBEDDED] = annotation;
}

/// What was embedded in a document.
pub(super) fn embedded(document: &Value) -> Option<&Value> {
    document.get(EMBEDDED).or_else(|| document.get("data")?.get(EMBEDDED))
}

/// Reads a document of spaCy: its tokens, tags, sentences and entities.
pub(super) fn read_spacy(document: &Value, number: usize) -> Result<Annotation, String> {
    let text = text(document, "/text")?;
    let mut annotation = bare(text, "spacy", number);
    let points = Points::new(text);
    for token in items(document, "/tokens") {
        let (start, end) = extent(token)?;
        let word = points.get(start, end).ok_or("a token lies outside of the text")?;
        if word.trim().is_empty() {
            continue;
        }
        let tag = token["tag"].as_str().filter(|tag| !tag.is_empty());
        let pos = tag.map(ToOwned::to_owned);
        annotation.tokens.push(Token { text: word.to_owned(), start, end, pos, pos_score: None });
    }
    for sentence in items(document, "/sents") {
        let (start, end) = extent(sentence)?;
        let text = points.get(start, end).ok_or("a sentence lies outside of the text")?;
        let space = text.chars().take_while(|c| c.is_whitespace()).count();
        annotation.sentences.push(Extent { start: start + space, end });
    }
    if annotation.sentences.is_empty() {
        annotation.sentences.push(Extent { start: 0, end: points.len() });
    }
    relabel(&mut annotation, spacy_labels(document)?)?;
    Ok(annotation)
}

/// The entities of a document of spaCy.
pub(super) fn spacy_labels(document: &Value) -> Result<Vec<Labelled>, String> {
    let label = |ent: &Value| {
        let (start, end) = extent(ent)?;
        Ok(Labelled::new(start, end, text(ent, "/label")?))
    };
    items(document, "/ents").map(label).collect()
}

/// Reads a document of doccano, whose labels are in `label` or `labels`.
pub(super) fn read_doccano(document: &Value, number: usize) -> Result<Annotation, String> {
    let mut annotation = bare(text(document, "/text")?, "doccano", number);
    split_words(&mut annotation);
    relabel(&mut annotation, doccano_labels(document)?)?;
    Ok(annotation)
}

/// The labels of a document of doccano.
pub(super) fn doccano_labels(document: &Value) -> Result<Vec<Labelled>, String> {
    let label = |label: &Value| match (label[0].as_u64(), label[1].as_u64(), label[2].as_str()) {
        (Some(start), Some(end), Some(label)) => Ok(Labelled::new(start as usize, end as usize, label)),
        _ => Err(format!("{label} is not [start, end, label]")),
    };
    items(document, "/label").chain(items(document, "/labels")).map(label).collect()
}

/// Reads a task of Label Studio.
pub(super) fn read_label_studio(document: &Value, number: usize) -> Result<Annotation, String> {
    let mut annotation = bare(text(document, "/data/text")?, "label-studio", number);
    split_words(&mut annotation);
    relabel(&mut annotation, label_studio_labels(document)?)?;
    Ok(annotation)
}

/// The labels of the first annotation of a task, or of its first prediction where nobody has annotated it.
pub(super) fn label_studio_labels(document: &Value) -> Result<Vec<Labelled>, String> {
    let annotated = document.pointer("/annotations/0/result").is_some();
    let at = if annotated { "/annotations/0/result" } else { "/predictions/0/result" };
    let label = |region: &Value| {
        let (start, end) = extent(&region["value"])?;
        Ok(Labelled::new(start, end, text(region, "/value/labels/0")?))
    };
    items(document, at).filter(|region| region["type"] == "labels").map(label).collect()
}

fn items<'v>(value: &'v Value, pointer: &str) -> impl Iterator<Item = &'v Value> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn text<'v>(value: &'v Value, pointer: &str) -> Result<&'v str, String> {
    value.pointer(pointer).and_then(Value::as_str).ok_or_else(|| format!("no text at {pointer}"))
}

fn extent(value: &Value) -> Result<(usize, usize), String> {
    let offset = |key: &str| value[key].as_u64().and_then(|offset| usize::try_from(offset).ok());
    offset("start").zip(offset("end")).ok_or_else(|| format!("no start and end in {value}"))
}
