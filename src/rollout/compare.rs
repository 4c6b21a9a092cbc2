//! How far two versions agree on a text.

use std::collections::BTreeSet;

use crate::decode::Document;
use crate::encode::{Annotation, OffsetUnit, annotate, tags};
use crate::infer::Logits;
use crate::record::{Partition, Position};
use crate::serving::Version;

/// Windows that are run at once: what is compared is in nobody's hurry.
const WINDOWS: usize = 16;

/// Words and entities that two annotations have in common, and all that either has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// In both, with the same bounds and labels.
    pub same: u64,
    /// In either.
    pub all: u64,
}

impl Agreement {
    /// Of two annotations of one text.
    pub fn of(a: &Annotation, b: &Annotation) -> Self {
        let (a, b) = (marks(a), marks(b));
        let same = a.intersection(&b).count() as u64;
        Self { same, all: (a.len() + b.len()) as u64 - same }
    }

    /// With those of another text.
    pub fn add(&mut self, other: Self) {
        self.same += other.same;
        self.all += other.all;
    }

    /// The share in common, 0 to 1: Jaccard's index. Nothing agrees with nothing.
    pub fn share(self) -> f64 {
        if self.all == 0 { 1.0 } else { self.same as f64 / self.all as f64 }
    }
}

/// Words with their parts of speech, and entities: kind, bounds, label.
fn marks(annotation: &Annotation) -> BTreeSet<(bool, usize, usize, &str)> {
    let tokens = annotation.tokens.iter();
    let words = tokens.map(|token| (false, token.start, token.end, token.pos.as_deref().unwrap_or_default()));
    let entities = annotation.entities.iter().map(|entity| (true, entity.start, entity.end, entity.label.as_str()));
    words.chain(entities).collect()
}

/// Tags a document on the last session of a version, which no lane uses where it has more than the lanes.
///
/// # Errors
/// Why it cannot be tagged.
pub fn tag(version: &Version, document: &Document, unit: OffsetUnit) -> Result<Annotation, String> {
    let tokenizer = &version.model().tokenizer;
    let tokens = tokenizer.tokenize(&document.text, document.words.as_deref()).map_err(|e| e.to_string())?;
    let mut session = version.session(version.sessions() - 1);
    let mut answers: Vec<Logits> = Vec::with_capacity(tokens.windows.len());
    for windows in tokens.windows.chunks(WINDOWS) {
        answers.extend(session.run(windows).map_err(|e| e.to_string())?);
    }
    drop(session);
    let windows: Vec<&Logits> = answers.iter().collect();
    let position = Position { partition: Partition { topic: "".into(), id: 0 }, offset: 0, epoch: 0, slot: 0 };
    let model = (version.slot(), version.model());
    let tags = tags(document, &tokens, &windows, version.model(), unit);
    Ok(annotate(document, tags, model, (&position, None), unit))
}
