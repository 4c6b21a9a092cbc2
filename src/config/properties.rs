//! Properties of librdkafka that the worker sets itself.

/// Properties and the settings to use in their place.
const HAVE_A_SETTING: [(&str, &str); 30] = [
    ("acks", "worker.delivery"),
    ("auto.offset.reset", "kafka.auto_offset_reset"),
    ("bootstrap.servers", "kafka.bootstrap_servers"),
    ("compression.codec", "kafka.compression"),
    ("compression.type", "kafka.compression"),
    ("enable.auto.commit", "worker.delivery"),
    ("enable.auto.offset.store", "worker.delivery"),
    ("auto.commit.interval.ms", "commit.interval_ms"),
    ("enable.idempotence", "worker.delivery"),
    ("group.id", "kafka.group_id"),
    ("group.instance.id", "worker.instance"),
    ("group.protocol", "kafka.group_protocol"),
    ("isolation.level", "worker.delivery"),
    ("max.poll.interval.ms", "kafka.max_poll_interval_ms"),
    ("metadata.broker.list", "kafka.bootstrap_servers"),
    ("partition.assignment.strategy", "kafka.assignment_strategy"),
    ("partitioner", "kafka.partitioner"),
    ("request.required.acks", "worker.delivery"),
    ("sasl.mechanism", "kafka.sasl_mechanism"),
    ("sasl.mechanisms", "kafka.sasl_mechanism"),
    ("sasl.password", "kafka.sasl_password_file"),
    ("sasl.username", "kafka.sasl_username"),
    ("security.protocol", "kafka.security_protocol"),
    ("session.timeout.ms", "kafka.session_timeout_ms"),
    ("ssl.ca.location", "kafka.ssl_ca_file"),
    ("ssl.certificate.location", "kafka.ssl_certificate_file"),
    ("ssl.key.location", "kafka.ssl_key_file"),
    ("ssl.key.password", "kafka.ssl_key_password_file"),
    ("transaction.timeout.ms", "kafka.transaction_timeout_ms"),
    ("transactional.id", "worker.instance"),
];

/// Refuses a property that the worker sets itself.
pub(super) fn allowed(property: &str) -> Result<(), String> {
    match HAVE_A_SETTING.iter().find(|(name, _)| *name == property) {
        Some((_, setting)) => Err(format!("vitag sets this property itself; use `{setting}`")),
        None => Ok(()),
    }
}

/// The setting in place of the first property that is meant.
pub(crate) fn setting_of(is_meant: impl Fn(&str) -> bool) -> Option<&'static str> {
    HAVE_A_SETTING.iter().find(|(property, _)| is_meant(property)).map(|(_, setting)| *setting)
}
