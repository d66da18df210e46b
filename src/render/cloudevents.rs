//! `cloudevents`, `cloudevents-binary`, `cloudevents-batch`: CloudEvents 1.0 over HTTP.
//!
//! An event that came as a CloudEvent, in whatever mode, leaves with the attributes that it came
//! with; of another they are made of what the bridge knows. See
//! <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md>.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};

use super::json::{self, Json};
use super::{Formed, Piece, RenderError, headers, raw};
use crate::event::cloud;
use crate::event::context::{Parent, TRACEPARENT, TRACESTATE, TraceContext};
use crate::subscription::{CloudEvents, CloudEventsMode};

const STRUCTURED: HeaderValue =
    HeaderValue::from_static("application/cloudevents+json; charset=UTF-8");
pub(super) const BATCH: HeaderValue =
    HeaderValue::from_static("application/cloudevents-batch+json; charset=UTF-8");
/// Members of a structured event that are no attributes.
const DATA: &str = "data";
const DATA_BASE64: &str = "data_base64";
const MANDATORY: [&str; 4] = ["specversion", "id", "source", "type"];
/// Attributes that the specification names; all others are extensions, which may be anything.
const CONTEXT: [&str; 8] = [
    "specversion",
    "id",
    "source",
    "type",
    "time",
    "subject",
    "datacontenttype",
    "dataschema",
];
const CONTENT_TYPE: &str = "datacontenttype";

/// An event as CloudEvents sees it.
struct Known {
    /// In the order in which they are written. Values are scalars.
    attributes: Vec<(Box<str>, Json)>,
    data: Content,
}

enum Content {
    None,
    /// Written as it is, into JSON or as the body.
    Json(String),
    Text(String),
    Binary(Vec<u8>),
}

pub(super) fn form(settings: &CloudEvents, piece: &Piece<'_>) -> Result<Formed, RenderError> {
    let coding = piece.coding();
    if settings.mode != CloudEventsMode::Binary && coding.is_some() {
        return Err(RenderError::new(
            "the body is compressed, which a CloudEvent cannot say of its data",
        ));
    }
    let known = match cloud::is_structured(piece.said_type()) {
        true => structured(piece)?,
        false => Known {
            attributes: attributes(settings, piece),
            data: content(piece)?,
        },
    };
    Ok(match settings.mode {
        CloudEventsMode::Structured => Formed::of(known.written(), STRUCTURED),
        CloudEventsMode::Batch => Formed::of(format!("[{}]", known.written()), BATCH),
        CloudEventsMode::Binary => known.binary(piece),
    })
}

/// An event that came in structured mode. What `fields` changes are its data and its extensions.
fn structured(piece: &Piece<'_>) -> Result<Known, RenderError> {
    let whole = piece.came.json()?;
    let is_there = |name: &&str| {
        let value = whole.get(name).and_then(Json::plain);
        value.is_some_and(|value| !value.is_empty())
    };
    if let Some(missing) = MANDATORY.iter().find(|name| !is_there(name)) {
        let why = format!("the message says that it is a CloudEvent, and has no `{missing}`");
        return Err(RenderError::new(why));
    }
    let Json::Object(members) = whole else {
        return Err(RenderError::not_json());
    };
    let left = piece.data().json()?;
    let mut attributes = Vec::with_capacity(members.len());
    for (name, came) in members {
        let kept = match &**name {
            DATA | DATA_BASE64 => None,
            name if CONTEXT.contains(&name) => Some(came),
            name => left.get(name),
        };
        let Some(value) = kept.filter(|value| **value != Json::Null) else {
            continue;
        };
        if value.plain().is_none() {
            let why = format!("the attribute `{name}` of the CloudEvent is not a single value");
            return Err(RenderError::new(why));
        }
        attributes.push((name.clone(), value.clone()));
    }
    let data = match (left.get(DATA), left.get(DATA_BASE64)) {
        (_, Some(Json::Text(encoded))) => Content::Binary(
            STANDARD
                .decode(encoded.as_bytes())
                .map_err(|_| RenderError::new("`data_base64` of the CloudEvent is not base64"))?,
        ),
        (Some(Json::Text(text)), _) if !is_json(given(&attributes, CONTENT_TYPE)) => {
            Content::Text(text.to_string())
        }
        (Some(data), _) => {
            let mut text = String::new();
            data.write(&mut text);
            Content::Json(text)
        }
        (None, _) => Content::None,
    };
    Ok(Known { attributes, data })
}

