//! Jobs over a part of a topic, on a real broker.
#![cfg(feature = "worker")]

#[path = "../common/cli.rs"]
mod cli;
#[path = "../common/mod.rs"]
mod common;

mod files;
mod lives;
mod polite;
mod range;

use std::process::Child;

use cli::{Ended, feed, vitag};
use common::broker::Message;
use common::worker::{QUICK, Stream, id};
use serde_json::{Value, json};

/// The command of a process of the job `june`.
fn command(stream: &Stream<'_>, instance: &str, more: &[&str]) -> std::process::Command {
    let quick = QUICK.into_iter().chain(["telemetry.log_level=info"]).map(str::to_owned);
    let own = stream.settings(instance).into_iter().chain(quick);
    let sets = own.flat_map(|setting| ["--set".to_owned(), setting]);
    let arguments = ["backfill", "--job", "june", "--json"].into_iter().chain(more.iter().copied());
    vitag(arguments.map(str::to_owned).chain(sets))
}

/// Runs a process of the job to its end.
fn backfill(stream: &Stream<'_>, more: &[&str]) -> Ended {
    feed(&mut command(stream, "a", more), "")
}

/// The summary of a run that must have gone well.
#[track_caller]
fn summary(ended: &Ended) -> Value {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}

fn end(child: Child) -> Ended {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn document(id: u32) -> Message {
    Message::new(json!({ "id": id, "text": format!("Số {id} ở Huế.") }).to_string())
}

fn ids(stream: &Stream<'_>) -> Vec<u32> {
    let mut ids: Vec<u32> = stream.broker.read_committed_to_end(&stream.output).iter().map(id).collect();
    ids.sort_unstable();
    ids
}
