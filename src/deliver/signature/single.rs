//! One HMAC in one header: GitHub, Slack, Shopify and most others, which differ in a row of a
//! table, and `hmac`, whose row is in the config.
//!
//! There is room for one signature, so the newest secret signs; all of them verify.

use http::HeaderName;
use jiff::Timestamp;

use super::mac::{Mac, key, same};
use super::{Clock, ID, Received, SecretError, TIMESTAMP, VerifyError, put, text_of};
use crate::event::Facts;
use crate::outgoing::Outgoing;
use crate::subscription::{
    Encoding, Hash, HmacScheme, KeyForm, Part, Scheme, Secret, SignedUrl, TimeUnit, Word, Worded,
};

pub(super) struct SingleKeys {
    /// Newest first.
    macs: Vec<Mac>,
    how: HmacScheme,
}

/// The scheme as one HMAC in one header, if it is that.
fn row(scheme: &Scheme) -> Option<HmacScheme> {
    use Encoding::{Base64, Hex};
    use Hash::{Sha1, Sha256};
    let row = |header: &'static str, prefix: &str, hash, encoding, signed: &str| HmacScheme {
        header: HeaderName::from_static(header),
        prefix: prefix.into(),
        hash,
        encoding,
        key: KeyForm::Text,
        signed: signed.parse().expect("a text of ours"),
        id_header: ID,
        timestamp_header: TIMESTAMP,
        unit: TimeUnit::Seconds,
        url: SignedUrl::default(),
    };
    Some(match scheme {
        // https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
        Scheme::Github(_) => row("x-hub-signature-256", "sha256=", Sha256, Hex, "{body}"),
        // https://developer.atlassian.com/cloud/jira/platform/webhooks/#secure-admin-webhooks
        Scheme::Jira(_) => row("x-hub-signature", "sha256=", Sha256, Hex, "{body}"),
        // https://developers.intercom.com/docs/webhooks/webhook-notifications#signed-notifications
        Scheme::Intercom => row("x-hub-signature", "sha1=", Sha1, Hex, "{body}"),
        // https://shopify.dev/docs/apps/build/webhooks/subscribe/https
        Scheme::Shopify(_) => row("x-shopify-hmac-sha256", "", Sha256, Base64, "{body}"),
        // https://woocommerce.com/document/webhooks/
        Scheme::Woocommerce(_) => row("x-wc-webhook-signature", "", Sha256, Base64, "{body}"),
        // https://developers.asana.com/docs/webhooks-guide#security
        Scheme::Asana => row("x-hook-signature", "", Sha256, Hex, "{body}"),
        // https://docs.slack.dev/authentication/verifying-requests-from-slack
        Scheme::Slack => HmacScheme {
            timestamp_header: HeaderName::from_static("x-slack-request-timestamp"),
            ..row(
                "x-slack-signature",
                "v0=",
                Sha256,
                Hex,
                "v0:{timestamp}:{body}",
            )
        },
        // The URL is signed as it is, which HubSpot's own client expects.
        // https://developers.hubspot.com/docs/apps/developer-platform/build-apps/authentication/request-validation
        Scheme::Hubspot(url) => HmacScheme {
            timestamp_header: HeaderName::from_static("x-hubspot-request-timestamp"),
            unit: TimeUnit::Milliseconds,
            url: url.clone(),
            ..row(
                "x-hubspot-signature-v3",
                "",
                Sha256,
                Base64,
                "{method}{url}{body}{timestamp}",
            )
        },
        // https://developer.atlassian.com/cloud/trello/guides/rest-api/webhooks/#webhook-signatures
        Scheme::Trello(url) => HmacScheme {
            url: url.clone(),
            ..row("x-trello-webhook", "", Sha1, Base64, "{body}{url}")
        },
        Scheme::Hmac(how) => (**how).clone(),
        _ => return None,
    })
}

