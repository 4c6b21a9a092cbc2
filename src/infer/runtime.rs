//! Finding and loading the shared library of ONNX Runtime.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use ort::environment::Environment;

/// Version that the set-up installs.
const VERSION: &str = "1.31.1";
const LIBRARY: &str = if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };

/// The loaded library; one a process, however often it is asked for.
#[derive(Clone, Debug)]
pub struct Runtime {
    environment: Environment,
    /// The library's path.
    pub library: PathBuf,
}

/// The library is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// It is in none of the places where it is looked for.
    #[error(
        "no library of ONNX Runtime; looked at:\n{}\nrun `make setup` or set model.runtime_library",
        .0.iter().map(|path| format!("  {}", path.display())).collect::<Vec<_>>().join("\n")
    )]
    NotFound(Vec<PathBuf>),
    /// It is there and cannot be used.
    #[error("cannot load ONNX Runtime from {path}: {reason}")]
    Load {
        /// The library.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

impl Runtime {
    /// Loads the library: from `library` if given, else from `ORT_DYLIB_PATH`, the set-up's cache folder
    /// (`VITAG_CACHE`, by default `vitag` in the user's cache folder), the folder of the executable or its `lib`, or
    /// the system's library path, whichever has it first.
    ///
    /// # Errors
    /// When it is in none of them, with all the places, or cannot be loaded.
    pub fn load(library: Option<&Path>) -> Result<Self, RuntimeError> {
        let mut loaded = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(runtime) = &*loaded {
            return Ok(runtime.clone());
        }
        let path = find(library)?;
        let reason = |e: &dyn std::fmt::Display| RuntimeError::Load { path: path.clone(), reason: e.to_string() };
        let environment =
            ort::init_from(&path).map_err(|e| reason(&e))?.with_name("vitag").with_telemetry(false).build();
        let runtime = Runtime { environment: environment.map_err(|e| reason(&e))?, library: path.clone() };
        *loaded = Some(runtime.clone());
        Ok(runtime)
    }

    /// What sessions are built in.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }
}

fn find(library: Option<&Path>) -> Result<PathBuf, RuntimeError> {
    let places = match library {
        Some(path) => vec![path.to_owned()],
        None => places(),
    };
    match places.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(RuntimeError::NotFound(places)),
    }
}

fn places() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = variable("ORT_DYLIB_PATH") {
        return vec![path];
    }
    let cache = variable("VITAG_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("vitag")))
        .or_else(|| Some(variable("HOME")?.join(".cache/vitag")));
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
    let folders = [
        cache.map(|cache| cache.join("onnxruntime").join(VERSION)),
        beside.clone(),
        beside.map(|folder| folder.join("lib")),
        Some("/usr/local/lib".into()),
        Some("/usr/lib".into()),
    ];
    folders.into_iter().flatten().map(|folder| folder.join(LIBRARY)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_says_where_it_was_looked_for() {
        let error = Runtime::load(Some(Path::new("/nowhere/libonnxruntime.so")));
        if let Err(error) = error {
            assert!(error.to_string().contains("/nowhere/libonnxruntime.so"), "{error}");
        }
        let error = find(Some(Path::new("/nowhere/libonnxruntime.so"))).unwrap_err().to_string();
        assert!(error.contains("/nowhere/libonnxruntime.so") && error.contains("make setup"), "{error}");
    }
}
