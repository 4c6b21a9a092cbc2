//! Where a range begins or ends, and which offsets that means.

use std::ops::Range;

use jiff::Timestamp;

use crate::kafka::{ReadError, Reader, Span};
use crate::record::Partition;

/// A place in a topic, the same words for every partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Its first record.
    Earliest,
    /// Where it ends now.
    Latest,
    /// Where the worker's own group stands; the first record where it has committed nothing.
    Committed,
    /// An offset.
    Offset(i64),
    /// The first record of this time or later.
    Time(Timestamp),
}

impl Bound {
    /// Whether a range from here to `to` is empty whatever the topic holds.
    pub fn is_after(self, to: Self) -> bool {
        match (self, to) {
            (Self::Offset(from), Self::Offset(to)) => from > to,
            (Self::Time(from), Self::Time(to)) => from > to,
            (from, to) => from == Self::Latest && to != Self::Latest || to == Self::Earliest && from != Self::Earliest,
        }
    }
}

/// What the offsets of bounds are looked up with.
pub(super) struct Lookup<'r> {
    /// Reads the topic.
    pub(super) reader: &'r Reader,
    /// Knows what the worker's group has committed.
    pub(super) live: &'r Reader,
}

impl Lookup<'_> {
    /// The offsets of a partition between two bounds: no more than it holds now.
    pub(super) fn range(&self, span: &Span, (from, to): (Bound, Bound)) -> Result<Range<i64>, ReadError> {
        let start = self.offset(span, from)?;
        Ok(start..self.offset(span, to)?.max(start))
    }

    fn offset(&self, span: &Span, bound: Bound) -> Result<i64, ReadError> {
        let Range { start, end } = span.offsets;
        let of = |partition: &Partition| -> Result<i64, ReadError> {
            Ok(match bound {
                Bound::Earliest => start,
                Bound::Latest => end,
                Bound::Offset(offset) => offset,
                Bound::Committed => self.live.committed(partition)?.map_or(start, |(next, _)| next),
                Bound::Time(time) => self.reader.at_time(partition, time.as_millisecond())?.unwrap_or(end),
            })
        };
        // The last stable offset may lie before what an open transaction has written already.
        Ok(of(&span.partition)?.clamp(start, end.max(start)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_that_cross_are_seen_without_the_topic() {
        let time = |text: &str| Bound::Time(text.parse().unwrap());
        let (early, late) = (time("2026-01-01T00:00:00Z"), time("2026-01-02T00:00:00Z"));
        for (from, to) in [
            (Bound::Offset(7), Bound::Offset(6)),
            (late, early),
            (Bound::Latest, Bound::Earliest),
            (Bound::Latest, early),
            (early, Bound::Earliest),
        ] {
            assert!(from.is_after(to), "{from:?} {to:?}");
            assert!(!to.is_after(from), "{to:?} {from:?}");
        }
        for (from, to) in [(Bound::Offset(7), Bound::Offset(7)), (Bound::Committed, early), (early, Bound::Offset(0))] {
            assert!(!from.is_after(to), "{from:?} {to:?}");
        }
    }
}
