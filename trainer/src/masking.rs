//! Whole-word masking (§2.1.1 of the paper): the words of a sequence that a model has to fill in.
//!
//! A word is what the tokenizer was given as one: a syllable or a punctuation mark, in one or several pieces. Words are
//! drawn until the share of tokens is reached, and a word is masked with all of its pieces or not at all. What stands
//! in the place of each of its tokens is drawn token by token, as in BERT.

use anyhow::{Context, Result};
use rand::Rng;
use rand::seq::SliceRandom;
use vitag::tokenize::Window;

/// What is masked, and by what.
#[derive(Clone, Copy, Debug)]
pub struct Masking {
    /// Share of the tokens of a sequence that are chosen.
    pub share: f64,
    /// Of those, the share that `[MASK]` replaces.
    pub mask: f64,
    /// And the share that a piece drawn from the whole vocabulary replaces; the rest stay as they are.
    pub random: f64,
}

impl Masking {
    /// As the paper has it: 15 %, of which 80 % are masked, 10 % random and 10 % kept.
    pub const BERT: Self = Self { share: 0.15, mask: 0.8, random: 0.1 };
    /// For the generator of ELECTRA: 85 % are masked and 15 % kept, as in the code that its authors published. Where every
    /// chosen token is masked, nothing asks a small generator to keep track of what stands where, and it stays for
    /// thousands of steps at guessing by frequency.
    pub const ELECTRA: Self = Self { share: 0.15, mask: 0.85, random: 0.0 };
}

/// The pieces of a vocabulary that are not text.
#[derive(Clone, Debug)]
pub struct Pieces {
    /// Begins a sequence.
    pub begin: u32,
    /// Ends it.
    pub end: u32,
    /// Hides a token.
    pub mask: u32,
    /// All others.
    ordinary: Vec<u32>,
}

/// A sequence with some of its words masked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masked {
    /// The sequence as the model sees it.
    pub window: Window,
    /// Index of every chosen token, in order.
    pub positions: Vec<u32>,
    /// Its id before.
    pub originals: Vec<u32>,
}

impl Pieces {
    /// Finds them in a tokenizer.
    ///
    /// # Errors
    /// When one is missing.
    pub fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Self> {
        let special = |bert: &str, roberta: &str| {
            let id = tokenizer.token_to_id(bert).or_else(|| tokenizer.token_to_id(roberta));
            id.with_context(|| format!("the tokenizer has no {bert} token"))
        };
        let (begin, end, mask) = (special("[CLS]", "<s>")?, special("[SEP]", "</s>")?, special("[MASK]", "<mask>")?);
        let mut others: Vec<u32> = tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| id)
            .collect();
        others.extend([begin, end, mask]);
        others.extend(["[PAD]", "<pad>", "[UNK]", "<unk>"].iter().filter_map(|token| tokenizer.token_to_id(token)));
        let ordinary = (0..tokenizer.get_vocab_size(true) as u32).filter(|id| !others.contains(id)).collect();
        Ok(Self { begin, end, mask, ordinary })
    }
}

impl Masking {
    /// Masks words of `window`, whose first and last tokens are special and never chosen.
    pub fn apply(&self, window: Window, pieces: &Pieces, rng: &mut impl Rng) -> Masked {
        let positions = self.choose(&window, rng);
        let mut masked = Masked { window, originals: Vec::with_capacity(positions.len()), positions };
        for &position in &masked.positions {
            let id = &mut masked.window.ids[position as usize];
            masked.originals.push(*id);
            let draw: f64 = rng.random();
            if draw < self.mask {
                *id = pieces.mask;
            } else if draw < self.mask + self.random {
                *id = pieces.ordinary[rng.random_range(0..pieces.ordinary.len())];
            }
        }
        masked
    }