/// The attributes that the message's headers have, or else those that the bridge gives it.
fn attributes(settings: &CloudEvents, piece: &Piece<'_>) -> Vec<(Box<str>, Json)> {
    let event = piece.event;
    let mut came: Vec<(Box<str>, Json)> = cloud::attributes(&event.headers)
        .map(|(name, value)| (name.into(), Json::Text(value.into())))
        .collect();
    // Where the event began goes before where the message came from; neither is mixed with the other.
    let began = came.iter().any(|(name, value)| {
        let text = value.plain().unwrap_or_default();
        **name == *TRACEPARENT && Parent::parse(text).is_some()
    });
    if !began {
        came.retain(|(name, _)| ![TRACEPARENT, TRACESTATE].contains(&&**name));
    }
    let trace = match began {
        true => TraceContext::default(),
        false => TraceContext::of(event),
    };
    let mut all: Vec<(Box<str>, Json)> = Vec::with_capacity(came.len() + 6);
    let mut put = |name: &str, made: Option<String>| {
        let at = came.iter().position(|(other, _)| **other == *name);
        let found = at.map(|at| came.remove(at).1);
        let value = found.or_else(|| made.map(|made| Json::Text(made.into())));
        all.extend(value.map(|value| (name.into(), value)));
    };
    let source = settings.source.as_deref().unwrap_or(&event.source);
    let kind = match &*event.kind {
        "" => "event",
        kind => kind,
    };
    put("specversion", Some("1.0".to_owned()));
    put("id", Some(event.id.to_string()));
    put("source", Some(source.to_owned()));
    put("type", Some(kind.to_owned()));
    put("time", Some(piece.at.to_string()));
    put("subject", None);
    put(TRACEPARENT, trace.traceparent.map(Into::into));
    put(TRACESTATE, trace.tracestate.map(Into::into));
    // Of a message that has its data's type as its own.
    came.retain(|(name, _)| **name != *CONTENT_TYPE);
    if !piece.data().bytes.is_empty() {
        let content_type = piece.content_type();
        let text = String::from_utf8_lossy(content_type.as_bytes()).into_owned();
        all.push((CONTENT_TYPE.into(), Json::Text(text.into())));
    }
    all.append(&mut came);
    all
}

/// The message's body as the data.
fn content(piece: &Piece<'_>) -> Result<Content, RenderError> {
    let bytes = &piece.data().bytes;
    if bytes.is_empty() {
        return Ok(Content::None);
    }
    let content_type = piece.content_type();
    let said = content_type.to_str().ok();
    if is_json(said)
        && let Ok(text) = piece.data().json_text()
    {
        return Ok(Content::Json(text.to_owned()));
    }
    Ok(match std::str::from_utf8(bytes) {
        Ok(text) if is_text(said) => Content::Text(text.to_owned()),
        _ => Content::Binary(bytes.to_vec()),
    })
}

fn given<'a>(attributes: &'a [(Box<str>, Json)], name: &str) -> Option<&'a str> {
    let found = attributes.iter().find(|(other, _)| **other == *name);
    found.and_then(|(_, value)| value.plain())
}

/// Data of no type is JSON in a structured event.
fn is_json(content_type: Option<&str>) -> bool {
    let Some(given) = content_type else {
        return true;
    };
    super::is_json(given)
}

fn is_text(content_type: Option<&str>) -> bool {
    let essence = super::essence(content_type.unwrap_or_default()).to_ascii_lowercase();
    essence.starts_with("text/") || essence.ends_with("/xml") || essence.ends_with("+xml")
}

impl Known {
    /// As one JSON object.
    fn written(&self) -> String {
        let mut out = String::from("{");
        for (name, value) in &self.attributes {
            json::write_text(name, &mut out);
            out.push(':');
            value.write(&mut out);
            out.push(',');
        }
        match &self.data {
            Content::None => drop(out.pop()),
            Content::Json(text) => {
                out.push_str("\"data\":");
                out.push_str(text);
            }
            Content::Text(text) => {
                out.push_str("\"data\":");
                json::write_text(text, &mut out);
            }
            Content::Binary(bytes) => {
                out.push_str("\"data_base64\":");
                json::write_text(&STANDARD.encode(bytes), &mut out);
            }
        }
        out.push('}');
        out
    }

    /// The attributes as headers, the data as the body.
    fn binary(self, piece: &Piece<'_>) -> Formed {
        let mut content_type = piece.content_type();
        let mut out = Vec::with_capacity(self.attributes.len());
        for (name, value) in &self.attributes {
            let Some(value) = value.plain() else { continue };
            if **name == *CONTENT_TYPE {
                content_type = headers::value(value).unwrap_or(content_type);
            } else if let Ok(name) = HeaderName::try_from(format!("ce-{name}")) {
                out.push((name, attribute(value)));
            }
        }
        let typed = given(&self.attributes, CONTENT_TYPE).is_some();
        let body = match self.data {
            Content::None => Vec::new(),
            Content::Json(text) | Content::Text(text) => text.into_bytes(),
            Content::Binary(bytes) => bytes,
        };
        if !typed {
            content_type = raw::JSON;
        }
        let content_type = (!body.is_empty()).then_some(content_type);
        let encoding = piece.coding();
        Formed {
            body: body.into(),
            content_type,
            content_encoding: encoding.and_then(headers::value),
            headers: out,
            ..Formed::default()
        }
    }
}

/// A value as the HTTP binding writes it in a header.
fn attribute(value: &str) -> HeaderValue {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'"' | b'%' => headers::percent(byte, &mut out),
            b'!'..=b'~' => out.push(byte as char),
            _ => headers::percent(byte, &mut out),
        }
    }
    HeaderValue::try_from(out).expect("only visible ASCII is left")
}
