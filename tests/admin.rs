//! Probes against a server on a real port.

#![cfg(feature = "worker")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use prometheus::Registry;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use vitag::admin::{self, Health};

/// Longest wait for a condition, far above what any takes.
const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    runtime: Runtime,
    address: SocketAddr,
    task: JoinHandle<std::io::Result<()>>,
    stop: oneshot::Sender<()>,
}

fn serve(health: &Health) -> Server {
    let runtime = Runtime::new().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async move { drop(stopped.await) };
    let serving = admin::serve("127.0.0.1:0", health.clone(), Registry::new(), None, shutdown);
    let (address, task) = runtime.block_on(serving).unwrap();
    Server { runtime, address, task, stop }
}

impl Server {
    fn get(&self, page: &str) -> (u16, Value) {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut answer = agent.get(format!("http://{}{page}", self.address)).call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_json().unwrap())
    }

    fn wait_for(&self, page: &str, status: u16) {
        let deadline = Instant::now() + PATIENCE;
        while self.get(page).0 != status {
            assert!(Instant::now() < deadline, "{page} never answered {status}");
        }
    }
}

#[test]
fn probes_follow_the_worker_through_its_life() {
    let health = Health::new();
    let server = serve(&health);
    let (status, body) = server.get("/startupz");
    assert_eq!(status, 503);
    assert_eq!(
        body,
        json!({ "status": "failing", "checks": [{ "name": "started", "ok": false, "reason": "starting" }] })
    );
    assert_eq!((server.get("/livez").0, server.get("/readyz").0), (200, 503));

    health.set_started();
    assert_eq!((server.get("/startupz").0, server.get("/readyz").0), (200, 503));
    health.set_ready(true, "caught up");
    let (status, body) = server.get("/readyz");
    assert_eq!((status, &body["status"]), (200, &json!("ok")));
    health.set_ready(false, "no partition is assigned");
    let (status, body) = server.get("/readyz");
    assert_eq!((status, &body["checks"][1]["reason"]), (503, &json!("no partition is assigned")));

    health.set_ready(true, "caught up");
    health.set_shutting_down();
    assert_eq!((server.get("/readyz").0, server.get("/livez").0), (503, 200));
}

#[test]
fn a_stalled_component_fails_liveness_until_it_beats_again() {
    let health = Health::new();
    let server = serve(&health);
    let beat = health.register("poll", Duration::from_millis(50));
    server.wait_for("/livez", 503);
    assert_eq!(server.get("/livez").1["checks"][0]["name"], "poll");

    let deadline = Instant::now() + PATIENCE;
    while server.get("/livez").0 != 200 {
        assert!(Instant::now() < deadline, "the beat was not heard");
        beat.beat();
    }
    beat.retire();
    assert_eq!(server.get("/livez").1["checks"], json!([]));
}

#[test]
fn other_pages_answer_in_json_too() {
    let server = serve(&Health::new());
    let (status, index) = server.get("/");
    assert_eq!((status, &index["name"]), (200, &json!("vitag")));
    for page in index["pages"].as_array().unwrap().iter().filter(|&page| page != "/metrics") {
        assert!([200, 503].contains(&server.get(page.as_str().unwrap()).0));
    }
    assert_eq!(server.get("/nowhere"), (404, json!({ "error": "not found" })));
}

#[test]
fn the_server_stops_when_told_to() {
    let Server { runtime, address, task, stop } = serve(&Health::new());
    stop.send(()).unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, task).await }).unwrap().unwrap().unwrap();
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn an_address_in_use_names_the_setting() {
    let server = serve(&Health::new());
    let address = server.address.to_string();
    let again = admin::serve(&address, Health::new(), Registry::new(), None, std::future::pending::<()>());
    let error = server.runtime.block_on(again).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains("admin.address"), "{error}");
}
