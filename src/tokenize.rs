//! Text to token ids: sentences, units (syllables or words), pieces, and windows that fit the model.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use quick_cache::sync::Cache;

use crate::record::{Code, Reject, Stage};
use serde::{Deserialize, Serialize};

mod segment;

pub use segment::{sentences, syllables};
use segment::{trim, words_by_space};

/// What a model labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Words, which the input must carry: apart, or with `_` between the syllables of one.
    Word,
    /// Syllables and punctuation marks, found in raw text.
    Syllable,
}

/// A text cut up for a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Byte range of every unit in the text.
    pub units: Vec<Range<usize>>,
    /// Sentences, in order, covering all units.
    pub sentences: Vec<Sentence>,
    /// The inputs of the model, in order: one a sentence, more where a sentence is longer than the window.
    pub windows: Vec<Window>,
}

/// A sentence: what the model sees at a time, if it fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// Byte range in the text, without surrounding white space.
    pub range: Range<usize>,
    /// Its units, as a range of [`Tokens::units`].
    pub units: Range<usize>,
}

/// One input sequence of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Units in it, as a range of [`Tokens::units`].
    pub units: Range<usize>,
    /// The units whose labels count from this window: its middle where windows overlap.
    pub keep: Range<usize>,
    /// Token ids with the special ones at both ends.
    pub ids: Vec<u32>,
    /// Index in `ids` of the first piece of every unit.
    pub word_starts: Vec<u32>,
}

/// The tokenizer could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file is not a tokenizer.
    #[error("cannot load the tokenizer: {0}")]
    Load(String),
    /// A special token that every encoder needs is missing.
    #[error("the tokenizer has no {0} token")]
    SpecialToken(&'static str),
    /// The window holds nothing beside the special tokens.
    #[error("max_length {0} leaves no room for text: at least 8 tokens are needed")]
    Window(usize),
}

/// White space, in the pieces of SentencePiece.
const METASPACE: &str = "▁";

/// Marks that follow a word without white space.
const CLOSING: &str = ".,;:!?…%)]}”’»";

/// Units whose pieces are remembered: Vietnamese has some ten thousand syllables …
const KNOWN_UNITS: usize = 1 << 16;
/// … none of them nearly as long.
const KNOWN_BYTES: usize = 32;

/// Token ids of a unit.
type Pieces = Arc<[u32]>;

/// A Hugging Face tokenizer with the window of its model.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Pieces of units that came before: they do not depend on what stands beside a unit.
    known: Arc<Cache<Box<str>, Pieces>>,
    unit: Unit,
    begin: u32,
    end: u32,
    unknown: u32,
    /// The vocabulary marks where white space was by `▁`, as SentencePiece does.
    metaspace: bool,
    /// Pieces that fit between the special tokens.
    capacity: usize,
}

impl Tokenizer {
    /// Loads `tokenizer.json` for a model that reads up to `max_length` tokens, special ones included.
    ///
    /// # Errors
    /// When the file is not a tokenizer, lacks `[CLS]`, `[SEP]`, `[UNK]` (or `<s>`, `</s>`, `<unk>`), or the
    /// window is too small.
    pub fn from_file(path: &Path, unit: Unit, max_length: usize) -> Result<Self, TokenizerError> {
        let inner = tokenizers::Tokenizer::from_file(path).map_err(|e| TokenizerError::Load(e.to_string()))?;
        Self::new(inner, unit, max_length)
    }

