//! Records from Kafka: the thread that polls.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{ClientConfig, TopicPartitionList};

use crate::admin::Beat;
use crate::kafka::{ConnectError, Connection, partition_count};
use crate::record::Partition;
use crate::source::{Intake, IntakeOptions, Source, SourceError, StopSignal, Stopped};
use crate::telemetry::{InputMetrics, Metrics};

mod bounds;
mod gaps;
mod lag;
mod message;
mod rebalance;
mod start;

pub use self::bounds::{Bounds, Choice, End};
pub(crate) use self::message::detach;
pub use self::rebalance::{Consumer, Rebalancer};
use bounds::Course;
use gaps::LookOut;

/// What the source needs to know.
#[derive(Clone)]
pub struct KafkaSourceOptions {
    /// The cluster.
    pub connection: Connection,
    /// What is read.
    pub topics: Vec<String>,
    /// The consumer group.
    pub group_id: String,
    /// Name of this member, which keeps its partitions over a restart; `None` for dynamic membership.
    pub group_instance_id: Option<String>,
    /// Longest wait for the broker at the start.
    pub startup_timeout: Duration,
    /// Longest wait for the records of a partition that leaves, and at the end.
    pub drain_timeout: Duration,
    /// How much may be in flight.
    pub intake: IntakeOptions,
    /// Properties of librdkafka for the consumer: assignment, sessions, offset reset.
    pub properties: BTreeMap<String, String>,
    /// The part to read, of a job that has an end.
    pub bounds: Option<Bounds>,
}

/// A source of Kafka topics.
pub struct KafkaSource {
    options: KafkaSourceOptions,
    consumer: Arc<Consumer>,
    beat: Beat,
    consumed: HashMap<String, InputMetrics>,
    /// Of a static member.
    look_out: Option<LookOut>,
    /// How far a job with an end has come.
    course: Option<Course>,
    /// The partitions together hold too much.
    full: bool,
    regulated: Instant,
    /// Bytes admitted since then.
    admitted: usize,
}

/// How long a poll waits for a message: the beat of everything else the loop does.
const POLL: Duration = Duration::from_millis(50);
/// How often partitions are paused and resumed …
const REGULATE: Duration = Duration::from_millis(10);
/// … and after which part of `max_bytes` has come in.
const REGULATE_PART: usize = 32;

impl KafkaSource {
    /// Connects and checks that the topics exist; reading begins with [`Source::run`].
    ///
    /// # Errors
    /// When no broker answers in time, a topic is missing, or librdkafka refuses a setting.
    pub fn connect(options: KafkaSourceOptions, metrics: &Metrics, beat: Beat) -> Result<Self, ConnectError> {
        let context = Rebalancer::new(options.drain_timeout);
        let consumer: Consumer =
            client_config(&options).create_with_context(context).map_err(|e| ConnectError::config(&e))?;
        wait_for_topics(&consumer, &options)?;
        let input = |topic: &String| (topic.clone(), metrics.input(topic, &options.group_id));
        let consumed = options.topics.iter().map(input).collect();
        let look_out = options.group_instance_id.as_ref().map(|_| LookOut::start(&options));
        Ok(Self {
            course: options.bounds.clone().map(Course::new),
            options,
            consumer: Arc::new(consumer),
            beat,
            consumed,
            look_out,
            full: false,
            regulated: Instant::now(),
            admitted: 0,
        })
    }

    /// The consumer, for the sink's transactions.
    pub fn consumer(&self) -> Arc<Consumer> {
        self.consumer.clone()
    }

