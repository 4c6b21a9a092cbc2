//! Partitions that nobody in a group has, and that nobody will get without a rebalance.
//!
//! A static member that starts again within its session is given what the last rebalance gave its name, and no new one
//! takes place (KIP-345). What that rebalance took from it for another goes to the other only in the rebalance that
//! follows when it has given it up; if it died before that, there is none. The same holds for partitions that were added
//! to a topic while no member was there to see it (KIP-814, which librdkafka lacks).

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Buf;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rdkafka::consumer::Consumer as _;

use super::KafkaSourceOptions;
use crate::kafka::{ReadError, Reader};

/// Between two looks, and how long a member that lives takes to hear that it has to give something up, by its heartbeat.
const PAUSE: Duration = Duration::from_secs(3);
/// Between two looks that show nothing, in the end.
const LONG_PAUSE: Duration = Duration::from_secs(60);
/// Longest wait for an answer, and so of the end of a worker for one.
const ANSWER: Duration = Duration::from_secs(3);

type Partitions = BTreeSet<(String, i32)>;

/// A look-out for gaps, on a thread and a connection of its own: behind a fetch that waits for records, an answer would
/// hold up the polling. Both are gone when it is dropped.
pub(super) struct LookOut {
    rejoin: Receiver<()>,
    until_dropped: Option<Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl LookOut {
    /// Looks from now on, until every partition is somebody's.
    pub(super) fn start(options: &KafkaSourceOptions) -> Self {
        let watch = GapWatch::new(&options.group_id, &options.topics, options.drain_timeout + PAUSE);
        let (connection, properties) = (options.connection.clone(), options.properties.clone());
        let (asks, rejoin) = bounded(1);
        let (until_dropped, dropped) = bounded(0);
        let run = move || {
            // A run that is over before the first look needs no connection for it.
            if dropped.recv_timeout(PAUSE) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            match Reader::new(connection, &properties, &watch.group, ANSWER) {
                Ok(reader) => watch.run(&reader, &asks, &dropped),
                Err(error) => tracing::warn!(%error, "cannot see what the members of the group have"),
            }
        };
        let thread = std::thread::Builder::new().name("gaps".into()).spawn(run).expect("a thread can be started");
        Self { rejoin, until_dropped: Some(until_dropped), thread: Some(thread) }
    }

    /// Whether to leave the group and join it again, for the sake of the rebalance.
    pub(super) fn wants_rejoin(&self) -> bool {
        self.rejoin.try_recv().is_ok()
    }
}

impl Drop for LookOut {
    fn drop(&mut self) {
        drop(self.until_dropped.take());
        // One that has panicked has said so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct GapWatch {
    group: String,
    topics: Vec<String>,
    /// How long a member that lives may take to give something up.
    patience: Duration,
    /// What has been nobody's, and since when.
    gap: Option<(Partitions, Instant)>,
    pause: Duration,
}

/// What to do after a look.
#[derive(Debug, PartialEq, Eq)]
enum Advice {
    /// Every partition is somebody's: there is no more to look for.
    Done,
    /// Look again.
    Wait,
    /// Leave the group and join it again.
    Rejoin,
}

impl GapWatch {
    fn new(group: &str, topics: &[String], patience: Duration) -> Self {
        Self { group: group.to_owned(), topics: topics.to_vec(), patience, gap: None, pause: PAUSE }
    }

