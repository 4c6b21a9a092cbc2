//! What is done about a batch that the model fails on.

use std::time::Duration;

use super::budget::{Budget, Next};
use super::{Cause, InferError};

/// Runs batches in as many runs of the model as their failures ask for.
///
/// Of a batch of n sequences that one of them makes fail, each half is run by itself, and so on with the half that fails:
/// 1 + 2⌈log2 n⌉ runs at most, of 3 n + ⌈log2 n⌉ sequences at most. With k such sequences, k times 2⌈log2 n⌉ runs come
/// after the first at most, and never more than 2 n − 1 in all. A failure of the device shrinks what is run at once instead (`budget.rs`).
#[derive(Debug)]
pub struct Recovery {
    budget: Budget,
    /// Stands still for a time.
    pause: fn(Duration),
}

impl Recovery {
    /// For batches of up to `slots` slots of the padded view.
    pub fn new(slots: usize) -> Self {
        Self { budget: Budget::new(slots), pause: std::thread::sleep }
    }

    /// Slots that it runs at once at this time.
    pub fn slots(&self) -> usize {
        self.budget.slots()
    }

    /// Answers all `items`, in their order, by calls of `run`; `length` is the number of tokens of one.
    ///
    /// # Errors
    /// When the device failed again and again, at last on a single sequence.
    pub fn answer<T, A>(
        &mut self,
        items: &[T],
        length: impl Fn(&T) -> usize,
        mut run: impl FnMut(&[T]) -> Result<Vec<A>, InferError>,
    ) -> Result<Vec<Result<A, InferError>>, InferError> {
        let mut answers = Vec::with_capacity(items.len());
        // What has no answer yet, the first at the end.
        let mut left = vec![(0, items.len())];
        while let Some((start, end)) = left.pop() {
            if start == end {
                continue;
            }
            let middle = start + self.budget.fitting(items[start..end].iter().map(&length));
            left.push((middle, end));
            let part = &items[start..middle];
            match run(part) {
                Ok(found) => {
                    self.budget.succeeded();
                    answers.extend(found.into_iter().map(Ok));
                }
                Err(error) if error.cause == Cause::Device => {
                    let width = part.iter().map(&length).max().unwrap_or_default();
                    self.shrink(part.len(), width, error)?;
                    left.push((start, middle));
                }
                Err(error) if part.len() == 1 => answers.push(Err(error)),
                Err(error) => {
                    tracing::warn!(%error, sequences = part.len(), "a batch failed and is halved");
                    let half = start + part.len() / 2;
                    left.extend([(half, middle), (start, half)]);
                }
            }
        }
        Ok(answers)
    }

    fn shrink(&mut self, sequences: usize, width: usize, error: InferError) -> Result<(), InferError> {
        let next = self.budget.failed(sequences, sequences * width);
        let slots = self.budget.slots();
        tracing::warn!(%error, sequences, tokens = width, budget = slots, "memory or device failed");
        match next {
            Next::Retry(pause) => {
                (self.pause)(pause);
                Ok(())
            }
            Next::GiveUp => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::{LONE_FAULTS, RESTORE_RUNS};
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn recovery(slots: usize) -> Recovery {
        Recovery { pause: |_| {}, ..Recovery::new(slots) }
    }

    fn error(cause: Cause) -> InferError {
        InferError { cause, reason: "scripted".into() }
    }

    proptest! {
        /// The bound that the type states, and that only the poisonous are refused.
        #[test]
        fn poison_is_found_within_few_runs(n in 1usize..200, picks in prop::collection::vec(0usize..200, 0..6)) {
            let poison: BTreeSet<usize> = picks.into_iter().map(|pick| pick % n).collect();
            let items: Vec<usize> = (0..n).collect();
            let (mut runs, mut sequences) = (0, 0);
            let answers = recovery(usize::MAX).answer(&items, |_| 1, |part| {
                runs += 1;
                sequences += part.len();
                if part.iter().any(|item| poison.contains(item)) { Err(error(Cause::Sequences)) } else { Ok(part.to_vec()) }
            }).unwrap();
            for (item, answer) in items.iter().zip(&answers) {
                prop_assert_eq!(answer.as_ref().ok(), Some(item).filter(|item| !poison.contains(item)));
            }
            prop_assert_eq!(answers.len(), n);
            let depth = n.next_power_of_two().ilog2() as usize;
            prop_assert!(runs <= (1 + poison.len() * 2 * depth).min(2 * n - 1), "{} runs", runs);
            prop_assert!(poison.len() > 1 || sequences <= 3 * n + depth, "{} sequences", sequences);
        }

        /// A device with room for `room` slots answers everything that fits it alone, and poison is poison still.
        #[test]
        fn little_memory_loses_nothing(
            lengths in prop::collection::vec(1usize..60, 1..80),
            room in 60usize..400,
            poison in 0usize..80,
        ) {
            let mut recovery = recovery(1024);
            let items: Vec<(usize, usize)> = lengths.iter().copied().enumerate().collect();
            let (mut failed, mut passed) = (0, 0);
            let answers = recovery.answer(&items, |item| item.1, |part| {
                if part.iter().map(|item| item.1).max().unwrap() * part.len() > room {
                    failed += 1;
                    return Err(error(Cause::Device));
                }
                passed += 1;
                if part.iter().any(|item| item.0 == poison) { Err(error(Cause::Sequences)) } else { Ok(part.to_vec()) }
            }).unwrap();
            let answered: Vec<_> = answers.iter().flatten().copied().collect();
            let expected: Vec<_> = items.iter().copied().filter(|item| item.0 != poison).collect();
            prop_assert_eq!(answered, expected);
            // Once for every halving, and once for every doubling that came too early.
            prop_assert!(failed <= 5 + passed / RESTORE_RUNS, "{} failures, {} runs that passed", failed, passed);
        }
    }

    #[test]
    fn a_device_that_only_fails_is_given_up_on() {
        let mut runs = 0;
        let ended = recovery(64).answer(
            &[(); 64],
            |()| 1,
            |_| -> Result<Vec<()>, _> {
                runs += 1;
                Err(error(Cause::Device))
            },
        );
        assert_eq!(ended.unwrap_err().cause, Cause::Device);
        assert_eq!(runs, 6 + LONE_FAULTS, "six halvings, then a single sequence again and again");
    }

    #[test]
    fn nothing_is_run_for_nothing() {
        let answers = recovery(8).answer(&[], |()| 1, |_: &[()]| -> Result<Vec<()>, _> { panic!("not called") });
        assert!(answers.unwrap().is_empty());
    }
}
