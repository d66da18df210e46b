//! `template`: body, headers, query and path as minijinja templates have them.
//!
//! A template knows `id`, `topic`, `type`, `time`, `source`, `tenant`, `headers` (of the message), `data`
//! (its body as JSON), `body` (the same as text), `params` (of the config) and `version`. What is not
//! there is an error, not an empty text. In a body that is to be JSON every value is written as JSON, quotes included, and
//! the whole is checked to be JSON; in XML and HTML values are escaped as those need.
//!
//! What a template gives can fill in the request, and never change where it goes or what it is
//! made of: a header's value, a query's value and a segment of the path are encoded, scheme and
//! host are no template. Work and output are limited, whatever the data is.

mod filters;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use serde::de::IgnoredAny;

use super::json::Json;
use super::{Formed, Piece, RenderError, headers};
use crate::subscription::{Adapted, Setting, Template, TemplateText};

/// Instructions that one text may take: some milliseconds.
const FUEL: u64 = 200_000;
const LARGEST_BODY: usize = 16 << 20;
/// Of a header's, a query's or a segment's text.
const LARGEST_PART: usize = 8 << 10;
const RECURSION: usize = 64;
/// What templates know; `data` only where the body is JSON.
const NAMES: [&str; 11] = [
    "id", "topic", "type", "time", "source", "tenant", "headers", "data", "body", "params",
    "version",
];

/// The compiled templates of one endpoint.
pub(super) struct Templates {
    engine: Environment<'static>,
    body: Option<Part>,
    content_type: HeaderValue,
    is_json: bool,
    headers: Vec<(HeaderName, Part)>,
    query: Vec<(Arc<str>, Part)>,
    path: Vec<Part>,
    params: Value,
    /// Rendered before all others, and known to them as `params`.
    settings: Vec<(Arc<str>, Filled)>,
    longest_body: usize,
}

/// A setting of a built-in template.
enum Filled {
    Text(Part),
    Fields(Vec<(Arc<str>, Part)>),
}

impl Filled {
    fn parts(&self) -> Vec<&Part> {
        match self {
            Self::Text(part) => vec![part],
            Self::Fields(fields) => fields.iter().map(|(_, part)| part).collect(),
        }
    }
}

/// One text: its name in the engine, and as problems call it.
struct Part {
    name: String,
    called: Arc<str>,
    needs_data: bool,
    needs_body: bool,
}

/// What is wrong with a template, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateProblem {
    /// What kind of mistake it is; shows nothing of the text.
    pub kind: String,
    /// More about it, which may repeat words of the text.
    pub detail: Option<String>,
    /// From 1.
    pub line: usize,
    /// In bytes of the text.
    pub range: Option<Range<usize>>,
}

/// Whether `text` is a template. For the config, which has no other use for it yet.
pub fn check_template(text: &str) -> Result<(), TemplateProblem> {
    let mut engine = engine();
    let problem = |error: &Error| TemplateProblem {
        kind: error.kind().to_string(),
        detail: error.detail().map(str::to_owned),
        line: error.line().unwrap_or(1),
        range: error.range(),
    };
    engine
        .add_template_owned("text".to_owned(), text.to_owned())
        .map_err(|error| problem(&error))?;
    let compiled = engine
        .get_template("text")
        .map_err(|error| problem(&error))?;
    let mut unknown: Vec<_> = compiled.undeclared_variables(false).into_iter().collect();
    unknown.retain(|name| {
        !NAMES.contains(&&**name) && engine.globals().all(|(global, _)| global != name)
    });
    unknown.sort();
    let Some(name) = unknown.first() else {
        engine.set_undefined_behavior(UndefinedBehavior::Chainable);
        return match misnamed(&engine) {
            Some(error) => Err(problem(&error)),
            None => Ok(()),
        };
    };
    let at = word(text, name);
    Err(TemplateProblem {
        kind: "a name that templates do not know".to_owned(),
        detail: Some(format!("`{name}`; there are {}", NAMES.join(", "))),
        line: at.map_or(1, |at| text[..at].matches('\n').count() + 1),
        range: at.map(|at| at..at + name.len()),
    })
}

/// A filter or a test that there is none of, as far as the template gets to it with nothing in hand:
/// minijinja looks for them only then.
fn misnamed(engine: &Environment<'static>) -> Option<Error> {
    let mut out = Limited {
        text: Vec::new(),
        limit: LARGEST_PART,
    };
    let template = engine.get_template("text").ok()?;
    let error = template.render_captured_to((), &mut out).err()?;
    let kinds = [ErrorKind::UnknownFilter, ErrorKind::UnknownTest];
    kinds.contains(&error.kind()).then_some(error)
}

/// Where `name` stands in `text` as a word.
fn word(text: &str, name: &str) -> Option<usize> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name).map(|(at, _)| at).find(|at| {
        let before = text[..*at].chars().next_back();
        let after = text[at + name.len()..].chars().next();
        !before.is_some_and(|c| part(c) || c == '.') && !after.is_some_and(part)
    })
}

