//! Fetched models on disk, by the hash of their manifests.
//!
//! A folder appears in one step, with all its files. Whoever uses one holds a shared lock on the file beside it, over all
//! processes of the host; what nobody uses is removed, the longest unused first, when the cache is larger than its bound.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

/// What the names of folders in the making start with.
const STAGING: &str = ".staging-";
/// Age at which a folder in the making was left by a process that is gone.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// A folder of models.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
    max_bytes: u64,
}

/// A model in the cache, which stays there while this is held.
#[derive(Clone, Debug)]
pub struct Cached {
    /// Its folder.
    pub path: PathBuf,
    _lock: Arc<File>,
}

impl Cache {
    /// The cache in `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: &Path, max_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let cache = Self { dir: dir.to_owned(), max_bytes };
        cache.sweep()?;
        Ok(cache)
    }

    /// Removes what was left in the making.
    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)?.flatten() {
            let is_staging = entry.file_name().to_string_lossy().starts_with(STAGING);
            let age = entry.metadata().and_then(|m| m.modified()).map(|m| m.elapsed().unwrap_or_default());
            if is_staging && age.is_ok_and(|age| age > STALE) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }

    /// A folder to put a model together in, removed unless it is kept.
    pub(super) fn staging(&self) -> io::Result<TempDir> {
        tempfile::Builder::new().prefix(STAGING).tempdir_in(&self.dir)
    }

    /// The model of this hash, if it is there.
    pub fn find(&self, sha256: &str) -> io::Result<Option<Cached>> {
        let cached = self.hold(sha256)?;
        if !cached.path.is_dir() {
            return Ok(None);
        }
        // When it was last used; a cache on a file system that refuses it evicts by age.
        let _ = File::open(&cached.path).and_then(|dir| dir.set_modified(SystemTime::now()));
        Ok(Some(cached))
    }

    /// Moves `folder`, verified, to its place; another process may have been first.
    pub(super) fn keep(&self, folder: &Path, sha256: &str) -> io::Result<Cached> {
        let cached = self.hold(sha256)?;
        match fs::rename(folder, &cached.path) {
            Err(_) if cached.path.is_dir() => {}
            moved => moved?,
        }
        self.evict()?;
        Ok(cached)
    }

    /// Removes a model that was found damaged.
    pub(super) fn remove(&self, cached: &Cached) -> io::Result<()> {
        fs::remove_dir_all(&cached.path)
    }

    fn hold(&self, sha256: &str) -> io::Result<Cached> {
        let lock = self.lock_file(sha256)?;
        lock.lock_shared()?;
        Ok(Cached { path: self.dir.join(sha256), _lock: Arc::new(lock) })
    }

    fn lock_file(&self, sha256: &str) -> io::Result<File> {
        let path = self.dir.join(format!("{sha256}.lock"));
        File::options().create(true).truncate(false).read(true).write(true).open(path)
    }

    /// Removes models that nobody holds until the rest fits the bound.
    fn evict(&self) -> io::Result<()> {
        let mut models = self.models()?;
        let mut total: u64 = models.iter().map(|model| model.bytes).sum();
        models.sort_by_key(|model| model.used);
        for model in models {
            if total <= self.max_bytes {
                return Ok(());
            }
            if self.lock_file(&model.sha256)?.try_lock().is_ok() {
                fs::remove_dir_all(self.dir.join(&model.sha256))?;
                total -= model.bytes;
                tracing::info!(sha256 = model.sha256, bytes = model.bytes, "removed a model from the cache");
            }
        }
        if total > self.max_bytes {
            tracing::warn!(bytes = total, "the models in use are more than rollout.cache_max_bytes");
        }
        Ok(())
    }

    fn models(&self) -> io::Result<Vec<Entry>> {
        let mut models = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let metadata = entry.metadata()?;
            if metadata.is_dir() && !name.starts_with(STAGING) {
                let bytes = size_of(&entry.path())?;
                models.push(Entry { sha256: name, bytes, used: metadata.modified()? });
            }
        }
        Ok(models)
    }
}

struct Entry {
    sha256: String,
    bytes: u64,
    used: SystemTime,
}

fn size_of(dir: &Path) -> io::Result<u64> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(cache: &Cache, name: &str, bytes: usize) -> Cached {
        let staging = cache.staging().unwrap();
        let folder = staging.path().join("model");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), vec![0; bytes]).unwrap();
        cache.keep(&folder, name).unwrap()
    }

    #[test]
    fn what_is_held_stays_and_the_longest_unused_goes() {
        let folder = TempDir::new().unwrap();
        let cache = Cache::open(folder.path(), 250).unwrap();
        let held = put(&cache, "a", 100);
        drop(put(&cache, "b", 100));
        drop(put(&cache, "c", 100));
        let there = |name: &str| folder.path().join(name).is_dir();
        assert!(there("a") && !there("b") && there("c"), "b is the oldest that nobody holds");
        drop(held);
        drop(put(&cache, "d", 200));
        assert!(!there("a") && !there("c") && there("d"));
        assert!(cache.find("a").unwrap().is_none() && cache.find("d").unwrap().is_some());
    }

    #[test]
    fn what_was_not_kept_leaves_nothing_behind() {
        let folder = TempDir::new().unwrap();
        let cache = Cache::open(folder.path(), 250).unwrap();
        drop(cache.staging().unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
