//! Exactly once under faults: workers, the broker and the connections between them fail by a plan, and what was
//! committed is compared with what was read.
//!
//! `make faults SEEDS=20` runs the plans of the seeds 1 to 20, `make faults SEEDS=7,12` those two; without it, as in
//! `make test`, a short plan for each protocol of the group runs.

#![cfg(all(feature = "worker", feature = "failpoints"))]

#[path = "../common/mod.rs"]
mod common;
mod driver;
mod fleet;
mod plan;
mod proxy;
mod report;
mod run;
mod stage;
mod verify;

use std::path::Path;
use std::time::Duration;

use plan::{Fault, Plan};
use proxy::{Action, Aim, Api};
use run::{Outcome, run};
use stage::Stage;

const SEEDS: &str = "VITAG_FAULT_SEEDS";

/// The plans that were asked for.
fn plans() -> Vec<Plan> {
    match std::env::var(SEEDS) {
        Err(_) => (1..=3).map(Plan::short).collect(),
        Ok(seeds) => seeds_of(&seeds).into_iter().map(Plan::of).collect(),
    }
}

/// `20` stands for 1 to 20, `7,12` for these, and `7,` for one.
fn seeds_of(text: &str) -> Vec<u64> {
    let number = |part: &str| part.trim().parse().unwrap_or_else(|_| panic!("{SEEDS}: {part:?} is no number"));
    match text.contains(',') {
        true => text.split(',').filter(|part| !part.is_empty()).map(number).collect(),
        false => (1..=number(text)).collect(),
    }
}

#[test]
fn every_record_comes_out_once_and_in_order_whatever_fails() {
    let mut guard = Stage::enter();
    let stage = guard.as_mut().expect("a stage");
    let mut outcomes: Vec<Outcome> = Vec::new();
    for plan in plans() {
        outcomes.push(run(stage, &plan, ""));
        report::write(&Path::new(env!("CARGO_MANIFEST_DIR")).join("target/faults"), &outcomes);
    }
    let broken: Vec<u64> = outcomes.iter().filter(|o| !o.verdict.is_clean()).map(|o| o.plan.seed).collect();
    assert!(broken.is_empty(), "the promise was broken with the seeds {broken:?}");
}

#[test]
fn a_commit_that_the_broker_calls_failed_is_not_repeated_when_it_was_done() {
    let mut guard = Stage::enter();
    let misreport = Fault::Network(Aim { api: Api::EndTxn, action: Action::Misreport });
    let outcome = run(guard.as_mut().expect("a stage"), &Plan::alone(vec![misreport; 3], Duration::from_secs(120)), "");
    assert!(outcome.injected.iter().all(|injected| injected.took_effect));
    assert!(outcome.verdict.is_clean(), "{}", outcome.verdict);
}

#[test]
fn a_commit_that_comes_late_does_not_end_the_next_transaction() {
    let mut guard = Stage::enter();
    let stall = Fault::Network(Aim { api: Api::EndTxn, action: Action::Stall });
    let outcome = run(guard.as_mut().expect("a stage"), &Plan::alone(vec![stall; 3], Duration::from_secs(120)), "");
    assert!(outcome.injected.iter().all(|injected| injected.took_effect));
    assert!(outcome.verdict.is_clean(), "{}", outcome.verdict);
}

/// Runs a committer with a rule switched off, and sees that it is noticed.
fn is_caught(rule: &'static str, faults: Vec<Fault>) -> Outcome {
    let mut guard = Stage::enter();
    // It may never come to the end.
    let plan = Plan::alone(faults, Duration::from_secs(15));
    let outcome = run(guard.as_mut().expect("a stage"), &plan, rule);
    assert!(!outcome.verdict.is_clean(), "nobody noticed {rule}: {}", outcome.verdict);
    outcome
}

#[test]
fn offsets_committed_before_the_outputs_are_caught() {
    let death = Fault::KillAt { point: "after_begin", nth: 3, hold_ms: 0 };
    let outcome = is_caught("outputs_first_rule=return", vec![death; 2]);
    assert!(!outcome.verdict.lost.is_empty(), "{}", outcome.verdict);
}

#[test]
fn a_prefix_with_gaps_is_caught() {
    let death = Fault::KillAt { point: "after_commit", nth: 3, hold_ms: 0 };
    is_caught("prefix_rule=return", vec![death; 2]);
}

#[test]
fn work_of_an_ended_assignment_is_caught() {
    let outcome = is_caught("epoch_rule=return", vec![Fault::Freeze; 3]);
    assert!(!outcome.verdict.doubled.is_empty(), "{}", outcome.verdict);
}
