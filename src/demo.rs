//! `vitag demo`: the worker against a broker inside the process, fed with articles of our own.

use std::io::Write;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};

use crate::admin::Health;
use crate::config::{ConfigError, Settings, Sources};
use crate::convert::{Style, pretty};
use crate::encode::Annotation;
use crate::pipeline::Monitor;
use crate::source::StopSignal;
use crate::worker::{self, WorkerError};

/// The articles: written for vitag, all that happens in them is invented; CC0.
pub(crate) const ARTICLES: &str = include_str!("demo/articles.jsonl");
const INPUT: &str = "articles";
const OUTPUT: &str = "articles.tagged";
const DEAD_LETTERS: &str = "articles.dead-letters";
/// The broker of the demo answers a fetch that found nothing only when its wait is over, where a real one would answer
/// as soon as a message arrives.
const FETCH_WAIT: &str = "fetch.wait.max.ms";
const FETCH_WAIT_MS: &str = "5";
/// Messages on their way at a time, so that the latency shown is the worker's and not that of a pile.
const ON_THE_WAY: usize = 32;

/// How the demo runs.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// Colours or not.
    pub style: Style,
    /// Keep the broker and the worker until told to stop.
    pub keep: bool,
    /// Settings on top of the demo's, `section.key=value`.
    pub sets: Vec<String>,
}

/// The demo could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The worker failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The broker inside the process failed.
    #[error("demo broker: {0}")]
    Broker(#[from] KafkaError),
    /// What the worker published is no annotation.
    #[error("demo output: {0}")]
    Output(#[from] serde_json::Error),
    /// The demo cannot be written.
    #[error("cannot write: {0}")]
    Write(#[from] std::io::Error),
}

/// What the demo saw.
#[derive(Clone, Debug, Default)]
struct Summary {
    messages: usize,
    sentences: usize,
    tokens: usize,
    entities: usize,
    latencies_ms: Vec<i64>,
    /// When the first answer came: until then the consumer group was coming together.
    started_ms: Option<i64>,
}

/// Runs the demo, writing to `out`.
///
/// # Errors
/// When the worker cannot start or fails, or `out` cannot be written.
pub fn demo(options: &DemoOptions, out: &mut impl Write, stop: &StopSignal) -> Result<(), DemoError> {
    let cluster = MockCluster::new(1)?;
    for topic in [INPUT, OUTPUT, DEAD_LETTERS] {
        cluster.create_topic(topic, 4, 1)?;
    }
    let broker = cluster.bootstrap_servers();
    let settings = settings(&broker, options)?;
    say(
        out,
        &format!(
            "A Kafka broker is running inside this process, at {broker}.\n\
         It keeps nothing on disk and its transactions prove nothing: it is here to show the worker at work.\n"
        ),
    )?;
    let worker_stop = StopSignal::default();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| worker::run(&settings, &Monitor::disabled(), &Health::new(), &worker_stop));
        let is_over = || stop.is_draining() || worker.is_finished();
        let mut shown = show(&broker, options, out, is_over);
        if options.keep && shown.is_ok() {
            shown = keep(&broker, out, is_over);
        }
        worker_stop.drain();
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        shown
    })
}

/// Defaults for a demo, with nothing from a file or the environment.
fn settings(broker: &str, options: &DemoOptions) -> Result<Settings, ConfigError> {
    let mut sets = vec![
        format!("kafka.bootstrap_servers={broker:?}"),
        "kafka.group_id=vitag-demo".into(),
        "worker.instance=demo".into(),
        format!("input.topics=[{INPUT:?}]"),
        format!("output.topic={OUTPUT:?}"),
        format!("output.dead_letter_topic={DEAD_LETTERS:?}"),
        "commit.interval_ms=20".into(),
        format!("kafka.consumer_properties.{FETCH_WAIT}={FETCH_WAIT_MS}"),
    ];
    sets.extend(options.sets.iter().cloned());
    Settings::load(&Sources { file: None, env: vec![], sets })
}

