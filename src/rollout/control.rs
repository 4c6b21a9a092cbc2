//! Following the control topic: what a slot shall serve, by all that the topic says.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::desired::Desired;
use super::status::Refused;
use super::topic::{Read, Reader};
use crate::config::Settings;
use crate::kafka::ConnectError;
use crate::source::Message;

/// What the topic says of a slot.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Wanted {
    /// Nothing.
    #[default]
    Nothing,
    /// That it is no longer rolled out: the worker serves the model of its settings.
    Withdrawn,
    /// What it shall serve.
    Desired(Box<Desired>),
}

/// The messages of one slot, put together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fold {
    pub(super) wanted: Wanted,
    /// The last message that could not be followed, since the last that could.
    pub(super) refused: Option<Refused>,
}

impl Fold {
    /// The highest generation is in force, of those with the same number the last; a tombstone begins anew.
    fn take(&mut self, message: &Message) {
        let Some(value) = &message.value else {
            *self = Self { wanted: Wanted::Withdrawn, refused: None };
            return;
        };
        match Desired::read(value) {
            Ok(desired) => {
                let is_higher = |current: &Desired| current.generation > desired.generation;
                if !matches!(&self.wanted, Wanted::Desired(current) if is_higher(current)) {
                    *self = Self { wanted: Wanted::Desired(Box::new(desired)), refused: None };
                }
            }
            Err(reason) => self.refused = Some(Refused { offset: message.offset, reason }),
        }
    }
}

/// How often the topic is read from its start again: whatever became of it meanwhile (made anew, truncated, compacted),
/// the outcome is what a worker would find that starts now.
const RESCAN: Duration = Duration::from_secs(30);

/// Follows the topic for one slot.
pub(super) struct Control {
    reader: Reader,
    slot: String,
    fold: Fold,
    rescan_at: Instant,
    /// Messages whose refusal was told.
    told: BTreeSet<i64>,
}

impl Control {
    pub(super) fn open(settings: &Settings, topic: &str) -> Result<Self, ConnectError> {
        let reader = Reader::open(settings, topic)?;
        let (fold, told) = (Fold::default(), BTreeSet::new());
        Ok(Self { reader, slot: settings.rollout.slot.clone(), fold, rescan_at: Instant::now() + RESCAN, told })
    }

    /// What the topic says, whenever it has been read to its end.
    pub(super) fn poll(&mut self, patience: Duration) -> Option<Fold> {
        if Instant::now() >= self.rescan_at {
            self.rescan_at = Instant::now() + RESCAN;
            self.restart();
        }
        match self.reader.poll(patience) {
            Read::Message(message) => {
                if message.key.as_deref() == Some(self.slot.as_bytes()) {
                    self.fold.take(&message);
                }
                None
            }
            Read::End => Some(self.fold.clone()),
            Read::Absent => {
                self.fold = Fold::default();
                Some(Fold::default())
            }
            Read::Nothing => None,
        }
    }

    fn restart(&mut self) {
        self.reader.rewind();
        self.fold = Fold::default();
    }

    /// Whether a refusal is told for the first time.
    pub(super) fn is_new(&mut self, refused: &Refused) -> bool {
        self.told.insert(refused.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(offset: i64, generation: Option<u64>, version: u64) -> Message {
        let target =
            serde_json::json!({ "version": version.to_string(), "uri": "file:///m", "sha256": "0".repeat(64) });
        let value = serde_json::json!({ "spec_version": 1, "generation": generation, "stable": target });
        let value = generation.map(|_| value.to_string().into());
        Message { offset, key: None, value, headers: vec![], timestamp_ms: None }
    }

    fn fold(messages: &[Message]) -> Fold {
        let mut fold = Fold::default();
        messages.iter().for_each(|message| fold.take(message));
        fold
    }

    #[test]
    fn a_lower_generation_is_ignored_and_a_tombstone_begins_anew() {
        let generation = |fold: &Fold| match &fold.wanted {
            Wanted::Desired(desired) => Some((desired.generation, desired.stable.version.clone())),
            _ => None,
        };
        let mut messages = vec![message(0, Some(4), 1), message(1, Some(3), 2)];
        assert_eq!(generation(&fold(&messages)), Some((4, "1".into())));
        messages.push(message(2, Some(4), 3));
        assert_eq!(generation(&fold(&messages)), Some((4, "3".into())), "the last of the same generation");
        messages.push(message(3, None, 0));
        assert_eq!(fold(&messages).wanted, Wanted::Withdrawn);
        messages.push(message(4, Some(1), 5));
        assert_eq!(generation(&fold(&messages)), Some((1, "5".into())));
    }

    #[test]
    fn what_cannot_be_read_leaves_what_is_in_force() {
        let broken = || Message { value: Some("{".into()), ..message(1, Some(5), 0) };
        let folded = fold(&[message(0, Some(4), 1), broken()]);
        assert!(matches!(&folded.wanted, Wanted::Desired(desired) if desired.generation == 4));
        assert_eq!(folded.refused.unwrap().offset, 1);
        assert_eq!(fold(&[broken(), message(2, Some(6), 1)]).refused, None);
    }

    proptest! {
        /// While generations only rise, whoever reads the compacted topic finds the same.
        #[test]
        fn compaction_changes_nothing(versions in prop::collection::vec(0u64..4, 1..12), kept in 0usize..12) {
            let messages: Vec<Message> =
                versions.iter().enumerate().map(|(n, &version)| message(n as i64, Some(1 + n as u64), version)).collect();
            let tail = &messages[kept.min(messages.len() - 1)..];
            prop_assert_eq!(fold(&messages), fold(tail));
        }
    }
}
