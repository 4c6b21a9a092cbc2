//! What was committed against what was read: each record once, in order, nothing left open.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::common::broker::{Broker, Received};
use crate::common::worker::json;
use crate::stage::Topics;

/// Partition and offset of an input record.
type Origin = (i32, i64);

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) dead_letters: usize,
    /// Inputs that came out nowhere.
    pub(crate) lost: Vec<Origin>,
    /// Inputs that came out more than once.
    pub(crate) doubled: Vec<Origin>,
    /// Outputs that name no input, and inputs that the driver did not write.
    pub(crate) foreign: usize,
    /// Outputs of a partition after an output of a later input.
    pub(crate) out_of_order: Vec<Origin>,
    /// Partitions of the input whose committed offset is not their end.
    pub(crate) uncommitted: Vec<i32>,
    /// Partitions with a transaction that has not ended.
    pub(crate) open: Vec<String>,
    /// Outputs by the version that made them.
    pub(crate) versions: BTreeMap<String, usize>,
}

impl Verdict {
    /// Reads everything to its end, as a consumer that reads committed does.
    pub(crate) fn of(broker: &Broker, topics: &Topics, fed: u64) -> Self {
        let inputs = broker.read_committed_to_end(&topics.input);
        let outputs = broker.read_committed_to_end(&topics.output);
        let dead_letters = broker.read_committed_to_end(&topics.dead_letters);
        let expected: BTreeSet<Origin> = inputs.iter().map(|record| (record.partition, record.offset)).collect();
        let mut seen: BTreeMap<Origin, usize> = BTreeMap::new();
        for origin in outputs.iter().map(origin_of_output).chain(dead_letters.iter().map(origin_of_dead_letter)) {
            *seen.entry(origin).or_default() += 1;
        }
        let unknown = seen.keys().filter(|origin| !expected.contains(origin)).count();
        let missing = fed.abs_diff(inputs.len() as u64 - topics.older) as usize;
        let committed = broker.committed(&topics.group, &topics.input);
        let is_uncommitted = |partition: &i32| {
            committed.get(partition).copied() != Some(broker.high_watermark(&topics.input, *partition))
        };
        let mut versions = BTreeMap::new();
        outputs.iter().for_each(|record| *versions.entry(version(record)).or_default() += 1);
        Self {
            inputs: inputs.len(),
            outputs: outputs.len(),
            dead_letters: dead_letters.len(),
            lost: expected.iter().filter(|origin| !seen.contains_key(origin)).copied().collect(),
            doubled: seen.iter().filter(|(_, times)| **times > 1).map(|(origin, _)| *origin).collect(),
            foreign: unknown + missing,
            out_of_order: out_of_order(&outputs),
            uncommitted: (0..topics.input_partitions()).filter(is_uncommitted).collect(),
            open: open_transactions(broker, topics),
            versions,
        }
    }

    /// Whether the promise was kept.
    pub(crate) fn is_clean(&self) -> bool {
        let Self { lost, doubled, foreign, out_of_order, uncommitted, open, .. } = self;
        lost.is_empty()
            && doubled.is_empty()
            && *foreign == 0
            && out_of_order.is_empty()
            && uncommitted.is_empty()
            && open.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inputs, outputs, dead_letters, lost, doubled, foreign, out_of_order, uncommitted, open, versions } =
            self;
        write!(
            f,
            "{inputs} inputs, {outputs} outputs, {dead_letters} dead letters; lost {lost:?}, doubled {doubled:?}, \
             foreign {foreign}, out of order {out_of_order:?}, uncommitted {uncommitted:?}, open {open:?}; {versions:?}"
        )
    }
}

fn origin_of_output(record: &Received) -> Origin {
    let source = &json(record)["source"];
    let number = |name: &str| source[name].as_i64().expect("a number");
    (number("partition") as i32, number("offset"))
}

fn origin_of_dead_letter(record: &Received) -> Origin {
    let number = |name: &str| {
        let value = record.header(&format!("__connect.errors.{name}")).expect("a header");
        std::str::from_utf8(value).expect("text").parse::<i64>().expect("a number")
    };
    (number("partition") as i32, number("offset"))
}

fn version(record: &Received) -> String {
    let model = &json(record)["models"][0];
    format!("{}@{}", model["name"].as_str().expect("a name"), model["version"].as_str().expect("a version"))
}

/// Within a partition of the output, records of one partition of the input must come in its order; those of one key are
/// among them.
fn out_of_order(outputs: &[Received]) -> Vec<Origin> {
    let mut last: BTreeMap<(i32, i32), i64> = BTreeMap::new();
    let mut found = Vec::new();
    for record in outputs {
        let (partition, offset) = origin_of_output(record);
        let before = last.entry((record.partition, partition)).or_insert(-1);
        if offset <= *before {
            found.push((partition, offset));
        }
        *before = offset.max(*before);
    }
    found
}

/// Partitions that hold a transaction which has not ended, and whatever was written after it.
pub(crate) fn open_transactions(broker: &Broker, topics: &Topics) -> Vec<String> {
    let inputs = (0..topics.input_partitions()).map(|partition| (&topics.input, partition));
    let others = [&topics.output, &topics.dead_letters].into_iter();
    let others = others.flat_map(|topic| (0..topics.partitions).map(move |partition| (topic, partition)));
    inputs
        .chain(others)
        .filter(|(topic, id)| broker.last_stable_offset(topic, *id) != broker.high_watermark(topic, *id))
        .map(|(topic, partition)| format!("{topic}[{partition}]"))
        .collect()
}
