//! What the tests of several files share.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod broker;
pub(crate) mod worker;
