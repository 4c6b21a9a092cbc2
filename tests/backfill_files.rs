//! Jobs over files: every split once and whole, whatever the input is like and whoever dies on the way.
#![cfg(feature = "worker")]

#[path = "common/cli.rs"]
mod cli;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use cli::{Ended, feed, vitag};
use flate2::write::GzEncoder;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with inputs and outputs.
struct Lake(TempDir);

impl Lake {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    fn command(&self, inputs: &[&str], more: &[&str]) -> std::process::Command {
        let mut command = vitag(["backfill", "--job", "lake", "--json", "--set", "lanes.count=1"]);
        for input in inputs {
            command.arg("--input").arg(self.0.path().join(input));
        }
        if !more.contains(&"--output") {
            command.arg("--output").arg(self.0.path().join("out"));
        }
        command.args(more);
        command
    }

    fn backfill(&self, inputs: &[&str], more: &[&str]) -> Ended {
        feed(&mut self.command(inputs, more), "")
    }

    /// All JSON lines of the files below `folder` with this ending, in the order of the names.
    fn lines(&self, folder: &str, ending: &str) -> Vec<Value> {
        let mut files = Vec::new();
        walk(&self.0.path().join(folder), &mut files);
        files.retain(|path| path.to_str().unwrap().ends_with(ending));
        files.sort();
        let text: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The annotations, without what is kept beside them.
    fn outputs(&self) -> Vec<Value> {
        let of_job = |line: &Value| line.get("schema_version").is_some();
        self.lines("out", ".jsonl").into_iter().filter(of_job).collect()
    }

    /// Every file of the output, its contents with it.
    fn state(&self) -> Vec<(PathBuf, Vec<u8>, std::time::SystemTime)> {
        let mut files = Vec::new();
        walk(&self.0.path().join("out"), &mut files);
        files.sort();
        let state = |path: PathBuf| (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap(), path);
        files.into_iter().map(state).map(|(bytes, changed, path)| (path, bytes, changed)).collect()
    }
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, files) } else { files.push(path) }
    }
}

#[track_caller]
fn summary(ended: &Ended) -> Value {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}

fn text(id: usize) -> String {
    format!("Số {id} ở Huế.")
}

fn jsonl(ids: std::ops::Range<usize>) -> String {
    ids.map(|id| json!({ "id": id, "text": text(id) }).to_string() + "\n").collect()
}

fn ids(lines: &[Value]) -> Vec<u64> {
    let mut ids: Vec<u64> = lines.iter().map(|line| line["id"].as_u64().unwrap()).collect();
    ids.sort_unstable();
    ids
}

fn parquet_file(path: &Path, columns: Vec<(&str, ArrayRef)>, rows_of_group: usize) {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(rows_of_group)).build();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn articles(ids: std::ops::Range<i64>) -> Vec<(&'static str, ArrayRef)> {
    let texts: Vec<String> = ids.clone().map(|id| text(id as usize)).collect();
    vec![
        ("article", Arc::new(Int64Array::from_iter_values(ids)) as ArrayRef),
        ("body", Arc::new(StringArray::from(texts)) as ArrayRef),
    ]
}

#[test]
fn pieces_of_a_file_of_lines_hold_every_line_once_at_its_place() {
    let lake = Lake::new();
    let content = jsonl(0..200) + "\n\n" + jsonl(200..201).trim_end();
    lake.write("in/a.jsonl", &content);
    let done = summary(&lake.backfill(&["in/*.jsonl"], &["--split-bytes", "700"]));
    assert_eq!((&done["state"], &done["records"]), (&json!("finished"), &json!(201)));
    let outputs = lake.outputs();
    assert_eq!(ids(&outputs), (0..201).collect::<Vec<u64>>());
    for line in outputs {
        let offset = line["source"]["offset"].as_u64().unwrap() as usize;
        let own: Value = serde_json::from_str(content[offset..].lines().next().unwrap()).unwrap();
        assert_eq!((&own["id"], &own["text"]), (&line["id"], &line["text"]));
    }
    let before = lake.state();
    let again = summary(&lake.backfill(&["in/*.jsonl"], &["--split-bytes", "700"]));
    assert_eq!((&again["state"], &again["records"]), (&json!("finished_before"), &json!(0)));
    assert_eq!(lake.state(), before);
}

