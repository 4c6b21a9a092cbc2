//! vitag.
#[cfg(feature = "worker")]
pub mod admin;
pub mod decode;
pub mod manifest;
pub mod pack;
pub mod record;
pub mod score;
pub mod tags;
#[cfg(feature = "worker")]
pub mod telemetry;
pub mod tokenize;
