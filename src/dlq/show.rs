//! Letters and counts for people and for programs. What others wrote is never written to a terminal as it is: control
//! characters in it would move the cursor, colour the screen or hide text.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::inspect::Summary;
use super::letter::Letter;
use super::replay::ReplayReport;

/// Most characters of a key, value or message in the table.
const HEAD_CHARS: usize = 48;

/// The letters that are shown, a row each.
#[derive(Default)]
pub(super) struct LetterTable {
    rows: Vec<[String; 9]>,
}

impl LetterTable {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn add(&mut self, letter: &Letter, replayed: bool) {
        let message = &letter.message;
        let of = |value: fn(&super::letter::Reason) -> String| {
            letter.reason.as_ref().map_or_else(|| "-".to_owned(), |reason| head(value(reason).as_bytes()))
        };
        let bytes = |bytes: &Option<Bytes>| bytes.as_ref().map_or_else(|| "-".to_owned(), |bytes| head(bytes));
        self.rows.push([
            format!("{}@{}", letter.partition, message.offset),
            of(|reason| format!("{} {}", reason.input, reason.offset)),
            time(message.timestamp_ms),
            of(|reason| reason.headers.stage.clone()),
            of(|reason| reason.headers.code.clone()),
            of(|reason| reason.replays.to_string()) + if replayed { " + sent back" } else { "" },
            bytes(&message.key),
            bytes(&message.value),
            of(|reason| reason.headers.message.clone()),
        ]);
    }

    /// Writes the rows, and how many there are of `all`.
    pub(super) fn write(self, all: u64, out: &mut dyn Write) -> io::Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let shown = self.rows.len() as u64;
        let header = ["letter", "input", "time", "stage", "code", "replays", "key", "value", "message"];
        writeln!(out, "\n{}", table(&header, self.rows.into_iter().map(Vec::from)))?;
        if shown < all {
            writeln!(out, "{shown} of {all}; -n shows more")?;
        }
        Ok(())
    }
}

/// The counts, as text.
pub(super) fn summary(summary: &Summary, out: &mut dyn Write) -> io::Result<()> {
    let mut rows = vec![row("letters", summary.letters)];
    let partial = [
        ("of these sent back", summary.replayed),
        ("of these without a value", summary.without_value),
        ("of these not by vitag", summary.without_reason),
    ];
    rows.extend(partial.into_iter().filter(|(_, count)| *count > 0).map(|(name, count)| row(name, count)));
    rows.extend(summary.codes.iter().map(|(code, count)| row(&format!("code {}", printable(code)), *count)));
    rows.extend(summary.stages.iter().map(|(stage, count)| row(&format!("stage {}", printable(stage)), *count)));
    for (topic, partitions) in &summary.inputs {
        rows.extend(partitions.iter().map(|(id, count)| row(&format!("input {}[{id}]", printable(topic)), *count)));
    }
    writeln!(out, "dead letters in {}", summary.topic)?;
    writeln!(out, "{}", table(&[], rows))?;
    if summary.letters > 0 {
        writeln!(out, "records from {} to {}", time(summary.first), time(summary.last))?;
    }
    Ok(())
}

/// What a replay did or would do, as text.
pub fn replay_report(report: &ReplayReport) -> String {
    let done = if report.dry_run { "would be replayed" } else { "replayed" };
    let mut rows = vec![row(done, report.replayed)];
    rows.extend(report.inputs.iter().map(|(topic, count)| row(&format!("  to {}", printable(topic)), *count)));
    if report.not_chosen > 0 {
        rows.push(row("not chosen, left for later", report.not_chosen));
    }
    rows.extend(report.left.iter().map(|(why, count)| row(&format!("left: {why}"), *count)));
    let first = if report.continued { "" } else { "no earlier replay is known\n" };
    format!("dead letters in {}\n{}\n{first}", report.topic, table(&[], rows))
}

