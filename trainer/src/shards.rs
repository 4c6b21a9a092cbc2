//! A tokenised corpus on disk: text cut and looked up once, then mapped into memory however large it is.
//!
//! A shard is one file, little-endian: a header of 64 bytes, the end of every sentence in tokens (u32), the
//! token ids (u16 or u32), and one bit a token that says whether a syllable begins there. A sentence without tokens
//! ends a document. The header names the tokenizer by its hash, so that a corpus is never read with another one.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use memmap2::Mmap;

mod write;

pub use write::{Summary, tokenize};

const MAGIC: &[u8; 8] = b"vitagtok";
const VERSION: u32 = 1;
const HEADER: usize = 64;

/// The first bytes of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    /// Bytes of a token id: 2 or 4.
    width: u32,
    sentences: u64,
    tokens: u64,
    /// SHA-256 of `tokenizer.json`.
    tokenizer: [u8; 32],
}

/// The shards of a corpus.
#[derive(Debug)]
pub struct Shards {
    shards: Vec<Shard>,
}

#[derive(Debug)]
struct Shard {
    header: Header,
    map: Mmap,
}

/// Consecutive tokens of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    shard: u32,
    first: u32,
    end: u32,
}

/// Tokens with the places where their syllables begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Index in `ids` of the first piece of every syllable.
    pub starts: Vec<u32>,
}

impl Header {
    fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.width.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sentences.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.tokens.to_le_bytes());
        bytes[32..].copy_from_slice(&self.tokenizer);
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        ensure!(bytes.len() >= HEADER && bytes.starts_with(MAGIC), "not a shard of a tokenised corpus");
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let (version, width) = (u32_at(8), u32_at(12));
        ensure!(version == VERSION, "version {version} of the format, this build reads {VERSION}");
        ensure!(matches!(width, 2 | 4), "token ids of {width} bytes, expected 2 or 4");
        let tokenizer = bytes[32..HEADER].try_into().expect("32 bytes");
        Ok(Self { width, sentences: u64_at(16), tokens: u64_at(24), tokenizer })
    }

    /// Where the token ids begin, where the bits do, and where the file ends; `None` if no file is so long.
    fn layout(&self) -> Option<[u64; 3]> {
        let ids = self.sentences.checked_mul(4)?.checked_add(HEADER as u64)?;
        let bits = self.tokens.checked_mul(u64::from(self.width))?.checked_add(ids)?;
        Some([ids, bits, bits.checked_add(self.tokens.div_ceil(8))?])
    }
}

impl Shards {
    /// Opens the shards in `dir`, made with the tokenizer of this hash (SHA-256).
    ///
    /// # Errors
    /// When there are none, one is malformed, or was made with another tokenizer; the message names the file.
    pub fn open(dir: &Path, tokenizer: &[u8; 32]) -> Result<Self> {
        let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
        let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "shard"));
        paths.sort();
        ensure!(!paths.is_empty(), "{}: no shard in it, make some with \"vitag-trainer tokenize\"", dir.display());
        let open = |path: &PathBuf| Shard::open(path, tokenizer).with_context(|| path.display().to_string());
        Ok(Self { shards: paths.iter().map(open).collect::<Result<_>>()? })
    }

    /// Number of tokens in all.
    pub fn tokens(&self) -> u64 {
        self.shards.iter().map(|shard| shard.header.tokens).sum()
    }

    /// The tokens of a span.
    pub fn text(&self, span: Span) -> Text {
        self.shards[span.shard as usize].text(span.first as usize..span.end as usize)
    }

    /// Cuts every document into spans of at most `capacity` tokens: as many whole sentences as fit, so that a span is
    /// running text. A sentence that is longer is cut where a syllable begins.
    pub fn documents(&self, capacity: usize) -> Vec<Vec<Span>> {
        let shards = (0..).zip(&self.shards);
        shards.flat_map(|(number, shard)| shard.documents(number, capacity)).collect()
    }
}

