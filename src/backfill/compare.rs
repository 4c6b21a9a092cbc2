//! A second model beside the first, over the same records: where the two agree, and what they see otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::Serialize;
use serde_json::{Value, json};

use super::BackfillError;
use crate::commit::Report;
use crate::config::{OutputMode, Settings};
use crate::encode::{Annotation, Form};
use crate::pipeline::{self, Monitor, PipelineError};
use crate::record::Partition;
use crate::serving::Serving;
use crate::sink::{Finished, Outcome, Sink, SinkError};
use crate::source::{Intake, IntakeOptions, Message, Source, SourceError, StopSignal, Stopped};
use crate::telemetry::Metrics;
use crate::worker::{intake_options, loader, pipeline_options, serve};

/// How far two models agree, over the records of a run that both have tagged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// Directory of the second model.
    pub model: String,
    /// Records.
    pub records: u64,
    /// Of these, tagged the same.
    pub same: u64,
    /// Records that the second model refused.
    pub refused: u64,
    /// By label, `pos/` or `entity/` before it.
    pub labels: BTreeMap<String, Agreement>,
}

/// Places that have a label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Agreement {
    /// By both models.
    pub both: u64,
    /// By the first alone.
    pub first: u64,
    /// By the second alone.
    pub second: u64,
}

impl Agreement {
    /// Share of the places that both agree on: Jaccard's index.
    pub fn ratio(&self) -> f64 {
        let all = self.both + self.first + self.second;
        if all == 0 { 1.0 } else { self.both as f64 / all as f64 }
    }
}

/// A label at a place.
type Mark = (usize, usize, String);

fn marks(annotation: &Annotation) -> BTreeSet<Mark> {
    let pos = annotation.tokens.iter().filter_map(|t| Some((t.start, t.end, format!("pos/{}", t.pos.as_ref()?))));
    pos.chain(annotation.entities.iter().map(|e| (e.start, e.end, format!("entity/{}", e.label)))).collect()
}

impl Comparison {
    /// Adds a record; returns what the first and the second see alone.
    fn add(&mut self, first: &Annotation, second: &Annotation) -> [Vec<Mark>; 2] {
        let (first, second) = (marks(first), marks(second));
        let mut count = |mark: &Mark, field: fn(&mut Agreement) -> &mut u64| {
            *field(self.labels.entry(mark.2.clone()).or_default()) += 1;
        };
        first.intersection(&second).for_each(|mark| count(mark, |a| &mut a.both));
        first.difference(&second).for_each(|mark| count(mark, |a| &mut a.first));
        second.difference(&first).for_each(|mark| count(mark, |a| &mut a.second));
        self.records += 1;
        self.same += u64::from(first == second);
        [first.difference(&second).cloned().collect(), second.difference(&first).cloned().collect()]
    }
}

/// A second model at work, with a thread of its own.
pub struct Second {
    messages: Sender<Message>,
    answers: Receiver<(i64, Option<Bytes>)>,
    sent: i64,
    /// Where differing records go, a line each.
    differences: Option<Box<dyn Write + Send>>,
    merge_key: Option<String>,
    comparison: Arc<Mutex<Comparison>>,
}

impl Second {
    /// Loads the model of the settings, and writes the differing records to a file if one is named.
    ///
    /// # Errors
    /// When the model cannot be loaded, or the file not be made.
    pub fn start(settings: Settings, differences: Option<&Path>) -> Result<Self, BackfillError> {
        let model = settings.model.to_string();
        let serving = serve(&settings, &loader(&settings, &Metrics::disabled())?)?;
        let file = |path: &Path| -> std::io::Result<Box<dyn Write + Send>> {
            Ok(Box::new(std::io::BufWriter::new(std::fs::File::create(path)?)))
        };
        let differences = differences.map(file).transpose().map_err(BackfillError::Store)?;
        let ((messages, inbox), (outbox, answers)) = (unbounded(), unbounded());
        let merge_key = (settings.output.mode == OutputMode::Merge).then(|| settings.output.merge_key.clone());
        std::thread::spawn(move || {
            if let Err(error) = tag(&settings, &serving, inbox, outbox) {
                tracing::error!(%error, "the model to compare with has failed");
            }
        });
        let comparison = Comparison { model, ..Comparison::default() };
        let comparison = Arc::new(Mutex::new(comparison));
        Ok(Self { messages, answers, sent: 0, differences, merge_key, comparison })
    }

    /// What it has found, also when it is gone.
    pub fn comparison(&self) -> Arc<Mutex<Comparison>> {
        self.comparison.clone()
    }

    /// How long the model takes for `messages`.
    pub(super) fn time(&mut self, messages: Vec<Message>) -> Result<Duration, String> {
        let (started, count) = (Instant::now(), messages.len());
        for message in messages {
            self.messages.send(message).map_err(|_| "the model has failed")?;
        }
        for _ in 0..count {
            self.answers.recv().map_err(|_| "the model has failed")?;
        }
        Ok(started.elapsed())
    }

