//! A worker between topics of a real broker: what comes out, and in what order.

#![cfg(feature = "worker")]

mod common;

use common::broker::{Broker, Message, Received};
use common::worker::{SOON, Stream, id, json};

fn document(text: &str) -> String {
    serde_json::json!({ "id": "a", "text": text }).to_string()
}

#[test]
fn a_document_comes_out_with_its_words_and_where_it_stood() {
    let stream = Stream::new(Broker::shared(), 1);
    let text = "Bác sĩ Tôn Thất Tùng sinh tại Thanh Hóa.";
    stream.broker.produce(&stream.input, [Message::new(document(text)).timestamp(1_700_000_000_123)]);
    let _worker = stream.worker("a", &[]);
    let annotation = json(&stream.outputs(1)[0]);
    assert_eq!(annotation["text"], text);
    assert_eq!(annotation["id"], "a");
    assert_eq!(annotation["source"]["topic"], stream.input.as_str());
    assert_eq!(annotation["source"]["offset"], 0);
    assert_eq!(annotation["source"]["timestamp"], 1_700_000_000_123_i64);
    assert_eq!(annotation["models"][0]["name"], "vi-tagger");
    let tokens = annotation["tokens"].as_array().unwrap();
    let words: Vec<&str> = tokens.iter().map(|token| token["text"].as_str().unwrap()).collect();
    assert_eq!(words.join(" "), "Bác sĩ Tôn Thất Tùng sinh tại Thanh Hóa .");
}

#[test]
fn key_headers_and_timestamp_pass_through() {
    let stream = Stream::new(Broker::shared(), 1);
    let message = Message::new(document("Chào Huế."))
        .key([0xff, 0x00])
        .header("a", "1")
        .header("a", [0xfe])
        .null_header("b")
        .header("c", "")
        .timestamp(1_700_000_000_456);
    stream.broker.produce(&stream.input, [message]);
    let _worker = stream.worker("a", &[]);
    let output = &stream.outputs(1)[0];
    assert_eq!(output.key.as_deref(), Some(&[0xff, 0x00][..]));
    assert_eq!(output.timestamp, Some(1_700_000_000_456));
    let header = |key: &str, value: Option<&[u8]>| (key.to_owned(), value.map(<[u8]>::to_vec));
    let expected = [header("a", Some(b"1")), header("a", Some(b"\xfe")), header("b", None), header("c", Some(b""))];
    assert_eq!(output.headers, expected);
}

#[test]
fn a_tombstone_passes_in_its_turn() {
    let stream = Stream::new(Broker::shared(), 1);
    let messages =
        [Message::new(document("Một.")).key("k"), Message::tombstone("k"), Message::new(document("Hai.")).key("k")];
    stream.broker.produce(&stream.input, messages);
    let _worker = stream.worker("a", &[]);
    let outputs = stream.outputs(3);
    assert!(outputs[0].value.is_some() && outputs[1].value.is_none() && outputs[2].value.is_some());
    assert!(outputs.iter().all(|output| output.key.as_deref() == Some(b"k")));
}

