//! The documents of a split, one after the other, as values that the pipeline can decode.

use std::io::{self, BufRead, BufReader, Read};
use std::ops::ControlFlow;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::input::{Compression, FileFormat, Piece, Split};
use super::parquet::RemoteFile;
use crate::config::{OutputMode, Settings};
use crate::convert::parquet::json_rows;
use crate::source::file::read_line;

/// Which columns hold what, and how long a line may be.
#[derive(Clone, Debug, Default)]
pub(super) struct RowOptions {
    /// JSON pointer to the text.
    pointer: String,
    /// The column of the text.
    text: String,
    /// That of the words, where there is one.
    words: Option<String>,
    /// The columns that are read; all if none are given.
    columns: Option<Vec<String>>,
    max_line_bytes: usize,
}

impl RowOptions {
    /// The columns are those that the pointers of the settings lead into.
    pub(super) fn new(settings: &Settings) -> Self {
        let column = |pointer: &str| parts(pointer).next().unwrap_or_default();
        let input = &settings.input;
        let text = column(&input.text_pointer);
        let words = input.words_pointer.as_deref().map(column);
        let id = input.id_pointer.as_deref().map(column);
        let is_whole = settings.output.mode == OutputMode::Merge;
        let columns = [Some(text.clone()), words.clone(), id].into_iter().flatten().collect();
        // A line of JSON holds more than its text.
        let max_line_bytes = input.max_text_bytes.saturating_mul(4);
        let pointer = input.text_pointer.clone();
        Self { pointer, text, words, columns: (!is_whole).then_some(columns), max_line_bytes }
    }
}

/// The names on the way of a JSON pointer.
fn parts(pointer: &str) -> impl DoubleEndedIterator<Item = String> {
    pointer.split('/').skip(1).map(|part| part.replace("~1", "/").replace("~0", "~")).collect::<Vec<_>>().into_iter()
}

/// What is done with a document: its place in the file and its value.
pub(super) type Each<'e> = dyn FnMut(i64, Bytes) -> ControlFlow<()> + 'e;

/// Reads a split. A line's place is that of its first byte in the file, unpacked; a row's is its number from 0.
///
/// # Errors
/// Why the file cannot be read to its end; what was read of it before must not count.
pub(super) fn read(split: &Split, options: &RowOptions, each: &mut Each<'_>) -> Result<(), String> {
    match split.format {
        FileFormat::Parquet => read_parquet(split, options, each),
        FileFormat::Csv => read_csv(split, options, each),
        FileFormat::Jsonl | FileFormat::Text => {
            let is_text = split.format == FileFormat::Text;
            let lines = read_lines(split, options.max_line_bytes, &mut |at, line| {
                each(at, if is_text { wrap(line, &options.pointer) } else { line })
            });
            lines.map_err(|e| format!("cannot be read to its end: {e}"))
        }
    }
}

fn unpacked(split: &Split, from: u64) -> io::Result<Box<dyn Read + Send>> {
    let packed = split.folder.open(&split.file.path, from..split.file.bytes)?;
    Ok(match split.compression {
        Compression::None => packed,
        Compression::Gz => Box::new(flate2::read::MultiGzDecoder::new(packed)),
        Compression::Zst => Box::new(zstd::stream::read::Decoder::new(packed)?),
    })
}

fn read_lines(split: &Split, max_line_bytes: usize, each: &mut Each<'_>) -> io::Result<()> {
    let (start, end) = match &split.piece {
        Piece::Bytes(range) => (range.start, range.end),
        _ => (0, u64::MAX),
    };
    // A line belongs to the piece that its first byte is in: one that begins at the start follows a line end.
    let mut at = start.saturating_sub(1);
    let mut lines = BufReader::with_capacity(1 << 16, unpacked(split, at)?);
    if start > 0 {
        at += lines.skip_until(b'\n')? as u64;
    }
    while at < end {
        let (line, read) = read_line(&mut lines, max_line_bytes)?;
        if read == 0 {
            break;
        }
        if !line.is_empty() && each(at as i64, Bytes::from(line)).is_break() {
            break;
        }
        at += read as u64;
    }
    Ok(())
}

/// A line of text as a JSON object; one that is not UTF-8 stays as it is, to be refused for that.
fn wrap(line: Bytes, pointer: &str) -> Bytes {
    let Ok(text) = std::str::from_utf8(&line) else { return line };
    let inner = Value::from(text);
    let object = parts(pointer).rev().fold(inner, |value, name| Value::Object(Map::from_iter([(name, value)])));
    object.to_string().into()
}

fn read_csv(split: &Split, options: &RowOptions, each: &mut Each<'_>) -> Result<(), String> {
    let input = unpacked(split, 0).map_err(|e| e.to_string())?;
    let mut rows = csv::ReaderBuilder::new().flexible(true).from_reader(BufReader::new(input));
    let failed = |e: csv::Error| format!("cannot be read to its end: {e}");
    let names: Vec<String> =
        rows.byte_headers().map_err(failed)?.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    has_columns(&names, options)?;
    for (number, row) in rows.byte_records().enumerate() {
        let value = csv_value(&names, &row.map_err(failed)?, options);
        if each(number as i64, value.into()).is_break() {
            break;
        }
    }
    Ok(())
}

/// A row as a JSON object; one that is not UTF-8 stays as it is, to be refused for that.
fn csv_value(names: &[String], row: &csv::ByteRecord, options: &RowOptions) -> Vec<u8> {
    let mut object = Map::new();
    for (name, field) in names.iter().zip(row) {
        let Ok(field) = std::str::from_utf8(field) else { return row.as_slice().to_vec() };
        let value = match &options.words {
            Some(words) if words == name => field.split_whitespace().collect(),
            _ => Value::from(field),
        };
        object.insert(name.clone(), value);
    }
    Value::Object(object).to_string().into_bytes()
}

fn read_parquet(split: &Split, options: &RowOptions, each: &mut Each<'_>) -> Result<(), String> {
    let Piece::RowGroup(group, mut number, _) = split.piece else {
        return Err("a Parquet file is read by row groups".to_owned());
    };
    let table = RemoteFile::new(&split.folder, &split.file).table()?;
    has_columns(&table.columns(), options)?;
    for batch in table.rows(group, options.columns.as_deref())? {
        let batch = batch.map_err(|e| format!("cannot be read to its end: {e}"))?;
        for row in json_rows(&batch).map_err(|e| e.to_string())? {
            if each(number as i64, row.into()).is_break() {
                return Ok(());
            }
            number += 1;
        }
    }
    Ok(())
}

fn has_columns(names: &[String], options: &RowOptions) -> Result<(), String> {
    let has = |column: &String| names.contains(column);
    if has(&options.text) || options.words.as_ref().is_some_and(has) {
        return Ok(());
    }
    Err(format!("it has no column {:?}, but {}: say --text", options.text, names.join(", ")))
}
