//! The test broker itself: what the other tests build on.
#![cfg(feature = "worker")]

mod common;

use std::time::Duration;

use common::broker::{Broker, End, Message};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const TIMEOUT: Duration = Duration::from_secs(20);

#[test]
fn a_record_comes_back_as_it_was_written() {
    let broker = Broker::shared();
    broker.create_topic("as-written", 3);
    let message =
        Message::new("Hà Nội").key("k").header("a", "1").null_header("b").partition(2).timestamp(1_700_000_000_000);
    broker.produce("as-written", [message, Message::tombstone("gone").partition(1)]);

    let mut records = broker.read_committed("as-written", 2, TIMEOUT);
    records.sort_by_key(|record| record.partition);
    let [tombstone, record] = records.as_slice() else { panic!("two records: {records:#?}") };

    assert_eq!((tombstone.partition, tombstone.key.as_deref(), &tombstone.value), (1, Some(&b"gone"[..]), &None));
    assert_eq!((record.partition, record.offset, record.text()), (2, 0, "Hà Nội"));
    assert_eq!(record.key.as_deref(), Some(&b"k"[..]));
    assert_eq!(record.headers, [("a".to_owned(), Some(b"1".to_vec())), ("b".to_owned(), None)]);
    assert_eq!(record.timestamp, Some(1_700_000_000_000));
}

#[test]
fn an_aborted_transaction_is_invisible_to_committed_readers() {
    let broker = Broker::shared();
    broker.create_topic("aborted", 1);
    broker.produce_in_transaction("aborted", [Message::new("kept")], End::Commit);
    broker.produce_in_transaction("aborted", [Message::new("dropped")], End::Abort);
    broker.produce_in_transaction("aborted", [Message::new("kept too")], End::Commit);

    let texts = |records: &[common::broker::Received]| records.iter().map(|r| r.text().to_owned()).collect::<Vec<_>>();
    assert_eq!(texts(&broker.read_committed_to_end("aborted")), ["kept", "kept too"]);
    assert_eq!(texts(&broker.read_uncommitted_to_end("aborted")), ["kept", "dropped", "kept too"]);
}

#[test]
fn an_open_transaction_holds_back_the_last_stable_offset() {
    use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};

    let broker = Broker::shared();
    broker.create_topic("open", 1);
    broker.produce("open", [Message::new("before")]);
    let producer: ThreadedProducer<_> = broker.client().set("transactional.id", "open").create().unwrap();
    producer.init_transactions(TIMEOUT).unwrap();
    producer.begin_transaction().unwrap();
    producer.send(BaseRecord::<(), _>::to("open").payload("pending")).unwrap();
    producer.flush(TIMEOUT).unwrap();

    assert_eq!((broker.last_stable_offset("open", 0), broker.high_watermark("open", 0)), (1, 2));
    producer.commit_transaction(TIMEOUT).unwrap();
    assert_eq!(broker.read_committed("open", 2, TIMEOUT)[1].text(), "pending");
}

#[test]
fn committed_offsets_are_those_of_the_group() {
    let broker = Broker::shared();
    broker.create_topic("offsets", 2);
    let consumer: BaseConsumer = broker.client().set("group.id", "readers").create().unwrap();
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset("offsets", 1, Offset::Offset(7)).unwrap();
    consumer.commit(&offsets, CommitMode::Sync).unwrap();

    assert_eq!(broker.committed("readers", "offsets"), [(1, 7)].into());
    assert_eq!(broker.committed("strangers", "offsets"), [].into());
}

#[test]
fn a_killed_broker_comes_back_with_its_data() {
    let mut broker = Broker::start();
    broker.create_topic_with("kept", 1, &[("cleanup.policy", "compact")]);
    broker.produce_in_transaction("kept", [Message::new("one").key("a")], End::Commit);
    let address = broker.bootstrap();

    broker.kill();
    broker.restart();

    assert_eq!(broker.bootstrap(), address);
    assert_eq!(broker.read_committed("kept", 1, TIMEOUT)[0].text(), "one");
    broker.produce("kept", [Message::new("two").key("a")]);
    assert_eq!(broker.read_committed("kept", 2, TIMEOUT)[1].text(), "two");
}

#[test]
fn a_paused_broker_answers_nothing_until_it_is_resumed() {
    let broker = Broker::start();
    broker.create_topic("slow", 1);
    let consumer: BaseConsumer = broker.client().create().unwrap();
    let ask = || consumer.fetch_metadata(Some("slow"), Duration::from_secs(1));
    assert!(ask().is_ok());

    broker.pause();
    assert!(ask().is_err());
    broker.resume();
    assert!(consumer.fetch_metadata(Some("slow"), TIMEOUT).is_ok());
}
