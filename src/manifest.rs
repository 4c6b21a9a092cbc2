//! A model directory: what `manifest.json` says of it, and the check that it is so.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::tags::{Labels, LabelsError, Scheme};
use crate::tokenize::Unit;

/// Version of `manifest.json` that this code reads and writes.
pub const SCHEMA_VERSION: u32 = 1;

/// `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format.
    pub schema_version: u32,
    /// Name of the model, as in `models/<name>/<version>/`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// When it was exported: RFC 3339, UTC.
    pub created: String,
    /// What it labels.
    pub unit: Unit,
    /// Longest input in tokens, special ones included.
    pub max_length: usize,
    /// Operator set of the graphs.
    pub opset: u32,
    /// Its heads, in the order of the graph's outputs.
    pub heads: Vec<Head>,
    /// Every other file of the directory that serving needs, by name.
    pub files: BTreeMap<String, FileEntry>,
    /// What it was trained on.
    pub training_data: Vec<TrainingData>,
    /// Licence of the weights (SPDX).
    pub licence: String,
    /// Commit of the code that exported it, where known.
    pub git_commit: Option<String>,
}

/// One head: a labelling of the units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Name of the head.
    pub name: String,
    /// What its spans are.
    pub task: Task,
    /// How its labels relate.
    pub scheme: Scheme,
    /// Labels in the order of the logits.
    pub labels: Vec<String>,
    /// Output of the graph that carries its logits, [units, labels].
    pub output: String,
}

/// What the spans of a head are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "worker", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Words with their part of speech.
    Pos,
    /// Named entities.
    Ner,
}

/// A file of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// A data set that the model was trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingData {
    /// Its name.
    pub name: String,
    /// Its licence (SPDX).
    pub licence: String,
    /// Whom to name, and how it was made where that matters (silver annotation, for instance).
    pub attribution: String,
}

/// `golden.json`: inputs with the answers that the exported model must give.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// Greatest difference accepted between a logit and the one given here.
    pub tolerance: f32,
    /// The cases; each goes through the model as a document of its own.
    pub cases: Vec<GoldenCase>,
}

/// One input with its answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenCase {
    /// Raw text, or words joined by spaces for a model whose unit is the word.
    pub text: String,
    /// Answers by head name.
    pub heads: BTreeMap<String, GoldenHead>,
}

/// The answers of one head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenHead {
    /// Label of every unit, decoded sentence by sentence under the scheme.
    pub tags: Vec<String>,
    /// Logits of every unit.
    pub logits: Vec<Vec<f32>>,
}

