//! The thread that makes models ready: fetches, verifies, loads, warms up. It serves nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::background::step_back;
use super::cache::Cached;
use super::desired::Target;
use super::fetch::Fetcher;
use crate::manifest::Variant;
use crate::serving::{Loader, Serving, Version};

/// A version that a generation needs, and for how many sessions.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Need {
    pub(super) target: Target,
    /// Sessions that it needs at least.
    pub(super) sessions: usize,
}

/// What the thread is asked for.
pub(super) enum Order {
    /// Bring models into the cache.
    Fetch { ticket: u64, needs: Vec<Need>, patience: Duration },
    /// Load what was fetched.
    Load { ticket: u64, fetched: Vec<Fetched> },
}

/// A model on disk.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    pub(super) need: Need,
    pub(super) cached: Cached,
}

impl Fetched {
    /// Bytes of the graph, of which every session has a copy.
    pub(super) fn graph_bytes(&self, variant: Variant) -> u64 {
        std::fs::metadata(self.cached.path.join(variant.graph())).map_or(0, |file| file.len())
    }
}

/// A model in memory.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    pub(super) version: Arc<Version>,
    /// What the control topic calls it; none for the model of the settings.
    pub(super) target: Option<Target>,
    /// Keeps its files where they are: for when it must be loaded again.
    pub(super) _cached: Option<Cached>,
}

/// How far it is.
pub(super) enum Event {
    /// A store does not answer; it is asked again.
    Waiting(String),
    Fetched(Vec<Fetched>),
    Verifying,
    Warming,
    Loaded(Vec<Loaded>),
    Failed(String),
}

/// The ticket of the work that is wanted: any other is given up.
pub(super) type Wanted = Arc<AtomicU64>;

pub(super) struct Admitter {
    pub(super) fetcher: Fetcher,
    pub(super) loader: Loader,
    pub(super) slot: String,
    /// All slots: no two may have one task.
    pub(super) serving: Serving,
    pub(super) warm_up_tokens: usize,
    /// It computes when those who serve leave time for it: not where sessions start threads, which would do the same for
    /// ever.
    pub(super) steps_back: bool,
    pub(super) wanted: Wanted,
}

impl Admitter {
    /// Serves orders until there are none; every event names the ticket that it is of.
    pub(super) fn run(self, orders: &Receiver<Order>, events: &Sender<(u64, Event)>) {
        if self.steps_back {
            step_back();
        }
        for order in orders {
            let (ticket, result) = match order {
                Order::Fetch { ticket, needs, patience } => (ticket, self.fetch(ticket, needs, patience, events)),
                Order::Load { ticket, fetched } => (ticket, self.load(ticket, fetched, events)),
            };
            let event = result.unwrap_or_else(Event::Failed);
            if events.send((ticket, event)).is_err() {
                return;
            }
        }
    }

    fn fetch(
        &self,
        ticket: u64,
        needs: Vec<Need>,
        patience: Duration,
        events: &Sender<(u64, Event)>,
    ) -> Result<Event, String> {
        let deadline = Instant::now() + patience;
        let is_cancelled = || self.wanted.load(Ordering::Relaxed) != ticket;
        let mut fetched = Vec::new();
        for need in needs {
            let told = |error: &_| {
                tracing::warn!(slot = self.slot, %error, "trying again");
                let _ = events.send((ticket, Event::Waiting(format!("{error}; trying again"))));
            };
            let cached = self.fetcher.fetch(&need.target, deadline, &is_cancelled, told);
            let cached = cached.map_err(|error| format!("version {}: {error}", need.target.version))?;
            fetched.push(Fetched { need, cached });
        }
        Ok(Event::Fetched(fetched))
    }

    fn load(&self, ticket: u64, fetched: Vec<Fetched>, events: &Sender<(u64, Event)>) -> Result<Event, String> {
        let mut loaded = Vec::new();
        for Fetched { need, cached } in fetched {
            let failed = |error: &dyn std::fmt::Display| format!("version {}: {error}", need.target.version);
            let _ = events.send((ticket, Event::Verifying));
            fail::fail_point!("rollout_load", |_| Err(failed(&"injected: out of memory")));
            let version = self.loader.load(&self.slot, &cached.path, need.sessions).map_err(|e| failed(&e))?;
            self.serving.admits(&version).map_err(|e| failed(&e))?;
            let _ = events.send((ticket, Event::Warming));
            version.warm_up(self.warm_up_tokens).map_err(|e| failed(&e))?;
            loaded.push(Loaded { version, target: Some(need.target), _cached: Some(cached) });
        }
        Ok(Event::Loaded(loaded))
    }
}