/// Whether requests of `scheme` have a header `name` of this kind.
pub(super) fn sets(scheme: &Scheme, name: &HeaderName) -> bool {
    row(scheme).is_some_and(|how| [how.header, how.id_header, how.timestamp_header].contains(name))
}

/// What the words of a signed text stand for in one request.
struct Words<'a> {
    id: &'a str,
    timestamp: &'a str,
    url: &'a str,
    method: &'a str,
    body: &'a [u8],
}

impl<'a> Words<'a> {
    fn of(&self, part: &'a Part) -> &'a [u8] {
        match part {
            Part::Literal(text) => text.as_bytes(),
            Part::Word(Word::Id) => self.id.as_bytes(),
            Part::Word(Word::Timestamp) => self.timestamp.as_bytes(),
            Part::Word(Word::Url) => self.url.as_bytes(),
            Part::Word(Word::Method) => self.method.as_bytes(),
            Part::Word(Word::Body) => self.body,
            // The config refuses these words in what is signed.
            Part::Word(_) => b"",
        }
    }
}

fn parts<'a>(signed: &'a Worded, words: &'a Words<'a>) -> impl Iterator<Item = &'a [u8]> {
    signed.parts.iter().map(|part| words.of(part))
}

impl SingleKeys {
    /// `None` when `scheme` is something else.
    pub(super) fn new(scheme: &Scheme, secrets: &[Secret]) -> Result<Option<Self>, SecretError> {
        let Some(how) = row(scheme) else {
            return Ok(None);
        };
        let mac = |secret: &Secret| Ok(Mac::new(how.hash, &key(secret.expose(), how.key)?));
        Ok(Some(Self {
            macs: secrets.iter().map(mac).collect::<Result<_, _>>()?,
            how,
        }))
    }

    pub(super) fn sign(&self, event: Facts<'_>, at: Timestamp, request: &mut Outgoing) {
        let how = &self.how;
        let timestamp = match how.unit {
            TimeUnit::Seconds => at.as_second(),
            TimeUnit::Milliseconds => at.as_millisecond(),
        };
        let timestamp = timestamp.to_string();
        let words = Words {
            id: event.id.as_str(),
            timestamp: &timestamp,
            url: how.url.or_sent(request.url.as_str()),
            method: request.method.as_str(),
            body: &request.body,
        };
        let Some(newest) = self.macs.first() else {
            return;
        };
        let tag = newest.tag(parts(&how.signed, &words));
        let signature = format!("{}{}", how.prefix, tag.written(how.encoding));
        put(&mut request.headers, how.header.clone(), signature);
        if how.signed.has(Word::Timestamp) {
            let name = how.timestamp_header.clone();
            put(&mut request.headers, name, timestamp);
        }
        if how.signed.has(Word::Id) && how.id_header != ID {
            let id = event.id.as_str().to_owned();
            put(&mut request.headers, how.id_header.clone(), id);
        }
    }

    pub(super) fn verify(&self, request: &Received<'_>, clock: Clock) -> Result<(), VerifyError> {
        let how = &self.how;
        let text = |word, name| match how.signed.has(word) {
            true => text_of(request.headers, name),
            false => Ok(""),
        };
        let words = Words {
            id: text(Word::Id, &how.id_header)?,
            timestamp: text(Word::Timestamp, &how.timestamp_header)?,
            url: how.url.or_sent(request.url),
            method: request.method.as_str(),
            body: request.body,
        };
        if how.signed.has(Word::Timestamp) {
            clock.check(words.timestamp, how.unit, &how.timestamp_header)?;
        }
        let given = text_of(request.headers, &how.header)?;
        let mut found = false;
        for mac in &self.macs {
            let tag = mac.tag(parts(&how.signed, &words));
            let expected = format!("{}{}", how.prefix, tag.written(how.encoding));
            found |= same(given, &expected);
        }
        found.then_some(()).ok_or(VerifyError::Mismatch)
    }
}
