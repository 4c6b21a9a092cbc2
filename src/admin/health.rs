//! What the probes ask: has the worker started, does it still move, may it be relied on.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: Cow<'static, str>,
    /// Whether it is as it should be.
    pub ok: bool,
    /// Why, in words; empty where there is nothing to say.
    pub reason: String,
}

/// Answer to a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// `ok`, or `failing` where a check is not ok.
    pub status: &'static str,
    /// What was looked at.
    pub checks: Vec<Check>,
}

impl Report {
    fn new(checks: Vec<Check>) -> Self {
        let status = if checks.iter().all(|check| check.ok) { "ok" } else { "failing" };
        Self { status, checks }
    }

    /// Whether all checks are ok.
    pub fn is_ok(&self) -> bool {
        self.status == "ok"
    }
}

#[derive(Debug)]
struct Component {
    name: &'static str,
    bound: Duration,
    /// Since when the milliseconds of `last_ms` count.
    since: Instant,
    last_ms: AtomicU64,
}

impl Component {
    fn beat(&self) {
        self.last_ms.store(self.since.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn check(&self) -> Check {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        let silence = self.since.elapsed().saturating_sub(last);
        let ok = silence <= self.bound;
        let reason = match ok {
            true => String::new(),
            false => format!("silent for {} ms, at most {} ms", silence.as_millis(), self.bound.as_millis()),
        };
        Check { name: self.name.into(), ok, reason }
    }
}

/// A component's sign of life. A component whose value was dropped no longer beats, so one that dies of a panic is
/// found; one that ends as it should calls [`Beat::retire`].
#[derive(Debug)]
pub struct Beat {
    component: Arc<Component>,
    health: Health,
}

impl Beat {
    /// The component is alive: one atomic store, for every turn of a loop.
    pub fn beat(&self) {
        self.component.beat();
    }

    /// The component has ended as it should and is no longer asked for.
    pub fn retire(self) {
        self.health.components().retain(|other| !Arc::ptr_eq(other, &self.component));
    }
}

#[derive(Debug)]
struct Inner {
    started: AtomicBool,
    shutting_down: AtomicBool,
    ready: AtomicBool,
    /// Why the worker is ready or not; written when that changes, read by probes.
    reason: Mutex<String>,
    components: Mutex<Vec<Arc<Component>>>,
    /// What else must hold for the worker to be ready, by name.
    checks: Mutex<Vec<Check>>,
    /// What is said of the rollouts; null without any.
    rollout: Mutex<BTreeMap<String, serde_json::Value>>,
}

/// The health of a worker. A clone shares it.
#[derive(Clone, Debug)]
pub struct Health(Arc<Inner>);

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(Inner {
            started: AtomicBool::new(false),
            shutting_down: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            reason: Mutex::new("starting".into()),
            components: Mutex::default(),
            checks: Mutex::default(),
            rollout: Mutex::default(),
        }))
    }
}

impl Health {
    /// A worker that has not started.
    pub fn new() -> Self {
        Self::default()
    }

    /// The worker has loaded its model and joined its group.
    pub fn set_started(&self) {
        self.0.started.store(true, Ordering::Relaxed);
    }

    /// Whether the worker does its work, and why: `caught up`, `waiting for an assignment`.
    pub fn set_ready(&self, ready: bool, reason: impl Into<String>) {
        *self.0.reason.lock().expect("nothing panics under this lock") = reason.into();
        self.0.ready.store(ready, Ordering::Relaxed);
    }

    /// A check of its own on the way to readiness, from now on.
    pub fn set_check(&self, name: impl Into<Cow<'static, str>>, ok: bool, reason: impl Into<String>) {
        let check = Check { name: name.into(), ok, reason: reason.into() };
        let mut checks = self.checks();
        match checks.iter_mut().find(|known| known.name == check.name) {
            Some(known) => *known = check,
            None => checks.push(check),
        }
    }

