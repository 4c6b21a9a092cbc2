//! `vitag demo` as a process.

#![cfg(feature = "worker")]

#[path = "common/cli.rs"]
mod cli;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use cli::{run, vitag};

/// Lines of tagged text, and the line of the summary.
fn read(output: &str) -> (usize, &str) {
    let summary = output.lines().find(|line| line.contains(" messages, ")).expect("a summary");
    (output.lines().filter(|line| line.contains("/PUNCT")).count(), summary)
}

/// The broker that the first line names.
fn broker(line: &str) -> &str {
    let address = line.trim_end().trim_end_matches('.').rsplit(' ').next().unwrap();
    let (host, port) = address.rsplit_once(':').unwrap_or_else(|| panic!("no address in {line:?}"));
    assert!(host == "127.0.0.1" && port.parse::<u16>().is_ok(), "{line:?}");
    address
}

#[test]
fn it_shows_the_articles_and_says_what_they_prove() {
    let output = run(&["demo", "--color", "never"], "").output();
    let (sentences, summary) = read(&output);
    assert!(sentences >= 500, "{sentences} sentences in {output}");
    assert!(!output.contains('\u{1b}'), "plain: {output}");
    broker(output.lines().next().unwrap());
    assert!(output.contains("its transactions prove nothing"), "{output}");
    let number = |word: &str| {
        let words: Vec<&str> = summary.split(' ').collect();
        let at = words.iter().position(|found| found.trim_end_matches(',') == word).unwrap_or_else(|| panic!("{word}"));
        words[at - 1].parse::<usize>().unwrap()
    };
    assert!(number("messages") >= 120 && number("sentences") >= 600 && number("words") > 5000, "{summary}");
    assert!(output.contains("99th percentile"), "{output}");
}

#[test]
fn kept_it_stays_until_it_is_interrupted() {
    let mut child = vitag(["demo", "--keep", "--color", "never"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first = output.next().unwrap();
    let address = broker(&first);
    let hint = format!("kcat -b {address} -P");
    assert!(output.any(|line| line.contains(&hint)), "it says how to send a document");
    assert_eq!(child.try_wait().unwrap(), None, "it stays");
    std::net::TcpStream::connect(address).expect("the broker listens");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8(ended.stderr).unwrap().as_str()), (Some(0), ""));
}

#[test]
fn a_reader_that_has_enough_ends_it_quietly() {
    for keep in [None, Some("--keep")] {
        let mut child = vitag(["demo"].into_iter().chain(keep))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ended = child.wait_with_output().unwrap();
        assert_eq!((ended.status.code(), String::from_utf8(ended.stderr).unwrap().as_str()), (Some(0), ""));
    }
}

#[test]
fn a_wrong_setting_is_told_before_anything_starts() {
    let ended = run(&["demo", "--set", "batch.max_token=1"], "");
    ended.refused(78, &["batch.max_token", "batch.max_tokens"]);
    assert_eq!(ended.stdout, "");
}
