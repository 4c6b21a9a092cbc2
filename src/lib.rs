//! vitag.
