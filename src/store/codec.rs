//! Records as bytes: one byte that says the version, then JSON.
//!
//! A release reads its own version and all older ones, which are brought forward in
//! [`decode`]; it refuses newer ones, since it would lose what it does not know when it writes them
//! again, and does so when the store is opened, before anything is written ([`newer`]).
//!
//! With a new version come an arm in [`decode`] that makes the older record into one of today, and a
//! fixture of what the release before wrote (tests/it/store_formats.rs).

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Store, StoreError};

/// The version written by this release. The first and so far the only one.
const VERSION: u8 = 1;

/// A record that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{tree} {key:?}: {why}")]
pub struct Unreadable {
    pub tree: &'static str,
    pub key: String,
    pub why: Why,
}

/// What is wrong with a record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error(
        "written by a newer release (record version {version}; hookbridge {} reads up to {VERSION}): start that release again",
        env!("CARGO_PKG_VERSION")
    )]
    Newer { version: u8 },
    #[error("not a record of hookbridge ({0}): restore a backup of the store")]
    Garbled(String),
}

/// The version of a record that this release does not know.
pub(super) fn newer(bytes: &[u8]) -> Option<u8> {
    let version = bytes.first().copied();
    version.filter(|version| *version > VERSION)
}

pub(super) fn encode(what: &str, value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![VERSION];
    serde_json::to_writer(&mut bytes, value).expect("records are plain data with text keys");
    if bytes.len() > Store::MAX_RECORD_BYTES {
        return Err(StoreError::TooLarge {
            what: what.to_owned(),
            bytes: bytes.len(),
        });
    }
    Ok(bytes)
}

pub(super) fn decode<T: DeserializeOwned>(
    tree: &'static str,
    key: &[u8],
    bytes: &[u8],
) -> Result<T, Unreadable> {
    let read = match bytes {
        [VERSION, json @ ..] => {
            serde_json::from_slice(json).map_err(|error| Why::Garbled(error.to_string()))
        }
        [version, ..] if *version > VERSION => Err(Why::Newer { version: *version }),
        _ => Err(Why::Garbled("no version".to_owned())),
    };
    read.map_err(|why| Unreadable {
        tree,
        key: String::from_utf8_lossy(key).into_owned(),
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back() {
        let bytes = encode("x", &vec![1, 2]).unwrap();
        assert_eq!(bytes[0], 1);
        assert_eq!(decode::<Vec<u8>>("t", b"k", &bytes).unwrap(), [1, 2]);
    }

    #[test]
    fn a_newer_version_is_named_and_rubbish_is_refused() {
        let error = decode::<u8>("subscriptions", b"config:crm", b"\x07{}").unwrap_err();
        assert_eq!(error.why, Why::Newer { version: 7 });
        assert!(error.to_string().contains("record version 7"), "{error}");
        for rubbish in [&b""[..], b"\0{}", b"\x01{"] {
            let error = decode::<u8>("t", b"k", rubbish).unwrap_err();
            assert!(matches!(error.why, Why::Garbled(_)), "{error}");
        }
    }

    #[test]
    fn a_large_record_is_refused() {
        let error = encode("subscription x", &"x".repeat(100_000)).unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    }
}
