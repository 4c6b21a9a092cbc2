//! The settings as they are in effect, for `check-config --print-effective`.

use std::fmt::Write;

use serde_json::Value;

use super::Settings;
use super::error::Layer;
use super::keys::{self, KEYS, Key, Kind};

/// Where a secret kept in a file comes from.
pub(super) const FROM_FILE: Layer = Layer::Derived("its file");

impl Settings {
    /// Every key with its value in TOML, secrets as `***`, and where a value is not the default a comment that says
    /// which layer it came from.
    pub fn effective_toml(&self) -> String {
        let values = serde_json::to_value(self).expect("settings serialise");
        let mut out = String::new();
        for section in keys::sections() {
            let keys = || KEYS.iter().filter(|key| key.section == section);
            self.write_section(&mut out, section, keys().filter(|key| key.kind != Kind::Table), &values[section]);
            for key in keys().filter(|key| key.kind == Kind::Table) {
                self.write_properties(&mut out, key, &values[section][&key.name]);
            }
        }
        out
    }

    fn write_section<'a>(&self, out: &mut String, name: &str, keys: impl Iterator<Item = &'a Key>, values: &Value) {
        write_header(out, name);
        for key in keys {
            self.write_line(out, &key.name, &values[&key.name], &key.path());
        }
    }

    fn write_properties(&self, out: &mut String, key: &Key, table: &Value) {
        write_header(out, &key.path());
        for (property, value) in table.as_object().into_iter().flatten() {
            let path = format!("{}.{property}", key.path());
            self.write_line(out, &literal(&Value::String(property.clone())), value, &path);
        }
    }

    fn write_line(&self, out: &mut String, name: &str, value: &Value, path: &str) {
        let layer = self.origins.get(path);
        // A secret from a file is given by its file's name; to give both is an error.
        let value = if layer == Some(&FROM_FILE) { &Value::Null } else { value };
        let origin = layer.map(|layer| format!("  # from {layer}")).unwrap_or_default();
        writeln!(out, "{name} = {}{origin}", literal(value)).expect("writing to a string");
    }
}

fn write_header(out: &mut String, name: &str) {
    let gap = if out.is_empty() { "" } else { "\n" };
    writeln!(out, "{gap}[{name}]").expect("writing to a string");
}

/// A TOML value; what is unset is written as it would be unset, as an empty string.
fn literal(value: &Value) -> String {
    match value {
        Value::Null => "\"\"".to_owned(),
        other => toml::Value::try_from(other).expect("a setting is a TOML value").to_string(),
    }
}
