//! What a bench found, for programs and for people.

use std::path::PathBuf;

use comfy_table::{Table, presets};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::figure::Figure;
use super::latency::LatencyReport;
use super::machine::Machine;
use super::mix::Mix;
use super::options::BenchOptions;
use super::run::{Ratio, StageReport};
use super::search::Trial;
use super::subject::Subject;

/// Version of the form of the report.
const SCHEMA_VERSION: u32 = 1;

/// All that a bench found, and what it takes to understand it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// 1.
    pub schema_version: u32,
    /// The command.
    pub command: String,
    /// When it began.
    pub date: String,
    /// Timed runs of every stage.
    pub repeats: usize,
    /// The machine.
    pub machine: Machine,
    /// The model.
    pub model: BenchedModel,
    /// The documents.
    pub documents: Documents,
    /// How the worker was set.
    pub tuning: Tuning,
    /// The stages that have a throughput.
    pub stages: Vec<StageReport>,
    /// Each of these beside the ceiling, if that is one of them.
    pub ratios: Vec<Ratio>,
    /// What documents wait at a given rate.
    pub latency: Option<LatencyReport>,
    /// The search for settings.
    pub search: Option<SearchReport>,
}

/// The model of a bench.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BenchedModel {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of its manifest.
    pub sha256: String,
    /// Which of its graphs.
    pub variant: String,
    /// Where it ran.
    pub device: String,
}

/// The documents of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Documents {
    /// How long they are.
    pub mix: Mix,
    /// What they were cut from, if not from the articles of the demo.
    pub text: Option<PathBuf>,
    /// How many.
    pub count: usize,
    /// Sequences that the model reads of them.
    pub sequences: usize,
    /// Tokens in these.
    pub tokens: usize,
    /// Tokens of the longest sequence.
    pub longest_tokens: usize,
}

/// The settings that decide the speed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tuning {
    /// Lanes.
    pub lanes: usize,
    /// Threads of one.
    pub threads: usize,
    /// Threads that decode and tokenise.
    pub tokenize_threads: usize,
    /// `batch.max_tokens`.
    pub max_tokens: usize,
    /// `batch.max_sequences`.
    pub max_sequences: usize,
    /// `batch.max_padding`.
    pub max_padding: f64,
    /// `batch.sort_window_tokens`.
    pub sort_window_tokens: usize,
    /// `batch.max_wait_ms`.
    pub max_wait_ms: u64,
}

/// What a search tried and where its outcome is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchReport {
    /// The candidates, in the order in which they were tried.
    pub trials: Vec<Trial>,
    /// The file of settings that was written.
    pub file: PathBuf,
}

impl Report {
    /// A report in which no stage has been run.
    pub fn new(machine: Machine, subject: &Subject, options: &BenchOptions) -> Self {
        let (version, settings) = (&subject.version, &subject.settings);
        let manifest = &version.model().dir.manifest;
        let lengths = || subject.windows().map(|window| window.ids.len());
        Self {
            schema_version: SCHEMA_VERSION,
            command: options.command.clone(),
            date: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            repeats: options.repeats,
            machine,
            model: BenchedModel {
                name: manifest.name.clone(),
                version: manifest.version.clone(),
                sha256: version.model().dir.sha256.clone(),
                variant: version.model().variant.to_string(),
                device: version.session(0).device().to_string(),
            },
            documents: Documents {
                mix: options.mix,
                text: options.text.clone(),
                count: subject.documents.len(),
                sequences: lengths().count(),
                tokens: lengths().sum(),
                longest_tokens: lengths().max().unwrap_or_default(),
            },
            tuning: Tuning {
                lanes: version.sessions(),
                threads: settings.lanes.threads,
                tokenize_threads: settings.lanes.tokenize_threads,
                max_tokens: settings.batch.max_tokens,
                max_sequences: settings.batch.max_sequences,
                max_padding: settings.batch.max_padding,
                sort_window_tokens: settings.batch.sort_window_tokens,
                max_wait_ms: settings.batch.max_wait_ms,
            },
            stages: Vec::new(),
            ratios: Vec::new(),
            latency: None,
            search: None,
        }
    }