    /// As [`Tokenizer::from_file`], from a tokenizer at hand.
    ///
    /// # Errors
    /// As [`Tokenizer::from_file`].
    pub fn new(mut inner: tokenizers::Tokenizer, unit: Unit, max_length: usize) -> Result<Self, TokenizerError> {
        if max_length < 8 {
            return Err(TokenizerError::Window(max_length));
        }
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| TokenizerError::Load(e.to_string()))?;
        let special = |bert: &'static str, roberta: &str| {
            let id = inner.token_to_id(bert).or_else(|| inner.token_to_id(roberta));
            id.ok_or(TokenizerError::SpecialToken(bert))
        };
        let (begin, end) = (special("[CLS]", "<s>")?, special("[SEP]", "</s>")?);
        let unknown = special("[UNK]", "<unk>")?;
        let metaspace = inner.token_to_id(METASPACE).is_some();
        let known = Arc::new(Cache::new(KNOWN_UNITS));
        Ok(Self { inner, known, unit, begin, end, unknown, metaspace, capacity: max_length - 2 })
    }

    /// Number of pieces in the vocabulary.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id of the piece that stands for what the vocabulary lacks.
    pub fn unknown(&self) -> u32 {
        self.unknown
    }

    /// Id of the piece that fills up sequences, if the vocabulary has one. Packed graphs need none.
    pub fn padding(&self) -> Option<u32> {
        self.inner.token_to_id("[PAD]").or_else(|| self.inner.token_to_id("<pad>"))
    }

    /// What the model labels.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// Cuts `text` into sentences, units and windows. `words` are the byte ranges of the words, where the input
    /// gave them: one sentence then, whose units are the words themselves for [`Unit::Word`] and their syllables
    /// for [`Unit::Syllable`].
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn tokenize(&self, text: &str, words: Option<&[Range<usize>]>) -> Result<Tokens, Reject> {
        let mut tokens = Tokens { units: Vec::new(), sentences: Vec::new(), windows: Vec::new() };
        let ranges = match words {
            Some(_) => vec![trim(text, 0..text.len())],
            None => sentences(text),
        };
        for range in ranges {
            let first = tokens.units.len();
            match (self.unit, words) {
                (Unit::Word, Some(words)) => tokens.units.extend_from_slice(words),
                (Unit::Word, None) => tokens.units.extend(words_by_space(text, &range)),
                (Unit::Syllable, _) => tokens.units.extend(syllables(text, &range)),
            }
            let sentence = Sentence { range, units: first..tokens.units.len() };
            if !sentence.units.is_empty() {
                self.push_windows(text, &mut tokens, &sentence)?;
                tokens.sentences.push(sentence);
            }
        }
        Ok(tokens)
    }

    /// Cuts one sentence, given unit by unit, into windows; for training data, where units are known.
    ///
    /// # Errors
    /// When the tokenizer refuses a unit.
    pub fn windows(&self, units: &[&str]) -> Result<Vec<Window>, Reject> {
        let pieces = self.pieces(units)?;
        Ok(split(&pieces, self.capacity)
            .into_iter()
            .map(|(units, keep)| self.window(0, &pieces, units, keep))
            .collect())
    }

    fn push_windows(&self, text: &str, tokens: &mut Tokens, sentence: &Sentence) -> Result<(), Reject> {
        let units: Vec<&str> = tokens.units[sentence.units.clone()].iter().map(|unit| &text[unit.clone()]).collect();
        let pieces = self.pieces(&units)?;
        for (units, keep) in split(&pieces, self.capacity) {
            tokens.windows.push(self.window(sentence.units.start, &pieces, units, keep));
        }
        Ok(())
    }

    /// The pieces of every unit: at least one (the unknown piece where the tokenizer leaves none), at most what a
    /// window holds.
    fn pieces(&self, units: &[&str]) -> Result<Vec<Pieces>, Reject> {
        let mut pieces: Vec<Option<Pieces>> = units.iter().map(|&unit| self.known.get(unit)).collect();
        let places: Vec<usize> = (0..units.len()).filter(|&place| pieces[place].is_none()).collect();
        let new: Vec<&str> = places.iter().map(|&place| units[place]).collect();
        if !new.is_empty() {
            for ((place, unit), made) in places.into_iter().zip(&new).zip(self.encode(&new)?) {
                let made = Pieces::from(made);
                if unit.len() <= KNOWN_BYTES {
                    self.known.insert((*unit).into(), made.clone());
                }
                pieces[place] = Some(made);
            }
        }
        Ok(pieces.into_iter().flatten().collect())
    }

    fn encode(&self, units: &[&str]) -> Result<Vec<Vec<u32>>, Reject> {
        let words: Vec<String> = match self.unit {
            Unit::Word => units.iter().map(|unit| unit.replace('_', " ")).collect(),
            Unit::Syllable => units.iter().map(|&unit| unit.to_owned()).collect(),
        };
        // Not `encode_fast`: it leaves out which word a piece belongs to.
        let encoding = self
            .inner
            .encode(words, false)
            .map_err(|e| Reject::new(Stage::Tokenize, Code::TokenizerFailed, e.to_string()))?;
        let mut pieces = vec![Vec::new(); units.len()];
        for (id, word) in encoding.get_ids().iter().zip(encoding.get_word_ids()) {
            if let Some(word) = word {
                pieces[*word as usize].push(*id);
            }
        }
        for (unit, text) in pieces.iter_mut().zip(units) {
            if self.metaspace && text.chars().all(|c| CLOSING.contains(c)) {
                self.join(unit);
            }
            unit.truncate(self.capacity);
            if unit.is_empty() {
                unit.push(self.unknown);
            }
        }
        Ok(pieces)
    }

    /// Takes the `▁` off the first of the pieces. The tokenizer puts it before every unit, but text has no white space
    /// before these marks, and nor had the text that the vocabulary was made for.
    fn join(&self, pieces: &mut Vec<u32>) {
        let token = pieces.first().and_then(|&first| self.inner.id_to_token(first));
        match token.as_deref().and_then(|token| token.strip_prefix(METASPACE)) {
            Some("") if pieces.len() > 1 => drop(pieces.remove(0)),
            Some(rest) => pieces[0] = self.inner.token_to_id(rest).unwrap_or(pieces[0]),
            None => {}
        }
    }

    fn window(&self, offset: usize, pieces: &[Pieces], units: Range<usize>, keep: Range<usize>) -> Window {
        let mut ids = vec![self.begin];
        let mut word_starts = Vec::with_capacity(units.len());
        for unit in &pieces[units.clone()] {
            word_starts.push(ids.len() as u32);
            ids.extend_from_slice(unit);
        }
        ids.push(self.end);
        let shift = |range: Range<usize>| range.start + offset..range.end + offset;
        Window { units: shift(units), keep: shift(keep), ids, word_starts }
    }
}

