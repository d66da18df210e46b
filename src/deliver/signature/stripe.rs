//! Stripe: `Stripe-Signature: t=<timestamp>,v1=<hex>`, over `<timestamp>.<body>`.
//!
//! The key is the secret as it is written, `whsec_` included. While one is being rotated there is
//! a `v1` for each. See <https://docs.stripe.com/webhooks/signature>.

use http::HeaderName;
use jiff::Timestamp;

use super::mac::{Mac, Tag, same};
use super::{Clock, Received, VerifyError, put, text_of};
use crate::outgoing::Outgoing;
use crate::subscription::{Encoding, Hash, Secret, TimeUnit};

pub(super) const HEADER: HeaderName = HeaderName::from_static("stripe-signature");

pub(super) struct StripeKeys(Vec<Mac>);

impl StripeKeys {
    pub(super) fn new(secrets: &[Secret]) -> Self {
        Self(Mac::of_characters(Hash::Sha256, secrets))
    }

    pub(super) fn sign(&self, at: Timestamp, request: &mut Outgoing) {
        let timestamp = at.as_second().to_string();
        let mut value = format!("t={timestamp}");
        for mac in &self.0 {
            value.push_str(",v1=");
            value.push_str(&tag(mac, &timestamp, &request.body).written(Encoding::Hex));
        }
        put(&mut request.headers, HEADER, value);
    }

    pub(super) fn verify(&self, request: &Received<'_>, clock: Clock) -> Result<(), VerifyError> {
        let list = text_of(request.headers, &HEADER)?;
        let each = |name| {
            list.split(',')
                .filter_map(move |item| item.strip_prefix(name))
        };
        let timestamp = each("t=").next().ok_or(VerifyError::Malformed(HEADER))?;
        clock.check(timestamp, TimeUnit::Seconds, &HEADER)?;
        let mut found = false;
        for mac in &self.0 {
            let expected = tag(mac, timestamp, request.body).written(Encoding::Hex);
            for given in each("v1=") {
                found |= same(given, &expected);
            }
        }
        found.then_some(()).ok_or(VerifyError::Mismatch)
    }
}

fn tag(mac: &Mac, timestamp: &str, body: &[u8]) -> Tag {
    mac.tag([timestamp.as_bytes(), b".", body])
}
