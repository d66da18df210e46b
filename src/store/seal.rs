//! The seal: how the store notices that something is missing.
//!
//! Damage makes sled refuse, or panic, or silently go back to before the damaged place: a flipped
//! byte in the head of its log opens as an empty store, and every subscription made over the API
//! would be gone without a word. So a sum over all records is kept in a file beside sled's, and
//! compared when the store is opened. Before a mutation the file says that the records may have the
//! sums of before and after it; when the mutation has been synced, only the one after. A crash in
//! between leaves a store that is sealed either way.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// A sum over records, the same in any order: SHA-256 of each, added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum([u64; 4]);

impl Sum {
    pub(super) fn add(self, tree: &str, key: &[u8], value: &[u8]) -> Self {
        self.join(Self::of(tree, key, value), u64::wrapping_add)
    }

    pub(super) fn take(self, tree: &str, key: &[u8], value: &[u8]) -> Self {
        self.join(Self::of(tree, key, value), u64::wrapping_sub)
    }

    fn of(tree: &str, key: &[u8], value: &[u8]) -> Self {
        let mut hasher = Sha256::new();
        for part in [tree.as_bytes(), key, value] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        let hash = hasher.finalize();
        Self(std::array::from_fn(|word| {
            let bytes = hash[word * 8..][..8].try_into();
            u64::from_be_bytes(bytes.expect("a SHA-256 is four times eight bytes"))
        }))
    }

    fn join(self, other: Self, with: fn(u64, u64) -> u64) -> Self {
        Self(std::array::from_fn(|word| {
            with(self.0[word], other.0[word])
        }))
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|word| write!(f, "{word:016x}"))
    }
}

impl FromStr for Sum {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut sum = Self::default();
        if text.len() != 64 || !text.is_ascii() {
            return Err(());
        }
        for (number, word) in sum.0.iter_mut().enumerate() {
            *word = u64::from_str_radix(&text[number * 16..][..16], 16).map_err(|_| ())?;
        }
        Ok(sum)
    }
}

/// The sums that the records of the store in `store` may have. A store never written to has no
/// seal and no records. A line that is no sum allows nothing.
pub(super) fn read(store: &Path) -> io::Result<Vec<Sum>> {
    match fs::read_to_string(store.join("seal")) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![Sum::default()]),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Replaces the seal, durably and as a whole.
pub(super) fn write(store: &Path, sums: &[Sum]) -> io::Result<()> {
    let new = store.join("seal.new");
    let mut file = File::create(&new)?;
    for sum in sums {
        writeln!(file, "{sum}")?;
    }
    file.sync_all()?;
    fs::rename(&new, store.join("seal"))?;
    File::open(store)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_and_taken_away_leaves_nothing() {
        let one = Sum::default().add("t", b"a", b"1");
        let both = one.add("t", b"b", b"2");
        assert_ne!(one, both);
        assert_eq!(
            both,
            Sum::default().add("t", b"b", b"2").add("t", b"a", b"1")
        );
        assert_eq!(both.take("t", b"b", b"2"), one);
        assert_ne!(one, Sum::default().add("ta", b"", b"1"));
    }

    #[test]
    fn a_seal_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), [Sum::default()]);
        let sums = [Sum::default(), Sum::default().add("t", b"a", b"1")];
        write(dir.path(), &sums).unwrap();
        assert_eq!(read(dir.path()).unwrap(), sums);
        fs::write(dir.path().join("seal"), "x\n").unwrap();
        assert_eq!(read(dir.path()).unwrap(), []);
    }
}
