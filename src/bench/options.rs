//! What is measured, and how often.

use std::path::PathBuf;

use clap::ValueEnum;

use super::mix::Mix;

/// A stage of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// The model's graph in a bare loop with the inputs ready, in the best batch shape, on every lane.
    Ceiling,
    /// File to file, through the stages of the worker.
    Pipeline,
    /// Topic to topic exactly once, on the broker of kafka.bootstrap_servers, with topics made for it.
    Kafka,
    /// Documents that arrive at a given rate, ready or not; the time from when each should have arrived.
    Latency,
    /// Finds lanes, threads, token budget, window and delay for this machine and model, and writes them as settings.
    Search,
}

impl Stage {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Ceiling => "ceiling",
            Stage::Pipeline => "pipeline",
            Stage::Kafka => "kafka",
            Stage::Latency => "latency",
            Stage::Search => "search",
        }
    }
}

/// How much is done in one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// So many documents.
    Documents(usize),
    /// As many as the bare model takes in so many seconds.
    Seconds(f64),
}

/// How fast documents arrive in [`Stage::Latency`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// Documents a second.
    Rate(f64),
    /// Share of what the bare model can.
    Load(f64),
}

/// A bench.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchOptions {
    /// The stages, each once.
    pub stages: Vec<Stage>,
    /// How long the documents are.
    pub mix: Mix,
    /// What they are cut from; the articles of the demo if `None`.
    pub text: Option<PathBuf>,
    /// How much is done in one run.
    pub size: Size,
    /// Timed runs of every stage, after one that is not.
    pub repeats: usize,
    /// How fast documents arrive in [`Stage::Latency`].
    pub arrivals: Arrivals,
    /// Partitions of the topics of [`Stage::Kafka`], and of what arrives in [`Stage::Latency`].
    pub partitions: i32,
    /// Where [`Stage::Search`] writes the settings.
    pub tuned: PathBuf,
    /// Where the documents are written, if anywhere: for whoever measures something else on them.
    pub save_documents: Option<PathBuf>,
    /// The command, for the report.
    pub command: String,
}
