//! The whole fleet from outside: what a slot shall serve, and what every worker says of it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

use super::archive::{EXTENSION, pack};
use super::desired::{CanaryTarget, Desired, SPEC_VERSION, Target};
use super::fetch::{FetchError, Source};
use super::signature::{SIGNATURE, sign};
use super::status::{State, Status};
use super::topic::{Writer, read_all};
use super::{control_topic, status_topic};
use crate::admin::{Publisher, Unpublished};
use crate::config::{Secret, Settings};
use crate::kafka::ConnectError;
use crate::manifest::{ManifestError, ModelDir};

/// A command on the fleet failed.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// Kafka cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// `rollout.topic_prefix` is not set.
    #[error("`rollout.topic_prefix` is needed; set it in the settings file or with --set rollout.topic_prefix=…")]
    NoPrefix,
    /// The control topic holds what cannot be gone on from.
    #[error("slot {slot:?}: {reason}")]
    Slot {
        /// The slot.
        slot: String,
        /// What is wrong.
        reason: String,
    },
    /// The message did not reach the control topic.
    #[error("{topic}: {reason}")]
    Write {
        /// The topic.
        topic: String,
        /// Why not.
        reason: String,
    },
    /// The folder is no model.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The model cannot be uploaded.
    #[error(transparent)]
    Upload(#[from] FetchError),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The model cannot be signed.
    #[error("{0}")]
    Sign(String),
}

/// A worker's status, and whether the worker still writes.
#[derive(Clone, Debug, Serialize)]
pub struct Worker {
    /// What it says.
    #[serde(flatten)]
    pub status: Status,
    /// It has missed three of its messages.
    pub silent: bool,
}

/// A slot over the fleet.
#[derive(Clone, Debug, Serialize)]
pub struct Fleet {
    /// The slot.
    pub slot: String,
    /// What it shall serve.
    pub desired: Option<Desired>,
    /// Its workers, by name.
    pub workers: Vec<Worker>,
}

impl Fleet {
    /// Reads both topics.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(settings: &Settings) -> Result<Self, FleetError> {
        let prefix = settings.rollout.topic_prefix.as_deref().ok_or(FleetError::NoPrefix)?;
        let slot = settings.rollout.slot.clone();
        let control = read_all(settings, &control_topic(prefix))?;
        let value = control.get(&slot).and_then(|message| message.value.as_deref());
        let read = |value: &[u8]| Desired::read(value);
        let desired = value.map(read).transpose().map_err(|reason| FleetError::Slot { slot: slot.clone(), reason })?;
        let statuses = read_all(settings, &status_topic(prefix))?;
        let parse = |value: &[u8]| serde_json::from_slice::<Status>(value).ok();
        let statuses = statuses.values().filter_map(|message| parse(message.value.as_deref()?));
        let workers = statuses.filter(|status| status.slot == slot).map(Worker::of).collect();
        Ok(Self { slot, desired, workers })
    }

    /// The number of a new generation: above all that anybody has seen, also where the topic was made anew.
    fn next_generation(&self) -> u64 {
        let seen = self.workers.iter().map(|worker| worker.status.generation);
        1 + seen.chain(self.desired.iter().map(|desired| desired.generation)).max().unwrap_or(0)
    }

    fn in_force(&self) -> Result<&Desired, FleetError> {
        self.desired.as_ref().ok_or_else(|| self.error("the control topic says nothing of it"))
    }

    fn error(&self, reason: &str) -> FleetError {
        FleetError::Slot { slot: self.slot.clone(), reason: reason.to_owned() }
    }

    /// A generation that serves `stable`.
    pub fn rollout(&self, stable: Target) -> Desired {
        let before = self.desired.as_ref().and_then(|desired| self.serving(desired));
        Desired {
            spec_version: SPEC_VERSION,
            generation: self.next_generation(),
            previous: before.filter(|before| *before != stable),
            stable,
            canary: None,
            shadow: None,
            selector: Default::default(),
            deadline_ms: None,
            reason: None,
        }
    }

    /// What serves as the fleet is: a version in force that no worker could serve is nothing to go back to.
    fn serving(&self, desired: &Desired) -> Option<Target> {
        let serves = |worker: &Worker| worker.status.stable.as_ref().is_some_and(|s| s.sha256 == desired.stable.sha256);
        let is_served = self.workers.is_empty() || self.workers.iter().any(serves);
        if is_served { Some(desired.stable.clone()) } else { desired.previous.clone() }
    }

    /// A generation that serves the version in force, and `target` beside it.
    ///
    /// # Errors
    /// When nothing is in force.
    pub fn beside(&self) -> Result<Desired, FleetError> {
        let current = self.in_force()?;
        let generation = self.next_generation();
        Ok(Desired { generation, canary: None, shadow: None, reason: None, ..current.clone() })
    }

    /// A generation that serves the canary, or the shadow, alone.
    ///
    /// # Errors
    /// When there is neither.
    pub fn promote(&self) -> Result<Desired, FleetError> {
        let current = self.in_force()?;
        let canary = current.canary.as_ref().map(|CanaryTarget { target, .. }| target);
        let target = canary.or(current.shadow.as_ref().map(|shadow| &shadow.target));
        let target = target.ok_or_else(|| self.error("there is no canary and no shadow to promote"))?;
        Ok(self.rollout(target.clone()))
    }

    /// A generation without the canary and the shadow if there are some, else with the version before.
    ///
    /// # Errors
    /// When there is nothing to go back to.
    pub fn rollback(&self) -> Result<Desired, FleetError> {
        let current = self.in_force()?;
        if current.canary.is_some() || current.shadow.is_some() {
            return self.beside();
        }
        let none = || self.error(&format!("generation {} names no version before it", current.generation));
        Ok(self.rollout(current.previous.clone().ok_or_else(none)?))
    }

    /// Whether every worker that still writes is through with the generation in force, and how.
    pub fn progress(&self) -> Progress {
        let Some(desired) = &self.desired else { return Progress::Under };
        let mut live = self.workers.iter().filter(|worker| !worker.silent).map(|worker| &worker.status).peekable();
        if live.peek().is_none() {
            return Progress::Under;
        }
        let mut progress = Progress::Ready;
        for status in live.filter(|status| desired.selects(&status.labels)) {
            if status.generation < desired.generation || !status.state.is_final() {
                return Progress::Under;
            }
            if status.generation == desired.generation && status.state != State::Ready {
                progress = Progress::Failed;
            }
        }
        progress
    }
}

