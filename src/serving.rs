//! The model versions that are served, and which of them a record gets.
//!
//! A record is bound to a version before it is tokenised and holds it to its end, so a swap touches no record that is
//! under way. A version and its sessions are freed when nobody holds it any more.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender;
use sha2::{Digest, Sha256};

use crate::decode::Document;
use crate::encode::Annotation;
use crate::infer::{InferOptions, Runtime, RuntimeError, Session};
use crate::manifest::Variant;
use crate::registry::{Model, ModelError};
use crate::source::StopSignal;
use crate::telemetry::{Metrics, ModelInfo, ModelWatch};

/// The slot of a worker that serves one model and was told no other name for it.
pub const DEFAULT_SLOT: &str = "default";

/// How versions are loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Which of the graphs.
    pub variant: Variant,
    /// How sessions are made.
    pub infer: InferOptions,
    /// Sessions of a version, one a lane.
    pub lanes: usize,
}

/// Opens versions: on threads that serve nothing.
#[derive(Clone, Debug)]
pub struct Loader {
    runtime: Runtime,
    options: LoadOptions,
    metrics: Metrics,
}

impl Loader {
    /// A loader that uses the ONNX Runtime of `library`, or the one that is found.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(library: Option<&Path>, options: LoadOptions, metrics: Metrics) -> Result<Self, RuntimeError> {
        Ok(Self { runtime: Runtime::load(library)?, options, metrics })
    }

    /// Loads the version in `dir` for `slot`, with so many sessions: every hash is verified, and every session gives the
    /// answers of the golden set.
    ///
    /// # Errors
    /// When the model cannot be served.
    pub fn load(&self, slot: &str, dir: &Path, sessions: usize) -> Result<Arc<Version>, ModelError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let model = Model::load(dir, self.options.variant)?;
        let sessions = model.sessions(&self.runtime, &self.options.infer, sessions.max(1))?;
        let device = sessions[0].device().to_string();
        let manifest = &model.dir.manifest;
        tracing::info!(
            slot, model = manifest.name, version = manifest.version, variant = %model.variant, device,
            sessions = sessions.len(), runtime = %self.runtime.library.display(), "model loaded"
        );
        let shown = self.metrics.model(ModelInfo {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            sha256: model.dir.sha256.clone(),
            device,
        });
        let sessions = sessions.into_iter().map(Mutex::new).collect();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Version { number, slot: slot.into(), model, sessions, tally: Tally::default(), _shown: shown }))
    }

    /// Sessions that a version needs to serve, one a lane.
    pub fn lanes(&self) -> usize {
        self.options.lanes.max(1)
    }

    /// Which of the graphs it loads.
    pub fn variant(&self) -> Variant {
        self.options.variant
    }
}

/// A model as it is served, in the memory of this process.
#[derive(Debug)]
pub struct Version {
    number: u64,
    slot: Arc<str>,
    model: Model,
    /// Each is used by the lane of its number alone, so its lock is always free.
    sessions: Vec<Mutex<Session>>,
    tally: Tally,
    _shown: ModelWatch,
}

/// What a version has done, counted by those who serve it.
#[derive(Debug, Default)]
pub struct Tally {
    records: AtomicU64,
    dead_letters: AtomicU64,
    tokens: AtomicU64,
    slots: AtomicU64,
    nanos: AtomicU64,
}

impl Tally {
    /// A record is through, as a dead letter or not.
    pub fn record(&self, is_dead_letter: bool) {
        self.records.fetch_add(1, Ordering::Relaxed);
        self.dead_letters.fetch_add(is_dead_letter.into(), Ordering::Relaxed);
    }

    /// A batch of so many tokens, and slots of its padded view, took so long.
    pub fn ran(&self, tokens: usize, slots: usize, time: Duration) {
        self.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        self.slots.fetch_add(slots as u64, Ordering::Relaxed);
        self.nanos.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// The counts as they are.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Dead letters before records, so that they are never more.
        let dead_letters = read(&self.dead_letters);
        let (tokens, slots, nanos) = (read(&self.tokens), read(&self.slots), read(&self.nanos));
        Counts { records: read(&self.records), dead_letters, tokens, slots, nanos }
    }
}

