//! The desired state of a slot, as the control topic has it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Version of the messages of the control topic that this build reads and writes.
pub const SPEC_VERSION: u32 = 1;

/// What a slot shall serve: the value of a message whose key is the slot's name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Desired {
    /// Version of this format.
    pub spec_version: u32,
    /// Counts the changes of the slot; a message with a lower one than that in force is ignored.
    #[schemars(range(min = 1))]
    pub generation: u64,
    /// What serves the records that go nowhere else.
    pub stable: Target,
    /// What served before: workers that the selector leaves out, or that cannot serve `stable`, serve this when they have
    /// nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Target>,
    /// What serves a share of the records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryTarget>,
    /// What runs on a share of the records beside what serves them, and is only compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowTarget>,
    /// Labels that a worker must have (`rollout.labels`) for the message to concern it; none concern all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    /// How long a worker tries to fetch the models, in milliseconds from when it reads this; `rollout.deadline_ms` if
    /// missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A version of a model, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Its version, as its manifest has it.
    pub version: String,
    /// Where it is: a folder, or an archive whose name ends in `.tar.zst`; by `file://`, `http://`, `https://`, `s3://` or
    /// `gs://`.
    pub uri: String,
    /// SHA-256 of its manifest, in lower-case hexadecimal.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: String,
}

/// A version that serves a share of the records: those whose key, else id, has its hash in the share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CanaryTarget {
    /// The version.
    pub target: Target,
    /// The share, 0 to 100.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub weight_percent: f64,
}

/// A version that is compared on a share of the records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShadowTarget {
    /// The version.
    pub target: Target,
    /// The share, 0 to 100.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub sample_percent: f64,
}

impl Desired {
    /// Reads a message.
    ///
    /// # Errors
    /// Why it cannot be followed.
    pub fn read(value: &[u8]) -> Result<Self, String> {
        let version: SpecVersion = serde_json::from_slice(value).map_err(|e| format!("not a desired state: {e}"))?;
        if version.spec_version != SPEC_VERSION {
            let found = version.spec_version;
            return Err(format!("spec_version {found} is not supported, this build reads {SPEC_VERSION}"));
        }
        let desired: Self = serde_json::from_slice(value).map_err(|e| format!("not a desired state: {e}"))?;
        desired.check()?;
        Ok(desired)
    }

    fn check(&self) -> Result<(), String> {
        if self.generation == 0 {
            return Err("generation must be at least 1".to_owned());
        }
        let is_share = |percent: f64| (0.0..=100.0).contains(&percent);
        let shares = self.canary.iter().map(|canary| ("canary.weight_percent", canary.weight_percent));
        let mut shares =
            shares.chain(self.shadow.iter().map(|shadow| ("shadow.sample_percent", shadow.sample_percent)));
        if let Some((name, percent)) = shares.find(|&(_, percent)| !is_share(percent)) {
            return Err(format!("{name} must be between 0 and 100, found {percent}"));
        }
        self.targets().try_for_each(Target::check)
    }

    /// The versions that it needs, the most important first; without `previous`.
    pub fn needed(&self) -> impl Iterator<Item = &Target> {
        let others = self.canary.iter().map(|canary| &canary.target);
        std::iter::once(&self.stable).chain(others).chain(self.shadow.iter().map(|shadow| &shadow.target))
    }

    fn targets(&self) -> impl Iterator<Item = &Target> {
        self.needed().chain(&self.previous)
    }

    /// Whether a worker with these labels is meant.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.iter().all(|(name, value)| labels.get(name) == Some(value))
    }
}

/// The part of a message that all versions of the format have.
#[derive(Deserialize)]
struct SpecVersion {
    spec_version: u32,
}

/// How the URI of a model may start.
const SCHEMES: [&str; 5] = ["file://", "http://", "https://", "s3://", "gs://"];

impl Target {
    fn check(&self) -> Result<(), String> {
        if !(self.sha256.len() == 64 && self.sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))) {
            return Err(format!("sha256 must be 64 lower-case hexadecimal digits, found {:?}", self.sha256));
        }
        if !SCHEMES.iter().any(|scheme| self.uri.starts_with(scheme)) {
            return Err(format!("uri must start with one of {}, found {:?}", SCHEMES.join(", "), self.uri));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn message(change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let target = json!({ "version": "1", "uri": "file:///m", "sha256": "0".repeat(64) });
        let mut value = json!({ "spec_version": 1, "generation": 3, "stable": target });
        change(&mut value);
        value.to_string().into_bytes()
    }

    #[test]
    fn what_cannot_be_followed_is_refused_with_its_reason() {
        assert_eq!(Desired::read(&message(|_| {})).unwrap().generation, 3);
        let refused = |change: fn(&mut Value), reason: &str| {
            let error = Desired::read(&message(change)).unwrap_err();
            assert!(error.contains(reason), "{error}");
        };
        refused(|value| value["spec_version"] = 2.into(), "spec_version 2 is not supported");
        refused(|value| value["generation"] = 0.into(), "generation must be at least 1");
        refused(|value| value["surprise"] = 1.into(), "surprise");
        refused(|value| value["stable"]["sha256"] = "0A".into(), "64 lower-case hexadecimal digits");
        refused(|value| value["stable"]["uri"] = "ftp://x".into(), "uri must start with one of file://");
        refused(
            |value| value["canary"] = json!({ "target": value["stable"], "weight_percent": 101 }),
            "canary.weight_percent must be between 0 and 100",
        );
        assert!(Desired::read(b"not JSON").unwrap_err().contains("not a desired state"));
    }

    #[test]
    fn a_selector_wants_all_its_labels() {
        let desired = Desired::read(&message(|value| value["selector"] = json!({ "zone": "a", "tier": "1" }))).unwrap();
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        assert!(desired.selects(&labels(&[("zone", "a"), ("tier", "1"), ("more", "x")])));
        assert!(
            !desired.selects(&labels(&[("zone", "a")])) && !desired.selects(&labels(&[("zone", "b"), ("tier", "1")]))
        );
    }
}
