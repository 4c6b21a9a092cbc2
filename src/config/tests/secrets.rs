//! Secrets: where they are read from, and that nothing shows them.

use std::fs;

use tempfile::TempDir;

use super::{PASSWORD, file_error, load, set_error, sources};
use crate::config::Settings;

#[test]
fn a_secret_is_read_from_its_file() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("password");
    let set = format!("kafka.sasl_password_file={}", path.display());
    let load = |sets: &[&str]| Settings::load(&sources(&[], sets)).map_err(|error| error.to_string());

    let shown = path.display();
    let missing = format!("`kafka.sasl_password_file`: cannot read {shown}: No such file or directory (os error 2)");
    assert_eq!(load(&[&set]).unwrap_err(), missing);
    for (content, secret) in [("a b", "a b"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a \n", " a ")] {
        fs::write(&path, content).unwrap();
        assert_eq!(load(&[&set]).unwrap().kafka.sasl_password.unwrap().reveal(), secret);
    }
    fs::write(&path, "\n").unwrap();
    assert_eq!(load(&[&set]).unwrap_err(), format!("`kafka.sasl_password_file`: {shown} is empty"));
    let both = load(&[&set, "kafka.sasl_password=hunter2"]).unwrap_err();
    assert_eq!(both, "`kafka.sasl_password` and `kafka.sasl_password_file` are both set; keep one");
}

#[test]
fn no_print_of_the_settings_shows_a_secret() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("password");
    fs::write(&path, PASSWORD).unwrap();
    let file = format!("kafka.ssl_key_password_file={}", path.display());
    let sets = ["kafka.sasl_password=hunter2", &file, "kafka.properties.ssl.keystore.password=hunter2"];
    let settings = Settings::load(&sources(&[], &sets)).unwrap();
    assert_eq!(settings.kafka.ssl_key_password.as_ref().unwrap().reveal(), PASSWORD);
    assert_eq!(settings.kafka.properties.get("ssl.keystore.password"), Some(PASSWORD));
    let json = serde_json::to_string(&settings).unwrap();
    for print in [settings.effective_toml(), format!("{settings:?} {settings:#?}"), json] {
        assert!(!print.contains(PASSWORD), "{print}");
        assert!(print.contains("***"), "{print}");
    }
}

#[test]
fn no_error_shows_a_secret() {
    let files = [
        ("a.toml", "[kafka]\nsasl_password = \"hunter2"),
        ("a.toml", "[kafka]\nsasl_password = hunter2"),
        ("a.toml", "[kafka]\nsasl_password = \"a\"\nsasl_password = \"hunter2\""),
        ("a.toml", "[kafka]\nsasl_pasword = \"hunter2\""),
        ("a.toml", "[kafka]\nsasl_password = [\"hunter2\"]"),
        ("a.toml", "[kafka.sasl_password]\nvalue = \"hunter2\""),
        ("a.toml", "kafka = \"hunter2\""),
        ("a.toml", "[kafka.properties]\n\"ssl.key.password\" = \"hunter2\""),
        ("a.toml", "[kafka.properties]\n\"ssl.key.pem\" = [\"hunter2\"]"),
        ("a.toml", "[telemetry]\notlp_endpoint = \"http://me:hunter2@host\""),
        ("a.yaml", "kafka: {sasl_password: \"hunter2}"),
        ("a.yaml", "kafka:\n  sasl_password: hunter2\n bad"),
        ("a.yaml", "? {password: hunter2}\n: 1"),
        ("a.yaml", "- hunter2"),
        ("a.yaml", "hunter2"),
    ];
    for (name, content) in files {
        let error = load(name, content, sources(&[], &[])).unwrap_err();
        assert!(!error.contains(PASSWORD), "{content}: {error}");
    }
    for text in ["kafka.sasl_password:hunter2", "kafka.properties={\"ssl.key.pem\": hunter2}", "kafka=hunter2"] {
        assert!(!set_error(text).contains(PASSWORD), "{text}");
    }
    let error = file_error("[batch]\nmax_tokens = 1\n\n[kafka]\nsasl_password = \"hunter2");
    assert!(error.starts_with("vitag.toml: not TOML: ") && error.ends_with(" at line 5"), "{error}");
}

#[test]
fn a_password_that_looks_like_a_number_stays_text() {
    for sources in [
        sources(&[], &["kafka.sasl_password=0123"]),
        sources(&[("VITAG__KAFKA__SASL_PASSWORD", "0123")], &[]),
        sources(&[], &["kafka.sasl_password=\"0123\""]),
    ] {
        assert_eq!(Settings::load(&sources).unwrap().kafka.sasl_password.unwrap().reveal(), "0123");
    }
}
