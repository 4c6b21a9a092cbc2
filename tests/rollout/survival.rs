//! A control topic that comes late, is made anew, or selects; a store that fails for a time; workers that are killed.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;

use crate::common::broker::Broker;
use crate::common::worker::wait_until;
use crate::fleet::{Fleet, desired, target, target_at};
use crate::{model, versions};

fn delete(broker: &Broker, topic: &str) {
    let admin: AdminClient<DefaultClientContext> = broker.client().create().expect("an admin client");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let results = runtime.block_on(admin.delete_topics(&[topic], &AdminOptions::new()));
    results.expect("the broker answers").into_iter().for_each(|result| drop(result.expect("the topic is deleted")));
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
    wait_until("the topic to be gone", || {
        let admin: AdminClient<DefaultClientContext> = fleet.stream.broker.client().create().expect("an admin client");
        let metadata = admin.inner().fetch_metadata(None, std::time::Duration::from_secs(5)).expect("metadata");
        !metadata.topics().iter().any(|topic| topic.name() == fleet.control())
    });
    fleet.stream.broker.create_topic_with(&fleet.control(), 1, &[("cleanup.policy", "compact")]);
    fleet.desire(&desired(6, &target(&model::original())));
    fleet.wait_for(&["a"], 6, "ready");
    fleet.stream.assert_exactly_once(20);
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

/// A store over HTTP that answers the first requests with an error.
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
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(request)) = lines.next() else { return };
    lines.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
    let name = request.split(' ').nth(1).unwrap().rsplit('/').next().unwrap().to_owned();
    log.lock().unwrap().push(request);
    let (status, body) = match std::fs::read(dir.join(name)) {
        _ if failing => ("503 Service Unavailable", Vec::new()),
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let date = "Tue, 24 Nov 2026 08:00:00 GMT";
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nLast-Modified: {date}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // The worker may have hung up.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

#[test]
fn a_store_that_fails_for_a_time_is_asked_again() {
    let contrary = versions::contrary("0.2.0");
    let (uri, asked) = store(contrary.path().to_owned(), 3);
    let fleet = Fleet::new(Broker::shared(), 1);
    let worker = fleet.worker("a", &[], &[]);
    fleet.wait_for(&["a"], 0, "ready");
    let at_store = target_at(contrary.path(), &format!("{uri}/models/0.2.0"));
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
fn killed_workers_come_up_on_what_is_in_force() {
    let contrary = versions::contrary("0.2.0");
    let dirs = [model::original(), contrary.path().to_owned()];
    let fleet = Fleet::new(Broker::shared(), 3);
    let names = ["a", "b", "c"];
    let mut workers: Vec<_> = names.iter().map(|name| fleet.worker(name, &[], &[])).collect();
    fleet.wait_for(&names, 0, "ready");
    for generation in 1..=4_u32 {
        fleet.stream.feed((generation - 1) * 200..generation * 200);
        fleet.desire(&desired(generation.into(), &target(&dirs[generation as usize % 2])));
        // In the middle of it, whichever step that is.
        let victim = generation as usize % 3;
        workers.remove(victim).kill();
        workers.insert(victim, fleet.worker(names[victim], &[], &[]));
        fleet.wait_for(&names, generation.into(), "ready");
    }
    fleet.stream.assert_exactly_once(800);
    let records = fleet.stream.broker.read_committed_to_end(&fleet.stream.output);
    crate::swaps::check_tags(&records, &dirs);
}
