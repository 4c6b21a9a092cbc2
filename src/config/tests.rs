//! Whole loads: layers, messages, prints.

mod secrets;

use crate::infer::Device;
use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::keys::{KEYS, Key, Kind};
use super::*;

const PASSWORD: &str = "hunter2";

/// Sources without a file; the host is called `host`.
fn sources(env: &[(&str, &str)], sets: &[&str]) -> Sources {
    let host = ("HOSTNAME", "host");
    let env = env.iter().chain([&host]).map(|(name, value)| (name.to_string(), value.to_string()));
    Sources { file: None, env: env.collect(), sets: sets.iter().map(ToString::to_string).collect() }
}

/// A file of this name and content, added to sources; errors name it by `name` alone.
fn load(name: &str, content: &str, sources: Sources) -> Result<Settings, String> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    let loaded = Settings::load(&Sources { file: Some(path), ..sources });
    loaded.map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
}

fn file_error(content: &str) -> String {
    load("vitag.toml", content, sources(&[], &[])).unwrap_err()
}

fn env_error(name: &str, value: &str) -> String {
    Settings::load(&sources(&[(name, value)], &[])).unwrap_err().to_string()
}

fn set_error(set: &str) -> String {
    Settings::load(&sources(&[], &[set])).unwrap_err().to_string()
}

#[test]
fn without_layers_there_are_the_defaults() {
    let mut settings = Settings::load(&sources(&[], &[])).unwrap();
    assert_eq!(settings.worker.instance, "host");
    assert_eq!(settings.origin("worker.instance"), Some(&Layer::Derived("the host name")));
    settings.worker.instance.clear();
    settings.origins.clear();
    assert_eq!(settings, Settings::default());
    assert_eq!(settings.input.decode_options(), crate::decode::DecodeOptions::default());
}

#[test]
fn later_layers_win_key_by_key() {
    let file = "[batch]\nmax_tokens = 1\nmax_sequences = 1\nmax_wait_ms = 1\nsort_window_tokens = 3";
    let env = [("VITAG__BATCH__MAX_SEQUENCES", "2"), ("VITAG__BATCH__MAX_WAIT_MS", "2"), ("VITAG_BATCH", "x")];
    let settings = load("vitag.toml", file, sources(&env, &["batch.max_wait_ms=3"])).unwrap();
    let rest = Batch::default();
    assert_eq!(
        settings.batch,
        Batch { max_tokens: 1, max_sequences: 2, max_wait_ms: 3, sort_window_tokens: 3, ..rest }
    );
    assert_eq!(settings.origin("batch.max_wait_ms"), Some(&Layer::Set));
    assert_eq!(settings.origin("batch.max_sequences"), Some(&Layer::Env("VITAG__BATCH__MAX_SEQUENCES".into())));
    assert_eq!(settings.origin("lanes.count"), None);
}

#[test]
fn toml_and_yaml_say_the_same() {
    let toml = r#"
        [input]
        topics = ["a", "b"]
        [kafka]
        static_membership = false
        properties = { "socket.keepalive.enable" = true, client.rack = "hn-1" }
        [model]
        device = "cuda:1"
        [telemetry]
        trace_sample_ratio = 1
    "#;
    let yaml = "
input: {topics: [a, b]}
batch:
kafka:
  static_membership: false
  properties:
    socket.keepalive.enable: true
    client.rack: hn-1
model: {device: 'cuda:1'}
telemetry: {trace_sample_ratio: 1}
";
    let loaded = [("a.toml", toml), ("a.yaml", yaml), ("a.yml", yaml)].map(|(name, content)| {
        let mut settings = load(name, content, sources(&[], &[])).unwrap();
        settings.origins.clear();
        settings
    });
    assert_eq!(loaded[0], loaded[1]);
    assert_eq!(loaded[1], loaded[2]);
    assert_eq!(loaded[0].kafka.properties.get("client.rack"), Some("hn-1"));
    assert_eq!(loaded[0].model.device, Device::Cuda(1));
}

