//! Secrets at rest: sealed with XChaCha20-Poly1305 under the operator's `store_key`.
//!
//! Several keys allow one to be replaced: the first seals, each opens what it has sealed. What is
//! sealed says with which key, by a part of its hash, and is bound to the record that it belongs to,
//! so that it opens nowhere else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
const ID_BYTES: usize = 4;

/// One key, ready for use.
#[derive(Clone)]
pub struct Key {
    cipher: XChaCha20Poly1305,
    id: String,
}

/// All keys that open, the one that seals first. None at all: nothing can be sealed.
#[derive(Clone, Default)]
pub struct Keys(Vec<Key>);

/// Bytes that only a key of the operator makes readable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The key's id: the first digits of its SHA-256.
    pub key: String,
    /// The nonce, then the sealed bytes; base64.
    data: String,
}

/// Why something cannot be sealed or opened. Never contains any of a key or a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("a key of the store is {KEY_BYTES} bytes, in hex or base64")]
    Form,
    #[error("there is no `store_key` to seal secrets with")]
    NoKey,
    #[error("it is sealed with key {0}, which is not in `store_key`")]
    UnknownKey(String),
    #[error("what is sealed does not belong here, or is damaged")]
    Damaged,
}

impl Key {
    /// Reads a key: 64 hex digits, or base64 of 32 bytes.
    pub fn read(text: &str) -> Result<Self, KeyError> {
        let mut bytes = [0; KEY_BYTES];
        if hex::decode_to_slice(text, &mut bytes).is_err() {
            let decoded = BASE64.decode(text).map_err(|_| KeyError::Form)?;
            bytes = decoded.try_into().map_err(|_| KeyError::Form)?;
        }
        Ok(Self {
            cipher: XChaCha20Poly1305::new(&bytes.into()),
            id: hex::encode(&Sha256::digest(bytes)[..ID_BYTES]),
        })
    }
}

impl Keys {
    pub fn new(keys: Vec<Key>) -> Self {
        Self(keys)
    }

    pub fn can_seal(&self) -> bool {
        !self.0.is_empty()
    }

    /// Whether `sealed` was sealed with the key that seals now.
    pub fn is_current(&self, sealed: &Sealed) -> bool {
        self.0.first().is_some_and(|key| key.id == sealed.key)
    }

    /// Seals `plain`, which belongs to `whose` and opens for nothing else.
    pub fn seal(&self, whose: &str, plain: &[u8]) -> Result<Sealed, KeyError> {
        let key = self.0.first().ok_or(KeyError::NoKey)?;
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let (msg, aad) = (plain, whose.as_bytes());
        let sealed = key
            .cipher
            .encrypt(&XNonce::from(nonce), Payload { msg, aad })
            .map_err(|_| KeyError::Damaged)?;
        let mut data = nonce.to_vec();
        data.extend(sealed);
        Ok(Sealed {
            key: key.id.clone(),
            data: BASE64.encode(data),
        })
    }

    pub fn open(&self, whose: &str, sealed: &Sealed) -> Result<Vec<u8>, KeyError> {
        let key = self.0.iter().find(|key| key.id == sealed.key);
        let key = key.ok_or_else(|| KeyError::UnknownKey(sealed.key.clone()))?;
        let data = BASE64.decode(&sealed.data).map_err(|_| KeyError::Damaged)?;
        let (nonce, msg) = data
            .split_first_chunk::<NONCE_BYTES>()
            .ok_or(KeyError::Damaged)?;
        let aad = whose.as_bytes();
        key.cipher
            .decrypt(&XNonce::from(*nonce), Payload { msg, aad })
            .map_err(|_| KeyError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> Key {
        Key::read(&hex::encode([byte; KEY_BYTES])).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_where_it_belongs_and_nowhere_else() {
        let keys = Keys::new(vec![key(1)]);
        let sealed = keys.seal("api:1", b"whsec_x").unwrap();
        assert_eq!(keys.open("api:1", &sealed).unwrap(), b"whsec_x");
        assert_eq!(keys.open("api:2", &sealed), Err(KeyError::Damaged));
        let other = keys.seal("api:1", b"whsec_x").unwrap();
        assert_ne!(sealed, other, "a nonce of its own each time");
        let written = serde_json::to_string(&sealed).unwrap();
        assert!(!written.contains("whsec"), "{written}");
        let mut torn = sealed;
        torn.data.replace_range(40..41, "_");
        assert_eq!(keys.open("api:1", &torn), Err(KeyError::Damaged));
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let old = Keys::new(vec![key(1)]).seal("x", b"y").unwrap();
        let both = Keys::new(vec![key(2), key(1)]);
        assert_eq!(both.open("x", &old).unwrap(), b"y");
        assert!(!both.is_current(&old));
        assert!(both.is_current(&both.seal("x", b"y").unwrap()));
        let without = Keys::new(vec![key(2)]).open("x", &old);
        assert_eq!(without, Err(KeyError::UnknownKey(old.key.clone())));
        assert_eq!(Keys::default().seal("x", b"y"), Err(KeyError::NoKey));
    }

    #[test]
    fn a_key_is_32_bytes() {
        let base64 = BASE64.encode([1; KEY_BYTES]);
        assert_eq!(Key::read(&base64).unwrap().id, key(1).id);
        for bad in ["", "x", &hex::encode([1; 31]), &BASE64.encode([1; 33])] {
            assert_eq!(Key::read(bad).err(), Some(KeyError::Form), "{bad}");
        }
    }
}
