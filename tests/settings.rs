//! The commands around the settings, as processes.

#![cfg(feature = "worker")]

#[path = "common/cli.rs"]
mod cli;

use std::process::Stdio;

use cli::{feed, file, run, vitag};
use tempfile::TempDir;

const EXAMPLE: &str = "deploy/config/vitag.toml";
const PASSWORD: &str = "hunter2";
const COMMANDS: [&str; 11] =
    ["run", "tag", "backfill", "convert", "dlq", "model", "bench", "check-config", "demo", "schema", "completions"];

#[test]
fn the_example_is_in_order() {
    let ended = run(&["check-config", "--config", EXAMPLE], "");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""));
    assert_eq!(ended.stderr, "the settings are in order\n");
}

#[test]
fn the_effective_settings_load_again_and_are_the_same() {
    let folder = TempDir::new().unwrap();
    let check = |config: &str, sets: &[&str]| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let ended =
            feed(&mut vitag(["check-config", "--print-effective", "--config", config].into_iter().chain(sets)), "");
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stdout
    };
    let first = check(EXAMPLE, &["batch.max_tokens=2048", "kafka.properties.socket.keepalive.enable=true"]);
    assert!(first.contains("max_tokens = 2048  # from --set"), "{first}");
    assert!(first.contains(&format!("# from {EXAMPLE}")), "{first}");
    let again = check(file(folder.path(), "effective.toml", &first).to_str().unwrap(), &[]);
    let values = |print: &str| toml::from_str::<toml::Table>(print).unwrap();
    assert_eq!(values(&again), values(&first));
}

#[test]
fn secrets_are_not_printed_and_their_files_still_serve() {
    let folder = TempDir::new().unwrap();
    let secret = file(folder.path(), "password", &format!("{PASSWORD}\n"));
    let given = format!("kafka.sasl_password={PASSWORD}");
    let in_file = format!("kafka.sasl_password_file={}", secret.display());
    for password in [&given, &in_file] {
        let sets = ["security_protocol=sasl_ssl", "sasl_mechanism=PLAIN", "sasl_username=vitag"];
        let mut arguments =
            vec!["check-config".to_owned(), "--print-effective".into(), "--config".into(), EXAMPLE.into()];
        for set in sets.map(|set| format!("kafka.{set}")).iter().chain([password]) {
            arguments.extend(["--set".to_owned(), set.clone()]);
        }
        arguments.extend(["--set".to_owned(), format!("kafka.properties.ssl.keystore.password={PASSWORD}")]);
        let ended = feed(&mut vitag(&arguments), "");
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(!ended.stdout.contains(PASSWORD) && !ended.stderr.contains(PASSWORD), "{ended:?}");
        assert!(ended.stdout.contains("***"), "{}", ended.stdout);
        let effective = file(folder.path(), "effective.toml", &ended.stdout);
        let again = run(&["check-config", "--config", effective.to_str().unwrap()], "");
        assert_eq!(again.code, Some(0), "{}", again.stderr);
    }
}

#[test]
fn an_unknown_key_is_refused_in_every_layer_with_the_nearest_one() {
    let folder = TempDir::new().unwrap();
    let config = file(folder.path(), "vitag.yaml", "batch:\n  max_tokns: 5\n");
    let mut command = vitag(["check-config", "--set", "ouput.topic=a", "--config", config.to_str().unwrap()]);
    let ended = feed(command.env("VITAG__LANES__COUNTS", "2"), "");
    ended.refused(78, &["batch.max_tokns", "batch.max_tokens", "lanes.count", "VITAG__LANES__COUNTS", "output.topic"]);
}

#[test]
fn what_a_run_needs_is_asked_for_by_name() {
    for command in ["check-config", "run"] {
        let needed = ["input.topics", "output.topic", "kafka.bootstrap_servers"];
        run(&[command], "").refused(78, &needed);
    }
    run(&["check-config", "--config", "nowhere.toml"], "").refused(78, &["nowhere.toml"]);
}

#[test]
fn wrong_arguments_are_no_settings() {
    for arguments in [vec![], vec!["tagg"], vec!["tag", "--format", "xml"], vec!["run", "--nothing"], vec!["schema"]] {
        let ended = run(&arguments, "");
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(
            ended.stderr.contains("--help") || arguments.is_empty() && ended.stderr.contains("Usage: vitag"),
            "{arguments:?}: {}",
            ended.stderr
        );
    }
}

#[test]
fn every_command_shows_an_example() {
    let overview = run(&["--help"], "").output();
    for command in COMMANDS {
        assert!(overview.contains(&format!("  {command} ")), "{overview}");
        let help = run(&[command, "--help"], "").output();
        assert!(help.contains("Example") && help.matches(&format!("vitag {command}")).count() >= 2, "{help}");
    }
    let listed = overview.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    assert_eq!(listed.count(), COMMANDS.len() + 1, "each command and `help`: {overview}");
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell], "").output();
        assert!(COMMANDS.iter().all(|command| script.contains(command)), "{shell}: {script}");
    }
}

#[test]
fn a_reader_that_has_enough_ends_a_print_quietly() {
    for arguments in [["completions", "zsh"], ["schema", "settings"]] {
        let mut child = vitag(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        assert_eq!((ended.status.code(), String::from_utf8(ended.stderr).unwrap().as_str()), (Some(0), ""));
    }
}

#[test]
fn schemas_are_schemas() {
    for of in ["annotation", "dead-letter-headers", "settings"] {
        let schema: serde_json::Value = serde_json::from_str(&run(&["schema", of], "").output()).unwrap();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        jsonschema::meta::validate(&schema).unwrap_or_else(|error| panic!("{of}: {error}"));
    }
}
