//! Files to tag, cut into splits: pieces that are read, written and finished each for itself.

use std::ops::Range;

use globset::{GlobBuilder, GlobMatcher};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use serde::{Deserialize, Serialize};

use super::BackfillError;
use super::parquet::RemoteFile;
use super::store::{Folder, Found};

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum FileFormat {
    /// A JSON object a line.
    Jsonl,
    /// A document a line.
    Text,
    /// Comma-separated values under a line of names.
    Csv,
    /// Parquet.
    Parquet,
}

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gz,
    /// Zstandard.
    Zst,
}

impl FileFormat {
    /// What the name of a file says of it.
    pub fn of(name: &str) -> (Option<Self>, Compression) {
        let (name, compression) = match name.rsplit_once('.') {
            Some((name, "gz")) => (name, Compression::Gz),
            Some((name, "zst")) => (name, Compression::Zst),
            _ => (name, Compression::None),
        };
        let format = match name.rsplit_once('.') {
            Some((_, "jsonl" | "ndjson" | "json")) => Some(Self::Jsonl),
            Some((_, "txt" | "text")) => Some(Self::Text),
            Some((_, "csv")) => Some(Self::Csv),
            Some((_, "parquet")) => Some(Self::Parquet),
            _ => None,
        };
        (format, compression)
    }
}

/// A piece of the input.
#[derive(Clone)]
pub(super) struct Split {
    /// Its name, and that of its output without the end; unique in the job.
    pub(super) name: String,
    pub(super) folder: Folder,
    /// The file.
    pub(super) file: Found,
    pub(super) format: FileFormat,
    pub(super) compression: Compression,
    pub(super) piece: Piece,
}

/// Which piece of a file a split is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Piece {
    /// All of it.
    Whole,
    /// The lines that begin in these bytes.
    Bytes(Range<u64>),
    /// A row group of a Parquet file, the number of its first row, and how many it has.
    RowGroup(usize, u64, u64),
}

impl Split {
    /// The place of its first document.
    pub(super) fn start(&self) -> i64 {
        match &self.piece {
            Piece::Whole => 0,
            Piece::Bytes(range) => range.start as i64,
            Piece::RowGroup(_, first, _) => *first as i64,
        }
    }

    /// Whether places in it are bytes.
    pub(super) fn counts_bytes(&self) -> bool {
        matches!(self.format, FileFormat::Jsonl | FileFormat::Text)
    }

    /// Its bytes or rows. Of what is compressed nobody knows, before it is unpacked.
    pub(super) fn size(&self) -> u64 {
        match &self.piece {
            Piece::Whole => self.file.bytes,
            Piece::Bytes(range) => range.end - range.start,
            Piece::RowGroup(_, _, rows) => *rows,
        }
    }
}

/// Files that a pattern means: a path or URL whose last parts may have `*`, `?`, `**`, `[…]` and `{…}`.
pub(super) fn find(pattern: &str) -> Result<(Folder, Vec<Found>), BackfillError> {
    let wild = pattern.find(['*', '?', '[', '{']).unwrap_or(pattern.len());
    let cut = pattern[..wild].rfind('/').map_or(0, |slash| slash + 1);
    let (folder, rest) = pattern.split_at(cut);
    let folder = Folder::new(folder).map_err(BackfillError::Store)?;
    let glob = matcher(rest).map_err(|e| BackfillError::Pattern(pattern.to_owned(), e))?;
    let mut found = folder.list().map_err(BackfillError::Store)?;
    // What begins with `_` or `.` is bookkeeping of engines, this one too.
    let is_hidden = |path: &str| path.split('/').any(|part| part.starts_with(['_', '.']));
    found.retain(|file| glob.is_match(&file.path) && (!is_hidden(&file.path) || rest == file.path));
    Ok((folder, found))
}

fn matcher(pattern: &str) -> Result<GlobMatcher, String> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build().map_err(|e| e.to_string())?;
    Ok(glob.compile_matcher())
}

/// How files are cut.
#[derive(Clone, Debug, Default)]
pub struct Cut {
    /// What the files hold; by default what their names say.
    pub format: Option<FileFormat>,
    /// Bytes of a piece of a file of lines that is not compressed.
    pub split_bytes: u64,
}

/// Cuts a file; the error says what is wrong with it.
pub(super) fn cut(folder: &Folder, file: Found, cut: &Cut) -> Result<Vec<Split>, String> {
    let (format, compression) = FileFormat::of(&file.path);
    let format = cut.format.or(format).ok_or("its name does not say what it holds: say --format")?;
    let pieces = match (format, compression) {
        (FileFormat::Parquet, _) => row_groups(folder, &file)?,
        (FileFormat::Jsonl | FileFormat::Text, Compression::None) if file.bytes > cut.split_bytes => {
            let starts = (0..file.bytes).step_by(usize::try_from(cut.split_bytes).unwrap_or(usize::MAX).max(1));
            starts.map(|start| Piece::Bytes(start..file.bytes.min(start + cut.split_bytes))).collect()
        }
        _ => vec![Piece::Whole],
    };
    let split = |(number, piece)| Split {
        name: format!("{}-{number:05}", file.path),
        folder: folder.clone(),
        file: file.clone(),
        format,
        compression,
        piece,
    };
    Ok(pieces.into_iter().enumerate().map(split).collect())
}

fn row_groups(folder: &Folder, file: &Found) -> Result<Vec<Piece>, String> {
    let reader = RemoteFile::new(folder, file);
    let metadata = ArrowReaderMetadata::load(&reader, ArrowReaderOptions::new()).map_err(|e| e.to_string())?;
    let mut first = 0;
    let groups = metadata.metadata().row_groups().iter().enumerate();
    Ok(groups
        .map(|(number, group)| {
            let rows = u64::try_from(group.num_rows()).unwrap_or_default();
            first += rows;
            Piece::RowGroup(number, first - rows, rows)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_format_and_compression() {
        for (name, format, compression) in [
            ("a.jsonl", Some(FileFormat::Jsonl), Compression::None),
            ("b.b/a.txt.gz", Some(FileFormat::Text), Compression::Gz),
            ("a.csv.zst", Some(FileFormat::Csv), Compression::Zst),
            ("a.parquet", Some(FileFormat::Parquet), Compression::None),
            ("a.gz", None, Compression::Gz),
            ("README", None, Compression::None),
        ] {
            assert_eq!(FileFormat::of(name), (format, compression), "{name}");
        }
    }

    #[test]
    fn patterns_choose_files_and_leave_bookkeeping() {
        let folder = tempfile::TempDir::new().unwrap();
        for path in ["a.txt", "b.txt", "x/c.txt", "x/y/d.txt", "_vitag/e.txt", "x/.f.txt"] {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "Huế").unwrap();
        }
        for root in [folder.path().display().to_string(), format!("file://{}", folder.path().display())] {
            let found = |pattern: &str| {
                let (_, found) = find(&format!("{root}/{pattern}")).unwrap();
                found.into_iter().map(|file| file.path).collect::<Vec<_>>()
            };
            assert_eq!(found("*.txt"), ["a.txt", "b.txt"]);
            assert_eq!(found("**/*.txt"), ["a.txt", "b.txt", "x/c.txt", "x/y/d.txt"]);
            assert_eq!(found("x/{c,d}.txt"), ["c.txt"]);
            assert_eq!(found("x/*/d.txt"), ["y/d.txt"]);
            assert_eq!(found("a.txt"), ["a.txt"]);
            assert_eq!(found("none.txt"), [""; 0]);
        }
    }
}