#[test]
fn an_empty_file_changes_nothing() {
    for name in ["vitag.toml", "vitag.yaml"] {
        assert!(load(name, "# nothing\n", sources(&[], &[])).is_ok(), "{name}");
    }
}

#[test]
fn an_unknown_key_is_named_with_its_layer_and_the_nearest_known() {
    let known = "did you mean `batch.max_tokens`?";
    assert_eq!(file_error("[batch]\nmax_token = 1"), format!("unknown key `batch.max_token` in vitag.toml; {known}"));
    assert_eq!(file_error("max_tokens = 1"), format!("unknown key `max_tokens` in vitag.toml; {known}"));
    assert_eq!(
        file_error("[batsch]\nmax_tokens = 1"),
        format!("unknown key `batsch.max_tokens` in vitag.toml; {known}")
    );
    assert_eq!(file_error("[batsch]"), "unknown key `batsch` in vitag.toml; did you mean `batch`?");
    assert_eq!(file_error("[zzz]\nyyy = 1"), "unknown key `zzz.yyy` in vitag.toml");
    assert_eq!(
        env_error("VITAG__BATCH__MAX_TOKEN", "1"),
        format!("unknown key `batch.max_token` in environment variable VITAG__BATCH__MAX_TOKEN; {known}")
    );
    assert_eq!(set_error("batch.max_token=1"), format!("unknown key `batch.max_token` in --set; {known}"));
}

#[test]
fn a_wrong_type_is_named_with_its_layer() {
    assert_eq!(
        file_error("[batch]\nmax_tokens = \"many\""),
        "`batch.max_tokens` in vitag.toml: expected an integer, found the string \"many\""
    );
    assert_eq!(
        env_error("VITAG__BATCH__MAX_TOKENS", "1.5"),
        "`batch.max_tokens` in environment variable VITAG__BATCH__MAX_TOKENS: expected an integer, found `1.5`"
    );
    assert_eq!(
        set_error("batch.max_tokens=\"1\""),
        "`batch.max_tokens` in --set: expected an integer, found the string \"1\""
    );
    assert_eq!(file_error("batch = 3"), "`batch` in vitag.toml: expected a table, found a number or boolean");
    assert_eq!(
        file_error("[batch]\nmax_tokens.a = 3"),
        "`batch.max_tokens` in vitag.toml: expected an integer, found a table"
    );
    assert_eq!(
        file_error("[kafka]\nstatic_membership = \"yes\""),
        "`kafka.static_membership` in vitag.toml: expected true or false, found the string \"yes\""
    );
    assert_eq!(file_error("[kafka]\ngroup_id = 7"), "`kafka.group_id` in vitag.toml: expected a string, found `7`");
    assert_eq!(
        file_error("[input]\ntopics = [\"a\", 7]"),
        "`input.topics` in vitag.toml: expected a list of strings, found `7` in it"
    );
    assert_eq!(
        set_error("worker.delivery=twice"),
        "`worker.delivery` in --set: expected one of \"exactly_once\", \"at_least_once\", found the string \"twice\""
    );
}

#[test]
fn a_value_that_breaks_its_rule_is_refused() {
    let cases = [
        ("batch.max_tokens=0", "must be at least 1, found 0"),
        ("batch.max_tokens=-1", "must be at least 1, found -1"),
        ("lanes.threads=2000", "must be between 1 and 1024, found 2000"),
        ("telemetry.trace_sample_ratio=1.5", "must be between 0 and 1, found 1.5"),
        ("kafka.group_id=", "must not be empty"),
        ("worker.instance=a b", "may hold letters, digits, `.`, `_` and `-` only, found \"a b\""),
        ("output.topic=a/b", "a topic is 1 to 249 letters, digits, `.`, `_` and `-`, found \"a/b\""),
        ("input.topics=a,b c", "a topic is 1 to 249 letters, digits, `.`, `_` and `-`, found \"b c\""),
        ("input.text_pointer=text", "a JSON pointer starts with `/`, found \"text\""),
        ("input.id_pointer=/a~b", "in a JSON pointer `~` is written `~0`, found \"/a~b\""),
        ("kafka.bootstrap_servers=a:9092,b", "expected host:port, found \"b\""),
        ("kafka.bootstrap_servers=a:99999", "the port must be a number up to 65535, found \"a:99999\""),
        ("admin.address=::1:80", "expected host:port, found \"::1:80\""),
        ("model.device=gpu", "expected \"auto\", \"cpu\", \"cuda:N\" or \"tensorrt:N\", found \"gpu\""),
        ("telemetry.otlp_endpoint=host:1", "expected a URL such as http://localhost:4318, found \"host:1\""),
        ("telemetry.log_level=debgu", "expected off, error, warn, info, debug, trace or target=level, found \"debgu\""),
    ];
    for (set, problem) in cases {
        let key = set.split('=').next().unwrap();
        assert_eq!(set_error(set), format!("`{key}` in --set: {problem}"));
    }
    for set in ["telemetry.log_level=warn,vitag=debug", "admin.address=[::1]:0", "admin.address=", "input.id_pointer="]
    {
        Settings::load(&sources(&[], &[set])).unwrap();
    }
}

