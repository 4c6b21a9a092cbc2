//! Exports against a collector that is there, busy, slow or away.

#![cfg(feature = "worker")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use vitag::record::{Gauge, Original, Partition, Position, Record};
use vitag::telemetry::{ExportOptions, Outcome, RecordSpan, RecordTracer, Telemetry};

/// Longest wait for a condition, far above what any takes.
const PATIENCE: Duration = Duration::from_secs(30);

struct Request {
    path: String,
    content_type: String,
    body: Vec<u8>,
}

impl Request {
    fn contains(&self, text: &str) -> bool {
        self.body.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

/// A collector on a free port that answers its n-th request with the n-th status, and then always the last.
fn collector(statuses: &'static [&'static str]) -> (String, Receiver<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (requests, received) = channel();
    thread::spawn(move || {
        for (turn, connection) in listener.incoming().enumerate() {
            answer(connection.unwrap(), statuses[turn.min(statuses.len() - 1)], &requests);
        }
    });
    (endpoint, received)
}

fn answer(connection: TcpStream, status: &str, requests: &Sender<Request>) {
    let mut reader = BufReader::new(connection);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let header = |name: &str| {
        let found =
            lines.iter().find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)));
        found.map_or_else(String::new, |(_, value)| value.to_owned())
    };
    let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    reader.get_mut().write_all(head.as_bytes()).unwrap();
    let _ = requests.send(Request { path, content_type: header("content-type"), body });
}

fn options(endpoint: &str) -> ExportOptions {
    ExportOptions {
        otlp_endpoint: Some(endpoint.to_owned()),
        timeout: Duration::from_secs(5),
        metrics_interval: Duration::from_millis(100),
        trace_sample_ratio: 1.0,
        service_name: "vitag-test".into(),
        instance: "worker-7".into(),
    }
}

fn trace_a_record(tracer: &RecordTracer) {
    let original = Original {
        key: None,
        value: Some("text".into()),
        headers: Vec::new(),
        timestamp_ms: None,
        received: Instant::now(),
        held: Gauge::default().hold(4, 0),
    };
    let partition = Partition { topic: "in".into(), id: 0 };
    let position = Position { partition, offset: 0, epoch: 0, slot: 0 };
    let record = Record { position, original: Arc::new(original), payload: () };
    RecordSpan::start(tracer, &record).finish(Outcome::Output);
}

fn receive(requests: &Receiver<Request>, path: &str) -> Request {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = requests.recv_timeout(deadline.saturating_duration_since(Instant::now())).expect(path);
        if request.path == path {
            return request;
        }
    }
}

#[test]
fn metrics_and_spans_arrive_as_protobuf() {
    let (endpoint, requests) = collector(&["200 OK"]);
    let telemetry = Telemetry::new(&options(&endpoint)).unwrap();
    telemetry.metrics().transaction_aborted();
    trace_a_record(&telemetry.tracer("group"));
    for (path, name) in [("/v1/metrics", "vitag.transactions.aborted"), ("/v1/traces", "process in")] {
        let request = receive(&requests, path);
        assert_eq!(request.content_type, "application/x-protobuf");
        for text in [name, "vitag-test", "worker-7"] {
            assert!(request.contains(text), "{text} is missing on {path}");
        }
    }
    telemetry.shutdown(PATIENCE);
}

#[test]
fn what_is_queued_is_sent_at_shutdown() {
    let (endpoint, requests) = collector(&["200 OK"]);
    let patient = ExportOptions { metrics_interval: Duration::from_secs(3600), ..options(&endpoint) };
    let telemetry = Telemetry::new(&patient).unwrap();
    telemetry.metrics().transaction_aborted();
    trace_a_record(&telemetry.tracer("group"));
    telemetry.shutdown(PATIENCE);
    let mut paths: Vec<_> = requests.try_iter().map(|request| request.path).collect();
    paths.sort();
    assert_eq!(paths, ["/v1/metrics", "/v1/traces"]);
}

#[test]
fn a_busy_collector_is_asked_again() {
    let (endpoint, requests) = collector(&["503 Service Unavailable", "200 OK"]);
    let rarely = ExportOptions { metrics_interval: Duration::from_secs(3600), ..options(&endpoint) };
    let telemetry = Telemetry::new(&rarely).unwrap();
    trace_a_record(&telemetry.tracer("group"));
    let (refused, taken) = (receive(&requests, "/v1/traces"), receive(&requests, "/v1/traces"));
    assert_eq!(refused.body, taken.body);
}

#[test]
fn a_collector_that_never_answers_delays_neither_records_nor_the_shutdown() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let slow = ExportOptions { timeout: Duration::from_secs(600), ..options(&endpoint) };
    let start = Instant::now();
    let telemetry = Telemetry::new(&slow).unwrap();
    let (metrics, tracer) = (telemetry.metrics(), telemetry.tracer("group"));
    // More than the queue of spans holds.
    for _ in 0..10_000 {
        trace_a_record(&tracer);
        metrics.transaction_aborted();
    }
    telemetry.shutdown(Duration::from_millis(200));
    assert!(start.elapsed() < PATIENCE, "took {:?}", start.elapsed());
}

#[test]
fn a_collector_that_is_away_delays_neither_the_start_nor_the_shutdown() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let slow = ExportOptions { timeout: Duration::from_secs(600), ..options(&format!("http://{gone}")) };
    let start = Instant::now();
    let telemetry = Telemetry::new(&slow).unwrap();
    telemetry.metrics().transaction_aborted();
    trace_a_record(&telemetry.tracer("group"));
    telemetry.shutdown(Duration::from_millis(200));
    assert!(start.elapsed() < PATIENCE, "took {:?}", start.elapsed());
}