    /// Compares what was published.
    fn compare(&mut self, records: &[&Finished]) -> Result<(), String> {
        let first = self.sent;
        let mut tagged = Vec::new();
        for finished in records {
            let Outcome::Output(output) = &finished.payload.outcome else { continue };
            let value = finished.original.value.clone();
            let message = Message { offset: self.sent, key: None, value, headers: vec![], timestamp_ms: None };
            self.messages.send(message).map_err(|_| "it has stopped")?;
            tagged.push((finished, output));
            self.sent += 1;
        }
        // One at a time come in the order of their numbers, as they are of one partition.
        for (number, (finished, output)) in tagged.into_iter().enumerate() {
            let (answered, answer) = self.answers.recv().map_err(|_| "it has stopped")?;
            debug_assert_eq!(answered, first + number as i64);
            self.add(finished, output, answer.as_deref()).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn add(&mut self, finished: &Finished, output: &[u8], answer: Option<&[u8]>) -> std::io::Result<()> {
        let mut comparison = self.comparison.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(answer) = answer else {
            comparison.refused += 1;
            return Ok(());
        };
        let first: Annotation = match &self.merge_key {
            None => serde_json::from_slice(output)?,
            Some(key) => serde_json::from_value(serde_json::from_slice::<Value>(output)?[key].take())?,
        };
        let [only_first, only_second] = comparison.add(&first, &serde_json::from_slice(answer)?);
        let differs = !only_first.is_empty() || !only_second.is_empty();
        if let Some(file) = self.differences.as_mut().filter(|_| differs) {
            let Partition { topic, id } = &finished.position.partition;
            let line = json!({
                "topic": &**topic, "partition": id, "offset": finished.position.offset, "id": first.id,
                "text": first.text, "only_first": only_first, "only_second": only_second,
            });
            writeln!(file, "{line}")?;
        }
        Ok(())
    }
}

/// A sink whose publications are compared.
pub(super) struct Compared<S> {
    pub(super) sink: S,
    pub(super) second: Option<Second>,
}

impl<S: Sink> Sink for Compared<S> {
    fn publish(&mut self, records: &[&Finished], offsets: &[(Partition, i64)]) -> Result<(), SinkError> {
        self.sink.publish(records, offsets)?;
        let Some(second) = &mut self.second else { return Ok(()) };
        second.compare(records).map_err(|e| SinkError::Fatal(format!("--compare-with: {e}")))?;
        let flushed = second.differences.as_mut().map_or(Ok(()), |file| file.flush());
        flushed.map_err(|e| SinkError::Fatal(format!("--differences: {e}")))
    }

    fn settle(&mut self) -> Result<(), SinkError> {
        self.sink.settle()
    }
}

fn tag(
    settings: &Settings,
    serving: &Serving,
    inbox: Receiver<Message>,
    outbox: Sender<(i64, Option<Bytes>)>,
) -> Result<(), PipelineError> {
    let mut stages = pipeline_options(settings);
    stages.encode.form = Form::Envelope;
    stages.encode.max_record_bytes = usize::MAX;
    stages.commit.interval = Duration::from_millis(2);
    stages.commit.breaker = crate::commit::BreakerOptions::off();
    let monitor = Monitor::disabled();
    let report = Report::new(monitor.metrics.clone(), "", None);
    let source = Inbox { inbox, intake: intake_options(settings) };
    pipeline::run(Box::new(source), Outbox(outbox), serving, &stages, (&monitor, report), &StopSignal::default())
}

struct Inbox {
    inbox: Receiver<Message>,
    intake: IntakeOptions,
}

impl Source for Inbox {
    fn run(self: Box<Self>, mut intake: Intake, stop: &StopSignal) -> Result<(), SourceError> {
        let partition = Partition { topic: "compared".into(), id: 0 };
        intake.assign(partition.clone());
        for message in &self.inbox {
            while intake.total_bytes() >= self.intake.max_bytes && !stop.is_draining() {
                std::thread::sleep(Duration::from_millis(1));
            }
            if let Err(Stopped) = intake.admit(&partition, message) {
                break;
            }
        }
        // Whoever closed the inbox has had all answers.
        intake.release(&[partition]);
        Ok(())
    }
}

struct Outbox(Sender<(i64, Option<Bytes>)>);

impl Sink for Outbox {
    fn publish(&mut self, records: &[&Finished], _: &[(Partition, i64)]) -> Result<(), SinkError> {
        for finished in records {
            let answer = match &finished.payload.outcome {
                Outcome::Output(bytes) => Some(bytes.clone()),
                _ => None,
            };
            self.0.send((finished.position.offset, answer)).map_err(|_| SinkError::Closed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_counts_places_with_their_labels() {
        let annotation = |labels: &[(usize, usize, &str)]| -> Annotation {
            let entity = |&(start, end, label): &(usize, usize, &str)| json!({ "start": start, "end": end, "label": label, "text": "", "score": 1, "token_start": 0, "token_end": 0 });
            serde_json::from_value(json!({
                "schema_version": 1, "id": null, "text": "", "offset_unit": "code_point", "truncated": false,
                "source": { "topic": "", "partition": 0, "offset": 0, "timestamp": null },
                "models": [],
                "sentences": [], "tokens": [], "entities": labels.iter().map(entity).collect::<Value>(),
            }))
            .unwrap()
        };
        let mut comparison = Comparison::default();
        let first = annotation(&[(0, 3, "PER"), (5, 8, "LOC")]);
        let second = annotation(&[(0, 3, "PER"), (5, 9, "LOC"), (10, 12, "ORG")]);
        let [only_first, only_second] = comparison.add(&first, &second);
        assert_eq!(only_first, [(5, 8, "entity/LOC".to_owned())]);
        assert_eq!(only_second.len(), 2);
        comparison.add(&first, &first);
        assert_eq!((comparison.records, comparison.same), (2, 1));
        let loc = comparison.labels["entity/LOC"];
        assert_eq!(loc, Agreement { both: 1, first: 1, second: 1 });
        assert!((loc.ratio() - 1.0 / 3.0).abs() < 1e-9);
    }
}
