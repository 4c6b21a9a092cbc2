//! What a dead letter says of itself.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;

use crate::record::{Header, Position, Reject};

/// The headers that a dead letter has beside those it came with: the reasons, under the names that Kafka Connect uses.
/// All values are UTF-8 text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(extend("additionalProperties" = { "description": "the headers of the original", "type": ["string", "null"] }))]
pub struct DeadLetterHeaders {
    /// Topic of the original.
    #[serde(rename = "__connect.errors.topic")]
    pub topic: String,
    /// Partition of the original, a decimal number.
    #[serde(rename = "__connect.errors.partition")]
    pub partition: String,
    /// Offset of the original, a decimal number.
    #[serde(rename = "__connect.errors.offset")]
    pub offset: String,
    /// Stage that refused it: decode, tokenize, infer or encode.
    #[serde(rename = "__connect.errors.stage")]
    pub stage: String,
    /// Always `vitag.Reject`.
    #[serde(rename = "__connect.errors.exception.class.name")]
    pub class_name: String,
    /// The reason, for people.
    #[serde(rename = "__connect.errors.exception.message")]
    pub message: String,
    /// The reason, for machines.
    #[serde(rename = "vitag.error.code")]
    pub code: String,
}

impl DeadLetterHeaders {
    pub(super) fn new(position: &Position, reject: &Reject) -> Self {
        Self {
            topic: position.partition.topic.to_string(),
            partition: position.partition.id.to_string(),
            offset: position.offset.to_string(),
            stage: reject.stage.as_str().to_owned(),
            class_name: "vitag.Reject".to_owned(),
            message: reject.message.clone(),
            code: reject.code.as_str().to_owned(),
        }
    }

    pub(super) fn into_headers(self) -> Vec<Header> {
        let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(self) else { return Vec::new() };
        let text = |value: serde_json::Value| value.as_str().map(|text| Bytes::copy_from_slice(text.as_bytes()));
        fields.into_iter().map(|(key, value)| (key, text(value))).collect()
    }
}
