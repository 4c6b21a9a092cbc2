//! The arguments of `vitag backfill`.

mod parse;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;

use self::parse::{FileForm, Partitions, Rate, Share, bound, job_name, parse_share, partitions, pointer, rate, share};
use super::{Failure, SettingsArgs, export_options, log_options};
use crate::admin::Health;
use crate::backfill::{
    self, BackfillError, Condition, Cut, Estimate, FileFormat, FileInput, FileJob, Job, Live, Progress, Second,
    Selection, Show, State, Summary, Tally, Watch,
};
use crate::config::{OutputMode, Settings};
use crate::decode::Format;
use crate::pipeline::Monitor;
use crate::source::{Pace, StopSignal};
use crate::telemetry::{self, Telemetry};

pub(super) const EXAMPLES: &str = "A job that is repeated with the same arguments goes on where it was, and one that has \
    finished does nothing. From topic to topic, several processes with a worker.instance each share the partitions, and \
    what cannot be tagged goes to output.dead_letter_topic. With --output, each process does its --share, and what cannot \
    be tagged goes to files under _rejects. \
    Exit code 65: some records were refused, some files could not be read, or there was nothing to tag.\n\n\
    Examples:\n  \
    vitag backfill --config vitag.toml --job june --from=-7d --to latest\n  \
    vitag backfill --config vitag.toml --job web --header source=web --sample 0.1 --json\n  \
    vitag backfill --job lake --input 's3://lake/articles/*.parquet' --text body --output s3://lake/tagged\n  \
    vitag backfill --config vitag.toml --job june --from=-7d --output june --output-format parquet";

#[derive(Debug, Args)]
pub(super) struct BackfillArgs {
    /// Name of the job; from topic to topic its consumer group is <kafka.group_id>.backfill.<NAME>.
    #[arg(long, value_name = "NAME", value_parser = job_name)]
    job: String,
    #[command(flatten)]
    files: FileArgs,
    /// Topic to read; by default the one of input.topics.
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Partitions to read, such as 0,2-4; by default all.
    #[arg(long, value_name = "LIST", value_parser = partitions)]
    partitions: Option<Partitions>,
    /// Where to begin: earliest, latest, committed (where kafka.group_id stands), an offset, a time such as
    /// 2026-01-31T08:00:00Z, or one before now such as -7d.
    #[arg(long, value_name = "BOUND", default_value = "earliest", allow_hyphen_values = true)]
    from: String,
    /// Where to end, by the same words; what stands there is not read any more. It is looked up at the first start.
    #[arg(long, value_name = "BOUND", default_value = "latest", allow_hyphen_values = true)]
    to: String,
    /// Tag at most so many records, spread over the partitions.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Tag a share of the records, such as 0.01, always the same ones.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    sample: Option<f64>,
    /// Only records with this header: NAME, or NAME=VALUE; may be repeated.
    #[arg(long = "header", value_name = "CONDITION")]
    headers: Vec<String>,
    /// Only records whose JSON holds something at a pointer: /POINTER, or /POINTER=VALUE; may be repeated.
    #[arg(long = "where", value_name = "CONDITION", value_parser = pointer)]
    pointers: Vec<String>,
    /// The model: its directory, or name@version beside the one of model.path.
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    #[command(flatten)]
    polite: PoliteArgs,
    /// How progress is shown, on standard error.
    #[arg(long, value_enum, default_value_t = Show::Auto)]
    progress: Show,
    /// Tell what is left to do and how long it may take, from a sample; write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Tag with this model too, and tell how far the two agree: its directory, or name@version.
    #[arg(long, value_name = "MODEL")]
    compare_with: Option<String>,
    /// File for the records that the two models tag differently, a JSON object a line.
    #[arg(long, value_name = "FILE", requires = "compare_with")]
    differences: Option<PathBuf>,
    /// Print the summary as a JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Room for others")]
struct PoliteArgs {
    /// Read at most so many records a second, or tokens, as 20000t; of this process alone.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rate: Option<Rate>,
    /// Rest while this group lags in the topics of input.topics.
    #[arg(long, value_name = "GROUP")]
    max_lag_of: Option<String>,
    /// How many records it may lag.
    #[arg(long, value_name = "RECORDS", default_value_t = 1_000, requires = "max_lag_of")]
    max_lag: u64,
    /// Give way to other processes of the machine: 0 does not, 19 does as much as it can.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..20))]
    nice: i32,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Files")]
struct FileArgs {
    /// Files to tag instead of a topic: a path or URL (s3://, gs://, az://), with wildcards; may be repeated.
    #[arg(long = "input", value_name = "PATTERN", requires = "output")]
    inputs: Vec<String>,
    /// Folder to write instead of a topic: a path or URL.
    #[arg(long, value_name = "FOLDER")]
    output: Option<String>,
    /// What the input files hold; by default what their names say.
    #[arg(long, value_enum, requires = "inputs")]
    format: Option<FileFormat>,
    /// What the output files are.
    #[arg(long, value_enum, default_value_t = FileForm::Jsonl, requires = "output")]
    output_format: FileForm,
    /// Column or field of the text; overrides input.text_pointer.
    #[arg(long, value_name = "NAME")]
    text: Option<String>,
    /// Column or field of the id; overrides input.id_pointer.
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Column or field of the words; overrides input.words_pointer.
    #[arg(long, value_name = "NAME")]
    words: Option<String>,
    /// Bytes of a split of a large file of lines.
    #[arg(long, value_name = "BYTES", default_value_t = 67_108_864, value_parser = clap::value_parser!(u64).range(1..))]
    split_bytes: u64,
    /// Which part of the splits this process does, as 0/4, the first of four; or --share /4 and the number in
    /// JOB_COMPLETION_INDEX.
    #[arg(long, value_name = "I/N", default_value = "0/1", value_parser = parse_share)]
    share: Share,
}

impl BackfillArgs {
    fn settings(&self) -> Result<Settings, Failure> {
        let mut settings = self.settings.clone().load()?;
        if let Some(model) = &self.model {
            settings.model.serve_only(backfill::model_path(&settings, model));
        }
        if let Some(topic) = &self.topic {
            settings.input.topics = vec![topic.clone()];
        }
        let FileArgs { text, id, words, .. } = &self.files;
        let pointer = |name: &String| format!("/{}", name.replace('~', "~0").replace('/', "~1"));
        if let Some(text) = text {
            settings.input.text_pointer = pointer(text);
        }
        for (name, setting) in [(id, &mut settings.input.id_pointer), (words, &mut settings.input.words_pointer)] {
            if name.is_some() {
                *setting = name.as_ref().map(pointer);
            }
        }
        if !self.files.inputs.is_empty() {
            // What is read of files are objects, whatever messages are.
            settings.input.format = Format::Json;
        }
        match (&self.files.output, self.files.inputs.is_empty()) {
            (None, _) => settings.validate_run()?,
            (Some(_), true) => settings.validate_read()?,
            (Some(_), false) if self.polite.max_lag_of.is_some() => settings.validate_read()?,
            (Some(_), false) => {}
        }
        Ok(settings)
    }

