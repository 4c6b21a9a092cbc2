//! How a job ended.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::compare::Comparison;
use super::tally::Counts;
use crate::config::Settings;

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// All is done, with what this run did.
    Finished,
    /// All was done before.
    FinishedBefore,
    /// It was stopped before its end.
    Stopped,
}

/// What a run of a job has done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The job.
    pub job: String,
    /// Where it stands.
    pub state: State,
    /// Directory of the model.
    pub model: String,
    /// Records of this run, refused ones and tombstones included.
    pub records: u64,
    /// Refused records, by code.
    pub rejects: BTreeMap<&'static str, u64>,
    /// Tombstones passed on.
    pub tombstones: u64,
    /// Tokens given to the model.
    pub tokens: u64,
    /// How long it took.
    pub seconds: f64,
    /// Records a second.
    pub records_per_second: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// Files that could not be read to their end; nothing was written of their splits.
    pub unread: Vec<Unread>,
    /// How far a second model agrees, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
}

/// An input that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unread {
    /// Its path.
    pub input: String,
    /// Why.
    pub reason: String,
}

impl Summary {
    /// The summary of a run.
    pub fn new(job: &str, state: State, settings: &Settings, counts: Counts, tokens: f64, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64();
        let rate = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
        Self {
            job: job.to_owned(),
            state,
            model: settings.model.to_string(),
            records: counts.records,
            rejects: counts.rejects,
            tombstones: counts.tombstones,
            tokens: tokens as u64,
            seconds,
            records_per_second: rate(counts.records as f64),
            tokens_per_second: rate(tokens),
            unread: Vec::new(),
            comparison: None,
        }
    }

    /// Refused records.
    pub fn refused(&self) -> u64 {
        self.rejects.values().sum()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let job = &self.job;
        match self.state {
            State::FinishedBefore => writeln!(f, "job {job}: finished before, nothing to do")?,
            State::Finished => writeln!(f, "job {job}: finished")?,
            State::Stopped => writeln!(f, "job {job}: stopped before its end; repeat the command to go on")?,
        }
        for Unread { input, reason } in &self.unread {
            writeln!(f, "  unread   {input}: {reason}")?;
        }
        if self.state == State::FinishedBefore {
            return Ok(());
        }
        writeln!(f, "  model    {}", self.model)?;
        writeln!(f, "  records  {} in {:.1} s, {:.1}/s", self.records, self.seconds, self.records_per_second)?;
        writeln!(f, "  tokens   {}, {:.0}/s", self.tokens, self.tokens_per_second)?;
        if self.tombstones > 0 {
            writeln!(f, "  of these {} tombstones, passed on", self.tombstones)?;
        }
        let rejects: Vec<String> = self.rejects.iter().map(|(code, count)| format!("{count} {code}")).collect();
        writeln!(f, "  refused  {}", if rejects.is_empty() { "none".to_owned() } else { rejects.join(", ") })?;
        let Some(Comparison { model, records, same, labels, .. }) = &self.comparison else { return Ok(()) };
        writeln!(f, "  compared {records} records with {model}, {same} the same; agreement by label:")?;
        for (label, agreement) in labels {
            let ratio = agreement.ratio() * 100.0;
            writeln!(
                f,
                "    {label:<16} {ratio:6.2} %  both {}, first {}, second {}",
                agreement.both, agreement.first, agreement.second
            )?;
        }
        Ok(())
    }
}
