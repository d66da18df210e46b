//! Headers that say what the event is: `X-GitHub-Event`, `X-Shopify-Topic` and their like.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue};
use sha1::{Digest as _, Sha1};
use uuid::Uuid;

use crate::event::{EventId, Facts};
use crate::subscription::{Part, Scheme, Word, Worded};

/// The headers of one endpoint, and the texts that fill them.
pub(super) struct FilledHeaders(Vec<(HeaderName, Worded)>);

impl FilledHeaders {
    pub(super) fn of(scheme: &Scheme) -> Self {
        let filled = scheme.filled().map(|filled| filled.headers());
        let owned = |(name, text): (HeaderName, &Worded)| (name, text.clone());
        Self(filled.into_iter().flatten().map(owned).collect())
    }

    pub(super) fn fill(&self, event: Facts<'_>, headers: &mut HeaderMap) {
        for (name, text) in &self.0 {
            let value = HeaderValue::try_from(visible(&written(text, event)));
            headers.insert(name.clone(), value.expect("only visible ASCII is left"));
        }
    }
}

fn written(text: &Worded, event: Facts<'_>) -> String {
    let mut out = String::new();
    for part in &text.parts {
        match part {
            Part::Literal(text) => out.push_str(text),
            Part::Word(Word::Id) => out.push_str(event.id.as_str()),
            Part::Word(Word::Uuid) => out.push_str(&uuid(event.id).hyphenated().to_string()),
            Part::Word(Word::Topic) => out.push_str(event.topic),
            Part::Word(Word::TopicFirst) => out.extend(event.topic.split('.').next()),
            Part::Word(Word::TopicLast) => out.extend(event.topic.rsplit('.').next()),
            Part::Word(Word::Type) => out.push_str(event.kind),
            Part::Word(Word::Source) => out.push_str(event.source),
            // The config refuses these words in headers.
            Part::Word(Word::Timestamp | Word::Url | Word::Method | Word::Body) => {}
        }
    }
    out
}

/// Topics and types may be anything; what a header cannot carry is percent-encoded.
fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' => out.push(byte as char),
            // Writing to a string does not fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

/// Version 5 in the namespace of object ids, so that receivers can make it of `webhook-id`.
fn uuid(id: &EventId) -> Uuid {
    let mut hash = Sha1::new();
    hash.update(Uuid::NAMESPACE_OID.as_bytes());
    hash.update(id.as_str().as_bytes());
    let hash: [u8; 20] = hash.finalize().into();
    let start: [u8; 16] = hash[..16].try_into().expect("16 of 20 bytes");
    uuid::Builder::from_sha1_bytes(start).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> String {
        let id = EventId::kept("msg_1").unwrap();
        let facts = Facts {
            id: &id,
            topic: "orders.eu.created",
            kind: "Order\u{e9}\r\n",
            source: "shop",
        };
        visible(&written(&Worded::of_event(text).unwrap(), facts))
    }

    #[test]
    fn words_become_what_the_event_is() {
        assert_eq!(
            filled("{topic} {topic.first}/{topic.last} {source} {id}"),
            "orders.eu.created orders/created shop msg_1"
        );
    }

    #[test]
    fn what_a_header_cannot_carry_is_encoded() {
        assert_eq!(filled("{type}"), "Order%C3%A9%0D%0A");
    }

    /// `python3 -c 'import uuid; print(uuid.uuid5(uuid.NAMESPACE_OID, "msg_1"))'`
    #[test]
    fn the_uuid_is_the_one_that_others_make() {
        assert_eq!(filled("{uuid}"), "377e8d1b-c102-558b-bfde-8adfc9eee9af");
    }
}
