//! The arguments of `vitag model`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::{Failure, SettingsArgs, print, quiet_logs};
use crate::config::Settings;
use crate::decode::Document;
use crate::encode::OffsetUnit;
use crate::rollout::{
    Agreement, CanaryTarget, Desired, Fleet, Progress, ShadowTarget, Target, publish_desired, publish_model, tag, wait,
};
use crate::serving::Version;
use crate::telemetry::Metrics;
use crate::worker::loader;

#[derive(Debug, Subcommand)]
pub(super) enum Model {
    /// Upload a model, and print what a rollout needs to know of it.
    #[command(after_help = "Examples:\n  \
        vitag model publish models/vi-tagger/0.2.0 --to s3://models/vi-tagger/0.2.0\n  \
        vitag model publish models/vi-tagger/0.2.0 --to file:///srv/models/0.2.0.tar.zst --sign key.pem > target.json")]
    Publish {
        /// Folder of the model.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Where to: a folder, or an archive whose name ends in .tar.zst; file://, s3://, gs://, http:// or https://.
        #[arg(long, value_name = "URI")]
        to: String,
        /// Sign the manifest with this private key: Ed25519, PEM.
        #[arg(long, value_name = "FILE")]
        sign: Option<PathBuf>,
    },
    /// Tell the workers of a slot to serve a version.
    #[command(after_help = "The target is what `vitag model publish` printed.\n\nExamples:\n  \
        vitag model rollout target.json --config vitag.toml --wait\n  \
        vitag model rollout target.json --config vitag.toml --canary 10\n  \
        vitag model publish … | vitag model rollout - --config vitag.toml --shadow 5")]
    Rollout(RolloutArgs),
    /// Serve the canary, or the shadow, alone.
    Promote(ChangeArgs),
    /// Take the canary and the shadow away, or else go back to the version before.
    Rollback(ChangeArgs),
    /// Show what every worker serves.
    #[command(after_help = "With --wait, exit code 1 says that a worker does not serve the generation in force.\n\n\
        Examples:\n  \
        vitag model status --config vitag.toml\n  \
        vitag model status --config vitag.toml --wait --timeout 300 --json")]
    Status(ChangeArgs),
    /// Check a model as a worker would before it serves it: hashes, graph, golden answers.
    Verify {
        /// Folder of the model.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Compare two models: labels, sizes, scores, and tags on a sample.
    Diff {
        /// Folder of the one.
        #[arg(value_name = "A")]
        a: PathBuf,
        /// Folder of the other.
        #[arg(value_name = "B")]
        b: PathBuf,
        /// Texts to tag with both, one a line.
        #[arg(long, value_name = "FILE")]
        sample: Option<PathBuf>,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        settings: SettingsArgs,
    },
}

#[derive(Debug, Args)]
pub(super) struct RolloutArgs {
    /// File with the version, URI and hash of the model; `-` is standard input.
    #[arg(value_name = "TARGET")]
    target: PathBuf,
    /// Serve this percentage of the records by it, and the rest as now.
    #[arg(long, value_name = "PERCENT", conflicts_with = "shadow")]
    canary: Option<f64>,
    /// Only compare it, on this percentage of the records.
    #[arg(long, value_name = "PERCENT")]
    shadow: Option<f64>,
    /// Only on workers with this label; may be repeated.
    #[arg(long = "select", value_name = "NAME=VALUE", value_parser = label)]
    selector: Vec<(String, String)>,
    /// How long a worker tries to fetch it, in seconds.
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<u64>,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, Args)]
pub(super) struct ChangeArgs {
    /// Why, for those who look at it later.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Wait until every worker is through with it.
    #[arg(long)]
    wait: bool,
    /// Longest wait, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) fn run(command: Model) -> Result<(), Failure> {
    match command {
        Model::Publish { dir, to, sign } => {
            let target = publish_model(&dir, &to, sign.as_deref())?;
            print(pretty(&target).as_bytes())
        }
        Model::Rollout(arguments) => rollout(arguments),
        Model::Promote(arguments) => change(arguments, Fleet::promote),
        Model::Rollback(arguments) => change(arguments, Fleet::rollback),
        Model::Status(arguments) => status(arguments),
        Model::Verify { dir, settings } => verify(&dir, &load(settings)?),
        Model::Diff { a, b, sample, json, settings } => diff([&a, &b], sample.as_deref(), json, &load(settings)?),
    }
}

