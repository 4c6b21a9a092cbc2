//! The thread that brings what a slot serves to what the control topic says, step by step, and tells how far it is.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::admit::{self, Event, Fetched, Loaded, Need, Order};
use super::control::{Control, Fold, Wanted};
use super::desired::{Desired, Target};
use super::memory;
use super::report::Reporter;
use super::rules::{Breach, RuleOptions, Sighting, Watch};
use super::shadow::{self, Findings};
use super::status::{Rollback, Served, State, now};
use crate::config::OnLowMemory;
use crate::serving::{Canary, Counts, Loader, Routes, Slot, Version};

/// How long the loop waits for the topic at a time.
const TURN: Duration = Duration::from_millis(50);

/// How the agent behaves.
#[derive(Clone, Debug)]
pub(super) struct AgentOptions {
    pub(super) labels: BTreeMap<String, String>,
    /// How long a store is asked, where the message does not say.
    pub(super) deadline: Duration,
    /// How long a model stays after it has served.
    pub(super) keep_previous: Duration,
    pub(super) on_low_memory: OnLowMemory,
    /// Largest share of the time that a comparison computes.
    pub(super) shadow_max_load: f64,
    pub(super) rules: RuleOptions,
}

/// A model in memory, and since when it is of no use.
struct Pooled {
    loaded: Loaded,
    unused_since: Option<Instant>,
}

/// A version that serves newly, under the rules.
struct Watched {
    watch: Watch,
    generation: u64,
    candidate: Weak<Version>,
    baseline: Baseline,
    findings: Option<Findings>,
    /// None while it is a canary.
    until: Option<Instant>,
    /// What served before, if the topic has named it.
    before: Option<Target>,
}

/// What a version is held against.
enum Baseline {
    /// One that serves beside it.
    Live(Weak<Version>),
    /// One that has served before it.
    Past(Counts),
}

/// What is being brought about.
enum Work {
    Idle,
    Fetching(Desired),
    /// Waits until nobody uses what was served, to make room.
    Draining(Desired, Vec<Fetched>),
    Loading(Desired),
}

/// The channels and parts that an agent works with.
pub(super) struct Parts {
    pub(super) control: Control,
    pub(super) slot: Slot,
    pub(super) loader: Loader,
    pub(super) options: AgentOptions,
    pub(super) reporter: Reporter,
    pub(super) orders: Sender<Order>,
    pub(super) events: Receiver<(u64, Event)>,
    pub(super) wanted: admit::Wanted,
    /// Loads the model of the settings, for when the topic says nothing.
    pub(super) default: Box<dyn Fn() -> Result<Loaded, String> + Send>,
}

/// The state of one slot.
pub(super) struct Agent {
    pub(super) parts: Parts,
    /// Number of the work in hand.
    ticket: u64,
    in_force: Option<Desired>,
    /// What serves if the generation in force cannot, and nothing else does.
    fallback: Option<Target>,
    work: Work,
    pool: Vec<Pooled>,
    watched: Option<Watched>,
    is_caught_up: bool,
}

impl Agent {
    pub(super) fn new(parts: Parts) -> Self {
        let (in_force, fallback, work, pool) = (None, None, Work::Idle, Vec::new());
        Self { parts, ticket: 0, in_force, fallback, work, pool, watched: None, is_caught_up: false }
    }

    /// One turn of the loop.
    pub(super) fn turn(&mut self) {
        if let Some(fold) = self.parts.control.poll(TURN) {
            self.follow(fold);
        }
        while let Ok((ticket, event)) = self.parts.events.try_recv() {
            if ticket == self.ticket {
                self.advance(event);
            }
        }
        self.judge();
        self.make_room();
        self.sweep();
        self.parts.reporter.tick();
    }

    /// Whether a version serves and the topic was read to its end.
    pub(super) fn is_up(&self) -> bool {
        self.is_caught_up && self.parts.slot.routes().stable.is_some()
    }

    fn working_on(&self) -> Option<u64> {
        match &self.work {
            Work::Idle => None,
            Work::Fetching(desired) | Work::Draining(desired, _) | Work::Loading(desired) => Some(desired.generation),
        }
    }

