//! A dead letter as it is read, and which ones are meant.

use std::ops::RangeInclusive;

use bytes::Bytes;

use crate::record::{Header, Partition};
use crate::sink::kafka::{DeadLetterHeaders, REPLAYS};
use crate::source::Message;

/// A message of the dead-letter topic.
#[derive(Debug)]
pub(super) struct Letter {
    /// Partition of the dead-letter topic; the message has the offset there.
    pub(super) partition: i32,
    /// What the worker wrote, headers and all.
    pub(super) message: Message,
    /// What its headers say; none if the worker did not write them.
    pub(super) reason: Option<Reason>,
}

/// Why a record was refused, and where it stood.
#[derive(Debug)]
pub(super) struct Reason {
    pub(super) input: Partition,
    pub(super) offset: i64,
    /// How often it was sent back.
    pub(super) replays: u32,
    pub(super) headers: DeadLetterHeaders,
}

impl Letter {
    pub(super) fn new(partition: i32, message: Message) -> Self {
        let reason = DeadLetterHeaders::read(&message.headers).and_then(Reason::new);
        Self { partition, message, reason }
    }
}

impl Reason {
    fn new(headers: DeadLetterHeaders) -> Option<Self> {
        let input = Partition { topic: headers.topic.as_str().into(), id: headers.partition.parse().ok()? };
        let replays = headers.replays.as_ref().and_then(|count| count.parse().ok()).unwrap_or(0);
        Some(Self { input, offset: headers.offset.parse().ok()?, replays, headers })
    }
}

/// Headers with the count of replays set to `count`, where it stood or at the end.
pub(super) fn count_replays(mut headers: Vec<Header>, count: u32) -> Vec<Header> {
    let counted = (REPLAYS.to_owned(), Some(Bytes::from(count.to_string())));
    match headers.iter().rposition(|(key, _)| key == REPLAYS) {
        Some(place) => headers[place] = counted,
        None => headers.push(counted),
    }
    headers
}

/// Which letters are meant: those that agree with every field; an empty field agrees with all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Codes of the reasons.
    pub codes: Vec<String>,
    /// Stages that refused.
    pub stages: Vec<String>,
    /// Input topics.
    pub topics: Vec<String>,
    /// Input partitions.
    pub partitions: Vec<i32>,
    /// Input offsets.
    pub offsets: Vec<RangeInclusive<i64>>,
    /// Earliest timestamp of the record, in milliseconds since the epoch.
    pub since_ms: Option<i64>,
    /// Latest timestamp of the record, in milliseconds since the epoch, itself not meant.
    pub until_ms: Option<i64>,
}

impl Filter {
    pub(super) fn matches(&self, letter: &Letter) -> bool {
        self.has_time(letter.message.timestamp_ms) && self.has_reason(letter.reason.as_ref())
    }

    fn has_time(&self, timestamp_ms: Option<i64>) -> bool {
        let since = self.since_ms.is_none_or(|since| timestamp_ms.is_some_and(|ms| ms >= since));
        since && self.until_ms.is_none_or(|until| timestamp_ms.is_some_and(|ms| ms < until))
    }

    fn has_reason(&self, reason: Option<&Reason>) -> bool {
        let any = |list: &[String], value: fn(&Reason) -> &str| {
            list.is_empty() || reason.is_some_and(|reason| list.iter().any(|wanted| wanted == value(reason)))
        };
        any(&self.codes, |reason| &reason.headers.code)
            && any(&self.stages, |reason| &reason.headers.stage)
            && any(&self.topics, |reason| &reason.input.topic)
            && (self.partitions.is_empty() || reason.is_some_and(|reason| self.partitions.contains(&reason.input.id)))
            && (self.offsets.is_empty()
                || reason.is_some_and(|reason| self.offsets.iter().any(|range| range.contains(&reason.offset))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(key: &str, value: &str) -> Header {
        (key.to_owned(), Some(Bytes::copy_from_slice(value.as_bytes())))
    }

    fn letter(headers: Vec<Header>) -> Letter {
        let value = Some(Bytes::from_static(b"x"));
        Letter::new(0, Message { offset: 9, key: None, value, headers, timestamp_ms: Some(1000) })
    }

    fn reasons(topic: &str) -> Vec<Header> {
        let texts = ["topic", "partition", "offset", "stage", "exception.class.name", "exception.message"]
            .map(|name| format!("__connect.errors.{name}"));
        let values = [topic, "2", "41", "decode", "vitag.Reject", "no text"];
        let mut headers: Vec<_> = texts.iter().zip(values).map(|(key, value)| header(key, value)).collect();
        headers.push(header("vitag.error.code", "empty_text"));
        headers
    }

    #[test]
    fn the_reasons_of_the_worker_count_and_those_it_came_with_stay() {
        let of_another = [vec![header("a", "1")], reasons("earlier"), vec![header(REPLAYS, "2")]].concat();
        let letter = letter([of_another.clone(), reasons("documents")].concat());
        let reason = letter.reason.unwrap();
        assert_eq!((&*reason.input.topic, reason.input.id, reason.offset, reason.replays), ("documents", 2, 41, 2));
        assert_eq!(reason.headers.strip(letter.message.headers), of_another);
    }

    #[test]
    fn replays_are_counted_in_place() {
        let headers = vec![header(REPLAYS, "2"), header("b", "2")];
        assert_eq!(count_replays(headers, 3), [header(REPLAYS, "3"), header("b", "2")]);
        assert_eq!(count_replays(vec![header("b", "2")], 1), [header("b", "2"), header(REPLAYS, "1")]);
    }

    #[test]
    fn a_filter_means_what_agrees_with_all_of_it() {
        let filter = |change: fn(&mut Filter)| {
            let mut filter =
                Filter { stages: vec!["decode".into()], topics: vec!["documents".into()], ..Filter::default() };
            change(&mut filter);
            filter.matches(&letter(reasons("documents")))
        };
        assert!(filter(|_| {}));
        assert!(filter(|f| f.codes = vec!["wrong_type".into(), "empty_text".into()]));
        assert!(!filter(|f| f.codes = vec!["wrong_type".into()]));
        assert!(filter(|f| f.offsets = vec![0..=3, 41..=41]) && !filter(|f| f.offsets = vec![42..=i64::MAX]));
        assert!(filter(|f| f.partitions = vec![2]) && !filter(|f| f.partitions = vec![0]));
        assert!(filter(|f| f.since_ms = Some(1000)) && !filter(|f| f.since_ms = Some(1001)));
        assert!(filter(|f| f.until_ms = Some(1001)) && !filter(|f| f.until_ms = Some(1000)));
        assert!(Filter::default().matches(&letter(vec![])) && !filter(|f| f.topics = vec!["other".into()]));
    }
}
