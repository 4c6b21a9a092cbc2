//! Feeds the input all the while, past the proxy: what it has written is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

/// One record in so many cannot be tagged.
const MALFORMED: u64 = 40;
const WORDS: [&str; 16] = [
    "Huế",
    "mưa",
    "bác sĩ",
    "Hà Nội",
    "đi",
    "học sinh",
    "sông",
    "Đà Nẵng",
    "đẹp",
    "và",
    "ở",
    "nhà",
    "cô Lan",
    "mới",
    "công ty",
    "hôm nay",
];
const AT_ONCE: u64 = 6;
const PAUSE: Duration = Duration::from_millis(100);

/// A thread that writes until it is told to stop.
pub(crate) struct Driver {
    stop: Arc<AtomicBool>,
    partitions: Arc<AtomicI32>,
    thread: JoinHandle<u64>,
}

impl Driver {
    /// Starts to write to `topic`, to each of its partitions in turn.
    pub(crate) fn start(config: &mut ClientConfig, topic: &str, partitions: i32, seed: u64) -> Self {
        config.set("enable.idempotence", "true").set("linger.ms", "5");
        // It must see a new partition before it writes there.
        config.set("topic.metadata.refresh.interval.ms", "500");
        let producer: ThreadedProducer<DefaultProducerContext> = config.create().expect("a producer");
        let (stop, partitions) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI32::new(partitions)));
        let (stopped, count, topic) = (stop.clone(), partitions.clone(), topic.to_owned());
        let thread = thread::spawn(move || {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut fed = 0;
            // The last round is written after the stop, so that every partition ends with a record.
            loop {
                let last = stopped.load(Ordering::Acquire);
                let partitions = count.load(Ordering::Acquire);
                let round = if last { partitions as u64 } else { AT_ONCE };
                for id in fed..fed + round {
                    write(&producer, &topic, (id % partitions as u64) as i32, id, &mut random);
                }
                fed += round;
                if last {
                    producer.flush(Duration::from_secs(60)).expect("the broker takes the records");
                    return fed;
                }
                thread::sleep(PAUSE);
            }
        });
        Self { stop, partitions, thread }
    }

    /// Writes to one more partition from now on.
    pub(crate) fn grow(&self) {
        self.partitions.fetch_add(1, Ordering::AcqRel);
    }

    /// Stops; returns the number of records that it has written.
    pub(crate) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the driver has written all")
    }
}

/// Writes a document with a key of its own, which compaction keeps.
fn write(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    partition: i32,
    id: u64,
    random: &mut fastrand::Rng,
) {
    let words: Vec<&str> = (0..random.usize(3..40)).map(|_| *random.choice(&WORDS).expect("words")).collect();
    let value = match id % MALFORMED {
        7 => format!("{{\"id\": {id}"),
        _ => serde_json::json!({ "id": id, "text": words.join(" ") }).to_string(),
    };
    let key = id.to_string();
    let mut record = BaseRecord::to(topic).partition(partition).key(&key).payload(&value);
    while let Err((error, back)) = producer.send(record) {
        // A new partition is not known at once.
        let passes = [Some(RDKafkaErrorCode::QueueFull), Some(RDKafkaErrorCode::UnknownPartition)];
        assert!(passes.contains(&error.rdkafka_error_code()), "not written: {error}");
        thread::sleep(PAUSE);
        record = back;
    }
}
