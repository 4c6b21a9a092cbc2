//! A set of 64-bit hashes in 6 to 8 bytes each.
//!
//! The upper 16 bits of a hash choose one of 65,536 tables, so that a slot need only hold the other 48: 6 bytes. A table
//! uses open addressing with linear probing, is at most 7/8 full and grows by 1/8, so that it is at least 7/9 full once
//! it has grown: 6.9 to 7.8 bytes a hash. While a table grows, it alone is there twice.

const TABLES: usize = 1 << 16;
const SLOT: usize = 6;
const SLOTS_AT_FIRST: usize = 8;

/// The hashes seen so far.
#[derive(Debug)]
pub(super) struct Seen {
    tables: Vec<Table>,
}

#[derive(Clone, Debug, Default)]
struct Table {
    /// 48 bits a slot, 0 where it is free.
    slots: Box<[[u8; SLOT]]>,
    used: u32,
}

impl Seen {
    pub(super) fn new() -> Self {
        Self { tables: vec![Table::default(); TABLES] }
    }

    /// Whether `hash` is new.
    pub(super) fn insert(&mut self, hash: u64) -> bool {
        // 0 marks a free slot: that hash shares the place of 1.
        let rest = (hash << 16 >> 16).max(1);
        self.tables[(hash >> 48) as usize].insert(rest)
    }

    pub(super) fn bytes(&self) -> usize {
        let slots: usize = self.tables.iter().map(|table| table.slots.len()).sum();
        slots * SLOT + TABLES * size_of::<Table>()
    }
}

impl Table {
    fn insert(&mut self, rest: u64) -> bool {
        if self.used as usize * 8 >= self.slots.len() * 7 {
            self.grow();
        }
        let new = self.put(rest);
        self.used += u32::from(new);
        new
    }

    fn put(&mut self, rest: u64) -> bool {
        let bytes = rest.to_le_bytes();
        let slot: [u8; SLOT] = bytes[..SLOT].try_into().expect("6 of 8 bytes");
        let mut at = ((u128::from(rest) * self.slots.len() as u128) >> 48) as usize;
        loop {
            if self.slots[at] == slot {
                return false;
            }
            if self.slots[at] == [0; SLOT] {
                self.slots[at] = slot;
                return true;
            }
            at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
        }
    }

    fn grow(&mut self) {
        let size = (self.slots.len() + self.slots.len() / 8).max(SLOTS_AT_FIRST);
        let old = std::mem::replace(&mut self.slots, vec![[0; SLOT]; size].into_boxed_slice());
        for slot in old.iter().filter(|slot| **slot != [0; SLOT]) {
            let mut bytes = [0; 8];
            bytes[..SLOT].copy_from_slice(slot);
            self.put(u64::from_le_bytes(bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        #[test]
        fn it_tells_new_hashes_as_a_set_does(hashes in prop::collection::vec(prop_oneof![0..40_u64, any::<u64>(), (1..300_u64).prop_map(|n| n << 40)], 0..600)) {
            let (mut seen, mut expected) = (Seen::new(), HashSet::new());
            for hash in hashes.into_iter().filter(|&hash| hash << 16 != 0) {
                prop_assert_eq!(seen.insert(hash), expected.insert(hash));
            }
        }
    }

    #[test]
    fn a_hash_takes_under_eight_bytes() {
        let mut table = Table::default();
        let hashes = (1..=40_000_u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16).max(1));
        let new = hashes.filter(|&hash| table.insert(hash)).count();
        assert_eq!(new, 40_000);
        assert!(table.slots.len() * SLOT < 8 * new, "{} slots", table.slots.len());
    }
}