/// How far a fleet is with the generation in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Some worker is not through with it.
    Under,
    /// All serve it.
    Ready,
    /// All are through with it, and some do not serve it.
    Failed,
}

impl Worker {
    fn of(status: Status) -> Self {
        let age =
            status.time.parse::<Timestamp>().map(|time| Timestamp::now().as_millisecond() - time.as_millisecond());
        let silent = age.is_ok_and(|age| age > 3 * status.interval_ms as i64);
        Self { status, silent }
    }
}

/// Waits until the fleet is through with the generation in force, or until `timeout`; `shown` sees it every time.
///
/// # Errors
/// When the topics cannot be read.
pub fn wait(settings: &Settings, timeout: Duration, mut shown: impl FnMut(&Fleet)) -> Result<Fleet, FleetError> {
    let deadline = Instant::now() + timeout;
    loop {
        let fleet = Fleet::read(settings)?;
        shown(&fleet);
        if fleet.progress() != Progress::Under || Instant::now() >= deadline {
            return Ok(fleet);
        }
        std::thread::sleep(Duration::from_millis(500).min(deadline.saturating_duration_since(Instant::now())));
    }
}

/// Writes a desired state.
///
/// # Errors
/// When it does not arrive.
pub fn publish_desired(settings: &Settings, desired: &Desired) -> Result<(), FleetError> {
    let topic = control_topic(settings.rollout.topic_prefix.as_deref().ok_or(FleetError::NoPrefix)?);
    let value = serde_json::to_vec(desired).expect("a desired state can be written");
    let writer = Writer::open(settings)?;
    let patience = Duration::from_millis(settings.worker.startup_timeout_ms);
    let sent = writer.send(&topic, &settings.rollout.slot, Some(&value));
    let written = sent.and_then(|()| writer.flush(patience));
    written.map_err(|reason| FleetError::Write { topic, reason })
}

/// What writes desired states for whoever asks the admin port.
pub fn publisher(token: Secret, settings: &Settings) -> Publisher {
    let settings = settings.clone();
    let publish = move |slot: &str, seen: u64, value: &[u8]| {
        let desired = Desired::read(value).map_err(Unpublished::Malformed)?;
        if desired.generation <= seen {
            let reason = format!("generation {} is not above {seen}, which is in force", desired.generation);
            return Err(Unpublished::Outdated(reason));
        }
        let mut of_slot = settings.clone();
        of_slot.rollout.slot = slot.to_owned();
        publish_desired(&of_slot, &desired).map_err(|error| Unpublished::Unwritten(error.to_string()))?;
        Ok(desired.generation)
    };
    Publisher::new(token, Arc::new(publish))
}

/// Uploads a model: to an archive if the URI ends in `.tar.zst`, else into the folder of that URI. With a private key, its
/// manifest is signed.
///
/// # Errors
/// When it is no model, or cannot be written there.
pub fn publish_model(dir: &Path, uri: &str, key: Option<&Path>) -> Result<Target, FleetError> {
    let model = ModelDir::open(dir)?;
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |source| FleetError::Io { path, source }
    };
    let staging = tempfile::tempdir().map_err(io(Path::new("the temporary folder")))?;
    let manifest = dir.join("manifest.json");
    let mut files: Vec<_> = model.manifest.files.keys().map(|name| dir.join(name)).collect();
    if let Some(key) = key {
        let bytes = std::fs::read(&manifest).map_err(io(&manifest))?;
        let signature = staging.path().join(SIGNATURE);
        std::fs::write(&signature, sign(&bytes, key).map_err(FleetError::Sign)?).map_err(io(&signature))?;
        files.push(signature);
    }
    // Last: who finds it finds the others.
    files.push(manifest);
    let store = Source::of(uri)?;
    if uri.ends_with(EXTENSION) {
        let archive = staging.path().join("archive");
        pack(&files, &archive).map_err(io(&archive))?;
        store.upload("", std::fs::read(&archive).map_err(io(&archive))?)?;
    } else {
        for path in &files {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            store.upload(&name, std::fs::read(path).map_err(io(path))?)?;
        }
    }
    Ok(Target { version: model.manifest.version, uri: uri.to_owned(), sha256: model.sha256 })
}
