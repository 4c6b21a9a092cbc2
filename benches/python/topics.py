"""The Python tagger from topic to topic, exactly once: outputs and offsets in one transaction for every poll."""

import json
import sys
import time
import uuid

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

PARTITIONS = 4
PATIENCE = 60


def run(tagger, documents: list[bytes], bootstrap: str, poll: int) -> tuple[int, float, float]:
    """Documents, seconds and processor seconds, from the end of the first transaction to that of the last but one, as
    `vitag bench kafka` counts."""
    name = f"peer-{uuid.uuid4()}"
    source, target = f"{name}.in", f"{name}.out"
    brokers = {"bootstrap.servers": bootstrap}
    admin = AdminClient(brokers)
    finish(admin.create_topics([NewTopic(topic, PARTITIONS) for topic in (source, target)]))
    try:
        feed(brokers, source, documents)
        moments = consume(tagger, brokers, name, (source, target), len(documents), poll)
    finally:
        finish(admin.delete_topics([source, target]))
    if len(moments) < 3:
        sys.exit(f"{len(documents)} documents are {len(moments)} transactions, too few to time: give more")
    first, last = moments[0], moments[-2]
    return tuple(b - a for a, b in zip(first, last))


def finish(futures: dict) -> None:
    for future in futures.values():
        future.result(PATIENCE)


def feed(brokers: dict, topic: str, documents: list[bytes]) -> None:
    producer = Producer({**brokers, "linger.ms": 5})
    for number, document in enumerate(documents):
        producer.produce(topic, document, str(number), partition=number % PARTITIONS)
        producer.poll(0)
    producer.flush(PATIENCE)


def consume(tagger, brokers: dict, name: str, topics: tuple[str, str], count: int, poll: int) -> list[tuple]:
    source, target = topics
    settings = {"group.id": name, "auto.offset.reset": "earliest", "enable.auto.commit": False}
    consumer = Consumer({**brokers, **settings, "isolation.level": "read_committed"})
    producer = Producer({**brokers, "transactional.id": name, "linger.ms": 5, "compression.type": "lz4"})
    producer.init_transactions(PATIENCE)
    consumer.subscribe([source])
    moments, done = [], 0
    while done < count:
        messages = consumer.consume(poll, timeout=0.2)
        for message in messages:
            if message.error():
                raise RuntimeError(message.error())
        if not messages:
            continue
        producer.begin_transaction()
        annotations = tagger.tag([json.loads(message.value()) for message in messages])
        for message, annotation in zip(messages, annotations, strict=True):
            producer.produce(target, json.dumps(annotation, ensure_ascii=False).encode(), message.key())
            producer.poll(0)
        offsets = consumer.position(consumer.assignment())
        producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata())
        producer.commit_transaction(PATIENCE)
        done += len(messages)
        moments.append((done, time.perf_counter(), time.process_time()))
    consumer.close()
    return moments
