//! The documents of a bench: what they are cut from, and how long they are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::demo::ARTICLES;

/// How long the documents are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mix {
    /// Whole articles, as the source has them.
    #[default]
    Articles,
    /// A sentence each.
    Sentences,
    /// Sequences of 1 to 200 words, one of n words as often as 1 / n.
    Zipf,
    /// Sequences of 8 words.
    Short,
    /// Sequences of 150 words.
    Long,
    /// Among a thousand sequences of 8 words, a document of 20,000.
    Huge,
}

const ZIPF_WORDS: usize = 200;
const SHORT_WORDS: usize = 8;
const LONG_WORDS: usize = 150;
const HUGE_WORDS: usize = 20_000;
const HUGE_EVERY: usize = 1_000;
/// Different documents of a mix that is drawn; they repeat after that.
const DRAWN: usize = 4_000;
/// Most bytes that are read of texts: enough for any run.
const MOST_BYTES: usize = 64 << 20;
const SEED: u64 = 5;

/// The texts of a mix, those of the demo or of `source`: a file, or a folder of `.txt` files. In a file, blank lines
/// separate articles; in one without any, each line is an article. None is longer than `max_bytes`.
///
/// # Errors
/// When the source cannot be read or holds no text.
pub fn texts(mix: Mix, source: Option<&Path>, max_bytes: usize) -> io::Result<Vec<String>> {
    let mut articles = match source {
        None => demo(),
        Some(path) => read(path)?,
    };
    articles.retain(|article| article.len() <= max_bytes);
    let texts = match mix {
        Mix::Articles => articles,
        Mix::Sentences => sentences(&articles),
        _ => drawn(mix, &mut Words::of(&articles)),
    };
    if texts.iter().all(|text| text.trim().is_empty()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "there is no text in it"));
    }
    Ok(texts)
}

/// A document for each text, as messages: JSON with `id` and `text`.
pub fn documents(texts: &[String], count: usize) -> Vec<String> {
    let cycled = texts.iter().cycle().take(count).enumerate();
    cycled.map(|(id, text)| json!({ "id": id, "text": text }).to_string()).collect()
}

fn demo() -> Vec<String> {
    let text = |line| serde_json::from_str::<Value>(line).ok()?["text"].as_str().map(str::to_owned);
    ARTICLES.lines().filter_map(text).collect()
}

fn read(path: &Path) -> io::Result<Vec<String>> {
    let mut articles = Vec::new();
    let mut left = MOST_BYTES;
    for file in files(path)? {
        let content =
            fs::read_to_string(&file).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", file.display())))?;
        let separator = if content.contains("\n\n") { "\n\n" } else { "\n" };
        let whole = content.split(separator).map(str::trim).filter(|article| !article.is_empty());
        articles.extend(whole.map_while(|article| {
            left = left.checked_sub(article.len())?;
            Some(article.to_owned())
        }));
    }
    Ok(articles)
}

fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    Ok(files)
}

/// The sentences of articles, ended by a line or by a mark before a space.
fn sentences(articles: &[String]) -> Vec<String> {
    let of_line = |line: &str| -> Vec<String> {
        let ends = line.match_indices(". ").chain(line.match_indices("? ")).chain(line.match_indices("! "));
        let mut cuts: Vec<usize> = ends.map(|(at, mark)| at + mark.len()).chain([0, line.len()]).collect();
        cuts.sort_unstable();
        let parts = cuts.windows(2).map(|cut| line[cut[0]..cut[1]].trim().to_owned());
        parts.filter(|part| !part.is_empty()).collect()
    };
    articles.iter().flat_map(|article| article.lines()).flat_map(of_line).collect()
}

fn drawn(mix: Mix, words: &mut Words) -> Vec<String> {
    let mut random = fastrand::Rng::with_seed(SEED);
    let harmonic: f64 = (1..=ZIPF_WORDS).map(|n| 1.0 / n as f64).sum();
    let mut zipf = || {
        let mut left = random.f64() * harmonic;
        let mut reached = |n: &usize| {
            left -= 1.0 / *n as f64;
            left <= 0.0
        };
        (1..ZIPF_WORDS).find(&mut reached).unwrap_or(ZIPF_WORDS)
    };
    let length = |number: usize| match mix {
        Mix::Long => LONG_WORDS,
        Mix::Zipf => zipf(),
        Mix::Huge if number % HUGE_EVERY == HUGE_EVERY / 2 => HUGE_WORDS,
        _ => SHORT_WORDS,
    };
    (0..DRAWN).map(length).map(|count| words.take(count)).collect()
}

/// The words of articles, again and again, without marks that end a sentence: what is cut from them is one sequence.
struct Words {
    words: Vec<String>,
    next: usize,
}

impl Words {
    fn of(articles: &[String]) -> Self {
        let is_mark = |c: char| !c.is_alphanumeric();
        let words = articles.iter().flat_map(|article| article.split_whitespace());
        let plain = |word: &&str| !word.is_empty() && word.chars().all(char::is_alphanumeric);
        let words = words.map(|word| word.trim_matches(is_mark)).filter(plain).map(str::to_owned).collect();
        Self { words, next: 0 }
    }

    fn take(&mut self, count: usize) -> String {
        let words = self.words.iter().cycle().skip(self.next).take(count);
        let text = words.map(String::as_str).collect::<Vec<_>>().join(" ");
        self.next = (self.next + count) % self.words.len().max(1);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(mix: Mix) -> Vec<usize> {
        texts(mix, None, usize::MAX).unwrap().iter().map(|text| text.split(' ').count()).collect()
    }

    #[test]
    fn lengths_are_those_of_the_mix() {
        assert!(lengths(Mix::Short).iter().all(|&n| n == SHORT_WORDS));
        assert!(lengths(Mix::Long).iter().all(|&n| n == LONG_WORDS));
        let huge = lengths(Mix::Huge);
        assert_eq!(huge.iter().filter(|&&n| n > SHORT_WORDS).count(), DRAWN / HUGE_EVERY);
        let zipf = lengths(Mix::Zipf);
        let share = |n: usize| zipf.iter().filter(|&&length| length == n).count() as f64 / zipf.len() as f64;
        // 1 / H(200) = 0.170.
        assert!((share(1) - 0.170).abs() < 0.03 && (share(2) - 0.085).abs() < 0.02, "{} {}", share(1), share(2));
        assert!(zipf.iter().all(|n| (1..=ZIPF_WORDS).contains(n)));
    }

    #[test]
    fn a_folder_gives_its_articles() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.txt"), "Bài một.\nDòng hai! Hết.\n\nBài hai.\n").unwrap();
        fs::write(folder.path().join("b.txt"), "Điều 1.\nĐiều 2.\n").unwrap();
        fs::write(folder.path().join("c.md"), "không đọc").unwrap();
        let of = |mix| texts(mix, Some(folder.path()), 1_000).unwrap();
        assert_eq!(of(Mix::Articles), ["Bài một.\nDòng hai! Hết.", "Bài hai.", "Điều 1.", "Điều 2."]);
        assert_eq!(of(Mix::Sentences)[..3], ["Bài một.", "Dòng hai!", "Hết."]);
        assert!(texts(Mix::Articles, Some(folder.path()), 3).is_err(), "none is short enough");
    }
}
