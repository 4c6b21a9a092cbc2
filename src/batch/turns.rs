//! Whose window comes next where several queues have some: pure policy.

/// Asks queues in turn, one item at a time, and passes over those that have none.
///
/// A queue that has items gives every n-th of n queues at least, however many wait in the others.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    next: usize,
}

impl Turns {
    /// The next item; `take` takes one from a queue by its number, below `queues`.
    pub fn take<T>(&mut self, queues: usize, mut take: impl FnMut(usize) -> Option<T>) -> Option<T> {
        let first = self.next;
        (first..first + queues).map(|turn| turn % queues).find_map(|queue| {
            let item = take(queue)?;
            self.next = queue + 1;
            Some(item)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchOptions, Batcher};
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::time::Instant;

    proptest! {
        #[test]
        fn each_queue_keeps_its_order_and_gets_its_turn(sizes in prop::collection::vec(0usize..30, 1..5)) {
            let mut queues: Vec<VecDeque<usize>> = sizes.iter().map(|&size| (0..size).collect()).collect();
            let mut turns = Turns::default();
            let mut taken: Vec<Vec<usize>> = vec![vec![]; sizes.len()];
            // Turns since a queue that has items was last served.
            let mut passed = vec![0; sizes.len()];
            while let Some((queue, item)) = turns.take(sizes.len(), |queue| Some((queue, queues[queue].pop_front()?))) {
                taken[queue].push(item);
                passed.iter_mut().for_each(|passed| *passed += 1);
                passed[queue] = 0;
                for (queue, &passed) in passed.iter().enumerate() {
                    prop_assert!(queues[queue].is_empty() || passed < sizes.len());
                }
            }
            for (taken, size) in taken.into_iter().zip(sizes) {
                prop_assert!(taken.into_iter().eq(0..size), "nothing is lost, doubled or out of order");
            }
        }

        /// What the pipeline promises: a short document waits for some batches of a long one, not for its end.
        #[test]
        fn a_short_document_behind_a_long_one_leaves_within_few_batches(
            long in prop::collection::vec(4usize..64, 800..1200),
            short in prop::collection::vec(4usize..64, 1..5),
            before in 0usize..30,
        ) {
            let options = BatchOptions { max_tokens: 256, sort_window_tokens: 2048, ..BatchOptions::default() };
            // Batches are not full where lengths differ.
            let bound = 3 * options.sort_window_tokens / options.max_tokens + short.len() + 2;
            let mut batcher = Batcher::new(options);
            let mut turns = Turns::default();
            let mut queues = [VecDeque::new(), long.into_iter().map(|tokens| (1, tokens)).collect()];
            let (mut left, mut batches) = (short.len(), 0);
            while left > 0 {
                if batches == before {
                    queues[0].extend(short.iter().map(|&tokens| (0, tokens)));
                }
                while !batcher.is_full() {
                    let Some((queue, tokens)) = turns.take(2, |queue| queues[queue].pop_front()) else { break };
                    batcher.push(queue, 0, tokens, Instant::now());
                }
                let batch = batcher.take().expect("the long document has not come to its end");
                left -= batch.iter().filter(|&&queue| queue == 0).count();
                batches += 1;
            }
            prop_assert!(batches - before <= bound, "{} batches", batches - before);
        }
    }
}
