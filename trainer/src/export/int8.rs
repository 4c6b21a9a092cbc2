//! The graph in int8: written, compared with f32 on the development data, and refused where it loses too much.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Result, ensure};
use vitag::infer::{InferOptions, Logits, Runtime, Session};
use vitag::manifest::{Manifest, ModelDir, Variant};
use vitag::registry::Model;

use super::{Cases, write_golden, write_graph};
use crate::data::{self, Example};
use crate::evaluate;
use crate::run::Run;

/// Greatest difference of a golden logit from that of another processor: a rounding that tips the other way moves an
/// activation by one step.
const TOLERANCE: f32 = 0.05;

/// Whether int8 is good enough.
#[derive(Clone, Copy, Debug)]
pub struct Int8<'a> {
    /// The folder of the corpora.
    pub data: &'a Path,
    /// How much less the development score of a head may be than in f32, of 1.
    pub max_loss: f64,
}

/// How a head does in int8, on its development data.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// The head.
    pub head: String,
    /// Share of the units whose greatest logit is the same in both.
    pub argmax: f64,
    /// F1 of the spans in f32.
    pub f32_score: f64,
    /// F1 of the spans in int8.
    pub int8_score: f64,
}

impl Int8<'_> {
    /// Writes graph and golden answers into `dir`, which holds the graph in f32.
    pub(super) fn write(&self, run: &Run, manifest: &Manifest, cases: &Cases, dir: &Path) -> Result<Vec<Agreement>> {
        write_graph(run, Variant::Int8, dir)?;
        let runtime = Runtime::load(None)?;
        let session = |variant| -> Result<Session> {
            let path = ModelDir { path: dir.to_owned(), manifest: manifest.clone(), sha256: String::new() };
            let (tokenizer, labels) = (run.tokenizer.clone(), run.labels.clone());
            let model = Model { dir: path, tokenizer, labels, variant };
            Ok(model.unproven_sessions(&runtime, &InferOptions::default(), 1)?.remove(0))
        };
        let (mut exact, mut quantized) = (session(Variant::F32)?, session(Variant::Int8)?);
        let mut agreement = Vec::new();
        for head in 0..run.labels.len() {
            agreement.push(self.compare(run, head, &mut exact, &mut quantized)?);
        }
        for Agreement { head, f32_score, int8_score, .. } in &agreement {
            let loss = f32_score - int8_score;
            ensure!(
                loss <= self.max_loss,
                "int8 costs head {head:?} {:.2} points of its development score, --max-int8-loss allows {:.2}",
                loss * 100.0,
                self.max_loss * 100.0
            );
        }
        let answers = answers(&mut quantized, &cases.examples)?;
        write_golden(dir, Variant::Int8, &cases.golden(run, TOLERANCE, |head| of_head(&answers, head)))?;
        Ok(agreement)
    }

    fn compare(&self, run: &Run, head: usize, exact: &mut Session, quantized: &mut Session) -> Result<Agreement> {
        let (task, labels) = (&run.config.tasks[head], &run.labels[head]);
        let mut examples = Vec::new();
        for corpus in data::train_and_dev(self.data, task, run.config.seed)?.1 {
            examples.extend(corpus.examples(&run.tokenizer, labels)?);
        }
        let exact = of_head(&answers(exact, &examples)?, head);
        let quantized = of_head(&answers(quantized, &examples)?, head);
        let score = |logits: &[Vec<Vec<f32>>]| {
            let paths = evaluate::best(labels, &examples, logits);
            evaluate::score(task.kind, labels, &examples, &paths).spans.f1
        };
        let rows = |logits: &[Vec<Vec<f32>>]| -> Vec<usize> {
            let windows = logits.iter().flatten();
            windows.flat_map(|window| window.chunks_exact(labels.count()).map(argmax)).collect()
        };
        let (a, b) = (rows(&exact), rows(&quantized));
        let same = a.iter().zip(&b).filter(|(a, b)| a == b).count();
        Ok(Agreement {
            head: task.name.clone(),
            argmax: same as f64 / a.len().max(1) as f64,
            f32_score: score(&exact),
            int8_score: score(&quantized),
        })
    }
}

fn answers(session: &mut Session, examples: &[Example]) -> Result<Vec<Vec<Logits>>> {
    evaluate::by_window(examples, |windows| Ok(session.run(windows)?))
}

fn of_head(answers: &[Vec<Logits>], head: usize) -> Vec<Vec<Vec<f32>>> {
    answers.iter().map(|windows| windows.iter().map(|logits| logits[head].clone()).collect()).collect()
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0)
}

/// The comparison as a table in Markdown, in percent.
pub fn agreement_table(agreement: &[Agreement]) -> String {
    let mut out = String::from("| head | same label | F1 in f32 | F1 in int8 |\n|---|---:|---:|---:|\n");
    for Agreement { head, argmax, f32_score, int8_score } in agreement {
        let [argmax, exact, quantized] = [argmax, f32_score, int8_score].map(|share| share * 100.0);
        writeln!(out, "| {head} | {argmax:.2} | {exact:.2} | {quantized:.2} |").expect("writing to a string");
    }
    out
}
