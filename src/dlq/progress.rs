//! How far the replay of a dead-letter partition has come: an offset, and what lies beyond it.
//!
//! A replay may choose letters, so what it has sent back need not be the head of the partition. The committed offset is
//! the first letter that was not sent back; its metadata lists the stretches after it that were. Letters that were left
//! behind are thus kept apart from letters that were sent back, for as long as the offset is kept.
//!
//! The metadata is `1:` and, for each stretch, its distance from the end of the one before and its length, in digits
//! of five bits, the lowest first, from the alphabet of base64url, whose upper half means that the number goes on.

use std::ops::Range;

use super::DlqError;
use crate::kafka::{Reader, Span};

/// Longest metadata that a broker takes unless it is told otherwise (`offset.metadata.max.bytes`).
pub(super) const MAX_METADATA_BYTES: usize = 4096;

const VERSION: &str = "1:";
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// What of a partition was sent back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Everything below was sent back, or is gone.
    next: i64,
    /// Stretches beyond, in order, apart from each other and from `next`.
    beyond: Vec<Range<i64>>,
}

/// The metadata is not what a replay writes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Progress {
    /// What the reader's group has noted of a partition; none if it has noted nothing, or too long ago.
    pub(super) fn read(reader: &Reader, span: &Span) -> Result<Option<Self>, DlqError> {
        let Some((next, metadata)) = reader.committed(&span.partition)? else { return Ok(None) };
        // Another replay may have gone on since.
        let end = if next > span.offsets.end { reader.watermarks(&span.partition)?.end } else { span.offsets.end };
        let progress = Self::decode(next, &metadata).ok().filter(|_| next <= end);
        progress.map(Some).ok_or_else(|| DlqError::Progress(span.partition.clone()))
    }

    /// Reads a committed offset.
    pub(super) fn decode(next: i64, metadata: &str) -> Result<Self, Malformed> {
        let mut progress = Self { next, beyond: Vec::new() };
        let Some(digits) = metadata.strip_prefix(VERSION) else {
            return if metadata.is_empty() { Ok(progress) } else { Err(Malformed) };
        };
        let numbers = numbers(digits)?;
        let mut end = next;
        for pair in numbers.chunks(2) {
            let &[gap, length @ 1..=i64::MAX] = pair else { return Err(Malformed) };
            let start = end.checked_add(gap).ok_or(Malformed)?;
            end = start.checked_add(length).ok_or(Malformed)?;
            progress.insert(start..end);
        }
        Ok(progress)
    }

    /// The metadata of the offset [`Progress::next`].
    pub(super) fn encode(&self) -> String {
        if self.beyond.is_empty() {
            return String::new();
        }
        let mut text = String::from(VERSION);
        let mut end = self.next;
        for stretch in &self.beyond {
            write_number(&mut text, stretch.start - end);
            write_number(&mut text, stretch.end - stretch.start);
            end = stretch.end;
        }
        text
    }

    /// The first offset that was not sent back.
    pub(super) fn next(&self) -> i64 {
        self.next
    }

    /// Whether what stands at `offset` was sent back.
    pub(super) fn contains(&self, offset: i64) -> bool {
        let place = self.beyond.partition_point(|stretch| stretch.end <= offset);
        offset < self.next || self.beyond.get(place).is_some_and(|stretch| stretch.contains(&offset))
    }

    /// Notes a stretch as sent back.
    pub(super) fn insert(&mut self, mut added: Range<i64>) {
        let first = self.beyond.partition_point(|stretch| stretch.end < added.start);
        let last = self.beyond.partition_point(|stretch| stretch.start <= added.end);
        for stretch in self.beyond.drain(first..last) {
            added = added.start.min(stretch.start)..added.end.max(stretch.end);
        }
        if added.start > self.next {
            self.beyond.insert(first, added);
        } else {
            self.next = self.next.max(added.end);
        }
    }

    /// Notes a stretch as not sent back.
    pub(super) fn remove(&mut self, removed: Range<i64>) {
        let sent = std::mem::take(&mut self.beyond);
        let head = 0..self.next;
        self.next = 0;
        for stretch in std::iter::once(head).chain(sent) {
            for part in [stretch.start..stretch.end.min(removed.start), stretch.start.max(removed.end)..stretch.end] {
                if !part.is_empty() {
                    self.insert(part);
                }
            }
        }
    }
}

fn write_number(text: &mut String, number: i64) {
    let mut rest = number as u64;
    loop {
        let (digit, more) = ((rest & 31) as usize, rest > 31);
        text.push(DIGITS[digit | usize::from(more) << 5].into());
        rest >>= 5;
        if !more {
            return;
        }
    }
}

fn numbers(digits: &str) -> Result<Vec<i64>, Malformed> {
    let mut numbers = Vec::new();
    let (mut number, mut shift) = (0_i64, 0);
    for digit in digits.bytes() {
        let value = DIGITS.iter().position(|&known| known == digit).ok_or(Malformed)?;
        if shift > 55 {
            return Err(Malformed);
        }
        number |= ((value & 31) as i64) << shift;
        shift += 5;
        if value < 32 {
            numbers.push(number);
            (number, shift) = (0, 0);
        }
    }
    if shift == 0 { Ok(numbers) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn stretch() -> impl Strategy<Value = Range<i64>> {
        (0_i64..200, 1_i64..20).prop_map(|(start, length)| start..start + length)
    }

    proptest! {
        #[test]
        fn it_holds_what_a_set_would_and_comes_back_from_its_metadata(
            next in 0_i64..50, steps in prop::collection::vec((any::<bool>(), stretch()), 0..20),
        ) {
            let mut progress = Progress::decode(next, "").unwrap();
            let mut set: BTreeSet<i64> = (0..next).collect();
            for (add, stretch) in steps {
                if add {
                    set.extend(stretch.clone());
                    progress.insert(stretch);
                } else {
                    set.retain(|offset| !stretch.contains(offset));
                    progress.remove(stretch);
                }
                prop_assert!((0..300).all(|offset| progress.contains(offset) == set.contains(&offset)));
                prop_assert!(!set.contains(&progress.next()) && (0..progress.next()).all(|offset| set.contains(&offset)));
                prop_assert_eq!(&Progress::decode(progress.next(), &progress.encode()).unwrap(), &progress);
            }
        }

        #[test]
        fn no_metadata_of_others_is_misread_into_a_panic(next in 0_i64.., text in "(1:)?[A-Za-z0-9_-]{0,40}") {
            let _ = Progress::decode(next, &text);
        }
    }

    #[test]
    fn a_worked_example() {
        let mut progress = Progress::decode(7, "").unwrap();
        progress.insert(9..10);
        progress.insert(12..52);
        // 2 on, 1 long; 2 on, 40 = 8 + 1 * 32 long.
        assert_eq!((progress.next(), progress.encode().as_str()), (7, "1:CBCoB"));
        progress.insert(7..9);
        assert_eq!((progress.next(), progress.encode().as_str()), (10, "1:CoB"));
        for malformed in ["2:AA", "1:A", "1:g", "1:Ä", "ABC"] {
            assert_eq!(Progress::decode(0, malformed), Err(Malformed), "{malformed}");
        }
    }
}
