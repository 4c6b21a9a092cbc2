//! Files that are whole or not there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// Writes `bytes` to `path`: an interrupted write leaves what was there before.
///
/// # Errors
/// When the file cannot be written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |temporary| Ok(fs::write(temporary, bytes)?))
}

/// [`write_atomically`] of a value as indented JSON.
///
/// # Errors
/// When the file cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    write_atomically(path, &bytes)
}

/// Reads what [`write_json`] wrote.
///
/// # Errors
/// When the file is missing or not of this form; the message names it.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Lets `write` make a file beside `path`, then puts it in the place of `path` in one step.
///
/// # Errors
/// When `write` fails or the file cannot be moved.
pub fn replace(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = temporary(path);
    let written = write(&temporary)
        .and_then(|()| Ok(File::open(&temporary)?.sync_all()?))
        .and_then(|()| Ok(fs::rename(&temporary, path)?));
    if written.is_err() {
        // The first error counts; there may be no file to remove.
        let _ = fs::remove_file(&temporary);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Lets `write` fill a new directory beside `path`, then puts it in the place of `path` in one step: an interrupted
/// write leaves what was there before.
///
/// # Errors
/// When `write` fails or the directory cannot be moved.
pub fn replace_dir(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = temporary(path);
    let written = fill(&temporary, write).and_then(|()| put(&temporary, path));
    // What was there before, or what could not be finished.
    let _ = fs::remove_dir_all(&temporary);
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn fill(dir: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?; // of a process that was killed
    }
    fs::create_dir_all(dir)?;
    write(dir)?;
    for entry in fs::read_dir(dir)? {
        File::open(entry?.path())?.sync_all()?;
    }
    Ok(File::open(dir)?.sync_all()?)
}

fn put(temporary: &Path, path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(renameat_with(CWD, temporary, CWD, path, RenameFlags::EXCHANGE)?);
    }
    Ok(fs::rename(temporary, path)?)
}

/// The name keeps the ending, by which libtorch tells the format.
fn temporary(path: &Path) -> PathBuf {
    let mut name = OsString::from(".new-");
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}
