//! Rendering: what of an event goes into the request to one endpoint.
//!
//! A [`Renderer`] is made once per endpoint, so that templates and keys are compiled outside the
//! path of an event. It composes the body in one order: `fields`, `format`, `batch`, `encrypt`, `gzip`,
//! each in a file of its own; signing what is finished, and the user agent, are the courier's. An
//! endpoint that asks for none of this gets the broker's bytes ([`raw`]), and nothing is parsed or
//! copied for it. Where a format needs JSON, the body is parsed once and shared by all deliveries
//! of the event ([`SharedJson`]). What cannot be rendered is an error that says why, never a body
//! that is only nearly right.

pub mod adapters;
mod batch;
mod cloudevents;
mod encrypt;
mod envelope;
mod fields;
mod form;
mod gzip;
mod headers;
mod json;
mod query;
mod raw;
mod template;
mod version;
mod xml;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method};
use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::delivery::Delivery;
use crate::event::{Decoded, Event};
use crate::outgoing::Outgoing;
use crate::subscription::{
    CloudEvents, CloudEventsMode, Endpoint, Fields, FormFields, Format, Payload, XmlNames,
};

pub use batch::{Kin, Part, check_batch};
use encrypt::Recipient;
pub use encrypt::{KeyProblem, check_key};
use json::Json;
pub use json::SharedJson;
use template::Templates;
pub use template::{TemplateProblem, check_template};
use version::Edition;
pub use xml::is_name as is_xml_name;

/// Renders for one endpoint.
pub struct Renderer {
    /// Bytes go through as they are.
    is_plain: bool,
    fields: Option<Fields>,
    format: Maker,
    /// The endpoint's own version, which goes before those of sources.
    version: Option<Edition>,
    of_sources: BTreeMap<Arc<str>, Edition>,
    /// A body is an array, of those of one delivery or of several.
    batches: bool,
    recipient: Option<Recipient>,
    gzip: bool,
}

/// No body is made longer than this, however small what it is made of.
const LONGEST_BODY: usize = 16 << 20;

/// A format, ready to be used.
enum Maker {
    Raw,
    Envelope,
    CloudEvents(CloudEvents),
    Form(FormFields),
    Xml(XmlNames),
    Template(Box<Templates>),
}

/// Why no request can be made of an event. For people; never longer than an excerpt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RenderError(String);

impl RenderError {
    /// As long as what is kept of an answer.
    const LONGEST: usize = 512;

    fn new(why: impl Into<String>) -> Self {
        let mut why = why.into();
        why.truncate(why.floor_char_boundary(Self::LONGEST));
        Self(why)
    }

    fn too_long() -> Self {
        Self::new(format!(
            "the body would be longer than {LONGEST_BODY} bytes"
        ))
    }

    fn not_json() -> Self {
        Self::new("the body is not JSON, which the format needs")
    }
}

/// An event on its way to being a body.
struct Piece<'a> {
    event: &'a Event,
    /// When it was published, or first taken where that is not known: the same on every attempt.
    at: Timestamp,
    version: Option<&'a str>,
    /// The body as it came, or what its source has decoded of it.
    came: Data,
    decoded: Option<Decoded>,
    /// What `fields` has left of it.
    left: Option<Data>,
}

impl Piece<'_> {
    fn data(&self) -> &Data {
        self.left.as_ref().unwrap_or(&self.came)
    }

    /// The content type of [`Piece::data`].
    fn content_type(&self) -> HeaderValue {
        match &self.decoded {
            None => raw::content_type(self.event),
            Some(decoded) if decoded.is_json => raw::JSON,
            Some(decoded) => raw::typed(self.event.content_type.as_deref(), &decoded.body),
        }
    }

    /// The same as the message has it: nothing that was decoded is of the message's type, unless it
    /// was only uncompressed.
    fn said_type(&self) -> Option<&str> {
        let is_made = self.decoded.as_ref().is_some_and(|made| made.is_json);
        let said = self.event.content_type.as_deref();
        said.filter(|_| !is_made)
    }

    /// What has been done to [`Piece::data`]; what is decoded is plain.
    fn coding(&self) -> Option<&str> {
        let coding = headers::coding(self.event);
        coding.filter(|_| self.decoded.is_none())
    }
}

/// A body, and its JSON.
struct Data {
    bytes: Bytes,
    json: SharedJson,
}

impl Data {
    fn json(&self) -> Result<&Json, RenderError> {
        self.json.of(&self.bytes).ok_or_else(RenderError::not_json)
    }

