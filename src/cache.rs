//! Tags of texts that came before, for streams that repeat themselves.
//!
//! An entry belongs to a text and a model by their hashes, so a swap needs to clear nothing: the new model finds no entry
//! of the old. What is used least goes first when the bytes are spent.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use crate::decode::Document;
use crate::encode::Tags;
use crate::registry::Model;

/// What an entry belongs to: SHA-256 of the model, its variant, the text, and the words where the input gave them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of what `model` says of a document.
    pub fn new(model: &Model, document: &Document) -> Self {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(model.dir.sha256.as_bytes());
        part(model.variant.to_string().as_bytes());
        part(document.text.as_bytes());
        for word in document.words.iter().flatten() {
            part(&word.start.to_le_bytes());
            part(&word.end.to_le_bytes());
        }
        Self(hash.finalize().into())
    }
}

/// A cache that holds up to so many bytes. A clone shares it.
#[derive(Clone, Debug)]
pub struct TagCache(Arc<Cache<Key, Arc<Tags>, Bytes>>);

/// What tags take is what counts of an entry.
#[derive(Clone, Debug)]
struct Bytes;

impl Weighter<Key, Arc<Tags>> for Bytes {
    fn weight(&self, _: &Key, tags: &Arc<Tags>) -> u64 {
        (size_of::<Key>() + tags.bytes()) as u64
    }
}

/// What the cache expects an entry to take; it decides only how finely the cache is divided.
const USUAL_BYTES: usize = 16 << 10;

impl TagCache {
    /// An empty cache of `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Self(Arc::new(Cache::with_weighter(max_bytes / USUAL_BYTES + 1, max_bytes as u64, Bytes)))
    }

    /// The tags under a key, if they are still there.
    pub fn get(&self, key: &Key) -> Option<Arc<Tags>> {
        self.0.get(key)
    }

    /// Keeps tags, where they are not larger than the cache.
    pub fn insert(&self, key: Key, tags: Arc<Tags>) {
        self.0.insert(key, tags);
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        self.0.weight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{Extent, Token};
    use proptest::prelude::*;

    fn tags(words: usize) -> Arc<Tags> {
        let token =
            |i| Token { text: "từ".into(), start: i, end: i + 1, pos: Some("NOUN".into()), pos_score: Some(1.0) };
        let sentences = vec![Extent { start: 0, end: words }];
        Arc::new(Tags { sentences, tokens: (0..words).map(token).collect(), entities: vec![] })
    }

    proptest! {
        #[test]
        fn it_gives_what_it_was_given_and_never_holds_more_than_it_may(
            words in prop::collection::vec((any::<u8>(), 0usize..300), 1..200),
            max_bytes in 0usize..200_000,
        ) {
            let cache = TagCache::new(max_bytes);
            for (key, words) in words {
                let key = Key([key; 32]);
                let expected = tags(words);
                cache.insert(key, expected.clone());
                prop_assert!(cache.bytes() <= max_bytes as u64);
                if let Some(found) = cache.get(&key) {
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }
}