    /// What was measured, when and on what: a few lines.
    pub fn about(&self) -> String {
        let Self { command, date, repeats, machine, model, documents, tuning, .. } = self;
        let cpu = machine.cpu.as_deref().unwrap_or("unknown processor");
        let memory =
            machine.memory_bytes.map_or("?".to_owned(), |bytes| format!("{:.0}", bytes as f64 / f64::from(1 << 30)));
        let load = machine.load_before.map_or("?".to_owned(), |load| format!("{load:.2}"));
        let text = documents.text.as_ref().map_or("the demo's articles".to_owned(), |text| text.display().to_string());
        format!(
            "{command}\n{date}; {cpu}, {} cores, {memory} GiB, {}, load {load} before; runs: {repeats}\n\
             model {} {} {} on {}, sha256 {}\n\
             {} documents ({:?}, of {text}): {} sequences, {:.1} tokens each, the longest {}\n\
             {} lanes of {} threads, {} for tokenising; batches of {} tokens, {} sequences, window {}, wait {} ms\n",
            machine.cores,
            machine.system,
            model.name,
            model.version,
            model.variant,
            model.device,
            model.sha256,
            documents.count,
            documents.mix,
            documents.sequences,
            documents.tokens as f64 / documents.sequences.max(1) as f64,
            documents.longest_tokens,
            tuning.lanes,
            tuning.threads,
            tuning.tokenize_threads,
            tuning.max_tokens,
            tuning.max_sequences,
            tuning.sort_window_tokens,
            tuning.max_wait_ms,
        )
    }

    /// All of it as text: what was measured, and a table in Markdown.
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_header(["measured", "median", "least", "most"]);
        table.add_rows(self.rows());
        format!("{}\n{table}\n", self.about())
    }

    fn rows(&self) -> Vec<[String; 4]> {
        let stages = self.stages.iter().flat_map(stage_rows);
        let ratios = self.ratios.iter().flat_map(|ratio| {
            let name = format!("{} / {}", ratio.of, ratio.to);
            [row(&name, &ratio.of_time, 3), row(&format!("{name}, by processor time"), &ratio.of_cpu_time, 3)]
        });
        stages.chain(ratios).chain(self.latency.iter().flat_map(latency_rows)).chain(self.search_rows()).collect()
    }

    fn search_rows(&self) -> Vec<[String; 4]> {
        let trials = self.search.iter().flat_map(|search| &search.trials);
        let of = |trial: &Trial| {
            let name = if trial.chosen { format!("{} (chosen)", trial.settings) } else { trial.settings.clone() };
            let rate = trial.documents_per_second.iter().map(|figure| row(&format!("{name}: documents/s"), figure, 0));
            rate.chain(trial.p99_ms.iter().map(|figure| row(&format!("{name}: 99th percentile, ms"), figure, 1)))
                .collect::<Vec<_>>()
        };
        trials.flat_map(of).collect()
    }
}

fn stage_rows(stage: &StageReport) -> Vec<[String; 4]> {
    let note = if stage.note.is_empty() { String::new() } else { format!(" ({})", stage.note) };
    let mut rows = vec![
        row(&format!("{}{note}: documents/s", stage.stage), &stage.documents_per_second, 0),
        row(&format!("{}: documents/CPU s", stage.stage), &stage.documents_per_cpu_second, 0),
    ];
    let more = [
        ("tokens/s", &stage.tokens_per_second, 0),
        ("padded share of attention", &stage.padded_share, 3),
        ("share of time in the model", &stage.lanes_busy_share, 3),
    ];
    let present = more.into_iter().filter_map(|(what, figure, digits)| Some((what, figure.as_ref()?, digits)));
    rows.extend(present.map(|(what, figure, digits)| row(&format!("{}: {what}", stage.stage), figure, digits)));
    rows
}

fn latency_rows(latency: &LatencyReport) -> Vec<[String; 4]> {
    let load = latency.load.map_or(String::new(), |load| format!(", {:.0} % load", load * 100.0));
    let name = |what: &str| format!("latency at {:.0} documents/s{load}: {what}, ms", latency.rate);
    vec![
        row(&name("median"), &latency.median_ms, 1),
        row(&name("99th percentile"), &latency.p99_ms, 1),
        row(&name("99.9th percentile"), &latency.p999_ms, 1),
        row("max_wait_ms and two batches, ms", &Figure::of([latency.max_wait_ms as f64 + 2.0 * latency.batch_ms]), 1),
    ]
}

fn row(name: &str, figure: &Figure, digits: usize) -> [String; 4] {
    let shown = |value: f64| format!("{value:.digits$}");
    [name.to_owned(), shown(figure.median), shown(figure.least), shown(figure.most)]
}
