//! Models that are rolled out through topics to workers of the real binary, on a real broker.
#![cfg(feature = "failpoints")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/model.rs"]
mod model;
#[path = "../common/versions.rs"]
mod versions;

mod candidates;
mod fleet;
mod operations;
mod slots;
mod survival;
mod swaps;

#[path = "../common/cli.rs"]
mod cli;