    fn read(&mut self, stop: &StopSignal) -> Result<(), SourceError> {
        while !stop.is_draining() {
            self.beat.beat();
            let consumer = self.consumer.clone();
            let wait = self.pace();
            std::thread::sleep(wait);
            match if wait.is_zero() { consumer.poll(POLL) } else { None } {
                Some(Ok(message)) => {
                    fail::fail_point!("after_poll");
                    match self.admit(&message) {
                        Ok(bytes) => self.admitted += bytes,
                        Err(Stopped) => return Ok(()),
                    }
                }
                Some(Err(KafkaError::PartitionEOF(id))) => self.reach(id),
                Some(Err(error)) => check(&consumer, &error)?,
                None => {}
            }
            if self.regulated.elapsed() >= REGULATE || self.admitted >= self.options.intake.max_bytes / REGULATE_PART {
                self.consumer.context().let_in(&self.consumer);
                self.regulate();
                self.close_gaps()?;
                (self.regulated, self.admitted) = (Instant::now(), 0);
                if self.is_complete() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn subscribe(&self) -> Result<(), SourceError> {
        let topics: Vec<&str> = self.options.topics.iter().map(String::as_str).collect();
        self.consumer.subscribe(&topics).map_err(|e| SourceError(format!("cannot subscribe to {topics:?}: {e}")))
    }

    /// Brings about a rebalance where a start without one has left partitions to nobody.
    fn close_gaps(&self) -> Result<(), SourceError> {
        if self.look_out.as_ref().is_some_and(LookOut::wants_rejoin) {
            tracing::warn!("partitions that no member of the group has: leaving and joining again");
            self.consumer.unsubscribe();
            self.subscribe()?;
        }
        Ok(())
    }

    /// How long reading must wait, no longer than a poll would.
    fn pace(&self) -> Duration {
        self.course.as_ref().map_or(Duration::ZERO, |course| course.bounds.pace.wait().min(POLL))
    }

    /// The end of a partition as it is now. A source with bounds has one topic.
    fn reach(&mut self, id: i32) {
        let guard = self.consumer.context().intake();
        if let (Some(intake), Some(course)) = (guard.as_ref(), &mut self.course) {
            course.reach(intake, &Partition { topic: course.bounds.topic.clone(), id });
        }
    }

    /// Notes the ends that were reached; whether that was all.
    fn is_complete(&mut self) -> bool {
        let Some(course) = &mut self.course else { return false };
        let context = self.consumer.context();
        course.settle(&self.consumer, |partition| context.intake().as_ref()?.epoch(partition));
        course.is_complete(&self.consumer)
    }

    fn admit(&mut self, message: &BorrowedMessage<'_>) -> Result<usize, Stopped> {
        if let Some(input) = self.consumed.get(message.topic()) {
            input.consumed(1);
        }
        let partition = Partition { topic: message.topic().into(), id: message.partition() };
        let message = detach(message);
        let mut guard = self.consumer.context().intake();
        let Some(intake) = guard.as_mut() else { return Ok(0) };
        let Some(course) = &mut self.course else { return intake.admit(&partition, message) };
        let offset = message.offset;
        let admitted = if course.takes(intake, &partition, &message) { intake.admit(&partition, message)? } else { 0 };
        course.passed(intake, &partition, offset);
        Ok(admitted)
    }

    /// Pauses partitions that hold too much and resumes those that have room again.
    fn regulate(&mut self) {
        let options = &self.options.intake;
        let mut guard = self.consumer.context().intake();
        let Some(intake) = guard.as_mut() else { return };
        let total = intake.total_bytes();
        // Half is the low mark of the whole: a pause throws away what was fetched ahead, so it must not flutter.
        self.full = total >= options.max_bytes || self.full && total > options.max_bytes / 2;
        let rests = self.course.as_ref().is_some_and(|course| course.bounds.pace.rests());
        let over: Vec<Partition> = match &self.course {
            Some(course) => intake.partitions().into_iter().filter(|p| rests || course.is_over(intake, p)).collect(),
            None => Vec::new(),
        };
        for (partition, admitted) in &mut intake.partitions {
            let bytes = admitted.gauge.bytes();
            let pause = match admitted.paused {
                false => self.full || bytes >= options.partition_high_bytes,
                true => self.full || bytes > options.partition_low_bytes,
            };
            let pause = pause || over.contains(partition);
            if pause == admitted.paused {
                continue;
            }
            let mut list = TopicPartitionList::new();
            list.add_partition(&partition.topic, partition.id);
            let done = if pause { self.consumer.pause(&list) } else { self.consumer.resume(&list) };
            match done {
                Ok(()) => {
                    tracing::debug!(%partition, bytes, "{}", if pause { "partition paused" } else { "partition resumed" });
                    admitted.paused = pause;
                    admitted.watch.set_paused(pause);
                }
                Err(error) => tracing::warn!(%error, %partition, pause, "cannot pause or resume a partition"),
            }
        }
    }

    /// Waits for what was admitted, polling on so that the group membership lasts.
    ///
    /// # Errors
    /// When it takes longer than it may.
    fn drain(&mut self, stop: &StopSignal) -> Result<(), SourceError> {
        if let Ok(list) = self.consumer.assignment()
            && let Err(error) = self.consumer.pause(&list)
        {
            tracing::warn!(%error, "cannot pause the assignment for the drain");
        }
        let answer = match self.consumer.context().intake().as_ref() {
            Some(intake) => intake.drain(&intake.partitions(), self.options.drain_timeout),
            None => return Ok(()),
        };
        fail::fail_point!("drain");
        let deadline = Instant::now() + self.options.drain_timeout + Duration::from_secs(1);
        while !stop.is_abandoned() && Instant::now() < deadline {
            self.beat.beat();
            let consumer = self.consumer.clone();
            // A message that still comes out was fetched before the pause; its offset is not committed.
            let _ = consumer.poll(Duration::from_millis(10));
            match answer.try_recv() {
                Ok(true) => {
                    tracing::info!("drained");
                    return Ok(());
                }
                Ok(false) => break,
                Err(crossbeam_channel::TryRecvError::Empty) => {}
                // The committer has failed, and says why.
                Err(crossbeam_channel::TryRecvError::Disconnected) => return Ok(()),
            }
        }
        if stop.is_abandoned() {
            return Ok(());
        }
        let limit = "not all was finished within worker.drain_timeout_ms: what is left will be read again";
        Err(SourceError(limit.to_owned()))
    }
}

impl Source for KafkaSource {
    fn run(mut self: Box<Self>, intake: Intake, stop: &StopSignal) -> Result<(), SourceError> {
        *self.consumer.context().intake() = Some(intake);
        self.subscribe()?;
        let mut read = self.read(stop);
        if read.is_ok() && !stop.is_abandoned() {
            read = self.drain(stop);
        }
        // Closes the way into the pipeline; every stage ends when its input has.
        if let Some(mut intake) = self.consumer.context().intake().take() {
            let partitions = intake.partitions();
            intake.release(&partitions);
        }
        read
    }
}

/// How soon a worker sees that a topic has grown.
const METADATA_REFRESH_MS: &str = "15000";

fn client_config(options: &KafkaSourceOptions) -> ClientConfig {
    let mut config = options.connection.client(&options.properties);
    config.set("group.id", &options.group_id);
    if let Some(instance) = &options.group_instance_id {
        config.set("group.instance.id", instance);
    }
    // The transaction commits the offsets, and only whole transactions of others are read.
    config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
    config.set("isolation.level", "read_committed");
    config.set("statistics.interval.ms", "5000");
    if options.bounds.is_some() {
        config.set("enable.partition.eof", "true");
    }
    if config.get("topic.metadata.refresh.interval.ms").is_none() {
        config.set("topic.metadata.refresh.interval.ms", METADATA_REFRESH_MS);
    }
    config
}

fn wait_for_topics(consumer: &Consumer, options: &KafkaSourceOptions) -> Result<(), ConnectError> {
    let deadline = Instant::now() + options.startup_timeout;
    let unavailable = |reason| options.connection.unavailable(options.startup_timeout, reason);
    options
        .topics
        .iter()
        .try_for_each(|topic| partition_count(consumer, topic, "input.topics", deadline, unavailable).map(drop))
}

/// Errors that librdkafka mends by itself are logged; those that it cannot mend stop the worker.
fn check(consumer: &Consumer, error: &KafkaError) -> Result<(), SourceError> {
    use RDKafkaErrorCode as Code;
    // Some fatal errors come under their own code, some as a hint to ask for it.
    let (code, reason) = match error.rdkafka_error_code() {
        Some(Code::Fatal) => consumer.client().fatal_error().unwrap_or((Code::Fatal, error.to_string())),
        code => (code.unwrap_or(Code::Unknown), error.to_string()),
    };
    let hopeless = [Code::Fatal, Code::AutoOffsetReset, Code::TopicAuthorizationFailed, Code::GroupAuthorizationFailed];
    if code == Code::FencedInstanceId {
        let advice = "another worker has the same worker.instance, give every worker one of its own";
        return Err(SourceError(format!("{advice}: {reason}")));
    }
    if matches!(error, KafkaError::MessageConsumptionFatal(_)) || hopeless.contains(&code) {
        return Err(SourceError(reason));
    }
    tracing::warn!(%error, "consumer error");
    Ok(())
}