    /// Takes what the topic says, read to its end.
    fn follow(&mut self, fold: Fold) {
        self.is_caught_up = true;
        if let Some(refused) = &fold.refused
            && self.parts.control.is_new(refused)
        {
            tracing::warn!(offset = refused.offset, reason = refused.reason, "a desired state was refused");
            self.parts.reporter.refused(refused.clone());
        }
        match fold.wanted {
            Wanted::Desired(desired) => self.begin(*desired),
            Wanted::Withdrawn if self.in_force.take().is_some() => self.fall_back("withdrawn: serving model.path"),
            // A topic that is gone takes nothing away.
            _ if self.parts.slot.routes().stable.is_none() && matches!(self.work, Work::Idle) => {
                self.fall_back("the control topic says nothing: serving model.path");
            }
            _ => {}
        }
    }

    /// Begins with a generation, unless it is in force already or older than what is.
    fn begin(&mut self, desired: Desired) {
        let is_old = |current: &Desired| desired.generation < current.generation || desired == *current;
        if self.in_force.as_ref().is_some_and(is_old) {
            return;
        }
        self.in_force = Some(desired.clone());
        self.fallback = desired.previous.clone();
        self.parts.reporter.hold(false);
        self.give_up();
        if !desired.selects(&self.parts.options.labels) {
            return self.leave_out(desired);
        }
        tracing::info!(generation = desired.generation, version = desired.stable.version, "a desired state");
        self.parts.reporter.state(desired.generation, State::Pending, None);
        self.fetch(desired);
    }

    /// Ends what is under way; what comes of it still is not taken.
    fn give_up(&mut self) {
        self.work = Work::Idle;
        self.ticket += 1;
        self.parts.wanted.store(self.ticket, Ordering::Relaxed);
    }

    /// A generation for other workers: this one goes on, or begins with what they served before.
    fn leave_out(&mut self, desired: Desired) {
        if self.parts.slot.routes().stable.is_some() {
            return self.parts.reporter.note(format!("generation {} is not for these labels", desired.generation));
        }
        match desired.previous.clone() {
            Some(previous) => self.fetch(alone(&desired, previous)),
            None => self.fall_back("the selector leaves this worker out: serving model.path"),
        }
    }

    fn fetch(&mut self, desired: Desired) {
        let needs = self.missing(&desired);
        if needs.is_empty() {
            self.work = Work::Idle;
            return self.swap(&desired);
        }
        let patience = desired.deadline_ms.map_or(self.parts.options.deadline, Duration::from_millis);
        self.parts.reporter.state(desired.generation, State::Fetching, None);
        // The thread that takes orders lives as long as this one.
        let _ = self.parts.orders.send(Order::Fetch { ticket: self.ticket, needs, patience });
        self.work = Work::Fetching(desired);
    }

    /// The versions of a generation that are not in memory with enough sessions.
    fn missing(&self, desired: &Desired) -> Vec<Need> {
        let lanes = self.parts.loader.lanes();
        let mut needs: Vec<Need> = Vec::new();
        let mut need = |target: &Target, sessions: usize| match needs.iter_mut().find(|need| need.target == *target) {
            Some(need) => need.sessions = need.sessions.max(sessions),
            None if self.find(target, sessions).is_some() => {}
            None => needs.push(Need { target: target.clone(), sessions }),
        };
        need(&desired.stable, lanes);
        // A canary has one more, on which it is compared aside.
        desired.canary.iter().for_each(|canary| need(&canary.target, lanes + 1));
        desired.shadow.iter().for_each(|shadow| need(&shadow.target, 1));
        needs
    }

    /// The model of a target in memory. One whose version the target names wrongly is fetched again, and refused.
    fn find(&self, target: &Target, sessions: usize) -> Option<&Loaded> {
        let loaded = self.pooled(&target.sha256, sessions)?;
        (loaded.version.model().dir.manifest.version == target.version).then_some(loaded)
    }

    fn pooled(&self, sha256: &str, sessions: usize) -> Option<&Loaded> {
        let fits = |version: &Version| version.model().dir.sha256 == sha256 && version.sessions() >= sessions;
        self.pool.iter().map(|pooled| &pooled.loaded).find(|loaded| fits(&loaded.version))
    }

