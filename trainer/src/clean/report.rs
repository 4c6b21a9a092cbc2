//! What a cleaning did.

use std::fmt;
use std::ops::AddAssign;

use serde::Serialize;

use super::rules::Rules;

/// Sentences and their bytes in UTF-8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Sentences; of what is not UTF-8, lines.
    pub sentences: u64,
    /// Bytes, without line ends.
    pub bytes: u64,
}

/// How many sentences each rule removed. A sentence counts under the first rule that removes it, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Lines that are not UTF-8.
    pub not_utf8: Count,
    /// Fewer words than asked for.
    pub short: Count,
    /// Too many letters that are not Vietnamese.
    pub foreign: Count,
    /// Seen before.
    pub duplicate: Count,
    /// Written.
    pub kept: Count,
}

/// What went in and what came out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The rules.
    pub rules: Rules,
    /// Files read.
    pub files: usize,
    /// Bytes of text read, unpacked.
    pub bytes: u64,
    /// Documents with a sentence that was kept.
    pub documents: u64,
    /// Sentences by what became of them.
    pub sentences: Counts,
    /// Files written.
    pub shards: usize,
    /// Bytes that the hashes of the sentences took in memory.
    pub hash_bytes: usize,
}

impl Count {
    pub(super) fn add(&mut self, text: &[u8]) {
        *self += Self { sentences: 1, bytes: text.len() as u64 };
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.sentences += other.sentences;
        self.bytes += other.bytes;
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.not_utf8 += other.not_utf8;
        self.short += other.short;
        self.foreign += other.foreign;
        self.duplicate += other.duplicate;
        self.kept += other.kept;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { not_utf8, short, foreign, duplicate, kept } = self.sentences;
        let rows = [
            ("not UTF-8 (lines)".to_owned(), not_utf8),
            (format!("under {} words", self.rules.min_words), short),
            (format!("over {} % foreign letters", self.rules.max_foreign * 100.0), foreign),
            ("duplicate".to_owned(), duplicate),
            ("kept".to_owned(), kept),
        ];
        let all: u64 = rows.iter().map(|(_, count)| count.sentences).sum();
        writeln!(f, "{:<28} {:>12} {:>7} {:>10}", "sentences", "number", "share", "MB")?;
        for (name, count) in rows {
            let share = 100.0 * count.sentences as f64 / all.max(1) as f64;
            writeln!(f, "{name:<28} {:>12} {share:>6.2}% {:>10.1}", count.sentences, count.bytes as f64 / 1e6)?;
        }
        let read = self.bytes as f64 / 1e6;
        write!(f, "{} documents in {} shards, from {read:.1} MB in {} files", self.documents, self.shards, self.files)
    }
}
