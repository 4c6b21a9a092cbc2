//! The connection to a secured broker: who gets in, what those hear who do not, and that no secret is shown.
#![cfg(feature = "worker")]

#[path = "common/cli.rs"]
mod cli;
mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use cli::{feed, vitag};
use common::broker::{Broker, Extras, Listener};
use common::worker::{Stream, Worker, wait_until};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;

const USER: &str = "vitag";
/// Nothing else in this file or in what a worker prints contains it.
const PASSWORD: &str = "Pssst-4711-geheim";
const KEY_PASSWORD: &str = "Pssst-0815-schluessel";

/// A certificate authority with its certificates, as PEM files.
struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { folder: TempDir::new().unwrap(), issuer };
        authority.write("ca.pem", &authority.issuer.pem());
        authority
    }

    /// Writes `<name>.pem`, `<name>.key` and, with both, `<name>.store`.
    fn issue(&self, name: &str, host: &str, last_year: i32) {
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_after = date_time_ymd(last_year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        self.write(&format!("{name}.pem"), &certificate);
        self.write(&format!("{name}.key"), &key.serialize_pem());
        self.write(&format!("{name}.store"), &(key.serialize_pem() + &certificate));
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A broker with a listener for each kind of security, and what its clients need.
struct Secured {
    broker: Broker,
    ours: Authority,
    strangers: Authority,
}

impl Secured {
    fn shared() -> &'static Self {
        static SHARED: OnceLock<Secured> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn start() -> Self {
        let (ours, strangers) = (Authority::new("ours"), Authority::new("strangers"));
        ours.issue("broker", "127.0.0.1", 2100);
        ours.issue("elsewhere", "kafka.example", 2100);
        ours.issue("client", "client.example", 2100);
        ours.issue("expired", "client.example", 2001);
        ours.write("password", &format!("{PASSWORD}\n"));
        ours.write("wrong-password", &format!("not-{PASSWORD}"));
        ours.write("key-password", KEY_PASSWORD);
        let store = |certificate: &str| {
            let path = |name: &str| ours.path(name).display().to_string();
            vec![
                ("ssl.keystore.type", "PEM".to_owned()),
                ("ssl.keystore.location", path(&format!("{certificate}.store"))),
                ("ssl.truststore.type", "PEM".to_owned()),
                ("ssl.truststore.location", path("ca.pem")),
            ]
        };
        let with = |certificate: &str, more: &[(&'static str, &str)]| {
            let more = more.iter().map(|(key, value)| (*key, (*value).to_owned()));
            store(certificate).into_iter().chain(more).collect()
        };
        let plain =
            format!("org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";");
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let sasl = [
            ("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"),
            ("plain.sasl.jaas.config", &plain),
            ("scram-sha-256.sasl.jaas.config", scram),
            ("scram-sha-512.sasl.jaas.config", scram),
        ];
        let listener = |name, protocol, settings| Listener { name, protocol, settings, advertised: None };
        let listeners = vec![
            listener("TLS", "SSL", with("broker", &[])),
            listener("MUTUAL", "SSL", with("broker", &[("ssl.client.auth", "required")])),
            listener("ELSEWHERE", "SSL", with("elsewhere", &[])),
            listener("SASL", "SASL_SSL", with("broker", &sasl)),
        ];
        let broker = Broker::start_with(&Extras { listeners, scram_users: vec![(USER, PASSWORD)] });
        Self { broker, ours, strangers }
    }

    /// Settings for a listener that asks for TLS alone.
    fn tls(&self, listener: &str) -> Vec<String> {
        self.settings(listener, &[("security_protocol", "ssl"), ("ssl_ca_file", "/ca.pem")])
    }

    fn mutual(&self, certificate: &str) -> Vec<String> {
        let files =
            [("ssl_certificate_file", format!("/{certificate}.pem")), ("ssl_key_file", format!("/{certificate}.key"))];
        let files = files.each_ref().map(|(key, value)| (*key, value.as_str()));
        [self.tls("MUTUAL"), self.settings("MUTUAL", &files)].concat()
    }

    fn sasl(&self, mechanism: &str, password: &str) -> Vec<String> {
        let password = format!("/{password}");
        let settings = [
            ("security_protocol", "sasl_ssl"),
            ("ssl_ca_file", "/ca.pem"),
            ("sasl_mechanism", mechanism),
            ("sasl_username", USER),
            ("sasl_password_file", &password),
        ];
        self.settings("SASL", &settings)
    }

    /// `kafka.` settings for a listener; a value that begins with `/` is a file of our authority.
    fn settings(&self, listener: &str, settings: &[(&str, &str)]) -> Vec<String> {
        let server = format!("kafka.bootstrap_servers={}", self.broker.listener(listener));
        let value = |value: &str| match value.strip_prefix('/') {
            Some(file) => self.ours.path(file).display().to_string(),
            None => value.to_owned(),
        };
        let settings = settings.iter().map(|(key, given)| format!("kafka.{key}={}", value(given)));
        std::iter::once(server).chain(settings).collect()
    }
}

fn borrowed(settings: &[String]) -> Vec<&str> {
    settings.iter().map(String::as_str).collect()
}

fn streams_with(settings: &[String]) {
    let stream = Stream::new(&Secured::shared().broker, 2);
    stream.feed(0..40);
    let _worker = stream.worker("a", &borrowed(settings));
    stream.assert_exactly_once(40);
    stream.wait_until_committed();
}

#[test]
fn a_stream_runs_over_tls() {
    streams_with(&Secured::shared().tls("TLS"));
}

#[test]
fn a_stream_runs_over_mutual_tls() {
    streams_with(&Secured::shared().mutual("client"));
}

#[test]
fn a_stream_runs_with_a_plain_password() {
    streams_with(&Secured::shared().sasl("PLAIN", "password"));
}

#[test]
fn a_stream_runs_with_scram_sha_256() {
    streams_with(&Secured::shared().sasl("SCRAM-SHA-256", "password"));
}

#[test]
fn a_stream_runs_with_scram_sha_512() {
    streams_with(&Secured::shared().sasl("SCRAM-SHA-512", "password"));
}

/// Starts a worker that the broker refuses or that refuses it, and returns its log.
#[track_caller]
fn refused(settings: &[String], code: i32, words: &[&str]) {
    let stream = Stream::new(&Secured::shared().broker, 1);
    let mut worker = stream.worker("a", &borrowed(settings));
    let status = worker.wait();
    let log = worker.log();
    let error = log.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("no error in {log}"));
    assert_eq!(status.code(), Some(code), "{log}");
    for word in words {
        assert!(error.contains(word), "no {word:?} in {error}\n{log}");
    }
    assert!(!log.contains(PASSWORD) && !log.contains(KEY_PASSWORD), "{log}");
}

#[test]
fn a_wrong_password_is_named() {
    let secured = Secured::shared();
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        refused(&secured.sasl(mechanism, "wrong-password"), 78, &["kafka.sasl_password_file", "kafka.sasl_username"]);
    }
}

#[test]
fn an_authority_that_is_not_trusted_is_named() {
    let secured = Secured::shared();
    let ca = format!("kafka.ssl_ca_file={}", secured.strangers.path("ca.pem").display());
    refused(&[secured.tls("TLS"), vec![ca]].concat(), 78, &["kafka.ssl_ca_file"]);
    // Without the setting, the authorities of the system.
    refused(&[secured.tls("TLS"), vec!["kafka.ssl_ca_file=".into()]].concat(), 78, &["kafka.ssl_ca_file"]);
}

#[test]
fn a_broker_of_another_name_is_named() {
    refused(&Secured::shared().tls("ELSEWHERE"), 78, &["kafka.bootstrap_servers", "kafka.ssl_ca_file"]);
}

#[test]
fn a_certificate_that_the_broker_wants_is_named() {
    let secured = Secured::shared();
    let files = ["kafka.ssl_certificate_file", "kafka.ssl_key_file"];
    refused(&secured.tls("MUTUAL"), 78, &files);
    refused(&secured.mutual("expired"), 78, &files);
}

#[test]
fn files_that_are_no_certificates_are_named() {
    let secured = Secured::shared();
    let with = |setting: String| [secured.mutual("client"), vec![setting]].concat();
    for key in ["ssl_ca_file", "ssl_certificate_file", "ssl_key_file"] {
        let missing = with(format!("kafka.{key}=/nowhere.pem"));
        refused(&missing, 78, &[&format!("kafka.{key}"), "/nowhere.pem"]);
        let other = with(format!("kafka.{key}={}", secured.ours.path("password").display()));
        refused(&other, 78, &[&format!("kafka.{key}")]);
    }
}

#[test]
fn a_property_that_librdkafka_does_not_know_is_named_without_its_value() {
    let secured = Secured::shared();
    for (table, property, value) in [
        ("properties", "sasl.pasword", PASSWORD),
        ("consumer_properties", "socket.timeout.ms", KEY_PASSWORD),
        ("producer_properties", "ssl.key.pasword", KEY_PASSWORD),
    ] {
        let wrong = vec![format!("kafka.{table}.{property}={value}")];
        refused(&[secured.sasl("PLAIN", "password"), wrong].concat(), 78, &[property]);
    }
}

#[test]
fn a_protocol_that_the_listener_does_not_speak_is_named() {
    let secured = Secured::shared();
    let plain = vec![format!("kafka.bootstrap_servers={}", secured.broker.listener("TLS"))];
    let tls = [secured.tls("TLS"), vec![format!("kafka.bootstrap_servers={}", secured.broker.bootstrap())]].concat();
    for mut settings in [plain, tls] {
        // Such a connection just ends, as that to a broker that is about to start might.
        settings.push("worker.startup_timeout_ms=3000".to_owned());
        refused(&settings, 69, &["kafka.security_protocol", "3 s"]);
    }
}

#[test]
fn no_secret_is_shown_wherever_one_looks() {
    let secured = Secured::shared();
    let stream = Stream::new(&secured.broker, 1);
    stream.feed(0..10);
    let more = [
        format!("kafka.ssl_certificate_file={}", secured.ours.path("client.pem").display()),
        format!("kafka.ssl_key_file={}", secured.ours.path("client.key").display()),
        format!("kafka.ssl_key_password_file={}", secured.ours.path("key-password").display()),
        "kafka.properties.debug=all".into(),
        "telemetry.log_level=trace".into(),
        "admin.address=127.0.0.1:0".into(),
    ];
    let key = fs::read_to_string(secured.ours.path("client.key")).unwrap();
    let key_line = key.lines().nth(1).unwrap();
    let assert_silent = |what: &str, text: &str| {
        for secret in [PASSWORD, KEY_PASSWORD, key_line] {
            assert!(!text.contains(secret), "{what} shows a secret: {}", around(text, secret));
        }
    };
    for mechanism in ["PLAIN", "SCRAM-SHA-512"] {
        let settings = [secured.sasl(mechanism, "password"), more.to_vec()].concat();
        let mut worker: Worker = stream.worker(mechanism, &borrowed(&settings));
        worker.wait_for_log("partition assigned");
        wait_until("all records to be committed", || {
            stream.broker.committed(&stream.group, &stream.input) == [(0, 10)].into()
        });
        let log = worker.log();
        assert!(log.contains("\"DEBUG\"") && log.contains("SASL"), "librdkafka says what it does");
        let line = log.lines().find(|line| line.contains("serving health and metrics")).expect("the address");
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        for page in ["/", "/livez", "/readyz", "/startupz", "/metrics"] {
            let address = line["address"].as_str().unwrap();
            let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
            let mut answer = agent.get(format!("http://{address}{page}")).call().unwrap();
            assert_silent(page, &answer.body_mut().read_to_string().unwrap());
        }
        worker.terminate();
        worker.wait();
        assert_silent("the log", &worker.log());

        let given = format!("kafka.properties.ssl.keystore.password={PASSWORD}");
        let sets = settings.iter().chain([&given]).flat_map(|set| ["--set".to_owned(), set.clone()]);
        let topics =
            ["input.topics=in", "output.topic=out"].into_iter().flat_map(|set| ["--set".to_owned(), set.to_owned()]);
        let command = ["check-config", "--print-effective"].map(str::to_owned).into_iter();
        let ended = feed(&mut vitag(command.chain(sets).chain(topics)), "");
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert_silent("the effective settings", &(ended.stdout + &ended.stderr));
    }
}

/// The text around a secret, without the secret.
fn around(text: &str, secret: &str) -> String {
    let place = text.find(secret).unwrap_or(0);
    let line = text[..place].rfind('\n').map_or(0, |end| end + 1);
    text[line..].lines().next().unwrap_or_default().replace(secret, "<secret>")
}

#[test]
fn the_dead_letters_are_read_over_the_same_connection() {
    let secured = Secured::shared();
    let stream = Stream::new(&secured.broker, 1);
    let settings = [
        secured.sasl("SCRAM-SHA-512", "password"),
        vec![format!("input.topics={}", stream.input), format!("output.topic={}", stream.output)],
    ]
    .concat();
    for (command, expected) in
        [(vec!["dlq", "inspect", "--json"], "letters"), (vec!["dlq", "replay", "--yes", "--json"], "replayed")]
    {
        let sets = settings.iter().flat_map(|set| ["--set", set]);
        let shown = feed(&mut vitag(command.into_iter().chain(sets)), "").output();
        assert!(shown.contains(expected), "{shown}");
    }
    let wrong = secured.sasl("PLAIN", "wrong-password");
    let sets = settings.iter().chain(&wrong).flat_map(|set| ["--set", set]);
    feed(&mut vitag(["dlq", "inspect"].into_iter().chain(sets)), "").refused(78, &["kafka.sasl_password_file"]);
}
