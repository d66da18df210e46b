//! Payloads: what the requests of an endpoint carry, as the config says it.
//!
//! A body is composed in this order: `fields`, `format`, `batch`, `encrypt`, `gzip`; then it is
//! signed. How each is done is the business of `render`; texts that are compiled there (templates,
//! keys) have been compiled once by whoever made a value of these types, so that they are known to
//! be good.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::HeaderName;
use jiff::Timestamp;

use super::{Answers, Pattern};

/// What becomes of an event's body on its way out. The default passes it on untouched.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Payload {
    /// What of the body leaves at all.
    pub fields: Option<Fields>,
    pub format: Format,
    /// Several deliveries go in one request.
    pub batch: Option<Batch>,
    /// Whom the body is encrypted for.
    pub encrypt: Option<Encryption>,
    pub gzip: bool,
    /// The endpoint's own version, which goes before that of the source.
    pub version: Option<Arc<Version>>,
    /// The versions that sources have, by the source.
    pub of_sources: Arc<BTreeMap<Arc<str>, Arc<Version>>>,
}

impl Payload {
    /// The payload for an endpoint to keep: all that pass bodies on untouched share one.
    pub fn shared(payload: impl Into<Arc<Self>>) -> Arc<Self> {
        static DEFAULT: LazyLock<Arc<Payload>> = LazyLock::new(Arc::default);
        let payload = payload.into();
        match payload == *DEFAULT {
            true => Arc::clone(&DEFAULT),
            false => payload,
        }
    }

    /// What the templates know as `params`, of the endpoint's format and of all versions.
    pub fn params(&self) -> impl Iterator<Item = &str> {
        let versions = self.version.iter().chain(self.of_sources.values());
        let formats = versions.flat_map(|version| version.formats.iter().map(|(_, format)| format));
        let params = formats
            .chain([&self.format])
            .filter_map(|format| match format {
                Format::Template(template) => Some(template.params.values()),
                _ => None,
            });
        params.flatten().map(|param| &**param)
    }

    /// The adapter that makes the bodies, if it is one.
    pub fn adapted(&self) -> Option<&Adapted> {
        match &self.format {
            Format::Template(template) => template.adapted.as_ref(),
            _ => None,
        }
    }
}

/// When deliveries that wait for each other are sent: as soon as one of these is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Deliveries.
    pub count: usize,
    /// Of the body, before it is encrypted and compressed. One delivery by itself may be longer.
    pub bytes: usize,
    /// How long the first of them waits for others.
    pub within: Duration,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            count: 100,
            bytes: 1 << 20,
            within: Duration::from_secs(1),
        }
    }
}

/// Which parts of a JSON body are sent: first `keep` (all, when it is empty), then `drop`, then
/// `mask`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fields {
    pub keep: Vec<FieldPath>,
    pub drop: Vec<FieldPath>,
    pub mask: Vec<FieldPath>,
}

/// A path into the body, such as `data.items.*.card`. Where there is a list, a name means that of
/// each of its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldPath(pub Box<[Step]>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Every member of an object, and every entry of a list.
    Any,
    /// A member; where it is a number, an entry of a list too.
    Named(Box<str>),
}

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FieldPathError {
    #[error("a path begins with `data.`, which is the body")]
    Root,
    #[error("a path may not have an empty step; `\\.` is a dot inside a key")]
    Empty,
}

impl std::str::FromStr for FieldPath {
    type Err = FieldPathError;

    /// `\.` is a dot inside a key, `\*` a key that is a star.
    fn from_str(text: &str) -> Result<Self, FieldPathError> {
        let mut keys = vec![(String::new(), false)];
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            let (key, escaped) = keys.last_mut().expect("one key at least");
            match (character, characters.peek()) {
                ('\\', Some('.' | '\\' | '*')) => {
                    key.extend(characters.next());
                    *escaped = true;
                }
                ('.', _) => keys.push((String::new(), false)),
                _ => key.push(character),
            }
        }
        if keys[0].0 != "data" || keys.len() == 1 {
            return Err(FieldPathError::Root);
        }
        if keys.iter().any(|(key, _)| key.is_empty()) {
            return Err(FieldPathError::Empty);
        }
        let step = |(key, escaped): (String, bool)| match key == "*" && !escaped {
            true => Step::Any,
            false => Step::Named(key.into()),
        };
        Ok(Self(keys.into_iter().skip(1).map(step).collect()))
    }
}

/// The form of a body.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Format {
    /// The broker's bytes, untouched.
    #[default]
    Raw,
    /// `{ "type", "timestamp", "data" }`, as Standard Webhooks recommends.
    Envelope,
    CloudEvents(CloudEvents),
    Form(FormFields),
    Xml(XmlNames),
    Template(Box<Template>),
}

