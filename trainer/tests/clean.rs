//! Raw text becomes training text, whatever it is packed in and however many threads clean it.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use vitag_trainer::clean::{self, Count, Options, Report, Rules};

const RULES: Rules = Rules { min_words: 4, max_foreign: 0.05 };

const RAW: &str = "Chợ nổi họp từ sáng sớm. Mưa to.\n\
    Chợ nổi họp  từ sáng sớm. Ghe chở đầy dưa hấu.\n\n\
    Москва là thủ đô Nga\n\n\n\
    Cầu mới nối hai bờ sông.\r\nGhe chở đầy dưa hấu.\n";

fn options(threads: usize, shard_bytes: u64) -> Options {
    Options { rules: RULES, shard_bytes, threads }
}

fn clean(inputs: &[PathBuf], options: Options) -> (TempDir, Report) {
    let dir = TempDir::new().unwrap();
    let report = clean::clean(inputs, options, &dir.path().join("text")).unwrap();
    (dir, report)
}

fn shards(dir: &TempDir) -> Vec<String> {
    let mut paths: Vec<_> = fs::read_dir(dir.path().join("text")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "txt"));
    paths.sort();
    paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

fn file(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn packed(text: &str) -> [(&'static str, Vec<u8>); 3] {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(text.as_bytes()).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
    xz.write_all(text.as_bytes()).unwrap();
    let zst = zstd::encode_all(text.as_bytes(), 0).unwrap();
    [("gz", gz.finish().unwrap()), ("xz", xz.finish().unwrap()), ("zst", zst)]
}

/// Many documents in which every sentence comes twice, far apart.
fn long_text() -> String {
    let document = |n: usize| {
        let n = n % 9000;
        format!("Câu số {n} của văn bản dài này.\nNó kể về một chuyến đi thứ {n} ra đảo xa ngoài khơi.\n\n")
    };
    (0..18_000).map(document).collect()
}

#[test]
fn the_rules_remove_what_they_say_and_keep_documents_apart() {
    let dir = TempDir::new().unwrap();
    let (out, report) = clean(&[file(dir.path(), "raw.txt", RAW)], options(2, 1 << 20));
    let expected = "Chợ nổi họp từ sáng sớm.\nGhe chở đầy dưa hấu.\n\nCầu mới nối hai bờ sông.\n";
    assert_eq!(shards(&out), [expected]);
    let counts = report.sentences;
    assert_eq!(counts.short, Count { sentences: 1, bytes: "Mưa to.".len() as u64 });
    assert_eq!((counts.foreign.sentences, counts.duplicate.sentences, counts.kept.sentences), (1, 2, 3));
    assert_eq!((report.documents, report.bytes), (2, RAW.len() as u64));
    let json = fs::read_to_string(out.path().join("text").join(clean::REPORT)).unwrap();
    assert!(json.contains("\"max_foreign\": 0.05"), "{json}");
}

#[test]
fn packed_files_folders_and_standard_input_give_the_same_text() {
    let dir = TempDir::new().unwrap();
    let expected = shards(&clean(&[file(dir.path(), "raw.txt", RAW)], options(1, 1 << 20)).0);
    for (ending, bytes) in packed(RAW) {
        let folder = dir.path().join(ending);
        fs::create_dir_all(folder.join("inner")).unwrap();
        file(&folder, ".hidden", "Tệp ẩn này không được đọc.");
        file(&folder.join("inner"), "no ending", &bytes);
        assert_eq!(shards(&clean(&[folder], options(2, 1 << 20)).0), expected, "{ending}");

        let stdin = Stdio::from(File::open(dir.path().join(ending).join("inner/no ending")).unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_vitag-trainer"));
        let out = TempDir::new().unwrap();
        let status = command.current_dir(out.path()).args(["clean", "-"]).stdin(stdin).output().unwrap().status;
        assert!(status.success());
        assert_eq!(shards(&out), expected, "{ending}");
    }
}

#[test]
fn the_output_does_not_depend_on_the_number_of_threads() {
    let dir = TempDir::new().unwrap();
    let input = [file(dir.path(), "raw.txt", long_text())];
    let (one, report) = clean(&input, options(1, 100_000));
    assert_eq!((report.sentences.kept.sentences, report.sentences.duplicate.sentences), (18_000, 18_000));
    assert_eq!(shards(&one), shards(&clean(&input, options(5, 100_000)).0));
}

#[test]
fn shards_end_with_documents_and_hold_every_sentence_once() {
    let dir = TempDir::new().unwrap();
    let (out, report) = clean(&[file(dir.path(), "raw.txt", long_text())], options(2, 100_000));
    let shards = shards(&out);
    assert!(report.shards > 5 && shards.len() == report.shards);
    assert!(shards.iter().all(|shard| shard.starts_with("Câu số") && shard.len() < 101_000));
    let lines: usize = shards.iter().map(|shard| shard.lines().filter(|line| !line.is_empty()).count()).sum();
    assert_eq!(lines, 18_000);
}

#[test]
fn a_line_that_is_not_utf8_is_left_out() {
    let dir = TempDir::new().unwrap();
    let input =
        file(dir.path(), "raw.txt", b"C\xf3 m\xe0 kh\xf4ng \xf0\xfa\nHai c\xc3\xa2u trong m\xe1\xbb\x99t d\xc3\xb2ng.");
    let (out, report) = clean(&[input], options(1, 1 << 20));
    assert_eq!(shards(&out), ["Hai câu trong một dòng.\n"]);
    assert_eq!(report.sentences.not_utf8.sentences, 1);
}

#[test]
fn a_failure_leaves_nothing_behind_and_names_the_file() {
    let dir = TempDir::new().unwrap();
    let good = file(dir.path(), "good.txt", RAW);
    for (ending, bytes) in packed(&long_text()) {
        let broken = file(dir.path(), "broken", &bytes[..bytes.len() / 2]);
        let out = dir.path().join(format!("out-{ending}"));
        let error = clean::clean(&[good.clone(), broken], options(2, 1 << 20), &out).unwrap_err();
        assert!(format!("{error:#}").contains("broken"), "{error:#}");
        assert!(!out.exists() && !dir.path().join(format!(".new-out-{ending}")).exists());
    }
    let error = clean::clean(&[good], options(1, 1), dir.path()).unwrap_err();
    assert!(error.to_string().contains("is there"), "{error}");
    assert!(dir.path().join("good.txt").exists());
}
