//! Outputs of splits: written aside, and published whole, with a manifest that says so.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::input::Compression;
use super::store::{Folder, Unpublished};
use super::tally::Counts;
use crate::convert::parquet::ParquetSink;
use crate::record::{Partition, Reject};
use crate::sink::{Finished, Outcome, Sink, SinkError};

/// What output files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputFormat {
    /// A JSON object a line.
    Jsonl(Compression),
    /// Nested columns.
    Parquet,
}

impl OutputFormat {
    fn ending(self) -> &'static str {
        match self {
            Self::Jsonl(Compression::None) => "jsonl",
            Self::Jsonl(Compression::Gz) => "jsonl.gz",
            Self::Jsonl(Compression::Zst) => "jsonl.zst",
            Self::Parquet => "parquet",
        }
    }
}

/// What a finished split has become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Arguments and model of the job.
    pub(super) fingerprint: String,
    /// What was read, and which version of it.
    pub(super) input: Value,
    /// The file of the annotations.
    pub(super) output: String,
    /// The file of what was refused, if anything was.
    pub(super) rejects: Option<String>,
    /// Documents read.
    pub(super) records: u64,
    /// Documents refused.
    pub(super) refused: u64,
}

/// Where manifests are, beside the outputs.
pub(super) fn manifest_path(split: &str) -> String {
    format!("_vitag/splits/{split}.json")
}

enum Packed {
    Plain(Unpublished),
    Gz(GzEncoder<Unpublished>),
    Zst(zstd::stream::write::Encoder<'static, Unpublished>),
    Parquet(Box<ParquetSink<Unpublished>>),
}

impl Packed {
    fn new(file: Unpublished, format: OutputFormat) -> io::Result<Self> {
        Ok(match format {
            OutputFormat::Jsonl(Compression::None) => Self::Plain(file),
            OutputFormat::Jsonl(Compression::Gz) => Self::Gz(GzEncoder::new(file, flate2::Compression::default())),
            OutputFormat::Jsonl(Compression::Zst) => {
                Self::Zst(zstd::stream::write::Encoder::new(file, zstd::DEFAULT_COMPRESSION_LEVEL)?)
            }
            OutputFormat::Parquet => Self::Parquet(Box::new(ParquetSink::new(file)?)),
        })
    }

    fn push(&mut self, output: &[u8]) -> io::Result<()> {
        let line = |file: &mut dyn Write| file.write_all(output).and_then(|()| file.write_all(b"\n"));
        match self {
            Self::Plain(file) => line(file),
            Self::Gz(file) => line(file),
            Self::Zst(file) => line(file),
            Self::Parquet(file) => Ok(file.push(output)?),
        }
    }

    fn publish(self) -> io::Result<()> {
        match self {
            Self::Plain(file) => file,
            Self::Gz(file) => file.finish()?,
            Self::Zst(file) => file.finish()?,
            Self::Parquet(file) => file.finish()?,
        }
        .publish()
    }
}

/// The outputs of a split while it is tagged; dropped, nothing remains of them.
pub(super) struct SplitWriter {
    folder: Folder,
    split: String,
    output: (String, Packed),
    rejects: Option<(String, Unpublished)>,
    counts: Counts,
}

impl SplitWriter {
    pub(super) fn new(folder: &Folder, split: &str, format: OutputFormat) -> io::Result<Self> {
        let path = format!("{split}.{}", format.ending());
        let output = Packed::new(folder.create(&path)?, format)?;
        let (folder, split) = (folder.clone(), split.to_owned());
        Ok(Self { folder, split, output: (path, output), rejects: None, counts: Counts::default() })
    }

    fn push(&mut self, finished: &Finished) -> io::Result<()> {
        self.counts.add(finished);
        match &finished.payload.outcome {
            Outcome::Output(bytes) => self.output.1.push(bytes),
            Outcome::Tombstone => Ok(()),
            Outcome::DeadLetter(reject) | Outcome::DeadLetterWithoutValue(reject) => self.refuse(finished, reject),
        }
    }

    fn refuse(&mut self, finished: &Finished, reject: &Reject) -> io::Result<()> {
        let (_, file) = match &mut self.rejects {
            Some(rejects) => rejects,
            none => {
                let path = format!("_rejects/{}.jsonl", self.split);
                let file = self.folder.create(&path)?;
                none.insert((path, file))
            }
        };
        let position = &finished.position;
        let mut line = json!({
            "topic": &*position.partition.topic,
            "partition": position.partition.id,
            "offset": position.offset,
            "stage": reject.stage.as_str(),
            "code": reject.code.as_str(),
            "message": reject.message,
        });
        let value = finished.original.value.as_deref().unwrap_or_default();
        match std::str::from_utf8(value) {
            Ok(text) => line["value"] = text.into(),
            Err(_) => line["value_base64"] = STANDARD.encode(value).into(),
        }
        writeln!(file, "{line}")
    }

    /// Publishes the files, and the manifest at last: without it the split counts as not done.
    pub(super) fn publish(self, fingerprint: &str, input: Value) -> io::Result<Counts> {
        let Self { folder, split, output, rejects, counts } = self;
        let manifest = Manifest {
            fingerprint: fingerprint.to_owned(),
            input,
            output: output.0,
            rejects: rejects.as_ref().map(|(path, _)| path.clone()),
            records: counts.records,
            refused: counts.refused(),
        };
        output.1.publish()?;
        fail::fail_point!("split_before_manifest");
        if let Some((_, file)) = rejects {
            file.publish()?;
        }
        let mut file = folder.create(&manifest_path(&split))?;
        file.write_all(&serde_json::to_vec_pretty(&manifest)?)?;
        file.publish()?;
        Ok(counts)
    }
}

/// The writers of the splits on their way, which the source opens and closes and the sink fills.
#[derive(Clone, Default)]
pub(super) struct Writers(Arc<Mutex<HashMap<Partition, SplitWriter>>>);

impl Writers {
    fn lock(&self) -> MutexGuard<'_, HashMap<Partition, SplitWriter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self, partition: Partition, writer: SplitWriter) {
        self.lock().insert(partition, writer);
    }

    pub(super) fn close(&self, partition: &Partition) -> Option<SplitWriter> {
        self.lock().remove(partition)
    }
}

impl Sink for Writers {
    fn publish(&mut self, records: &[&Finished], _: &[(Partition, i64)]) -> Result<(), SinkError> {
        let mut writers = self.lock();
        for finished in records {
            let Some(writer) = writers.get_mut(&finished.position.partition) else { continue };
            // A part that was written cannot be taken back, and a second time would double it.
            writer.push(finished).map_err(|e| SinkError::Fatal(format!("cannot write: {e}")))?;
        }
        Ok(())
    }
}
