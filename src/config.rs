//! Layered settings: defaults, then a file, then the environment, then `--set`; the later wins.
//!
//! An unknown key, a wrong type or a value out of bounds is an error in every layer, and all of them are reported at
//! once. Units are in the names of the keys (`max_wait_ms`). Secrets never reach an error, a log or a print.
//!
//! # Layout
//! `sections` holds the settings, `choices` their enums and `secret` what must not be printed. `layers` reads the
//! sources into entries, `keys` knows which there are, `check` matches the two with `rules` and `properties`, and
//! `relations` compares settings with each other. `effective` prints the outcome.

mod check;
mod choices;
mod effective;
mod error;
mod keys;
mod layers;
mod properties;
#[cfg(test)]
mod reference;
mod relations;
mod resolve;
mod rules;
mod secret;
mod sections;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use choices::{
    AssignmentStrategy, Compression, Delivery, GroupProtocol, OffsetReset, OnLowMemory, OutputMode, Partitioner,
    SaslMechanism, SecurityProtocol,
};
pub use error::{ConfigError, Layer};
pub use layers::Sources;
pub(crate) use properties::setting_of;
pub use secret::{Properties, Secret};
pub use sections::{
    Admin, Batch, Breaker, Cache, Commit, Input, Intake, Kafka, Lanes, Model, Output, Rollback, Rollout, Telemetry,
    Worker,
};

/// All settings, checked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The process as a whole.
    pub worker: Worker,
    /// What comes in.
    pub input: Input,
    /// What goes out.
    pub output: Output,
    /// The brokers and how to speak to them.
    pub kafka: Kafka,
    /// The model and what runs it.
    pub model: Model,
    /// Models that change while the worker runs, by what a topic says.
    pub rollout: Rollout,
    /// When a canary, or a model that serves since less than the window, is taken back by the worker itself.
    pub rollback: Rollback,
    /// How sequences are put together for one run of the model.
    pub batch: Batch,
    /// Tags of texts that came before, for streams that repeat themselves.
    pub cache: Cache,
    /// The threads that compute.
    pub lanes: Lanes,
    /// How much may be under way before reading pauses.
    pub intake: Intake,
    /// When finished records are committed: at the first of the two.
    pub commit: Commit,
    /// When dead letters are so many that something else must be wrong: the worker stops, without committing those
    /// that made it stop, before the stream runs into the dead letters.
    pub breaker: Breaker,
    /// Health and metrics over HTTP.
    pub admin: Admin,
    /// Logs, traces and metrics.
    pub telemetry: Telemetry,
    /// Where each value that is not the default came from.
    #[serde(skip)]
    origins: BTreeMap<String, Layer>,
}

impl Settings {
    /// Reads and checks the layers.
    ///
    /// Fills in what follows from elsewhere: the worker's name, the dead-letter topic, secrets kept in files.
    ///
    /// # Errors
    /// Every problem found: files that cannot be read, unknown keys, wrong types, values out of bounds, settings that
    /// contradict each other.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let (entries, mut problems) = layers::read(sources);
        let merged = check::merge(entries, &mut problems);
        ConfigError::from_problems(problems)?;
        let mut settings = Self::from_merged(merged)?;
        let mut problems = settings.resolve(&sources.env);
        problems.extend(settings.contradictions());
        ConfigError::from_problems(problems)?;
        Ok(settings)
    }

    /// Checks what only a run between topics needs.
    ///
    /// # Errors
    /// Every setting that is missing, and topics that would feed the worker its own output.
    pub fn validate_run(&self) -> Result<(), ConfigError> {
        ConfigError::from_problems(self.run_problems())
    }

    /// Checks what only reading topics needs.
    ///
    /// # Errors
    /// Every setting that is missing.
    pub fn validate_read(&self) -> Result<(), ConfigError> {
        ConfigError::from_problems(self.read_problems())
    }

    /// The settings of each slot: `rollout.slot` names it, and `model.path` is the model of its own.
    pub fn slots(&self) -> Vec<Self> {
        let of_slot = |(name, path): (&String, &PathBuf)| {
            let mut settings = self.clone();
            settings.model.slots.clear();
            (settings.rollout.slot, settings.model.path) = (name.clone(), path.clone());
            settings
        };
        if self.model.slots.is_empty() { vec![self.clone()] } else { self.model.slots.iter().map(of_slot).collect() }
    }

    /// Where the value of a key came from (`batch.max_tokens`); `None` for a default.
    pub fn origin(&self, key: &str) -> Option<&Layer> {
        self.origins.get(key)
    }

    /// The values have the types of their keys already, so this fails only for an integer too large for the machine.
    fn from_merged(merged: check::Merged) -> Result<Self, ConfigError> {
        let values = serde_json::Value::Object(merged.values);
        let settings: Self = serde_json::from_value(values).map_err(ConfigError::single)?;
        Ok(Self { origins: merged.origins, ..settings })
    }
}
