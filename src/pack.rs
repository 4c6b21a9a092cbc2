//! Windows to the tensors of a packed graph: no padding but in an index map, which only attention and recurrent
//! heads read.

use crate::tokenize::Window;

/// Inputs of a packed graph for one batch. T tokens in all, B sequences, S tokens in the longest, U units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// `input_ids` \[T\]: token ids of all sequences, one after the other.
    pub input_ids: Vec<i64>,
    /// `position_ids` \[T\]: place of each token in its sequence, from 0.
    pub position_ids: Vec<i64>,
    /// `pad_index` \[B, S\]: row in T of every slot of the padded view; the last row of the sequence where there
    /// is none.
    pub pad_index: Vec<i64>,
    /// `unpad_index` \[T\]: slot of every token in the padded view, flattened.
    pub unpad_index: Vec<i64>,
    /// `lengths` \[B\]: tokens in each sequence.
    pub lengths: Vec<i32>,
    /// `word_index` \[U\]: row in T of the first piece of every unit.
    pub word_index: Vec<i64>,
    /// S.
    pub width: usize,
}

impl Packed {
    /// Packs a batch.
    ///
    /// # Panics
    /// When `windows` is empty.
    pub fn new<'a>(windows: impl IntoIterator<Item = &'a Window> + Clone) -> Self {
        let width = windows.clone().into_iter().map(|window| window.ids.len()).max().expect("a batch has windows");
        let mut packed = Self { width, ..Self::default() };
        for (sequence, window) in windows.into_iter().enumerate() {
            let (first, length) = (packed.input_ids.len() as i64, window.ids.len() as i64);
            packed.input_ids.extend(window.ids.iter().map(|&id| i64::from(id)));
            packed.position_ids.extend(0..length);
            packed.pad_index.extend((0..width as i64).map(|slot| first + slot.min(length - 1)));
            packed.unpad_index.extend((0..length).map(|slot| (sequence * width) as i64 + slot));
            packed.lengths.push(length as i32);
            packed.word_index.extend(window.word_starts.iter().map(|&start| first + i64::from(start)));
        }
        packed
    }

    /// Tokens in the batch (T).
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Slots of the padded view (B · S).
    pub fn slots(&self) -> usize {
        self.pad_index.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn window(length: u32) -> Window {
        let units = 0..length as usize;
        Window {
            keep: units.clone(),
            units,
            ids: (100..100 + length).collect(),
            word_starts: (0..length).step_by(2).collect(),
        }
    }

    #[test]
    fn a_worked_example() {
        let packed = Packed::new(&[window(3), window(1)]);
        assert_eq!(packed.input_ids, [100, 101, 102, 100]);
        assert_eq!(packed.position_ids, [0, 1, 2, 0]);
        assert_eq!(packed.pad_index, [0, 1, 2, 3, 3, 3]);
        assert_eq!(packed.unpad_index, [0, 1, 2, 3]);
        assert_eq!(packed.lengths, [3, 1]);
        assert_eq!(packed.word_index, [0, 2, 3]);
    }

    proptest! {
        #[test]
        fn padding_then_unpadding_is_the_identity(lengths in prop::collection::vec(1u32..20, 1..10)) {
            let windows: Vec<_> = lengths.iter().map(|&n| window(n)).collect();
            let packed = Packed::new(&windows);
            let padded: Vec<i64> = packed.pad_index.iter().map(|&row| packed.input_ids[row as usize]).collect();
            let back: Vec<i64> = packed.unpad_index.iter().map(|&slot| padded[slot as usize]).collect();
            prop_assert_eq!(&back, &packed.input_ids);
            prop_assert_eq!(packed.slots(), lengths.len() * packed.width);
        }
    }
}
