//! The thread of the batcher.

use std::time::Instant;

use crossbeam_channel::{Receiver, Select, Sender, TryRecvError};

use super::request::Item;
use crate::batch::{BatchOptions, Batcher, Turns};

/// Feeds the batcher, from each queue in turn, and hands its batches to the lanes. Whatever has arrived is looked over
/// before a batch leaves, so while the lanes are busy the batches get better.
pub(super) fn batch(mut queues: Vec<Receiver<Item>>, to_lanes: &Sender<Vec<Item>>, options: &BatchOptions) {
    let mut batcher = Batcher::new(options.clone());
    let mut turns = Turns::default();
    while !queues.is_empty() || !batcher.is_empty() {
        wait_for_windows(&queues, batcher.deadline());
        while !batcher.is_full()
            && let Some(item) = next_window(&mut queues, &mut turns)
        {
            let (version, tokens) = (item.reading().version.number(), item.tokens());
            batcher.push(item, version, tokens, Instant::now());
        }
        while let Some(batch) = if queues.is_empty() { batcher.take() } else { batcher.poll(Instant::now()) } {
            if to_lanes.send(batch).is_err() {
                return;
            }
            // What has come meanwhile is looked over with the rest.
            if queues.iter().any(|queue| !queue.is_empty()) {
                break;
            }
        }
    }
}

/// Waits until a queue has something or is closed, or until the deadline.
fn wait_for_windows(queues: &[Receiver<Item>], deadline: Option<Instant>) {
    let mut select = Select::new();
    for queue in queues {
        select.recv(queue);
    }
    // What it finds, if anything, shows when the queues are asked.
    let _ = match deadline {
        _ if queues.is_empty() => Ok(0),
        Some(deadline) => select.ready_deadline(deadline),
        None => Ok(select.ready()),
    };
}

/// The next window, if there is one now. Queues that are closed are dropped.
fn next_window(queues: &mut Vec<Receiver<Item>>, turns: &mut Turns) -> Option<Item> {
    let mut closed = None;
    let next = turns.take(queues.len(), |queue| {
        let item = queues[queue].try_recv();
        closed = closed.or(matches!(item, Err(TryRecvError::Disconnected)).then_some(queue));
        item.ok()
    });
    if let Some(queue) = closed {
        queues.remove(queue);
    }
    next
}