impl Shard {
    fn open(path: &Path, tokenizer: &[u8; 32]) -> Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the file is only read. Another process that shortens it meanwhile would end this one with SIGBUS:
        // shards are written under another name and moved into place, never changed.
        let map = unsafe { Mmap::map(&file)? };
        let header = Header::parse(&map)?;
        let length = header.layout().map(|[_, _, end]| end);
        ensure!(length == Some(map.len() as u64), "{} bytes, its header asks for {length:?}: it is damaged", map.len());
        ensure!(header.tokens <= u64::from(u32::MAX), "{} tokens, at most 2^32 - 1 can be read", header.tokens);
        ensure!(header.tokenizer == *tokenizer, "made with another tokenizer: run \"vitag-trainer tokenize\" again");
        let shard = Self { header, map };
        let mut before = 0;
        for end in (0..header.sentences as usize).map(|i| shard.end_of(i)) {
            ensure!(end >= before && end as u64 <= header.tokens, "a sentence ends at token {end}: it is damaged");
            before = end;
        }
        ensure!(
            before as u64 == header.tokens,
            "its last sentence ends at token {before} of {}: it is damaged",
            header.tokens
        );
        Ok(shard)
    }

    fn end_of(&self, sentence: usize) -> usize {
        let at = HEADER + 4 * sentence;
        u32::from_le_bytes(self.map[at..at + 4].try_into().expect("4 bytes")) as usize
    }

    fn sentences(&self) -> impl Iterator<Item = Range<usize>> {
        (0..self.header.sentences as usize).map(|i| if i == 0 { 0 } else { self.end_of(i - 1) }..self.end_of(i))
    }

    fn documents(&self, number: u32, capacity: usize) -> Vec<Vec<Span>> {
        let sentences: Vec<Range<usize>> = self.sentences().collect();
        let span = |range: Range<usize>| Span { shard: number, first: range.start as u32, end: range.end as u32 };
        let documents = sentences.split(Range::is_empty).filter(|document| !document.is_empty());
        documents.map(|document| self.pack(document, capacity).into_iter().map(span).collect()).collect()
    }

    /// Consecutive sentences as ranges of at most `capacity` tokens.
    fn pack(&self, sentences: &[Range<usize>], capacity: usize) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        let mut open = sentences[0].start..sentences[0].start;
        for sentence in sentences {
            if !open.is_empty() && sentence.end - open.start > capacity {
                ranges.push(open);
                open = sentence.clone();
            }
            open.end = sentence.end;
            while open.len() > capacity {
                let cut = self.cut(open.start, capacity);
                ranges.push(open.start..cut);
                open.start = cut;
            }
        }
        ranges.push(open);
        ranges
    }

    fn text(&self, range: Range<usize>) -> Text {
        let starts = range.clone().filter(|&i| self.begins(i)).map(|i| (i - range.start) as u32).collect();
        Text { ids: range.map(|i| self.id(i)).collect(), starts }
    }

    fn id(&self, token: usize) -> u32 {
        let width = self.header.width as usize;
        let at = HEADER + 4 * self.header.sentences as usize + width * token;
        let mut bytes = [0; 4];
        bytes[..width].copy_from_slice(&self.map[at..at + width]);
        u32::from_le_bytes(bytes)
    }

    /// Whether a syllable begins at a token.
    fn begins(&self, token: usize) -> bool {
        let bits =
            HEADER + 4 * self.header.sentences as usize + self.header.width as usize * self.header.tokens as usize;
        self.map[bits + token / 8] >> (token % 8) & 1 == 1
    }

    /// The last place within `capacity` tokens of `first` where a syllable begins; all of them if it is one syllable.
    fn cut(&self, first: usize, capacity: usize) -> usize {
        (first + 1..=first + capacity).rev().find(|&i| self.begins(i)).unwrap_or(first + capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header { width: 2, sentences: 3, tokens: 9, tokenizer: [7; 32] }
    }

    #[test]
    fn a_header_comes_back() {
        assert_eq!(Header::parse(&header().bytes()).unwrap(), header());
        assert_eq!(header().layout(), Some([76, 94, 96]));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let refused = |bytes: &[u8]| Header::parse(bytes).unwrap_err().to_string();
        assert!(refused(b"vitag").contains("not a shard"));
        let mut bytes = header().bytes();
        bytes[8] = 2;
        assert!(refused(&bytes).contains("version 2"));
        bytes[8] = 1;
        bytes[12] = 3;
        assert!(refused(&bytes).contains("token ids of 3 bytes"));
        let endless = Header { tokens: u64::MAX, ..header() };
        assert_eq!(endless.layout(), None);
    }

    proptest! {
        #[test]
        fn spans_are_the_text_in_order_and_fit(
            sentences in prop::collection::vec(prop::collection::vec((0u32..50_000, any::<bool>()), 0..12), 1..30),
            capacity in 3usize..10,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut shard = write::Buffer::default();
            for sentence in &sentences {
                let mut text = Text::default();
                for (i, &(id, begins)) in sentence.iter().enumerate() {
                    text.ids.push(id);
                    text.starts.extend((begins || i == 0).then_some(i as u32));
                }
                shard.push(&text);
            }
            shard.write(&dir.path().join("00000.shard"), 2, [7; 32]).unwrap();
            let shards = Shards::open(dir.path(), &[7; 32]).unwrap();
            let documents = shards.documents(capacity);
            let texts: Vec<Vec<Text>> = documents.iter().map(|spans| spans.iter().map(|&s| shards.text(s)).collect()).collect();
            prop_assert!(texts.iter().flatten().all(|text| !text.ids.is_empty() && text.ids.len() <= capacity));
            let expected: Vec<Vec<u32>> = sentences
                .split(Vec::is_empty)
                .map(|document| document.iter().flatten().map(|&(id, _)| id).collect::<Vec<_>>())
                .filter(|document| !document.is_empty())
                .collect();
            let found: Vec<Vec<u32>> = texts.iter().map(|d| d.iter().flat_map(|t| t.ids.clone()).collect()).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
