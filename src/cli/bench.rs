//! The arguments of `vitag bench`.

use std::path::PathBuf;

use clap::Args;

use super::{Failure, SettingsArgs, print, quiet_logs};
use crate::bench::bench;
use crate::bench::mix::Mix;
use crate::bench::options::{Arrivals, BenchOptions, Size, Stage};

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// What to measure; stages that are given together take turns, and are compared with the ceiling.
    #[arg(value_name = "STAGE", value_enum, required = true)]
    stages: Vec<Stage>,
    /// Timed runs of every stage, after one that warms up.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    repeats: u16,
    /// How long the documents are.
    #[arg(long, value_enum, default_value_t = Mix::Articles)]
    mix: Mix,
    /// What they are cut from: a text file, or a folder of .txt files, in which blank lines separate articles. By
    /// default the articles of the demo.
    #[arg(long, value_name = "PATH")]
    text: Option<PathBuf>,
    /// Documents of a run: as many as the bare model takes in so many seconds.
    #[arg(long, value_name = "S", default_value_t = 5.0, value_parser = positive)]
    seconds: f64,
    /// Documents of a run, by number.
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = clap::value_parser!(u32).range(1..))]
    documents: Option<u32>,
    /// For latency: documents that arrive in a second.
    #[arg(long, value_name = "N", value_parser = positive)]
    rate: Option<f64>,
    /// For latency, without --rate: the rate as a share of what the bare model can.
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, value_parser = positive)]
    load: f64,
    /// For kafka and latency: partitions.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..=1_000))]
    partitions: i32,
    /// For search: the file of settings to write.
    #[arg(long, value_name = "FILE", default_value = "vitag-tuned.toml")]
    tuned: PathBuf,
    /// Write the documents to a file, a JSON object a line with `id`, `text` and the units of its `sentences`, for
    /// whoever measures something else on them.
    #[arg(long, value_name = "FILE")]
    save_documents: Option<PathBuf>,
    /// Directory of the model; overrides the setting model.path.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Print JSON, as `vitag schema bench` describes it.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "expected a number above 0".to_owned())
}

pub(super) fn run(arguments: BenchArgs) -> Result<(), Failure> {
    let mut settings = arguments.settings.load()?;
    if let Some(model) = arguments.model {
        settings.model.serve_only(model);
    }
    quiet_logs(&settings)?;
    let options = BenchOptions {
        stages: arguments.stages,
        mix: arguments.mix,
        text: arguments.text,
        size: arguments.documents.map_or(Size::Seconds(arguments.seconds), |count| Size::Documents(count as usize)),
        repeats: arguments.repeats.into(),
        arrivals: arguments.rate.map_or(Arrivals::Load(arguments.load), Arrivals::Rate),
        partitions: arguments.partitions,
        tuned: arguments.tuned,
        save_documents: arguments.save_documents,
        command: command(),
    };
    let report = bench(&settings, &options, &mut |line| eprintln!("{line}"))?;
    if arguments.json {
        let json = serde_json::to_string_pretty(&report).expect("a report is JSON");
        return print((json + "\n").as_bytes());
    }
    print(report.text().as_bytes())
}

/// The command, without the path of the program and without the values of settings: they may be secrets.
fn command() -> String {
    let hidden = |argument: String| match argument.split_once('=') {
        Some((key, _)) if key.contains("password") => format!("{key}=***"),
        _ => argument,
    };
    std::iter::once("vitag".to_owned()).chain(std::env::args().skip(1).map(hidden)).collect::<Vec<_>>().join(" ")
}
