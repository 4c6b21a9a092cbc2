//! How much a session is given at once while memory is short or its device fails: pure policy.

use std::time::Duration;

/// The slots of the padded view that a session is given in one run.
///
/// A run that fails for want of memory halves it, down to what holds a single sequence; [`RESTORE_RUNS`] runs that
/// succeed double it, up to where it began. A single sequence that fails is tried again after a pause, as others may use
/// the same memory; [`LONE_FAULTS`] of those without a success between them are the end.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    full: usize,
    slots: usize,
    /// Runs that succeeded since the budget was last changed.
    succeeded: u32,
    /// Failures of a single sequence since the last success.
    lone_faults: u32,
}

/// Successes after which the budget is doubled.
pub(super) const RESTORE_RUNS: u32 = 32;
/// Failures of a single sequence that end it.
pub(super) const LONE_FAULTS: u32 = 5;
/// The pause after the first failure of a single sequence; each further one doubles it.
const PAUSE: Duration = Duration::from_millis(100);

/// What to do after a failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Try again after a pause, within the budget as it is now.
    Retry(Duration),
    /// There is nothing left to make smaller.
    GiveUp,
}

impl Budget {
    /// A budget of `full` slots.
    pub(super) fn new(full: usize) -> Self {
        Self { full, slots: full, succeeded: 0, lone_faults: 0 }
    }

    /// Slots of the next run; a sequence that is longer goes alone.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// How many of the sequences of these lengths may go together, from the first on: at least one.
    pub(super) fn fitting(&self, lengths: impl IntoIterator<Item = usize>) -> usize {
        let mut width = 0;
        let fits = |(before, length): &(usize, usize)| {
            width = width.max(*length);
            *before == 0 || width * (before + 1) <= self.slots
        };
        lengths.into_iter().enumerate().take_while(fits).count()
    }

    /// A run succeeded.
    pub(super) fn succeeded(&mut self) {
        self.lone_faults = 0;
        self.succeeded += 1;
        if self.succeeded >= RESTORE_RUNS && self.slots < self.full {
            (self.slots, self.succeeded) = ((self.slots * 2).min(self.full), 0);
        }
    }

    /// A run of so many sequences and slots failed, through no fault of theirs.
    pub(super) fn failed(&mut self, sequences: usize, slots: usize) -> Next {
        self.succeeded = 0;
        if sequences > 1 {
            self.slots = (self.slots.min(slots) / 2).max(1);
            return Next::Retry(Duration::ZERO);
        }
        self.lone_faults += 1;
        match self.lone_faults {
            LONE_FAULTS.. => Next::GiveUp,
            faults => Next::Retry(PAUSE * 2_u32.pow(faults - 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_chosen_fits_and_no_more_would(lengths in prop::collection::vec(1usize..60, 1..40), full in 1usize..600) {
            let budget = Budget::new(full);
            let count = budget.fitting(lengths.iter().copied());
            let slots = |count: usize| lengths[..count].iter().max().unwrap() * count;
            prop_assert!(count == 1 || count > 1 && slots(count) <= full);
            prop_assert!(count == lengths.len() || slots(count + 1) > full);
        }

        /// Memory for `room` slots: the budget finds it in as many steps as it has bits.
        #[test]
        fn it_shrinks_to_what_there_is_room_for(full in 1usize..100_000, room in 1usize..100_000) {
            let mut budget = Budget::new(full);
            let mut steps = 0;
            while budget.slots() > room {
                prop_assert_eq!(budget.failed(2, budget.slots()), Next::Retry(Duration::ZERO));
                steps += 1;
            }
            prop_assert!(steps <= full.ilog2() + 1);
            prop_assert!(budget.slots() >= full.min(room).div_ceil(2).min(budget.full));
        }

        #[test]
        fn successes_restore_it_and_never_more(full in 1usize..100_000, faults in 0usize..30) {
            let mut budget = Budget::new(full);
            (0..faults).for_each(|_| assert_ne!(budget.failed(2, full), Next::GiveUp));
            for _ in 0..RESTORE_RUNS * (full.ilog2() + 2) {
                budget.succeeded();
                prop_assert!((1..=full).contains(&budget.slots()));
            }
            prop_assert_eq!(budget.slots(), full);
        }

        /// Whatever happens, without a success it ends.
        #[test]
        fn failures_in_a_row_come_to_an_end(full in 1usize..100_000) {
            let mut budget = Budget::new(full);
            let mut failures = 1;
            while budget.failed(budget.slots(), budget.slots()) != Next::GiveUp {
                failures += 1;
            }
            prop_assert!(failures <= full.ilog2() + LONE_FAULTS);
        }
    }

    #[test]
    fn a_success_forgives_the_failures_of_a_single_sequence() {
        let mut budget = Budget::new(8);
        for _ in 0..3 {
            (1..LONE_FAULTS).for_each(|_| assert_ne!(budget.failed(1, 100), Next::GiveUp));
            budget.succeeded();
        }
        assert_eq!(budget.slots(), 8, "a single sequence says nothing of the budget");
    }
}
