//! Content filters: conditions over an event's id, topic, type, time, headers and JSON body.
//!
//! A filter is compiled once ([`Filter::compile`], in `compile.rs`) and asked once for each event
//! that its subscription's topics and types let through. The body is parsed by the first condition
//! that looks into it and by no other ([`LazyJson`], shared by all subscriptions of the event); a
//! filter that does not look is never the reason for a parse.
//!
//! Over a body that is not JSON a condition on `data` is neither true nor false, nor is its
//! negation, so a filter matches such an event only when its other conditions alone decide it.
//! Counting these events ([`LazyJson::is_unparsable`]) is left to the caller.

mod compile;
mod value;

use std::borrow::Cow;
use std::fmt;
use std::sync::OnceLock;

use regex::Regex;
use serde_json::Value;

use crate::event::{Event, HeaderValue};

pub use value::compare_numbers;
use value::{Found, Literal};

/// A compiled filter over an event.
#[derive(Debug, Clone)]
pub struct Filter {
    root: Node,
    needs_data: bool,
}

/// Why a filter is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FilterError {
    /// JSON pointer to the wrong part (`/data.total/$gte`); empty for the filter as a whole.
    pub path: String,
    pub message: String,
}

impl Filter {
    /// Nesting of `$and`, `$or` and `$not`.
    pub const MAX_DEPTH: usize = 16;
    /// Conditions and list entries in one filter.
    pub const MAX_CONDITIONS: usize = 1_000;
    /// `$regex` in one filter.
    pub const MAX_REGEXES: usize = 64;
    /// Memory of one compiled `$regex`, in bytes.
    pub const MAX_REGEX_BYTES: usize = 256 << 10;

    /// Compiles a filter as it stands in the config. The first problem found is the error.
    pub fn compile(filter: &Value) -> Result<Self, FilterError> {
        let root = compile::filter(filter)?;
        let needs_data = root.needs_data();
        Ok(Self { root, needs_data })
    }

    /// Whether some condition looks into the body.
    pub fn needs_data(&self) -> bool {
        self.needs_data
    }

    /// Whether the filter lets `event` through. `body` is the event's own body, decoded.
    pub fn matches(&self, event: &Event, body: &LazyJson<'_>) -> bool {
        self.root.holds(event, body) == Some(true)
    }
}

/// An event's body, parsed as JSON at most once and only when somebody asks.
pub struct LazyJson<'a> {
    body: &'a [u8],
    parsed: OnceLock<Option<Value>>,
}

impl<'a> LazyJson<'a> {
    pub fn new(body: &'a [u8]) -> Self {
        Self {
            body,
            parsed: OnceLock::new(),
        }
    }

    /// The parsed body; `None` if it is not JSON, or nested deeper than 128 levels.
    pub fn get(&self) -> Option<&Value> {
        self.parsed
            .get_or_init(|| serde_json::from_slice(self.body).ok())
            .as_ref()
    }

    /// Whether somebody asked and the body was not JSON.
    pub fn is_unparsable(&self) -> bool {
        matches!(self.parsed.get(), Some(None))
    }
}

impl fmt::Debug for LazyJson<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyJson")
            .field("bytes", &self.body.len())
            .field("asked", &self.parsed.get().is_some())
            .finish()
    }
}

/// A filter or a part of one. In `All` and `Any` those that need the body stand last.
#[derive(Debug, Clone)]
enum Node {
    All(Box<[Node]>),
    Any(Box<[Node]>),
    Not(Box<Node>),
    Test(Subject, Test),
}

/// What a condition is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    Id,
    Topic,
    Type,
    Time,
    /// The first header of this name, compared byte for byte.
    Header(Box<str>),
    /// A place in the body; no steps is all of it.
    Data(Box<[Step]>),
}

/// One step of a path: a member of an object, or an entry of an array where it is a number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    key: Box<str>,
    index: Option<usize>,
}

#[derive(Debug, Clone)]
enum Test {
    Exists(bool),
    Equals(Literal),
    OneOf(Box<[Literal]>),
    Greater(Literal),
    GreaterOrEqual(Literal),
    Less(Literal),
    LessOrEqual(Literal),
    StartsWith(Box<str>),
    EndsWith(Box<str>),
    /// Text has this part, or an array has this entry.
    Contains(Literal),
    Regex(Regex),
}

