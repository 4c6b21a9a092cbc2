//! Files on their way: written part by part, and seen by nobody until they are published.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use object_store::{MultipartUpload, ObjectStoreExt as _, PutPayload};

use super::{Folder, PART_BYTES, Store, named, remote};

/// A file that nobody sees yet; dropped, it is given up.
pub(in crate::backfill) struct Unpublished {
    name: String,
    target: Target,
    part: Vec<u8>,
}

/// Where it will appear.
pub(super) enum Target {
    Disk { file: File, temporary: PathBuf, target: PathBuf },
    Remote { folder: Folder, path: String, upload: Option<Box<dyn MultipartUpload>> },
}

impl Unpublished {
    pub(super) fn new(name: String, target: Target) -> Self {
        Self { name, target, part: Vec::new() }
    }

    /// Lets the file appear.
    pub(in crate::backfill) fn publish(mut self) -> io::Result<()> {
        self.flush_part()?;
        let name = std::mem::take(&mut self.name);
        match &mut self.target {
            Target::Disk { file, temporary, target } => {
                let parent = target.parent().unwrap_or(Path::new(""));
                let published = file.sync_all().and_then(|()| fs::create_dir_all(parent));
                published.and_then(|()| fs::rename(temporary, target)).map_err(|e| named(&name, &e))
            }
            Target::Remote { folder, path, upload } => {
                let Store::Remote(store, runtime) = &folder.store else { unreachable!("a remote file is in a store") };
                let done = match upload.take() {
                    Some(mut upload) => runtime.block_on(upload.complete()),
                    None => runtime.block_on(store.put(&folder.object(path), PutPayload::new())),
                };
                done.map(drop).map_err(|e| remote(&name, e))
            }
        }
    }

    fn flush_part(&mut self) -> io::Result<()> {
        if self.part.is_empty() {
            return Ok(());
        }
        let part = std::mem::take(&mut self.part);
        match &mut self.target {
            Target::Disk { file, .. } => file.write_all(&part).map_err(|e| named(&self.name, &e)),
            Target::Remote { folder, path, upload } => {
                let Store::Remote(store, runtime) = &folder.store else { unreachable!("a remote file is in a store") };
                let sent = runtime.block_on(async {
                    if upload.is_none() {
                        *upload = Some(store.put_multipart(&folder.object(path)).await?);
                    }
                    let upload = upload.as_mut().expect("it was begun just now");
                    upload.put_part(PutPayload::from(part)).await
                });
                sent.map_err(|e| remote(&self.name, e))
            }
        }
    }
}

impl Write for Unpublished {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        if self.part.len() >= PART_BYTES {
            self.flush_part()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        match &mut self.target {
            // After a publication it is gone from there.
            Target::Disk { temporary, .. } => drop(fs::remove_file(temporary)),
            Target::Remote { folder, upload: Some(upload), .. } => {
                if let Store::Remote(_, runtime) = &folder.store {
                    let _ = runtime.block_on(upload.abort());
                }
            }
            Target::Remote { .. } => {}
        }
    }
}
