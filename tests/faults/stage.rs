//! Where runs take place, one after the other: a broker, a proxy before it, and topics of each run's own.

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::common::broker::{Broker, End, Extras, Listener, Message};
use crate::common::worker::wait_until;
use crate::plan::Plan;
use crate::proxy::Proxy;

/// The listener that the workers know.
const PROXIED: &str = "PROXIED";

/// A broker, and a proxy before it.
pub(crate) struct Stage {
    pub(crate) broker: Broker,
    pub(crate) proxy: Proxy,
}

impl Stage {
    /// The one that the tests share, for as long as the guard lives.
    pub(crate) fn enter() -> MutexGuard<'static, Option<Stage>> {
        static STAGE: Mutex<Option<Stage>> = Mutex::new(None);
        let mut stage = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
        stage.get_or_insert_with(Self::build);
        stage
    }

    fn build() -> Self {
        let proxy = Proxy::start();
        let listener =
            Listener { name: PROXIED, protocol: "PLAINTEXT", settings: vec![], advertised: Some(proxy.port) };
        let broker = Broker::start_with(&Extras { listeners: vec![listener], ..Extras::default() });
        let address = broker.listener(PROXIED);
        let (_, port) = address.rsplit_once(':').expect("host:port");
        proxy.lead_to(port.parse().expect("a port"));
        Self { broker, proxy }
    }
}

/// The topics and the group of a run.
pub(crate) struct Topics {
    pub(crate) input: String,
    pub(crate) output: String,
    pub(crate) dead_letters: String,
    pub(crate) group: String,
    /// Partitions of each topic at the start.
    pub(crate) partitions: i32,
    added: AtomicI32,
    /// Records that the input held before the driver came.
    pub(crate) older: u64,
}

impl Topics {
    /// Makes the topics of `plan`. The input begins with records of a transaction that was aborted and, where it is
    /// compacted, with gaps.
    pub(crate) fn make(broker: &Broker, plan: &Plan) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("seed{}-{}", plan.seed, NEXT.fetch_add(1, Ordering::Relaxed));
        let (input, output) = (format!("{name}.in"), format!("{name}.out"));
        let dead_letters = format!("{output}.dead-letters");
        let compacted = [
            ("cleanup.policy", "compact"),
            ("min.cleanable.dirty.ratio", "0.01"),
            ("segment.ms", "500"),
            ("max.compaction.lag.ms", "500"),
        ];
        broker.create_topic_with(&input, plan.partitions, if plan.compacted { &compacted } else { &[] });
        for topic in [&output, &dead_letters] {
            broker.create_topic(topic, plan.partitions);
        }
        let older = if plan.compacted { leave_gaps(broker, &input, plan.partitions) } else { 0 };
        let aborted = (0..plan.partitions).map(|partition| Message::new("{}").key("aborted").partition(partition));
        broker.produce_in_transaction(&input, aborted, End::Abort);
        let group = format!("{name}.group");
        Self { input, output, dead_letters, group, partitions: plan.partitions, added: AtomicI32::new(0), older }
    }

    /// Partitions of the input by now.
    pub(crate) fn input_partitions(&self) -> i32 {
        self.partitions + self.added.load(Ordering::Relaxed)
    }

    /// Adds a partition to the input; returns its number.
    pub(crate) fn grow(&self, broker: &Broker) -> i32 {
        let added = self.input_partitions();
        broker.grow_topic(&self.input, added + 1);
        self.added.fetch_add(1, Ordering::Relaxed);
        added
    }
}

/// Writes records that replace each other and waits until compaction has removed some; returns how many are left.
fn leave_gaps(broker: &Broker, topic: &str, partitions: i32) -> u64 {
    const VERSIONS: i32 = 10;
    let write = |version: i32| {
        let document = |partition: i32| {
            let value = serde_json::json!({ "id": version, "text": "Chào Huế." }).to_string();
            Message::new(value).key("replaced").partition(partition)
        };
        broker.produce(topic, (0..partitions).map(document));
    };
    (0..VERSIONS).for_each(write);
    // A segment may be compacted when a later record has opened the next: these have keys of their own and stay.
    let mut later = 0;
    wait_until("compaction", || {
        let document = |partition: i32| Message::new("{}").key(format!("later-{later}")).partition(partition);
        broker.produce(topic, (0..partitions).map(document));
        later += 1;
        broker.read_committed_to_end(topic).len() == (later + 1) * partitions as usize
    });
    ((later + 1) * partitions as usize) as u64
}
