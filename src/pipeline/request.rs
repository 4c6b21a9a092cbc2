//! A document on its way, and what goes through the model for it.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;

use crate::cache::{Key, TagCache};
use crate::commit::Command;
use crate::decode::Document;
use crate::encode::Tags;
use crate::infer::Logits;
use crate::record::{Code, Position, Record, Reject, Stage};
use crate::serving::Version;
use crate::sink::{Conclusion, Outcome};
use crate::source::OUTPUT_COPIES;
use crate::telemetry::RecordSpan;
use crate::tokenize::{Tokens, Window};

/// A document on its way through the model.
pub(super) struct Request {
    pub(super) record: Record<()>,
    /// Taken by the encoder, for the end of the way.
    pub(super) span: Mutex<RecordSpan>,
    pub(super) document: Document,
    /// By slot.
    pub(super) readings: Vec<Reading>,
    /// Windows without an answer.
    pub(super) missing: AtomicUsize,
}

/// A document as one model reads it.
pub(super) struct Reading {
    /// What tags it, from here to the end of its way.
    pub(super) version: Arc<Version>,
    /// Its tags, if the text came before; nothing goes through the model then.
    pub(super) known: Option<Arc<Tags>>,
    /// Where its tags go, if they are kept.
    pub(super) key: Option<Key>,
    pub(super) tokens: Tokens,
    /// The answers by window.
    pub(super) answers: Vec<OnceLock<Result<Logits, Reject>>>,
}

impl Reading {
    pub(super) fn new(version: Arc<Version>, document: &Document, cache: Option<&TagCache>) -> Result<Self, Reject> {
        let key = cache.map(|_| Key::new(version.model(), document));
        if let Some(known) = cache.zip(key).and_then(|(cache, key)| cache.get(&key)) {
            let (tokens, answers) = (Tokens::default(), Vec::new());
            return Ok(Self { version, known: Some(known), key, tokens, answers });
        }
        let tokens = version.model().tokenizer.tokenize(&document.text, document.words.as_deref())?;
        if tokens.windows.is_empty() {
            return Err(Reject::new(Stage::Tokenize, Code::EmptyText, "the text has no words"));
        }
        let answers = tokens.windows.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { version, known: None, key, tokens, answers })
    }

    pub(super) fn logits(&self) -> Result<Vec<&Logits>, Reject> {
        let answers = self.answers.iter().map(|answer| match answer.get() {
            Some(Ok(logits)) => Ok(logits),
            Some(Err(reject)) => Err(reject.clone()),
            None => Err(Reject::new(Stage::Infer, Code::InferenceFailed, "a window has no answer")),
        });
        answers.collect()
    }
}

/// One window of a document, as the model of a slot reads it.
pub(super) struct Item {
    pub(super) request: Arc<Request>,
    pub(super) slot: usize,
    pub(super) window: usize,
}

impl Item {
    pub(super) fn reading(&self) -> &Reading {
        &self.request.readings[self.slot]
    }

    pub(super) fn tokens(&self) -> usize {
        self.reading().tokens.windows[self.window].ids.len()
    }

    pub(super) fn is_first(&self) -> bool {
        (self.slot, self.window) == (0, 0)
    }
}

impl std::borrow::Borrow<Window> for Item {
    fn borrow(&self) -> &Window {
        &self.reading().tokens.windows[self.window]
    }
}

/// What a record is known by: its key, else its document's id, else its place in the input.
pub(super) fn identity<T>(record: &Record<T>, document: &Document) -> Vec<u8> {
    match (&record.original.key, &document.id) {
        (Some(key), _) => key.to_vec(),
        (None, Some(serde_json::Value::String(id))) => id.clone().into_bytes(),
        (None, Some(id)) => id.to_string().into_bytes(),
        (None, None) => {
            let Position { partition, offset, .. } = &record.position;
            format!("{}-{}-{offset}", partition.topic, partition.id).into_bytes()
        }
    }
}

/// A record at the end of its way.
pub(super) fn finish(record: Record<RecordSpan>, outcome: Outcome) -> Command {
    let Record { position, original, payload: span } = record;
    original.held.settle(match &outcome {
        Outcome::Output(bytes) => OUTPUT_COPIES * bytes.len(),
        // librdkafka's copy of the value.
        _ => original.value.as_ref().map_or(0, Bytes::len),
    });
    Command::Finish(Record { position, original, payload: Conclusion { outcome, span } })
}
