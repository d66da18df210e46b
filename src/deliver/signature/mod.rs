//! Signatures: what proves to a receiver that a request is ours and untouched.
//!
//! A [`Signer`] is made once per endpoint, so that keys are decoded, checked and prepared outside
//! the path of an event. It gets the finished request and leaves it signed: with headers, and where
//! a scheme wants that, with a query that is longer. While a secret is being rotated all secrets
//! sign where the scheme has room for several, else the newest. [`verify`] is the receiver's side,
//! for the command line. A scheme is a row in `single`, or a file here and an arm in `Keys`.

mod docusign;
mod filled;
mod form;
mod mac;
mod make;
mod single;
mod standard;
mod stripe;
#[cfg(test)]
mod tests;
mod token;

use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use jiff::Timestamp;

use crate::event::Facts;
use crate::outgoing::Outgoing;
use crate::subscription::{Scheme, Secret, TimeUnit};
use form::Vendor;

pub use make::new_secret;

/// The event's id, the same on every attempt.
pub const ID: HeaderName = HeaderName::from_static("webhook-id");
/// The attempt's time, in seconds since 1970.
pub const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
/// One signature per secret, separated by spaces.
pub const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// How old, or how far ahead of our clock, a signed timestamp may be.
pub const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// Signs the requests of one endpoint.
pub struct Signer {
    scheme: &'static str,
    keys: Keys,
    filled: filled::FilledHeaders,
}

enum Keys {
    Hmac(standard::HmacKeys),
    Ed25519(standard::Ed25519Keys),
    Stripe(stripe::StripeKeys),
    Docusign(docusign::DocusignKeys),
    Form(form::FormKeys),
    Single(single::SingleKeys),
    Token(token::TokenKeys),
    None,
}

