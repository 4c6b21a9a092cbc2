//! The settings that suit a machine and a model: one after the other, the best of a few candidates.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::figure::{Figure, percentile};
use super::options::{BenchOptions, Size};
use super::pipeline::Files;
use super::run::in_turns;
use super::subject::Subject;
use super::{BenchError, latency};
use crate::config::Settings;
use crate::worker::cores;

/// A candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Trial {
    /// The settings that are tried.
    pub settings: String,
    /// Documents a second, file to file.
    pub documents_per_second: Option<Figure>,
    /// 99th percentile of the latency, in milliseconds, at half of the best throughput so far.
    pub p99_ms: Option<Figure>,
    /// Whether it was the best, or the first that is within a hundredth of it.
    pub chosen: bool,
}

/// A throughput or a latency is as good as another that is better by less.
const CLOSE: f64 = 0.01;
/// Share of the throughput at which delays are compared.
const LOAD: f64 = 0.5;

/// Finds lanes with their threads, then the token budget, the sort window and the delay.
///
/// # Errors
/// When a model cannot be loaded or a stage fails.
pub fn search(
    subject: &Subject,
    options: &BenchOptions,
    say: &mut dyn FnMut(&str),
) -> Result<(Settings, Vec<Trial>), BenchError> {
    let (mut best, mut trials) = (subject.settings.clone(), Vec::new());
    let mut rate = 0.0;
    for candidates in [lanes, tokens, window] {
        let candidates = candidates(&best);
        let figures = throughputs(subject, &candidates, options.repeats, say)?;
        let chosen = choose(&figures.iter().map(|figure| -figure.median).collect::<Vec<_>>());
        rate = figures[chosen].median;
        for (number, ((name, _), figure)) in candidates.iter().zip(figures).enumerate() {
            let documents_per_second = Some(figure);
            trials.push(Trial { settings: name.clone(), documents_per_second, p99_ms: None, chosen: number == chosen });
        }
        best = candidates[chosen].1.clone();
    }
    let candidates = delay(&best);
    let figures = latencies(subject, &candidates, rate * LOAD, options, say)?;
    let chosen = choose(&figures.iter().map(|figure| figure.median).collect::<Vec<_>>());
    for (number, ((name, _), figure)) in candidates.iter().zip(figures).enumerate() {
        let p99_ms = Some(figure);
        trials.push(Trial { settings: name.clone(), documents_per_second: None, p99_ms, chosen: number == chosen });
    }
    Ok((candidates[chosen].1.clone(), trials))
}

/// The settings that were found, as a file of settings.
pub fn tuned_toml(settings: &Settings, about: &str) -> String {
    let (model, lanes, batch) = (&settings.model, &settings.lanes, &settings.batch);
    let mut out = String::new();
    about.lines().for_each(|line| writeln!(out, "# {line}").expect("writing to a string"));
    let path = toml::Value::String(model.path.display().to_string());
    write!(
        out,
        "\n[model]\npath = {path}\nvariant = \"{}\"\n\n[lanes]\ncount = {}\nthreads = {}\n\n[batch]\nmax_tokens = {}\n\
         max_sequences = {}\nsort_window_tokens = {}\nmax_wait_ms = {}\n",
        model.variant,
        lanes.count,
        lanes.threads,
        batch.max_tokens,
        batch.max_sequences,
        batch.sort_window_tokens,
        batch.max_wait_ms,
    )
    .expect("writing to a string");
    out
}

type Candidate = (String, Settings);

fn candidate(of: &Settings, name: String, change: impl FnOnce(&mut Settings)) -> Candidate {
    let mut settings = of.clone();
    change(&mut settings);
    (name, settings)
}

/// As many lanes as there are cores, each with one thread, and half, a quarter … of them with as many threads more.
fn lanes(of: &Settings) -> Vec<Candidate> {
    let threads = std::iter::successors(Some(1), |threads| Some(threads * 2)).take_while(|&threads| threads <= cores());
    threads
        .map(|threads| {
            let count = cores() / threads;
            candidate(of, format!("lanes.count={count} lanes.threads={threads}"), |settings| {
                (settings.lanes.count, settings.lanes.threads) = (count, threads);
            })
        })
        .collect()
}