#[test]
fn settings_that_contradict_each_other_are_refused_all_at_once() {
    let file = r#"
        [input]
        format = "text"
        [output]
        mode = "merge"
        [kafka]
        session_timeout_ms = 400000
        security_protocol = "sasl_ssl"
        ssl_key_file = "key.pem"
        [intake]
        max_bytes = 16777215
        partition_low_bytes = 16777216
        [commit]
        interval_ms = 60001
        [batch]
        max_tokens = 8193
        [model.provider_options]
        gpu_mem_limit = "1000000000"
        [rollout]
        require_signature = true
    "#;
    let expected = [
        "`intake.partition_high_bytes` (16777216) must not exceed `intake.max_bytes` (16777215)",
        "`kafka.session_timeout_ms` (400000) must not exceed `kafka.max_poll_interval_ms` (300000)",
        "`commit.interval_ms` (60001) must not exceed `kafka.transaction_timeout_ms` (60000)",
        "`batch.max_tokens` (8193) must not exceed `batch.sort_window_tokens` (8192)",
        "`intake.partition_low_bytes` must be below `intake.partition_high_bytes`",
        "`output.mode` \"merge\" needs `input.format` \"json\": a text has no keys",
        "`model.provider_options` are for a device that is named: set `model.device` to cuda:N or tensorrt:N, not auto",
        "`rollout.require_signature` needs `rollout.public_key_file`; set it",
        "`kafka.sasl_mechanism` is needed for `sasl_ssl`; set it",
        "`kafka.sasl_username` is needed for `sasl_ssl`; set it",
        "`kafka.sasl_password_file` is needed for `sasl_ssl`; set it",
        "`kafka.ssl_certificate_file` and `kafka.ssl_key_file` go together; set both",
    ];
    assert_eq!(file_error(file), expected.join("\n"));
}

#[test]
fn slots_take_the_place_of_the_one_model() {
    let file = "[model.slots]\npos = \"a\"\nner = \"b\"\n";
    let of = |settings: &Settings| (settings.rollout.slot.clone(), settings.model.path.display().to_string());
    let slots = load("vitag.toml", file, sources(&[], &[])).unwrap().slots();
    assert_eq!(slots.iter().map(of).collect::<Vec<_>>(), [("ner".into(), "b".into()), ("pos".into(), "a".into())]);
    assert!(slots.iter().all(|settings| settings.model.slots.is_empty()));
    let one = load("vitag.toml", "[model]\npath = \"a\"\n", sources(&[], &[])).unwrap();
    assert_eq!(one.slots().iter().map(of).collect::<Vec<_>>(), [("default".into(), "a".into())]);
    for (more, problem) in [
        ("[rollout]\nslot = \"pas\"\n", "`rollout.slot` \"pas\" is none of `model.slots`"),
        ("[model]\npath = \"a\"\n", "`model.path` and `model.slots` exclude each other; set one of them"),
        (
            "[model.slots]\n\"a b\" = \"a\"\n",
            "`model.slots.a b` in vitag.toml: may hold letters, digits, `.`, `_` and `-` only, found \"a b\"",
        ),
    ] {
        let file = if more.starts_with("[model.slots]") { more.to_owned() } else { format!("{more}{file}") };
        assert_eq!(file_error(&file), problem);
    }
}