    fn run(mut self, reader: &Reader, rejoin: &Sender<()>, dropped: &Receiver<Infallible>) {
        loop {
            let found = self.look(reader).unwrap_or_else(|error| {
                tracing::debug!(%error, "cannot see what the members of the group have");
                None
            });
            match self.judge(found, Instant::now()) {
                Advice::Done => return,
                Advice::Wait => {}
                // One that is not taken yet will do.
                Advice::Rejoin => drop(rejoin.try_send(())),
            }
            if dropped.recv_timeout(self.pause) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    /// The partitions that nobody has; none while the group rebalances, or shows nothing.
    fn look(&self, reader: &Reader) -> Result<Option<Partitions>, ReadError> {
        let groups = reader.consumer().fetch_group_list(Some(&self.group), ANSWER);
        let groups = groups.map_err(|e| ReadError::Call("fetch_group_list", e))?;
        let Some(group) = groups.groups().iter().find(|group| group.name() == self.group && group.state() == "Stable")
        else {
            return Ok(None);
        };
        let mut nobodys = Partitions::new();
        for topic in &self.topics {
            nobodys.extend((0..reader.partitions(topic, "input.topics")?).map(|id| (topic.clone(), id)));
        }
        for member in group.members() {
            let bytes = member.assignment().unwrap_or_default();
            let Some(assigned) = assignment(bytes) else { return Ok(None) };
            nobodys.retain(|partition| !assigned.contains(partition));
        }
        Ok(Some(nobodys))
    }

    fn judge(&mut self, found: Option<Partitions>, now: Instant) -> Advice {
        let Some(nobodys) = found else {
            self.gap = None;
            self.pause = (self.pause * 2).min(LONG_PAUSE);
            return Advice::Wait;
        };
        self.pause = PAUSE;
        if nobodys.is_empty() {
            return Advice::Done;
        }
        let before = self.gap.take().filter(|(gap, _)| !gap.is_disjoint(&nobodys));
        let (gap, since) = before.map_or((nobodys.clone(), now), |(gap, since)| (&gap & &nobodys, since));
        if now - since >= self.patience {
            return Advice::Rejoin;
        }
        self.gap = Some((gap, since));
        Advice::Wait
    }
}

/// Reads an assignment as members send it to each other: a version, the partitions by topic, and what else the version
/// has, which is left unread. Empty for a member that was given none. None if it ends too early.
fn assignment(mut bytes: &[u8]) -> Option<Partitions> {
    if bytes.is_empty() {
        return Some(Partitions::new());
    }
    let _version = bytes.try_get_i16().ok()?;
    let mut partitions = Partitions::new();
    for _ in 0..bytes.try_get_i32().ok()? {
        let length = usize::try_from(bytes.try_get_i16().ok()?).ok()?;
        let topic = String::from_utf8(bytes.split_off(..length)?.to_vec()).ok()?;
        for _ in 0..bytes.try_get_i32().ok()? {
            partitions.insert((topic.clone(), bytes.try_get_i32().ok()?));
        }
    }
    Some(partitions)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::BufMut;
    use proptest::prelude::*;

    use super::*;

    fn some(ids: &[i32]) -> Option<Partitions> {
        Some(ids.iter().map(|&id| ("in".to_owned(), id)).collect())
    }

    fn watch() -> GapWatch {
        GapWatch::new("group", &["in".to_owned()], Duration::from_secs(8))
    }

    #[test]
    fn what_stays_nobodys_asks_for_a_rebalance() {
        let (mut watch, start) = (watch(), Instant::now());
        let mut judge = |ids: &[i32], seconds| watch.judge(some(ids), start + Duration::from_secs(seconds));
        assert_eq!(judge(&[0, 1], 0), Advice::Wait);
        assert_eq!(judge(&[1], 7), Advice::Wait);
        assert_eq!(judge(&[1, 2], 8), Advice::Rejoin);
        assert_eq!(judge(&[1], 9), Advice::Wait, "the rebalance takes its time");
        assert_eq!(judge(&[], 10), Advice::Done);
    }

    #[test]
    fn what_changes_hands_or_cannot_be_seen_does_not() {
        let (mut watch, start) = (watch(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(watch.judge(some(&[0]), at(0)), Advice::Wait);
        assert_eq!(watch.judge(some(&[1]), at(9)), Advice::Wait, "another partition");
        assert_eq!(watch.judge(None, at(12)), Advice::Wait);
        assert_eq!(watch.judge(some(&[1]), at(19)), Advice::Wait, "a rebalance lay between");
        (20..29).for_each(|seconds| assert_eq!(watch.judge(None, at(seconds)), Advice::Wait));
        assert_eq!(watch.pause, LONG_PAUSE);
    }

    fn written(topics: &BTreeMap<String, BTreeSet<i32>>) -> Vec<u8> {
        let mut bytes = vec![];
        bytes.put_i16(1);
        bytes.put_i32(topics.len() as i32);
        for (topic, ids) in topics {
            bytes.put_i16(topic.len() as i16);
            bytes.put_slice(topic.as_bytes());
            bytes.put_i32(ids.len() as i32);
            ids.iter().for_each(|&id| bytes.put_i32(id));
        }
        // No user data.
        bytes.put_i32(-1);
        bytes
    }

    proptest! {
        #[test]
        fn an_assignment_is_read_as_it_was_written(
            topics in prop::collection::btree_map("[a-z.]{1,9}", prop::collection::btree_set(0..64i32, 0..9), 0..4),
            cut in 0..64usize,
        ) {
            let bytes = written(&topics);
            let expected = topics.iter().flat_map(|(topic, ids)| ids.iter().map(|&id| (topic.clone(), id))).collect();
            prop_assert_eq!(assignment(&bytes), Some(expected));
            let end = bytes.len() - 4;
            prop_assert_eq!(assignment(&bytes[..cut.clamp(1, end - 1)]), None, "cut off");
        }

        #[test]
        fn no_more_is_read_than_there_is(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let partitions = assignment(&bytes).map_or(0, |partitions| partitions.len());
            prop_assert!(partitions * size_of::<i32>() <= bytes.len());
        }
    }
}
