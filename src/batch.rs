//! Which waiting sequences go to the model together: pure policy, with no clock and no channel inside.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

mod turns;

pub use turns::Turns;

/// Limits of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Slots of the padded view (sequences × longest), which bounds the cost of attention and the memory.
    pub max_tokens: usize,
    /// Sequences.
    pub max_sequences: usize,
    /// How long the oldest sequence may wait for company.
    pub max_wait: Duration,
    /// Waiting tokens that are looked over for sequences of like length.
    pub sort_window_tokens: usize,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self { max_tokens: 1024, max_sequences: 64, max_wait: Duration::from_millis(20), sort_window_tokens: 8192 }
    }
}

struct Waiting<T> {
    item: T,
    tokens: usize,
    since: Instant,
}

/// Sequences waiting for a batch, in the order of their arrival.
pub struct Batcher<T> {
    options: BatchOptions,
    waiting: VecDeque<Waiting<T>>,
    tokens: usize,
}

impl<T> Batcher<T> {
    /// An empty batcher.
    pub fn new(options: BatchOptions) -> Self {
        Self { options, waiting: VecDeque::new(), tokens: 0 }
    }

    /// Takes a sequence of `tokens` tokens.
    pub fn push(&mut self, item: T, tokens: usize, now: Instant) {
        self.tokens += tokens;
        self.waiting.push_back(Waiting { item, tokens, since: now });
    }

    /// Whether it holds as much as it looks over for one batch: the caller should then take a batch before it pushes.
    pub fn is_full(&self) -> bool {
        self.tokens >= self.options.sort_window_tokens
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// When the oldest sequence has waited long enough.
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.front().map(|oldest| oldest.since + self.options.max_wait)
    }

    /// A batch, if there is enough for a full one or the oldest sequence has waited long enough.
    pub fn poll(&mut self, now: Instant) -> Option<Vec<T>> {
        let enough = self.tokens >= self.options.max_tokens || self.waiting.len() >= self.options.max_sequences;
        let due = self.deadline().is_some_and(|deadline| deadline <= now);
        if enough || due { self.take() } else { None }
    }

    /// A batch of what waits, however little: the oldest sequence with those nearest to it in length.
    ///
    /// The oldest is always in it, so none is passed over for ever; a sequence over the budget goes alone.
    pub fn take(&mut self) -> Option<Vec<T>> {
        let oldest = self.waiting.front()?.tokens;
        let mut seen = 0;
        let mut order: Vec<usize> = (0..self.waiting.len())
            .take_while(|&i| {
                let within = i == 0 || seen < self.options.sort_window_tokens;
                seen += self.waiting[i].tokens;
                within
            })
            .collect();
        order.sort_by_key(|&i| (self.waiting[i].tokens.abs_diff(oldest), i));
        let mut width = 0;
        let mut chosen: Vec<usize> = Vec::new();
        for i in order {
            let wider = width.max(self.waiting[i].tokens);
            let fits = wider * (chosen.len() + 1) <= self.options.max_tokens;
            if chosen.len() == self.options.max_sequences || !(fits || chosen.is_empty()) {
                break;
            }
            width = wider;
            chosen.push(i);
        }
        Some(self.remove(chosen))
    }

    fn remove(&mut self, mut chosen: Vec<usize>) -> Vec<T> {
        chosen.sort_unstable();
        let mut chosen = chosen.into_iter().peekable();
        let mut batch = Vec::with_capacity(chosen.len());
        let mut left = VecDeque::with_capacity(self.waiting.len());
        for (i, waiting) in self.waiting.drain(..).enumerate() {
            if chosen.next_if_eq(&i).is_some() {
                self.tokens -= waiting.tokens;
                batch.push(waiting.item);
            } else {
                left.push_back(waiting);
            }
        }
        self.waiting = left;
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batcher(max_tokens: usize, max_sequences: usize) -> Batcher<usize> {
        Batcher::new(BatchOptions { max_tokens, max_sequences, ..BatchOptions::default() })
    }

    #[test]
    fn a_lone_sequence_waits_for_its_deadline() {
        let mut batcher = batcher(100, 10);
        let now = Instant::now();
        batcher.push(0, 7, now);
        assert_eq!(batcher.poll(now), None);
        let deadline = batcher.deadline().unwrap();
        assert_eq!(batcher.poll(deadline), Some(vec![0]));
        assert_eq!(batcher.poll(deadline), None);
    }

    #[test]
    fn sequences_of_like_length_go_together() {
        let mut batcher = batcher(24, 10);
        let now = Instant::now();
        for (item, tokens) in [(0, 6), (1, 20), (2, 5), (3, 18), (4, 6)] {
            batcher.push(item, tokens, now);
        }
        assert_eq!(batcher.poll(now), Some(vec![0, 2, 4]));
        assert_eq!(batcher.poll(now), Some(vec![1]));
    }

    #[test]
    fn a_sequence_over_the_budget_goes_alone() {
        let mut batcher = batcher(10, 10);
        batcher.push(0, 50, Instant::now());
        batcher.push(1, 50, Instant::now());
        assert_eq!(batcher.take(), Some(vec![0]));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_doubled_and_budgets_hold(
            lengths in prop::collection::vec(1usize..60, 1..80),
            max_tokens in 1usize..200,
            max_sequences in 1usize..12,
        ) {
            let mut batcher = batcher(max_tokens, max_sequences);
            let now = Instant::now();
            let mut out = Vec::new();
            let check = |batch: &[usize]| {
                let width = batch.iter().map(|&i| lengths[i]).max().unwrap();
                batch.len() <= max_sequences && (batch.len() == 1 || width * batch.len() <= max_tokens)
            };
            for (item, &tokens) in lengths.iter().enumerate() {
                batcher.push(item, tokens, now);
                while let Some(batch) = batcher.poll(now) {
                    prop_assert!(check(&batch));
                    out.extend(batch);
                }
            }
            while let Some(batch) = batcher.take() {
                prop_assert!(check(&batch));
                out.extend(batch);
            }
            prop_assert!(batcher.is_empty() && batcher.deadline().is_none());
            out.sort_unstable();
            prop_assert_eq!(out, (0..lengths.len()).collect::<Vec<_>>());
        }

        #[test]
        fn every_batch_holds_the_oldest(lengths in prop::collection::vec(1usize..60, 1..80)) {
            let mut batcher = batcher(64, 8);
            lengths.iter().enumerate().for_each(|(item, &tokens)| batcher.push(item, tokens, Instant::now()));
            let mut left: Vec<usize> = (0..lengths.len()).collect();
            while let Some(batch) = batcher.take() {
                prop_assert!(batch.contains(&left[0]));
                left.retain(|item| !batch.contains(item));
            }
        }
    }
}