/// Feeds the articles and shows what comes out.
fn show(
    broker: &str,
    options: &DemoOptions,
    out: &mut impl Write,
    is_over: impl Fn() -> bool,
) -> Result<(), DemoError> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", broker)
        .set("group.id", "vitag-demo-reader")
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set(FETCH_WAIT, FETCH_WAIT_MS)
        .create()?;
    consumer.subscribe(&[OUTPUT])?;
    let articles: Vec<&str> = ARTICLES.lines().collect();
    let (room, taken) = sync_channel(ON_THE_WAY);
    let mut summary = Summary::default();
    std::thread::scope(|scope| {
        let feeder = scope.spawn(|| feed(broker, &articles, room));
        while summary.messages < articles.len() && !is_over() {
            let Some(message) = consumer.poll(Duration::from_millis(50)).transpose()? else { continue };
            let annotation: Annotation = serde_json::from_slice(message.payload().unwrap_or_default())?;
            summary.add(&annotation);
            say(out, &pretty(&annotation, options.style))?;
            let _ = taken.try_recv();
        }
        drop(taken);
        feeder.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    if summary.messages < articles.len() {
        // Interrupted, or the worker has failed and says why.
        return Ok(());
    }
    say(out, &summary.text())
}

/// Sends the articles, no more than the channel holds beyond those that came back.
fn feed(broker: &str, articles: &[&str], room: SyncSender<()>) -> Result<(), DemoError> {
    let producer: ThreadedProducer<_> = ClientConfig::new().set("bootstrap.servers", broker).create()?;
    for (number, article) in articles.iter().enumerate() {
        // The other end is gone when the demo was interrupted.
        if room.send(()).is_err() {
            return Ok(());
        }
        let key = number.to_string();
        let record = BaseRecord::to(INPUT).key(&key).payload(*article).timestamp(now_ms());
        producer.send(record).map_err(|(error, _)| error)?;
    }
    Ok(producer.flush(Duration::from_secs(10))?)
}

fn keep(broker: &str, out: &mut impl Write, is_over: impl Fn() -> bool) -> Result<(), DemoError> {
    say(
        out,
        &format!(
            "\nThe broker stays until Ctrl-C. Look in, or send a document of your own:\n  \
         kcat -b {broker} -C -t {OUTPUT} -o beginning -e\n  \
         echo '{{\"id\": 1, \"text\": \"Chào Hà Nội!\"}}' | kcat -b {broker} -P -t {INPUT}\n"
        ),
    )?;
    while !is_over() {
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

impl Summary {
    fn add(&mut self, annotation: &Annotation) {
        self.messages += 1;
        self.sentences += annotation.sentences.len();
        self.tokens += annotation.tokens.len();
        self.entities += annotation.entities.len();
        // Those that were sent before the group came together tell nothing of the worker.
        let sent = annotation.source.timestamp.filter(|&sent| sent >= self.started_ms.unwrap_or(i64::MAX));
        self.latencies_ms.extend(sent.map(|sent| now_ms() - sent));
        self.started_ms.get_or_insert_with(now_ms);
    }

    fn text(&self) -> String {
        let elapsed = self.started_ms.map_or(0, |started| now_ms() - started) as f64 / 1e3;
        let mut sorted = self.latencies_ms.clone();
        sorted.sort_unstable();
        let at = |share: f64| sorted.get((share * (sorted.len().max(1) - 1) as f64) as usize).copied().unwrap_or(0);
        format!(
            "\n{} messages, {} sentences, {} words and marks, {} entities in {:.1} s: {:.0} words a second\n\
             latency from send to receipt, {ON_THE_WAY} messages on their way at a time: median {} ms, 99th percentile {} ms\n",
            self.messages,
            self.sentences,
            self.tokens,
            self.entities,
            elapsed,
            self.tokens as f64 / elapsed.max(1e-3),
            at(0.5),
            at(0.99),
        )
    }
}

fn say(out: &mut impl Write, text: &str) -> Result<(), DemoError> {
    Ok(out.write_all(text.as_bytes())?)
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as i64
}
