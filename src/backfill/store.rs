//! Where files are: the local disk, or an object store. Everything here blocks, like the rest of the way of the data.
//!
//! What is written appears under its name all at once: on a disk by a rename out of `_vitag/tmp`, in an object store when
//! its upload is completed.

mod unpublished;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, parse_url_opts};
use tokio::runtime::{Builder, Runtime};
use url::Url;

use self::unpublished::Target;
pub(super) use self::unpublished::Unpublished;

/// What a request to an object store reads or writes; the least that S3 takes as a part is 5 MiB.
const PART_BYTES: usize = 8 << 20;
/// Folder of files that are not finished; engines pass over names that begin with `_`.
const UNFINISHED: &str = "_vitag/tmp";

/// A folder on a disk or in an object store.
#[derive(Clone)]
pub(super) struct Folder {
    store: Store,
    /// As it was given, for messages and the names of files, with a `/` at its end.
    pub(super) name: String,
    /// Within the store.
    path: String,
}

#[derive(Clone)]
enum Store {
    Disk,
    Remote(Arc<dyn ObjectStore>, Arc<Runtime>),
}

/// A file that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Its path within the folder.
    pub(super) path: String,
    pub(super) bytes: u64,
    /// Changes when the file does.
    pub(super) version: String,
}

impl Folder {
    /// A local path, or a URL such as `s3://bucket/folder`, whose credentials are taken from the environment.
    pub(super) fn new(name: &str) -> io::Result<Self> {
        let name = if name.is_empty() || name.ends_with('/') { name.to_owned() } else { format!("{name}/") };
        if !name.contains("://") {
            return Ok(Self { store: Store::Disk, path: name.clone(), name });
        }
        let url = Url::parse(&name).map_err(|e| invalid(&name, &e))?;
        let (store, path) = parse_url_opts(&url, std::env::vars()).map_err(|e| invalid(&name, &e))?;
        Self::remote(name, Arc::from(store), path.as_ref())
    }

