//! vitag.
#[cfg(feature = "worker")]
pub mod config;
pub mod decode;
pub mod manifest;
pub mod pack;
pub mod record;
pub mod score;
pub mod tags;
pub mod tokenize;
