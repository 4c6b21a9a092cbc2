//! Settings that are one of a few words.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An enum whose variants have one spelling, in every layer and for librdkafka.
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// The word that stands for it in the settings.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

choice! {
    /// What a restart may do to a record.
    Delivery {
        /// Outputs, dead letters and input offsets are one Kafka transaction.
        #[default]
        ExactlyOnce = "exactly_once",
        /// Offsets follow the outputs; a record may come out twice.
        AtLeastOnce = "at_least_once",
    }
}

choice! {
    /// What a message value holds.
    InputFormat {
        /// A JSON value, addressed by the pointers.
        #[default]
        Json = "json",
        /// The text itself, UTF-8.
        Text = "text",
    }
}

choice! {
    /// What happens to a text over the limit.
    OnTooLarge {
        /// It becomes a dead letter.
        #[default]
        Reject = "reject",
        /// Its head is tagged, and the annotation says `truncated`.
        Truncate = "truncate",
    }
}

choice! {
    /// What an output value is.
    OutputMode {
        /// The annotation alone.
        #[default]
        Envelope = "envelope",
        /// The input object with the annotation under one key.
        Merge = "merge",
    }
}

choice! {
    /// What offsets in an annotation count.
    OffsetUnit {
        /// Unicode code points, as Python indexes strings.
        #[default]
        CodePoint = "code_point",
        /// Bytes of UTF-8.
        Byte = "byte",
        /// UTF-16 code units, as Java and JavaScript index strings.
        Utf16 = "utf16",
    }
}

choice! {
    /// Where a group without a committed offset starts.
    OffsetReset {
        /// At the oldest record.
        #[default]
        Earliest = "earliest",
        /// At the records that come from now on.
        Latest = "latest",
        /// Nowhere: the worker stops with an error.
        Error = "error",
    }
}

choice! {
    /// Who computes the group's assignment.
    GroupProtocol {
        /// The members, through the group leader.
        #[default]
        Classic = "classic",
        /// The broker (KIP-848).
        Consumer = "consumer",
    }
}

choice! {
    /// How partitions are spread over the members.
    AssignmentStrategy {
        /// Evenly, moving as few as possible, without stopping the others.
        #[default]
        CooperativeSticky = "cooperative-sticky",
        /// Ranges of each topic's partitions; stops the group on a change.
        Range = "range",
        /// One after the other; stops the group on a change.
        RoundRobin = "roundrobin",
    }
}

choice! {
    /// How the worker speaks to brokers.
    SecurityProtocol {
        /// Neither encrypted nor authenticated.
        #[default]
        Plaintext = "plaintext",
        /// Encrypted; authenticated where a client certificate is given.
        Ssl = "ssl",
        /// Authenticated by SASL, not encrypted.
        SaslPlaintext = "sasl_plaintext",
        /// Authenticated by SASL, encrypted.
        SaslSsl = "sasl_ssl",
    }
}

impl SecurityProtocol {
    /// Whether the brokers ask for a name and a password.
    pub const fn uses_sasl(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }
}

choice! {
    /// How name and password are proved.
    SaslMechanism {
        /// As they are; only over an encrypted connection.
        #[default]
        Plain = "PLAIN",
        /// Salted challenge and response with SHA-256.
        ScramSha256 = "SCRAM-SHA-256",
        /// Salted challenge and response with SHA-512.
        ScramSha512 = "SCRAM-SHA-512",
    }
}

choice! {
    /// How produced batches are compressed.
    Compression {
        /// Smallest for its speed.
        #[default]
        Zstd = "zstd",
        /// Fastest.
        Lz4 = "lz4",
        /// Fast, read by old clients.
        Snappy = "snappy",
        /// Read by every client.
        Gzip = "gzip",
        /// Not at all.
        None = "none",
    }
}

choice! {
    /// How an output's key picks its partition.
    Partitioner {
        /// As the Java client does; without a key at random.
        #[default]
        Murmur2Random = "murmur2_random",
        /// As the Java client does; all without a key in one partition.
        Murmur2 = "murmur2",
        /// By CRC32; without a key at random. The default of librdkafka.
        ConsistentRandom = "consistent_random",
        /// By CRC32; all without a key in one partition.
        Consistent = "consistent",
        /// By FNV-1a, as Sarama does; without a key at random.
        Fnv1aRandom = "fnv1a_random",
        /// By FNV-1a, as Sarama does; all without a key in one partition.
        Fnv1a = "fnv1a",
        /// At random, whatever the key: order by key is lost.
        Random = "random",
    }
}

choice! {
    /// What a log line looks like.
    LogFormat {
        /// Pretty on a terminal, JSON elsewhere.
        #[default]
        Auto = "auto",
        /// For people.
        Pretty = "pretty",
        /// One JSON object a line.
        Json = "json",
    }
}

/// Where a model runs; a device that is named and missing is an error, never a silent fallback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// CUDA if it is really there, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number.
    Cuda(u32),
    /// TensorRT on the CUDA device of this number.
    TensorRt(u32),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::TensorRt(index) => write!(f, "tensorrt:{index}"),
        }
    }
}

/// A text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected \"auto\", \"cpu\", \"cuda:N\" or \"tensorrt:N\", found {0:?}")]
pub struct UnknownDevice(String);

impl FromStr for Device {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownDevice(text.to_owned());
        let (kind, index) = match text.split_once(':') {
            Some((kind, index)) => (kind, Some(index.parse().map_err(|_| unknown())?)),
            None => (text, None),
        };
        match (kind, index) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("cuda", index) => Ok(Self::Cuda(index.unwrap_or(0))),
            ("tensorrt", index) => Ok(Self::TensorRt(index.unwrap_or(0))),
            _ => Err(unknown()),
        }
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_reads_back_as_it_prints() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3", "tensorrt:1"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for text in ["", "gpu", "cpu:0", "auto:1", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            let error = text.parse::<Device>().unwrap_err().to_string();
            assert_eq!(error, format!("expected \"auto\", \"cpu\", \"cuda:N\" or \"tensorrt:N\", found {text:?}"));
        }
    }
}
