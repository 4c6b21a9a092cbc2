use std::io::Write as _;

use object_store::memory::InMemory;

use super::*;

fn folders() -> (tempfile::TempDir, [Folder; 2]) {
    let dir = tempfile::TempDir::new().unwrap();
    let disk = Folder::new(dir.path().to_str().unwrap()).unwrap();
    (dir, [disk, Folder::remote("memory:///lake/".to_owned(), Arc::new(InMemory::new()), "lake").unwrap()])
}

fn paths(folder: &Folder) -> Vec<String> {
    folder.list().unwrap().into_iter().map(|found| found.path).filter(|path| !path.starts_with(UNFINISHED)).collect()
}

#[test]
fn a_file_of_several_parts_appears_when_it_is_published() {
    let bytes: Vec<u8> = (0..2 * PART_BYTES + 77).map(|at| (at % 251) as u8).collect();
    let (_dir, folders) = folders();
    for folder in folders {
        let mut file = folder.create("a/b.bin").unwrap();
        bytes.chunks(1 << 20).for_each(|chunk| file.write_all(chunk).unwrap());
        assert!(paths(&folder).is_empty(), "{}", folder.name);
        file.publish().unwrap();
        assert_eq!(paths(&folder), ["a/b.bin"]);
        assert_eq!(folder.list().unwrap()[0].bytes, bytes.len() as u64);
        let (start, end) = (PART_BYTES - 3, 2 * PART_BYTES + 5);
        assert_eq!(folder.read_at("a/b.bin", start as u64..end as u64).unwrap(), bytes[start..end]);
        let mut read = Vec::new();
        folder.open("a/b.bin", 5..bytes.len() as u64).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == bytes[5..], "{}", folder.name);
    }
}

#[test]
fn a_file_that_is_given_up_never_was() {
    let (_dir, folders) = folders();
    for folder in folders {
        let mut file = folder.create("a.bin").unwrap();
        file.write_all(&vec![1; PART_BYTES + 1]).unwrap();
        drop(file);
        assert_eq!(folder.list().unwrap(), [], "{}", folder.name);
        assert_eq!(folder.get("a.bin").unwrap(), None);
        folder.create("empty").unwrap().publish().unwrap();
        assert_eq!(folder.get("empty").unwrap(), Some(Vec::new()));
    }
}

#[test]
fn the_first_to_put_a_file_wins_and_another_version_is_seen() {
    let (_dir, folders) = folders();
    for folder in folders {
        assert!(folder.put_new("job.json", b"one").unwrap());
        assert!(!folder.put_new("job.json", b"two").unwrap());
        assert_eq!(folder.get("job.json").unwrap().unwrap(), b"one");
        let before = folder.list().unwrap();
        let mut file = folder.create("job.json").unwrap();
        file.write_all(b"two").unwrap();
        file.publish().unwrap();
        assert_eq!(folder.get("job.json").unwrap().unwrap(), b"two");
        assert_ne!(folder.list().unwrap(), before, "{}", folder.name);
    }
}
