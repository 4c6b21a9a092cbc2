//! The values of arguments, read.

use clap::ValueEnum;
use jiff::Timestamp;

use crate::backfill::{Bound, Compression, OutputFormat};
use crate::cli::{Failure, dlq};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rate {
    Records(f64),
    Tokens(f64),
}

pub(super) fn rate(text: &str) -> Result<Rate, String> {
    let number = |text: &str| text.parse().ok().filter(|rate: &f64| *rate > 0.0 && rate.is_finite());
    let rate = match text.strip_suffix('t') {
        Some(tokens) => number(tokens).map(Rate::Tokens),
        None => number(text).map(Rate::Records),
    };
    rate.ok_or_else(|| "expected records a second such as 50, or tokens such as 20000t".to_owned())
}

/// Which part of the splits a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share(pub(super) usize, pub(super) usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum FileForm {
    /// A JSON object a line, as output.mode has it.
    Jsonl,
    /// The same, compressed by gzip.
    JsonlGz,
    /// The same, compressed by Zstandard.
    JsonlZst,
    /// Parquet, with nested columns.
    Parquet,
}

impl From<FileForm> for OutputFormat {
    fn from(form: FileForm) -> Self {
        match form {
            FileForm::Jsonl => Self::Jsonl(Compression::None),
            FileForm::JsonlGz => Self::Jsonl(Compression::Gz),
            FileForm::JsonlZst => Self::Jsonl(Compression::Zst),
            FileForm::Parquet => Self::Parquet,
        }
    }
}

pub(super) fn parse_share(text: &str) -> Result<Share, String> {
    share_of(text, std::env::var("JOB_COMPLETION_INDEX").ok().as_deref())
}

pub(super) fn share_of(text: &str, index: Option<&str>) -> Result<Share, String> {
    let wrong = || "expected I/N with I from 0 to N - 1, or /N and JOB_COMPLETION_INDEX".to_owned();
    let (number, of) = text.split_once('/').ok_or_else(wrong)?;
    let number = if number.is_empty() { index.ok_or_else(wrong)? } else { number };
    let (number, of) = number.parse().ok().zip(of.parse().ok()).ok_or_else(wrong)?;
    if number < of { Ok(Share(number, of)) } else { Err(wrong()) }
}

/// A list of partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partitions(pub(super) Vec<i32>);

pub(super) fn job_name(text: &str) -> Result<String, String> {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !text.is_empty() && text.len() <= 100 && text.chars().all(is_fit) {
        return Ok(text.to_owned());
    }
    Err("expected up to 100 letters, digits, -, _ and .".to_owned())
}

pub(super) fn partitions(text: &str) -> Result<Partitions, String> {
    let number = |text: &str| text.parse().ok().filter(|id: &i32| *id >= 0);
    let part = |part: &str| match part.split_once('-') {
        None => number(part).map(|id| id..=id),
        Some((first, last)) => number(first).zip(number(last)).map(|(first, last)| first..=last),
    };
    let ranges: Option<Vec<_>> = text.split(',').map(part).collect();
    let wrong = || "expected partitions such as 3 or 0,2-4".to_owned();
    let mut ids: Vec<i32> = ranges.ok_or_else(wrong)?.into_iter().flat_map(|range| range.take(10_000)).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() { Err(wrong()) } else { Ok(Partitions(ids)) }
}

pub(super) fn bound(name: &str, text: &str) -> Result<Bound, Failure> {
    match text {
        "earliest" => return Ok(Bound::Earliest),
        "latest" => return Ok(Bound::Latest),
        "committed" => return Ok(Bound::Committed),
        _ => {}
    }
    if let Some(offset) = text.parse().ok().filter(|offset| *offset >= 0) {
        return Ok(Bound::Offset(offset));
    }
    dlq::time_at(text, Timestamp::now()).map(Bound::Time).map_err(|wrong| {
        Failure::Usage(format!("--{name} {text}: {wrong}; or earliest, latest, committed, or an offset"))
    })
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a share from 0 to 1".to_owned())
}

pub(super) fn pointer(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err("expected a JSON pointer such as /lang=vi".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_numbers_and_ranges() {
        assert_eq!(partitions("4,0,2-4"), Ok(Partitions(vec![0, 2, 3, 4])));
        for wrong in ["", "a", "-1", "1-", "3-2", "1,,2"] {
            assert!(partitions(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn bounds_are_words_offsets_and_times() {
        let bound = |text| bound("from", text).ok();
        assert_eq!(bound("committed"), Some(Bound::Committed));
        assert_eq!(bound("70"), Some(Bound::Offset(70)));
        assert_eq!(bound("2026-01-31T08:00:00Z"), Some(Bound::Time("2026-01-31T08:00:00Z".parse().unwrap())));
        assert!(matches!(bound("-7d"), Some(Bound::Time(_))));
        for wrong in ["", "soon", "7d", "2026-01-31"] {
            assert_eq!(bound(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn names_and_shares_are_checked() {
        assert!(job_name("june-2026.a_b").is_ok());
        assert!(["", "a b", "a/b", &"a".repeat(101)].iter().all(|name| job_name(name).is_err()));
        assert_eq!(share_of("1/4", None), Ok(Share(1, 4)));
        assert_eq!(share_of("/4", Some("3")), Ok(Share(3, 4)));
        assert!(["4/4", "/4", "1", "0/0", "-1/2"].iter().all(|text| share_of(text, None).is_err()));
        assert_eq!((rate("50"), rate("2e4t")), (Ok(Rate::Records(50.0)), Ok(Rate::Tokens(20_000.0))));
        assert!(["0", "-1", "t", "inf", "5 t"].iter().all(|text| rate(text).is_err()));
        assert_eq!(share("0.25"), Ok(0.25));
        assert!(["-1", "1.5", "x", "NaN"].iter().all(|text| share(text).is_err()));
    }
}
