//! A control topic that comes late, is made anew, is truncated, or selects; a store that fails for a time; workers that are killed.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{Offset, TopicPartitionList};
use vitag::rollout::publish_model;

use crate::common::broker::Broker;
use crate::common::worker::{SOON, wait_until};
use crate::fleet::{Fleet, desired, target, target_at};
use crate::{model, versions};

fn delete(broker: &Broker, topic: &str) {
    let admin: AdminClient<DefaultClientContext> = broker.client().create().expect("an admin client");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let results = runtime.block_on(admin.delete_topics(&[topic], &AdminOptions::new()));
    results.expect("the broker answers").into_iter().for_each(|result| drop(result.expect("the topic is deleted")));
}

fn await_gone(broker: &Broker, topic: &str) {
    let admin: AdminClient<DefaultClientContext> = broker.client().create().expect("an admin client");
    wait_until("the topic to be gone", || {
        let metadata = admin.inner().fetch_metadata(None, SOON).expect("metadata");
        !metadata.topics().iter().any(|other| other.name() == topic)
    });
}

#[test]
fn a_topic_that_is_absent_or_made_anew_is_survived() {
    let contrary = versions::contrary("0.2.0");
    let fleet = Fleet::without_topics(Broker::shared(), 1);
    let worker = fleet.worker("a", &["admin.address=127.0.0.1:0"], &[]);
    fleet.stream.feed(0..10);
    fleet.stream.outputs(10);
    let ready = worker.page("/readyz");
    assert!(ready.contains("the control topic says nothing: serving model.path"), "{ready}");
    fleet.create_topics();
    fleet.desire(&desired(5, &target(contrary.path())));
    fleet.wait_for(&["a"], 5, "ready");
    delete(fleet.stream.broker, &fleet.control());
    // Nothing is taken away with it.
    fleet.stream.feed(10..20);
    let records = fleet.stream.outputs(20);
    assert!(records[records.len() - 1].text().contains("\"0.2.0\""));
    await_gone(fleet.stream.broker, &fleet.control());
    fleet.stream.broker.create_topic_with(&fleet.control(), 1, &[("cleanup.policy", "compact")]);
    fleet.desire(&desired(6, &target(&model::original())));
    fleet.wait_for(&["a"], 6, "ready");
    fleet.stream.assert_exactly_once(20);
}

#[test]
fn a_topic_that_is_truncated_is_survived() {
    let contrary = versions::contrary("0.2.0");
    let fleet = Fleet::new(Broker::shared(), 1);
    // A topic that is compacted and nothing else keeps the broker from it.
    let topic = fleet.control();
    delete(fleet.stream.broker, &topic);
    await_gone(fleet.stream.broker, &topic);
    fleet.stream.broker.create_topic_with(&topic, 1, &[("cleanup.policy", "compact,delete")]);
    let _worker = fleet.worker("a", &[], &[]);
    fleet.desire(&desired(5, &target(contrary.path())));
    fleet.wait_for(&["a"], 5, "ready");
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&topic, 0, Offset::End).unwrap();
    let admin: AdminClient<DefaultClientContext> = fleet.stream.broker.client().create().expect("an admin client");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(admin.delete_records(&before, &AdminOptions::new())).expect("the records are deleted");
    // Who starts now finds nothing; who serves goes on.
    let _late = fleet.worker("b", &[], &[]);
    let status = fleet.wait_for(&["b"], 0, "ready").remove(0);
    assert!(status["reason"].as_str().unwrap().contains("the control topic says nothing"), "{status:#}");
    assert_eq!(fleet.statuses()["a"]["stable"]["version"], "0.2.0");
    fleet.desire(&desired(6, &target(contrary.path())));
    for status in fleet.wait_for(&["a", "b"], 6, "ready") {
        assert_eq!(status["stable"]["version"], "0.2.0");
    }
}

#[test]
fn a_selector_leaves_workers_out() {
    let contrary = versions::contrary("0.2.0");
    let fleet = Fleet::new(Broker::shared(), 2);
    let mut workers = [("a", "rollout.labels=zone=a"), ("b", "rollout.labels=zone=b")]
        .map(|(name, labels)| fleet.worker(name, &[labels], &[]));
    fleet.wait_for(&["a", "b"], 0, "ready");
    let mut message = desired(1, &target(contrary.path()));
    message["selector"] = serde_json::json!({ "zone": "a" });
    message["previous"] = target(&model::original());
    fleet.desire(&message);
    assert_eq!(fleet.wait_for(&["a"], 1, "ready")[0]["stable"]["version"], "0.2.0");
    wait_until("the other to say that it is left out", || {
        let status = &fleet.statuses()["b"];
        assert_eq!(status["stable"]["version"], "0.1.0");
        status["reason"].as_str().is_some_and(|reason| reason.contains("not for these labels"))
    });
    // Who ends in good order says nothing any more.
    workers[1].terminate();
    assert!(workers[1].wait().success());
    assert_eq!(fleet.statuses().keys().collect::<Vec<_>>(), ["a"]);
}

/// A store over HTTP, or of S3, that answers the first requests with an error; the requests as they came.
fn store(dir: PathBuf, failures: u32) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let (left, log) = (AtomicU32::new(failures), asked.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let failing = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
            answer(stream.unwrap(), &dir, failing, &log);
        }
    });
    (format!("http://{address}"), asked)
}

