//! The models that a worker serves: loaded, verified, and proven on their golden set.

use std::path::{Path, PathBuf};

use crate::infer::{InferError, InferOptions, Logits, Runtime, Session, SessionError};
use crate::manifest::{GoldenCase, Head, ManifestError, ModelDir, TOKENIZER, Task, Variant};
use crate::record::Reject;
use crate::tags::{Labels, stitch};
use crate::tokenize::{Tokenizer, TokenizerError};

/// A model whose files are verified; sessions are opened on it.
#[derive(Debug)]
pub struct Model {
    /// Its directory.
    pub dir: ModelDir,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// The labels of every head, in the order of the manifest.
    pub labels: Vec<Labels>,
    /// Which of its graphs is served.
    pub variant: Variant,
}

/// A model cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Its directory is not in order.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its tokenizer cannot be used.
    #[error("{TOKENIZER}: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// No session can be opened on it.
    #[error("{}: {source}", variant.graph())]
    Session {
        /// Of which graph.
        variant: Variant,
        /// Why not.
        source: SessionError,
    },
    /// A model of another slot has a head for the same task.
    #[error("slot {slot:?} has a model for the same task, {task:?}: no two slots may have one task")]
    SameTask {
        /// The task.
        task: Task,
        /// The other slot.
        slot: String,
    },
    /// It cannot be run on batches as large as those of the stream.
    #[error("{}: warming up: {reason}", variant.graph())]
    WarmUp {
        /// Of which graph.
        variant: Variant,
        /// Why not.
        reason: String,
    },
    /// It gives other answers than its golden set.
    #[error("{}: {reason}", variant.golden())]
    Golden {
        /// Of which graph.
        variant: Variant,
        /// How they differ.
        reason: String,
    },
}

impl Model {
    /// Loads the model in `path`, with every hash verified.
    ///
    /// # Errors
    /// When a file is missing, altered, or not of its form, or the model has no such variant.
    pub fn load(path: &Path, variant: Variant) -> Result<Self, ModelError> {
        let dir = ModelDir::open(path)?;
        dir.has(variant)?;
        let manifest = &dir.manifest;
        let tokenizer = Tokenizer::from_file(&dir.file(TOKENIZER), manifest.unit, manifest.max_length)?;
        let labels = manifest.heads.iter().map(Head::labels).collect::<Result<_, _>>()?;
        Ok(Self { dir, tokenizer, labels, variant })
    }

    /// Opens so many sessions and runs the golden set on each.
    ///
    /// # Errors
    /// When the graph is not what the manifest says, or an answer differs from the golden one.
    pub fn sessions(
        &self,
        runtime: &Runtime,
        options: &InferOptions,
        count: usize,
    ) -> Result<Vec<Session>, ModelError> {
        let mut sessions = self.unproven_sessions(runtime, options, count)?;
        sessions.iter_mut().try_for_each(|session| self.prove(session))?;
        Ok(sessions)
    }

    /// Opens a session and runs the golden set on it.
    ///
    /// # Errors
    /// As [`Model::sessions`].
    pub fn session(&self, runtime: &Runtime, options: &InferOptions) -> Result<Session, ModelError> {
        Ok(self.sessions(runtime, options, 1)?.remove(0))
    }

    /// Opens so many sessions that may give other answers than the golden set; for whoever makes that.
    ///
    /// # Errors
    /// When the graph is not what the manifest says.
    pub fn unproven_sessions(
        &self,
        runtime: &Runtime,
        options: &InferOptions,
        count: usize,
    ) -> Result<Vec<Session>, ModelError> {
        let refused = |source| ModelError::Session { variant: self.variant, source };
        Session::open(runtime, self, options, count).map_err(refused)
    }

    /// Path of the graph.
    pub fn graph(&self) -> PathBuf {
        self.dir.file(self.variant.graph())
    }

    /// The head of a task, with its place among the heads.
    pub fn head(&self, task: Task) -> Option<(usize, &Labels)> {
        let index = self.dir.manifest.heads.iter().position(|head| head.task == task)?;
        Some((index, &self.labels[index]))
    }

    /// The tasks of its heads.
    pub fn tasks(&self) -> impl Iterator<Item = Task> {
        self.dir.manifest.heads.iter().map(|head| head.task)
    }

    fn prove(&self, session: &mut Session) -> Result<(), ModelError> {
        let golden = self.dir.golden(self.variant)?;
        let failed = |reason| ModelError::Golden { variant: self.variant, reason };
        if golden.cases.is_empty() {
            return Err(failed("there are no cases, so nothing is proven".to_owned()));
        }
        for case in &golden.cases {
            self.prove_case(session, case, golden.tolerance)
                .map_err(|reason| failed(format!("{:?}: {reason}", shorten(&case.text))))?;
        }
        Ok(())
    }

    fn prove_case(&self, session: &mut Session, case: &GoldenCase, tolerance: f32) -> Result<(), String> {
        let tokens = self.tokenizer.tokenize(&case.text, None).map_err(|e: Reject| e.to_string())?;
        if tokens.windows.is_empty() {
            return Err("the text has no words".to_owned());
        }
        let answers = session.run(&tokens.windows).map_err(|e: InferError| e.to_string())?;
        for (index, head) in self.dir.manifest.heads.iter().enumerate() {
            let expected = case.heads.get(&head.name).ok_or_else(|| format!("no answers for head {:?}", head.name))?;
            let of_head: Vec<&Vec<f32>> = answers.iter().map(|logits: &Logits| &logits[index]).collect();
            let labels = &self.labels[index];
            let logits = stitch(&tokens, &of_head, labels.count());
            let wanted: Vec<f32> = expected.logits.iter().flatten().copied().collect();
            if wanted.len() != logits.len() {
                return Err(format!("head {:?}: {} logits, expected {}", head.name, logits.len(), wanted.len()));
            }
            let difference = greatest_difference(&logits, &wanted);
            if difference.is_nan() || difference > tolerance {
                return Err(format!("head {:?}: logits differ by {difference}, {tolerance} is accepted", head.name));
            }
            let path = labels.best_by_sentence(&tokens.sentences, &logits);
            let tags: Vec<&str> = path.iter().map(|&label| labels.names()[label].as_str()).collect();
            if tags != expected.tags {
                return Err(format!("head {:?}: tags are {tags:?}, expected {:?}", head.name, expected.tags));
            }
        }
        Ok(())
    }
}

/// NaN if any of the numbers is: [`f32::max`] would pass over it.
fn greatest_difference(a: &[f32], b: &[f32]) -> f32 {
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |most: f32, next| if most.is_nan() || next <= most { most } else { next })
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logit_that_is_no_number_is_never_near_enough() {
        assert_eq!(greatest_difference(&[1.0, 2.0, 3.0], &[1.0, 2.5, 3.0]), 0.5);
        assert!(greatest_difference(&[1.0, f32::NAN], &[1.0, 2.0]).is_nan());
        assert!(greatest_difference(&[f32::NAN, 1.0], &[1.0, 2.0]).is_nan());
    }
}