#[test]
fn merge_keeps_the_members_of_the_input_as_they_were_written() {
    let stream = Stream::new(Broker::shared(), 1);
    let input = r#"{"z": 1.10, "big": 123456789012345678901234567890, "text": "Chào Huế.", "nlp": "old", "a": [1e2]}"#;
    stream.broker.produce(&stream.input, [Message::new(input)]);
    let _worker = stream.worker("a", &["output.mode=merge", "output.merge_key=nlp"]);
    let output = stream.outputs(1).remove(0);
    let text = output.text();
    assert!(text.starts_with(r#"{"z":1.10,"big":123456789012345678901234567890,"text":"Chào Huế.","nlp":{"#), "{text}");
    assert!(text.ends_with(r#","a":[1e2]}"#), "{text}");
    assert_eq!(json(&output)["nlp"]["text"], "Chào Huế.");
}

#[test]
fn bad_records_become_dead_letters_and_the_stream_goes_on() {
    let stream = Stream::new(Broker::shared(), 1);
    let long = document(&"à ".repeat(330_000));
    let bad: [(&[u8], &str); 7] = [
        (b"{\"text\": ", "invalid_json"),
        (b"{\"text\": 7}", "wrong_type"),
        (b"{\"text\": \"\xff\"}", "invalid_utf8"),
        (b"{\"text\": \"  \"}", "empty_text"),
        (b"{\"title\": \"x\"}", "missing_field"),
        (b"", "invalid_json"),
        (long.as_bytes(), "text_too_large"),
    ];
    let letters = bad.iter().map(|(value, _)| Message::new(*value).key("bad").header("h", "kept").timestamp(5));
    let good = || [Message::new(document("Chào Huế."))];
    stream.broker.produce(&stream.input, good().into_iter().chain(letters).chain(good()));
    let _worker = stream.worker("a", &[]);
    assert_eq!(stream.outputs(2).len(), 2);
    let dead = stream.broker.read_committed(&stream.dead_letters, bad.len(), SOON);
    for (number, (letter, (value, code))) in dead.iter().zip(bad).enumerate() {
        let text = |name: &str| letter.header(name).map(|value| String::from_utf8(value.to_vec()).unwrap());
        assert_eq!(letter.value.as_deref(), Some(value), "byte for byte");
        assert_eq!((letter.key.as_deref(), letter.timestamp), (Some(&b"bad"[..]), Some(5)));
        assert_eq!(text("h").as_deref(), Some("kept"));
        assert_eq!(text("vitag.error.code").as_deref(), Some(code));
        assert_eq!(text("__connect.errors.topic").as_deref(), Some(stream.input.as_str()));
        assert_eq!(text("__connect.errors.partition").as_deref(), Some("0"));
        assert_eq!(text("__connect.errors.offset"), Some((number + 1).to_string()));
        assert_eq!(text("__connect.errors.stage").as_deref(), Some("decode"));
        assert!(!text("__connect.errors.exception.class.name").unwrap().is_empty());
        assert!(!text("__connect.errors.exception.message").unwrap().is_empty());
    }
    assert_eq!(dead.len(), bad.len());
    stream.wait_until_committed();
}

#[test]
fn what_a_topic_does_not_take_goes_where_it_can() {
    let broker = Broker::shared();
    let stream = Stream::new(broker, 1);
    let output = format!("{}.small", stream.output);
    let dead_letters = format!("{}.tiny", stream.output);
    let small = Stream { output, dead_letters, ..stream };
    broker.create_topic_with(&small.output, 1, &[("max.message.bytes", "4000")]);
    broker.create_topic_with(&small.dead_letters, 1, &[("max.message.bytes", "1000")]);
    let long = document(&"Trời hôm nay đẹp quá. ".repeat(200));
    let documents = [document("Một."), long, document("Hai."), "no JSON ".repeat(1000), document("Ba.")];
    broker.produce(&small.input, documents.map(Message::new));
    let dead_letter_topic = format!("output.dead_letter_topic={}", small.dead_letters);
    let _worker = small.worker("a", &[&dead_letter_topic, "kafka.compression=none"]);
    let texts: Vec<_> = small.outputs(3).iter().map(|output| json(output)["text"].clone()).collect();
    assert_eq!(texts, ["Một.", "Hai.", "Ba."]);
    let dead = broker.read_committed(&small.dead_letters, 2, SOON);
    let text = |letter: &Received, name| String::from_utf8(letter.header(name).unwrap().to_vec()).unwrap();
    let seen: Vec<(String, String)> =
        dead.iter().map(|letter| (text(letter, "__connect.errors.offset"), text(letter, "vitag.error.code"))).collect();
    let expected = [("1", "output_too_large"), ("3", "invalid_json")];
    assert_eq!(seen, expected.map(|(offset, code)| (offset.to_owned(), code.to_owned())));
    assert!(dead.iter().all(|letter| letter.value.is_none()), "neither fits with its value");
    small.wait_until_committed();
}

#[test]
fn order_holds_within_each_partition_with_and_without_keys() {
    let stream = Stream::new(Broker::shared(), 4);
    let mut count = 0_u32;
    let mut next = |partition: i32, key: Option<&str>| {
        // Short and long texts by turns, so that batches end out of order.
        let text = "Trời hôm nay đẹp quá ".repeat(if count.is_multiple_of(3) { 30 } else { 1 });
        let message = Message::new(serde_json::json!({ "id": count, "text": text }).to_string()).partition(partition);
        count += 1;
        key.map_or(message.clone(), |key| message.key(key))
    };
    let messages: Vec<Message> =
        (0..60).flat_map(|_| [next(0, None), next(1, None), next(2, Some("x")), next(3, Some("y"))]).collect();
    stream.broker.produce(&stream.input, messages);
    let _worker = stream.worker("a", &["lanes.count=2", "batch.max_wait_ms=1"]);
    let outputs = stream.outputs(240);
    assert_eq!(outputs.len(), 240);
    let origin = |record: &Received| json(record)["source"]["partition"].as_i64().unwrap();
    for partition in 0..4 {
        let ids: Vec<u32> = outputs.iter().filter(|output| origin(output) == partition).map(id).collect();
        assert_eq!(ids.len(), 60);
        assert!(ids.is_sorted(), "partition {partition} is out of order: {ids:?}");
    }
}

#[test]
fn raw_text_is_read_where_the_settings_say_so() {
    let stream = Stream::new(Broker::shared(), 1);
    stream.broker.produce(&stream.input, [Message::new("Chào Huế.")]);
    let _worker = stream.worker("a", &["input.format=text", "worker.delivery=at_least_once"]);
    let annotation = json(&stream.outputs(1)[0]);
    assert_eq!((annotation["text"].as_str(), annotation["id"].is_null()), (Some("Chào Huế."), true));
    stream.wait_until_committed();
}

#[test]
fn a_trace_runs_through_the_worker() {
    let stream = Stream::new(Broker::shared(), 1);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    stream.broker.produce(&stream.input, [Message::new(document("Chào Huế.")).header("traceparent", parent.as_str())]);
    // Nobody listens there: a collector that is away costs spans, not records.
    let endpoint = "telemetry.otlp_endpoint=http://127.0.0.1:9";
    let _worker = stream.worker("a", &[endpoint, "telemetry.trace_sample_ratio=1"]);
    let output = stream.outputs(1).remove(0);
    let context = String::from_utf8(output.header("traceparent").unwrap().to_vec()).unwrap();
    assert!(context.starts_with(&format!("00-{trace}-")) && context != parent, "{context}");
    assert_eq!(output.headers.iter().filter(|(key, _)| key == "traceparent").count(), 1);
}

#[test]
fn with_a_cache_a_text_that_comes_again_is_tagged_alike_and_passes_by_the_model() {
    let stream = Stream::new(Broker::shared(), 1);
    let worker = stream.worker("a", &["cache.max_bytes=1000000", "admin.address=127.0.0.1:0"]);
    let input = |id: u32| {
        let text = "Bác sĩ Tôn Thất Tùng sinh tại Thanh Hóa. Ông mất ở Hà Nội.";
        Message::new(serde_json::json!({ "id": id, "text": text }).to_string())
    };
    stream.broker.produce(&stream.input, [input(0)]);
    stream.outputs(1);
    let tokens = worker.metric("vitag_tokens_total");
    stream.broker.produce(&stream.input, (1..10).map(input));
    let outputs: Vec<serde_json::Value> = stream.outputs(10).iter().map(json).collect();
    for (n, output) in outputs.iter().enumerate() {
        assert_eq!((&output["id"], &output["source"]["offset"]), (&n.into(), &n.into()));
        for part in ["text", "models", "sentences", "tokens", "entities"] {
            assert_eq!(output[part], outputs[0][part], "{part} of {n}");
        }
    }
    assert_eq!(worker.metric("vitag_tokens_total"), tokens, "the model ran once");
    let page = worker.page("/metrics");
    let lookups = |result: &str| {
        let label = format!("vitag_cache_result=\"{result}\"");
        let line = page.lines().find(|line| line.starts_with("vitag_cache_lookups_total") && line.contains(&label));
        line.and_then(|line| line.rsplit(' ').next()).unwrap_or_default().to_owned()
    };
    assert_eq!((lookups("hit"), lookups("miss")), ("9".into(), "1".into()), "{page}");
}

#[test]
fn health_and_metrics_are_served_while_it_runs() {
    let stream = Stream::new(Broker::shared(), 1);
    stream.feed(0..20);
    let worker = stream.worker("a", &["admin.address=127.0.0.1:0"]);
    stream.outputs(20);
    let get = |page: &str| worker.page(page);
    for page in ["/livez", "/readyz", "/startupz"] {
        assert!(get(page).contains("ok"), "{page}: {}", get(page));
    }
    let of_topic = |line: &str| line.contains(&stream.output) && line.ends_with(" 20");
    common::worker::wait_until("20 published records in the metrics", || {
        get("/metrics").lines().any(|line| line.starts_with("messaging_client_sent_messages_total") && of_topic(line))
    });
    // librdkafka reports every five seconds; all is committed, so nothing lags.
    common::worker::wait_until("a lag of 0", || worker.metric("vitag_consumer_lag") == [0.0]);
}
