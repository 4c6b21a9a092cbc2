//! Arguments to one call each, and how failures become exit codes.

mod backfill;
mod bench;
mod dlq;
mod model;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::admin::{self, Health};
use crate::backfill::BackfillError;
use crate::bench::BenchError;
use crate::config::{ConfigError, Settings, Sources};
use crate::convert::{ConvertError, Kind, Style, convert};
use crate::decode::Format;
use crate::demo::{self, DemoError, DemoOptions};
use crate::dlq::DlqError;
use crate::encode::Form;
use crate::kafka::ConnectError;
use crate::pipeline::Monitor;
use crate::rollout::{self, FleetError, RolloutError};
use crate::schema::Schema;
use crate::source::StopSignal;
use crate::tag::{TagOptions, tag};
use crate::telemetry::{self, ExportOptions, LogOptions};
use crate::worker::{self, WorkerError};

/// Tags Vietnamese text: words, parts of speech, named entities.
#[derive(Debug, Parser)]
#[command(version, about, arg_required_else_help = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed while running, 2 wrong arguments, 65 some input was refused, \
    69 no broker, 78 wrong configuration or model";

const CONVERT_EXAMPLES: &str = "conllu, spacy, doccano and label-studio carry what they have no place for in a comment or \
    field named vitag: back from there, what nobody has changed is as it was. Of the others, what is lost is told.\n\n\
    Examples:\n  \
    vitag tag news.jsonl | vitag convert --to conllu > news.conllu\n  \
    vitag convert --to label-studio tagged.jsonl -o tasks.json\n  \
    vitag convert --from label-studio --to conll2 --lean corrected.json > train.conll";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a worker between Kafka topics until SIGTERM or Ctrl-C.
    #[command(after_help = "Examples:\n  \
        vitag run --config vitag.toml\n  \
        vitag run --set kafka.bootstrap_servers=localhost:9092 --set input.topics=articles --set output.topic=tagged\n  \
        VITAG__KAFKA__SASL_PASSWORD_FILE=/run/secrets/kafka vitag run --config vitag.yaml")]
    Run(SettingsArgs),
    /// Tag files or standard input, a document a line.
    #[command(after_help = "Examples:\n  \
        echo 'Bác sĩ Tôn Thất Tùng sinh tại Thanh Hóa.' | vitag tag --format pretty\n  \
        vitag tag articles.jsonl > tagged.jsonl\n  \
        vitag tag --format conllu news.txt")]
    Tag(TagArgs),
    /// Tag what already lies in a topic, once, and end.
    #[command(after_help = backfill::EXAMPLES)]
    Backfill(Box<backfill::BackfillArgs>),
    /// Convert annotations to the formats of other tools, and back.
    #[command(after_help = CONVERT_EXAMPLES)]
    Convert {
        /// Format of the input.
        #[arg(long, value_enum, default_value_t = Kind::Annotations)]
        from: Kind,
        /// Format of the output.
        #[arg(long, value_enum)]
        to: Kind,
        /// Leave out what the format has no place for, and with it the way back.
        #[arg(long)]
        lean: bool,
        /// File to read, or a folder for brat; - is standard input.
        #[arg(value_name = "INPUT", default_value = "-")]
        input: PathBuf,
        /// File to write, or a folder for brat; - is standard output.
        #[arg(short, long, value_name = "OUTPUT", default_value = "-")]
        output: PathBuf,
    },
    /// Look at dead letters, and send them back.
    #[command(
        subcommand,
        after_help = "Examples:\n  vitag dlq inspect --config vitag.toml\n  vitag dlq replay --config vitag.toml --dry-run"
    )]
    Dlq(dlq::Dlq),
    /// Publish models, roll them out to running workers, and take them back.
    #[command(
        subcommand,
        after_help = "Examples:\n  \
        vitag model publish models/vi-tagger/0.2.0 --to s3://models/0.2.0 > target.json\n  \
        vitag model rollout target.json --config vitag.toml --canary 10 --wait\n  \
        vitag model promote --config vitag.toml --wait"
    )]
    Model(model::Model),
    /// Measure how fast this machine tags, and what of that the worker makes.
    #[command(after_help = "A table goes to standard output, progress to standard error.\n\n\
        Examples:\n  \
        vitag bench ceiling pipeline\n  \
        vitag bench ceiling kafka --set kafka.bootstrap_servers=localhost:9092 --mix zipf\n  \
        vitag bench latency --rate 200 --json\n  \
        vitag bench search --text texts/ --tuned vitag-tuned.toml")]
    Bench(bench::BenchArgs),
    /// Check the settings without running anything.
    #[command(after_help = "Examples:\n  \
        vitag check-config --config vitag.toml\n  \
        vitag check-config --config vitag.toml --set batch.max_tokens=2048 --print-effective")]
    CheckConfig {
        #[command(flatten)]
        settings: SettingsArgs,
        /// Print every setting with its value and where it came from; secrets are not shown.
        #[arg(long)]
        print_effective: bool,
    },
    /// Show the worker at work, with a broker inside this process and articles of its own.
    #[command(
        after_help = "Examples:\n  vitag demo\n  vitag demo --keep\n  vitag demo --set lanes.count=1 --color never"
    )]
    Demo {
        /// Keep the broker and the worker until Ctrl-C, for a look from outside.
        #[arg(long)]
        keep: bool,
        /// Overrides a setting; may be repeated.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        sets: Vec<String>,
        /// When to use colours.
        #[arg(long, value_enum, default_value_t = Colour::Auto)]
        color: Colour,
    },
    /// Print the JSON Schema of a format.
    #[command(after_help = "Example:\n  vitag schema annotation > annotation.schema.json")]
    Schema {
        /// Which format.
        #[arg(value_enum)]
        of: Schema,
    },
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  vitag completions bash > /etc/bash_completion.d/vitag")]
    Completions {
        /// Which shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct SettingsArgs {
    /// File of settings, TOML or YAML.
    #[arg(short, long, value_name = "FILE", env = "VITAG_CONFIG")]
    config: Option<PathBuf>,
    /// Overrides a setting, such as batch.max_tokens=2048; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct TagArgs {
    /// Files to tag, a document a line; `-` or nothing is standard input.
    #[arg(value_name = "FILE")]
    inputs: Vec<PathBuf>,
    /// Form of the output.
    #[arg(long, value_enum, default_value_t = TagFormat::Json)]
    format: TagFormat,
    /// What a line of the input holds; by default JSON in files named .jsonl or .json, else text.
    #[arg(long, value_enum)]
    input: Option<LineFormat>,
    /// Directory of the model; overrides the setting model.path.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// When to use colours in the pretty form.
    #[arg(long, value_enum, default_value_t = Colour::Auto)]
    color: Colour,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TagFormat {
    /// JSON, a line a document, as output.mode has it.
    Json,
    /// CoNLL-U.
    Conllu,
    /// Words, tags and entities for people.
    Pretty,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LineFormat {
    /// The text itself.
    Text,
    /// A JSON object; the settings input.*_pointer say where its parts are.
    Jsonl,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Colour {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Colour {
    fn style(self) -> Style {
        let wanted = || std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        match self {
            Colour::Always => Style::Colour,
            Colour::Auto if wanted() => Style::Colour,
            _ => Style::Plain,
        }
    }
}

impl SettingsArgs {
    fn load(self) -> Result<Settings, ConfigError> {
        Settings::load(&Sources::of_process(self.config, self.sets))
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error(transparent)]
    Demo(#[from] DemoError),
    #[error("{0}")]
    Start(String),
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
    #[error("{0} of the lines were refused, see above")]
    Refused(usize),
    #[error(transparent)]
    Dlq(#[from] DlqError),
    #[error(transparent)]
    Fleet(#[from] FleetError),
    #[error("{0} of the chosen letters were left, see above")]
    LettersLeft(u64),
    #[error(transparent)]
    Convert(#[from] ConvertError),
    #[error(transparent)]
    Backfill(#[from] BackfillError),
    #[error("{0} of the records were refused, see the summary")]
    RecordsRefused(u64),
    #[error("{0} of the inputs could not be read to their end, see the summary")]
    Unread(usize),
    #[error("job {0} was stopped before its end: repeat the command to go on")]
    JobStopped(String),
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error("there is no terminal to ask on: look at --dry-run, then say --yes")]
    NobodyToAsk,
}

impl Failure {
    /// As in `sysexits.h`.
    fn exit_code(&self) -> u8 {
        let of_connection = |error: &ConnectError| match error {
            ConnectError::Unavailable { .. } | ConnectError::NoTopic(..) => 69,
            ConnectError::Config(_) | ConnectError::Refused { .. } => 78,
        };
        let of_worker = |error: &WorkerError| match error {
            WorkerError::Connect(error) | WorkerError::Rollout(RolloutError::Connect(error)) => of_connection(error),
            WorkerError::Model { .. } | WorkerError::Runtime(_) | WorkerError::Rollout(_) => 78,
            WorkerError::Pipeline(_) => 1,
        };
        match self {
            Failure::Config(_) | Failure::Demo(DemoError::Config(_)) => 78,
            Failure::Worker(error)
            | Failure::Demo(DemoError::Worker(error))
            | Failure::Bench(BenchError::Worker(error)) => of_worker(error),
            Failure::Dlq(DlqError::Connect(error))
            | Failure::Fleet(FleetError::Connect(error))
            | Failure::Backfill(BackfillError::Connect(error))
            | Failure::Bench(BenchError::Connect(error)) => of_connection(error),
            Failure::Bench(BenchError::NoBroker) => 78,
            Failure::Bench(BenchError::Text(_)) => 65,
            Failure::Fleet(FleetError::NoPrefix | FleetError::Manifest(_)) => 78,
            Failure::Backfill(BackfillError::Worker(error)) => of_worker(error),
            Failure::Backfill(BackfillError::Kafka { .. } | BackfillError::Store(_)) => 1,
            Failure::Refused(_) | Failure::RecordsRefused(_) | Failure::LettersLeft(_) => 65,
            Failure::Backfill(BackfillError::Empty | BackfillError::NoFile(_)) | Failure::Unread(_) => 65,
            Failure::Convert(ConvertError::Document { .. }) => 65,
            Failure::Convert(ConvertError::Io(..)) | Failure::JobStopped(_) => 1,
            Failure::NobodyToAsk | Failure::Usage(_) | Failure::Convert(_) | Failure::Backfill(_) => 2,
            Failure::Demo(_) | Failure::Dlq(_) | Failure::Fleet(_) | Failure::Bench(_) => 1,
            Failure::Start(_) | Failure::Output(_) => 1,
        }
    }
}

/// Parses the arguments, runs the command, and tells how it ended.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(settings) => run(settings),
        Command::Tag(arguments) => run_tag(arguments),
        Command::Backfill(arguments) => backfill::run(&arguments),
        Command::Convert { from, to, lean, input, output } => run_convert((from, &input), (to, &output), lean),
        Command::Dlq(command) => dlq::run(command),
        Command::Model(command) => model::run(command),
        Command::Bench(arguments) => bench::run(arguments),
        Command::CheckConfig { settings, print_effective } => check_config(settings, print_effective),
        Command::Demo { keep, sets, color } => run_demo(keep, sets, color),
        Command::Schema { of } => print(of.text().as_bytes()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "vitag", &mut script);
            print(&script)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has enough of it.
        Err(
            Failure::Output(error)
            | Failure::Demo(DemoError::Write(error))
            | Failure::Dlq(DlqError::Write(error))
            | Failure::Convert(ConvertError::Io(_, error)),
        ) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(arguments: SettingsArgs) -> Result<(), Failure> {
    let settings = arguments.load()?;
    settings.validate_run()?;
    let start = |e: &dyn std::fmt::Display| Failure::Start(e.to_string());
    let telemetry = telemetry::init(&log_options(&settings), &export_options(&settings)).map_err(|e| start(&e))?;
    let monitor = Monitor { metrics: telemetry.metrics(), tracer: telemetry.tracer(&settings.kafka.group_id) };
    let (health, stop) = (Health::new(), StopSignal::default());
    let runtime = runtime().map_err(|e| start(&e))?;
    let (stopped, shutdown) = tokio::sync::oneshot::channel::<()>();
    if let Some(address) = &settings.admin.address {
        let until = async move {
            let _ = shutdown.await;
        };
        let publisher = settings.admin.token.clone().map(|token| rollout::publisher(token, &settings));
        let serving = admin::serve(address, health.clone(), telemetry.registry().clone(), publisher, until);
        let (bound, _) = runtime.block_on(serving).map_err(|e| start(&e))?;
        tracing::info!(address = %bound, "serving health and metrics");
    }
    let observed = health.clone();
    monitor.metrics.observe_ready(move || observed.is_ready());
    runtime.spawn(stop_on_signals(stop.clone(), health.clone()));
    let result = worker::run(&settings, &monitor, &health, &stop);
    drop(stopped);
    telemetry.shutdown(Duration::from_secs(5));
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(result?)
}

fn run_tag(arguments: TagArgs) -> Result<(), Failure> {
    let mut settings = arguments.settings.load()?;
    if let Some(model) = arguments.model {
        settings.model.serve_only(model);
    }
    quiet_logs(&settings)?;
    let form = match arguments.format {
        TagFormat::Json => None,
        TagFormat::Conllu => Some(Form::Conllu),
        TagFormat::Pretty => Some(Form::Pretty(arguments.color.style())),
    };
    let format = arguments.input.map(|format| match format {
        LineFormat::Text => Format::Text,
        LineFormat::Jsonl => Format::Json,
    });
    let inputs = if arguments.inputs.is_empty() { vec!["-".into()] } else { arguments.inputs };
    let options = TagOptions { inputs, format, form };
    // Signals end it as they end any filter: there is nothing to commit, and a read from a terminal cannot be woken.
    match tag(&settings, &options, std::io::stdout(), std::io::stderr())? {
        0 => Ok(()),
        refused => Err(Failure::Refused(refused)),
    }
}

fn run_convert((from, input): (Kind, &Path), (to, output): (Kind, &Path), lean: bool) -> Result<(), Failure> {
    if to == Kind::Brat && output == Path::new("-") {
        return Err(Failure::Usage("--to brat writes a folder: say --output".to_owned()));
    }
    let documents = convert((from, input), (to, output), lean)?;
    if let Some(lost) = to.drops(lean) {
        eprintln!("{documents} documents; what this format does not hold: {lost}");
    }
    Ok(())
}

fn check_config(arguments: SettingsArgs, print_effective: bool) -> Result<(), Failure> {
    let settings = arguments.load()?;
    if print_effective {
        print(settings.effective_toml().as_bytes())?;
    }
    settings.validate_run()?;
    eprintln!("the settings are in order");
    Ok(())
}

fn run_demo(keep: bool, sets: Vec<String>, color: Colour) -> Result<(), Failure> {
    quiet_logs(&Settings::default())?;
    let stop = StopSignal::default();
    let runtime = runtime().map_err(|e| Failure::Start(e.to_string()))?;
    runtime.spawn(stop_on_signals(stop.clone(), Health::new()));
    let options = DemoOptions { style: color.style(), keep, sets };
    let result = demo::demo(&options, &mut std::io::stdout(), &stop);
    runtime.shutdown_background();
    Ok(result?)
}

fn print(text: &[u8]) -> Result<(), Failure> {
    Ok(std::io::stdout().write_all(text)?)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()
}

/// The first signal asks for an end in good order, the second for one at once.
async fn stop_on_signals(stop: StopSignal, health: Health) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("signals cannot be caught");
        return;
    };
    for round in 0.. {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if round == 0 {
            tracing::info!("stopping: finishing what was read");
            health.set_shutting_down();
            stop.drain();
        } else {
            tracing::warn!("stopping at once: what is not committed will be read again");
            stop.abandon();
        }
    }
}

fn log_options(settings: &Settings) -> LogOptions {
    LogOptions { level: settings.telemetry.log_level.clone(), format: settings.telemetry.log_format }
}

fn export_options(settings: &Settings) -> ExportOptions {
    let telemetry = &settings.telemetry;
    ExportOptions {
        otlp_endpoint: telemetry.otlp_endpoint.clone(),
        timeout: Duration::from_millis(telemetry.otlp_timeout_ms),
        metrics_interval: Duration::from_millis(telemetry.metrics_interval_ms),
        trace_sample_ratio: telemetry.trace_sample_ratio,
        service_name: telemetry.service_name.clone(),
        instance: settings.worker.instance.clone(),
    }
}

/// Commands whose output people read log warnings only, unless the settings ask for more.
fn quiet_logs(settings: &Settings) -> Result<(), Failure> {
    let mut logs = log_options(settings);
    if settings.origin("telemetry.log_level").is_none() {
        logs.level = "warn".into();
    }
    telemetry::init(&logs, &ExportOptions::default()).map(drop).map_err(|e| Failure::Start(e.to_string()))
}