    /// The next step of the work in hand.
    fn advance(&mut self, event: Event) {
        let Some(generation) = self.working_on() else { return };
        match event {
            Event::Waiting(reason) => self.parts.reporter.state(generation, State::Fetching, Some(reason)),
            Event::Fetched(fetched) => self.fetched(fetched),
            Event::Verifying => self.parts.reporter.state(generation, State::Verifying, None),
            Event::Warming => self.parts.reporter.state(generation, State::Warming, None),
            Event::Loaded(loaded) => {
                let Work::Loading(desired) = std::mem::replace(&mut self.work, Work::Idle) else { return };
                self.pool.extend(loaded.into_iter().map(|loaded| Pooled { loaded, unused_since: None }));
                self.swap(&desired);
            }
            Event::Failed(reason) => self.failed(generation, reason),
        }
    }

    /// Loads what was fetched if there is memory for it, else does what the settings say.
    fn fetched(&mut self, fetched: Vec<Fetched>) {
        let Work::Fetching(desired) = std::mem::replace(&mut self.work, Work::Idle) else { return };
        let variant = self.parts.loader.variant();
        let bytes = |one: &Fetched| memory::needed(one.graph_bytes(variant), one.need.sessions);
        let needed: u64 = fetched.iter().map(bytes).sum();
        let is_short = || memory::available().filter(|&available| available < needed);
        if is_short().is_some() {
            self.drop_unused();
        }
        let Some(available) = is_short() else { return self.load(desired, fetched) };
        match self.parts.options.on_low_memory {
            OnLowMemory::Refuse => {
                let reason = format!(
                    "out of memory: about {needed} bytes are needed and {available} available; give the worker more, \
                     or set rollout.on_low_memory to \"drain\""
                );
                self.failed(desired.generation, reason);
            }
            OnLowMemory::Drain => {
                tracing::warn!(needed, available, "draining to make room for the new model");
                self.parts.reporter.state(
                    desired.generation,
                    State::Verifying,
                    Some("draining to make room".to_owned()),
                );
                let before = self.parts.slot.route(Routes::default()).stable;
                let of_version =
                    |pooled: &&Pooled| before.as_ref().is_some_and(|v| Arc::ptr_eq(v, &pooled.loaded.version));
                let target = self.pool.iter().find(of_version).and_then(|pooled| pooled.loaded.target.clone());
                self.fallback = target.or(self.fallback.take());
                self.parts.reporter.serves((None, None));
                self.work = Work::Draining(desired, fetched);
            }
        }
    }

    fn load(&mut self, desired: Desired, fetched: Vec<Fetched>) {
        let _ = self.parts.orders.send(Order::Load { ticket: self.ticket, fetched });
        self.work = Work::Loading(desired);
    }

    /// Goes on with a drain when nobody uses the old model any more.
    fn make_room(&mut self) {
        let is_free = self.pool.iter().all(|pooled| Arc::strong_count(&pooled.loaded.version) == 1);
        if is_free && let Work::Draining(..) = self.work {
            let Work::Draining(desired, fetched) = std::mem::replace(&mut self.work, Work::Idle) else { return };
            self.pool.clear();
            memory::give_back();
            self.load(desired, fetched);
        }
    }

    /// Serves a generation whose models are all in memory: between two records, for those that come from now on.
    fn swap(&mut self, desired: &Desired) {
        let lanes = self.parts.loader.lanes();
        let version = |target: &Target, sessions| self.find(target, sessions).map(|l| l.version.clone());
        let stable = version(&desired.stable, lanes);
        let canary = desired.canary.as_ref().and_then(|canary| {
            let version = version(&canary.target, lanes + 1)?;
            Some(Canary { version, weight_percent: canary.weight_percent })
        });
        let shadow = desired.shadow.as_ref();
        let shadow = shadow.and_then(|shadow| Some((version(&shadow.target, 1)?, shadow.sample_percent)));
        // A canary that must agree is compared on what the others serve, as often as there is time for it.
        let must_agree = self.parts.options.rules.min_agreement > 0.0;
        let aside = canary.as_ref().filter(|_| must_agree).map(|canary| (canary.version.clone(), 100.0));
        self.parts.reporter.compares(shadow.as_ref().map(|(version, percent)| of_version(version, *percent)));
        let compared = shadow.or(aside).zip(stable.as_deref()).map(|((version, percent), base)| {
            shadow::compare(version, base, percent, self.parts.options.shadow_max_load, self.parts.reporter.metrics())
        });
        let (compare, findings) = compared.unzip();
        let routes = Routes { stable, canary, compare };
        self.parts.reporter.serves(served(&routes));
        let before = self.parts.slot.route(routes.clone());
        self.watch(desired.generation, &routes, &before, findings);
        drop((routes, before));
        self.parts.reporter.swapped(desired.generation, desired.reason.clone());
        tracing::info!(generation = desired.generation, version = desired.stable.version, "serving");
        self.mark_unused();
    }

