//! Twilio and Mailchimp Transactional: HMAC-SHA1 over the URL and the fields of the form that is
//! the body, in the order of their names.
//!
//! The URL is signed as it is configured, byte for byte. Of a body that is no form, Twilio puts the
//! SHA-256 into the query and signs the URL with that; Mailchimp sends nothing but forms, and what
//! it would sign of another body is the URL alone. There is room for one signature, so the newest
//! secret signs. See <https://www.twilio.com/docs/usage/webhooks/webhooks-security> and
//! <https://mailchimp.com/developer/transactional/guides/track-respond-activity-webhooks/#authenticating-webhook-requests>.

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName};
use sha2::{Digest as _, Sha256};
use url::{Url, form_urlencoded};

use super::mac::{Mac, same};
use super::{Received, VerifyError, put, text_of};
use crate::outgoing::Outgoing;
use crate::subscription::{Encoding, Hash, Secret, SignedUrl};

const BODY_HASH: &str = "bodySHA256";

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Vendor {
    Twilio,
    Mailchimp,
}

impl Vendor {
    pub(super) fn header(self) -> HeaderName {
        HeaderName::from_static(match self {
            Self::Twilio => "x-twilio-signature",
            Self::Mailchimp => "x-mandrill-signature",
        })
    }
}

pub(super) struct FormKeys {
    vendor: Vendor,
    url: SignedUrl,
    /// Newest first.
    macs: Vec<Mac>,
}

type Pairs<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

impl FormKeys {
    pub(super) fn new(vendor: Vendor, url: &SignedUrl, secrets: &[Secret]) -> Self {
        Self {
            vendor,
            url: url.clone(),
            macs: Mac::of_characters(Hash::Sha1, secrets),
        }
    }

    pub(super) fn sign(&self, request: &mut Outgoing) {
        let Some(newest) = self.macs.first() else {
            return;
        };
        let sent = request.url.clone();
        let url = self.url.or_sent(sent.as_str());
        let signature = match form(&request.headers, &request.body) {
            Some(pairs) => self.tag(newest, url, pairs),
            None if request.body.is_empty() || self.vendor == Vendor::Mailchimp => {
                self.tag(newest, url, Vec::new())
            }
            None => {
                let hash = hex::encode(Sha256::digest(&request.body));
                request.url = Arc::new(with_hash_sent(&sent, &hash));
                self.tag(newest, &with_hash(url, &hash), Vec::new())
            }
        };
        put(&mut request.headers, self.vendor.header(), signature);
    }

    pub(super) fn verify(&self, request: &Received<'_>) -> Result<(), VerifyError> {
        let given = text_of(request.headers, &self.vendor.header())?;
        let pairs = form(request.headers, request.body);
        let hash = match self.vendor {
            Vendor::Twilio => hash_in(request.url),
            Vendor::Mailchimp => None,
        };
        if pairs.is_none() && !request.body.is_empty() {
            let hash = hash.as_deref().ok_or(VerifyError::Uncovered)?;
            if !same(hash, &hex::encode(Sha256::digest(request.body))) {
                return Err(VerifyError::Mismatch);
            }
        }
        let url = match &hash {
            Some(hash) if self.url.is_written() => with_hash(self.url.or_sent(""), hash).into(),
            _ => Cow::Borrowed(self.url.or_sent(request.url)),
        };
        let pairs = pairs.unwrap_or_default();
        let mut found = false;
        for mac in &self.macs {
            found |= same(given, &self.tag(mac, &url, pairs.clone()));
        }
        found.then_some(()).ok_or(VerifyError::Mismatch)
    }

    /// The signature over `url` and `pairs` as the vendor's library orders them.
    fn tag(&self, mac: &Mac, url: &str, mut pairs: Pairs<'_>) -> String {
        match self.vendor {
            // Several values of one name: each once, sorted.
            Vendor::Twilio => {
                pairs.sort();
                pairs.dedup();
            }
            // Several values of one name: the last one counts, as in PHP.
            Vendor::Mailchimp => {
                pairs.reverse();
                pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
                pairs.dedup_by(|(later, _), (kept, _)| later == kept);
            }
        }
        let fields = pairs
            .iter()
            .flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]);
        let tag = mac.tag(std::iter::once(url.as_bytes()).chain(fields));
        tag.written(Encoding::Base64)
    }
}

/// The fields of the body, if it is a form that can be read.
fn form<'a>(headers: &HeaderMap, body: &'a [u8]) -> Option<Pairs<'a>> {
    let content_type = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    (essence.eq_ignore_ascii_case("application/x-www-form-urlencoded")
        && !headers.contains_key(CONTENT_ENCODING))
    .then(|| form_urlencoded::parse(body).collect())
}

/// The URL to send: what is in its query already stays as it is written.
fn with_hash_sent(url: &Url, hash: &str) -> Url {
    let mut url = url.clone();
    url.query_pairs_mut().append_pair(BODY_HASH, hash);
    url
}

fn with_hash(url: &str, hash: &str) -> String {
    let separator = match url.split_once('?') {
        None => "?",
        Some((_, "")) => "",
        Some(_) => "&",
    };
    format!("{url}{separator}{BODY_HASH}={hash}")
}

fn hash_in(url: &str) -> Option<Cow<'_, str>> {
    let (_, query) = url.split_once('?')?;
    form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == BODY_HASH)
        .map(|(_, hash)| hash)
}
