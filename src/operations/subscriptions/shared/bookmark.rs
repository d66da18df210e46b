//! A bookmark: the last record that was read, by which the log is known when it is read on.
//!
//! A log that was lost and made anew has other records, and maybe none yet, where this one lay. Read on
//! from there as if it were the same, what was told in the meantime would be missed without a word.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

use crate::broker::state::Entry;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bookmark {
    pub place: u64,
    /// Of what lies there; it is not kept beyond the process.
    hash: u64,
}

impl Bookmark {
    pub fn at(entry: &Entry) -> Self {
        let mut hasher = DefaultHasher::new();
        entry.record.key.hash(&mut hasher);
        entry.record.body.hash(&mut hasher);
        Self {
            place: entry.place,
            hash: hasher.finish(),
        }
    }

    /// Whether what is read next, after these were put behind it, comes later in the same log.
    pub fn is_before(self, next: &[Entry]) -> bool {
        next.first().is_none_or(|next| next.place > self.place)
    }

    /// What comes behind it, if it is what is read first.
    pub fn behind(self, mut read: Vec<Entry>) -> Option<Vec<Entry>> {
        if Self::at(read.first()?) != self {
            return None;
        }
        read.remove(0);
        Some(read)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::broker::state::Record;

    fn entry(place: u64, body: &'static str) -> Entry {
        Entry {
            place,
            record: Record {
                key: "k".to_owned(),
                body: (!body.is_empty()).then(|| Bytes::from(body)),
            },
        }
    }

    #[test]
    fn a_log_is_known_by_its_last_record() {
        let bookmark = Bookmark::at(&entry(7, "a"));
        let next = vec![entry(8, "b")];
        let read = [vec![entry(7, "a")], next.clone()].concat();
        assert_eq!(bookmark.behind(read), Some(next.clone()));
        assert_eq!(bookmark.behind(vec![entry(7, "a")]), Some(vec![]));
        // Other records at these places, records gone that were not read, and a log that begins anew.
        for other in [entry(7, "b"), entry(7, ""), entry(8, "a"), entry(0, "a")] {
            assert_eq!(bookmark.behind(vec![other.clone()]), None, "{other:?}");
        }
        assert_eq!(bookmark.behind(vec![]), None);
        assert!(bookmark.is_before(&next) && bookmark.is_before(&[]));
        assert!(!bookmark.is_before(&[entry(7, "c")]) && !bookmark.is_before(&[entry(0, "a")]));
    }
}