    /// The text of the body, if it is JSON; it is looked through, and no tree is built.
    fn json_text(&self) -> Result<&str, RenderError> {
        let text = serde_json::from_slice::<&RawValue>(&self.bytes);
        text.map(RawValue::get).map_err(|_| RenderError::not_json())
    }
}

/// A request in its format, before its body is encrypted and compressed.
#[derive(Default)]
struct Formed {
    body: Bytes,
    content_type: Option<HeaderValue>,
    content_encoding: Option<HeaderValue>,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Appended to the URL's query.
    query: Vec<(String, String)>,
    /// Segments appended to the URL's path.
    path: Vec<String>,
}

impl Formed {
    fn of(body: impl Into<Bytes>, content_type: HeaderValue) -> Self {
        Self {
            body: body.into(),
            content_type: Some(content_type),
            ..Self::default()
        }
    }
}

impl Maker {
    /// `batches`: its bodies become parts of arrays.
    fn new(format: &Format, batches: bool) -> Result<Self, RenderError> {
        Ok(match format {
            Format::Raw => Self::Raw,
            Format::Envelope => Self::Envelope,
            Format::CloudEvents(settings) => {
                let mut settings = settings.clone();
                if batches && settings.mode == CloudEventsMode::Batch {
                    settings.mode = CloudEventsMode::Structured;
                }
                Self::CloudEvents(settings)
            }
            Format::Form(fields) => Self::Form(fields.clone()),
            Format::Xml(names) => Self::Xml(names.clone()),
            Format::Template(template) => Self::Template(Box::new(Templates::new(template)?)),
        })
    }

    fn form(&self, piece: &Piece<'_>) -> Result<Formed, RenderError> {
        match self {
            Self::Raw => Ok(raw::form(piece)),
            Self::Envelope => envelope::form(piece),
            Self::CloudEvents(settings) => cloudevents::form(settings, piece),
            Self::Form(fields) => form::form(fields, piece),
            Self::Xml(names) => xml::form(names, piece),
            Self::Template(templates) => templates.form(piece),
        }
    }
}

/// Whether the endpoint asks for nothing, where no source has a version.
fn is_plain(payload: &Payload) -> bool {
    let of_no_source = Payload {
        of_sources: Default::default(),
        ..payload.clone()
    };
    of_no_source == Payload::default()
}

impl Renderer {
    /// Compiles what `endpoint` says; an error names what of it cannot be used, which the config
    /// has checked before.
    pub fn new(endpoint: &Endpoint) -> Result<Self, RenderError> {
        let payload = &endpoint.payload;
        let batches = payload.batch.is_some();
        let recipient = payload.encrypt.as_ref().map(Recipient::new).transpose();
        let versions = payload.of_sources.iter();
        let versions = versions.filter(|_| payload.version.is_none());
        Ok(Self {
            is_plain: is_plain(payload) && endpoint.method != Method::GET,
            fields: payload.fields.clone(),
            format: Maker::new(&payload.format, batches)?,
            version: payload
                .version
                .as_deref()
                .map(|version| Edition::new(version, batches))
                .transpose()?,
            of_sources: versions
                .map(|(source, version)| Ok((source.clone(), Edition::new(version, batches)?)))
                .collect::<Result<_, RenderError>>()?,
            batches,
            recipient: recipient.map_err(|why| RenderError::new(format!("`encrypt`: {why}")))?,
            gzip: payload.gzip,
        })
    }

    /// Whether rendering may look into the body, so that parsing it is worth sharing.
    pub fn reads_json(&self) -> bool {
        !self.is_plain || !self.of_sources.is_empty()
    }

    /// The request for `delivery`, unsigned. `json` is what is known of the event's body, if that
    /// is shared.
    pub fn render(
        &self,
        delivery: &Delivery,
        json: Option<&SharedJson>,
        endpoint: &Endpoint,
        deadline: Duration,
    ) -> Result<Outgoing, RenderError> {
        let event = &*delivery.event;
        let version = self.version_of(event);
        if self.is_plain && version.is_none() {
            return Ok(raw::raw(event, endpoint, deadline));
        }
        let (mut formed, kind) = self.form(delivery, json, version)?;
        if let Some(kind) = kind {
            formed = batch::joined(kind, [&formed.body].into_iter());
        }
        self.finish(formed, version, Some(event), endpoint, deadline)
    }

