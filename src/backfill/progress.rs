//! How far a job has come, for people on a terminal and for programs.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::tally::Tally;

/// How progress is shown, on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Show {
    /// Bars on a terminal, lines elsewhere.
    Auto,
    /// Bars.
    Bars,
    /// A line now and then.
    Lines,
    /// A JSON object now and then.
    Json,
    /// Nothing.
    Off,
}

/// How often bars are drawn …
const DRAW: Duration = Duration::from_millis(200);
/// … and lines are written.
const LINE: Duration = Duration::from_secs(10);
/// Bars that fit on a screen.
const BARS: usize = 16;

/// A part of a job that is under way: a partition or a split, in offsets, bytes or rows.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// All of it.
    pub(super) total: u64,
    /// What is read of it.
    pub(super) done: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct State {
    /// All parts of this process, those not begun too.
    total: u64,
    /// Parts that are over.
    over: u64,
    parts: BTreeMap<String, Part>,
}

/// What a job tells of its parts; a clone shares it.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<State>>);

impl Progress {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to what is to be done.
    pub(super) fn expect(&self, total: u64) {
        self.lock().total += total;
    }

    /// A part begins.
    pub(super) fn begin(&self, name: &str, part: Part) {
        self.lock().parts.insert(name.to_owned(), part);
    }

    /// A part ends.
    pub(super) fn end(&self, name: &str) {
        let mut state = self.lock();
        if let Some(part) = state.parts.remove(name) {
            state.over += part.total;
        }
    }

    /// What is read, and of how much.
    fn done(&self) -> (u64, u64) {
        let state = self.lock();
        let of_parts: u64 = state.parts.values().map(|part| part.done.load(Ordering::Relaxed).min(part.total)).sum();
        (state.over + of_parts, state.total)
    }
}

/// Shows `progress` until `over` is closed.
pub fn show(how: Show, job: &str, progress: &Progress, tally: &Tally, over: &Receiver<()>) {
    match how {
        Show::Off => drop(over.recv()),
        Show::Bars => bars(job, progress, tally, over),
        Show::Auto | Show::Lines => lines(progress, tally, over, |at| at.line(job)),
        Show::Json => lines(progress, tally, over, |at| at.json(job)),
    }
}

/// Where a job stands at a moment.
struct At {
    records: u64,
    refused: u64,
    /// Share that is read, 0 to 1.
    share: f64,
    elapsed: Duration,
}

impl At {
    fn now(progress: &Progress, tally: &Tally, since: Instant) -> Self {
        let (done, total) = progress.done();
        let counts = tally.counts();
        let share = if total == 0 { 0.0 } else { done as f64 / total as f64 };
        Self { records: counts.records, refused: counts.refused(), share, elapsed: since.elapsed() }
    }

    fn rate(&self) -> f64 {
        self.records as f64 / self.elapsed.as_secs_f64().max(0.001)
    }

    /// Seconds until the end, if it goes on like this.
    fn left(&self) -> Option<f64> {
        (self.share > 0.0).then(|| self.elapsed.as_secs_f64() * (1.0 - self.share) / self.share)
    }

    fn line(&self, job: &str) -> String {
        let left = self.left().map_or_else(String::new, |left| format!(", {left:.0} s left"));
        let refused = if self.refused > 0 { format!(", {} refused", self.refused) } else { String::new() };
        format!(
            "{job}: {:.1} % read, {} records{refused}, {:.1}/s{left}",
            self.share * 100.0,
            self.records,
            self.rate()
        )
    }

    fn json(&self, job: &str) -> String {
        json!({
            "job": job, "share": self.share, "records": self.records, "refused": self.refused,
            "records_per_second": self.rate(), "seconds": self.elapsed.as_secs_f64(), "seconds_left": self.left(),
        })
        .to_string()
    }
}

fn lines(progress: &Progress, tally: &Tally, over: &Receiver<()>, text: impl Fn(&At) -> String) {
    let since = Instant::now();
    while over.recv_timeout(LINE) == Err(RecvTimeoutError::Timeout) {
        // Whoever read it may have gone; the job goes on.
        let _ = writeln!(std::io::stderr(), "{}", text(&At::now(progress, tally, since)));
    }
}

fn bars(job: &str, progress: &Progress, tally: &Tally, over: &Receiver<()>) {
    let since = Instant::now();
    let screen = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
    let style = |template: &str| ProgressStyle::with_template(template).expect("the template is in order");
    let (whole, part) = (style("{msg}"), style("  {bar:30} {percent:>3} % {msg}"));
    let head = screen.add(ProgressBar::new(1).with_style(whole));
    let mut shown: BTreeMap<String, ProgressBar> = BTreeMap::new();
    while over.recv_timeout(DRAW) == Err(RecvTimeoutError::Timeout) {
        head.set_message(At::now(progress, tally, since).line(job));
        let parts = progress.lock().parts.clone();
        shown.retain(|name, bar| {
            parts.contains_key(name) || {
                screen.remove(bar);
                false
            }
        });
        for (name, Part { total, done }) in parts.iter().take(BARS) {
            let bar = shown.entry(name.clone()).or_insert_with(|| {
                screen.add(ProgressBar::new(*total).with_style(part.clone()).with_message(name.clone()))
            });
            bar.set_position(done.load(Ordering::Relaxed).min(*total));
        }
    }
    // What is left on the screen is the summary.
    let _ = screen.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_and_what_is_under_way_count() {
        let progress = Progress::default();
        progress.expect(200);
        for name in ["a", "b"] {
            progress.begin(name, Part { total: 50, done: Arc::new(AtomicU64::new(20)) });
        }
        progress.end("a");
        assert_eq!(progress.done(), (70, 200));
        let at = At { records: 70, refused: 1, share: 0.35, elapsed: Duration::from_secs(7) };
        assert_eq!(at.line("june"), "june: 35.0 % read, 70 records, 1 refused, 10.0/s, 13 s left");
    }
}
