//! Per partition, the finished prefix: which results may be published, and which offset comes next.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fault::is_off;
use crate::record::{Partition, Record};

/// The assignments that hold at this moment: partition → epoch.
///
/// The source changes it in its rebalance callback; the committer holds the lock while it publishes, so that a
/// partition cannot leave in the middle of a transaction and stale work is never committed under a new membership.
#[derive(Clone, Debug, Default)]
pub struct Assignments(Arc<Mutex<HashMap<Partition, u64>>>);

impl Assignments {
    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, HashMap<Partition, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the order of admission of one assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The partition.
    pub partition: Partition,
    /// The assignment.
    pub epoch: u64,
    /// The slot after the last one meant.
    pub slot: u64,
}

/// How far the slots before a [`Mark`] have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Some are not finished.
    Waiting,
    /// All are finished, some not committed.
    Finished,
    /// All are committed.
    Committed,
    /// The assignment has ended.
    Gone,
}

/// Results of one assignment of a partition that are not yet committed.
#[derive(Debug)]
struct Slots<T> {
    epoch: u64,
    /// Slot of the first staged result.
    first: u64,
    staged: VecDeque<Option<Record<T>>>,
    /// How many of the staged are finished without a gap.
    ready: usize,
    /// How many of these are in the publication at hand.
    sealed: usize,
}

/// The results that wait for their turn, by partition, in the order of admission.
#[derive(Debug)]
pub struct Tracker<T> {
    partitions: HashMap<Partition, Slots<T>>,
}

impl<T> Default for Tracker<T> {
    fn default() -> Self {
        Self { partitions: HashMap::new() }
    }
}

impl<T> Tracker<T> {
    /// Begins an assignment; what an older one of the partition left is dropped.
    pub fn assign(&mut self, partition: Partition, epoch: u64) {
        self.partitions.insert(partition, Slots { epoch, first: 0, staged: VecDeque::new(), ready: 0, sealed: 0 });
    }

    /// Ends the assignment of `mark`: what it left uncommitted is dropped.
    pub fn release(&mut self, mark: &Mark) {
        if self.progress(mark) != Progress::Gone {
            self.partitions.remove(&mark.partition);
        }
    }

    /// Takes a result; one of an assignment that has ended is dropped.
    pub fn finish(&mut self, record: Record<T>) {
        let position = &record.position;
        let Some(slots) = self.partitions.get_mut(&position.partition).filter(|slots| slots.epoch == position.epoch)
        else {
            return;
        };
        let index = if is_off("prefix_rule") { slots.staged.len() } else { (position.slot - slots.first) as usize };
        if slots.staged.len() <= index {
            slots.staged.resize_with(index + 1, || None);
        }
        slots.staged[index] = Some(record);
        while slots.staged.get(slots.ready).is_some_and(Option::is_some) {
            slots.ready += 1;
        }
    }

    /// Number of results that may be published.
    pub fn ready(&self) -> usize {
        self.partitions.values().map(|slots| slots.ready).sum()
    }

    /// How far the slots before `mark` have come.
    pub fn progress(&self, mark: &Mark) -> Progress {
        match self.partitions.get(&mark.partition).filter(|slots| slots.epoch == mark.epoch) {
            None => Progress::Gone,
            Some(slots) if slots.first >= mark.slot => Progress::Committed,
            Some(slots) if slots.first + slots.ready as u64 >= mark.slot => Progress::Finished,
            Some(_) => Progress::Waiting,
        }
    }

    /// Drops the assignments that do not hold any more.
    pub fn retain(&mut self, current: &HashMap<Partition, u64>) {
        if is_off("epoch_rule") {
            return;
        }
        self.partitions.retain(|partition, slots| current.get(partition) == Some(&slots.epoch));
    }

    /// Takes all that may be published into the publication at hand. Until [`Tracker::retire`] it stays the same, so
    /// that an attempt whose end is unknown can be told from the next.
    pub fn seal(&mut self) {
        self.partitions.values_mut().for_each(|slots| slots.sealed = slots.ready);
    }

    /// The publication at hand: per partition in slot order.
    pub fn sealed(&self) -> Vec<&Record<T>> {
        self.partitions.values().flat_map(|slots| slots.staged.iter().take(slots.sealed)).flatten().collect()
    }

    /// Some records of the publication at hand, by their places in [`Tracker::sealed`].
    pub fn sealed_mut<'a>(&'a mut self, places: &'a [usize]) -> impl Iterator<Item = &'a mut Record<T>> {
        let all = self.partitions.values_mut().flat_map(|slots| slots.staged.iter_mut().take(slots.sealed)).flatten();
        all.enumerate().filter(|(place, _)| places.contains(place)).map(|(_, record)| record)
    }

