//! `batch`: the bodies of several deliveries as one, a JSON array of them.
//!
//! The array is written around the bodies as the format has made them; none is parsed for it but
//! those of `raw`, of which it is not known whether they are JSON. What is none goes alone, as it
//! came.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;

use super::cloudevents::BATCH;
use super::raw::JSON;
use super::{Formed, Maker, Piece, essence, headers, is_json};
use crate::subscription::{CloudEventsMode, Format};

/// The content type of one structured CloudEvent.
const STRUCTURED: &str = "application/cloudevents+json";

/// One delivery's share in a body.
#[derive(Debug)]
pub struct Part {
    pub(super) body: Bytes,
    kind: Kind,
    /// The version of the payload that it is in.
    version: Option<Arc<str>>,
}

/// What an array is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Json,
    /// Structured CloudEvents, of which the array is a CloudEvents batch.
    CloudEvents,
}

/// What parts have in common that go together in one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kin {
    kind: Kind,
    version: Option<Arc<str>>,
}

impl Part {
    pub(super) fn new(body: Bytes, kind: Kind, version: Option<Arc<str>>) -> Self {
        Self {
            body,
            kind,
            version,
        }
    }

    /// As the format has made it.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    pub fn kin(&self) -> Kin {
        Kin {
            kind: self.kind,
            version: self.version.clone(),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }
}

/// As what `formed` can be a part of an array; `None`: it is no JSON.
pub(super) fn kind(maker: &Maker, piece: &Piece<'_>, formed: &Formed) -> Option<Kind> {
    if let Maker::Raw = maker
        && (headers::coding(piece.event).is_some() || piece.data().json_text().is_err())
    {
        return None;
    }
    let said = formed.content_type.as_ref();
    let said = said.and_then(|value| value.to_str().ok());
    let is_event = said.is_some_and(|said| essence(said).eq_ignore_ascii_case(STRUCTURED));
    Some(match is_event {
        true => Kind::CloudEvents,
        false => Kind::Json,
    })
}

/// The array of `bodies`.
pub(super) fn joined<'a>(kind: Kind, bodies: impl Iterator<Item = &'a Bytes> + Clone) -> Formed {
    let length: usize = bodies.clone().map(|body| body.len() + 1).sum();
    let mut all = Vec::with_capacity(length + 2);
    all.push(b'[');
    for (number, body) in bodies.enumerate() {
        if number > 0 {
            all.push(b',');
        }
        all.extend_from_slice(body);
    }
    all.push(b']');
    let content_type: HeaderValue = match kind {
        Kind::Json => JSON,
        Kind::CloudEvents => BATCH,
    };
    Formed::of(all, content_type)
}

/// Whether bodies of this format can be parts of an array, or why not.
pub fn check_batch(format: &Format) -> Result<(), &'static str> {
    match format {
        Format::Raw | Format::Envelope => Ok(()),
        Format::CloudEvents(events) if events.mode != CloudEventsMode::Binary => Ok(()),
        Format::CloudEvents(_) => Err("has attributes of one event in its headers"),
        Format::Template(template) if template.adapted.is_some() => Err("makes one message"),
        Format::Template(template) if !template.headers.is_empty() => {
            Err("has headers of one event")
        }
        Format::Template(template) if !template.query.is_empty() || !template.path.is_empty() => {
            Err("has a URL of one event")
        }
        Format::Template(template) if template.body.is_none() => Err("has no body"),
        Format::Template(template) if is_json(&template.content_type) => Ok(()),
        _ => Err("is not JSON"),
    }
}
