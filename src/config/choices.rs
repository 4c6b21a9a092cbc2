//! Settings that are one of a few words.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// What happens where the old model and the new do not fit into memory together.
    OnLowMemory {
        /// The new one is refused; the old one goes on.
        #[default]
        Refuse = "refuse",
        /// What is under way is finished, the old one freed, then the new one loaded; records wait meanwhile.
        Drain = "drain",
    }
}
