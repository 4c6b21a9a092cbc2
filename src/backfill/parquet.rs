//! Parquet files where they are: on a disk or in an object store, read by ranges.

use std::io::Read;

use arrow_array::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use super::store::{Folder, Found};

/// Rows that are read at a time: few, so that long texts do not fill the memory.
const BATCH_ROWS: usize = 256;

/// A file of a folder, for the Parquet reader.
pub(super) struct RemoteFile {
    folder: Folder,
    file: Found,
}

impl RemoteFile {
    pub(super) fn new(folder: &Folder, file: &Found) -> Self {
        Self { folder: folder.clone(), file: file.clone() }
    }

    /// The file as a table: its footer is read.
    pub(super) fn table(self) -> Result<Table, String> {
        ParquetRecordBatchReaderBuilder::try_new(self).map(Table).map_err(|e| e.to_string())
    }
}

/// A file whose footer was read.
pub(super) struct Table(ParquetRecordBatchReaderBuilder<RemoteFile>);

impl Table {
    /// The names of the columns.
    pub(super) fn columns(&self) -> Vec<String> {
        self.0.schema().fields().iter().map(|field| field.name().clone()).collect()
    }

    /// The rows of a group, the columns of these names alone; of all if none are given.
    pub(super) fn rows(
        self,
        group: usize,
        columns: Option<&[String]>,
    ) -> Result<impl Iterator<Item = Result<RecordBatch, String>>, String> {
        let Self(builder) = self;
        let mask = match columns {
            None => ProjectionMask::all(),
            Some(names) => {
                let fields = builder.schema().fields();
                let wanted = (0..fields.len()).filter(|&index| names.contains(fields[index].name()));
                ProjectionMask::roots(builder.parquet_schema(), wanted)
            }
        };
        let builder = builder.with_row_groups(vec![group]).with_projection(mask).with_batch_size(BATCH_ROWS);
        let batches = builder.build().map_err(|e| e.to_string())?;
        Ok(batches.map(|batch| batch.map_err(|e| e.to_string())))
    }
}

impl Length for RemoteFile {
    fn len(&self) -> u64 {
        self.file.bytes
    }
}

impl ChunkReader for RemoteFile {
    type T = Box<dyn Read + Send>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(self.folder.open(&self.file.path, start..self.file.bytes)?)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let bytes = self.folder.read_at(&self.file.path, start..start + length as u64)?;
        if bytes.len() < length {
            return Err(ParquetError::EOF("the file ends too early".to_owned()));
        }
        Ok(bytes)
    }
}
