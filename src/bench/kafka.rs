//! Topic to topic exactly once, with a worker as `vitag run` starts it.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use super::BenchError;
use super::machine::cpu_seconds;
use super::run::Run;
use super::subject::Subject;
use super::topics::Topics;
use crate::admin::Health;
use crate::config::{Delivery, OffsetReset, Settings};
use crate::kafka::onlooker_config;
use crate::pipeline::Monitor;
use crate::source::StopSignal;
use crate::worker;

/// When nothing comes for so long, something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);
/// Outputs further apart than this are of different commits.
const LULL: Duration = Duration::from_millis(20);

/// Writes the documents to a topic, and times how fast a worker commits their annotations.
///
/// # Errors
/// When there is no broker, the worker fails, or a document is refused.
pub fn run(subject: &Subject, partitions: i32) -> Result<Run, BenchError> {
    let topics = Topics::create(&subject.settings, partitions)?;
    topics.feed(&subject.documents)?;
    let settings = settings(&subject.settings, &topics);
    let reader = Reader::of(&topics)?;
    let (stop, health, monitor) = (StopSignal::default(), Health::new(), Monitor::disabled());
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| worker::run(&settings, &monitor, &health, &stop));
        let run = reader.time(subject.documents.len(), || worker.is_finished());
        stop.drain();
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        run
    })
}

/// Those of the subject, for topics and a group that nobody else has.
fn settings(of: &Settings, topics: &Topics) -> Settings {
    let mut settings = of.clone();
    settings.input.topics = vec![topics.input.clone()];
    settings.output.topic = Some(topics.output.clone());
    settings.output.dead_letter_topic = Some(topics.dead_letters.clone());
    settings.kafka.group_id = topics.group.clone();
    settings.kafka.auto_offset_reset = OffsetReset::Earliest;
    // A member that leaves lets the group be removed.
    settings.kafka.static_membership = false;
    settings.worker.delivery = Delivery::ExactlyOnce;
    settings.rollout.topic_prefix = None;
    settings
}

/// Reads what a worker has committed, as it comes.
struct Reader<'t> {
    consumer: BaseConsumer,
    topics: &'t Topics,
}

impl<'t> Reader<'t> {
    fn of(topics: &'t Topics) -> Result<Self, BenchError> {
        let mut config = onlooker_config(&topics.connection, &topics.consumer_properties, &topics.group);
        // More will come where nothing more is for now.
        let consumer: BaseConsumer = config.set("enable.partition.eof", "false").create()?;
        let mut assigned = TopicPartitionList::new();
        for topic in [&topics.output, &topics.dead_letters] {
            for partition in 0..topics.partitions {
                assigned.add_partition_offset(topic, partition, Offset::Beginning)?;
            }
        }
        consumer.assign(&assigned)?;
        Ok(Self { consumer, topics })
    }

    fn time(&self, documents: usize, is_over: impl Fn() -> bool) -> Result<Run, BenchError> {
        let mut commits = Commits::from(Moment::now(0));
        let mut last = Instant::now();
        while commits.documents() < documents {
            let Some(message) = self.consumer.poll(Duration::from_millis(100)).transpose()? else {
                if last.elapsed() > PATIENCE {
                    return Err(BenchError::Silence { of: commits.documents(), all: documents, waited: PATIENCE });
                }
                if is_over() {
                    return Err(BenchError::Ended);
                }
                continue;
            };
            if message.topic() == self.topics.dead_letters {
                return Err(BenchError::Refused(1));
            }
            last = Instant::now();
            commits.saw_one(Moment::now(commits.documents() + 1));
        }
        Ok(commits.run())
    }
}

/// How far a worker was at a time.
#[derive(Clone, Copy, Debug)]
struct Moment {
    at: Instant,
    cpu_seconds: f64,
    documents: usize,
}

impl Moment {
    fn now(documents: usize) -> Self {
        Self { at: Instant::now(), cpu_seconds: cpu_seconds(), documents }
    }
}

/// The moments when commits had been read to their ends, after that when the reader began.
struct Commits(Vec<Moment>);

impl Commits {
    fn from(start: Moment) -> Self {
        Self(vec![start])
    }

    fn documents(&self) -> usize {
        self.0.last().map_or(0, |moment| moment.documents)
    }

    fn saw_one(&mut self, moment: Moment) {
        match self.0.as_mut_slice() {
            [_, .., last] if moment.at.duration_since(last.at) < LULL => *last = moment,
            _ => self.0.push(moment),
        }
    }

    /// From the end of the first commit to that of the last but one: the start of the group and the wait for the last
    /// commit, which may be shorter than its interval, say nothing of the throughput. Of few commits all count.
    fn run(&self) -> Run {
        let (from, to) = match self.0.as_slice() {
            [_, first, .., last, _] => (*first, *last),
            [.., first, last] => (*first, *last),
            _ => return Run::default(),
        };
        Run {
            documents: (to.documents - from.documents) as f64,
            seconds: to.at.duration_since(from.at).as_secs_f64(),
            cpu_seconds: to.cpu_seconds - from.cpu_seconds,
            model: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_commit_and_the_last_are_left_out() {
        let start = Instant::now();
        let moment = |ms: u64, documents| Moment {
            at: start + Duration::from_millis(ms),
            cpu_seconds: ms as f64 / 500.0,
            documents,
        };
        let mut commits = Commits::from(moment(0, 0));
        for (ms, documents) in [(3_000, 1), (3_010, 10), (3_200, 11), (3_205, 30), (3_400, 50), (3_600, 51)] {
            commits.saw_one(moment(ms, documents));
        }
        let run = commits.run();
        assert_eq!((run.documents, run.seconds), (40.0, 0.39));
        assert!((run.cpu_seconds - 0.78).abs() < 1e-9);
    }
}
