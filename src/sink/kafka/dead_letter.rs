//! What a dead letter says of itself.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::record::{Header, Position, Reject};

/// The headers that a dead letter has beside those it came with: the reasons, under the names that Kafka Connect uses.
/// All values are UTF-8 text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// How often `vitag dlq replay` has sent the document back, a decimal number; absent where it never did. It came
    /// with the document, and goes with its annotation too.
    #[serde(rename = "vitag.dlq.replays", default, skip_serializing_if = "Option::is_none")]
    pub replays: Option<String>,
}

/// The header that counts replays.
pub(crate) const REPLAYS: &str = "vitag.dlq.replays";

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
            replays: None,
        }
    }

    pub(super) fn into_headers(self) -> Vec<Header> {
        let text = |value: Value| value.as_str().map(|text| Bytes::copy_from_slice(text.as_bytes()));
        self.fields().into_iter().map(|(key, value)| (key, text(value))).collect()
    }

    /// What the headers of a message say, if they are those of a dead letter. Of a header that is there twice the last
    /// counts: the reasons stand after what the original came with.
    pub(crate) fn read(headers: &[Header]) -> Option<Self> {
        let text = |value: &Option<Bytes>| Some(Value::from(std::str::from_utf8(value.as_deref()?).ok()?));
        let fields: Map<_, _> = headers.iter().filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect();
        serde_json::from_value(Value::Object(fields)).ok()
    }

    /// The headers that the original came with: all but the reasons.
    pub(crate) fn strip(self, mut headers: Vec<Header>) -> Vec<Header> {
        let reasons = Self { replays: None, ..self }.fields();
        for name in reasons.keys() {
            if let Some(place) = headers.iter().rposition(|(key, _)| key == name) {
                headers.remove(place);
            }
        }
        headers
    }

    fn fields(self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            _ => unreachable!("a struct of strings is an object"),
        }
    }
}
