//! Text to sentences, syllables and words, by the boundaries of Unicode.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

/// Sentences of a text, as byte ranges without surrounding white space: the sentence boundaries of Unicode (UAX #29),
/// except after an abbreviation or an initial.
pub fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut open = false;
    for (start, piece) in text.split_sentence_bound_indices() {
        let end = start + piece.len();
        match ranges.last_mut() {
            Some(last) if open => last.end = end,
            _ => ranges.push(start..end),
        }
        open = ends_in_abbreviation(piece);
    }
    ranges.into_iter().map(|range| trim(text, range)).filter(|range| !range.is_empty()).collect()
}

/// Titles and place words that Vietnamese writes with a full stop before the name.
const ABBREVIATIONS: &[&str] = &[
    "TP", "Tp", "tp", "TX", "Tx", "TT", "Q", "P", "H", "Đ", "GS", "PGS", "TS", "ThS", "Ths", "BS", "Bs", "KS", "CN",
    "LS", "NSND", "NSƯT", "Mr", "Mrs", "Ms", "Dr", "St", "tr", "Tr", "No", "vs",
];

fn ends_in_abbreviation(sentence: &str) -> bool {
    if sentence.ends_with(['\n', '\r', '\u{2029}', '\u{85}']) {
        return false;
    }
    let Some(rest) = sentence.trim_end().strip_suffix('.') else {
        return false;
    };
    let word = rest.rsplit(|c: char| c.is_whitespace() || c == '.' || c == '(').next().unwrap_or(rest);
    ABBREVIATIONS.contains(&word)
}

/// Syllables and punctuation marks of `text[range]`, as byte ranges in `text`: the word boundaries of Unicode
/// (UAX #29; Vietnamese puts a space between syllables), white space left out.
pub fn syllables(text: &str, range: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let offset = range.start;
    text[range.clone()].split_word_bound_indices().flat_map(move |(start, piece)| {
        let start = start + offset;
        // `_` joins letters in UAX #29; in Vietnamese corpora it joins the syllables of a word.
        let parts = piece.split_inclusive('_').scan(start, |at, part| {
            let from = *at;
            *at += part.len();
            let part_end = if part.len() > 1 { part.trim_end_matches('_').len() } else { part.len() };
            Some((from..from + part_end, part))
        });
        parts.filter(|(_, part)| !part.trim().is_empty()).map(|(range, _)| range).collect::<Vec<_>>()
    })
}

pub(super) fn words_by_space(text: &str, range: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let base = text.as_ptr() as usize;
    text[range.clone()].split_whitespace().map(move |word| {
        let start = word.as_ptr() as usize - base;
        start..start + word.len()
    })
}

pub(super) fn trim(text: &str, range: Range<usize>) -> Range<usize> {
    let part = &text[range.clone()];
    let start = range.start + (part.len() - part.trim_start().len());
    start..start + part.trim().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<'t>(text: &'t str, ranges: &[Range<usize>]) -> Vec<&'t str> {
        ranges.iter().map(|range| &text[range.clone()]).collect()
    }

    #[test]
    fn sentences_end_at_stops_but_not_after_titles() {
        let text = "TP. Huế mưa. GS. Lê Văn An (TP. Vinh) nói: “Tốt!” Giá 1.200.000 đồng\r\nHết";
        let expected = ["TP. Huế mưa.", "GS. Lê Văn An (TP. Vinh) nói: “Tốt!”", "Giá 1.200.000 đồng", "Hết"];
        assert_eq!(parts(text, &sentences(text)), expected);
    }

    #[test]
    fn syllables_are_letters_numbers_and_marks() {
        let text = "Bác_sĩ Hóa, 3,5% ở TP.HCM 👍🏽!";
        let found: Vec<_> = syllables(text, &(0..text.len())).collect();
        assert_eq!(parts(text, &found), ["Bác", "sĩ", "Hóa", ",", "3,5", "%", "ở", "TP.HCM", "👍🏽", "!"]);
    }

    #[test]
    fn a_lone_underscore_is_a_unit() {
        let text = "_ a__b _c";
        let found: Vec<_> = syllables(text, &(0..text.len())).collect();
        assert_eq!(parts(text, &found), ["_", "a", "_", "b", "_", "c"]);
    }
}
