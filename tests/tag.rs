//! `vitag tag` as a process, with the model of the repository and the real ONNX Runtime.

#![cfg(feature = "worker")]

#[path = "common/cli.rs"]
mod cli;

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use cli::{feed, file, run, vitag};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Composed and decomposed letters, marks that stand alone, emoji of several code points, line breaks, no-break spaces.
const TEXTS: [&str; 6] = [
    "Bác sĩ Tôn Thất Tùng sinh tại Thanh Hóa.",
    "Nguye\u{302}\u{303}n Va\u{306}n A o\u{31b}\u{309} Hue\u{302}\u{301}. Tro\u{31b}\u{300}i mu\u{31b}a!",
    "Quán ngon 👍🏽 lắm 👨‍👩‍👧‍👦! Đi Hà Nội 🇻🇳 nhé 🙂",
    "Dòng một ở Huế.\r\nDòng hai: 3,5% của 1.200.000 đồng\r\n\r\nHết\u{a0}rồi.",
    "\u{301}dấu đứng một mình \u{303} và \u{200b}khoảng\u{200d}trống",
    "  Chị_Hoa  mua iPhone 15 Pro Max tại TP. Hồ Chí Minh (Q. 1)… ",
];

fn lines(texts: &[&str]) -> String {
    texts.iter().enumerate().map(|(id, text)| format!("{}\n", json!({ "id": id, "text": text }))).collect()
}