    /// What of `delivery` goes into the body of a batch; `None` where it has to go by itself, by
    /// [`Renderer::render`].
    pub fn part(
        &self,
        delivery: &Delivery,
        json: Option<&SharedJson>,
    ) -> Result<Option<Part>, RenderError> {
        let version = self.version_of(&delivery.event);
        let (formed, kind) = self.form(delivery, json, version)?;
        let version = version.map(|version| version.name.clone());
        Ok(kind.map(|kind| Part::new(formed.body, kind, version)))
    }

    /// The request of these parts, unsigned, of which the first is `event`'s. They are of one
    /// [`Kin`].
    pub fn join<'a>(
        &self,
        event: &Event,
        parts: impl Iterator<Item = &'a Part> + Clone,
        endpoint: &Endpoint,
        deadline: Duration,
    ) -> Result<Outgoing, RenderError> {
        let mut all = parts.clone();
        let (first, is_one) = (all.next(), all.next().is_none());
        let Some(first) = first else {
            return Err(RenderError::new("a batch of nothing"));
        };
        let formed = batch::joined(first.kind(), parts.map(|part| &part.body));
        // Of several traces there is none to go on with.
        let traced = Some(event).filter(|_| is_one);
        self.finish(formed, self.version_of(event), traced, endpoint, deadline)
    }

    fn version_of(&self, event: &Event) -> Option<&Edition> {
        let version = self.version.as_ref();
        version.or_else(|| self.of_sources.get(&event.source))
    }

    /// The body in its format, and as what it can be a part of an array, where it is to be one.
    fn form(
        &self,
        delivery: &Delivery,
        json: Option<&SharedJson>,
        version: Option<&Edition>,
    ) -> Result<(Formed, Option<batch::Kind>), RenderError> {
        let event = &*delivery.event;
        let json = json.cloned().unwrap_or_default();
        let decoded = json.decoded().cloned();
        let bytes = decoded
            .as_ref()
            .map_or(&event.body, |decoded| &decoded.body);
        let came = Data {
            bytes: bytes.clone(),
            json,
        };
        let fields = self.fields.as_ref();
        let piece = Piece {
            event,
            at: event.published_at.unwrap_or(delivery.progress.taken_at),
            version: version.map(|version| &*version.name),
            left: fields.map(|fields| left(fields, &came)).transpose()?,
            came,
            decoded,
        };
        let maker = version.and_then(|version| version.format(&event.kind));
        let maker = maker.unwrap_or(&self.format);
        let formed = maker.form(&piece)?;
        let kind = match self.batches {
            true => batch::kind(maker, &piece, &formed),
            false => None,
        };
        Ok((formed, kind))
    }

    /// What comes after the format. `traced`: whose trace goes on.
    fn finish(
        &self,
        mut formed: Formed,
        version: Option<&Edition>,
        traced: Option<&Event>,
        endpoint: &Endpoint,
        deadline: Duration,
    ) -> Result<Outgoing, RenderError> {
        if endpoint.method == Method::GET {
            formed = query::instead_of_body(formed)?;
        }
        let mut headers = headers::of(endpoint);
        if let Some(recipient) = &self.recipient {
            formed = recipient.encrypt(formed)?;
            headers.remove(CONTENT_TYPE);
        }
        if self.gzip {
            formed = gzip::compress(formed);
            headers.remove(CONTENT_ENCODING);
        }
        if let Some(content_type) = formed.content_type {
            headers.entry(CONTENT_TYPE).or_insert(content_type);
        }
        if let Some(encoding) = formed.content_encoding {
            headers.entry(CONTENT_ENCODING).or_insert(encoding);
        }
        let of_version = version.map(Edition::headers).into_iter().flatten();
        for (name, value) in formed.headers.into_iter().chain(of_version) {
            headers.entry(name).or_insert(value);
        }
        if let Some(event) = traced {
            headers::pass_on_trace(event, &mut headers);
        }
        Ok(Outgoing {
            method: endpoint.method.clone(),
            url: query::extended(&endpoint.url, &formed.path, &formed.query)?,
            headers,
            body: formed.body,
            deadline,
        })
    }
}

/// What `fields` leaves of a body.
fn left(fields: &Fields, came: &Data) -> Result<Data, RenderError> {
    let left = fields::apply(fields, came.json()?);
    let mut text = String::with_capacity(came.bytes.len());
    left.write(&mut text);
    Ok(Data {
        bytes: text.into(),
        json: SharedJson::known(left),
    })
}

/// A content type without its parameters.
fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Whether a content type is that of JSON.
fn is_json(content_type: &str) -> bool {
    let essence = essence(content_type).to_ascii_lowercase();
    essence.ends_with("/json") || essence.ends_with("+json")
}

#[cfg(test)]
mod tests;
