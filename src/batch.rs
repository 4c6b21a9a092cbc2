//! Which waiting sequences go to the model together: pure policy, with no clock and no channel inside.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

mod turns;

pub use turns::Turns;

/// Limits of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchOptions {
    /// Slots of the padded view (sequences × longest), which bounds the cost of attention and the memory.
    pub max_tokens: usize,
    /// Sequences.
    pub max_sequences: usize,
    /// Share of the slots that may be padding, 0 to 1.
    pub max_padding: f64,
    /// How long the oldest sequence may wait for company.
    pub max_wait: Duration,
    /// Waiting tokens that are looked over for sequences of like length.
    pub sort_window_tokens: usize,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self {
            max_tokens: 512,
            max_sequences: 64,
            max_padding: 0.15,
            max_wait: Duration::from_millis(20),
            sort_window_tokens: 8192,
        }
    }
}

/// Gaps between arrivals after which nothing more is expected …
const PATIENT_GAPS: u32 = 4;
/// … but no less than this: a text comes in pieces, and between two of them a thread may have to be woken.
const LEAST_PATIENCE: Duration = Duration::from_millis(1);
/// Part of a new gap in the mean of all.
const NEW_GAP: u32 = 8;

struct Waiting<T> {
    item: T,
    group: u64,
    tokens: usize,
    since: Instant,
}

/// What waits of one group.
struct Group {
    number: u64,
    tokens: usize,
    sequences: usize,
}

/// Sequences waiting for a batch, in the order of their arrival. Those of different groups, which are for different
/// models, never share one.
pub struct Batcher<T> {
    options: BatchOptions,
    waiting: VecDeque<Waiting<T>>,
    /// Of each group that has some waiting.
    groups: Vec<Group>,
    /// The last arrival.
    last: Option<Instant>,
    /// Mean time between arrivals; one longer than the wait counts as the wait.
    gap: Duration,
}

impl<T> Batcher<T> {
    /// An empty batcher.
    pub fn new(options: BatchOptions) -> Self {
        Self { options, waiting: VecDeque::new(), groups: Vec::new(), last: None, gap: Duration::ZERO }
    }

    /// Takes a sequence of `tokens` tokens, which goes only with others of its group.
    pub fn push(&mut self, item: T, group: u64, tokens: usize, now: Instant) {
        match self.groups.iter_mut().find(|known| known.number == group) {
            Some(known) => (known.tokens, known.sequences) = (known.tokens + tokens, known.sequences + 1),
            None => self.groups.push(Group { number: group, tokens, sequences: 1 }),
        }
        self.waiting.push_back(Waiting { item, group, tokens, since: now });
        if let Some(last) = self.last.replace(now) {
            let gap = now.saturating_duration_since(last).min(self.options.max_wait);
            self.gap = (self.gap * (NEW_GAP - 1) + gap) / NEW_GAP;
        }
    }