    fn selection(&self) -> Selection {
        let conditions = |texts: &[String]| texts.iter().map(|text| Condition::parse(text)).collect();
        Selection { headers: conditions(&self.headers), pointers: conditions(&self.pointers), sample: self.sample }
    }

    fn estimate(
        &self,
        settings: &Settings,
        estimate: impl FnOnce() -> Result<Estimate, BackfillError>,
    ) -> Result<(), Failure> {
        super::quiet_logs(settings)?;
        let estimate = estimate()?;
        let json = || serde_json::to_string(&estimate).expect("an estimate is numbers and texts") + "\n";
        super::print(if self.json { json() } else { estimate.to_string() }.as_bytes())
    }

    fn second(&self, settings: &Settings) -> Result<Option<Second>, BackfillError> {
        let Some(model) = &self.compare_with else { return Ok(None) };
        let mut second = settings.clone();
        second.model.serve_only(backfill::model_path(settings, model));
        Second::start(second, self.differences.as_deref()).map(Some)
    }

    fn file_job(&self, settings: &Settings, output: &str) -> Result<FileJob, Failure> {
        let FileArgs { inputs, format, output_format, split_bytes, share: Share(number, of), .. } = &self.files;
        if *output_format == FileForm::Parquet && settings.output.mode == OutputMode::Merge {
            let reason = "output.mode is merge, and the columns of Parquet are those of the annotation alone";
            return Err(Failure::Usage(format!("--output-format parquet: {reason}")));
        }
        let input = if inputs.is_empty() {
            FileInput::Topic(self.job(settings)?)
        } else {
            let of_topic = [("limit", self.limit.is_some()), ("header", !self.headers.is_empty())];
            if let Some((name, _)) = of_topic.iter().find(|(_, given)| *given) {
                return Err(Failure::Usage(format!("--{name} is for topics")));
            }
            let cut = Cut { format: *format, split_bytes: *split_bytes };
            FileInput::Files { patterns: inputs.clone(), cut, selection: self.selection() }
        };
        let (name, output) = (self.job.clone(), output.to_owned());
        Ok(FileJob { name, input, output, format: (*output_format).into(), share: (*number, *of) })
    }

