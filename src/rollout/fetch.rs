//! From a URI to a verified folder in the cache.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Location;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig};

use super::archive::{EXTENSION, unpack};
use super::cache::{Cache, Cached};
use super::desired::Target;
use super::signature::{PublicKey, SIGNATURE};
use crate::manifest::{Manifest, ManifestError, ModelDir, sha256_file};

/// The file that names all the others.
const MANIFEST: &str = "manifest.json";
/// Largest manifest and signature accepted, in bytes.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// Longest silence of a store.
const SILENCE: Duration = Duration::from_secs(30);
/// The pause after a failure doubles from the first to the second.
const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(15)];

/// How large a model may be.
#[derive(Clone, Debug)]
pub struct Limits {
    /// All its files together.
    pub max_bytes: u64,
    /// Their number.
    pub max_files: usize,
}

impl Limits {
    pub(super) fn check(&self, files: usize, bytes: u64) -> Result<(), FetchError> {
        if files > self.max_files {
            return Err(FetchError::TooMany { files, limit: self.max_files });
        }
        if bytes > self.max_bytes {
            return Err(FetchError::TooLarge { bytes, limit: self.max_bytes });
        }
        Ok(())
    }
}

/// What is fetched, and how far it is trusted.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// How large a model may be.
    pub limits: Limits,
    /// How a URI must start; anything if empty.
    pub allowed_uris: Vec<String>,
    /// Checks signatures, where there is one.
    pub public_key: Option<PublicKey>,
    /// Whether a model without a signature is refused.
    pub require_signature: bool,
}

/// A model was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URI is not one of a model.
    #[error("{uri:?} {reason}")]
    Uri {
        /// As the message has it.
        uri: String,
        /// What is wrong.
        reason: String,
    },
    /// The store does not answer, for now.
    #[error("cannot fetch {uri}: {reason}")]
    Unreachable {
        /// What was asked for.
        uri: String,
        /// What the store says.
        reason: String,
    },
    /// The store answers that it will not give it.
    #[error("cannot fetch {uri}: {reason}")]
    Refused {
        /// What was asked for.
        uri: String,
        /// What the store says.
        reason: String,
    },
    /// More bytes than accepted.
    #[error("{bytes} bytes are more than rollout.max_model_bytes, {limit}")]
    TooLarge {
        /// At least so many.
        bytes: u64,
        /// As set.
        limit: u64,
    },
    /// More files than accepted.
    #[error("{files} files are more than rollout.max_model_files, {limit}")]
    TooMany {
        /// At least so many.
        files: usize,
        /// As set.
        limit: usize,
    },
    /// An entry of an archive that is no file in its folder.
    #[error("the archive holds {0:?}, which is no file with a plain name")]
    Escapes(String),
    /// The archive is damaged.
    #[error("the archive cannot be unpacked: {0}")]
    Archive(String),
    /// The manifest is another than was asked for.
    #[error("the manifest has sha256 {found}, the message says {expected}")]
    OtherManifest {
        /// As the message has it.
        expected: String,
        /// As it is.
        found: String,
    },
    /// The manifest is of another version than was asked for.
    #[error("the manifest is of version {found:?}, the message says {expected:?}")]
    OtherVersion {
        /// As the message has it.
        expected: String,
        /// As it is.
        found: String,
    },
    /// Its files are not in order.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// It is not signed as it must be.
    #[error("{0}")]
    Signature(String),
    /// The cache cannot be written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody wants it any more.
    #[error("given up for a newer generation")]
    Cancelled,
}

