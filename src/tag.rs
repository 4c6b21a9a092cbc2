//! `vitag tag`: files or standard input to standard output, through the pipeline of the worker.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use crate::commit::{BreakerOptions, Report};
use crate::config::Settings;
use crate::decode::Format;
use crate::encode::Form;
use crate::pipeline::{self, Monitor};
use crate::serving::Serving;
use crate::sink::file::FileSink;
use crate::source::StopSignal;
use crate::source::file::FileSource;
use crate::worker::{WorkerError, intake_options, loader, pipeline_options, serve};

/// What to tag, and how to show it.
#[derive(Clone, Debug)]
pub struct TagOptions {
    /// Files; `-` is standard input.
    pub inputs: Vec<PathBuf>,
    /// What a line holds; by default what its file's name says: `.jsonl` and `.json` hold JSON, others text.
    pub format: Option<Format>,
    /// The form of the output; by default JSON as the settings have it.
    pub form: Option<Form>,
}

/// Tags the inputs, a document a line, in their order. Returns how many lines were refused; each is told to `rejects`.
///
/// # Errors
/// When the model cannot be loaded, an input cannot be read, or the output cannot be written.
pub fn tag(
    settings: &Settings,
    options: &TagOptions,
    output: impl Write + Send,
    rejects: impl Write + Send,
) -> Result<usize, WorkerError> {
    let loader = loader(settings, &Monitor::disabled().metrics)?;
    tag_with(settings, &serve(settings, &loader)?, options, output, rejects)
}

/// Like [`tag`], with models that are loaded.
///
/// # Errors
/// When an input cannot be read, or the output cannot be written.
pub fn tag_with(
    settings: &Settings,
    serving: &Serving,
    options: &TagOptions,
    output: impl Write + Send,
    rejects: impl Write + Send,
) -> Result<usize, WorkerError> {
    let monitor = Monitor::disabled();
    let mut stages = pipeline_options(settings);
    if let Some(form) = &options.form {
        stages.encode.form = form.clone();
    }
    // Its default is for topics.
    if settings.origin("output.max_record_bytes").is_none() {
        stages.encode.max_record_bytes = usize::MAX;
    }
    // Whoever runs it sees every refusal, and nothing is committed that would have to be undone.
    stages.commit.breaker = BreakerOptions::off();
    let limit = stages.decode.max_text_bytes;
    let is_json = |path: &PathBuf| path.extension().is_some_and(|end| end == "jsonl" || end == "json");
    let json_inputs = options.inputs.iter().filter(|path| is_json(path)).count();
    stages.decode.format = match options.format {
        Some(format) => format,
        None if json_inputs == 0 => Format::Text,
        None if json_inputs == options.inputs.len() => Format::Json,
        None => {
            let reason = "some inputs are JSON by their names and some text: tag them apart, or say --input";
            return Err(pipeline::PipelineError { stage: "source", reason: reason.to_owned() }.into());
        }
    };
    // A JSON line holds more than its text.
    let max_line = if stages.decode.format == Format::Json { limit.saturating_mul(4) } else { limit };
    let source = FileSource::open(&options.inputs, intake_options(settings), max_line)
        .map_err(|e| pipeline::PipelineError { stage: "source", reason: e.to_string() })?;
    let is_json = matches!(stages.encode.form, Form::Envelope | Form::Merge(_));
    let terminator = if is_json { "\n" } else { "" };
    let mut rejects = Counted { inner: rejects, lines: 0 };
    let sink = FileSink::new(BufWriter::new(output), &mut rejects, terminator);
    let report = Report::new(monitor.metrics.clone(), "", None);
    pipeline::run(Box::new(source), sink, serving, &stages, (&monitor, report), &StopSignal::default())?;
    Ok(rejects.lines)
}

/// Counts the lines on their way.
struct Counted<W> {
    inner: W,
    lines: usize,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.lines += bytes[..written].iter().filter(|&&byte| byte == b'\n').count();
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
