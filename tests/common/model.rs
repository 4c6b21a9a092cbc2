//! Copies of the model to break.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use vitag::manifest::sha256_file;

/// The model of the repository.
pub(crate) fn original() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/vi-tagger/0.1.0")
}

/// A copy of the model that is the test's own.
pub(crate) struct Copy {
    folder: TempDir,
}

impl Copy {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        for entry in std::fs::read_dir(original()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Changes a JSON file, and leaves its hash in the manifest as it was.
    pub(crate) fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let path = self.file(name);
        let mut value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
    }

    /// Writes the hash and size of every listed file into the manifest, as whoever made the model would have.
    pub(crate) fn rehash(&self) {
        self.edit("manifest.json", |manifest| {
            for (name, entry) in manifest["files"].as_object_mut().unwrap() {
                let path = self.file(name);
                entry["sha256"] = sha256_file(&path).unwrap().into();
                entry["bytes"] = std::fs::metadata(&path).unwrap().len().into();
            }
        });
    }
}