impl FetchError {
    /// Whether the same may succeed later.
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// Fetches models into the cache.
pub struct Fetcher {
    options: FetchOptions,
    cache: Cache,
    runtime: tokio::runtime::Runtime,
}

impl Fetcher {
    /// A fetcher into `cache`.
    ///
    /// # Errors
    /// When the system has no room for its thread.
    pub fn new(options: FetchOptions, cache: Cache) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { options, cache, runtime })
    }

    /// The model in the cache, fetched if it is not there: again and again until `deadline` while its store does not
    /// answer. `told` hears of every failure.
    ///
    /// # Errors
    /// When it cannot be had, or is not what `target` says.
    pub fn fetch(
        &self,
        target: &Target,
        deadline: Instant,
        is_cancelled: &dyn Fn() -> bool,
        mut told: impl FnMut(&FetchError),
    ) -> Result<Cached, FetchError> {
        let mut pause = PAUSES[0];
        loop {
            let result = self.try_fetch(target, is_cancelled);
            let Err(error) = &result else { return result };
            let left = deadline.saturating_duration_since(Instant::now());
            if !error.is_transient() || left.is_zero() {
                return result;
            }
            told(error);
            let until = Instant::now() + pause.min(left);
            while Instant::now() < until {
                if is_cancelled() {
                    return Err(FetchError::Cancelled);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            pause = (pause * 2).min(PAUSES[1]);
        }
    }

    fn try_fetch(&self, target: &Target, is_cancelled: &dyn Fn() -> bool) -> Result<Cached, FetchError> {
        let io = |source| FetchError::Io { path: "rollout.cache_dir".into(), source };
        if let Some(cached) = self.cache.find(&target.sha256).map_err(io)? {
            match self.check(&cached.path, target) {
                Ok(()) => return Ok(cached),
                Err(error @ FetchError::Signature(_)) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, path = %cached.path.display(), "a model in the cache is damaged");
                    self.cache.remove(&cached).map_err(io)?;
                }
            }
        }
        let staging = self.cache.staging().map_err(io)?;
        let folder = staging.path().join("model");
        fs::create_dir(&folder).map_err(io)?;
        let source = Source::open(target, &self.options)?;
        if target.uri.ends_with(EXTENSION) {
            let archive = staging.path().join("archive");
            let limit = self.options.limits.max_bytes;
            self.runtime.block_on(source.download("", &archive, limit, is_cancelled))?;
            let file = File::open(&archive).map_err(io)?;
            unpack(file, &folder, &self.options.limits)?;
        } else {
            self.runtime.block_on(self.download_folder(&source, target, &folder, is_cancelled))?;
        }
        self.check(&folder, target)?;
        self.cache.keep(&folder, &target.sha256).map_err(io)
    }

    async fn download_folder(
        &self,
        source: &Source,
        target: &Target,
        folder: &Path,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<(), FetchError> {
        let path = folder.join(MANIFEST);
        source.download(MANIFEST, &path, MAX_MANIFEST_BYTES, is_cancelled).await?;
        // Before it is believed in what it says of others.
        check_manifest_hash(&path, target)?;
        let manifest = Manifest::read(&path)?;
        let bytes = manifest.files.values().map(|entry| entry.bytes).sum();
        self.options.limits.check(manifest.files.len(), bytes)?;
        let signature = folder.join(SIGNATURE);
        match source.download(SIGNATURE, &signature, MAX_MANIFEST_BYTES, is_cancelled).await {
            Err(FetchError::Refused { .. }) => drop(fs::remove_file(signature)),
            fetched => fetched?,
        }
        for (name, entry) in &manifest.files {
            source.download(name, &folder.join(name), entry.bytes, is_cancelled).await?;
        }
        Ok(())
    }

    /// Whether the folder is the model that was asked for, whole and signed.
    fn check(&self, folder: &Path, target: &Target) -> Result<(), FetchError> {
        let path = folder.join(MANIFEST);
        check_manifest_hash(&path, target)?;
        let found = ModelDir::open(folder)?.manifest.version;
        if found != target.version {
            return Err(FetchError::OtherVersion { expected: target.version.clone(), found });
        }
        let Some(key) = &self.options.public_key else { return Ok(()) };
        let read = |path: &Path| fs::read(path).map_err(|source| FetchError::Io { path: path.to_owned(), source });
        match fs::read(folder.join(SIGNATURE)) {
            Ok(signature) => key.check(&read(&path)?, &signature).map_err(FetchError::Signature),
            Err(_) if self.options.require_signature => {
                Err(FetchError::Signature(format!("there is no {SIGNATURE}, and rollout.require_signature is set")))
            }
            Err(_) => Ok(()),
        }
    }
}

fn check_manifest_hash(path: &Path, target: &Target) -> Result<(), FetchError> {
    let found = sha256_file(path)?;
    if found != target.sha256 {
        return Err(FetchError::OtherManifest { expected: target.sha256.clone(), found });
    }
    Ok(())
}

/// A place in a store.
pub(super) struct Source {
    store: Box<dyn ObjectStore>,
    location: Location,
    uri: String,
}

impl Source {
    fn open(target: &Target, options: &FetchOptions) -> Result<Self, FetchError> {
        let allowed = &options.allowed_uris;
        if !allowed.is_empty() && !allowed.iter().any(|start| target.uri.starts_with(start)) {
            return Err(uri_error(&target.uri, "starts like none of rollout.allowed_uris"));
        }
        Self::of(&target.uri)
    }