fn tokens(of: &Settings) -> Vec<Candidate> {
    let of_size = |tokens: usize| {
        let sequences = tokens / 8;
        let name = format!("batch.max_tokens={tokens} batch.max_sequences={sequences}");
        candidate(of, name, |settings| {
            let batch = &mut settings.batch;
            (batch.max_tokens, batch.max_sequences) = (tokens, sequences);
            batch.sort_window_tokens = batch.sort_window_tokens.max(tokens);
        })
    };
    [256, 512, 1024, 2048, 4096].map(of_size).into()
}

fn window(of: &Settings) -> Vec<Candidate> {
    let of_size = |times: usize| {
        let window = of.batch.max_tokens * times;
        candidate(of, format!("batch.sort_window_tokens={window}"), |settings| {
            settings.batch.sort_window_tokens = window
        })
    };
    [4, 8, 16, 32].map(of_size).into()
}

fn delay(of: &Settings) -> Vec<Candidate> {
    let of_time = |ms| candidate(of, format!("batch.max_wait_ms={ms}"), |settings| settings.batch.max_wait_ms = ms);
    [0, 2, 5, 10, 20].map(of_time).into()
}

/// The first whose cost is within a hundredth of the least; costs are all positive or all negative.
fn choose(costs: &[f64]) -> usize {
    let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
    costs.iter().position(|&cost| cost <= least + CLOSE * least.abs()).unwrap_or_default()
}

fn throughputs(
    subject: &Subject,
    candidates: &[Candidate],
    repeats: usize,
    say: &mut dyn FnMut(&str),
) -> Result<Vec<Figure>, BenchError> {
    let subjects = candidates.iter().map(|(_, settings)| subject.with(settings)).collect::<Result<Vec<_>, _>>()?;
    let files = Files::write(subject)?;
    let rates = in_turns(candidates.len(), (1, repeats), |number, _| {
        let run = files.run(&subjects[number])?;
        let rate = run.documents / run.seconds;
        say(&format!("{}: {rate:.0} documents/s", candidates[number].0));
        Ok(rate)
    })?;
    Ok(rates.into_iter().map(Figure::of).collect())
}

fn latencies(
    subject: &Subject,
    candidates: &[Candidate],
    rate: f64,
    options: &BenchOptions,
    say: &mut dyn FnMut(&str),
) -> Result<Vec<Figure>, BenchError> {
    let subjects = candidates.iter().map(|(_, settings)| subject.with(settings)).collect::<Result<Vec<_>, _>>()?;
    let seconds = match options.size {
        Size::Documents(count) => count as f64 / rate,
        Size::Seconds(seconds) => seconds,
    };
    let times = in_turns(candidates.len(), (0, options.repeats), |number, _| {
        let p99 = percentile(&latency::run(&subjects[number], rate, seconds, options.partitions)?, 0.99) * 1e3;
        say(&format!("{}: 99th percentile {p99:.1} ms at {rate:.0} documents/s", candidates[number].0));
        Ok(p99)
    })?;
    Ok(times.into_iter().map(Figure::of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    #[test]
    fn the_first_that_is_as_good_is_chosen() {
        assert_eq!(choose(&[-90.0, -99.5, -100.0]), 1);
        assert_eq!(choose(&[10.0, 9.0, 8.95]), 1);
        assert_eq!(choose(&[1.0]), 0);
    }

    #[test]
    fn what_was_found_is_a_file_of_settings() {
        let mut settings = Settings::default();
        (settings.lanes.count, settings.batch.max_tokens, settings.batch.max_wait_ms) = (3, 512, 0);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tuned.toml");
        std::fs::write(&file, tuned_toml(&settings, "a machine\na model")).unwrap();
        let read = Settings::load(&Sources { file: Some(file), env: vec![], sets: vec![] }).unwrap();
        assert_eq!((read.lanes, read.batch, read.model), (settings.lanes, settings.batch, settings.model));
    }

    #[test]
    fn every_candidate_is_a_setting_that_may_be_made() {
        let default = Settings::default();
        for (name, settings) in [lanes(&default), tokens(&default), window(&default), delay(&default)].concat() {
            let sets = name.split(' ').map(str::to_owned).collect();
            assert!(Settings::load(&Sources { file: None, env: vec![], sets }).is_ok(), "{name}");
            assert!(settings.batch.max_tokens <= settings.batch.sort_window_tokens, "{name}");
        }
    }
}
