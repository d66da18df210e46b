//! HMACs whose key has been absorbed already, and how a tag is written and compared.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use subtle::ConstantTimeEq as _;

use super::SecretError;
use crate::subscription::{Encoding, Hash, KeyForm, Secret};

/// Shorter secrets than that can be guessed; longer ones than a block of SHA-512 add nothing, and
/// what is longer than this is most likely another file.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 16..=256;
const SECRET_BYTES_SAID: &str = "16 to 256";

/// A state with the key absorbed; a tag starts from a copy.
pub(super) enum Mac {
    Sha1(Hmac<Sha1>),
    Sha256(Hmac<Sha256>),
    Sha512(Hmac<Sha512>),
}

/// What comes out: 20, 32 or 64 bytes.
pub(super) struct Tag {
    bytes: [u8; 64],
    length: usize,
}

impl Mac {
    pub(super) fn new(hash: Hash, key: &[u8]) -> Self {
        const ANY: &str = "HMAC takes keys of any length";
        match hash {
            Hash::Sha1 => Self::Sha1(Hmac::new_from_slice(key).expect(ANY)),
            Hash::Sha256 => Self::Sha256(Hmac::new_from_slice(key).expect(ANY)),
            Hash::Sha512 => Self::Sha512(Hmac::new_from_slice(key).expect(ANY)),
        }
    }

    /// One for each secret, whose characters are the key.
    pub(super) fn of_characters(hash: Hash, secrets: &[Secret]) -> Vec<Self> {
        let key = |secret: &Secret| Self::new(hash, secret.expose().as_bytes());
        secrets.iter().map(key).collect()
    }

    /// The tag over `parts`, one after the other.
    pub(super) fn tag<'a>(&self, parts: impl IntoIterator<Item = &'a [u8]>) -> Tag {
        macro_rules! over {
            ($state:expr) => {{
                let mut mac = $state.clone();
                parts.into_iter().for_each(|part| mac.update(part));
                Tag::of(&mac.finalize().into_bytes())
            }};
        }
        match self {
            Self::Sha1(state) => over!(state),
            Self::Sha256(state) => over!(state),
            Self::Sha512(state) => over!(state),
        }
    }
}

impl Tag {
    fn of(tag: &[u8]) -> Self {
        let mut bytes = [0; 64];
        bytes[..tag.len()].copy_from_slice(tag);
        let length = tag.len();
        Self { bytes, length }
    }

    pub(super) fn written(&self, encoding: Encoding) -> String {
        let bytes = &self.bytes[..self.length];
        match encoding {
            Encoding::Hex => hex::encode(bytes),
            Encoding::Base64 => BASE64.encode(bytes),
        }
    }
}

/// Whether both are the same, in a time that depends on their length only.
pub(super) fn same(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

/// Whether the characters of `secret` will do as a key.
pub(super) fn check_characters(secret: &str) -> Result<(), SecretError> {
    if secret.chars().any(char::is_control) || secret.trim() != secret {
        return Err(SecretError::Space);
    }
    check_length(secret.len())
}

fn check_length(found: usize) -> Result<(), SecretError> {
    if SECRET_BYTES.contains(&found) {
        return Ok(());
    }
    Err(SecretError::Length {
        found,
        wanted: SECRET_BYTES_SAID,
    })
}

/// Whether `secret` in this form will do as a key.
pub(super) fn check_form(secret: &str, form: KeyForm) -> Result<(), SecretError> {
    match form {
        KeyForm::Text => check_characters(secret),
        form => check_length(key(secret, form)?.len()),
    }
}

/// The key that `secret` stands for.
pub(super) fn key(secret: &str, form: KeyForm) -> Result<Vec<u8>, SecretError> {
    match form {
        KeyForm::Text => Ok(secret.as_bytes().to_vec()),
        KeyForm::Encoded(Encoding::Hex) => hex::decode(secret).map_err(|_| SecretError::Hex),
        KeyForm::Encoded(Encoding::Base64) => {
            BASE64.decode(secret).map_err(|_| SecretError::Base64(""))
        }
    }
}