    /// Puts what is new under the rules: the canary, or else a version that takes the place of another.
    fn watch(&mut self, generation: u64, now: &Routes, before: &Routes, findings: Option<Findings>) {
        let is_other = |(new, old): &(&Arc<Version>, &Arc<Version>)| !Arc::ptr_eq(new, old);
        let replaced = now.stable.as_ref().zip(before.stable.as_ref()).filter(is_other);
        let (candidate, baseline, until, before) = match (&now.canary, &now.stable, replaced) {
            (Some(canary), Some(stable), _) => (&canary.version, Baseline::Live(Arc::downgrade(stable)), None, None),
            (None, _, Some((new, old))) => {
                let sha256 = &old.model().dir.sha256;
                let named = self.in_force.as_ref().and_then(|desired| desired.previous.clone());
                let target = self.pooled(sha256, 1).and_then(|loaded| loaded.target.clone()).or(named);
                let target = target.filter(|target| target.sha256 == *sha256);
                let until = Instant::now() + self.parts.options.rules.window;
                (new, Baseline::Past(old.tally().counts()), Some(until), target)
            }
            _ => return self.watched = None,
        };
        let watch = Watch::new(self.parts.options.rules.clone());
        let candidate = Arc::downgrade(candidate);
        self.watched = Some(Watched { watch, generation, candidate, baseline, findings, until, before });
    }

    /// Holds what is new against the rules.
    fn judge(&mut self) {
        let Some(watched) = &mut self.watched else { return };
        let Some(candidate) = watched.candidate.upgrade() else { return self.watched = None };
        let baseline = match &watched.baseline {
            Baseline::Live(version) => version.upgrade().map(|version| version.tally().counts()).unwrap_or_default(),
            Baseline::Past(counts) => *counts,
        };
        let (agreement, compared) = watched.findings.as_ref().map(Findings::get).unwrap_or_default();
        let sighting = Sighting { candidate: candidate.tally().counts(), baseline, agreement, compared };
        drop(candidate);
        match watched.watch.look(Instant::now(), sighting) {
            Some(breach) => self.take_back(&breach),
            None if watched.until.is_some_and(|until| until <= Instant::now()) => self.watched = None,
            None => {}
        }
    }

    /// Goes back at once, and tells the other workers through the topic, as whoever operates them would.
    fn take_back(&mut self, breach: &Breach) {
        let (Some(watched), Some(current)) = (self.watched.take(), self.in_force.clone()) else { return };
        let Breach { rule, found, accepted, records } = *breach;
        tracing::error!(rule, found, accepted, records, generation = watched.generation, "taking a version back");
        self.parts.reporter.rolled_back(Rollback {
            generation: watched.generation,
            rule: rule.to_owned(),
            found,
            accepted,
            records,
            time: now(),
        });
        let stable = self.parts.slot.routes().stable.filter(|_| current.canary.is_some());
        let before = watched.before.as_ref();
        let stable = stable.or_else(|| Some(self.find(before?, self.parts.loader.lanes())?.version.clone()));
        match stable {
            Some(stable) => self.route(Routes::to(stable)),
            None if before.is_none() => self.serve_default(),
            None => {}
        }
        let next = match (&current.canary, watched.before) {
            (Some(_), _) => Desired { canary: None, shadow: None, ..current },
            (None, Some(before)) => alone(&current, before),
            // Others cannot know the model of this worker's settings.
            (None, None) => return,
        };
        let instance = self.parts.reporter.instance();
        let reason = format!("taken back by {instance}: {rule} found {found:.4}, accepts {accepted}");
        self.parts.reporter.propose(&Desired { generation: next.generation + 1, reason: Some(reason), ..next });
    }

