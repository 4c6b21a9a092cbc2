//! Records from files and standard input, a document a line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;

use crate::record::Partition;
use crate::source::{Intake, IntakeOptions, Message, Source, SourceError, StopSignal, Stopped};

/// Bytes of the longest character in UTF-8.
const LONGEST_CHARACTER: usize = 4;

/// A source of lines.
pub struct FileSource {
    inputs: Vec<(String, Box<dyn Read + Send>)>,
    intake: IntakeOptions,
    max_line_bytes: usize,
}

impl FileSource {
    /// Opens every file; `-` is standard input.
    ///
    /// # Errors
    /// When one cannot be opened, with its path.
    pub fn open(paths: &[PathBuf], intake: IntakeOptions, max_line_bytes: usize) -> Result<Self, SourceError> {
        let open = |path: &PathBuf| -> Result<(String, Box<dyn Read + Send>), SourceError> {
            if path == Path::new("-") {
                return Ok(("stdin".to_owned(), Box::new(std::io::stdin())));
            }
            let file = File::open(path).map_err(|e| SourceError(format!("{}: {e}", path.display())))?;
            Ok((path.display().to_string(), Box::new(file)))
        };
        Ok(Self { inputs: paths.iter().map(open).collect::<Result<_, _>>()?, intake, max_line_bytes })
    }

    fn read(
        input: Box<dyn Read + Send>,
        partition: &Partition,
        intake: &mut Intake,
        (options, max_line_bytes): (&IntakeOptions, usize),
        stop: &StopSignal,
    ) -> Result<(), SourceError> {
        let mut lines = BufReader::with_capacity(1 << 16, input);
        let failed = |e: std::io::Error| SourceError(format!("{}: {e}", partition.topic));
        for offset in 0.. {
            while intake.total_bytes() >= options.max_bytes && !stop.is_draining() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let (line, read) = read_line(&mut lines, max_line_bytes).map_err(failed)?;
            if read == 0 || stop.is_draining() {
                break;
            }
            if line.is_empty() {
                continue;
            }
            let value = Some(Bytes::from(line));
            let message = Message { offset, key: None, value, headers: vec![], timestamp_ms: None };
            if let Err(Stopped) = intake.admit(partition, message) {
                break;
            }
        }
        Ok(())
    }
}

/// Reads a line without its end and the white space before it, and how many bytes it took; none at the end. One that is
/// longer than the limit is cut at a character, one byte over it or a few more, so that the next stage sees that it is.
pub(crate) fn read_line(lines: &mut impl BufRead, max_line_bytes: usize) -> std::io::Result<(Vec<u8>, usize)> {
    let mut line = Vec::new();
    // One byte over the limit is enough; the rest is for a whole character.
    let most = max_line_bytes.saturating_add(1 + LONGEST_CHARACTER);
    let mut read = lines.by_ref().take(most as u64).read_until(b'\n', &mut line)?;
    if line.len() == most && !line.ends_with(b"\n") {
        read += lines.skip_until(b'\n')?;
        drop_last_character(&mut line);
    }
    line.truncate(line.trim_ascii_end().len());
    Ok((line, read))
}

/// A line that is cut may end inside its last character.
fn drop_last_character(line: &mut Vec<u8>) {
    let is_continuation = |byte: u8| byte & 0b1100_0000 == 0b1000_0000;
    while line.pop().is_some_and(is_continuation) {}
}

impl Source for FileSource {
    fn run(self: Box<Self>, mut intake: Intake, stop: &StopSignal) -> Result<(), SourceError> {
        // One file after the other, so that the output keeps their order.
        for (name, input) in self.inputs {
            let partition = Partition { topic: name.as_str().into(), id: 0 };
            intake.assign(partition.clone());
            Self::read(input, &partition, &mut intake, (&self.intake, self.max_line_bytes), stop)?;
            if stop.is_abandoned() {
                return Ok(());
            }
            let done = intake.drain(std::slice::from_ref(&partition), Duration::from_secs(365 * 24 * 3600));
            // An error: the committer has failed, and says why.
            let _ = done.recv();
            intake.release(&[partition]);
        }
        Ok(())
    }
}
