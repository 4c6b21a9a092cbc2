//! How fast records may be admitted, so that others who share the machines or the topics are left room.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::source::Message;

/// A bound on the rate of a source, and a way to let it rest. A clone shares both.
#[derive(Clone, Default)]
pub struct Pace {
    limit: Option<Arc<Limit>>,
    /// Whether reading must rest for now.
    pub rest: Arc<AtomicBool>,
}

/// Until something is known of the tokens in a byte: what Vietnamese has.
const TOKENS_PER_BYTE: f64 = 0.25;
/// Bytes that tell how many tokens there are in one.
const TELLING_BYTES: u64 = 1 << 16;
/// How often the count of tokens is asked for.
const ASK: Duration = Duration::from_secs(1);

/// Tokens and bytes that have passed.
type Passed = dyn Fn() -> (f64, u64) + Send + Sync;

/// How many tokens there are in a byte, learned from what has passed.
struct Density {
    passed: Box<Passed>,
    known: Mutex<(Instant, f64)>,
}

impl Density {
    fn per_byte(&self) -> f64 {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0.elapsed() >= ASK {
            let (tokens, bytes) = (self.passed)();
            let ratio = if bytes >= TELLING_BYTES { tokens / bytes as f64 } else { known.1 };
            *known = (Instant::now(), ratio);
        }
        known.1
    }
}

/// The longest time that a source that was slower may make up for.
const CATCH_UP: f64 = 1.0;

struct Limit {
    per_second: f64,
    /// For units that are tokens.
    density: Option<Density>,
    /// When the next record is due, in microseconds since the start.
    due: AtomicU64,
    since: Instant,
}

impl Pace {
    /// At most so many records a second.
    pub fn records(per_second: f64) -> Self {
        Self::new(per_second, None)
    }

    /// At most so many tokens a second, in the mean: how many a record has is only known when it has passed. `passed`
    /// tells the tokens and the bytes that have.
    pub fn tokens(per_second: f64, passed: impl Fn() -> (f64, u64) + Send + Sync + 'static) -> Self {
        let known = Mutex::new((Instant::now(), TOKENS_PER_BYTE));
        Self::new(per_second, Some(Density { passed: Box::new(passed), known }))
    }

    fn new(per_second: f64, density: Option<Density>) -> Self {
        let limit = Limit { per_second, density, due: AtomicU64::new(0), since: Instant::now() };
        Self { limit: Some(Arc::new(limit)), rest: Arc::default() }
    }

    /// How long to wait before the next record.
    pub fn wait(&self) -> Duration {
        let due = |limit: &Arc<Limit>| {
            Duration::from_micros(limit.due.load(Ordering::Relaxed)).saturating_sub(limit.since.elapsed())
        };
        self.limit.as_ref().map_or(Duration::ZERO, due)
    }

    /// Whether reading must rest for now.
    pub fn rests(&self) -> bool {
        self.rest.load(Ordering::Relaxed)
    }

    /// A record was admitted.
    pub fn took(&self, message: &Message) {
        let Some(limit) = &self.limit else { return };
        let bytes = message.value.as_ref().map_or(0, bytes::Bytes::len) as f64;
        let units = limit.density.as_ref().map_or(1.0, |density| density.per_byte() * bytes);
        let earliest = (limit.since.elapsed().as_secs_f64() - CATCH_UP).max(0.0) * 1e6;
        let due = (limit.due.load(Ordering::Relaxed) as f64).max(earliest) + units / limit.per_second * 1e6;
        limit.due.store(due as u64, Ordering::Relaxed);
    }
}

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pace").field("per_second", &self.limit.as_ref().map(|limit| limit.per_second)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize) -> Message {
        Message { offset: 0, key: None, value: Some(vec![b'a'; bytes].into()), headers: vec![], timestamp_ms: None }
    }

    #[test]
    fn records_and_tokens_are_spread_over_the_time() {
        let records = Pace::records(0.01);
        assert_eq!(records.wait(), Duration::ZERO);
        records.took(&message(10));
        assert!(records.wait() > Duration::from_secs(90), "{:?}", records.wait());
        let tokens = Pace::tokens(1.0, || (0.0, 0));
        tokens.took(&message(1_000));
        assert!(tokens.wait() > Duration::from_secs(200), "{:?}", tokens.wait());
        assert_eq!(Pace::default().wait(), Duration::ZERO);
    }
}
