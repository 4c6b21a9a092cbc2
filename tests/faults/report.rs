//! The table of faults and outcomes, as Markdown and JSON.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::run::Outcome;

/// What a kind of fault came to, over all runs.
#[derive(Default)]
struct Row {
    injected: u32,
    without_effect: u32,
    /// Runs that it was a part of, and that kept the promise.
    clean: u32,
    broken: u32,
}

/// Writes `report.md` and `report.json` into `folder`, and the logs of the last run if it broke the promise.
pub(crate) fn write(folder: &Path, outcomes: &[Outcome]) {
    fs::create_dir_all(folder).expect("a folder");
    if let Some(last) = outcomes.last().filter(|outcome| !outcome.verdict.is_clean()) {
        let folder = folder.join(format!("seed-{}", last.plan.seed));
        fs::create_dir_all(&folder).expect("a folder");
        for (number, (name, log)) in last.logs.iter().enumerate() {
            fs::write(folder.join(format!("{number}-{name}.log")), log).expect("a log");
        }
    }
    fs::write(folder.join("report.md"), markdown(outcomes)).expect("a report");
    let all: Vec<Value> = outcomes.iter().map(run).collect();
    fs::write(folder.join("report.json"), format!("{:#}", json!(all))).expect("a report");
}

fn rows(outcomes: &[Outcome]) -> BTreeMap<String, Row> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for outcome in outcomes {
        for injected in &outcome.injected {
            let row = rows.entry(injected.fault.kind()).or_default();
            row.injected += 1;
            row.without_effect += u32::from(!injected.took_effect);
            *if outcome.verdict.is_clean() { &mut row.clean } else { &mut row.broken } += 1;
        }
    }
    rows
}

fn markdown(outcomes: &[Outcome]) -> String {
    let mut text =
        String::from("| fault | injected | without effect | promise kept | broken |\n|---|---:|---:|---:|---:|\n");
    for (kind, Row { injected, without_effect, clean, broken }) in rows(outcomes) {
        text += &format!("| {kind} | {injected} | {without_effect} | {clean} | {broken} |\n");
    }
    let sum = |count: fn(&Outcome) -> usize| outcomes.iter().map(count).sum::<usize>();
    text += &format!(
        "\n{} runs, {} SIGKILLs, {} other faults; {} inputs, {} outputs, {} dead letters: {} lost, {} doubled, {} out of \
         order, {} partitions uncommitted, {} transactions open. Workers ended by themselves {} times and were started \
         again.\n",
        outcomes.len(),
        sum(|o| o.kills as usize),
        sum(others),
        sum(|o| o.verdict.inputs),
        sum(|o| o.verdict.outputs),
        sum(|o| o.verdict.dead_letters),
        sum(|o| o.verdict.lost.len()),
        sum(|o| o.verdict.doubled.len()),
        sum(|o| o.verdict.out_of_order.len()),
        sum(|o| o.verdict.uncommitted.len()),
        sum(|o| o.verdict.open.len()),
        sum(|o| o.endings.len()),
    );
    text
}

/// Faults that had an effect and are no SIGKILL.
fn others(outcome: &Outcome) -> usize {
    outcome.injected.iter().filter(|injected| injected.took_effect && !injected.fault.is_kill()).count()
}

fn run(outcome: &Outcome) -> Value {
    let Outcome { plan, injected, kills, endings, verdict, logs: _ } = outcome;
    let faults = injected
        .iter()
        .map(|injected| json!({ "fault": format!("{:?}", injected.fault), "took_effect": injected.took_effect }));
    json!({
        "seed": plan.seed,
        "workers": plan.workers,
        "partitions": plan.partitions,
        "protocol": format!("{:?}", plan.protocol),
        "compacted": plan.compacted,
        "faults": faults.collect::<Vec<_>>(),
        "kills": kills,
        "endings": endings,
        "inputs": verdict.inputs,
        "outputs": verdict.outputs,
        "dead_letters": verdict.dead_letters,
        "versions": verdict.versions,
        "clean": verdict.is_clean(),
    })
}