fn engine() -> Environment<'static> {
    let mut engine = Environment::new();
    engine.set_undefined_behavior(UndefinedBehavior::Strict);
    engine.set_fuel(Some(FUEL));
    engine.set_recursion_limit(RECURSION);
    // So that an error names what is not there. It holds variables too, which only its `Debug` and
    // its `{:#}` print.
    engine.set_debug(true);
    // Of these a small text makes one of any length, which no other limit sees.
    engine.remove_filter("indent");
    filters::add(&mut engine);
    engine.set_auto_escape_callback(|name| match name.rsplit_once('.') {
        Some((_, "json")) => AutoEscape::Json,
        Some((_, "xml")) => AutoEscape::Html,
        _ => AutoEscape::None,
    });
    engine
}

impl Templates {
    pub(super) fn new(template: &Template) -> Result<Self, RenderError> {
        let mut engine = engine();
        let mut part = |name: String, text: &TemplateText| {
            engine
                .add_template_owned(name.clone(), text.text.to_string())
                .map_err(|error| failed(&text.name, &error))?;
            let compiled = engine.get_template(&name);
            let compiled = compiled.map_err(|error| failed(&text.name, &error))?;
            let names = compiled.undeclared_variables(false);
            Ok::<_, RenderError>(Part {
                needs_data: names.contains("data"),
                needs_body: names.contains("body"),
                called: text.name.clone(),
                name,
            })
        };
        let content_type = HeaderValue::from_str(&template.content_type)
            .map_err(|_| RenderError::new("the content type cannot be a header"))?;
        let is_json = super::is_json(&template.content_type);
        let essence = super::essence(&template.content_type).to_ascii_lowercase();
        let escaped = if is_json {
            "body.json"
        } else if essence.ends_with("xml") || essence == "text/html" {
            "body.xml"
        } else {
            "body"
        };
        let body = template.body.as_ref();
        let body = body
            .map(|text| part(escaped.to_owned(), text))
            .transpose()?;
        let headers = template.headers.iter();
        let headers = headers
            .map(|(name, text)| Ok((name.clone(), part(format!("header {name}"), text)?)))
            .collect::<Result<_, RenderError>>()?;
        let query = template.query.iter();
        let query = query
            .map(|(name, text)| Ok((name.clone(), part(format!("query {name} "), text)?)))
            .collect::<Result<_, RenderError>>()?;
        let path = template.path.iter().enumerate();
        let path = path
            .map(|(number, text)| part(format!("path {number}"), text))
            .collect::<Result<_, RenderError>>()?;
        let params = template.params.iter();
        let params = params.map(|(name, text)| (&**name, Value::from(&**text)));
        let adapted = template.adapted.as_ref();
        let settings = adapted.map_or(&[][..], |adapted| &adapted.settings);
        let settings = settings.iter().map(|(name, setting)| {
            let filled = match setting {
                Setting::Text(text) => Filled::Text(part(format!("setting {name} "), text)?),
                Setting::Fields(fields) => Filled::Fields(
                    fields
                        .iter()
                        .map(|(field, text)| {
                            let part = part(format!("setting {name} {field} "), text)?;
                            Ok((field.clone(), part))
                        })
                        .collect::<Result<_, RenderError>>()?,
                ),
            };
            Ok::<_, RenderError>((name.clone(), filled))
        });
        let settings = settings.collect::<Result<_, RenderError>>()?;
        let longest = adapted.and_then(|Adapted { longest_body, .. }| *longest_body);
        Ok(Self {
            body,
            content_type,
            is_json,
            headers,
            query,
            path,
            params: Value::from_pairs(params),
            settings,
            longest_body: longest.unwrap_or(LARGEST_BODY),
            engine,
        })
    }

    pub(super) fn form(&self, piece: &Piece<'_>) -> Result<Formed, RenderError> {
        let context = self.context(piece)?;
        let mut formed = Formed::default();
        if let Some(body) = &self.body {
            let text = self.text(body, &context, self.longest_body)?;
            if self.is_json
                && let Err(error) = serde_json::from_slice::<IgnoredAny>(&text)
            {
                let called = &body.called;
                return Err(RenderError::new(format!(
                    "what {called} makes is not JSON: {error} of it"
                )));
            }
            formed.body = Bytes::from(text);
            formed.content_type = Some(self.content_type.clone());
        }
        for (name, part) in &self.headers {
            let text = self.part(part, &context)?;
            formed.headers.push((name.clone(), headers::encoded(&text)));
        }
        for (name, part) in &self.query {
            let text = self.part(part, &context)?;
            formed.query.push((name.to_string(), text));
        }
        for part in &self.path {
            let text = self.part(part, &context)?;
            // A URL has no place for these: they would be the path before them, or nothing.
            if ["", ".", ".."].contains(&&*text) {
                let called = &part.called;
                let why = format!("{called} makes `{text}`, which is no segment of a path");
                return Err(RenderError::new(why));
            }
            formed.path.push(text);
        }
        Ok(formed)
    }