fn load(settings: SettingsArgs) -> Result<Settings, Failure> {
    let settings = settings.load()?;
    quiet_logs(&settings)?;
    Ok(settings)
}

fn pretty(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("it can be written") + "\n"
}

fn rollout(arguments: RolloutArgs) -> Result<(), Failure> {
    let RolloutArgs { target, canary, shadow, selector, deadline, change: common } = arguments;
    let text = if target.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(&target)
    };
    let shown = target.display();
    let text = text.map_err(|e| Failure::Start(format!("{shown}: {e}")))?;
    let target: Target = serde_json::from_str(&text).map_err(|e| Failure::Start(format!("{shown}: {e}")))?;
    change(common, |fleet| {
        let mut desired = match (canary, shadow) {
            (None, None) => fleet.rollout(target),
            (Some(weight_percent), _) => {
                Desired { canary: Some(CanaryTarget { target, weight_percent }), ..fleet.beside()? }
            }
            (None, Some(sample_percent)) => {
                Desired { shadow: Some(ShadowTarget { target, sample_percent }), ..fleet.beside()? }
            }
        };
        desired.selector = selector.into_iter().collect::<BTreeMap<_, _>>();
        desired.deadline_ms = deadline.map(|seconds| seconds * 1000);
        Ok(desired)
    })
}

/// Makes a generation of what is in force, writes it, and waits if asked to.
fn change(
    arguments: ChangeArgs,
    make: impl FnOnce(&Fleet) -> Result<Desired, crate::rollout::FleetError>,
) -> Result<(), Failure> {
    let ChangeArgs { reason, wait: is_waiting, timeout, json, settings } = arguments;
    let settings = load(settings)?;
    let mut desired = make(&Fleet::read(&settings)?)?;
    desired.reason = reason;
    // What a worker would refuse is not written.
    Desired::read(&serde_json::to_vec(&desired).expect("it can be written")).map_err(Failure::Start)?;
    publish_desired(&settings, &desired)?;
    if is_waiting {
        return await_fleet(&settings, timeout, json);
    }
    let text = if json { pretty(&desired) } else { format!("generation {} is in force\n", desired.generation) };
    print(text.as_bytes())
}

fn status(arguments: ChangeArgs) -> Result<(), Failure> {
    let ChangeArgs { wait: is_waiting, timeout, json, settings, .. } = arguments;
    let settings = load(settings)?;
    if is_waiting {
        return await_fleet(&settings, timeout, json);
    }
    show(&Fleet::read(&settings)?, json)
}

fn await_fleet(settings: &Settings, timeout: u64, json: bool) -> Result<(), Failure> {
    let mut last = String::new();
    let fleet = wait(settings, Duration::from_secs(timeout), |fleet| {
        let text = table(fleet);
        if !json && text != last && fleet.progress() == Progress::Under {
            eprintln!("{text}");
            last = text;
        }
    })?;
    show(&fleet, json)?;
    match fleet.progress() {
        Progress::Ready => Ok(()),
        Progress::Failed => Err(Failure::Start("some workers do not serve the generation in force, see above".into())),
        Progress::Under => Err(Failure::Start(format!("not all workers were through within {timeout} s"))),
    }
}

fn show(fleet: &Fleet, json: bool) -> Result<(), Failure> {
    let text = if json { pretty(fleet) } else { table(fleet) + "\n" };
    print(text.as_bytes())
}

