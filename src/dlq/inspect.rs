//! What the dead-letter topic holds: counts, and the letters themselves.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;

use serde::Serialize;

use super::letter::{Filter, Letter};
use super::progress::Progress;
use super::{DlqError, TOPIC_SETTING, reader, show, topic};
use crate::config::Settings;

/// What to show.
#[derive(Clone, Debug, Default)]
pub struct InspectOptions {
    /// Which letters.
    pub filter: Filter,
    /// Of the letters themselves, at most this many; none for the summary alone.
    pub letters: Option<usize>,
    /// A JSON object for the summary, or one a line for the letters, instead of text.
    pub json: bool,
}

/// Counts over the letters that the filter means.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The dead-letter topic.
    pub topic: String,
    /// Letters.
    pub letters: u64,
    /// Of these, sent back by a replay.
    pub replayed: u64,
    /// Of these, too large to carry their value.
    pub without_value: u64,
    /// Of these, not written by vitag.
    pub without_reason: u64,
    /// Letters by code.
    pub codes: BTreeMap<String, u64>,
    /// Letters by stage.
    pub stages: BTreeMap<String, u64>,
    /// Letters by input topic and partition.
    pub inputs: BTreeMap<String, BTreeMap<i32, u64>>,
    /// Earliest timestamp of a record, in milliseconds since the epoch.
    pub first: Option<i64>,
    /// Latest timestamp of a record, in milliseconds since the epoch.
    pub last: Option<i64>,
}

/// Shows the letters that the topic holds now. With `json` and letters it ends as soon as enough are shown.
///
/// # Errors
/// When no broker answers in time, the topic is missing, or the output cannot be written.
pub fn inspect(settings: &Settings, options: &InspectOptions, out: &mut dyn Write) -> Result<(), DlqError> {
    let reader = reader(settings)?;
    let mut summary = Summary { topic: topic(settings).to_owned(), ..Summary::default() };
    let mut table = show::LetterTable::default();
    let limit = options.letters.unwrap_or(0);
    let streamed = options.json && options.letters.is_some();
    for span in reader.spans(&summary.topic, TOPIC_SETTING)? {
        let progress = Progress::read(&reader, &span)?.unwrap_or_default();
        reader.read(&span, span.offsets.start, |message| -> Result<_, DlqError> {
            if streamed && summary.letters >= limit as u64 {
                return Ok(ControlFlow::Break(()));
            }
            let letter = Letter::new(span.partition.id, message);
            if !options.filter.matches(&letter) {
                return Ok(ControlFlow::Continue(()));
            }
            let replayed = progress.contains(letter.message.offset);
            summary.add(&letter, replayed);
            if streamed {
                writeln!(out, "{}", show::json(&show::letter_json(&letter, replayed)))?;
            } else if table.len() < limit {
                table.add(&letter, replayed);
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    match (options.json, options.letters) {
        (true, Some(_)) => {}
        (true, None) => writeln!(out, "{}", show::json(&summary))?,
        (false, _) => {
            show::summary(&summary, out)?;
            table.write(summary.letters, out)?;
        }
    }
    Ok(out.flush()?)
}

impl Summary {
    fn add(&mut self, letter: &Letter, replayed: bool) {
        self.letters += 1;
        self.replayed += u64::from(replayed);
        self.without_value += u64::from(letter.message.value.is_none());
        if let Some(ms) = letter.message.timestamp_ms {
            self.first = Some(self.first.map_or(ms, |first| first.min(ms)));
            self.last = Some(self.last.map_or(ms, |last| last.max(ms)));
        }
        let Some(reason) = &letter.reason else {
            self.without_reason += 1;
            return;
        };
        *self.codes.entry(reason.headers.code.clone()).or_default() += 1;
        *self.stages.entry(reason.headers.stage.clone()).or_default() += 1;
        let partitions = self.inputs.entry(reason.input.topic.to_string()).or_default();
        *partitions.entry(reason.input.id).or_default() += 1;
    }
}
