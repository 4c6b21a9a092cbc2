//! Which records of a range are tagged: the same ones in every process and every run of a job.

use serde::Serialize;
use serde_json::Value;

use crate::record::Partition;
use crate::source::Message;

/// A choice of records; every condition must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Selection {
    /// Headers that a record must have.
    pub headers: Vec<Condition>,
    /// Places in the JSON of its value (RFC 6901) that must hold something.
    pub pointers: Vec<Condition>,
    /// Share of the records, 0 to 1, drawn by their offsets.
    pub sample: Option<f64>,
}

/// Something that must be there and, with a value, hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// Name of a header, or a JSON pointer.
    pub at: String,
    /// The value as text; none for any but null.
    pub value: Option<String>,
}

impl Condition {
    /// Reads `at` or `at=value`.
    pub fn parse(text: &str) -> Self {
        match text.split_once('=') {
            Some((at, value)) => Self { at: at.to_owned(), value: Some(value.to_owned()) },
            None => Self { at: text.to_owned(), value: None },
        }
    }

    fn holds(&self, found: &[u8]) -> bool {
        self.value.as_ref().is_none_or(|value| value.as_bytes() == found)
    }
}

impl Selection {
    /// Whether a record is chosen.
    pub fn wants(&self, partition: &Partition, message: &Message) -> bool {
        self.sample.is_none_or(|ratio| draw(partition.id, message.offset) < ratio)
            && self.headers.iter().all(|condition| has_header(message, condition))
            && (self.pointers.is_empty() || self.holds_in(message.value.as_deref().unwrap_or_default()))
    }

    fn holds_in(&self, value: &[u8]) -> bool {
        let Ok(json) = serde_json::from_slice::<Value>(value) else { return false };
        self.pointers.iter().all(|condition| match json.pointer(&condition.at) {
            None | Some(Value::Null) => false,
            Some(Value::String(text)) => condition.holds(text.as_bytes()),
            Some(other) => condition.holds(other.to_string().as_bytes()),
        })
    }
}

fn has_header(message: &Message, condition: &Condition) -> bool {
    let mut of_name = message.headers.iter().filter(|(key, _)| *key == condition.at);
    of_name.any(|(_, value)| value.as_ref().is_some_and(|value| condition.holds(value)))
}

/// A number in [0, 1) that looks drawn by lot and is always the same for a place: SplitMix64 (Steele, Lea and Flood,
/// OOPSLA 2014) of partition and offset.
fn draw(partition: i32, offset: i64) -> f64 {
    let mix = |mut z: u64| {
        z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    // The upper 53 bits are all that an f64 holds.
    (mix(mix(partition as u64) ^ offset as u64) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition() -> Partition {
        Partition { topic: "in".into(), id: 3 }
    }

    fn message(offset: i64) -> Message {
        Message {
            offset,
            key: None,
            value: Some(r#"{"lang": "vi", "year": 2026, "draft": null}"#.into()),
            headers: vec![("source".into(), Some("web".into())), ("empty".into(), None)],
            timestamp_ms: None,
        }
    }

    fn wants(headers: &[&str], pointers: &[&str]) -> bool {
        let parse = |texts: &[&str]| texts.iter().map(|text| Condition::parse(text)).collect();
        let selection = Selection { headers: parse(headers), pointers: parse(pointers), sample: None };
        selection.wants(&partition(), &message(0))
    }

    #[test]
    fn every_condition_must_hold() {
        assert!(wants(&["source=web", "source"], &["/lang=vi", "/year=2026", "/year"]));
        for header in ["source=print", "other", "empty"] {
            assert!(!wants(&[header], &[]), "{header}");
        }
        for pointer in ["/lang=en", "/draft", "/author"] {
            assert!(!wants(&[], &["/lang=vi", pointer]), "{pointer}");
        }
    }

    #[test]
    fn a_sample_has_its_share_and_a_larger_one_holds_the_smaller() {
        let drawn = |ratio| {
            let selection = Selection { sample: Some(ratio), ..Selection::default() };
            (0..20_000).filter(|&offset| selection.wants(&partition(), &message(offset))).collect::<Vec<_>>()
        };
        let (tenth, fifth) = (drawn(0.1), drawn(0.2));
        assert!((1_850..2_150).contains(&tenth.len()), "{}", tenth.len());
        assert!(tenth.iter().all(|offset| fifth.contains(offset)));
        assert_eq!((drawn(0.0).len(), drawn(1.0).len()), (0, 20_000));
    }
}
