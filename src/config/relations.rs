//! Settings that must agree with each other, and what a run needs.

use super::Settings;
use super::choices::OutputMode;
use crate::decode::Format;
use crate::infer::Device;

/// Two sizes in their order: the first may not exceed the second.
type Ordered = (&'static str, u64, &'static str, u64);

impl Settings {
    /// Settings that cannot hold together.
    pub(super) fn contradictions(&self) -> Vec<String> {
        let mut problems: Vec<_> = self.ordered().into_iter().filter_map(out_of_order).collect();
        if self.intake.partition_low_bytes == self.intake.partition_high_bytes {
            problems.push("`intake.partition_low_bytes` must be below `intake.partition_high_bytes`".to_owned());
        }
        if self.output.mode == OutputMode::Merge && self.input.format == Format::Text {
            problems.push("`output.mode` \"merge\" needs `input.format` \"json\": a text has no keys".to_owned());
        }
        if self.admin.token.is_some() && self.rollout.topic_prefix.is_none() {
            problems.push("`admin.token` needs `rollout.topic_prefix`: there is no topic to write to".to_owned());
        }
        if !self.model.provider_options.is_empty() && matches!(self.model.device, Device::Auto | Device::Cpu) {
            let device = self.model.device;
            problems.push(format!(
                "`model.provider_options` are for a device that is named: set `model.device` to cuda:N or tensorrt:N, not {device}"
            ));
        }
        problems.extend(self.slot_problems());
        if self.rollout.require_signature && self.rollout.public_key_file.is_none() {
            problems.push("`rollout.require_signature` needs `rollout.public_key_file`; set it".to_owned());
        }
        problems.extend(self.security_problems());
        problems
    }

    fn slot_problems(&self) -> Vec<String> {
        let (slots, slot) = (&self.model.slots, &self.rollout.slot);
        let mut problems = Vec::new();
        if slots.is_empty() {
            return problems;
        }
        if self.origin("model.path").is_some() {
            problems.push("`model.path` and `model.slots` exclude each other; set one of them".to_owned());
        }
        if self.origin("rollout.slot").is_some() && !slots.contains_key(slot) {
            problems.push(format!("`rollout.slot` {slot:?} is none of `model.slots`"));
        }
        problems
    }

    fn ordered(&self) -> [Ordered; 8] {
        let (kafka, intake, batch) = (&self.kafka, &self.intake, &self.batch);
        let (low, high) = (intake.partition_low_bytes as u64, intake.partition_high_bytes as u64);
        let (session, poll) = (kafka.session_timeout_ms, kafka.max_poll_interval_ms);
        let (tokens, window) = (batch.max_tokens as u64, batch.sort_window_tokens as u64);
        let breaker = &self.breaker;
        let (seen, run, last) = (breaker.min_records as u64, breaker.max_run as u64, breaker.window_records as u64);
        [
            ("breaker.min_records", seen, "breaker.window_records", last),
            ("breaker.max_run", run, "breaker.window_records", last),
            ("intake.partition_low_bytes", low, "intake.partition_high_bytes", high),
            ("intake.partition_high_bytes", high, "intake.max_bytes", intake.max_bytes as u64),
            ("kafka.session_timeout_ms", session, "kafka.max_poll_interval_ms", poll),
            (
                "commit.interval_ms",
                self.commit.interval_ms,
                "kafka.transaction_timeout_ms",
                kafka.transaction_timeout_ms,
            ),
            // A rebalance waits for the drain inside a poll.
            ("worker.drain_timeout_ms", self.worker.drain_timeout_ms, "kafka.max_poll_interval_ms", poll),
            ("batch.max_tokens", tokens, "batch.sort_window_tokens", window),
        ]
    }

    fn security_problems(&self) -> Vec<String> {
        let kafka = &self.kafka;
        let mut problems = Vec::new();
        if kafka.security_protocol.uses_sasl() {
            let needed = [
                ("sasl_mechanism", kafka.sasl_mechanism.is_some()),
                ("sasl_username", kafka.sasl_username.is_some()),
                ("sasl_password_file", kafka.sasl_password.is_some() || kafka.sasl_password_file.is_some()),
            ];
            let missing = needed.into_iter().filter(|(_, given)| !given);
            let protocol = kafka.security_protocol;
            problems.extend(missing.map(|(key, _)| format!("`kafka.{key}` is needed for `{protocol}`; set it")));
        }
        if kafka.ssl_certificate_file.is_some() != kafka.ssl_key_file.is_some() {
            problems.push("`kafka.ssl_certificate_file` and `kafka.ssl_key_file` go together; set both".to_owned());
        }
        problems
    }

    /// What a run between topics lacks, and loops in it.
    pub(super) fn run_problems(&self) -> Vec<String> {
        let mut problems = self.missing(&["input.topics", "output.topic", "kafka.bootstrap_servers"]);
        let outputs =
            [("output.topic", &self.output.topic), ("output.dead_letter_topic", &self.output.dead_letter_topic)];
        for (key, topic) in outputs {
            if let Some(topic) = topic.as_ref().filter(|topic| self.input.topics.contains(topic)) {
                problems
                    .push(format!("`{key}` {topic:?} is one of `input.topics`: the worker would read its own output"));
            }
        }
        if self.output.topic.is_some() && self.output.topic == self.output.dead_letter_topic {
            problems.push("`output.topic` and `output.dead_letter_topic` must differ".to_owned());
        }
        problems.extend(self.unreadable_files());
        problems
    }

    /// What keeps a command that only reads the topics from it.
    pub(super) fn read_problems(&self) -> Vec<String> {
        let mut problems = self.missing(&["input.topics", "kafka.bootstrap_servers"]);
        problems.extend(self.unreadable_files());
        problems
    }

    fn missing(&self, needed: &[&str]) -> Vec<String> {
        let is_given = |key: &str| match key {
            "input.topics" => !self.input.topics.is_empty(),
            "output.topic" => self.output.topic.is_some(),
            _ => !self.kafka.bootstrap_servers.is_empty(),
        };
        needed.iter().filter(|key| !is_given(key)).map(|key| is_missing(key)).collect()
    }

    /// Files of the connection that cannot be opened: librdkafka would not say which.
    fn unreadable_files(&self) -> impl Iterator<Item = String> {
        let kafka = &self.kafka;
        let files = [
            ("ssl_ca_file", &kafka.ssl_ca_file),
            ("ssl_certificate_file", &kafka.ssl_certificate_file),
            ("ssl_key_file", &kafka.ssl_key_file),
        ];
        files.into_iter().filter_map(|(key, path)| {
            let path = path.as_ref()?;
            let error = std::fs::File::open(path).err()?;
            Some(format!("`kafka.{key}`: cannot read {}: {error}", path.display()))
        })
    }
}

fn is_missing(key: &str) -> String {
    let variable = key.to_uppercase().replace('.', "__");
    format!("`{key}` is needed to run; set it in the settings file, as VITAG__{variable} or with --set {key}=…")
}

fn out_of_order((low, low_value, high, high_value): Ordered) -> Option<String> {
    (low_value > high_value).then(|| format!("`{low}` ({low_value}) must not exceed `{high}` ({high_value})"))
}
