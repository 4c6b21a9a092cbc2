//! A message of librdkafka as one of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};

use crate::record::Header;
use crate::source::Message;

/// Copies a message out of librdkafka's buffer, which would otherwise live as long as it.
pub(crate) fn detach(message: &BorrowedMessage<'_>) -> Message {
    Message {
        offset: message.offset(),
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
        headers: headers(message),
        timestamp_ms: message.timestamp().to_millis().filter(|&ms| ms >= 0),
    }
}

/// The headers. rdkafka panics on a key that is not UTF-8, which Kafka does not allow but cannot prevent: such a
/// header is left out rather than stopping the stream.
fn headers(message: &BorrowedMessage<'_>) -> Vec<Header> {
    let Some(headers) = message.headers() else { return Vec::new() };
    let read = |index| {
        let header = headers.get(index);
        (header.key.to_owned(), header.value.map(Bytes::copy_from_slice))
    };
    let readable = (0..headers.count()).filter_map(|index| catch_unwind(AssertUnwindSafe(|| read(index))).ok());
    let readable: Vec<Header> = readable.collect();
    if readable.len() < headers.count() {
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        tracing::warn!(topic, partition, offset, "a header whose key is not UTF-8 was left out");
    }
    readable
}
