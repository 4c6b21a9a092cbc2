//! JSON Schemas of the formats, made from the types that read and write them.

use clap::ValueEnum;
use schemars::generate::SchemaSettings;

use crate::bench::report::Report;
use crate::config::Settings;
use crate::encode::Annotation;
use crate::rollout::{Desired, Status};
use crate::sink::kafka::DeadLetterHeaders;

/// A format with a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Schema {
    /// What is published of a text.
    Annotation,
    /// What `vitag bench --json` prints.
    Bench,
    /// The headers that a dead letter has beside those it came with.
    DeadLetterHeaders,
    /// What a slot shall serve: a message of the control topic.
    RolloutControl,
    /// What a worker serves: a message of the status topic.
    RolloutStatus,
    /// The settings file.
    Settings,
}

impl Schema {
    /// The schema (JSON Schema 2020-12), indented, with a newline at the end.
    pub fn text(self) -> String {
        let generator = SchemaSettings::draft2020_12().into_generator();
        let schema = match self {
            Schema::Annotation => generator.into_root_schema_for::<Annotation>(),
            Schema::Bench => generator.into_root_schema_for::<Report>(),
            Schema::DeadLetterHeaders => generator.into_root_schema_for::<DeadLetterHeaders>(),
            Schema::RolloutControl => generator.into_root_schema_for::<Desired>(),
            Schema::RolloutStatus => generator.into_root_schema_for::<Status>(),
            Schema::Settings => generator.into_root_schema_for::<Settings>(),
        };
        format!("{:#}\n", schema.as_value())
    }
}