/// What a version has done up to a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records.
    pub records: u64,
    /// Records of them that became dead letters.
    pub dead_letters: u64,
    /// Tokens that were run.
    pub tokens: u64,
    /// Slots of the padded views that attention saw them in.
    pub slots: u64,
    /// Time that they took, in nanoseconds, over all lanes.
    pub nanos: u64,
}

impl Counts {
    /// What has come since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            records: self.records - earlier.records,
            dead_letters: self.dead_letters - earlier.dead_letters,
            tokens: self.tokens - earlier.tokens,
            slots: self.slots - earlier.slots,
            nanos: self.nanos - earlier.nanos,
        }
    }

    /// Mean time of a token, in nanoseconds.
    pub fn nanos_per_token(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.nanos as f64 / self.tokens as f64)
    }
}

/// Tokens of the sequences that a version is warmed up with.
const WARM_UP_TEXT: &str = "Hôm nay trời đẹp ở Huế và mọi người ra phố rất đông .";

impl Version {
    /// Its number in this process: no two that were loaded share one.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The slot that it serves.
    pub fn slot(&self) -> &str {
        &self.slot
    }

    /// What was loaded.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The session of a lane.
    pub fn session(&self, lane: usize) -> MutexGuard<'_, Session> {
        self.sessions[lane].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it has done.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Number of its sessions.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Runs the shapes at both ends of what will come on every session: one short sequence, and `max_tokens` in the longest
    /// sequences. Memory and kernels that ONNX Runtime makes at the first use are there when the stream comes.
    ///
    /// # Errors
    /// When a run fails: for want of memory, above all.
    pub fn warm_up(&self, max_tokens: usize) -> Result<(), ModelError> {
        let failed = |reason: String| ModelError::WarmUp { variant: self.model.variant, reason };
        let window = |text: &str| -> Result<_, ModelError> {
            let tokens = self.model.tokenizer.tokenize(text, None).map_err(|e| failed(e.to_string()))?;
            Ok(tokens.windows.into_iter().next())
        };
        // Without a full stop it is one sentence, as long as the model takes.
        let long = WARM_UP_TEXT.trim_end_matches('.').repeat(self.model.dir.manifest.max_length / 8);
        let (Some(short), Some(long)) = (window(WARM_UP_TEXT)?, window(&long)?) else { return Ok(()) };
        for session in &self.sessions {
            let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
            for (window, count) in [(&short, 1), (&long, max_tokens / long.ids.len())] {
                session.run(&vec![window; count.max(1)]).map_err(|e| failed(e.to_string()))?;
            }
        }
        Ok(())
    }
}

/// A version that takes a share of the records.
#[derive(Clone, Debug)]
pub struct Canary {
    /// The version.
    pub version: Arc<Version>,
    /// Its share, 0 to 100.
    pub weight_percent: f64,
}

/// Who gets which records of a slot.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    /// Takes what nothing else takes. While there is none, records wait.
    pub stable: Option<Arc<Version>>,
    /// Takes a share of the records.
    pub canary: Option<Canary>,
    /// Sees a share of the records that `stable` has tagged.
    pub compare: Option<Comparison>,
}

impl Routes {
    /// All records to one version.
    pub fn to(version: Arc<Version>) -> Self {
        Self { stable: Some(version), ..Self::default() }
    }
}

/// A share of the records of a version that somebody compares.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Number of the version whose records they are.
    pub base: u64,
    /// The share, 0 to 100.
    pub sample_percent: f64,
    /// Takes the samples; one that is full is passed over.
    pub samples: Sender<Sample>,
}

/// A document, and what the version that serves has made of it.
#[derive(Debug)]
pub struct Sample {
    /// The document.
    pub document: Document,
    /// What was published of it.
    pub annotation: Annotation,
}

/// The slots of this worker, each with the model of its own. A clone shares them.
#[derive(Clone, Debug)]
pub struct Serving(Arc<[Slot]>);