    /// A folder or a file by its URI. Credentials for stores are those of the environment.
    pub(super) fn of(uri: &str) -> Result<Self, FetchError> {
        let (scheme, rest) = uri.split_once("://").ok_or_else(|| uri_error(uri, "is no URI"))?;
        let (host, path) = rest.split_once('/').ok_or_else(|| uri_error(uri, "has no path"))?;
        let refused = |e: object_store::Error| uri_error(uri, &format!("cannot be used: {e}"));
        let located = |path: &str| Location::parse(path.trim_matches('/')).map_err(|e| uri_error(uri, &e.to_string()));
        let client = ClientOptions::new()
            .with_allow_http(true)
            .with_timeout_disabled()
            .with_connect_timeout(SILENCE)
            .with_read_timeout(SILENCE);
        // The caller tries again, and says so.
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let (store, location): (Box<dyn ObjectStore>, _) = match scheme {
            "file" if host.is_empty() => (Box::new(LocalFileSystem::new()), located(path)?),
            "file" => return Err(uri_error(uri, "names a host: a file begins with file:///")),
            "http" | "https" => {
                let root = format!("{scheme}://{host}");
                let store = HttpBuilder::new().with_url(root).with_client_options(client).with_retry(retry);
                (Box::new(store.build().map_err(refused)?), located(path)?)
            }
            "s3" => {
                let store = AmazonS3Builder::from_env().with_bucket_name(host).with_client_options(client);
                (Box::new(store.with_retry(retry).build().map_err(refused)?), located(path)?)
            }
            "gs" => {
                let store = GoogleCloudStorageBuilder::from_env().with_bucket_name(host).with_client_options(client);
                (Box::new(store.with_retry(retry).build().map_err(refused)?), located(path)?)
            }
            _ => return Err(uri_error(uri, "is of no scheme that is supported")),
        };
        Ok(Self { store, location, uri: uri.to_owned() })
    }

    /// Downloads a file of the folder (or the file itself, by the name `""`) of up to `limit` bytes.
    async fn download(
        &self,
        name: &str,
        to: &Path,
        limit: u64,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<(), FetchError> {
        let location = if name.is_empty() { self.location.clone() } else { self.location.clone().join(name) };
        let failed = |error| store_error(&self.uri, name, error);
        let io = |source| FetchError::Io { path: to.to_owned(), source };
        let silent = |_| failed_for_now(&self.uri, name, "no answer");
        let found = tokio::time::timeout(SILENCE, self.store.get(&location)).await.map_err(silent)?.map_err(failed)?;
        let check = |bytes| if bytes > limit { Err(FetchError::TooLarge { bytes, limit }) } else { Ok(()) };
        check(found.meta.size)?;
        let mut file = File::create(to).map_err(io)?;
        let (mut stream, mut bytes) = (found.into_stream(), 0);
        while let Some(chunk) =
            tokio::time::timeout(SILENCE, stream.try_next()).await.map_err(silent)?.map_err(failed)?
        {
            if is_cancelled() {
                return Err(FetchError::Cancelled);
            }
            bytes += chunk.len() as u64;
            check(bytes)?;
            file.write_all(&chunk).map_err(io)?;
        }
        file.sync_all().map_err(io)
    }

    /// Uploads a file into the folder (or as the file itself, by the name `""`).
    pub(super) fn upload(&self, name: &str, content: Vec<u8>) -> Result<(), FetchError> {
        let location = if name.is_empty() { self.location.clone() } else { self.location.clone().join(name) };
        let failed = |error| store_error(&self.uri, name, error);
        let io = |source| FetchError::Io { path: self.uri.clone().into(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io)?;
        runtime.block_on(self.store.put(&location, content.into())).map_err(failed)?;
        Ok(())
    }
}

fn uri_error(uri: &str, reason: &str) -> FetchError {
    FetchError::Uri { uri: uri.to_owned(), reason: reason.to_owned() }
}

fn failed_for_now(uri: &str, name: &str, reason: &str) -> FetchError {
    FetchError::Unreachable { uri: join(uri, name), reason: reason.to_owned() }
}

fn store_error(uri: &str, name: &str, error: object_store::Error) -> FetchError {
    use object_store::Error::{Generic, JoinError, NotFound, PermissionDenied, Unauthenticated};
    let uri = join(uri, name);
    match error {
        NotFound { .. } => FetchError::Refused { uri, reason: "it is not there".to_owned() },
        PermissionDenied { .. } | Unauthenticated { .. } => {
            FetchError::Refused { uri, reason: "access denied".to_owned() }
        }
        Generic { .. } | JoinError { .. } => FetchError::Unreachable { uri, reason: innermost(&error) },
        other => FetchError::Refused { uri, reason: other.to_string() },
    }
}

/// The cause at the bottom: what is above it repeats the URI and says less.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

fn join(uri: &str, name: &str) -> String {
    if name.is_empty() { uri.to_owned() } else { format!("{}/{name}", uri.trim_end_matches('/')) }
}