/// Why a secret cannot be used. Never contains any of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error("signature `{0}` needs a secret")]
    Missing(&'static str),
    #[error("the secret does not begin with `{0}`")]
    Prefix(&'static str),
    #[error("{} is not base64 (standard alphabet, padded)", behind(.0))]
    Base64(&'static str),
    #[error("the secret is not hex")]
    Hex,
    #[error("the key is {found} bytes long, not {wanted}")]
    Length { found: usize, wanted: &'static str },
    #[error("the two halves of the ed25519 key do not belong together")]
    KeyPair,
    #[error("the secret has a control character in it, or white space around it")]
    Space,
    #[error("the token can be sent in a header only when it is visible ASCII")]
    Token,
}

fn behind(prefix: &str) -> String {
    match prefix {
        "" => "the secret".to_owned(),
        prefix => format!("what follows `{prefix}`"),
    }
}

/// Why a request is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("no header `{0}`")]
    Missing(HeaderName),
    #[error("header `{0}` cannot be read")]
    Malformed(HeaderName),
    #[error("the timestamp is {0} s old")]
    TooOld(i64),
    #[error("the timestamp is {0} s ahead")]
    TooNew(i64),
    #[error("the signature does not cover a body of this kind")]
    Uncovered,
    #[error("no signature matches")]
    Mismatch,
    #[error("the secret cannot be used")]
    Secret(#[from] SecretError),
}

impl Signer {
    /// Decodes, checks and prepares `secrets`, newest first. Without a signature they are not
    /// looked at.
    pub fn new(scheme: &Scheme, secrets: &[Secret]) -> Result<Self, SecretError> {
        Ok(Self {
            scheme: scheme.name(),
            keys: Keys::new(scheme, secrets)?,
            filled: filled::FilledHeaders::of(scheme),
        })
    }

    /// Puts id, timestamp and signature into the headers, replacing any that are there. Requests of
    /// every scheme, and unsigned ones, have `webhook-id` and `webhook-timestamp`: receivers find
    /// duplicates by the id.
    pub fn sign(&self, event: Facts<'_>, at: Timestamp, request: &mut Outgoing) {
        let headers = &mut request.headers;
        let id = HeaderValue::from_str(event.id.as_str()).expect("event ids are visible ASCII");
        headers.insert(ID, id);
        headers.insert(TIMESTAMP, HeaderValue::from(at.as_second()));
        self.filled.fill(event, headers);
        match &self.keys {
            Keys::Hmac(keys) => keys.sign(event.id.as_str(), at.as_second(), request),
            Keys::Ed25519(keys) => keys.sign(event.id.as_str(), at.as_second(), request),
            Keys::Stripe(keys) => keys.sign(at, request),
            Keys::Docusign(keys) => keys.sign(request),
            Keys::Form(keys) => keys.sign(request),
            Keys::Single(keys) => keys.sign(event, at, request),
            Keys::Token(keys) => keys.sign(request),
            Keys::None => {
                request.headers.remove(SIGNATURE);
            }
        }
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.scheme)
    }
}

impl Keys {
    fn new(scheme: &Scheme, secrets: &[Secret]) -> Result<Self, SecretError> {
        if !scheme.is_signed() {
            return Ok(Self::None);
        }
        if secrets.is_empty() {
            return Err(SecretError::Missing(scheme.name()));
        }
        if let Some(keys) = single::SingleKeys::new(scheme, secrets)? {
            return Ok(Self::Single(keys));
        }
        Ok(match scheme {
            Scheme::Standard => Self::Hmac(standard::HmacKeys::new(&standard::NAMES, secrets)?),
            Scheme::Svix => Self::Hmac(standard::HmacKeys::new(&standard::SVIX_NAMES, secrets)?),
            Scheme::StandardEd25519 => Self::Ed25519(standard::Ed25519Keys::new(secrets)?),
            Scheme::Stripe => Self::Stripe(stripe::StripeKeys::new(secrets)),
            Scheme::Docusign => Self::Docusign(docusign::DocusignKeys::new(secrets)),
            Scheme::Twilio(url) => Self::Form(form::FormKeys::new(Vendor::Twilio, url, secrets)),
            Scheme::Mailchimp(url) => {
                Self::Form(form::FormKeys::new(Vendor::Mailchimp, url, secrets))
            }
            Scheme::Gitlab(_) => Self::Token(token::TokenKeys::new(secrets)?),
            _ => Self::None,
        })
    }

    fn verify(&self, request: &Received<'_>, clock: Clock) -> Result<(), VerifyError> {
        match self {
            Self::Hmac(keys) => keys.verify(request, clock),
            Self::Ed25519(keys) => keys.verifiers().verify(request, clock),
            Self::Stripe(keys) => keys.verify(request, clock),
            Self::Docusign(keys) => keys.verify(request),
            Self::Form(keys) => keys.verify(request),
            Self::Single(keys) => keys.verify(request, clock),
            Self::Token(keys) => keys.verify(request),
            Self::None => Ok(()),
        }
    }
}

/// A request as its receiver sees it.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    pub method: &'a Method,
    /// In full, as the sender has it: scheme, host, path and query.
    pub url: &'a str,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
}

/// Whether a request that arrived at `now` (seconds since 1970) carries a signature of one of
/// `secrets`, and, where the scheme signs one, a timestamp within `tolerance` of it. Compares in
/// constant time. Of an unsigned scheme everything is believed.
pub fn verify(
    scheme: &Scheme,
    secrets: &[Secret],
    request: &Received<'_>,
    now: i64,
    tolerance: Duration,
) -> Result<(), VerifyError> {
    let clock = Clock {
        now,
        tolerance: i64::try_from(tolerance.as_secs()).unwrap_or(i64::MAX),
    };
    if *scheme == Scheme::StandardEd25519 && !secrets.is_empty() {
        return standard::Ed25519Verifiers::new(secrets)?.verify(request, clock);
    }
    Keys::new(scheme, secrets)?.verify(request, clock)
}

/// Whether requests can be verified with `secrets`; of `standard-ed25519` these may be public keys.
pub fn check_verifying(scheme: &Scheme, secrets: &[Secret]) -> Result<(), SecretError> {
    if *scheme == Scheme::StandardEd25519 && !secrets.is_empty() {
        return standard::Ed25519Verifiers::new(secrets).map(drop);
    }
    Keys::new(scheme, secrets).map(drop)
}

/// Whether `secret` is what `scheme` wants: its form, and a length that cannot be guessed.
pub fn check_secret(scheme: &Scheme, secret: &str) -> Result<(), SecretError> {
    match scheme {
        Scheme::Standard | Scheme::Svix | Scheme::StandardEd25519 => {
            Keys::new(scheme, &[Secret::new(secret)]).map(drop)
        }
        Scheme::Hmac(hmac) => mac::check_form(secret, hmac.key),
        Scheme::Gitlab(_) => {
            Keys::new(scheme, &[Secret::new(secret)])?;
            mac::check_characters(secret)
        }
        scheme if scheme.is_signed() => mac::check_characters(secret),
        _ => Ok(()),
    }
}

/// Whether requests of `scheme` have a header `name` that nobody else may set.
pub fn sets_header(scheme: &Scheme, name: &HeaderName) -> bool {
    let own = match scheme {
        Scheme::Svix => standard::SVIX_NAMES.has(name),
        Scheme::Stripe => stripe::HEADER == name,
        Scheme::Docusign => docusign::sets(name),
        Scheme::Twilio(_) => Vendor::Twilio.header() == name,
        Scheme::Mailchimp(_) => Vendor::Mailchimp.header() == name,
        Scheme::Gitlab(_) => token::HEADER == name,
        scheme => single::sets(scheme, name),
    };
    own || standard::NAMES.has(name)
        || scheme
            .filled()
            .is_some_and(|filled| filled.headers().any(|(header, _)| header == name))
}

/// By what a timestamp is judged; both in seconds.
#[derive(Clone, Copy)]
struct Clock {
    now: i64,
    tolerance: i64,
}

impl Clock {
    /// Whether the timestamp that was found in `header` is near enough. What is signed and
    /// compared is its text, so that `+5` and `5` are not one timestamp.
    fn check(self, text: &str, unit: TimeUnit, header: &HeaderName) -> Result<(), VerifyError> {
        let malformed = || VerifyError::Malformed(header.clone());
        let counted: i64 = text.parse().map_err(|_| malformed())?;
        let seconds = match unit {
            TimeUnit::Seconds => counted,
            TimeUnit::Milliseconds => counted.div_euclid(1000),
        };
        let age = self.now.saturating_sub(seconds);
        if age > self.tolerance {
            return Err(VerifyError::TooOld(age));
        }
        if age < -self.tolerance {
            return Err(VerifyError::TooNew(age.saturating_neg()));
        }
        Ok(())
    }
}

fn text_of<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a str, VerifyError> {
    let value = headers.get(name);
    let value = value.ok_or_else(|| VerifyError::Missing(name.clone()))?;
    value
        .to_str()
        .map_err(|_| VerifyError::Malformed(name.clone()))
}

/// Sets a header to a text of ours: a signature or a timestamp.
fn put(headers: &mut HeaderMap, name: HeaderName, text: String) {
    // A prefix from the config is checked there.
    let value = HeaderValue::try_from(text).expect("signatures are visible ASCII");
    headers.insert(name, value);
}