    /// The tokens of words drawn until the share is reached; a word that would go past it is left out, but at least
    /// one is chosen.
    fn choose(&self, window: &Window, rng: &mut impl Rng) -> Vec<u32> {
        let last = window.ids.len() as u32 - 1;
        let ends = window.word_starts.iter().skip(1).copied().chain([last]);
        let mut words: Vec<_> = window.word_starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect();
        words.shuffle(rng);
        let target = (f64::from(last - 1) * self.share).round().max(1.0) as usize;
        let mut chosen: Vec<u32> = Vec::with_capacity(target);
        for word in words {
            if chosen.is_empty() || chosen.len() + word.len() <= target {
                chosen.extend(word);
            }
        }
        chosen.sort_unstable();
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    const PIECES: u32 = 1000;

    fn pieces() -> Pieces {
        Pieces { begin: 2, end: 3, mask: 4, ordinary: (5..PIECES).collect() }
    }

    /// Words of these lengths; every token has another id.
    fn window(words: &[u32]) -> Window {
        let starts: Vec<u32> = words.iter().scan(1, |at, length| Some(std::mem::replace(at, *at + length))).collect();
        let tokens: u32 = words.iter().sum();
        let ids = [2].into_iter().chain((0..tokens).map(|i| 10 + i)).chain([3]).collect();
        Window { units: 0..words.len(), keep: 0..words.len(), ids, word_starts: starts }
    }

    proptest! {
        #[test]
        fn whole_words_up_to_the_share_are_chosen(words in prop::collection::vec(1u32..5, 1..80), seed: u64) {
            let window = window(&words);
            let masked = Masking::BERT.apply(window.clone(), &pieces(), &mut StdRng::seed_from_u64(seed));
            let tokens = window.ids.len() - 2;
            let target = ((tokens as f64 * 0.15).round() as usize).max(1);
            let longest = *words.iter().max().unwrap() as usize;
            prop_assert!(!masked.positions.is_empty() && masked.positions.len() <= target.max(longest));
            if words.iter().all(|&length| length == 1) {
                prop_assert_eq!(masked.positions.len(), target);
            }
            for (&start, length) in window.word_starts.iter().zip(&words) {
                let chosen = (start..start + length).filter(|i| masked.positions.contains(i)).count();
                prop_assert!(chosen == 0 || chosen == *length as usize, "a part of a word");
            }
            for (position, id) in window.ids.iter().enumerate() {
                match masked.positions.iter().position(|&p| p as usize == position) {
                    Some(i) => prop_assert_eq!(masked.originals[i], *id),
                    None => prop_assert_eq!(masked.window.ids[position], *id),
                }
            }
            prop_assert_eq!(&masked.window.word_starts, &window.word_starts);
        }
    }

    /// Shares of [MASK], of other pieces and of kept tokens among the chosen, and of the chosen among all.
    fn shares(masking: Masking) -> [f64; 4] {
        let mut rng = StdRng::seed_from_u64(1);
        let words: Vec<u32> = (0..60).map(|i| 1 + i % 3).collect();
        let window = window(&words);
        let (mut masks, mut others, mut kept, mut tokens) = (0.0, 0.0, 0.0, 0.0);
        for _ in 0..2000 {
            let masked = masking.apply(window.clone(), &pieces(), &mut rng);
            for (&position, &original) in masked.positions.iter().zip(&masked.originals) {
                match masked.window.ids[position as usize] {
                    4 => masks += 1.0,
                    id if id == original => kept += 1.0,
                    _ => others += 1.0,
                }
            }
            tokens += (window.ids.len() - 2) as f64;
        }
        let chosen: f64 = masks + others + kept;
        [masks / chosen, others / chosen, kept / chosen, chosen / tokens]
    }

    #[test]
    fn eighty_ten_and_ten_percent_of_fifteen_for_bert() {
        // 36,000 draws: five standard deviations are 0.011 of 0.8 and 0.008 of 0.1.
        let [masks, others, kept, chosen] = shares(Masking::BERT);
        assert!((masks - 0.8).abs() < 0.011, "{masks}");
        assert!((others - 0.1).abs() < 0.008, "{others}");
        assert!((kept - 0.1).abs() < 0.008, "{kept}");
        assert!((chosen - 0.15).abs() < 0.005, "{chosen}");
    }

    #[test]
    fn eighty_five_percent_of_fifteen_for_electra() {
        // 36,000 draws: five standard deviations are 0.0094 of 0.85.
        let [masks, others, kept, chosen] = shares(Masking::ELECTRA);
        assert!((masks - 0.85).abs() < 0.0094, "{masks}");
        assert!(others == 0.0 && (kept + masks - 1.0).abs() < 1e-9);
        assert!((chosen - 0.15).abs() < 0.005, "{chosen}");
    }

    #[test]
    fn every_word_is_chosen_as_often() {
        let (mut rng, window) = (StdRng::seed_from_u64(1), window(&[1; 40]));
        let mut counts = [0; 40];
        for _ in 0..4000 {
            Masking::BERT
                .apply(window.clone(), &pieces(), &mut rng)
                .positions
                .iter()
                .for_each(|&p| counts[p as usize - 1] += 1);
        }
        // 600 expected of 4,000 at 0.15: five standard deviations are 113.
        assert!(counts.iter().all(|&count: &i32| (count - 600).abs() < 113), "{counts:?}");
    }
}
