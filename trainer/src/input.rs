//! Files, folders and standard input, packed or not, as blocks of whole lines.

use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::mem;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};

/// Bytes that are cleaned at a time.
const BLOCK: usize = 256 << 10;
/// A line that is longer is taken in parts, so that memory is bounded.
const LONGEST_LINE: usize = 4 << 20;
/// Standard input, among the inputs.
const STDIN: &str = "-";

/// The files among `inputs`: themselves, and of folders all files below in the order of their names, without hidden
/// ones. With a bar that reading them moves.
pub(crate) fn files(inputs: &[PathBuf]) -> Result<(Vec<PathBuf>, ProgressBar)> {
    let mut files = Vec::new();
    for input in inputs {
        push_files(input, &mut files).with_context(|| format!("cannot read {}", input.display()))?;
    }
    ensure!(!files.is_empty(), "the inputs hold no file");
    let sizes = files.iter().map(|file| Some(file.metadata().ok()?.len()));
    let progress = progress(sizes.sum());
    Ok((files, progress))
}

fn progress(size: Option<u64>) -> ProgressBar {
    let template = match size {
        Some(_) => "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}",
        None => "{spinner} {bytes} {bytes_per_sec} {elapsed}",
    };
    let style = ProgressStyle::with_template(template).expect("the template is constant");
    size.map_or_else(ProgressBar::new_spinner, ProgressBar::new).with_style(style)
}

fn push_files(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.as_os_str() == STDIN || !fs::metadata(path)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let mut entries: Vec<_> = fs::read_dir(path)?.collect::<io::Result<_>>()?;
    entries.retain(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    entries.sort_by_key(fs::DirEntry::file_name);
    entries.iter().try_for_each(|entry| push_files(&entry.path(), files))
}

/// Gives the text of a file block by block to `sink`, an empty one at its end, until `sink` says that it is enough.
pub(crate) fn blocks(path: &Path, progress: &ProgressBar, mut sink: impl FnMut(Vec<u8>) -> bool) -> Result<()> {
    let context = || format!("cannot read {}", path.display());
    let mut text = open(path, progress).with_context(context)?;
    let mut block = Vec::new();
    loop {
        let read = text.by_ref().take(BLOCK as u64).read_to_end(&mut block).with_context(context)?;
        if read == 0 {
            break;
        }
        let rest = block.split_off(end_of_lines(&block));
        if !block.is_empty() && !sink(mem::take(&mut block)) {
            return Ok(());
        }
        block = rest;
    }
    if block.is_empty() || sink(block) {
        sink(Vec::new());
    }
    Ok(())
}

/// Where the last whole line ends; 0 where there is none, unless the line is too long.
fn end_of_lines(block: &[u8]) -> usize {
    let after = |found: Option<usize>| found.map_or(0, |at| at + 1);
    let end = after(block.iter().rposition(|&byte| byte == b'\n'));
    if end > 0 || block.len() < LONGEST_LINE {
        return end;
    }
    match after(block.iter().rposition(u8::is_ascii_whitespace)) {
        0 => block.len(),
        end => end,
    }
}

/// What is packed shows by its first bytes.
fn open(path: &Path, progress: &ProgressBar) -> io::Result<Box<dyn Read>> {
    let mut raw: Box<dyn Read> = if path.as_os_str() == STDIN {
        Box::new(progress.wrap_read(io::stdin()))
    } else {
        Box::new(progress.wrap_read(File::open(path)?))
    };
    let mut head = Vec::new();
    raw.by_ref().take(6).read_to_end(&mut head)?;
    let kind = head.clone();
    let all = Cursor::new(head).chain(raw);
    Ok(match kind.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(all)),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(liblzma::read::XzDecoder::new_multi_decoder(all)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::new(all)?),
        _ => Box::new(all),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_end_with_lines_but_not_where_a_line_is_endless() {
        assert_eq!(end_of_lines(b"a b\nc d"), 4);
        assert_eq!(end_of_lines(b"a b c"), 0);
        let long = "ab ".repeat(LONGEST_LINE / 3) + "abc";
        assert_eq!(end_of_lines(long.as_bytes()), long.len() - 3);
        assert_eq!(end_of_lines(&vec![b'a'; LONGEST_LINE]), LONGEST_LINE);
    }
}
