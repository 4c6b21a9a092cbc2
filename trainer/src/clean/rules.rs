//! What a line gives: its sentences in normal form, and why one is not kept.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Serialize;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;
use vitag::tokenize;

/// Small letters of Vietnamese beyond those of ASCII, in the order of their code points.
const LETTERS: [char; 67] = [
    'à', 'á', 'â', 'ã', 'è', 'é', 'ê', 'ì', 'í', 'ò', 'ó', 'ô', 'õ', 'ù', 'ú', 'ý', 'ă', 'đ', 'ĩ', 'ũ', 'ơ', 'ư', 'ạ',
    'ả', 'ấ', 'ầ', 'ẩ', 'ẫ', 'ậ', 'ắ', 'ằ', 'ẳ', 'ẵ', 'ặ', 'ẹ', 'ẻ', 'ẽ', 'ế', 'ề', 'ể', 'ễ', 'ệ', 'ỉ', 'ị', 'ọ', 'ỏ',
    'ố', 'ồ', 'ổ', 'ỗ', 'ộ', 'ớ', 'ờ', 'ở', 'ỡ', 'ợ', 'ụ', 'ủ', 'ứ', 'ừ', 'ử', 'ữ', 'ự', 'ỳ', 'ỵ', 'ỷ', 'ỹ',
];

/// Which sentences are kept.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rules {
    /// Fewest words: parts between white space that hold a letter.
    pub min_words: usize,
    /// Greatest share of a sentence's letters that are not [Vietnamese](is_vietnamese).
    pub max_foreign: f64,
}

/// What is to be done with a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    Short,
    Foreign,
}

impl Rules {
    pub(super) fn judge(&self, sentence: &str) -> Verdict {
        if sentence.split(' ').filter(|word| word.contains(char::is_alphabetic)).count() < self.min_words {
            return Verdict::Short;
        }
        let (mut letters, mut foreign) = (0_u32, 0_u32);
        for c in sentence.chars().filter(|&c| is_letter(c)) {
            letters += 1;
            foreign += u32::from(!is_vietnamese(c));
        }
        if f64::from(foreign) > self.max_foreign * f64::from(letters) { Verdict::Foreign } else { Verdict::Keep }
    }
}

/// A mark that stands by itself after NFC belongs to a letter of another language.
fn is_letter(c: char) -> bool {
    c.is_alphabetic() || (!c.is_ascii() && is_combining_mark(c))
}

/// Whether a letter, in NFC, is one of Vietnamese with or without a tone, or one of the Latin letters (f, j, w, z) that
/// names and loans bring along.
pub fn is_vietnamese(letter: char) -> bool {
    letter.is_ascii_alphabetic()
        || letter.to_lowercase().next().is_some_and(|small| LETTERS.binary_search(&small).is_ok())
}

/// The sentences of a line: NFC, without control characters and characters of no width, one space between words.
pub(super) fn sentences(line: &str) -> Vec<String> {
    let line = normal(line);
    let words = |sentence: &str| sentence.split_whitespace().collect::<Vec<_>>().join(" ");
    tokenize::sentences(&line).into_iter().map(|range| words(&line[range])).collect()
}

fn normal(line: &str) -> Cow<'_, str> {
    let clean: Cow<str> = if line.contains(is_noise) {
        let kept = line.chars().filter(|&c| !is_invisible(c));
        kept.map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().into()
    } else {
        line.into()
    };
    if unicode_normalization::is_nfc(&clean) { clean } else { clean.nfc().collect::<String>().into() }
}

fn is_noise(c: char) -> bool {
    c.is_control() || is_invisible(c)
}

/// Soft hyphen, zero-width space, word joiner, byte-order mark.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}' | '\u{2060}' | '\u{feff}')
}

/// Two different sentences of n share a hash with a probability of about n² / 2⁶⁵: 1 % for 600 million.
pub(super) fn hash(sentence: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    sentence.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { min_words: 4, max_foreign: 0.05 };

    #[test]
    fn the_letters_are_sorted_and_composed() {
        assert!(LETTERS.is_sorted());
        assert!(LETTERS.iter().all(|&c| unicode_normalization::is_nfc(c.encode_utf8(&mut [0; 4]))));
        assert!("ABCĐƯỚẴjwfz".chars().all(is_vietnamese));
        assert!(!"üñçßæдあ孔ǎ".chars().any(is_vietnamese));
    }

    #[test]
    fn a_line_becomes_composed_sentences_with_single_spaces() {
        let line = "\u{feff}Ha\u{300} No\u{323}\u{302}i  mưa\u{a0}to. \u{7}Đường\tngập!";
        assert_eq!(sentences(line), ["Hà Nội mưa to.", "Đường ngập!"]);
    }

    #[test]
    fn words_hold_a_letter() {
        assert_eq!(RULES.judge("Giá : 1 200 đồng -"), Verdict::Short);
        assert_eq!(RULES.judge("Giá vé 1 đồng rẻ"), Verdict::Keep);
    }

    #[test]
    fn foreign_letters_count_against_the_tolerance() {
        let sentence = "Ông Müller ăn cơm trưa với bạn"; // 1 of 23 letters
        assert_eq!(RULES.judge(sentence), Verdict::Keep);
        assert_eq!(Rules { max_foreign: 0.0, ..RULES }.judge(sentence), Verdict::Foreign);
        assert_eq!(RULES.judge("Thầy Khổng Tử 孔子 nói"), Verdict::Foreign);
        assert_eq!(RULES.judge("Ha\u{30c} Noi mua to"), Verdict::Foreign);
    }
}
