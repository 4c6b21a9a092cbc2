//! Annotations as rows of Parquet, in nested columns, and back.
//!
//! The columns are the fields of the annotation. An id is a number or a text, and a column has one type: it is a text
//! here, and `id_is_number` says what it was.

use std::io::Write;
use std::sync::{Arc, LazyLock};

use arrow_array::RecordBatch;
use arrow_json::reader::Decoder;
use arrow_json::{LineDelimitedWriter, ReaderBuilder};
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde_json::{Number, Value};

use crate::encode::Annotation;

/// Rows that are turned into columns at a time.
const BATCH_ROWS: usize = 256;
/// A row group that takes this much memory is written.
const GROUP_BYTES: usize = 32 << 20;
/// Whether the id was a number.
const ID_IS_NUMBER: &str = "id_is_number";

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| Arc::new(schema()));

fn schema() -> Schema {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    let int = |name: &str| Field::new(name, DataType::Int64, false);
    let score = |name: &str, nullable| Field::new(name, DataType::Float32, nullable);
    let record = |name: &str, fields: Vec<Field>| Field::new(name, DataType::Struct(Fields::from(fields)), false);
    let list = |name: &str, fields: Vec<Field>| {
        let item = Field::new_list_field(DataType::Struct(Fields::from(fields)), false);
        Field::new(name, DataType::List(Arc::new(item)), false)
    };
    Schema::new(vec![
        Field::new("schema_version", DataType::Int32, false),
        Field::new("id", DataType::Utf8, true),
        Field::new(ID_IS_NUMBER, DataType::Boolean, false),
        record(
            "source",
            vec![
                text("topic"),
                Field::new("partition", DataType::Int32, false),
                int("offset"),
                Field::new("timestamp", DataType::Int64, true),
            ],
        ),
        list(
            "models",
            vec![
                text("slot"),
                Field::new("tasks", DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, false))), false),
                text("name"),
                text("version"),
                text("sha256"),
                text("variant"),
            ],
        ),
        text("text"),
        text("offset_unit"),
        Field::new("truncated", DataType::Boolean, false),
        list("sentences", vec![int("start"), int("end")]),
        list(
            "tokens",
            vec![
                text("text"),
                int("start"),
                int("end"),
                Field::new("pos", DataType::Utf8, true),
                score("pos_score", true),
            ],
        ),
        list(
            "entities",
            vec![
                int("start"),
                int("end"),
                text("label"),
                text("text"),
                score("score", false),
                int("token_start"),
                int("token_end"),
            ],
        ),
    ])
}

/// Writes annotations to a Parquet file.
pub struct ParquetSink<W: Write + Send> {
    writer: ArrowWriter<W>,
    decoder: Decoder,
    rows: Vec<Value>,
}

impl<W: Write + Send> ParquetSink<W> {
    /// A file without rows.
    ///
    /// # Errors
    /// When its head cannot be written.
    pub fn new(output: W) -> Result<Self, ParquetError> {
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
        let writer = ArrowWriter::try_new(output, SCHEMA.clone(), Some(properties))?;
        Ok(Self { writer, decoder: decoder()?, rows: Vec::new() })
    }

    /// Adds an annotation, given as its JSON.
    ///
    /// # Errors
    /// When it is none, or the file cannot be written.
    pub fn push(&mut self, annotation: &[u8]) -> Result<(), ParquetError> {
        let mut row: Value = serde_json::from_slice(annotation).map_err(|e| ParquetError::External(Box::new(e)))?;
        let is_number = row["id"].is_number();
        if is_number {
            row["id"] = row["id"].to_string().into();
        }
        row[ID_IS_NUMBER] = is_number.into();
        self.rows.push(row);
        if self.rows.len() < BATCH_ROWS { Ok(()) } else { self.write_batch() }
    }

    fn write_batch(&mut self) -> Result<(), ParquetError> {
        self.decoder.serialize(&self.rows)?;
        self.rows.clear();
        if let Some(batch) = self.decoder.flush()? {
            self.writer.write(&batch)?;
        }
        if self.writer.in_progress_size() >= GROUP_BYTES { self.writer.flush() } else { Ok(()) }
    }

    /// Writes what is left, and the footer; returns the output.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(mut self) -> Result<W, ParquetError> {
        self.write_batch()?;
        self.writer.into_inner()
    }
}

fn decoder() -> Result<Decoder, ParquetError> {
    Ok(ReaderBuilder::new(SCHEMA.clone()).with_batch_size(BATCH_ROWS).build_decoder()?)
}

/// The rows of a batch as JSON objects, one for each. What is null is left out.
///
/// # Errors
/// When a column has a type that JSON cannot hold.
pub fn json_rows(batch: &RecordBatch) -> Result<Vec<Vec<u8>>, ParquetError> {
    let mut writer = LineDelimitedWriter::new(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    // JSON has no line ends of its own: they are escaped in texts.
    Ok(writer.into_inner().split(|&byte| byte == b'\n').filter(|row| !row.is_empty()).map(<[u8]>::to_vec).collect())
}

/// The annotation of a row that [`ParquetSink`] wrote.
///
/// # Errors
/// When it is no such row.
pub fn annotation_of(row: &[u8]) -> Result<Annotation, serde_json::Error> {
    let mut value: Value = serde_json::from_slice(row)?;
    let is_number = value.as_object_mut().and_then(|row| row.remove(ID_IS_NUMBER)) == Some(true.into());
    if let (true, Some(id)) = (is_number, value["id"].as_str()) {
        value["id"] = Value::Number(id.parse::<Number>()?);
    }
    serde_json::from_value(value)
}