fn annotations(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn tag_json(arguments: &[&str], input: &str) -> Vec<Value> {
    let arguments = [&["tag", "--input", "jsonl"], arguments].concat();
    annotations(&run(&arguments, input).output())
}

/// What `start..end` of `text` is, counted in `unit`.
fn slice(text: &str, unit: &str, (start, end): (usize, usize)) -> String {
    match unit {
        "code_point" => text.chars().skip(start).take(end - start).collect(),
        "byte" => text[start..end].to_owned(),
        "utf16" => String::from_utf16(&text.encode_utf16().collect::<Vec<_>>()[start..end]).unwrap(),
        other => panic!("unit {other:?}"),
    }
}

fn extent(value: &Value) -> (usize, usize) {
    let number = |key: &str| value[key].as_u64().unwrap_or_else(|| panic!("{key} in {value}")) as usize;
    (number("start"), number("end"))
}

/// Holds an annotation against its text: every offset points at what it says, nothing overlaps, nothing is lost.
#[track_caller]
fn check(annotation: &Value, text: &str) {
    let unit = annotation["offset_unit"].as_str().unwrap();
    assert_eq!(annotation["text"], text);
    let tokens = annotation["tokens"].as_array().unwrap();
    for named in tokens.iter().chain(annotation["entities"].as_array().unwrap()) {
        assert_eq!(slice(text, unit, extent(named)), named["text"].as_str().unwrap(), "{named}");
    }
    let end_of_text = slice_length(text, unit);
    let mut at = 0;
    for (start, end) in tokens.iter().map(extent).chain([(end_of_text, end_of_text)]) {
        let gap = slice(text, unit, (at, start));
        assert!(gap.chars().all(|c| c.is_whitespace() || c == '_'), "{gap:?} of {text:?} is in no token");
        at = end;
    }
    let sentences: Vec<_> = annotation["sentences"].as_array().unwrap().iter().map(extent).collect();
    assert!(sentences.windows(2).all(|two| two[0].1 <= two[1].0), "{sentences:?}");
    for token in tokens.iter().map(extent) {
        assert!(sentences.iter().any(|sentence| sentence.0 <= token.0 && token.1 <= sentence.1), "{token:?}");
    }
}

fn slice_length(text: &str, unit: &str) -> usize {
    match unit {
        "byte" => text.len(),
        "utf16" => text.encode_utf16().count(),
        _ => text.chars().count(),
    }
}

#[test]
fn offsets_point_at_their_texts_in_every_unit() {
    for unit in ["code_point", "byte", "utf16"] {
        let tagged = tag_json(&["--set", &format!("output.offset_unit={unit}")], &lines(&TEXTS));
        assert_eq!(tagged.len(), TEXTS.len());
        for (id, (annotation, text)) in tagged.iter().zip(TEXTS).enumerate() {
            assert_eq!((&annotation["id"], &annotation["offset_unit"]), (&json!(id), &json!(unit)));
            check(annotation, text);
        }
    }
}

#[test]
fn annotations_validate_against_the_schema() {
    let schema = serde_json::from_str(&run(&["schema", "annotation"], "").output()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for annotation in tag_json(&[], &lines(&TEXTS)) {
        let problems: Vec<String> = validator.iter_errors(&annotation).map(|error| error.to_string()).collect();
        assert!(problems.is_empty(), "{problems:?} in {annotation}");
    }
    assert!(!validator.is_valid(&json!({ "schema_version": 1 })), "a schema that refuses nothing proves nothing");
}

#[test]
fn many_lines_of_all_lengths_keep_their_order() {
    let texts: Vec<String> = (0..600).map(|n| format!("Dòng {n} {}.", "rất dài ".repeat(n * 7 % 23))).collect();
    let output =
        run(&["tag", "--set", "lanes.count=3", "--set", "lanes.tokenize_threads=3"], &texts.join("\n")).output();
    let tagged = annotations(&output);
    assert_eq!(tagged.len(), texts.len());
    for (number, (annotation, text)) in tagged.iter().zip(&texts).enumerate() {
        assert_eq!(annotation["text"], *text);
        let source = json!({ "topic": "stdin", "partition": 0, "offset": number, "timestamp": null });
        assert_eq!((&annotation["source"], &annotation["id"]), (&source, &Value::Null));
    }
}

#[test]
fn files_come_out_one_after_the_other_with_their_ids() {
    let folder = TempDir::new().unwrap();
    let first = file(folder.path(), "a.jsonl", "{\"id\": \"bài-1\", \"text\": \"Một.\"}\r\n\n{\"text\": \"Hai.\"}\n");
    let second = file(folder.path(), "b.jsonl", "{\"id\": 7.5, \"text\": \"Ba.\", \"more\": [1]}");
    let output = run(&["tag", first.to_str().unwrap(), second.to_str().unwrap()], "not read").output();
    let found: Vec<_> =
        annotations(&output).iter().map(|a| json!([a["id"], a["text"], a["source"]["offset"]])).collect();
    assert_eq!(found, [json!(["bài-1", "Một.", 0]), json!([null, "Hai.", 2]), json!([7.5, "Ba.", 0])]);
}

#[test]
fn merged_output_is_the_input_with_its_annotation() {
    let input = "{\"price\": 1.50, \"text\": \"Chào Huế!\", \"id\": 1}\n";
    let tagged = tag_json(&["--set", "output.mode=merge", "--set", "output.merge_key=tags"], input);
    assert_eq!(tagged.len(), 1);
    assert_eq!((&tagged[0]["price"], &tagged[0]["tags"]["text"]), (&json!(1.5), &json!("Chào Huế!")));
}

#[test]
fn lines_that_cannot_be_read_are_told_and_the_others_come_out() {
    let folder = TempDir::new().unwrap();
    let content = "{\"text\": \"Một.\"}\n{\"text\": \n{\"text\": 5}\n{}\n{\"text\": \" \"}\n{\"text\": \"Hai.\"}\n";
    let path = file(folder.path(), "in.jsonl", content);
    let name = path.to_str().unwrap();
    let ended = run(&["tag", name], "");
    let told: Vec<String> = [(2, "invalid_json"), (3, "wrong_type"), (4, "missing_field"), (5, "empty_text")]
        .iter()
        .map(|(line, code)| {
            assert!(ended.stderr.lines().any(|told| told.ends_with(&format!("({code})"))), "{}", ended.stderr);
            format!("{name}:{line}: decode: ")
        })
        .collect();
    ended.refused(65, &told.iter().map(String::as_str).chain(["4 of the lines"]).collect::<Vec<_>>());
    let texts: Vec<_> = annotations(&ended.stdout).iter().map(|annotation| annotation["text"].clone()).collect();
    assert_eq!(texts, ["Một.", "Hai."]);
}

#[test]
fn bytes_that_are_not_utf8_are_refused() {
    let ended = feed(&mut vitag(["tag"]), *b"\xff\xfe\nt\xe1\xbb\x91t\n");
    ended.refused(65, &["stdin:1: ", "(invalid_utf8)"]);
    assert_eq!(annotations(&ended.stdout)[0]["text"], "tốt");
}

#[test]
fn a_missing_file_is_named() {
    let ended = run(&["tag", "nowhere/articles.jsonl"], "");
    ended.refused(1, &["nowhere/articles.jsonl", "No such file"]);
    assert_eq!(ended.stdout, "");
}

#[test]
fn nothing_in_is_nothing_out() {
    for format in ["json", "conllu", "pretty"] {
        assert_eq!(run(&["tag", "--format", format], "").output(), "");
        assert_eq!(run(&["tag", "--format", format], "\n \r\n").output(), "");
    }
}

#[test]
fn a_sentence_longer_than_the_window_is_covered_whole() {
    let syllables: Vec<String> = (0..2000).map(|n| format!("tiếng{n}")).collect();
    let text = syllables.join(" ");
    let tagged = tag_json(&[], &lines(&[&text]));
    check(&tagged[0], &text);
    let tokens = tagged[0]["tokens"].as_array().unwrap();
    let found: Vec<&str> = tokens.iter().flat_map(|token| token["text"].as_str().unwrap().split(' ')).collect();
    assert!(found == syllables, "every syllable is in one token");
    assert_eq!((&tagged[0]["truncated"], tagged[0]["sentences"].as_array().unwrap().len()), (&json!(false), 1));
}

#[test]
fn an_annotation_may_be_larger_than_a_topic_would_take() {
    let (text, room) = (format!("{} ", "x".repeat(300)).repeat(2_000), "input.max_text_bytes=1000000");
    assert!(run(&["tag", "--set", room], &text).output().len() > 1_000_000);
    run(&["tag", "--set", "output.max_record_bytes=100"], "Huế").refused(65, &["stdin:1: ", "(output_too_large)"]);
}

#[test]
fn a_text_over_the_limit_is_refused_or_cut_at_a_character() {
    let (limit, input) = ("input.max_text_bytes=20", "ngắn thôi\nở đâu cũng thấy ở đâu cũng thấy\nhết\n");
    let ended = run(&["tag", "--set", limit], input);
    ended.refused(65, &["stdin:2: ", "(text_too_large)"]);
    assert_eq!(annotations(&ended.stdout).len(), 2);
    // A letter has three bytes, so these cut one at each of its places.
    for limit in 18..21 {
        let limit = format!("input.max_text_bytes={limit}");
        let cut = ["tag", "--set", &limit, "--set", "input.on_too_large=truncate", "--set", "lanes.count=1"];
        let long = "ếếếếếếếếếếếếếếếếếếế\nhết\n";
        let tagged = annotations(&run(&cut, long).output());
        assert_eq!((&tagged[0]["truncated"], &tagged[1]["truncated"]), (&json!(true), &json!(false)), "{limit}");
        assert_eq!(tagged[1]["text"], "hết");
        check(&tagged[0], tagged[0]["text"].as_str().unwrap());
    }
    let json = lines(&["ở đâu cũng thấy ở đâu cũng thấy"]);
    tag_json(&["--set", "input.max_text_bytes=20", "--set", "input.on_too_large=truncate"], &json)
        .iter()
        .for_each(|annotation| assert_eq!(annotation["truncated"], true));
}

#[test]
fn given_words_are_read_by_a_model_of_syllables() {
    let input = "{\"words\": [\"bác_sĩ\", \"Hoa\", \"ở\", \"Hà Nội\", \".\"]}\n{\"text\": \"Chào.\"}\n";
    let tagged = tag_json(&["--set", "input.words_pointer=/words"], input);
    check(&tagged[0], "bác_sĩ Hoa ở Hà Nội .");
    check(&tagged[1], "Chào.");
}

#[test]
fn conllu_is_conllu() {
    let texts = TEXTS.map(str::to_owned).into_iter().chain(["Một.  Hai!\tBa?".to_owned()]);
    let input: String = texts.enumerate().map(|(n, text)| format!("{}\n", json!({"id": n, "text": text}))).collect();
    let output = run(&["tag", "--input", "jsonl", "--format", "conllu"], &input).output();
    let blocks: Vec<&str> = output.strip_suffix("\n\n").unwrap().split("\n\n").collect();
    assert!(blocks.len() >= 10, "{output}");
    let mut ids = std::collections::HashSet::new();
    for block in blocks {
        assert!(ids.insert(check_sentence(block)), "sent_id twice: {block}");
    }
    assert_eq!(output.lines().filter(|line| line.starts_with("# newdoc id = ")).count(), TEXTS.len() + 1);
}

/// Holds a sentence against the format, and returns its id. See <https://universaldependencies.org/format.html>.
#[track_caller]
fn check_sentence(block: &str) -> String {
    let (comments, words): (Vec<&str>, Vec<&str>) = block.lines().partition(|line| line.starts_with('#'));
    let comment = |name: &str| {
        let found: Vec<&str> = comments.iter().filter_map(|line| line.strip_prefix(name)).collect();
        assert_eq!(found.len(), 1, "{name} in {block}");
        found[0].to_owned()
    };
    assert!(!words.is_empty() && block.starts_with('#'), "{block}");
    let mut text = String::new();
    for (number, line) in words.iter().enumerate() {
        let columns: Vec<&str> = line.split('\t').collect();
        assert_eq!(columns.len(), 10, "{line:?}");
        assert_eq!(columns[0], (number + 1).to_string());
        for column in &columns {
            assert!(!column.is_empty() && column.trim() == *column, "{line:?}");
            assert!(!column.contains("  ") && !column.contains(|c: char| c.is_control()), "{line:?}");
        }
        assert!(columns[3] == "_" || columns[3].bytes().all(|byte| byte.is_ascii_uppercase()), "{line:?}");
        let misc: Vec<&str> = columns[9].split('|').collect();
        assert!(columns[9] == "_" || misc.iter().all(|part| part.contains('=')), "{line:?}");
        text.push_str(columns[1]);
        if !misc.contains(&"SpaceAfter=No") {
            text.push(' ');
        }
    }
    assert_eq!(comment("# text = "), text.trim_end(), "{block}");
    comment("# sent_id = ")
}

#[test]
fn colours_are_for_terminals_and_on_request() {
    let (input, escape) = ("Bác sĩ Hoa ở Huế. Trời mưa!", '\u{1b}');
    let plain = run(&["tag", "--format", "pretty"], input).output();
    assert!(!plain.contains(escape) && plain.contains("/PUNCT"), "{plain}");
    assert_eq!(plain.lines().count(), 2, "a line a sentence: {plain}");
    let always = run(&["tag", "--format", "pretty", "--color", "always"], input).output();
    assert!(always.contains(escape), "{always}");
    let never = run(&["tag", "--format", "pretty", "--color", "never"], input).output();
    assert_eq!(never, plain);
}

#[test]
fn a_reader_that_has_enough_ends_it_quietly() {
    let mut child = vitag(["tag", "--set", "commit.interval_ms=5"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Far more than the pipes hold, so it cannot be done before the reader leaves.
    let feeder =
        std::thread::spawn(move || while stdin.write_all("Trời mưa ở Huế.\n".repeat(100).as_bytes()).is_ok() {});
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(annotations(&line).len(), 1);
    let ended = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8(ended.stderr).unwrap().as_str()), (Some(0), ""));
}

#[test]
fn a_signal_ends_it_though_it_waits_for_input() {
    let mut child =
        vitag(["tag", "--set", "commit.interval_ms=5"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"m\xe1\xbb\x99t\n").unwrap();
    // Its first answer shows that it is at work, and waits.
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    // Not an interrupt: where the tests run in the background, a shell has them ignore those.
    assert!(std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert!(!child.wait().unwrap().success(), "what was not tagged must not pass for done");
    drop(stdin);
}