#[test]
fn every_format_is_read_and_packed_ones_too() {
    let lake = Lake::new();
    let gz = |text: &str| {
        let mut gz = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(text.as_bytes()).unwrap();
        gz.finish().unwrap()
    };
    lake.write("in/a.jsonl.gz", [gz(&jsonl(0..3)), gz(&jsonl(3..5))].concat());
    lake.write("in/b.jsonl.zst", zstd::encode_all(jsonl(5..8).as_bytes(), 0).unwrap());
    lake.write("in/c.csv", "id,note,text\n8,,\"Huế, \nđẹp\"\n9,x,Ở Huế.\n");
    parquet_file(
        &lake.path("in/d.parquet"),
        vec![
            ("id", Arc::new(Int64Array::from(vec![10, 11])) as ArrayRef),
            ("text", Arc::new(StringArray::from(vec!["Một.", "Hai."])) as ArrayRef),
        ],
        1,
    );
    lake.write("in/x/e.txt", "Ở Huế.\n");
    let done = summary(&lake.backfill(&["in/**/*.*"], &[]));
    assert_eq!(done["records"], 13);
    let mut outputs = lake.outputs();
    let csv = outputs.iter().find(|line| line["text"] == "Huế, \nđẹp").unwrap();
    assert_eq!((&csv["id"], &csv["source"]["offset"]), (&json!("8"), &json!(0)));
    outputs.retain(|line| line["id"].is_u64());
    assert_eq!(ids(&outputs), [0, 1, 2, 3, 4, 5, 6, 7, 10, 11]);
}