    /// What the page about rollouts shows of a slot from now on.
    pub fn set_rollout(&self, slot: &str, status: serde_json::Value) {
        self.0.rollout.lock().expect("nothing panics under this lock").insert(slot.to_owned(), status);
    }

    /// What the page about rollouts shows, by slot.
    pub fn rollout(&self) -> BTreeMap<String, serde_json::Value> {
        self.0.rollout.lock().expect("nothing panics under this lock").clone()
    }

    /// From now on the worker is not ready, whatever else is said.
    pub fn set_shutting_down(&self) {
        self.0.shutting_down.store(true, Ordering::Relaxed);
    }

    /// Adds a component that must beat at least every `bound`, the first time from now on.
    pub fn register(&self, name: &'static str, bound: Duration) -> Beat {
        let component = Arc::new(Component { name, bound, since: Instant::now(), last_ms: AtomicU64::new(0) });
        self.components().push(component.clone());
        Beat { component, health: self.clone() }
    }

    /// Whether every component beats. `/livez`: where not, a restart helps.
    pub fn live(&self) -> Report {
        Report::new(self.components().iter().map(|component| component.check()).collect())
    }

    /// Whether the worker has started, is ready and stays. `/readyz`: where not, wait.
    pub fn ready(&self) -> Report {
        let ready = self.0.ready.load(Ordering::Relaxed);
        let reason = self.0.reason.lock().expect("nothing panics under this lock").clone();
        let stays = !self.0.shutting_down.load(Ordering::Relaxed);
        let running =
            Check { name: "running".into(), ok: stays, reason: if stays { "" } else { "shutting down" }.into() };
        let mut checks = vec![self.started(), Check { name: "ready".into(), ok: ready, reason }, running];
        checks.extend(self.checks().iter().cloned());
        Report::new(checks)
    }

    /// Whether the worker has started. `/startupz`: until then, the other probes wait.
    pub fn startup(&self) -> Report {
        Report::new(vec![self.started()])
    }

    /// What [`Health::ready`] comes to, without the words.
    pub fn is_ready(&self) -> bool {
        let Inner { started, ready, shutting_down, .. } = &*self.0;
        let holds = || self.checks().iter().all(|check| check.ok);
        started.load(Ordering::Relaxed)
            && ready.load(Ordering::Relaxed)
            && !shutting_down.load(Ordering::Relaxed)
            && holds()
    }

    fn started(&self) -> Check {
        let ok = self.0.started.load(Ordering::Relaxed);
        Check { name: "started".into(), ok, reason: if ok { "" } else { "starting" }.into() }
    }

    fn checks(&self) -> std::sync::MutexGuard<'_, Vec<Check>> {
        self.0.checks.lock().expect("nothing panics under this lock")
    }

    fn components(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Component>>> {
        self.0.components.lock().expect("nothing panics under this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_needs_a_start_and_ends_with_the_shutdown() {
        let health = Health::new();
        health.set_ready(true, "caught up");
        assert!(!health.is_ready() && !health.ready().is_ok() && !health.startup().is_ok());
        health.set_started();
        assert!(health.is_ready() && health.ready().is_ok() && health.startup().is_ok());
        health.set_check("rollout", false, "no version serves");
        assert!(!health.is_ready() && !health.ready().is_ok());
        health.set_check("rollout", true, "");
        assert!(health.is_ready() && health.ready().is_ok());
        health.set_shutting_down();
        assert!(!health.is_ready() && !health.ready().is_ok());
        assert_eq!(health.ready().checks[2].reason, "shutting down");
    }

    #[test]
    fn a_component_that_is_dropped_is_missed_and_one_that_retires_is_not() {
        let health = Health::new();
        drop(health.register("poll", Duration::ZERO));
        let patient = health.register("commit", Duration::from_secs(3600));
        while health.live().is_ok() {
            std::thread::yield_now();
        }
        assert_eq!(health.live().checks.iter().map(|check| check.ok).collect::<Vec<_>>(), [false, true]);
        patient.retire();
        assert_eq!(health.live().checks.len(), 1);
    }
}
