//! Models as one file: a tar archive without folders, compressed with Zstandard.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::path::{Component, Path};

use super::fetch::{FetchError, Limits};

/// How the names of archives end.
pub const EXTENSION: &str = ".tar.zst";
/// Compression: a model is mostly numbers, of which more effort saves little.
const LEVEL: i32 = 3;
/// Largest window of the decompressor, as a power of 2: its memory.
const WINDOW_LOG: u32 = 27;
/// What an archive has beside the content of its files, for each of them.
const OVERHEAD: u64 = 4096;

/// Unpacks an archive into the folder `into`.
///
/// # Errors
/// When it is damaged, larger than the limits, or holds anything but files with plain names.
pub(super) fn unpack(archive: impl Read, into: &Path, limits: &Limits) -> Result<(), FetchError> {
    let broken = |e: io::Error| FetchError::Archive(e.to_string());
    let mut decoder = zstd::Decoder::new(archive).map_err(broken)?;
    decoder.window_log_max(WINDOW_LOG).map_err(broken)?;
    // Whatever the headers say, no more than this is unpacked.
    let bound = limits.max_bytes + OVERHEAD * (limits.max_files as u64 + 2);
    let mut archive = tar::Archive::new(decoder.take(bound));
    let (mut files, mut bytes) = (0, 0);
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = entry.path().map_err(broken)?.into_owned();
        let kind = entry.header().entry_type();
        if kind.is_dir() && path.components().all(|part| part == Component::CurDir) {
            continue;
        }
        let Some(name) = plain(&path).filter(|_| kind.is_file()) else {
            return Err(FetchError::Escapes(path.display().to_string()));
        };
        files += 1;
        bytes += entry.size();
        limits.check(files, bytes)?;
        let out = into.join(name);
        let io = |source| FetchError::Io { path: out.clone(), source };
        let mut file = File::options().write(true).create_new(true).open(&out).map_err(io)?;
        let size = entry.size();
        let copied = io::copy(&mut entry, &mut file).map_err(broken)?;
        if copied != size {
            return Err(FetchError::Archive(format!("{name:?} ends early")));
        }
    }
    Ok(())
}

/// The name of a file that lies in the archive itself.
fn plain(path: &Path) -> Option<&str> {
    let mut parts = path.components().filter(|part| *part != Component::CurDir);
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) => name.to_str(),
        _ => None,
    }
}

/// Packs the files of a folder, the same files always into the same bytes.
///
/// # Errors
/// When one cannot be read, or the archive not written.
pub fn pack(files: &[impl AsRef<Path>], to: &Path) -> io::Result<()> {
    let encoder = zstd::Encoder::new(BufWriter::new(File::create(to)?), LEVEL)?;
    let mut archive = tar::Builder::new(encoder);
    for path in files {
        let path = path.as_ref();
        let content = fs::read(path)?;
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path.file_name().unwrap_or_default(), content.as_slice())?;
    }
    archive.into_inner()?.finish()?.into_inner().map_err(|e| e.into_error())?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const LIMITS: Limits = Limits { max_bytes: 1000, max_files: 3 };

    /// An archive of entries (name, type, content), whatever they are.
    fn archive(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            // As an attacker would: the library refuses such names.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            if kind.is_symlink() || kind.is_hard_link() {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            tar.append(&header, *content).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    fn unpacked(bytes: &[u8]) -> (Result<(), FetchError>, TempDir) {
        let folder = TempDir::new().unwrap();
        let into = folder.path().join("model");
        fs::create_dir(&into).unwrap();
        (unpack(bytes, &into, &LIMITS), folder)
    }

    #[test]
    fn nothing_but_plain_files_is_unpacked() {
        use tar::EntryType::{Directory, Link, Regular, Symlink};
        let bad: [(&str, tar::EntryType); 8] = [
            ("../outside", Regular),
            ("/outside", Regular),
            ("sub/file", Regular),
            ("a/../../outside", Regular),
            ("..", Directory),
            ("link", Symlink),
            ("hard", Link),
            ("sub", Directory),
        ];
        for (name, kind) in bad {
            let (result, folder) = unpacked(&archive(&[(name, kind, b"")]));
            assert!(matches!(result, Err(FetchError::Escapes(_))), "{name}: {result:?}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{name}: nothing beside the folder");
        }
        let (result, folder) =
            unpacked(&archive(&[("./", Directory, b""), ("./a", Regular, b"1"), ("b", Regular, b"2")]));
        result.unwrap();
        assert_eq!(fs::read(folder.path().join("model/a")).unwrap(), b"1");
    }

    #[test]
    fn too_much_and_too_many_are_refused() {
        use tar::EntryType::Regular;
        let large = unpacked(&archive(&[("a", Regular, &[0; 600]), ("b", Regular, &[0; 600])])).0.unwrap_err();
        assert!(large.to_string().contains("rollout.max_model_bytes"), "{large}");
        let many = unpacked(&archive(&["a", "b", "c", "d"].map(|name| (name, Regular, &b""[..])))).0.unwrap_err();
        assert!(many.to_string().contains("rollout.max_model_files"), "{many}");
        let twice = unpacked(&archive(&[("a", Regular, b"1"), ("a", Regular, b"2")])).0;
        assert!(twice.is_err(), "no file is written twice");
    }

    #[test]
    fn a_damaged_archive_is_refused() {
        let whole = archive(&[("a", tar::EntryType::Regular, &[7; 900])]);
        assert!(matches!(unpacked(&whole[..whole.len() - 5]).0, Err(FetchError::Archive(_))));
        assert!(matches!(unpacked(b"not an archive").0, Err(FetchError::Archive(_))));
    }

    #[test]
    fn what_was_packed_comes_out() {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "content").unwrap();
        let packed = folder.path().join("x.tar.zst");
        pack(&[&file], &packed).unwrap();
        let (result, out) = unpacked(&fs::read(&packed).unwrap());
        result.unwrap();
        assert_eq!(fs::read(out.path().join("model/file")).unwrap(), b"content");
    }
}