    /// For every partition of the publication at hand, the offset after its last record.
    pub fn next_offsets(&self) -> Vec<(Partition, i64)> {
        let last =
            |slots: &Slots<T>| slots.staged.get(slots.sealed.checked_sub(1)?)?.as_ref().map(|r| r.position.offset);
        self.partitions.iter().filter_map(|(p, slots)| Some((p.clone(), last(slots)? + 1))).collect()
    }

    /// Retires the publication at hand, after it was committed; returns it.
    pub fn retire(&mut self) -> Vec<Record<T>> {
        let mut retired = Vec::new();
        for slots in self.partitions.values_mut() {
            retired.extend(slots.staged.drain(..slots.sealed).flatten());
            slots.first += slots.sealed as u64;
            slots.ready -= slots.sealed;
            slots.sealed = 0;
        }
        retired
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Gauge, Original, Position};
    use proptest::prelude::*;

    fn partition(id: i32) -> Partition {
        Partition { topic: "in".into(), id }
    }

    fn record(id: i32, epoch: u64, slot: u64) -> Record<()> {
        let original = Original {
            key: None,
            value: None,
            headers: vec![],
            timestamp_ms: None,
            received: std::time::Instant::now(),
            held: Gauge::default().hold(0, 0),
        };
        // Offsets have gaps: every third one is a transaction marker.
        let offset = (slot + slot / 2) as i64;
        let position = Position { partition: partition(id), offset, epoch, slot };
        Record { position, original: Arc::new(original), payload: () }
    }

    #[test]
    fn a_gap_holds_back_what_follows() {
        let mut tracker = Tracker::default();
        tracker.assign(partition(0), 1);
        tracker.finish(record(0, 1, 1));
        tracker.seal();
        assert_eq!((tracker.ready(), tracker.next_offsets()), (0, vec![]));
        tracker.finish(record(0, 1, 0));
        tracker.seal();
        assert_eq!(tracker.next_offsets(), [(partition(0), 2)]);
        assert_eq!(tracker.retire().len(), 2);
        let progress = |epoch, slot| tracker.progress(&Mark { partition: partition(0), epoch, slot });
        assert_eq!((progress(1, 2), progress(1, 3)), (Progress::Committed, Progress::Waiting));
        assert_eq!(progress(2, 0), Progress::Gone);
    }

    #[test]
    fn a_publication_stays_the_same_until_it_is_retired() {
        let mut tracker = Tracker::default();
        tracker.assign(partition(0), 1);
        tracker.finish(record(0, 1, 0));
        tracker.seal();
        tracker.finish(record(0, 1, 1));
        assert_eq!((tracker.sealed().len(), tracker.next_offsets()), (1, vec![(partition(0), 1)]));
        assert_eq!((tracker.retire().len(), tracker.ready()), (1, 1));
    }

    #[test]
    fn work_of_an_older_assignment_is_dropped() {
        let mut tracker = Tracker::default();
        tracker.assign(partition(0), 1);
        tracker.finish(record(0, 1, 0));
        tracker.assign(partition(0), 2);
        tracker.finish(record(0, 1, 0));
        assert_eq!(tracker.ready(), 0);
        tracker.finish(record(0, 2, 0));
        tracker.retain(&HashMap::from([(partition(0), 3)]));
        assert_eq!(tracker.ready(), 0);
    }

    proptest! {
        #[test]
        fn every_result_is_published_once_and_in_order(
            order in prop::collection::vec((0i32..3, 0u64..30), 1..90).prop_shuffle(),
            commits in prop::collection::vec(any::<bool>(), 90),
        ) {
            let mut tracker = Tracker::default();
            (0..3).for_each(|id| tracker.assign(partition(id), 7));
            let mut seen = std::collections::HashSet::new();
            let mut published: HashMap<Partition, Vec<u64>> = HashMap::new();
            for ((id, slot), commit) in order.into_iter().filter(|&key| seen.insert(key)).zip(commits) {
                tracker.finish(record(id, 7, slot));
                if commit {
                    tracker.seal();
                    prop_assert_eq!(tracker.sealed().len(), tracker.ready());
                    for record in tracker.retire() {
                        published.entry(record.position.partition).or_default().push(record.position.slot);
                    }
                }
            }
            tracker.seal();
            tracker.retire().into_iter().for_each(|r| published.entry(r.position.partition).or_default().push(r.position.slot));
            for (p, slots) in published {
                let whole = (0..).take_while(|&slot| seen.contains(&(p.id, slot))).collect::<Vec<u64>>();
                prop_assert_eq!(slots, whole);
            }
        }
    }
}
