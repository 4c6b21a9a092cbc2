//! Values that follow from elsewhere: the host's name, other settings, secrets kept in files.

use std::path::Path;

use super::effective::FROM_FILE;
use super::error::Layer;
use super::secret::Secret;
use super::{Settings, rules};

/// Where Linux keeps the name of the host.
const HOST_NAME_FILES: [&str; 2] = ["/proc/sys/kernel/hostname", "/etc/hostname"];

impl Settings {
    /// Fills in what was left to be worked out; returns what went wrong.
    pub(super) fn resolve(&mut self, env: &[(String, String)]) -> Vec<String> {
        self.resolve_dead_letter_topic();
        let kafka = &mut self.kafka;
        let secrets = [
            ("kafka.sasl_password", &mut kafka.sasl_password, &kafka.sasl_password_file),
            ("kafka.ssl_key_password", &mut kafka.ssl_key_password, &kafka.ssl_key_password_file),
            ("admin.token", &mut self.admin.token, &self.admin.token_file),
        ];
        let mut problems = Vec::new();
        for (key, secret, file) in secrets {
            match read_secret(key, secret.as_ref(), file.as_deref()) {
                Ok(Some(read)) => {
                    *secret = Some(read);
                    self.origins.insert(key.to_owned(), FROM_FILE);
                }
                Ok(None) => {}
                Err(problem) => problems.push(problem),
            }
        }
        problems.extend(self.resolve_instance(env).err());
        problems
    }

    fn resolve_dead_letter_topic(&mut self) {
        if let (None, Some(topic)) = (&self.output.dead_letter_topic, &self.output.topic) {
            self.output.dead_letter_topic = Some(format!("{topic}.dead-letters"));
            self.origins.insert("output.dead_letter_topic".to_owned(), Layer::Derived("output.topic"));
        }
    }

    /// No made-up name if the host has none: two workers of one name would fence each other.
    fn resolve_instance(&mut self, env: &[(String, String)]) -> Result<(), String> {
        if !self.worker.instance.is_empty() {
            return Ok(());
        }
        let name = host_name(env).ok_or("`worker.instance` is not set and the host has no name; set it")?;
        rules::text("worker.instance", &name)
            .map_err(|problem| format!("`worker.instance` from the host name: {problem}; set it"))?;
        self.worker.instance = name;
        self.origins.insert("worker.instance".to_owned(), Layer::Derived("the host name"));
        Ok(())
    }
}

fn host_name(env: &[(String, String)]) -> Option<String> {
    let from_env = env.iter().find(|(name, _)| name == "HOSTNAME").map(|(_, value)| value.clone());
    let from_files = HOST_NAME_FILES.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    let from_system = std::iter::once_with(uname).flatten();
    let mut names = from_env.into_iter().chain(from_files).chain(from_system).map(|name| name.trim().to_owned());
    names.find(|name| !name.is_empty())
}

/// Systems other than Linux answer through the command that POSIX asks for.
fn uname() -> Option<String> {
    let output = std::process::Command::new("uname").arg("-n").output().ok()?;
    String::from_utf8(output.stdout).ok()
}

/// The secret in the file, if one is named.
fn read_secret(key: &str, given: Option<&Secret>, file: Option<&Path>) -> Result<Option<Secret>, String> {
    let Some(path) = file else { return Ok(None) };
    if given.is_some() {
        return Err(format!("`{key}` and `{key}_file` are both set; keep one"));
    }
    let shown = path.display();
    let content =
        std::fs::read_to_string(path).map_err(|error| format!("`{key}_file`: cannot read {shown}: {error}"))?;
    let secret = content.strip_suffix('\n').unwrap_or(&content);
    match secret.strip_suffix('\r').unwrap_or(secret) {
        "" => Err(format!("`{key}_file`: {shown} is empty")),
        secret => Ok(Some(Secret::new(secret))),
    }
}
