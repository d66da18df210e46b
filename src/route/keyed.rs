//! A hash for short texts. Topics and names come from outside, so each table has keys of its own,
//! and nobody can aim at a place in it; that two texts are the same, only comparing them says.

use std::hash::{BuildHasher, RandomState};

/// The keys of one table.
#[derive(Debug, Clone)]
pub(super) struct Keyed {
    start: u64,
    factor: u64,
}

impl Keyed {
    pub(super) fn new() -> Self {
        let random = RandomState::new();
        Self {
            start: random.hash_one(0_u64),
            factor: random.hash_one(1_u64) | 1,
        }
    }

    /// `text` below `parent`, which is any number that tells apart texts that are the same.
    pub(super) fn hash(&self, parent: u64, text: &[u8]) -> u32 {
        let mut hash = self.mix(self.start ^ parent);
        let (words, rest) = text.as_chunks::<8>();
        for word in words {
            hash = self.mix(hash ^ u64::from_le_bytes(*word));
        }
        // Fewer than eight bytes are left: the eighth tells how many.
        let last = rest
            .iter()
            .fold(rest.len() as u64, |last, byte| last << 8 | u64::from(*byte));
        (self.mix(hash ^ last) >> 32) as u32
    }

    fn mix(&self, number: u64) -> u64 {
        let product = u128::from(number) * u128::from(self.factor);
        product as u64 ^ (product >> 64) as u64
    }
}

/// The place of `hash` among `places`: the first one where to look for it.
pub(super) fn home(hash: u32, places: usize) -> usize {
    ((u64::from(hash) * places as u64) >> 32) as usize
}