impl Format {
    /// As the config calls them.
    pub const NAMES: [&'static str; 19] = [
        "raw",
        "envelope",
        "cloudevents",
        "cloudevents-binary",
        "cloudevents-batch",
        "form",
        "xml",
        "template",
        "slack",
        "discord",
        "teams",
        "pagerduty",
        "twilio",
        "zapier",
        "jira",
        "asana",
        "trello",
        "jenkins",
        "hubspot",
    ];

    pub fn name(&self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Envelope => "envelope",
            Self::CloudEvents(events) => match events.mode {
                CloudEventsMode::Structured => "cloudevents",
                CloudEventsMode::Binary => "cloudevents-binary",
                CloudEventsMode::Batch => "cloudevents-batch",
            },
            Self::Form(_) => "form",
            Self::Xml(_) => "xml",
            Self::Template(template) => match &template.adapted {
                Some(adapted) => adapted.name,
                None => "template",
            },
        }
    }
}

/// CloudEvents 1.0 over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudEvents {
    pub mode: CloudEventsMode,
    /// `source` of events that did not come as CloudEvents; else the name of their source here.
    pub source: Option<Arc<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloudEventsMode {
    Structured,
    /// Attributes in headers, the data as the body.
    Binary,
    /// A list of structured events.
    Batch,
}

/// How JSON becomes a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FormFields {
    /// All of it, as JSON, in the field of this name.
    Whole(Arc<str>),
    /// A field for each value: `items[0][sku]`.
    Flat,
}

/// The names of elements that JSON has none for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XmlNames {
    pub root: Arc<str>,
    /// Of the entries of a list that stands in no member of an object.
    pub item: Arc<str>,
}

/// A request by templates. All texts have been compiled once.
#[derive(Clone, PartialEq)]
pub struct Template {
    /// `None`: no body.
    pub body: Option<TemplateText>,
    pub content_type: Arc<str>,
    pub headers: Vec<(HeaderName, TemplateText)>,
    /// Appended to the URL's query, in this order.
    pub query: Vec<(Arc<str>, TemplateText)>,
    /// Segments appended to the URL's path, in this order.
    pub path: Vec<TemplateText>,
    /// Texts that the templates know as `params`; may be secret.
    pub params: BTreeMap<Arc<str>, Arc<str>>,
    /// Where it is one of the built-in templates.
    pub adapted: Option<Adapted>,
}

/// What a built-in template has besides: settings, and how the service is to be treated for which it
/// is.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapted {
    /// As `format` calls it.
    pub name: &'static str,
    /// Settings that are templates themselves. What they make is known as `params` too.
    pub settings: Vec<(Arc<str>, Setting)>,
    /// Longer bodies are not sent, in bytes.
    pub longest_body: Option<usize>,
    /// What the service's answers mean, where the subscription does not say.
    pub answers: Answers,
}

/// A setting of a built-in template.
#[derive(Debug, Clone, PartialEq)]
pub enum Setting {
    Text(TemplateText),
    /// In the order in which they are written; known as a list of `name` and `value`.
    Fields(Vec<(Arc<str>, TemplateText)>),
}

/// Template texts may hold credentials, and `params` are for nothing else.
impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template")
            .field("content_type", &self.content_type)
            .finish_non_exhaustive()
    }
}

/// The text of a template, and how problems call it.
#[derive(Clone, PartialEq, Eq)]
pub struct TemplateText {
    /// The name of a file, or of the key in which the text stands.
    pub name: Arc<str>,
    pub text: Arc<str>,
}

/// Not the text, which may hold credentials.
impl fmt::Debug for TemplateText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TemplateText")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Whom a body is encrypted for, as a JWE in its compact form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// A public key: a JWK, or SPKI in PEM. Its kind says the algorithm.
    pub key: Arc<str>,
    /// Sent as `kid`, instead of that of the JWK.
    pub kid: Option<Arc<str>>,
}

/// A version of the payload, which may be on its way out.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    pub name: Arc<str>,
    /// The format of events whose type matches; the first that does. Of others the endpoint's.
    pub formats: Vec<(Pattern, Format)>,
    /// Since when, or from when on, it should not be used any more.
    pub deprecated: Option<Timestamp>,
    /// When it ends.
    pub sunset: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Result<Vec<Step>, FieldPathError> {
        text.parse().map(|FieldPath(steps)| steps.into_vec())
    }

    #[test]
    fn a_path_has_steps() {
        let named = |key: &str| Step::Named(key.into());
        assert_eq!(
            path("data.items.*.card"),
            Ok(vec![named("items"), Step::Any, named("card")])
        );
        assert_eq!(path(r"data.a\.b.\*"), Ok(vec![named("a.b"), named("*")]));
    }

    #[test]
    fn what_is_no_path_into_the_body_is_refused() {
        for text in ["card", "data", "", "headers.x", "*.x"] {
            assert_eq!(path(text), Err(FieldPathError::Root), "{text}");
        }
        for text in ["data.", "data..a", "data.a."] {
            assert_eq!(path(text), Err(FieldPathError::Empty), "{text}");
        }
    }
}