fn table(fleet: &Fleet) -> String {
    let head = match &fleet.desired {
        None => format!("slot {}: the control topic says nothing of it\n", fleet.slot),
        Some(desired) => {
            let canary = desired.canary.as_ref();
            let canary = canary.map(|c| format!(", canary {} at {} %", c.target.version, c.weight_percent));
            let shadow = desired.shadow.as_ref();
            let shadow = shadow.map(|s| format!(", shadow {} at {} %", s.target.version, s.sample_percent));
            let reason = desired.reason.as_ref().map(|reason| format!(" ({reason})"));
            format!(
                "slot {}: generation {}, version {}{}{}{}\n",
                fleet.slot,
                desired.generation,
                desired.stable.version,
                canary.unwrap_or_default(),
                shadow.unwrap_or_default(),
                reason.unwrap_or_default()
            )
        }
    };
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["worker", "generation", "state", "serves", "canary", "shadow", "reason"]);
    for worker in &fleet.workers {
        let status = &worker.status;
        let version =
            |served: &Option<crate::rollout::Served>| served.as_ref().map_or("-".into(), |s| s.version.clone());
        let state = if worker.silent { "silent".to_owned() } else { status.state.to_string() };
        let refused =
            status.refused.as_ref().map(|refused| format!("offset {} refused: {}", refused.offset, refused.reason));
        let reason = refused.or_else(|| status.reason.clone()).unwrap_or_default();
        table.add_row([
            status.instance.clone(),
            status.generation.to_string(),
            state,
            version(&status.stable),
            version(&status.canary),
            version(&status.shadow),
            reason,
        ]);
    }
    head + &table.trim_fmt()
}

fn verify(dir: &Path, settings: &Settings) -> Result<(), Failure> {
    let version = open(dir, settings)?;
    let model = version.model();
    let manifest = &model.dir.manifest;
    print(format!("{} {} is in order: sha256 {}\n", manifest.name, manifest.version, model.dir.sha256).as_bytes())
}

fn open(dir: &Path, settings: &Settings) -> Result<std::sync::Arc<Version>, Failure> {
    let loader = loader(settings, &Metrics::disabled())?;
    let failed = |source| crate::worker::WorkerError::Model { model: dir.display().to_string(), source };
    let version = loader.load(&settings.rollout.slot, dir, 1).map_err(failed)?;
    version.warm_up(settings.batch.max_tokens).map_err(failed)?;
    Ok(version)
}

fn diff(dirs: [&Path; 2], sample: Option<&Path>, json: bool, settings: &Settings) -> Result<(), Failure> {
    let versions = [open(dirs[0], settings)?, open(dirs[1], settings)?];
    let [a, b] = versions.each_ref().map(|version| describe(version));
    let mut report = json!({ "a": a, "b": b });
    if let Some(path) = sample {
        let text = std::fs::read_to_string(path).map_err(|e| Failure::Start(format!("{}: {e}", path.display())))?;
        let (mut agreement, mut differing) = (Agreement::default(), 0);
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let document = Document { text: line.to_owned(), words: None, id: None, truncated: false };
            let tagged = |version: &Version| tag(version, &document, OffsetUnit::CodePoint).map_err(Failure::Start);
            let of_line = Agreement::of(&tagged(&versions[0])?, &tagged(&versions[1])?);
            differing += usize::from(of_line.same != of_line.all);
            agreement.add(of_line);
        }
        report["sample"] = json!({ "agreement": agreement.share(), "same": agreement.same, "all": agreement.all,
            "texts_that_differ": differing });
    }
    if json {
        return print(pretty(&report).as_bytes());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "a", "b"]);
    for (name, value) in report["a"].as_object().into_iter().flatten() {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        table.add_row([name.clone(), text(value), text(&report["b"][name])]);
    }
    let agreement = report["sample"]["agreement"].as_f64();
    let agreement = agreement.map(|share| format!("\nagreement on the sample: {share:.4}\n")).unwrap_or_default();
    print(format!("{}\n{agreement}", table.trim_fmt()).as_bytes())
}

/// What two models are compared by: identity, labels, sizes and scores.
fn describe(version: &Version) -> Value {
    let model = version.model();
    let manifest = &model.dir.manifest;
    let mut out = json!({ "name": manifest.name, "version": manifest.version, "sha256": model.dir.sha256,
        "variant": model.variant.to_string(), "unit": manifest.unit, "max_length": manifest.max_length });
    for head in &manifest.heads {
        out[format!("labels.{}", head.name)] = head.labels.join(" ").into();
    }
    for (name, entry) in &manifest.files {
        out[format!("bytes.{name}")] = entry.bytes.into();
    }
    let metrics = std::fs::read(model.dir.file("metrics.json")).ok();
    let metrics: Option<Value> = metrics.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let results = metrics.as_ref().and_then(|metrics| metrics["results"].as_array()).into_iter().flatten();
    for result in results {
        let task = result["task"].as_str().unwrap_or("?");
        out[format!("f1.{task}")] = result["model"]["spans"]["f1"].clone();
    }
    out
}