#[test]
fn a_run_needs_topics_and_brokers_and_no_loop() {
    let missing = Settings::load(&sources(&[], &[])).unwrap().validate_run().unwrap_err();
    assert_eq!(missing.problems().len(), 3);
    assert_eq!(
        missing.problems()[0],
        "`input.topics` is needed to run; set it in the settings file, as VITAG__INPUT__TOPICS or with --set input.topics=…"
    );
    let mut sets = vec!["input.topics=in,out.dead-letters", "output.topic=out", "kafka.bootstrap_servers=a:1"];
    let run = |sets: &[&str]| Settings::load(&sources(&[], sets)).unwrap().validate_run().map_err(|e| e.to_string());
    assert_eq!(
        run(&sets).unwrap_err(),
        "`output.dead_letter_topic` \"out.dead-letters\" is one of `input.topics`: the worker would read its own output"
    );
    sets.push("output.dead_letter_topic=out");
    assert_eq!(run(&sets).unwrap_err(), "`output.topic` and `output.dead_letter_topic` must differ");
    sets.push("output.dead_letter_topic=dead");
    assert_eq!(run(&sets), Ok(()));
}

#[test]
fn sources_that_cannot_be_read_are_named_all_at_once() {
    let path = "no/such.toml".into();
    let sources = Sources { file: Some(path), ..sources(&[], &["batch", "a..b=1", "batch.max_token=1"]) };
    let expected = [
        "cannot read settings file no/such.toml: No such file or directory (os error 2)",
        "--set number 1 is not of the form section.key=value",
        "--set number 2 is not of the form section.key=value",
        "unknown key `batch.max_token` in --set; did you mean `batch.max_tokens`?",
    ];
    assert_eq!(Settings::load(&sources).unwrap_err().problems(), expected);
    let json = load("vitag.json", "{}", Sources::default()).unwrap_err();
    assert_eq!(json, "vitag.json: the settings file must end in .toml, .yaml or .yml");
}