    fn job(&self, settings: &Settings) -> Result<Job, Failure> {
        let [topic] = &settings.input.topics[..] else {
            return Err(Failure::Usage("input.topics has several topics, and a job reads one: say --topic".to_owned()));
        };
        Ok(Job {
            name: self.job.clone(),
            topic: topic.clone(),
            partitions: self.partitions.clone().map(|Partitions(ids)| ids),
            from: bound("from", &self.from)?,
            to: bound("to", &self.to)?,
            range: [self.from.clone(), self.to.clone()],
            limit: self.limit,
            selection: self.selection(),
        })
    }
}

pub(super) fn run(arguments: &BackfillArgs) -> Result<(), Failure> {
    let settings = arguments.settings()?;
    if arguments.polite.nice > 0 {
        // Threads that are started later inherit it.
        rustix::process::setpriority_process(None, arguments.polite.nice)
            .map_err(|e| Failure::Start(format!("--nice: {e}")))?;
    }
    let summary = match &arguments.files.output {
        None => {
            let job = arguments.job(&settings)?;
            if arguments.dry_run {
                return arguments.estimate(&settings, || Estimate::of_topic(&settings, &job));
            }
            watched(&settings, arguments, |watch| backfill::run_topic(&settings, &job, watch))?
        }
        Some(output) => {
            let job = arguments.file_job(&settings, output)?;
            if arguments.dry_run {
                return arguments.estimate(&settings, || Estimate::of_files(&settings, &job));
            }
            watched(&settings, arguments, |watch| backfill::run_files(&settings, &job, watch))?
        }
    };
    let json = || serde_json::to_string(&summary).expect("a summary is numbers and texts") + "\n";
    super::print(if arguments.json { json() } else { summary.to_string() }.as_bytes())?;
    match (summary.state, summary.unread.len(), summary.refused()) {
        (State::Stopped, ..) => Err(Failure::JobStopped(summary.job)),
        (_, 0, 0) => Ok(()),
        (_, 0, refused) => Err(Failure::RecordsRefused(refused)),
        (_, unread, _) => Err(Failure::Unread(unread)),
    }
}

/// Runs a job under telemetry and signals, its progress in sight.
fn watched(
    settings: &Settings,
    arguments: &BackfillArgs,
    job: impl FnOnce(&Watch<'_>) -> Result<Summary, BackfillError>,
) -> Result<Summary, Failure> {
    let start = |e: &dyn std::fmt::Display| Failure::Start(e.to_string());
    let mut logs = log_options(settings);
    if settings.origin("telemetry.log_level").is_none() {
        logs.level = "warn".into();
    }
    let telemetry = Arc::new(telemetry::init(&logs, &export_options(settings)).map_err(|e| start(&e))?);
    let monitor = Monitor { metrics: telemetry.metrics(), tracer: telemetry.tracer(&settings.kafka.group_id) };
    let runtime = super::runtime().map_err(|e| start(&e))?;
    let (stop, tally) = (StopSignal::default(), Tally::default());
    runtime.spawn(super::stop_on_signals(stop.clone(), Health::new()));
    let pace = arguments.polite.pace(&telemetry, &tally);
    let second = arguments.second(settings)?;
    let comparison = second.as_ref().map(Second::comparison);
    let (progress, second) = (Progress::default(), Mutex::new(second));
    let watch = Watch { monitor, tokens: &|| tokens(&telemetry), tally, progress, pace, second, stop };
    let mut result = beside(settings, arguments, &watch, || job(&watch));
    if let (Ok(summary), Some(comparison)) = (&mut result, comparison) {
        summary.comparison = Some(comparison.lock().unwrap_or_else(PoisonError::into_inner).clone());
    }
    telemetry.shutdown(Duration::from_secs(5));
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(result?)
}

/// Runs a job with the threads that show its progress and look after the live group.
fn beside(
    settings: &Settings,
    arguments: &BackfillArgs,
    watch: &Watch<'_>,
    job: impl FnOnce() -> Result<Summary, BackfillError>,
) -> Result<Summary, BackfillError> {
    let show = match arguments.progress {
        Show::Auto if std::io::stderr().is_terminal() => Show::Bars,
        Show::Auto if arguments.json => Show::Json,
        how => how,
    };
    let (going, over) = crossbeam_channel::bounded::<()>(0);
    let Watch { progress, tally, pace, stop, .. } = watch;
    std::thread::scope(|scope| {
        let shown = over.clone();
        scope.spawn(move || backfill::show(show, &arguments.job, progress, tally, &shown));
        let live = arguments.polite.live(settings).map(|live| {
            pace.rest.store(true, Ordering::Relaxed);
            scope.spawn(move || backfill::give_way(settings, &live, &pace.rest, &over).inspect_err(|_| stop.abandon()))
        });
        let result = job();
        drop(going);
        live.map_or(Ok(()), |live| live.join().expect("it does not panic"))?;
        result
    })
}

impl PoliteArgs {
    fn pace(&self, telemetry: &Arc<Telemetry>, tally: &Tally) -> Pace {
        match self.rate {
            None => Pace::default(),
            Some(Rate::Records(rate)) => Pace::records(rate),
            Some(Rate::Tokens(rate)) => {
                let (telemetry, tally) = (telemetry.clone(), tally.clone());
                Pace::tokens(rate, move || (tokens(&telemetry), tally.counts().bytes))
            }
        }
    }

    fn live(&self, settings: &Settings) -> Option<Live> {
        let group = self.max_lag_of.clone()?;
        Some(Live { group, topics: settings.input.topics.clone(), max_lag: self.max_lag })
    }
}

/// What the counter of tokens stands at.
fn tokens(telemetry: &Telemetry) -> f64 {
    let families = telemetry.registry().gather();
    let family = families.iter().find(|family| family.name() == "vitag_tokens_total");
    family.map_or(0.0, |family| family.get_metric().iter().map(|metric| metric.get_counter().get_value()).sum())
}
