//! DocuSign Connect: a header for each key, `X-DocuSign-Signature-1` and so on, over the body.
//!
//! See <https://developers.docusign.com/platform/webhooks/connect/hmac/>.

use http::{HeaderName, HeaderValue};

use super::mac::{Mac, same};
use super::{Received, VerifyError, put};
use crate::outgoing::Outgoing;
use crate::subscription::{Encoding, Hash, Secret};

const DIGEST: HeaderName = HeaderName::from_static("x-authorization-digest");
const PREFIX: &str = "x-docusign-signature-";
const FIRST: HeaderName = HeaderName::from_static("x-docusign-signature-1");

pub(super) struct DocusignKeys(Vec<(HeaderName, Mac)>);

pub(super) fn sets(name: &HeaderName) -> bool {
    *name == DIGEST || name.as_str().starts_with(PREFIX)
}

impl DocusignKeys {
    pub(super) fn new(secrets: &[Secret]) -> Self {
        let names = (1..).map(|number| {
            HeaderName::try_from(format!("{PREFIX}{number}")).expect("letters, dashes and digits")
        });
        Self(
            names
                .zip(Mac::of_characters(Hash::Sha256, secrets))
                .collect(),
        )
    }

    pub(super) fn sign(&self, request: &mut Outgoing) {
        let digest = HeaderValue::from_static("HMACSHA256");
        request.headers.insert(DIGEST, digest);
        for (name, mac) in &self.0 {
            let signature = mac.tag([&request.body[..]]).written(Encoding::Base64);
            put(&mut request.headers, name.clone(), signature);
        }
    }

    pub(super) fn verify(&self, request: &Received<'_>) -> Result<(), VerifyError> {
        let given: Vec<&str> = request
            .headers
            .iter()
            .filter(|(name, _)| name.as_str().starts_with(PREFIX))
            .filter_map(|(_, value)| value.to_str().ok())
            .collect();
        if given.is_empty() {
            return Err(VerifyError::Missing(FIRST));
        }
        let mut found = false;
        for (_, mac) in &self.0 {
            let expected = mac.tag([request.body]).written(Encoding::Base64);
            for given in &given {
                found |= same(given, &expected);
            }
        }
        found.then_some(()).ok_or(VerifyError::Mismatch)
    }
}