    /// A folder of an object store.
    pub(super) fn remote(name: String, store: Arc<dyn ObjectStore>, path: &str) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { store: Store::Remote(store, Arc::new(runtime)), name, path: path.to_owned() })
    }

    /// The path of a file as people know it.
    pub(super) fn display(&self, path: &str) -> String {
        format!("{}{path}", self.name)
    }

    fn disk(&self, path: &str) -> PathBuf {
        Path::new(&self.path).join(path)
    }

    fn object(&self, path: &str) -> ObjectPath {
        ObjectPath::from(format!("{}/{path}", self.path))
    }

    /// All files below, by their paths.
    pub(super) fn list(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        match &self.store {
            Store::Disk => self.walk(&mut String::new(), &mut found)?,
            Store::Remote(store, runtime) => {
                use futures_util::TryStreamExt as _;
                let prefix = ObjectPath::from(self.path.as_str());
                let all = runtime.block_on(store.list(Some(&prefix)).try_collect::<Vec<_>>());
                for meta in all.map_err(|e| remote(&self.name, e))? {
                    let Some(parts) = meta.location.prefix_match(&prefix) else { continue };
                    let path = parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
                    let version = meta.e_tag.unwrap_or_else(|| meta.last_modified.to_rfc3339());
                    found.push(Found { path, bytes: meta.size, version });
                }
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    fn walk(&self, below: &mut String, found: &mut Vec<Found>) -> io::Result<()> {
        let folder = if self.path.is_empty() && below.is_empty() { PathBuf::from(".") } else { self.disk(below) };
        let entries = match fs::read_dir(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|e| named(&folder.display().to_string(), &e))?,
        };
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            // A link is followed, one that leads nowhere is passed over.
            let Ok(meta) = fs::metadata(entry.path()) else { continue };
            if meta.is_dir() {
                self.walk(&mut path.clone(), found)?;
            } else {
                let changed = meta.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                found.push(Found { path, bytes: meta.len(), version: changed.as_nanos().to_string() });
            }
        }
        Ok(())
    }

    /// The bytes of a range of a file.
    pub(super) fn read_at(&self, path: &str, range: Range<u64>) -> io::Result<Bytes> {
        match &self.store {
            Store::Disk => {
                let mut bytes = Vec::new();
                self.open(path, range)?.read_to_end(&mut bytes)?;
                Ok(bytes.into())
            }
            Store::Remote(store, runtime) => {
                if range.is_empty() {
                    return Ok(Bytes::new());
                }
                let bytes = runtime.block_on(store.get_range(&self.object(path), range));
                bytes.map_err(|e| remote(&self.display(path), e))
            }
        }
    }

    /// Reads a range of a file from its start to its end.
    pub(super) fn open(&self, path: &str, range: Range<u64>) -> io::Result<Box<dyn Read + Send>> {
        match &self.store {
            Store::Disk => {
                let mut file = File::open(self.disk(path)).map_err(|e| named(&self.display(path), &e))?;
                file.seek(SeekFrom::Start(range.start))?;
                Ok(Box::new(file.take(range.end.saturating_sub(range.start))))
            }
            Store::Remote(..) => {
                Ok(Box::new(Parts { folder: self.clone(), path: path.to_owned(), range, part: Bytes::new() }))
            }
        }
    }

    /// A whole small file; none if there is none.
    pub(super) fn get(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        match &self.store {
            Store::Disk => match fs::read(self.disk(path)) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(named(&self.display(path), &e)),
            },
            Store::Remote(store, runtime) => {
                let get = async { store.get(&self.object(path)).await?.bytes().await };
                match runtime.block_on(get) {
                    Ok(bytes) => Ok(Some(bytes.into())),
                    Err(Error::NotFound { .. }) => Ok(None),
                    Err(e) => Err(remote(&self.display(path), e)),
                }
            }
        }
    }

    /// Writes a small file unless there is one of its name; whether it did.
    pub(super) fn put_new(&self, path: &str, bytes: &[u8]) -> io::Result<bool> {
        match &self.store {
            Store::Disk => {
                let target = self.disk(path);
                let (temporary, _) = self.temporary(path)?;
                fs::write(&temporary, bytes).map_err(|e| named(&self.display(path), &e))?;
                // Unlike a rename, a link does not replace what is there.
                let linked = fs::create_dir_all(target.parent().unwrap_or(Path::new("")))
                    .and_then(|()| fs::hard_link(&temporary, &target));
                fs::remove_file(&temporary)?;
                match linked {
                    Ok(()) => Ok(true),
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                    Err(e) => Err(named(&self.display(path), &e)),
                }
            }
            Store::Remote(store, runtime) => {
                let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                let object = self.object(path);
                let put = store.put_opts(&object, PutPayload::from(bytes.to_vec()), options);
                match runtime.block_on(put) {
                    Ok(_) => Ok(true),
                    Err(Error::AlreadyExists { .. }) => Ok(false),
                    Err(e) => Err(remote(&self.display(path), e)),
                }
            }
        }
    }

    /// A new file, which appears when it is published, in place of one of its name.
    pub(super) fn create(&self, path: &str) -> io::Result<Unpublished> {
        let target = match &self.store {
            Store::Disk => {
                let (temporary, file) = self.temporary(path)?;
                Target::Disk { file, temporary, target: self.disk(path) }
            }
            Store::Remote(..) => Target::Remote { folder: self.clone(), path: path.to_owned(), upload: None },
        };
        Ok(Unpublished::new(self.display(path), target))
    }

    /// Removes what killed processes have left unfinished; for a process that has the folder to itself.
    pub(super) fn clear_unfinished(&self) {
        if let Store::Disk = &self.store {
            // Nothing may be left.
            let _ = fs::remove_dir_all(self.disk(UNFINISHED));
        }
    }

    fn temporary(&self, path: &str) -> io::Result<(PathBuf, File)> {
        let folder = self.disk(UNFINISHED);
        let path = folder.join(format!("{}-{}", std::process::id(), path.replace('/', "-")));
        let file = fs::create_dir_all(&folder).and_then(|()| File::create(&path));
        Ok((path.clone(), file.map_err(|e| named(&path.display().to_string(), &e))?))
    }
}

/// A file of an object store, part by part.
struct Parts {
    folder: Folder,
    path: String,
    range: Range<u64>,
    part: Bytes,
}

impl Read for Parts {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.part.is_empty() && !self.range.is_empty() {
            let end = self.range.end.min(self.range.start + PART_BYTES as u64);
            self.part = self.folder.read_at(&self.path, self.range.start..end)?;
            self.range.start = end;
        }
        let length = into.len().min(self.part.len());
        into[..length].copy_from_slice(&self.part.split_to(length));
        Ok(length)
    }
}

fn named(name: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{name}: {error}"))
}

fn remote(name: &str, error: Error) -> io::Error {
    let kind = match &error {
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("{name}: {error}"))
}

fn invalid(name: &str, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{name}: {error}"))
}

#[cfg(test)]
mod tests;
