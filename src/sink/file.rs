//! Results to a file or standard output, in the order of the input.

use std::io::Write;

use crate::record::Partition;
use crate::sink::{Finished, Outcome, Sink, SinkError};

/// A sink that writes outputs to one writer and a line for every dead letter to another.
pub struct FileSink<W, R> {
    output: W,
    rejects: R,
    /// Written after each output.
    terminator: &'static str,
}

impl<W: Write + Send, R: Write + Send> FileSink<W, R> {
    /// A sink whose outputs end in `terminator`.
    pub fn new(output: W, rejects: R, terminator: &'static str) -> Self {
        Self { output, rejects, terminator }
    }

    fn write(&mut self, finished: &Finished) -> std::io::Result<()> {
        match &finished.payload.outcome {
            Outcome::Output(bytes) => {
                self.output.write_all(bytes)?;
                self.output.write_all(self.terminator.as_bytes())
            }
            Outcome::Tombstone => Ok(()),
            Outcome::DeadLetter(reject) | Outcome::DeadLetterWithoutValue(reject) => {
                let position = &finished.position;
                let line = position.offset + 1;
                writeln!(self.rejects, "{}:{line}: {reject} ({})", position.partition.topic, reject.code.as_str())
            }
        }
    }
}

impl<W: Write + Send, R: Write + Send> Sink for FileSink<W, R> {
    fn publish(&mut self, records: &[&Finished], _offsets: &[(Partition, i64)]) -> Result<(), SinkError> {
        let written = records.iter().try_for_each(|record| self.write(record));
        // What was half written cannot be taken back: to try again would double it.
        written.and_then(|()| self.output.flush()).map_err(|e| match e.kind() {
            std::io::ErrorKind::BrokenPipe => SinkError::Closed,
            _ => SinkError::Fatal(format!("cannot write: {e}")),
        })
    }
}
