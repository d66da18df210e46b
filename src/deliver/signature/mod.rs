//! Signatures: what proves to a receiver that a request is ours and untouched.
//!
//! A [`Signer`] is made once per endpoint, so that keys are decoded, checked and prepared outside
//! the path of an event. While a secret is being rotated all secrets sign. [`verify`] is the
//! receiver's side, for `hookbridge listen`. A further scheme is one more file here and one more
//! arm in each of these functions; which scheme an endpoint uses is the config's business.

mod standard;

use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::event::EventId;
use crate::subscription::{Scheme, Secret};

/// The event's id, the same on every attempt.
pub const ID: HeaderName = HeaderName::from_static("webhook-id");
/// The attempt's time, in seconds since 1970.
pub const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
/// One signature per secret, separated by spaces.
pub const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// How old, or how far ahead of our clock, a signed timestamp may be.
pub const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// Signs the requests of one endpoint.
pub struct Signer(Keys);

enum Keys {
    Hmac(standard::HmacKeys),
    Ed25519(standard::Ed25519Keys),
    None,
}

/// Why a secret cannot be used. Never contains any of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error("signature `{0}` needs a secret")]
    Missing(&'static str),
    #[error("the secret does not begin with `{0}`")]
    Prefix(&'static str),
    #[error("what follows `{0}` is not base64 (standard alphabet, padded)")]
    Base64(&'static str),
    #[error("the key is {found} bytes long, not {wanted}")]
    Length { found: usize, wanted: &'static str },
    #[error("the two halves of the ed25519 key do not belong together")]
    KeyPair,
}

/// Why a request is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("no header `{0}`")]
    Missing(&'static str),
    #[error("header `{0}` cannot be read")]
    Malformed(&'static str),
    #[error("the timestamp is {0} s old")]
    TooOld(i64),
    #[error("the timestamp is {0} s ahead")]
    TooNew(i64),
    #[error("no signature matches")]
    Mismatch,
    #[error("the secret cannot be used")]
    Secret(#[from] SecretError),
}

impl Signer {
    /// Decodes, checks and prepares `secrets`. Without a scheme they are not looked at.
    pub fn new(scheme: Scheme, secrets: &[Secret]) -> Result<Self, SecretError> {
        if secrets.is_empty() && scheme != Scheme::None {
            return Err(SecretError::Missing(scheme.name()));
        }
        Ok(Self(match scheme {
            Scheme::Standard => Keys::Hmac(standard::HmacKeys::new(secrets)?),
            Scheme::StandardEd25519 => Keys::Ed25519(standard::Ed25519Keys::new(secrets)?),
            Scheme::None => Keys::None,
        }))
    }

    /// Puts id, timestamp (seconds since 1970) and signature into `headers`, replacing any that are
    /// there. Unsigned requests have an id and a timestamp too: receivers find duplicates by the id.
    pub fn sign(&self, id: &EventId, timestamp: i64, body: &[u8], headers: &mut HeaderMap) {
        let id_value = HeaderValue::from_str(id.as_str()).expect("event ids are visible ASCII");
        headers.insert(ID, id_value);
        headers.insert(TIMESTAMP, HeaderValue::from(timestamp));
        let signature = match &self.0 {
            Keys::Hmac(keys) => keys.sign(id.as_str(), timestamp, body),
            Keys::Ed25519(keys) => keys.sign(id.as_str(), timestamp, body),
            Keys::None => {
                headers.remove(SIGNATURE);
                return;
            }
        };
        let signature = HeaderValue::try_from(signature).expect("base64 is visible ASCII");
        headers.insert(SIGNATURE, signature);
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Keys::Hmac(_) => "Signer(standard)",
            Keys::Ed25519(_) => "Signer(standard-ed25519)",
            Keys::None => "Signer(none)",
        })
    }
}

/// Whether a request that arrived at `now` (seconds since 1970) carries a signature of one of
/// `secrets` and a timestamp within `tolerance` of it. Compares in constant time.
pub fn verify(
    scheme: Scheme,
    secrets: &[Secret],
    headers: &HeaderMap,
    body: &[u8],
    now: i64,
    tolerance: Duration,
) -> Result<(), VerifyError> {
    if scheme == Scheme::None {
        return Ok(());
    }
    let id = text_of(headers, "webhook-id")?;
    // Signed and compared as it was written, so that `+5` and `5` are not one timestamp.
    let timestamp = text_of(headers, "webhook-timestamp")?;
    let seconds: i64 = timestamp
        .parse()
        .map_err(|_| VerifyError::Malformed("webhook-timestamp"))?;
    let tolerance = i64::try_from(tolerance.as_secs()).unwrap_or(i64::MAX);
    let age = now.saturating_sub(seconds);
    if age > tolerance {
        return Err(VerifyError::TooOld(age));
    }
    if age < -tolerance {
        return Err(VerifyError::TooNew(age.saturating_neg()));
    }
    let signatures = text_of(headers, "webhook-signature")?;
    let matches = match scheme {
        Scheme::Standard => {
            standard::HmacKeys::new(secrets)?.verify(id, timestamp, body, signatures)
        }
        Scheme::StandardEd25519 => {
            standard::Ed25519Verifiers::new(secrets)?.verify(id, timestamp, body, signatures)
        }
        Scheme::None => true,
    };
    matches.then_some(()).ok_or(VerifyError::Mismatch)
}

fn text_of<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, VerifyError> {
    let value = headers.get(name).ok_or(VerifyError::Missing(name))?;
    value.to_str().map_err(|_| VerifyError::Malformed(name))
}
