//! What a worker says of a slot, in the status topic.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a worker serves in a slot, and how far it is with what it shall serve: the value of a message whose key is
/// `<instance>/<slot>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Version of this format.
    pub spec_version: u32,
    /// Name of the worker, `worker.instance`.
    pub instance: String,
    /// The slot.
    pub slot: String,
    /// Labels of the worker, `rollout.labels`.
    pub labels: BTreeMap<String, String>,
    /// Generation of the desired state that the worker has read last and that concerns it; 0 for none.
    pub generation: u64,
    /// How far it is with that.
    pub state: State,
    /// Why, where the state alone does not say it.
    pub reason: Option<String>,
    /// What serves.
    pub stable: Option<Served>,
    /// What serves a share of the records.
    pub canary: Option<Served>,
    /// What is only compared.
    pub shadow: Option<Served>,
    /// Last message that could not be followed, since the last that could.
    pub refused: Option<Refused>,
    /// Last time that the worker took a generation back by its rules.
    pub rollback: Option<Rollback>,
    /// When the state began: RFC 3339, UTC.
    pub since: String,
    /// When this was written: RFC 3339, UTC. A worker writes at least every `interval_ms`.
    pub time: String,
    /// Longest time until the worker writes again, in milliseconds.
    pub interval_ms: u64,
}

/// How far a worker is with a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Read, and not begun with.
    Pending,
    /// Its models are being fetched.
    Fetching,
    /// Their hashes and golden answers are being checked.
    Verifying,
    /// They run on the shapes of the stream before they serve.
    Warming,
    /// It is served.
    Ready,
    /// It cannot be served; what served before goes on.
    Failed,
    /// It was served, and was taken back by the rules of the worker.
    RolledBack,
}

impl State {
    /// Whether nothing more will come of the generation.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Ready | Self::Failed | Self::RolledBack)
    }

    /// All states, in their order.
    pub const ALL: [Self; 7] =
        [Self::Pending, Self::Fetching, Self::Verifying, Self::Warming, Self::Ready, Self::Failed, Self::RolledBack];
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Pending => "pending",
            Self::Fetching => "fetching",
            Self::Verifying => "verifying",
            Self::Warming => "warming",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::RolledBack => "rolled_back",
        })
    }
}

/// A version in the memory of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Served {
    /// Name of the model.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of its manifest.
    pub sha256: String,
    /// Which of its graphs runs.
    pub variant: String,
    /// Its share of the records, 0 to 100.
    pub percent: f64,
}

/// A message that a worker could not follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    /// Its offset in the control topic.
    pub offset: i64,
    /// Why not.
    pub reason: String,
}

/// A generation that a worker took back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rollback {
    /// The generation.
    pub generation: u64,
    /// The setting that asked for it, such as `rollback.max_latency_ratio`.
    pub rule: String,
    /// What was measured.
    pub found: f64,
    /// What the rule accepts.
    pub accepted: f64,
    /// Records of the version in the window.
    pub records: u64,
    /// When: RFC 3339, UTC.
    pub time: String,
}

/// Now, as the messages have it.
pub(crate) fn now() -> String {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Millisecond).unwrap_or(now).to_string()
}
