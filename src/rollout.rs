//! Models that change while the stream runs, by what a topic says.
//!
//! `<prefix>.control` holds the desired state of every slot; `<prefix>.status` what every worker makes of it. A worker
//! has two threads for each of its slots, aside from those that serve:
//!
//! - the agent (`agent`) follows the topic (`control`), decides, and swaps; it tells how far it is (`report`), and takes
//!   a version back by the settings' rules (`rules`);
//! - the admitter (`admit`) fetches (`fetch`, `archive`, `cache`, `signature`), verifies, loads and warms up.
//!
//! Where versions are compared, a third one runs the other version (`shadow`).
//!
//! `desired` and `status` are the formats, `topic` reads and writes the topics, `memory` says what fits, `compare` how
//! far two versions agree, and `fleet` is the view of who operates them.

mod admit;
mod agent;
mod archive;
mod background;
mod cache;
mod compare;
mod control;
mod desired;
mod fetch;
mod fleet;
mod memory;
mod report;
mod rules;
mod shadow;
mod signature;
mod status;
pub(crate) mod topic;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, unbounded};

use crate::admin::Health;
use crate::config::Settings;
use crate::infer::Device;
use crate::kafka::ConnectError;
use crate::pipeline::Monitor;
use crate::serving::{Loader, Serving, Slot};
use crate::source::StopSignal;
use crate::worker::load_model;

pub use archive::{EXTENSION, pack};
pub use cache::{Cache, Cached};
pub use compare::{Agreement, tag};
pub use desired::{CanaryTarget, Desired, SPEC_VERSION, ShadowTarget, Target};
pub use fetch::{FetchError, FetchOptions, Fetcher, Limits};
pub use fleet::{Fleet, FleetError, Progress, Worker, publish_desired, publish_model, publisher, wait};
pub use signature::{PublicKey, SIGNATURE, sign};
pub use status::{Refused, Rollback, Served, State, Status};

/// Models cannot be rolled out to this worker.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// Kafka cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A setting cannot be used.
    #[error("{setting}: {reason}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// Why not.
        reason: String,
    },
}

/// The control topic of a prefix.
pub fn control_topic(prefix: &str) -> String {
    format!("{prefix}.control")
}

/// The status topic of a prefix.
pub fn status_topic(prefix: &str) -> String {
    format!("{prefix}.status")
}

/// Silence of the agent after which the worker counts as stuck: it loads `model.path` itself, where nothing else serves.
const BEAT: Duration = Duration::from_secs(600);

/// How often a start that waits for a version looks whether the worker stops.
const GLANCE: Duration = Duration::from_millis(50);

/// The threads that follow the topic; they end when this is dropped.
pub struct Rollout {
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Rollout {
    /// Starts to follow the topics of `prefix` and waits until a version serves in every slot; none if the worker is to stop before.
    ///
    /// # Errors
    /// When a setting cannot be used.
    pub fn start(
        prefix: &str,
        settings: &Settings,
        (loader, serving): (&Loader, &Serving),
        (monitor, health): (&Monitor, &Health),
        stop: &StopSignal,
    ) -> Result<Option<Self>, RolloutError> {
        memory::hold_large_blocks_apart();
        let mut rollout = Self { ending: Arc::default(), threads: Vec::new() };
        let mut ups = Vec::new();
        for (settings, slot) in settings.slots().iter().zip(serving.slots()) {
            ups.push(rollout.follow(prefix, settings, (loader, serving, slot), (monitor, health))?);
        }
        for is_up in ups {
            while is_up.recv_timeout(GLANCE).is_err() {
                if stop.is_draining() {
                    return Ok(None);
                }
            }
        }
        Ok(Some(rollout))
    }

    /// Follows the topic for one slot; tells when it serves.
    fn follow(
        &mut self,
        prefix: &str,
        settings: &Settings,
        (loader, serving, slot): (&Loader, &Serving, &Slot),
        (monitor, health): (&Monitor, &Health),
    ) -> Result<Receiver<()>, RolloutError> {
        let (orders, to_admit) = unbounded();
        let (to_agent, events) = unbounded();
        let wanted = Arc::new(AtomicU64::new(0));
        let admitter = admit::Admitter {
            fetcher: fetcher(settings)?,
            loader: loader.clone(),
            slot: settings.rollout.slot.clone(),
            serving: serving.clone(),
            warm_up_tokens: settings.batch.max_tokens,
            steps_back: settings.lanes.threads == 1 && matches!(settings.model.device, Device::Auto | Device::Cpu),
            wanted: wanted.clone(),
        };
        let agent = agent::Agent::new(agent::Parts {
            control: control::Control::open(settings, &control_topic(prefix))?,
            slot: slot.clone(),
            loader: loader.clone(),
            options: agent_options(settings)?,
            reporter: reporter(prefix, settings, monitor, health)?,
            orders,
            events,
            wanted,
            default: default_model(settings, loader, serving),
        });
        let (up, is_up) = bounded(1);
        let beat = health.register("rollout", BEAT);
        let is_ending = self.ending.clone();
        let run_agent = move || {
            let mut agent = agent;
            while !is_ending.load(Ordering::Relaxed) {
                agent.turn();
                beat.beat();
                if agent.is_up() {
                    // Only the first is waited for.
                    let _ = up.try_send(());
                }
            }
            agent.parts.reporter.leave();
            beat.retire();
        };
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(run).expect("a thread can be started")
        };
        let admit = spawn("admit", Box::new(move || admitter.run(&to_admit, &to_agent)));
        // Joined in this order: the orders end with the agent, and the admitter with them.
        self.threads.extend([spawn("rollout", Box::new(run_agent)), admit]);
        Ok(is_up)
    }
}

