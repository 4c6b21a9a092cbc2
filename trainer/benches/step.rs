//! The time of a step of pretraining beside that of a careful one in Python, in turns in one run.
//!
//! `make bench-step`; a Python with torch and transformers can be given with `PYTHON`.

#![expect(clippy::print_stdout, reason = "the table is the output")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use tch::nn::VarStore;
use tch::{Device, Kind};
use vitag::pack::Packed;
use vitag::tokenize::Window;
use vitag_trainer::config::Sizes;
use vitag_trainer::model;
use vitag_trainer::optim::{AdamW, Settings};
use vitag_trainer::pretrain::bert::Bert;
use vitag_trainer::pretrain::corpus::Example;
use vitag_trainer::pretrain::objective::{Inputs, Objective};

const ROUNDS: usize = 7;
/// Every seventh token is masked.
const MASKED: usize = 7;

/// What a step works on.
struct Shape {
    layers: i64,
    hidden: i64,
    heads: i64,
    vocabulary: i64,
    sequences: usize,
    length: usize,
    /// Steps of a round.
    steps: usize,
}

const SHAPES: [Shape; 2] = [
    Shape { layers: 4, hidden: 256, heads: 4, vocabulary: 10_000, sequences: 16, length: 64, steps: 10 },
    Shape { layers: 12, hidden: 384, heads: 12, vocabulary: 21_697, sequences: 8, length: 128, steps: 3 },
];

fn main() {
    tch::set_num_threads(1);
    let mut python = Python::start();
    println!("{} on this machine, one thread, {ROUNDS} rounds in turns", python.version);
    println!("| shape | vitag-trainer, ms | Python, ms | ratio: median (least to most) |");
    println!("|---|---:|---:|---:|");
    for shape in &SHAPES {
        let mut ours = Ours::new(shape);
        python.prepare(shape);
        let (_, _) = (ours.step(2), python.step(2)); // warms up
        let rounds: Vec<(f64, f64)> = (0..ROUNDS).map(|_| (ours.step(shape.steps), python.step(shape.steps))).collect();
        let median = |of: fn(&(f64, f64)) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            (values[0], values[ROUNDS / 2], values[ROUNDS - 1])
        };
        let (least, ratio, most) = median(|(ours, theirs)| ours / theirs);
        let Shape { layers, hidden, sequences, length, .. } = shape;
        println!(
            "| {layers} × {hidden}, {sequences} × {length} tokens | {:.0} | {:.0} | {ratio:.2} ({least:.2} to {most:.2}) |",
            median(|(ours, _)| *ours * 1e3).1,
            median(|(_, theirs)| *theirs * 1e3).1,
        );
    }
}

/// A model with its optimiser and a batch.
struct Ours {
    optimizer: AdamW,
    objective: Bert,
    inputs: Inputs,
    _store: VarStore,
}

impl Ours {
    fn new(shape: &Shape) -> Self {
        let store = VarStore::new(Device::Cpu);
        let sizes = Sizes {
            max_length: shape.length,
            embedding: shape.hidden,
            hidden: shape.hidden,
            layers: shape.layers,
            heads: shape.heads,
            ffn: 4 * shape.hidden,
            norm_epsilon: 1e-12,
        };
        let objective = Bert::new(&store, &sizes, shape.vocabulary, 0.0);
        let settings = Settings { weight_decay: 0.01, epsilon: 1e-6 };
        let optimizer = AdamW::new(model::variables(&store), settings);
        let window = |sequence: usize| {
            let ids =
                (0..shape.length).map(|i| ((sequence * shape.length + i) * 31 % shape.vocabulary as usize) as u32);
            Window { keep: 0..1, units: 0..1, ids: ids.collect(), word_starts: vec![0] }
        };
        let windows: Vec<Window> = (0..shape.sequences).map(window).collect();
        let rows: Vec<i64> = (0..(shape.sequences * shape.length) as i64).step_by(MASKED).collect();
        let originals = rows.iter().map(|row| row * 31 % shape.vocabulary).collect();
        let example = Example { packed: Packed::new(&windows), rows, originals };
        Self { optimizer, objective, inputs: Inputs::new(&example, Device::Cpu, Kind::Float), _store: store }
    }

    /// Seconds a step.
    fn step(&mut self, steps: usize) -> f64 {
        let start = Instant::now();
        for _ in 0..steps {
            let loss = |_| self.objective.loss(&self.inputs, 0).0;
            self.optimizer.descend(1, loss, 1.0, 1e-4).expect("the loss is a number");
        }
        start.elapsed().as_secs_f64() / steps as f64
    }
}

/// `step.py`, asked over its standard input.
struct Python {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    version: String,
}

impl Python {
    fn start() -> Self {
        let program = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/step.py");
        let child = Command::new(&program).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|e| panic!("PYTHON: cannot start {program}: {e}"));
        let questions = child.stdin.take().expect("a pipe");
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut python = Self { child, questions, answers, version: String::new() };
        python.version = python.answer();
        python
    }

    fn prepare(&mut self, shape: &Shape) {
        let Shape { layers, hidden, heads, vocabulary, sequences, length, .. } = shape;
        writeln!(self.questions, "model {layers} {hidden} {heads} {vocabulary} {sequences} {length} {MASKED}")
            .expect("it listens");
        self.answer();
    }

    fn step(&mut self, steps: usize) -> f64 {
        writeln!(self.questions, "step {steps}").expect("it listens");
        self.answer().parse().expect("seconds")
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("a line");
        assert!(!line.is_empty(), "step.py has ended: it needs torch and transformers (see PYTHON)");
        line.trim().to_owned()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}
