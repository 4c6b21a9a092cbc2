//! How many records wait: pure arithmetic on what librdkafka reports of a partition.
//!
//! The end of a partition minus the committed offset counts offsets, not records: the marker that ends a transaction has an
//! offset, and so has every record of an aborted one. Nobody will ever read those, so a group that is done would seem to
//! lag for ever.

use rdkafka::statistics::Partition;

/// Where a partition stands. Negative offsets are unknown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// The next offset to hand over.
    position: i64,
    /// The next offset to fetch: past all markers and aborted records that were come upon.
    fetched: i64,
    /// The last stable offset: where the partition ends for whoever reads committed.
    end: i64,
    /// Messages that were fetched and not handed over.
    queued: i64,
}

impl From<&Partition> for Standing {
    fn from(partition: &Partition) -> Self {
        Self {
            position: partition.app_offset.max(partition.stored_offset).max(partition.committed_offset),
            fetched: partition.next_offset,
            end: partition.ls_offset,
            queued: partition.fetchq_cnt,
        }
    }
}

impl Standing {
    /// Records that are not committed: those in flight and those not read yet. Exact once all is read; before, markers
    /// that lie ahead count as records. None while too little is known.
    ///
    /// A partition that is paused has thrown away what was queued, so what it has fetched says nothing.
    pub(super) fn lag(self, in_flight: usize, paused: bool) -> Option<u64> {
        let Self { position, fetched, end, queued } = self;
        if end < 0 {
            return None;
        }
        if fetched >= end && queued == 0 && !paused {
            return Some(in_flight as u64);
        }
        let unread = u64::try_from(end - position).ok().filter(|_| position >= 0)?;
        Some(in_flight as u64 + unread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records at 0 to 3, a marker at 4; read to the end.
    const DONE: Standing = Standing { position: 4, fetched: 5, end: 5, queued: 0 };

    #[test]
    fn markers_at_the_end_are_no_lag() {
        assert_eq!(DONE.lag(0, false), Some(0));
        assert_eq!(DONE.lag(3, false), Some(3), "those in flight are not committed");
        assert_eq!(Standing { position: -1001, ..DONE }.lag(0, false), Some(0), "only markers since the start");
    }

    #[test]
    fn what_is_not_read_is_lag() {
        assert_eq!(Standing { fetched: 2, position: 2, ..DONE }.lag(1, false), Some(4));
        assert_eq!(Standing { queued: 2, position: 3, ..DONE }.lag(1, false), Some(3));
        assert_eq!(Standing { position: 3, ..DONE }.lag(1, true), Some(3));
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        assert_eq!(Standing { end: -1001, ..DONE }.lag(0, false), None);
        assert_eq!(Standing { position: -1001, fetched: -1001, ..DONE }.lag(0, false), None);
    }
}