/// Splits units into windows of at most `capacity` pieces. Neighbours share about a quarter of a window, and each
/// unit counts where it has the most context on both sides. Returns (units, kept units) of each window.
fn split(pieces: &[Pieces], capacity: usize) -> Vec<(Range<usize>, Range<usize>)> {
    let overlap = capacity / 4;
    let mut windows: Vec<(Range<usize>, Range<usize>)> = Vec::new();
    let mut start = 0;
    while start < pieces.len() {
        let end = start + fitting(pieces[start..].iter(), capacity).max(1);
        windows.push((start..end, start..end));
        if end == pieces.len() {
            break;
        }
        let back = fitting(pieces[start + 1..end].iter().rev(), overlap);
        start = end - back;
    }
    for i in 1..windows.len() {
        let shared = windows[i].0.start..windows[i - 1].0.end;
        let middle = (shared.start + shared.len() / 2).max(windows[i - 1].1.start);
        windows[i - 1].1.end = middle;
        windows[i].1.start = middle;
    }
    windows
}

/// How many of the first units fit into `capacity` pieces.
fn fitting<'a>(units: impl Iterator<Item = &'a Pieces>, capacity: usize) -> usize {
    let total = units.scan(0, |sum, unit| {
        *sum += unit.len();
        Some(*sum)
    });
    total.take_while(|&sum| sum <= capacity).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every letter is a piece of its own; other characters are unknown.
    fn letters(unit: Unit, max_length: usize) -> Tokenizer {
        let mut vocab = vec!["[PAD]".to_owned(), "[UNK]".to_owned(), "[CLS]".to_owned(), "[SEP]".to_owned()];
        for c in ('a'..='z').chain('A'..='Z').chain("đàáảãạêôơưếộ".chars()) {
            vocab.push(c.to_string());
            vocab.push(format!("##{c}"));
        }
        let vocab: serde_json::Map<_, _> = vocab.into_iter().enumerate().map(|(i, p)| (p, i.into())).collect();
        let json = serde_json::json!({
            "version": "1.0", "added_tokens": [], "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "normalizer": {"type": "NFC"},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100, "vocab": vocab},
        });
        let inner = json.to_string().parse().unwrap();
        Tokenizer::new(inner, unit, max_length).unwrap()
    }

    fn parts<'t>(text: &'t str, ranges: &[Range<usize>]) -> Vec<&'t str> {
        ranges.iter().map(|range| &text[range.clone()]).collect()
    }

    #[test]
    fn every_unit_has_its_own_pieces() {
        let tokenizer = letters(Unit::Syllable, 64);
        let id = |piece: &str| tokenizer.inner.token_to_id(piece).unwrap();
        let tokens = tokenizer.tokenize("ba đi, ô", None).unwrap();
        let expected = [id("[CLS]"), id("b"), id("##a"), id("đ"), id("##i"), id("[UNK]"), id("ô"), id("[SEP]")];
        assert_eq!(
            (&tokens.windows[0].ids[..], &tokens.windows[0].word_starts[..]),
            (&expected[..], &[1, 3, 5, 6][..])
        );
    }

    /// As SentencePiece makes them: `▁` before every word, special tokens as in RoBERTa.
    fn unigram(max_length: usize) -> Tokenizer {
        let special = ["<s>", "<pad>", "</s>", "<unk>"];
        let scored = [
            ("▁", -3.0),
            ("▁Hà", -6.0),
            ("▁N", -7.0),
            ("ội", -7.0),
            (",", -4.0),
            (".", -4.0),
            ("▁.", -5.0),
            ("(", -6.0),
        ];
        let vocab: Vec<_> = special.map(|piece| (piece, 0.0)).into_iter().chain(scored).collect();
        let added: Vec<_> = special.iter().enumerate().map(|(id, token)| {
            serde_json::json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
        }).collect();
        let json = serde_json::json!({
            "version": "1.0", "added_tokens": added, "normalizer": null, "post_processor": null, "decoder": null,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
            "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": false},
        });
        Tokenizer::new(json.to_string().parse().unwrap(), Unit::Syllable, max_length).unwrap()
    }

    #[test]
    fn units_of_a_sentencepiece_vocabulary_are_cut_as_in_running_text() {
        let tokenizer = unigram(64);
        let text = "Hà Nội, Hà (Nội).";
        let tokens = tokenizer.tokenize(text, None).unwrap();
        let window = &tokens.windows[0];
        let piece = |id: &u32| tokenizer.inner.id_to_token(*id).unwrap();
        let pieces: Vec<String> = window.ids.iter().map(piece).collect();
        let expected = ["<s>", "▁Hà", "▁N", "ội", ",", "▁Hà", "▁", "(", "▁N", "ội", "<unk>", ".", "</s>"];
        assert_eq!(pieces, expected);
        assert_eq!(window.word_starts, [1, 2, 4, 5, 6, 8, 10, 11]);
        assert_eq!((tokenizer.unknown(), tokenizer.padding()), (3, Some(1)));
    }

    #[test]
    fn given_words_are_the_units() {
        let text = "bác_sĩ Hoa";
        let words = [0..text.find(' ').unwrap(), text.len() - 3..text.len()];
        let tokens = letters(Unit::Word, 64).tokenize(text, Some(&words)).unwrap();
        assert_eq!(parts(text, &tokens.units), ["bác_sĩ", "Hoa"]);
        assert_eq!(tokens.windows.len(), 1);
    }

    proptest! {
        #[test]
        fn units_lie_in_order_inside_their_sentences_and_cover_the_text(text in "\\PC{0,80}[ .!\n]{0,3}[a-zà-ỹ _.]{0,40}\u{301}?") {
            let tokens = letters(Unit::Syllable, 16).tokenize(&text, None).unwrap();
            let mut at = 0;
            for unit in &tokens.units {
                prop_assert!(unit.start >= at && unit.end > unit.start);
                let gap = text[at..unit.start].trim();
                prop_assert!(gap.is_empty() || gap.chars().all(|c| c == '_'), "lost {gap:?}");
                at = unit.end;
            }
            let rest = text[at..].trim();
            prop_assert!(rest.is_empty() || rest.chars().all(|c| c == '_'), "lost {rest:?}");
            for sentence in &tokens.sentences {
                for unit in &tokens.units[sentence.units.clone()] {
                    prop_assert!(sentence.range.start <= unit.start && unit.end <= sentence.range.end);
                }
            }
        }

        #[test]
        fn what_is_remembered_of_a_unit_is_what_the_tokenizer_says(texts in prop::collection::vec("[a-dà-ỹ., ]{0,40}", 1..6)) {
            let lasting = letters(Unit::Syllable, 16);
            for text in texts {
                let fresh = letters(Unit::Syllable, 16);
                prop_assert_eq!(lasting.tokenize(&text, None).unwrap(), fresh.tokenize(&text, None).unwrap());
            }
        }

        #[test]
        fn every_unit_counts_in_exactly_one_window_that_fits(lengths in prop::collection::vec(1usize..9, 1..60), max in 8usize..24) {
            let text = lengths.iter().map(|&n| "a".repeat(n)).collect::<Vec<_>>().join(" ");
            let tokens = letters(Unit::Syllable, max).tokenize(&text, None).unwrap();
            let kept: Vec<usize> = tokens.windows.iter().flat_map(|w| w.keep.clone()).collect();
            prop_assert_eq!(kept, (0..tokens.units.len()).collect::<Vec<_>>());
            for window in &tokens.windows {
                prop_assert!(window.ids.len() <= max);
                prop_assert!(window.units.start <= window.keep.start && window.keep.end <= window.units.end);
                prop_assert_eq!(window.word_starts.len(), window.units.len());
                prop_assert!(window.word_starts.windows(2).all(|w| w[0] < w[1]));
            }
        }
    }
}
