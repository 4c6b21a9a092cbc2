//! The command line of vitag.

fn main() {}