/// A model directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not the JSON expected.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A format of another version.
    #[error("schema_version {0} is not supported, this build reads {SCHEMA_VERSION}")]
    SchemaVersion(u32),
    /// A file name that leads out of the directory.
    #[error("file name {0:?} must be a plain name inside the model directory")]
    FileName(String),
    /// A file that serving needs is not listed.
    #[error("the manifest lists no {0:?}")]
    NotListed(&'static str),
    /// A file is not what the manifest says.
    #[error("{path}: sha256 is {found}, the manifest says {expected}")]
    Hash {
        /// The file.
        path: PathBuf,
        /// As the manifest has it.
        expected: String,
        /// As the file has it.
        found: String,
    },
    /// A head whose labels make no scheme.
    #[error("head {head:?}: {source}")]
    Labels {
        /// The head.
        head: String,
        /// Why.
        source: LabelsError,
    },
    /// No head at all, or two of one task.
    #[error("{0}")]
    Heads(&'static str),
}

/// A directory whose files are those that its manifest names.
#[derive(Clone, Debug)]
pub struct ModelDir {
    /// The directory.
    pub path: PathBuf,
    /// What it holds.
    pub manifest: Manifest,
    /// SHA-256 of `manifest.json`, which names the hashes of all the rest: the identity of the model.
    pub sha256: String,
}

impl ModelDir {
    /// Reads `manifest.json` in `path` and verifies the hash of every file that it names.
    ///
    /// # Errors
    /// When a file is missing, differs from its hash, or the manifest is not one that this build can serve.
    pub fn open(path: &Path) -> Result<Self, ManifestError> {
        let manifest_path = path.join("manifest.json");
        let manifest = Manifest::read(&manifest_path)?;
        for (name, entry) in &manifest.files {
            let path = path.join(name);
            let found = sha256_file(&path)?;
            if found != entry.sha256 {
                return Err(ManifestError::Hash { path, expected: entry.sha256.clone(), found });
            }
        }
        Ok(Self { path: path.to_owned(), sha256: sha256_file(&manifest_path)?, manifest })
    }

    /// Path of a listed file.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads the golden answers of a variant.
    ///
    /// # Errors
    /// When they are not there or not of their form.
    pub fn golden(&self, variant: Variant) -> Result<Golden, ManifestError> {
        read_json(&self.file(variant.golden()))
    }

    /// Checks that the directory holds a variant.
    ///
    /// # Errors
    /// When it does not.
    pub fn has(&self, variant: Variant) -> Result<(), ManifestError> {
        self.manifest.requires(&[variant.graph(), variant.golden()])
    }
}

/// The graph in f32.
pub const MODEL: &str = "model.onnx";
/// The graph in int8.
pub const MODEL_INT8: &str = "model.int8.onnx";
/// The tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// Inputs and the answers expected of the graph in f32.
pub const GOLDEN: &str = "golden.json";
/// Inputs and the answers expected of the graph in int8.
pub const GOLDEN_INT8: &str = "golden.int8.json";

/// What the weights of a graph are. Every model has one in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "worker", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// 32-bit floats: a result does not depend on the batch it is computed in.
    #[default]
    F32,
    /// 8-bit integers in the matrix products of the encoder: faster on a CPU, and a little less exact.
    Int8,
}

impl Variant {
    /// The file of its graph.
    pub fn graph(self) -> &'static str {
        match self {
            Self::F32 => MODEL,
            Self::Int8 => MODEL_INT8,
        }
    }

    /// The file of its golden answers.
    pub fn golden(self) -> &'static str {
        match self {
            Self::F32 => GOLDEN,
            Self::Int8 => GOLDEN_INT8,
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
        })
    }
}

impl Manifest {
    /// Reads and checks a `manifest.json`; the files that it names are not looked at.
    ///
    /// # Errors
    /// When it is not one that this build can serve.
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        let manifest: Self = read_json(path)?;
        manifest.validate()?;
        Ok(manifest)
    }

    fn requires(&self, files: &[&'static str]) -> Result<(), ManifestError> {
        let missing = files.iter().find(|&&file| !self.files.contains_key(file));
        missing.map_or(Ok(()), |file| Err(ManifestError::NotListed(file)))
    }

    fn validate(&self) -> Result<(), ManifestError> {
        if self.schema_version != SCHEMA_VERSION {
            return Err(ManifestError::SchemaVersion(self.schema_version));
        }
        self.requires(&[MODEL, TOKENIZER, GOLDEN])?;
        for name in self.files.keys() {
            let mut components = Path::new(name).components();
            if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
                return Err(ManifestError::FileName(name.clone()));
            }
        }
        if self.heads.is_empty() {
            return Err(ManifestError::Heads("a model needs at least one head"));
        }
        for task in [Task::Pos, Task::Ner] {
            if self.heads.iter().filter(|head| head.task == task).count() > 1 {
                return Err(ManifestError::Heads("two heads have the same task"));
            }
        }
        self.heads.iter().try_for_each(|head| head.labels().map(drop))
    }
}

impl Head {
    /// The labels, checked.
    ///
    /// # Errors
    /// When they do not fit the scheme.
    pub fn labels(&self) -> Result<Labels, ManifestError> {
        Labels::new(self.labels.clone(), self.scheme)
            .map_err(|source| ManifestError::Labels { head: self.name.clone(), source })
    }
}

/// SHA-256 of a file, in lower-case hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_file(path: &Path) -> Result<String, ManifestError> {
    let io = |source| ManifestError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ManifestError> {
    let bytes = std::fs::read(path).map_err(|source| ManifestError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| ManifestError::Json { path: path.to_owned(), source })
}