impl Serving {
    /// Slots in this order, which is that of the models in an annotation.
    pub fn new(slots: impl IntoIterator<Item = Slot>) -> Self {
        Self(slots.into_iter().collect())
    }

    /// Serves one version.
    pub fn of(version: Arc<Version>) -> Self {
        let slot = Slot::default();
        slot.route(Routes::to(version));
        Self::new([slot])
    }

    /// The slots, in their order.
    pub fn slots(&self) -> &[Slot] {
        &self.0
    }

    /// Whether a version tells nothing that the versions of other slots tell.
    ///
    /// # Errors
    /// When it does.
    pub fn admits(&self, version: &Version) -> Result<(), ModelError> {
        let others = self.0.iter().filter_map(|slot| slot.routes().stable);
        for other in others.filter(|other| other.slot != version.slot) {
            if let Some(task) = version.model.tasks().find(|task| other.model.tasks().any(|of_other| of_other == *task))
            {
                return Err(ModelError::SameTask { task, slot: other.slot.to_string() });
            }
        }
        Ok(())
    }

    /// The versions of a record, one for each slot, whose [`place`] is asked for only if a share is routed elsewhere. Waits
    /// while a slot has none; `None` when the worker stops meanwhile.
    pub fn choose(&self, place: impl Fn() -> f64, stop: &StopSignal) -> Option<Vec<Arc<Version>>> {
        self.0.iter().map(|slot| slot.choose(&place, stop)).collect()
    }
}

/// The routes of a slot: read for every record, changed by a rollout. A clone shares them.
#[derive(Clone, Debug, Default)]
pub struct Slot(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    routes: Mutex<Routes>,
    changed: Condvar,
}

/// How often a record that waits for a version looks whether the worker stops.
const GLANCE: Duration = Duration::from_millis(50);

impl Slot {
    /// Replaces the routes; records that were bound before keep their version. Returns the routes that ended.
    pub fn route(&self, routes: Routes) -> Routes {
        let before = std::mem::replace(&mut *self.lock(), routes);
        self.0.changed.notify_all();
        before
    }

    /// The routes as they are.
    pub fn routes(&self) -> Routes {
        self.lock().clone()
    }

    fn choose(&self, place: impl Fn() -> f64, stop: &StopSignal) -> Option<Arc<Version>> {
        let mut routes = self.lock();
        loop {
            if let Some(stable) = &routes.stable {
                let chosen = match &routes.canary {
                    Some(canary) if place() < canary.weight_percent => &canary.version,
                    _ => stable,
                };
                return Some(chosen.clone());
            }
            if stop.is_abandoned() {
                return None;
            }
            let waited = self.0.changed.wait_timeout(routes, GLANCE);
            routes = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Who wants to see a record that `version` has tagged, if its [`place`] is in the share.
    pub fn sampler(&self, version: &Version, place: impl FnOnce() -> f64) -> Option<Sender<Sample>> {
        let routes = self.lock();
        let comparison = routes.compare.as_ref().filter(|comparison| comparison.base == version.number)?;
        (place() < comparison.sample_percent).then(|| comparison.samples.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.0.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a key stands between 0 and 100: the first eight bytes of its SHA-256, as a big-endian number, over 2⁶⁴. The same
/// on every worker and in every run, so a canary always takes the same keys.
pub fn place(key: &[u8]) -> f64 {
    let hash = Sha256::digest(key);
    let head: [u8; 8] = hash[..8].try_into().expect("a hash has 32 bytes");
    u64::from_be_bytes(head) as f64 / 2_f64.powi(64) * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_takes_its_share_of_the_keys() {
        let taken = (0..100_000).filter(|n| place(format!("key-{n}").as_bytes()) < 10.0).count();
        assert!((9_500..10_500).contains(&taken), "{taken}");
        // As others would work it out, from what `printf %s key-1 | sha256sum` says.
        assert!((place(b"key-1") - 74.282_004_414_405_69).abs() < 1e-9);
    }
}