fn row(name: &str, count: u64) -> Vec<String> {
    vec![format!("  {name}"), count.to_string()]
}

fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).add_rows(rows);
    if !header.is_empty() {
        table.set_header(header);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// A letter for programs. Bytes that are not UTF-8 become `{"base64": …}`.
pub(super) fn letter_json(letter: &Letter, replayed: bool) -> Value {
    let message = &letter.message;
    let headers: Vec<Value> =
        message.headers.iter().map(|(key, value)| json!({ "key": key, "value": bytes_json(value) })).collect();
    let reason = letter.reason.as_ref();
    json!({
        "partition": letter.partition,
        "offset": message.offset,
        "timestamp": message.timestamp_ms,
        "input": reason.map(|reason| json!({
            "topic": &*reason.input.topic, "partition": reason.input.id, "offset": reason.offset,
        })),
        "stage": reason.map(|reason| &reason.headers.stage),
        "code": reason.map(|reason| &reason.headers.code),
        "message": reason.map(|reason| &reason.headers.message),
        "replays": reason.map(|reason| reason.replays),
        "replayed": replayed,
        "key": bytes_json(&message.key),
        "value": bytes_json(&message.value),
        "headers": headers,
    })
}

fn bytes_json(bytes: &Option<Bytes>) -> Value {
    match bytes.as_deref().map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => Value::Null,
        Some((Ok(text), _)) => text.into(),
        Some((Err(_), bytes)) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

/// JSON on one line, in which every character that is not to be printed is escaped.
pub fn json(value: &impl Serialize) -> String {
    let plain = serde_json::to_string(value).expect("counts and texts serialise");
    let mut text = String::with_capacity(plain.len());
    for char in plain.chars() {
        if char.is_control() || is_format(char) {
            let mut units = [0; 2];
            char.encode_utf16(&mut units).iter().for_each(|unit| text.push_str(&format!("\\u{unit:04x}")));
        } else {
            text.push(char);
        }
    }
    text
}

/// Characters that reorder or hide what stands around them: they print nothing themselves.
fn is_format(char: char) -> bool {
    matches!(char, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The first characters, for a cell of a table.
fn head(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(4 * HEAD_CHARS)];
    let text = printable(&String::from_utf8_lossy(cut));
    let head: String = text.chars().take(HEAD_CHARS).collect();
    if head.len() < text.len() || cut.len() < bytes.len() { head + "…" } else { head }
}

/// The text with what is not to be printed as escapes, line breaks too.
fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut printable, char| {
        match char.is_control() || is_format(char) {
            true => printable.extend(char.escape_default()),
            false => printable.push(char),
        }
        printable
    })
}

fn time(ms: Option<i64>) -> String {
    let time = ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| "-".to_owned(), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_moves_a_terminal_is_printed() {
        let evil = "a\u{1b}[2J\u{9b}31m\r\n\u{202e}gnp\t\u{7f}\"ắ\u{301}";
        let safe = |text: &str| !text.chars().any(|char| char.is_control() || is_format(char));
        assert!(!safe(evil) && safe(&printable(evil)), "{}", printable(evil));
        assert!(printable(evil).ends_with("\"ắ\u{301}"), "Vietnamese stays as it is");
        let line = json(&json!({ "key": evil, "tag": "\u{e0041}" }));
        assert!(safe(&line), "{line}");
        let back: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((back["key"].as_str(), back["tag"].as_str()), (Some(evil), Some("\u{e0041}")));
    }

    #[test]
    fn a_head_is_cut_between_characters() {
        assert_eq!(head("Huế".as_bytes()), "Huế");
        assert_eq!(head(b"\xff\xfe"), "\u{fffd}\u{fffd}");
        let long = head("ắ".repeat(500).as_bytes());
        assert_eq!(long.chars().count(), HEAD_CHARS + 1);
        assert!(long.ends_with("ắ…"), "{long}");
    }
}