    fn context(&self, piece: &Piece<'_>) -> Result<Value, RenderError> {
        let event = piece.event;
        let texts = event
            .headers
            .iter()
            .filter_map(|(name, value)| Some((name, Value::from(value.as_str()?))));
        let mut pairs = vec![
            ("id", Value::from(event.id.as_str())),
            ("topic", Value::from(&*event.topic)),
            ("type", Value::from(&*event.kind)),
            ("time", Value::from(piece.at.to_string())),
            ("source", Value::from(&*event.source)),
            (
                "tenant",
                Value::from(event.tenant.as_deref().unwrap_or_default()),
            ),
            ("headers", Value::from_pairs(texts)),
            ("version", Value::from(piece.version.unwrap_or_default())),
        ];
        let parts = self.headers.iter().map(|(_, part)| part);
        let parts = parts.chain(self.query.iter().map(|(_, part)| part));
        let parts = parts.chain(&self.path).chain(&self.body);
        let of_settings = self.settings.iter().flat_map(|(_, filled)| filled.parts());
        let parts: Vec<_> = parts.chain(of_settings).collect();
        if parts.iter().any(|part| part.needs_data) {
            pairs.push(("data", value(piece.data().json()?)));
        }
        if parts.iter().any(|part| part.needs_body) {
            let text = String::from_utf8_lossy(&piece.data().bytes);
            pairs.push(("body", Value::from(text.into_owned())));
        }
        if self.settings.is_empty() {
            pairs.push(("params", self.params.clone()));
            return Ok(Value::from_pairs(pairs));
        }
        let plain = pairs.iter().cloned();
        let plain = Value::from_pairs(plain.chain([("params", self.params.clone())]));
        let mut known = BTreeMap::new();
        for name in self.params.try_iter().into_iter().flatten() {
            let value = self.params.get_item(&name).unwrap_or_default();
            known.insert(name.to_string(), value);
        }
        for (name, filled) in &self.settings {
            known.insert(name.to_string(), self.filled(filled, &plain)?);
        }
        pairs.push(("params", Value::from_pairs(known)));
        Ok(Value::from_pairs(pairs))
    }

    fn filled(&self, filled: &Filled, context: &Value) -> Result<Value, RenderError> {
        let text = |part: &Part| {
            let text = self.text(part, context, LARGEST_BODY)?;
            Ok(Value::from(String::from_utf8_lossy(&text).into_owned()))
        };
        match filled {
            Filled::Text(part) => text(part),
            Filled::Fields(fields) => fields
                .iter()
                .map(|(name, part)| {
                    let pairs = [("name", Value::from(&**name)), ("value", text(part)?)];
                    Ok(Value::from_pairs(pairs))
                })
                .collect(),
        }
    }

    fn part(&self, part: &Part, context: &Value) -> Result<String, RenderError> {
        let text = self.text(part, context, LARGEST_PART)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn text(&self, part: &Part, context: &Value, limit: usize) -> Result<Vec<u8>, RenderError> {
        let mut out = Limited {
            text: Vec::new(),
            limit,
        };
        self.engine
            .get_template(&part.name)
            .and_then(|template| {
                let done = template.render_captured_to(context.clone(), &mut out);
                done.map(drop)
            })
            .map_err(|error| failed(&part.called, &error))?;
        Ok(out.text)
    }
}

/// Says what is wrong, and in which line, without showing any value.
fn failed(called: &str, error: &Error) -> RenderError {
    let line = error.line().map(|line| format!(", line {line}"));
    let line = line.unwrap_or_default();
    let what = match error.kind() {
        ErrorKind::OutOfFuel => format!("more than {FUEL} steps"),
        ErrorKind::WriteFailure => "the text is too long".to_owned(),
        kind => match error.detail() {
            Some(detail) => format!("{kind}: {detail}"),
            None => kind.to_string(),
        },
    };
    RenderError::new(format!("{called}{line}: {what}"))
}

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(is) => Value::from(*is),
        Json::Number(number) => {
            if let Ok(whole) = number.parse::<i128>() {
                return Value::from(whole);
            }
            match number.parse::<f64>() {
                Ok(fraction) if fraction.is_finite() => Value::from(fraction),
                _ => Value::from(&**number),
            }
        }
        Json::Text(text) => Value::from(&**text),
        Json::List(entries) => entries.iter().map(value).collect(),
        Json::Object(members) => Value::from_pairs(
            members
                .iter()
                .map(|(name, member)| (&**name, value(member))),
        ),
    }
}

/// Refuses what is beyond a limit.
struct Limited {
    text: Vec<u8>,
    limit: usize,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > self.limit {
            return Err(io::Error::other("too long"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