#[test]
fn properties_come_from_every_layer_in_every_spelling() {
    let file = "[kafka.properties]\n\"client.rack\" = \"file\"\nsocket.keepalive.enable = true\nlog.queue = 1";
    let env = [
        ("VITAG__KAFKA__PROPERTIES", r#"{"client.rack": "env", "client.id": "env", "linger.ms": 5}"#),
        ("VITAG__KAFKA__PROPERTIES__CLIENT_ID", "one"),
    ];
    let sets = [
        r#"kafka.properties."log.queue"=2"#,
        "kafka.properties.queue.size=7",
        r#"kafka.consumer_properties={"check.crcs" = true}"#,
        r#"kafka.producer_properties={"linger.ms": "5"}"#,
    ];
    let kafka = load("vitag.toml", file, sources(&env, &sets)).unwrap().kafka;
    let pairs: Vec<_> = kafka.properties.iter().collect();
    assert_eq!(
        pairs,
        [
            ("client.id", "one"),
            ("client.rack", "env"),
            ("linger.ms", "5"),
            ("log.queue", "2"),
            ("queue.size", "7"),
            ("socket.keepalive.enable", "true"),
        ]
    );
    assert_eq!(kafka.consumer_properties.get("check.crcs"), Some("true"));
    assert_eq!(kafka.producer_properties.get("linger.ms"), Some("5"));
}

#[test]
fn properties_that_vitag_sets_are_refused_with_the_setting_to_use() {
    for property in [
        "enable.auto.commit",
        "enable.auto.offset.store",
        "isolation.level",
        "transactional.id",
        "enable.idempotence",
        "group.id",
        "bootstrap.servers",
        "group.instance.id",
        "partition.assignment.strategy",
        "sasl.password",
    ] {
        let error = set_error(&format!("kafka.properties.{property}={PASSWORD}"));
        let start = format!("`kafka.properties.{property}` in --set: vitag sets this property itself; use `");
        assert!(error.starts_with(&start), "{error}");
        let setting = error[start.len()..].trim_end_matches('`');
        let (section, name) = setting.split_once('.').unwrap();
        assert!(keys::find(section, name).is_some(), "{setting}");
    }
    assert_eq!(
        env_error("VITAG__KAFKA__PROPERTIES", "[1]"),
        "`kafka.properties` in environment variable VITAG__KAFKA__PROPERTIES: expected a JSON object such as \
         {\"socket.keepalive.enable\": \"true\"}"
    );
    assert_eq!(
        file_error("[kafka]\nproperties = 3"),
        "`kafka.properties` in vitag.toml: expected a table, found a number or boolean"
    );
}

#[test]
fn the_effective_print_shows_every_key_and_where_it_came_from() {
    let env = [("VITAG__OUTPUT__TOPIC", "out")];
    let sets = ["batch.max_tokens=5", "kafka.properties.client.rack=hn-1", "kafka.sasl_password=hunter2"];
    let settings = load("vitag.toml", "[lanes]\ncount = 2", sources(&env, &sets)).unwrap();
    let print = settings.effective_toml();
    for line in [
        "instance = \"host\"  # from the host name",
        "topics = []",
        "topic = \"out\"  # from environment variable VITAG__OUTPUT__TOPIC",
        "dead_letter_topic = \"out.dead-letters\"  # from output.topic",
        "sasl_username = \"\"",
        "sasl_password = \"***\"  # from --set",
        "[kafka.properties]\n\"client.rack\" = \"hn-1\"  # from --set",
        "max_tokens = 5  # from --set",
        "trace_sample_ratio = 0.01",
    ] {
        assert!(print.contains(&format!("\n{line}\n")), "{line} is not in\n{print}");
    }
    assert!(print.lines().any(|line| line.starts_with("count = 2  # from ") && line.ends_with("vitag.toml")));

    let again = load("vitag.toml", &print, sources(&[], &[])).unwrap();
    assert_eq!(serde_json::to_value(again).unwrap(), serde_json::to_value(settings).unwrap());
}

/// A key with a value as text: often a good one, now and then one that breaks a rule.
fn key_and_text() -> impl Strategy<Value = (&'static Key, String)> {
    (0..KEYS.len()).prop_flat_map(|index| {
        let key = &KEYS[index];
        let text: BoxedStrategy<String> = match &key.kind {
            Kind::Bool => any::<bool>().prop_map(|value| value.to_string()).boxed(),
            Kind::Integer => prop_oneof![(0..2_000i64), any::<i64>()].prop_map(|value| value.to_string()).boxed(),
            Kind::Number => (0.0..1.1f64).prop_map(|value| value.to_string()).boxed(),
            Kind::Text => "(/|http://)?[A-Za-z0-9._-]{0,12}(:[0-9]{1,5})?".boxed(),
            Kind::Choice(words) => (0..words.len()).prop_map(|word| words[word].0.clone()).boxed(),
            Kind::List => "[a-z0-9.]{1,5}(:[0-9]{1,4})?(,[a-z0-9.]{1,5})?".boxed(),
            Kind::Table => r#"\{"[a-z.]{1,9}": ("[a-z0-9]{0,4}"|[1-9]|true)\}"#.boxed(),
        };
        (Just(key), text)
    })
}

proptest! {
    #[test]
    fn the_environment_and_set_agree((key, text) in key_and_text()) {
        let variable = format!("VITAG__{}__{}", key.section.to_uppercase(), key.name.to_uppercase());
        let strip = |loaded: Result<Settings, ConfigError>| match loaded {
            Ok(mut settings) => { settings.origins.clear(); Ok(settings) }
            Err(error) => Err(error.to_string().replace(&format!("environment variable {variable}"), "--set")),
        };
        let from_env = strip(Settings::load(&sources(&[(&variable, &text)], &[])));
        let from_set = strip(Settings::load(&sources(&[], &[&format!("{}={text}", key.path())])));
        prop_assert_eq!(from_env, from_set);
    }
}
