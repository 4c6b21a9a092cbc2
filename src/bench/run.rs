//! One timed run of a stage, and what repeated runs come to.

use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::BenchError;
use super::figure::Figure;
use super::machine::cpu_seconds;
use crate::serving::Counts;

/// What a run did, and what it took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// Documents that came through.
    pub documents: f64,
    /// Time.
    pub seconds: f64,
    /// Processor time of this process.
    pub cpu_seconds: f64,
    /// What the model did, where the run can tell.
    pub model: Option<ModelWork>,
}

/// What the sessions of a model did in a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelWork {
    /// Tokens that were run.
    pub tokens: f64,
    /// Slots of the padded views that attention saw them in.
    pub slots: f64,
    /// Time in sessions, over all lanes.
    pub seconds: f64,
    /// Lanes.
    pub lanes: f64,
}

impl ModelWork {
    /// What was counted of a version.
    pub fn counted(counts: &Counts, lanes: usize) -> Self {
        let (tokens, slots) = (counts.tokens as f64, counts.slots as f64);
        Self { tokens, slots, seconds: counts.nanos as f64 * 1e-9, lanes: lanes as f64 }
    }
}

/// Time and processor time since a moment.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    cpu: f64,
}

impl Clock {
    /// From now on.
    pub fn start() -> Self {
        Self { cpu: cpu_seconds(), started: Instant::now() }
    }

    /// A run of so many documents that ends now.
    pub fn stop(self, documents: usize, model: Option<ModelWork>) -> Run {
        let seconds = self.started.elapsed().as_secs_f64();
        Run { documents: documents as f64, seconds, cpu_seconds: cpu_seconds() - self.cpu, model }
    }
}

/// Runs `count` things in turns, forwards and backwards, so that what drifts favours none: so often to warm up, then so
/// often for their outcomes. `run` is given the number of the thing, and of the repeat with those that warm up.
///
/// # Errors
/// The first of a run.
pub fn in_turns<R>(
    count: usize,
    (warm_ups, repeats): (usize, usize),
    mut run: impl FnMut(usize, usize) -> Result<R, BenchError>,
) -> Result<Vec<Vec<R>>, BenchError> {
    let mut outcomes: Vec<Vec<R>> = (0..count).map(|_| Vec::new()).collect();
    for repeat in 0..warm_ups + repeats {
        for turn in 0..count {
            let number = if repeat.is_multiple_of(2) { turn } else { count - 1 - turn };
            let outcome = run(number, repeat)?;
            outcomes[number].extend((repeat >= warm_ups).then_some(outcome));
        }
    }
    Ok(outcomes)
}

/// A stage over the repeats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageReport {
    /// Name of the stage.
    pub stage: String,
    /// How it was run, where there was a choice.
    pub note: String,
    /// Documents a second.
    pub documents_per_second: Figure,
    /// Documents a second of processor time, that of all threads of the process together.
    pub documents_per_cpu_second: Figure,
    /// Tokens that the model read, a second.
    pub tokens_per_second: Option<Figure>,
    /// Share of the padded views that held no token: what attention computed in vain. All else runs without padding.
    pub padded_share: Option<Figure>,
    /// Share of the time that lanes were inside the model.
    pub lanes_busy_share: Option<Figure>,
}

impl StageReport {
    /// The report of `runs`.
    pub fn of(stage: &str, note: String, runs: &[Run]) -> Self {
        let figure = |of: fn(&Run) -> f64| Figure::of(runs.iter().map(of));
        let of_model = |of: fn(&Run, &ModelWork) -> f64| {
            let values: Option<Vec<f64>> = runs.iter().map(|run| Some(of(run, run.model.as_ref()?))).collect();
            values.map(Figure::of)
        };
        Self {
            stage: stage.to_owned(),
            note,
            documents_per_second: figure(|run| run.documents / run.seconds),
            documents_per_cpu_second: figure(|run| run.documents / run.cpu_seconds),
            tokens_per_second: of_model(|run, model| model.tokens / run.seconds),
            padded_share: of_model(|_, model| 1.0 - model.tokens / model.slots),
            lanes_busy_share: of_model(|run, model| model.seconds / (run.seconds * model.lanes)),
        }
    }
}

/// How two stages compare, repeat by repeat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ratio {
    /// The one.
    pub of: String,
    /// The other.
    pub to: String,
    /// Ratio of their documents a second.
    pub of_time: Figure,
    /// Ratio of their documents a second of processor time, which other processes on the machine disturb less.
    pub of_cpu_time: Figure,
}

impl Ratio {
    /// The ratio of two stages.
    pub fn of(one: &StageReport, other: &StageReport) -> Self {
        let ratio = |of: fn(&StageReport) -> &Figure| Figure::ratio(&of(one).values, &of(other).values);
        Self {
            of: one.stage.clone(),
            to: other.stage.clone(),
            of_time: ratio(|stage| &stage.documents_per_second),
            of_cpu_time: ratio(|stage| &stage.documents_per_cpu_second),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_go_forwards_and_backwards_and_those_that_warm_up_do_not_count() {
        let mut order = Vec::new();
        let outcomes = in_turns(3, (1, 2), |number, repeat| {
            order.push(number);
            Ok(10 * repeat + number)
        });
        assert_eq!(order, [0, 1, 2, 2, 1, 0, 0, 1, 2]);
        assert_eq!(outcomes.unwrap(), [[10, 20], [11, 21], [12, 22]]);
    }
}
