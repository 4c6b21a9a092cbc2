//! Bytes to [`Document`]: finds the text (or words) and the id in a message value.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::record::{Code, Reject, Stage};

/// How message values are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeOptions {
    /// JSON object or plain text.
    pub format: Format,
    /// Where the text is (RFC 6901); for [`Format::Json`].
    pub text_pointer: String,
    /// Where the id is; a message without one still passes.
    pub id_pointer: Option<String>,
    /// Where the words are, an array of strings; when it leads to a value, that is tagged instead of the text.
    pub words_pointer: Option<String>,
    /// Longest text accepted, in bytes of UTF-8.
    pub max_text_bytes: usize,
    /// What happens to a longer one.
    pub on_too_large: OnTooLarge,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self {
            format: Format::default(),
            text_pointer: "/text".into(),
            id_pointer: Some("/id".into()),
            words_pointer: None,
            max_text_bytes: 256 * 1024,
            on_too_large: OnTooLarge::default(),
        }
    }
}

/// What a message value holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "worker", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A JSON value, addressed by the pointers.
    #[default]
    Json,
    /// The text itself, UTF-8.
    Text,
}

/// What happens to a text over the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "worker", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnTooLarge {
    /// It becomes a dead letter.
    #[default]
    Reject,
    /// Its head is tagged, and the annotation says `truncated`.
    Truncate,
}

/// A text to tag.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The text as it came; offsets refer to it. Words that came apart are joined by single spaces.
    pub text: String,
    /// Byte ranges of the words in `text`, where the input gave words.
    pub words: Option<Vec<std::ops::Range<usize>>>,
    /// The id as it came: a string or a number.
    pub id: Option<Value>,
    /// The text was cut at the limit.
    pub truncated: bool,
}

/// Reads a message value.
///
/// # Errors
/// A [`Reject`] where the bytes are not what the options describe.
pub fn decode(value: &[u8], options: &DecodeOptions) -> Result<Document, Reject> {
    let mut document = match options.format {
        Format::Text => Document { text: utf8(value)?.to_owned(), words: None, id: None, truncated: false },
        Format::Json => decode_json(value, options)?,
    };
    enforce_limit(&mut document, options)?;
    if document.text.trim().is_empty() {
        return Err(reject(Code::EmptyText, "the text is empty"));
    }
    Ok(document)
}

fn decode_json(value: &[u8], options: &DecodeOptions) -> Result<Document, Reject> {
    let input: Value =
        serde_json::from_str(utf8(value)?).map_err(|e| reject(Code::InvalidJson, format!("not JSON: {e}")))?;
    let id = match options.id_pointer.as_deref().and_then(|p| Some((p, input.pointer(p)?))) {
        None | Some((_, Value::Null)) => None,
        Some((_, id @ (Value::String(_) | Value::Number(_)))) => Some(id.clone()),
        Some((pointer, other)) => return Err(wrong_type(pointer, "a string or a number", other)),
    };
    let words = options.words_pointer.as_deref().and_then(|p| Some((p, input.pointer(p)?)));
    let (text, words) = match words {
        Some((pointer, value)) => {
            let (text, words) = join_words(pointer, value)?;
            (text, Some(words))
        }
        None => (text_at(&input, &options.text_pointer)?, None),
    };
    Ok(Document { text, words, id, truncated: false })
}

fn text_at(input: &Value, pointer: &str) -> Result<String, Reject> {
    match input.pointer(pointer) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(wrong_type(pointer, "a string", other)),
        None => Err(reject(Code::MissingField, format!("nothing at {pointer:?}"))),
    }
}

fn join_words(pointer: &str, value: &Value) -> Result<(String, Vec<std::ops::Range<usize>>), Reject> {
    let Value::Array(items) = value else {
        return Err(wrong_type(pointer, "an array of strings", value));
    };
    let (mut text, mut words) = (String::new(), Vec::with_capacity(items.len()));
    for item in items {
        let Value::String(word) = item else {
            return Err(wrong_type(pointer, "an array of strings", item));
        };
        if word.trim().is_empty() {
            continue;
        }
        if !text.is_empty() {
            text.push(' ');
        }
        words.push(text.len()..text.len() + word.len());
        text.push_str(word);
    }
    Ok((text, words))
}

fn enforce_limit(document: &mut Document, options: &DecodeOptions) -> Result<(), Reject> {
    let (length, limit) = (document.text.len(), options.max_text_bytes);
    if length <= limit {
        return Ok(());
    }
    if options.on_too_large == OnTooLarge::Reject {
        let message = format!("the text has {length} bytes, the limit is {limit}");
        return Err(reject(Code::TextTooLarge, message));
    }
    let end = document.text.floor_char_boundary(limit);
    document.text.truncate(end);
    if let Some(words) = &mut document.words {
        words.retain(|word| word.end <= end);
    }
    document.truncated = true;
    Ok(())
}

fn utf8(value: &[u8]) -> Result<&str, Reject> {
    std::str::from_utf8(value).map_err(|e| reject(Code::InvalidUtf8, format!("not UTF-8: {e}")))
}

fn wrong_type(pointer: &str, expected: &str, found: &Value) -> Reject {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    reject(Code::WrongType, format!("{pointer:?} holds {found}, expected {expected}"))
}

fn reject(code: Code, message: impl Into<String>) -> Reject {
    Reject::new(Stage::Decode, code, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(value: &[u8]) -> Code {
        decode(value, &DecodeOptions::default()).unwrap_err().code
    }

    #[test]
    fn bad_input_is_refused_with_its_reason() {
        assert_eq!(code(b"{\"text\": "), Code::InvalidJson);
        assert_eq!(code(b"\xff\xfe"), Code::InvalidUtf8);
        assert_eq!(code(b"{}"), Code::MissingField);
        assert_eq!(code(b"[]"), Code::MissingField);
        assert_eq!(code(b"{\"text\": 7}"), Code::WrongType);
        assert_eq!(code(b"{\"text\": \"a\", \"id\": {}}"), Code::WrongType);
        assert_eq!(code(b"{\"text\": \" \\n\"}"), Code::EmptyText);
    }

    #[test]
    fn a_long_text_is_refused_or_cut_at_a_character() {
        let mut options = DecodeOptions { max_text_bytes: 4, ..DecodeOptions::default() };
        let value = "{\"text\": \"Huế ơi\"}".as_bytes();
        assert_eq!(decode(value, &options).unwrap_err().code, Code::TextTooLarge);
        options.on_too_large = OnTooLarge::Truncate;
        let document = decode(value, &options).unwrap();
        assert_eq!((document.text.as_str(), document.truncated), ("Hu", true));
    }

    #[test]
    fn words_are_joined_and_located() {
        let options = DecodeOptions { words_pointer: Some("/words".into()), ..DecodeOptions::default() };
        let document = decode(r#"{"id": 7, "words": ["bác_sĩ", "Hoa"]}"#.as_bytes(), &options).unwrap();
        assert_eq!(document.text, "bác_sĩ Hoa");
        let words: Vec<_> = document.words.unwrap().into_iter().map(|w| &document.text[w]).collect();
        assert_eq!(words, ["bác_sĩ", "Hoa"]);
        assert_eq!(document.id, Some(7.into()));
    }
}