impl Drop for Rollout {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What fetches models as the settings have it.
pub(crate) fn fetcher(settings: &Settings) -> Result<Fetcher, RolloutError> {
    let rollout = &settings.rollout;
    let public_key = rollout.public_key_file.as_deref().map(PublicKey::read).transpose();
    let setting = |setting| move |reason: String| RolloutError::Setting { setting, reason };
    let options = FetchOptions {
        limits: Limits { max_bytes: rollout.max_model_bytes, max_files: rollout.max_model_files },
        allowed_uris: rollout.allowed_uris.clone(),
        public_key: public_key.map_err(setting("rollout.public_key_file"))?,
        require_signature: rollout.require_signature,
    };
    let dir = rollout.cache_dir.clone().or_else(default_cache);
    let dir = dir.ok_or_else(|| setting("rollout.cache_dir")("set it, as there is no cache folder".to_owned()))?;
    let unusable = |e: std::io::Error| setting("rollout.cache_dir")(format!("{}: {e}", dir.display()));
    let cache = Cache::open(&dir, rollout.cache_max_bytes).map_err(unusable)?;
    Fetcher::new(options, cache).map_err(unusable)
}

fn default_cache() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("VITAG_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("vitag")))
        .or_else(|| Some(variable("HOME")?.join(".cache/vitag")));
    Some(cache?.join("models"))
}

fn agent_options(settings: &Settings) -> Result<agent::AgentOptions, RolloutError> {
    let (rollout, rules) = (&settings.rollout, &settings.rollback);
    Ok(agent::AgentOptions {
        labels: labels(settings)?,
        deadline: Duration::from_millis(rollout.deadline_ms),
        keep_previous: Duration::from_millis(rollout.keep_previous_ms),
        on_low_memory: rollout.on_low_memory,
        shadow_max_load: rollout.shadow_max_load,
        rules: rules::RuleOptions {
            window: Duration::from_millis(rules.window_ms),
            min_records: rules.min_records,
            max_dead_letter_ratio: rules.max_dead_letter_ratio,
            max_latency_ratio: rules.max_latency_ratio,
            min_agreement: rules.min_agreement,
        },
    })
}

fn labels(settings: &Settings) -> Result<BTreeMap<String, String>, RolloutError> {
    let read = |label: &String| {
        let (name, value) = label.split_once('=').ok_or_else(|| RolloutError::Setting {
            setting: "rollout.labels",
            reason: format!("expected name=value, found {label:?}"),
        })?;
        Ok((name.to_owned(), value.to_owned()))
    };
    settings.rollout.labels.iter().map(read).collect()
}

fn reporter(
    prefix: &str,
    settings: &Settings,
    monitor: &Monitor,
    health: &Health,
) -> Result<report::Reporter, RolloutError> {
    let time = status::now();
    let status = Status {
        spec_version: SPEC_VERSION,
        instance: settings.worker.instance.clone(),
        slot: settings.rollout.slot.clone(),
        labels: labels(settings)?,
        generation: 0,
        state: State::Pending,
        reason: Some("reading the control topic".to_owned()),
        stable: None,
        canary: None,
        shadow: None,
        refused: None,
        rollback: None,
        since: time.clone(),
        time,
        interval_ms: settings.rollout.status_interval_ms,
    };
    let metrics = monitor.metrics.rollout(&settings.rollout.slot);
    let topics = (status_topic(prefix), control_topic(prefix));
    Ok(report::Reporter::new(topic::Writer::open(settings)?, topics, health.clone(), metrics, status))
}

fn default_model(
    settings: &Settings,
    loader: &Loader,
    serving: &Serving,
) -> Box<dyn Fn() -> Result<admit::Loaded, String> + Send> {
    let (settings, loader, serving) = (settings.clone(), loader.clone(), serving.clone());
    Box::new(move || {
        let version = load_model(&settings, &loader).map_err(|e| e.to_string())?;
        serving.admits(&version).map_err(|e| e.to_string())?;
        version.warm_up(settings.batch.max_tokens).map_err(|e| e.to_string())?;
        Ok(admit::Loaded { version, target: None, _cached: None })
    })
}