    fn route(&mut self, routes: Routes) {
        self.parts.reporter.serves(served(&routes));
        drop(self.parts.slot.route(routes));
        self.mark_unused();
    }

    /// What serves goes on; if nothing does, what served before begins, or the model of the settings.
    fn failed(&mut self, generation: u64, reason: String) {
        tracing::error!(generation, reason, "a rollout failed");
        self.work = Work::Idle;
        self.parts.reporter.failed(generation, reason);
        if self.parts.slot.routes().stable.is_some() {
            return;
        }
        // Without a word about the state: that stays `failed`.
        self.parts.reporter.hold(true);
        match (self.in_force.clone(), self.fallback.take()) {
            (Some(desired), Some(before)) if before.sha256 != desired.stable.sha256 => {
                self.fetch(alone(&desired, before));
            }
            _ => self.serve_default(),
        }
    }

    /// Serves the model of the settings.
    fn fall_back(&mut self, reason: &str) {
        self.parts.reporter.hold(false);
        self.give_up();
        self.serve_default();
        if self.parts.slot.routes().stable.is_some() {
            self.parts.reporter.state(0, State::Ready, Some(reason.to_owned()));
        }
    }

    fn serve_default(&mut self) {
        let loaded = match (self.parts.default)() {
            Ok(loaded) => loaded,
            Err(reason) => {
                tracing::error!(reason, "there is nothing to serve");
                return self.parts.reporter.failed(0, reason);
            }
        };
        let version = match self.pooled(&loaded.version.model().dir.sha256, self.parts.loader.lanes()) {
            Some(pooled) => pooled.version.clone(),
            None => {
                self.pool.push(Pooled { loaded: loaded.clone(), unused_since: None });
                loaded.version
            }
        };
        self.route(Routes::to(version));
    }

    fn mark_unused(&mut self) {
        let routes = self.parts.slot.routes();
        let is_used = |version: &Arc<Version>| {
            let canary = routes.canary.as_ref().map(|canary| &canary.version);
            routes.stable.iter().chain(canary).any(|used| Arc::ptr_eq(used, version))
        };
        for pooled in &mut self.pool {
            let since = pooled.unused_since.or_else(|| Some(Instant::now()));
            pooled.unused_since = if is_used(&pooled.loaded.version) { None } else { since };
        }
    }

    /// Frees models that have been kept long enough, when nothing of theirs is under way any more.
    fn sweep(&mut self) {
        let keep = self.parts.options.keep_previous;
        self.free(|since| since.elapsed() >= keep);
    }

    fn drop_unused(&mut self) {
        self.free(|_| true);
    }

    fn free(&mut self, is_over: impl Fn(Instant) -> bool) {
        let before = self.pool.len();
        self.pool.retain(|pooled| {
            let is_free = Arc::strong_count(&pooled.loaded.version) == 1;
            !(is_free && pooled.unused_since.is_some_and(&is_over))
        });
        if self.pool.len() < before {
            memory::give_back();
        }
    }
}

/// A generation that serves one version and nothing else.
fn alone(desired: &Desired, target: Target) -> Desired {
    Desired { stable: target, previous: None, canary: None, shadow: None, ..desired.clone() }
}

fn served(routes: &Routes) -> (Option<Served>, Option<Served>) {
    let canary = routes.canary.as_ref();
    let rest = 100.0 - canary.map_or(0.0, |canary| canary.weight_percent);
    (
        routes.stable.as_deref().map(|version| of_version(version, rest)),
        canary.map(|canary| of_version(&canary.version, canary.weight_percent)),
    )
}

pub(super) fn of_version(version: &Version, percent: f64) -> Served {
    let model = version.model();
    Served {
        name: model.dir.manifest.name.clone(),
        version: model.dir.manifest.version.clone(),
        sha256: model.dir.sha256.clone(),
        variant: model.variant.to_string(),
        percent,
    }
}