    /// Whether it holds as much as it looks over for one batch: the caller should then take a batch before it pushes.
    pub fn is_full(&self) -> bool {
        self.groups.iter().map(|group| group.tokens).sum::<usize>() >= self.options.sort_window_tokens
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// When to wait no longer for company: the oldest sequence has waited long enough, or by the pace of the arrivals
    /// nobody is to be expected in time.
    pub fn deadline(&self) -> Option<Instant> {
        let oldest = self.waiting.front()?.since;
        let longest = self.options.max_wait;
        let patience = (self.gap * PATIENT_GAPS).max(LEAST_PATIENCE);
        let last = self.last?;
        let expected = if patience < longest { last + patience } else { last };
        Some(expected.min(oldest + longest))
    }

    /// A batch, if a group has enough for a full one, the wait for company is over, or no more can be taken.
    pub fn poll(&mut self, now: Instant) -> Option<Vec<T>> {
        if self.is_full() || self.deadline().is_some_and(|deadline| deadline <= now) {
            return self.take();
        }
        let BatchOptions { max_tokens, max_sequences, .. } = self.options;
        let enough = |group: &&Group| group.tokens >= max_tokens || group.sequences >= max_sequences;
        let group = self.groups.iter().find(enough)?.number;
        self.take_of(group)
    }

    /// A batch of what waits, however little: the oldest sequence with those of its group nearest to it in length.
    pub fn take(&mut self) -> Option<Vec<T>> {
        self.take_of(self.waiting.front()?.group)
    }

    /// The oldest of the group is always in its batch, so none is passed over for ever; a sequence over the budget goes
    /// alone.
    fn take_of(&mut self, group: u64) -> Option<Vec<T>> {
        let mut seen = 0;
        let of_group = |&i: &usize| self.waiting[i].group == group;
        let mut order: Vec<usize> = (0..self.waiting.len())
            .filter(of_group)
            .take_while(|&i| {
                let within = seen < self.options.sort_window_tokens;
                seen += self.waiting[i].tokens;
                within
            })
            .collect();
        let oldest = self.waiting[*order.first()?].tokens;
        order.sort_by_key(|&i| (self.waiting[i].tokens.abs_diff(oldest), i));
        let BatchOptions { max_tokens, max_sequences, max_padding, .. } = self.options;
        let (mut width, mut tokens) = (0, 0);
        let mut chosen: Vec<usize> = Vec::new();
        for i in order {
            let more = self.waiting[i].tokens;
            let slots = width.max(more) * (chosen.len() + 1);
            let padding = slots - (tokens + more);
            let fits = slots <= max_tokens && padding as f64 <= max_padding * slots as f64;
            if chosen.len() == max_sequences || !(fits || chosen.is_empty()) {
                break;
            }
            (width, tokens) = (width.max(more), tokens + more);
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
            if chosen.next_if_eq(&i).is_none() {
                left.push_back(waiting);
                continue;
            }
            for group in self.groups.iter_mut().filter(|group| group.number == waiting.group) {
                group.tokens -= waiting.tokens;
                group.sequences -= 1;
            }
            batch.push(waiting.item);
        }
        self.groups.retain(|group| group.sequences > 0);
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
        batcher.push(0, 0, 7, now);
        assert_eq!(batcher.poll(now), None);
        let deadline = batcher.deadline().unwrap();
        assert_eq!(batcher.poll(deadline), Some(vec![0]));
        assert_eq!(batcher.poll(deadline), None);
    }

    #[test]
    fn where_little_comes_a_sequence_does_not_wait_for_company() {
        let mut batcher = batcher(100, 10);
        let (start, pause) = (Instant::now(), Duration::from_millis(100));
        for item in 0..8 {
            let now = start + pause * item as u32;
            batcher.push(item, 0, 7, now);
            while batcher.take().is_some() {}
        }
        let now = start + pause * 8;
        batcher.push(8, 0, 7, now);
        assert_eq!(batcher.poll(now), Some(vec![8]));
    }

    #[test]
    fn a_text_that_comes_after_a_pause_goes_together() {
        let mut batcher = batcher(1000, 100);
        let (mut now, mut item) = (Instant::now(), 0);
        let mut leave = Vec::new();
        for _ in 0..5 {
            for _ in 0..30 {
                batcher.push(item, 0, 7, now);
                item += 1;
                now += Duration::from_micros(50);
                leave.extend(batcher.poll(now).map(|batch| batch.len()));
            }
            leave.extend(batcher.poll(now + Duration::from_millis(20)).map(|batch| batch.len()));
            now += Duration::from_millis(100);
        }
        assert_eq!(leave, [30; 5]);
    }

    #[test]
    fn sequences_of_like_length_go_together() {
        let mut batcher = batcher(24, 10);
        let now = Instant::now();
        for (item, tokens) in [(0, 6), (1, 20), (2, 5), (3, 18), (4, 6)] {
            batcher.push(item, 0, tokens, now);
        }
        assert_eq!(batcher.poll(now), Some(vec![0, 2, 4]));
        assert_eq!(batcher.poll(now), Some(vec![1]));
    }

    #[test]
    fn a_sequence_over_the_budget_goes_alone() {
        let mut batcher = batcher(10, 10);
        batcher.push(0, 0, 50, Instant::now());
        batcher.push(1, 0, 50, Instant::now());
        assert_eq!(batcher.take(), Some(vec![0]));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_doubled_and_budgets_hold(
            sequences in prop::collection::vec((1usize..60, 0u64..3), 1..80),
            max_tokens in 1usize..200,
            max_sequences in 1usize..12,
            max_padding in 0.0f64..1.0,
        ) {
            let options = BatchOptions { max_tokens, max_sequences, max_padding, ..BatchOptions::default() };
            let mut batcher = Batcher::new(options);
            let now = Instant::now();
            let mut out = Vec::new();
            let check = |batch: &[usize]| {
                let width = batch.iter().map(|&i| sequences[i].0).max().unwrap();
                let is_pure = batch.iter().all(|&i| sequences[i].1 == sequences[batch[0]].1);
                let slots = width * batch.len();
                let padding = slots - batch.iter().map(|&i| sequences[i].0).sum::<usize>();
                let fits = slots <= max_tokens && padding as f64 <= max_padding * slots as f64;
                is_pure && batch.len() <= max_sequences && (batch.len() == 1 || fits)
            };
            for (item, &(tokens, group)) in sequences.iter().enumerate() {
                batcher.push(item, group, tokens, now);
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
            prop_assert_eq!(out, (0..sequences.len()).collect::<Vec<_>>());
        }

        #[test]
        fn every_batch_holds_the_oldest_of_its_group(sequences in prop::collection::vec((1usize..60, 0u64..3), 1..80)) {
            let mut batcher = batcher(64, 8);
            for (item, &(tokens, group)) in sequences.iter().enumerate() {
                batcher.push(item, group, tokens, Instant::now());
            }
            let mut left: Vec<usize> = (0..sequences.len()).collect();
            while let Some(batch) = batcher.take() {
                prop_assert!(batch.contains(&left[0]));
                left.retain(|item| !batch.contains(item));
            }
        }

        /// However they come: nothing waits longer than it may, and nothing leaves by the clock while more is expected.
        #[test]
        fn the_wait_is_bounded(gaps in prop::collection::vec(0u64..30_000, 1..60), max_wait in 0u64..20) {
            let max_wait = Duration::from_millis(max_wait);
            let mut batcher = Batcher::new(BatchOptions { max_wait, ..BatchOptions::default() });
            let mut now = Instant::now();
            for gap in gaps {
                now += Duration::from_micros(gap);
                while let Some(deadline) = batcher.deadline().filter(|&deadline| deadline <= now) {
                    prop_assert!(batcher.poll(deadline).is_some());
                }
                batcher.push(now, 0, 7, now);
                let deadline = batcher.deadline().unwrap();
                prop_assert!(deadline >= now.min(batcher.waiting[0].item + max_wait));
                prop_assert!(deadline <= batcher.waiting[0].item + max_wait);
            }
        }

        /// Whatever comes after it, a sequence goes within as many batches as windows of its group were there before it,
        /// and one.
        #[test]
        fn ages_are_bounded(before in prop::collection::vec(1usize..60, 0..40), after in prop::collection::vec(1usize..60, 0..80)) {
            let mut batcher = Batcher::new(BatchOptions { max_tokens: 64, max_sequences: 8, ..BatchOptions::default() });
            before.iter().for_each(|&tokens| batcher.push(false, 0, tokens, Instant::now()));
            batcher.push(true, 0, 60, Instant::now());
            let mut after = after.into_iter();
            let mut batches = 0;
            loop {
                after.by_ref().take(3).for_each(|tokens| batcher.push(false, 0, tokens, Instant::now()));
                batches += 1;
                if batcher.take().is_some_and(|batch| batch.contains(&true)) {
                    break;
                }
            }
            prop_assert!(batches <= before.len() + 1, "{batches} batches");
        }

        /// A group with few sequences waits for company of its own, but never past its deadline, and while it waits the
        /// others go on.
        #[test]
        fn a_rare_group_neither_waits_for_ever_nor_holds_others_up(before in 1usize..20) {
            let mut batcher = batcher(100, 64);
            let now = Instant::now();
            batcher.push(usize::MAX, 1, 10, now);
            for item in 0..10 * before {
                batcher.push(item, 0, 10, now);
                if let Some(batch) = batcher.poll(now) {
                    prop_assert_eq!(batch.len(), 10);
                    prop_assert!(!batch.contains(&usize::MAX));
                }
            }
            let deadline = batcher.deadline().unwrap();
            prop_assert_eq!(batcher.poll(deadline), Some(vec![usize::MAX]));
        }
    }
}