#[test]
fn parquet_comes_back_from_parquet() {
    let lake = Lake::new();
    parquet_file(&lake.path("in/a.parquet"), articles(0..40), 15);
    let columns = ["--text", "body", "--id", "article"];
    let out = lake.path("packed").display().to_string();
    let packed = [&columns[..], &["--output", &out, "--output-format", "parquet"]].concat();
    assert_eq!(summary(&lake.backfill(&["in/a.parquet"], &packed))["records"], 40);
    summary(&lake.backfill(&["in/a.parquet"], &columns));
    let expected = lake.outputs();
    assert_eq!(expected.len(), 40);
    let mut back = Vec::new();
    for group in 0..3 {
        let file = lake.path(&format!("packed/a.parquet-{group:05}.parquet"));
        let lines = cli::run(&["convert", "--from", "parquet", "--to", "annotations", file.to_str().unwrap()], "");
        back.extend(lines.output().lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    assert_eq!(back, expected);
}

#[test]
fn what_cannot_be_tagged_is_kept_with_its_reason() {
    let lake = Lake::new();
    lake.write(
        "in/a.jsonl",
        [b"{\"id\": 1, \"text\": \"Hu\xe1\xba\xbf\"}\n{\"id\": 2}\n\xff\xfe\n".as_slice()].concat(),
    );
    let bodies = StringArray::from(vec![Some("Một."), None]);
    parquet_file(&lake.path("in/b.parquet"), vec![("text", Arc::new(bodies) as ArrayRef)], 10);
    let ended = lake.backfill(&["in/*"], &[]);
    ended.refused(65, &["3 of the records were refused"]);
    let told: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(told["rejects"], json!({ "invalid_utf8": 1, "missing_field": 2 }));
    let rejects = lake.lines("out/_rejects", ".jsonl");
    let seen = |line: &Value| (line["offset"].as_i64().unwrap(), line["code"].as_str().unwrap().to_owned());
    let expected = [(27, "missing_field"), (37, "invalid_utf8"), (1, "missing_field")];
    assert_eq!(rejects.iter().map(seen).collect::<Vec<_>>(), expected.map(|(at, code)| (at, code.to_owned())));
    assert_eq!((&rejects[0]["value"], &rejects[1]["value_base64"]), (&json!("{\"id\": 2}"), &json!("//4=")));
    assert_eq!(lake.outputs().len(), 2);
}

#[test]
fn files_that_cannot_be_read_leave_no_half_output_and_the_rest_is_done() {
    let lake = Lake::new();
    lake.write("in/a.jsonl", jsonl(0..5));
    let mut gz = GzEncoder::new(Vec::new(), flate2::Compression::none());
    gz.write_all(jsonl(5..2_000).as_bytes()).unwrap();
    let whole = gz.finish().unwrap();
    lake.write("in/b.jsonl.gz", &whole[..whole.len() - 100]);
    parquet_file(&lake.path("in/c.parquet"), articles(0..3), 10);
    let mut parquet = fs::read(lake.path("in/c.parquet")).unwrap();
    let footer = parquet.len() - 40;
    parquet[footer..footer + 16].fill(0xee);
    lake.write("in/d.parquet", parquet);
    lake.write("in/e.csv", "id,title\n1,a\n");
    lake.write("in/f.unknown", "a");
    let ended = lake.backfill(&["in/*"], &[]);
    ended.refused(65, &["5 of the inputs could not be read"]);
    let told: Value = serde_json::from_str(&ended.stdout).unwrap();
    let reason = |name: &str| {
        let all = told["unread"].as_array().unwrap();
        let of =
            all.iter().find(|one| one["input"].as_str().unwrap().ends_with(name)).unwrap_or_else(|| panic!("{told}"));
        of["reason"].as_str().unwrap().to_owned()
    };
    assert!(reason("b.jsonl.gz").contains("cannot be read to its end"), "{told}");
    assert!(reason("c.parquet").contains("no column \"text\", but article, body"), "{told}");
    assert!(!reason("d.parquet").is_empty());
    assert!(reason("e.csv").contains("no column \"text\", but id, title"), "{told}");
    assert!(reason("f.unknown").contains("--format"), "{told}");
    assert_eq!(ids(&lake.outputs()), [0, 1, 2, 3, 4]);
    assert_eq!(told["records"], 5);
    // Mended, they are done, and nothing else.
    let before = lake.state();
    lake.write("in/b.jsonl.gz", whole);
    fs::remove_file(lake.path("in/f.unknown")).unwrap();
    let ended = lake.backfill(&["in/*"], &[]);
    let told: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(told["records"], 1_995);
    assert!(before.iter().all(|file| lake.state().contains(file)), "what was done is not done again");
}

#[test]
fn what_cannot_be_a_job_is_refused() {
    let lake = Lake::new();
    lake.write("in/a.jsonl", jsonl(0..2));
    let refused = |inputs: &[&str], more: &[&str], code, words: &[&str]| {
        lake.backfill(inputs, more).refused(code, words);
    };
    refused(&["in/none*.jsonl"], &[], 65, &["none*.jsonl: there is no such file"]);
    refused(&["in/a.jsonl"], &["--limit", "1"], 2, &["--limit is for topics"]);
    refused(&["in/a.jsonl"], &["--share", "2/2"], 2, &["--share"]);
    let merge = ["--set", "output.mode=merge", "--output-format", "parquet"];
    refused(&["in/a.jsonl"], &merge, 2, &["output.mode is merge"]);
    summary(&lake.backfill(&["in/a.jsonl"], &[]));
    refused(&["in/a.jsonl"], &["--sample", "0.5"], 2, &["holds the outputs of a job with another"]);
    lake.write("here/a.jsonl", jsonl(0..2));
    refused(&["in/*", "here/*"], &["--sample", "0.5"], 2, &["another input has a file of this name"]);
}

#[test]
fn a_disk_that_is_full_leaves_no_half_output() {
    let lake = Lake::new();
    lake.write("in/a.jsonl", jsonl(0..400));
    let command = lake.command(&["in/a.jsonl"], &["--set", "commit.records=20"]);
    let mut limited = std::process::Command::new("bash");
    // Files of 64 KiB at most; without its signal the write itself fails.
    limited.args(["-c", r#"trap "" XFSZ; ulimit -f 64; exec "$@""#, "bash"]).arg(command.get_program());
    limited.args(command.get_args()).current_dir(env!("CARGO_MANIFEST_DIR"));
    feed(&mut limited, "").refused(1, &["cannot write", "a.jsonl-00000.jsonl", "File too large"]);
    assert_eq!(lake.outputs().len(), 0);
    assert_eq!(summary(&lake.backfill(&["in/a.jsonl"], &["--set", "commit.records=20"]))["records"], 400);
    assert_eq!(ids(&lake.outputs()), (0..400).collect::<Vec<u64>>());
}

#[test]
fn where_nothing_may_be_written_a_job_says_so_and_does_nothing() {
    let lake = Lake::new();
    lake.write("in/a.jsonl", jsonl(0..3));
    let out = lake.path("out/x").parent().unwrap().to_owned();
    fs::set_permissions(&out, fs::Permissions::from_mode(0o555)).unwrap();
    let command = lake.command(&["in/a.jsonl"], &[]);
    // Whoever is root may do everything, unless without the capabilities.
    let mut lowered = std::process::Command::new("bash");
    let lower = r#"test "$(id -u)" = 0 && exec setpriv --bounding-set=-all "$@"; exec "$@""#;
    lowered.args(["-c", lower, "bash"]).arg(command.get_program()).args(command.get_args());
    feed(lowered.current_dir(env!("CARGO_MANIFEST_DIR")), "").refused(1, &["_vitag", "Permission denied"]);
    assert_eq!(lake.state(), []);
    fs::set_permissions(&out, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(summary(&lake.backfill(&["in/a.jsonl"], &[]))["records"], 3);
}

#[test]
fn a_rate_is_not_exceeded() {
    let lake = Lake::new();
    lake.write("in/a.jsonl", jsonl(0..100));
    let started = std::time::Instant::now();
    assert_eq!(summary(&lake.backfill(&["in/*"], &["--rate", "30"]))["records"], 100);
    // What could have been read within a second may be made up for.
    assert!(started.elapsed().as_secs_f64() > 99.0 / 30.0 - 1.0, "{:?}", started.elapsed());
}

#[test]
fn shares_are_apart_and_together_all() {
    let lake = Lake::new();
    (0..7).for_each(|n| lake.write(&format!("in/{n}.jsonl"), jsonl(n * 3..n * 3 + 3)));
    let mut records = 0;
    for share in ["0/3", "1/3", "2/3"] {
        records += summary(&lake.backfill(&["in/*"], &["--share", share]))["records"].as_u64().unwrap();
    }
    assert_eq!(records, 21);
    assert_eq!(ids(&lake.outputs()), (0..21).collect::<Vec<u64>>());
    assert_eq!(summary(&lake.backfill(&["in/*"], &[]))["state"], "finished_before");
}

#[test]
fn a_job_that_is_killed_does_no_finished_split_again() {
    let lake = Lake::new();
    lake.write("in/a.txt", (0..300).map(|id| text(id) + "\n").collect::<String>());
    let arguments = ["--split-bytes", "600", "--set", "batch.max_sequences=2", "--set", "commit.interval_ms=5"];
    for round in 1..4 {
        let mut child = lake.command(&["in/a.txt"], &arguments).stdout(std::process::Stdio::null()).spawn().unwrap();
        let mut done = Vec::new();
        while done.len() < round && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(5));
            done.clear();
            walk(&lake.0.path().join("out/_vitag/splits"), &mut done);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let finished: Vec<_> =
        lake.state().into_iter().filter(|(path, ..)| !path.to_str().unwrap().contains("_vitag/tmp")).collect();
    summary(&lake.backfill(&["in/a.txt"], &arguments));
    let after = lake.state();
    let has_manifest = |path: &Path| {
        let name = path.file_name().unwrap().to_str().unwrap().trim_end_matches(".jsonl").trim_end_matches(".json");
        finished.iter().any(|(done, ..)| done.ends_with(format!("_vitag/splits/{name}.json")))
    };
    let kept = finished.iter().filter(|(path, ..)| has_manifest(path));
    assert!(kept.clone().count() > 0);
    assert!(kept.into_iter().all(|file| after.contains(file)), "a finished split was done again");
    let texts: Vec<Value> = lake.outputs().iter().map(|line| line["text"].clone()).collect();
    assert_eq!(texts, (0..300).map(|id| json!(text(id))).collect::<Vec<_>>());
}

#[test]
fn a_dry_run_tells_and_writes_nothing() {
    let lake = Lake::new();
    lake.write("in/a.txt", (0..500).map(|id| text(id) + "\n").collect::<String>());
    let told = summary(&lake.backfill(&["in/a.txt"], &["--dry-run"]));
    let records = told["records"].as_u64().unwrap();
    assert!((480..520).contains(&records), "{told}");
    assert!(told["seconds"].as_f64().unwrap() > 0.0, "{told}");
    assert!(!lake.0.path().join("out").exists());
}

#[test]
fn a_model_compared_with_itself_agrees() {
    let lake = Lake::new();
    lake.write("in/a.txt", (0..20).map(|id| text(id) + "\n").collect::<String>());
    let differences = lake.path("differences.jsonl");
    let more = ["--compare-with", "vi-tagger@0.1.0", "--differences", differences.to_str().unwrap()];
    let told = summary(&lake.backfill(&["in/a.txt"], &more));
    assert_eq!((&told["comparison"]["records"], &told["comparison"]["same"]), (&json!(20), &json!(20)));
    let labels = told["comparison"]["labels"].as_object().unwrap();
    assert!(labels.keys().any(|label| label.starts_with("pos/")), "{labels:?}");
    assert!(labels.values().all(|label| label["first"] == 0 && label["second"] == 0));
    assert_eq!(fs::read_to_string(differences).unwrap(), "");
}

#[test]
fn a_folder_may_be_an_object_store() {
    let lake = Lake::new();
    lake.write("in/a.jsonl", jsonl(0..5));
    parquet_file(&lake.path("in/b.parquet"), articles(0..3), 2);
    let (input, output) =
        (format!("file://{}/in/*", lake.0.path().display()), format!("file://{}/out", lake.0.path().display()));
    let more = ["--input", &input, "--output", &output, "--where", "/text"];
    let ended = lake.backfill(&[], &more);
    ended.refused(65, &["1 of the inputs could not be read"]);
    assert_eq!(ids(&lake.outputs()), [0, 1, 2, 3, 4]);
}

/// The lines of `BACKFILL_TEXT`, as `make backfill` names it; without it, some of the test's own.
fn long_text() -> String {
    match std::env::var("BACKFILL_TEXT") {
        Ok(path) if !path.is_empty() => fs::read_to_string(path).unwrap(),
        _ => (0..2_000).map(|id| text(id) + "\n").collect(),
    }
}

#[test]
fn a_text_goes_to_parquet_and_back_through_a_kill_in_little_memory() {
    let (lake, content) = (Lake::new(), long_text());
    lake.write("in/a.txt", &content);
    let split = (content.len() / 8).to_string();
    let out = lake.path("packed").display().to_string();
    let arguments = ["--split-bytes", &split, "--output", &out, "--output-format", "parquet"];
    let started = std::time::Instant::now();
    let mut child = lake.command(&["in/a.txt"], &arguments).stdout(std::process::Stdio::null()).spawn().unwrap();
    let manifests = || {
        let mut done = Vec::new();
        walk(&lake.0.path().join("packed/_vitag/splits"), &mut done);
        done.len()
    };
    let mut peak = 0;
    while manifests() < 2 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(10));
        peak = peak.max(resident(child.id()));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let done = manifests();
    let resumed = std::time::Instant::now();
    let (told, later) = watched(lake.command(&["in/a.txt"], &arguments));
    eprintln!(
        "peak of the killed run {} MiB, of the second {} MiB in {:.0} s, {:.0} s in all: {told}",
        peak >> 20,
        later >> 20,
        resumed.elapsed().as_secs_f64(),
        started.elapsed().as_secs_f64()
    );
    assert!(peak.max(later) < 1 << 30, "{peak} {later}");
    let mut back = Vec::new();
    let mut files = Vec::new();
    walk(Path::new(&out), &mut files);
    files.retain(|path| path.extension().is_some_and(|end| end == "parquet"));
    files.sort();
    assert!(done >= 2 && files.len() > done, "{done} of {} splits were done before the kill", files.len());
    for file in &files {
        let lines = cli::run(&["convert", "--from", "parquet", "--to", "annotations", file.to_str().unwrap()], "");
        back.extend(lines.output().lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    let mut at = 0;
    let mut expected = Vec::new();
    for line in content.split_inclusive('\n') {
        if !line.trim().is_empty() {
            expected.push((at as u64, line.trim_end_matches(|c: char| c.is_ascii_whitespace())));
        }
        at += line.len();
    }
    let refused: u64 = told["rejects"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert!(refused == 0 || std::env::var("BACKFILL_TEXT").is_ok());
    let found: std::collections::HashMap<u64, &Value> =
        back.iter().map(|line| (line["source"]["offset"].as_u64().unwrap(), line)).collect();
    assert_eq!(found.len(), back.len(), "each place once");
    let texts = expected.iter().filter(|(offset, text)| found.get(offset).is_some_and(|line| line["text"] == **text));
    assert_eq!(texts.count(), back.len());
    assert!(back.len() + lake.lines("packed/_rejects", ".jsonl").len() == expected.len());
}

/// The summary of a run, and the most memory that it had.
fn watched(mut command: std::process::Command) -> (Value, u64) {
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        peak = peak.max(resident(child.id()));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let told = child.wait_with_output().unwrap().stdout;
    (serde_json::from_slice(&told).unwrap(), peak)
}

/// Memory of a process, in bytes; 0 when it is gone.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}
