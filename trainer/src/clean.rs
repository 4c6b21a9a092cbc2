//! Raw text to training text: sentences of Vietnamese, each once.
//!
//! A line is a paragraph, a blank line or the end of a file ends a document. One thread reads and unpacks, all cores cut
//! and judge blocks of lines, and one thread takes the blocks in their order, drops what it has seen and writes: so the
//! output is the same for any number of threads. In memory are a few blocks and the hashes of the sentences that were
//! kept, 7.7 bytes each at most: at 160 bytes a sentence, as in Wikipedia, 60 GB of text need 2.9 GB.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;

use crate::{files, input};

mod report;
mod rules;
mod seen;
mod shards;

pub use report::{Count, Counts, Report};
use rules::Verdict;
pub use rules::{Rules, is_vietnamese};
use seen::Seen;
use shards::Shards;

/// The report, among the shards.
pub const REPORT: &str = "report.json";

/// How text is cleaned.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Which sentences are kept.
    pub rules: Rules,
    /// Bytes of a shard.
    pub shard_bytes: u64,
    /// Threads that cut and judge.
    pub threads: usize,
}

/// A part of a block.
enum Part {
    /// A sentence that the rules keep, with its hash.
    Sentence(u64, String),
    EndOfDocument,
}

#[derive(Default)]
struct Block {
    parts: Vec<Part>,
    /// What the rules removed.
    counts: Counts,
    bytes: u64,
}

/// Cleans the files, folders and standard input (`-`) among `inputs`, plain or packed (gzip, xz, Zstandard), into a new
/// directory `out` with shards and their [`REPORT`].
///
/// # Errors
/// When an input cannot be read, or `out` is there or cannot be written; then it is not there.
pub fn clean(inputs: &[PathBuf], options: Options, out: &Path) -> Result<Report> {
    let share = options.rules.max_foreign;
    ensure!((0.0..=1.0).contains(&share), "the greatest share of foreign letters must be from 0 to 1, not {share}");
    ensure!(!out.exists(), "{} is there: remove it or choose another directory", out.display());
    let (paths, progress) = input::files(inputs)?;
    let mut report = None;
    files::replace_dir(out, |dir| {
        let found = run(&paths, options, dir, &progress)?;
        files::write_json(&dir.join(REPORT), &found)?;
        report = Some(found);
        Ok(())
    })?;
    progress.finish_and_clear();
    report.context("nothing was written")
}

fn run(paths: &[PathBuf], options: Options, dir: &Path, progress: &ProgressBar) -> Result<Report> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build()?;
    let (blocks, in_order) = sync_channel::<Receiver<Block>>(4 * options.threads.max(1));
    thread::scope(|scope| {
        let writer = scope.spawn(move || write(in_order, options, dir));
        let read = read_all(paths, progress, |text| {
            let (done, block) = sync_channel(1);
            // Nobody waits for it any more once writing has failed.
            pool.spawn(move || drop(done.send(Block::new(&text, options.rules))));
            blocks.send(block).is_ok()
        });
        drop(blocks);
        let written = writer.join().expect("the writer does not panic");
        read?;
        Ok(Report { files: paths.len(), ..written? })
    })
}

fn read_all(paths: &[PathBuf], progress: &ProgressBar, mut sink: impl FnMut(Vec<u8>) -> bool) -> Result<()> {
    paths.iter().try_for_each(|path| input::blocks(path, progress, &mut sink))
}

fn write(blocks: Receiver<Receiver<Block>>, options: Options, dir: &Path) -> Result<Report> {
    let mut seen = Seen::new();
    let mut shards = Shards::new(dir, options.shard_bytes);
    let (mut counts, mut documents, mut bytes) = (Counts::default(), 0, 0);
    let mut first = true;
    for block in blocks {
        let block = block.recv().context("a thread that cleans has panicked")?;
        counts += block.counts;
        bytes += block.bytes;
        for part in block.parts {
            let Part::Sentence(hash, sentence) = part else {
                first = true;
                continue;
            };
            if !seen.insert(hash) {
                counts.duplicate.add(sentence.as_bytes());
                continue;
            }
            counts.kept.add(sentence.as_bytes());
            shards.push(&sentence, first)?;
            documents += u64::from(first);
            first = false;
        }
    }
    shards.end()?;
    let (shards, hash_bytes) = (shards.count, seen.bytes());
    Ok(Report { rules: options.rules, files: 0, bytes, documents, sentences: counts, shards, hash_bytes })
}

impl Block {
    /// Of the text of a block; an empty one ends a file.
    fn new(text: &[u8], rules: Rules) -> Self {
        let mut block = Self { bytes: text.len() as u64, ..Self::default() };
        if text.is_empty() {
            block.parts.push(Part::EndOfDocument);
        }
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            match str::from_utf8(line) {
                Ok(line) if line.trim().is_empty() => block.parts.push(Part::EndOfDocument),
                Ok(line) => block.push(line, rules),
                Err(_) => block.counts.not_utf8.add(line),
            }
        }
        block
    }

    fn push(&mut self, line: &str, rules: Rules) {
        for sentence in rules::sentences(line) {
            match rules.judge(&sentence) {
                Verdict::Keep => self.parts.push(Part::Sentence(rules::hash(&sentence), sentence)),
                Verdict::Short => self.counts.short.add(sentence.as_bytes()),
                Verdict::Foreign => self.counts.foreign.add(sentence.as_bytes()),
            }
        }
    }
}