fn answer(mut stream: TcpStream, dir: &std::path::Path, failing: bool, log: &Mutex<Vec<String>>) {
    let lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let request: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let request = request.join("\n");
    let Some(path) = request.split(' ').nth(1) else { return };
    let name = path.rsplit('/').next().unwrap().to_owned();
    log.lock().unwrap().push(request);
    let (status, body) = match std::fs::read(dir.join(name)) {
        _ if failing => ("503 Service Unavailable", Vec::new()),
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let date = "Tue, 24 Nov 2026 08:00:00 GMT";
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nLast-Modified: {date}\r\nETag: \"{}\"\r\nConnection: close\r\n\r\n",
        body.len(),
        body.len()
    );
    // The worker may have hung up.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

#[test]
fn a_store_that_fails_for_a_time_is_asked_again() {
    let contrary = versions::contrary("0.2.0");
    let (address, asked) = store(contrary.path().to_owned(), 3);
    let fleet = Fleet::new(Broker::shared(), 1);
    let worker = fleet.worker("a", &[], &[]);
    fleet.wait_for(&["a"], 0, "ready");
    let at_store = target_at(contrary.path(), &format!("{address}/models/0.2.0"));
    fleet.desire(&desired(1, &at_store));
    let status = fleet.wait_for(&["a"], 1, "ready").remove(0);
    assert_eq!(status["stable"]["version"], "0.2.0");
    assert!(worker.log().contains("trying again"), "{}", worker.log());
    // What is in the cache is not asked for again, by whichever worker.
    let before = asked.lock().unwrap().len();
    let _other = fleet.worker("b", &[], &[]);
    fleet.wait_for(&["b"], 1, "ready");
    assert_eq!(asked.lock().unwrap().len(), before);
}

#[test]
fn a_model_comes_from_a_bucket_as_a_folder_or_as_one_archive() {
    let (folder, packed) = (versions::contrary("0.2.0"), versions::contrary("0.3.0"));
    let archive = folder.path().join("packed.tar.zst");
    let place = format!("file://{}", archive.display());
    publish_model(packed.path(), &place, None).unwrap();
    let (address, asked) = store(folder.path().to_owned(), 0);
    let fleet = Fleet::new(Broker::shared(), 1);
    let s3 = [
        ("AWS_ENDPOINT", address.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "someone"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let _worker = fleet.worker("a", &[], &s3);
    for (generation, model, uri) in [(1, &folder, "s3://models/0.2.0"), (2, &packed, "s3://models/packed.tar.zst")] {
        fleet.desire(&desired(generation, &target_at(model.path(), uri)));
        fleet.wait_for(&["a"], generation, "ready");
    }
    let asked = asked.lock().unwrap();
    for path in ["/models/0.2.0/manifest.json", "/models/0.2.0/model.onnx", "/models/packed.tar.zst"] {
        let request = asked.iter().find(|request| request.starts_with(&format!("GET {path} "))).expect(path);
        assert!(request.contains("authorization: AWS4-HMAC-SHA256 Credential=someone/"), "{request}");
    }
    drop(asked);
    // The same archive over HTTP, by a worker that has nothing in its cache.
    let other = Fleet::new(Broker::shared(), 1);
    let _worker = other.worker("a", &[], &[]);
    other.desire(&desired(1, &target_at(packed.path(), &format!("{address}/packed.tar.zst"))));
    assert_eq!(other.wait_for(&["a"], 1, "ready")[0]["stable"]["version"], "0.3.0");
}

/// Where workers die, beside wherever they are: fail points of rollouts and of the way of a record.
const POINTS: [&str; 8] = [
    "rollout_load",
    "after_poll",
    "after_tokenize",
    "infer",
    "after_begin",
    "after_send_offsets",
    "before_commit",
    "after_commit",
];

#[test]
fn killed_workers_come_up_on_what_is_in_force() {
    let contrary = versions::contrary("0.2.0");
    let dirs = [model::original(), contrary.path().to_owned()];
    let fleet = Fleet::new(Broker::shared(), 3);
    let names = ["a", "b", "c"];
    let mut workers: Vec<_> = names.iter().map(|name| fleet.worker(name, &[], &[])).collect();
    fleet.wait_for(&names, 0, "ready");
    let (mut random, mut fed) = (fastrand::Rng::with_seed(6), 0);
    let mut feed = |count: u32| {
        fleet.stream.feed(fed..fed + count);
        fed += count;
        fed
    };
    for generation in 1..=(crate::swaps::rollouts() / 5).max(4) {
        feed(100);
        fleet.desire(&desired(generation, &target(&dirs[generation as usize % 2])));
        // Once in the middle of it, whichever step that is; once at a point.
        let victim = random.usize(..names.len());
        let (point, nth) = (POINTS[(generation as usize - 1) % POINTS.len()], random.u32(1..=2));
        let nth = if point == "rollout_load" { 1 } else { nth };
        workers.remove(victim).kill();
        let death = format!("{point}:{nth}:{}", random.u32(0..=200));
        let mut dying = fleet.worker(names[victim], &[], &[("VITAG_KILL_AT", &death)]);
        wait_until(&format!("a death at {death}"), || {
            feed(20);
            dying.ending().is_some_and(|status| status.signal() == Some(9))
        });
        workers.insert(victim, fleet.worker(names[victim], &[], &[]));
        fleet.wait_for(&names, generation, "ready");
    }
    fleet.stream.assert_exactly_once(feed(0));
    let records = fleet.stream.broker.read_committed_to_end(&fleet.stream.output);
    crate::swaps::check_tags(&records, &dirs);
}