impl Node {
    fn needs_data(&self) -> bool {
        match self {
            Self::All(nodes) | Self::Any(nodes) => nodes.iter().any(Self::needs_data),
            Self::Not(node) => node.needs_data(),
            Self::Test(subject, _) => matches!(subject, Subject::Data(_)),
        }
    }

    /// `None`: cannot be told, because the body is not JSON (Kleene's third value).
    fn holds(&self, event: &Event, body: &LazyJson<'_>) -> Option<bool> {
        let first = |nodes: &[Self], decisive: bool| {
            let mut answer = Some(!decisive);
            for node in nodes {
                match node.holds(event, body) {
                    Some(is) if is == decisive => return Some(decisive),
                    Some(_) => {}
                    None => answer = None,
                }
            }
            answer
        };
        match self {
            Self::All(nodes) => first(nodes, false),
            Self::Any(nodes) => first(nodes, true),
            Self::Not(node) => node.holds(event, body).map(|is| !is),
            Self::Test(subject, test) => match (subject, body) {
                (Subject::Data(steps), body) => {
                    Some(test.holds(walk(body.get()?, steps).map(Found::Json)))
                }
                (subject, _) => Some(test.holds(subject.find(event))),
            },
        }
    }
}

impl Subject {
    /// The value outside the body that this names, if the event has it.
    fn find<'a>(&self, event: &'a Event) -> Option<Found<'a>> {
        match self {
            Self::Id => Some(Found::Text(event.id.as_str())),
            Self::Topic => Some(Found::Text(&event.topic)),
            Self::Type => Some(Found::Text(&event.kind)),
            Self::Time => event.published_at.map(Found::Time),
            Self::Header(name) => event.headers.get(name).map(header),
            Self::Data(_) => None,
        }
    }
}

fn header(value: &HeaderValue) -> Found<'_> {
    match value {
        HeaderValue::Bytes(bytes) => std::str::from_utf8(bytes)
            .map_or(Found::Opaque, |text| Found::Header(Cow::Borrowed(text))),
        HeaderValue::Bool(is) => Found::Header(Cow::Borrowed(if *is { "true" } else { "false" })),
        HeaderValue::Int(number) => Found::Header(Cow::Owned(number.to_string())),
        HeaderValue::Float(number) => Found::Header(Cow::Owned(number.to_string())),
        HeaderValue::Time(seconds) => Found::Header(Cow::Owned(seconds.to_string())),
        HeaderValue::Null => Found::Json(&Value::Null),
        HeaderValue::List(_) | HeaderValue::Map(_) => Found::Opaque,
    }
}

fn walk<'a>(body: &'a Value, steps: &[Step]) -> Option<&'a Value> {
    steps.iter().try_fold(body, |at, step| match at {
        Value::Object(members) => members.get(&*step.key),
        Value::Array(entries) => entries.get(step.index?),
        _ => None,
    })
}

impl Test {
    /// What is missing equals nothing, not even `null`, and is neither less nor greater.
    fn holds(&self, found: Option<Found<'_>>) -> bool {
        if let Self::Exists(wanted) = self {
            return found.is_some() == *wanted;
        }
        let Some(found) = found else { return false };
        match self {
            Self::Exists(_) => true,
            Self::Equals(literal) => found.equals(literal),
            Self::OneOf(literals) => literals.iter().any(|literal| found.equals(literal)),
            Self::Greater(literal) => found.compare(literal).is_some_and(|is| is.is_gt()),
            Self::GreaterOrEqual(literal) => found.compare(literal).is_some_and(|is| is.is_ge()),
            Self::Less(literal) => found.compare(literal).is_some_and(|is| is.is_lt()),
            Self::LessOrEqual(literal) => found.compare(literal).is_some_and(|is| is.is_le()),
            Self::StartsWith(part) => found.text().is_some_and(|text| text.starts_with(&**part)),
            Self::EndsWith(part) => found.text().is_some_and(|text| text.ends_with(&**part)),
            Self::Contains(literal) => found.contains(literal),
            Self::Regex(regex) => found.text().is_some_and(|text| regex.is_match(text)),
        }
    }
}

#[cfg(test)]
mod tests;
