//! Which sequence is learnt from when, with which words masked: a function of the seed and the step alone, so that a run
//! can go on anywhere.

use anyhow::{Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use vitag::pack::Packed;
use vitag::tokenize::Window;

use super::config::HeldOut;
use super::seed;
use crate::masking::{Masking, Pieces};
use crate::shards::{Shards, Span};

/// A tokenised corpus, cut into sequences and parted.
#[derive(Debug)]
pub struct Corpus {
    shards: Shards,
    pieces: Pieces,
    masking: Masking,
    train: Vec<Span>,
    held_out: Vec<Span>,
}

/// A batch of masked sequences: T tokens of which M are masked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The sequences as the model sees them.
    pub packed: Packed,
    /// Row in T of every masked token, \[M\].
    pub rows: Vec<i64>,
    /// The ids that stood there, \[M\].
    pub originals: Vec<i64>,
}

/// The order of the training data, of the epoch that was asked for last.
#[derive(Debug, Default)]
pub(super) struct Order {
    epoch: Option<u64>,
    order: Vec<u32>,
}

impl Corpus {
    /// Parts a corpus into sequences of at most `length` tokens; a share of its documents is held out, evenly spread.
    ///
    /// # Errors
    /// When there are too few documents to hold some out.
    pub fn new(shards: Shards, pieces: Pieces, masking: Masking, length: usize, held_out: HeldOut) -> Result<Self> {
        let documents = shards.documents(length - 2);
        let stride = ((1.0 / held_out.share).round() as usize).min(documents.len());
        ensure!(stride > 1, "the corpus has {} documents, at least 2 are needed to hold some out", documents.len());
        let part = |held: bool| -> Vec<Span> {
            let of_part = documents.iter().enumerate().filter(|(i, _)| (i % stride == stride - 1) == held);
            of_part.flat_map(|(_, spans)| spans.iter().copied()).collect()
        };
        let (train, rest) = (part(false), part(true));
        let count = held_out.sequences.min(rest.len());
        let held_out = (0..count).map(|i| rest[i * rest.len() / count]).collect();
        Ok(Self { shards, pieces, masking, train, held_out })
    }

    /// Sequences to train on.
    pub fn sequences(&self) -> usize {
        self.train.len()
    }

    /// Tokens in all.
    pub fn tokens(&self) -> u64 {
        self.shards.tokens()
    }

    /// The batch of this number, counted over all epochs.
    pub(super) fn batch(&self, number: u64, size: usize, run_seed: u64, order: &mut Order) -> Example {
        let count = self.train.len() as u64;
        let place = |i: usize| {
            let place = number * size as u64 + i as u64;
            (place / count, (place % count) as usize)
        };
        let spans: Vec<Span> = (0..size)
            .map(place)
            .map(|(epoch, i)| self.train[order.of(epoch, self.train.len(), run_seed)[i] as usize])
            .collect();
        self.example(&spans, &mut StdRng::seed_from_u64(seed::of(run_seed, seed::MASKS, number)))
    }

    /// The held-out sequences in batches, with masks that are the same in every run on this corpus.
    pub fn held_out(&self, size: usize) -> Vec<Example> {
        let batches = self.held_out.chunks(size).enumerate();
        batches.map(|(i, spans)| self.example(spans, &mut StdRng::seed_from_u64(i as u64))).collect()
    }

    fn example(&self, spans: &[Span], rng: &mut StdRng) -> Example {
        let masked: Vec<_> = spans.iter().map(|&s| self.masking.apply(self.window(s), &self.pieces, rng)).collect();
        let packed = Packed::new(masked.iter().map(|sequence| &sequence.window));
        let (mut rows, mut originals, mut first) = (Vec::new(), Vec::new(), 0);
        for sequence in &masked {
            rows.extend(sequence.positions.iter().map(|&position| first + i64::from(position)));
            originals.extend(sequence.originals.iter().map(|&id| i64::from(id)));
            first += sequence.window.ids.len() as i64;
        }
        Example { packed, rows, originals }
    }

    fn window(&self, span: Span) -> Window {
        let text = self.shards.text(span);
        let ids = [self.pieces.begin].into_iter().chain(text.ids).chain([self.pieces.end]).collect();
        let word_starts: Vec<u32> = text.starts.iter().map(|start| start + 1).collect();
        let units = 0..word_starts.len();
        Window { keep: units.clone(), units, ids, word_starts }
    }
}

impl Order {
    fn of(&mut self, epoch: u64, sequences: usize, run_seed: u64) -> &[u32] {
        if self.epoch != Some(epoch) {
            self.order = (0..sequences as u32).collect();
            self.order.shuffle(&mut StdRng::seed_from_u64(seed::of(run_seed, seed::ORDER, epoch)));
            self.epoch = Some(epoch);
        }
        &self.order
    }
}
