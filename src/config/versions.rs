//! `versions:` of payloads, and which of them sources and endpoints have.
//!
//! A version is written once and used by endpoints that differ in signature and method. So each use
//! is held to what goes for a format of the endpoint's own, and a form without settings is that of
//! the endpoint's signature.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Method;
use jiff::Timestamp;
use jiff::civil::Date;

use super::field::{Field, Name};
use super::reader::{Notes, suggestion};
use super::{formats, keys, payload};
use crate::subscription::{Endpoint, Format, Pattern, Scheme, Version};

/// Versions by source.
type OfSources = Arc<BTreeMap<Arc<str>, Arc<Version>>>;

/// All versions by name, and those of sources.
#[derive(Default)]
pub struct Versions<'a> {
    known: Vec<(Name, Option<Written<'a>>)>,
    /// As endpoints of the default signature have them.
    of_sources: OfSources,
}

/// A version as endpoints of the default signature have it, and where its formats are written.
struct Written<'a> {
    version: Arc<Version>,
    fields: Vec<Field<'a>>,
}

impl<'a> Versions<'a> {
    /// Reads `versions:`.
    pub fn read(field: Field<'a>) -> Self {
        let named = field.named().into_iter();
        Self {
            known: named
                .map(|(name, field)| {
                    let version = one(&name, field);
                    (name, version)
                })
                .collect(),
            ..Self::default()
        }
    }

    /// With what sources say, by their `version:`.
    pub fn with_sources(mut self, sources: Option<Field<'_>>) -> Self {
        let entries = sources.filter(Field::is_map).map(|field| field.entries());
        let of_sources = entries
            .unwrap_or_default()
            .into_iter()
            .filter_map(|source| {
                let written = self.named(source.child("version")?)?;
                Some((Arc::from(source.key), written.version.clone()))
            });
        self.of_sources = Arc::new(of_sources.collect());
        self
    }

    /// The version that `field` of an endpoint names, or a problem: there is none, or it does not
    /// fit the endpoint.
    pub fn of_endpoint(
        &self,
        field: Field<'_>,
        scheme: &Scheme,
        method: &Method,
    ) -> Option<Arc<Version>> {
        let written = self.named(field)?;
        if let Some(why) = misfit(&written.version, scheme, method) {
            let help = "use another `version`, `method` or `signature` here".to_owned();
            field.note(format!("this version does not fit: {why}"), help);
        }
        Some(written.for_scheme(scheme))
    }

    /// The versions of sources, for an endpoint that has none of its own.
    pub fn of_sources(&self, scheme: &Scheme) -> OfSources {
        let fitted = |version: &Arc<Version>| {
            let known = self
                .known
                .iter()
                .filter_map(|(_, written)| written.as_ref());
            let mut known = known.filter(|written| written.version.name == version.name);
            let written = known.next();
            written.map_or_else(|| version.clone(), |written| written.for_scheme(scheme))
        };
        let fitted: BTreeMap<_, _> = self
            .of_sources
            .iter()
            .map(|(source, version)| (source.clone(), fitted(version)))
            .collect();
        match fitted == *self.of_sources {
            true => self.of_sources.clone(),
            false => Arc::new(fitted),
        }
    }

    fn named(&self, field: Field<'_>) -> Option<&Written<'a>> {
        let wanted = field.name()?;
        match self.known.iter().find(|(name, _)| name.text == wanted.text) {
            Some((_, version)) => version.as_ref(),
            None => {
                let known = self.known.iter().map(|(name, _)| &*name.text);
                let help = suggestion(&wanted.text, known)
                    .unwrap_or_else(|| "write it under `versions:`".to_owned());
                field.note(format!("there is no version {}", wanted.shown), help);
                None
            }
        }
    }
}

impl Written<'_> {
    /// With the forms that the service of this signature sends.
    fn for_scheme(&self, scheme: &Scheme) -> Arc<Version> {
        let formats: Vec<_> = self
            .version
            .formats
            .iter()
            .zip(&self.fields)
            .map(|((pattern, format), field)| {
                let format = match format {
                    Format::Form(_) => again(*field, scheme).unwrap_or_else(|| format.clone()),
                    format => format.clone(),
                };
                (pattern.clone(), format)
            })
            .collect();
        match formats == self.version.formats {
            true => self.version.clone(),
            false => Arc::new(Version {
                formats,
                ..Version::clone(&self.version)
            }),
        }
    }
}

/// Reads a format once more; what is wrong with it has been noted.
fn again(field: Field<'_>, scheme: &Scheme) -> Option<Format> {
    let notes = Notes::new(field.notes.base_dir, field.notes.text);
    formats::format(
        Field {
            notes: &notes,
            ..field
        },
        scheme,
    )
}

/// Why the requests of an endpoint cannot have this version.
fn misfit(version: &Version, scheme: &Scheme, method: &Method) -> Option<String> {
    let mut formats = version.formats.iter();
    formats.find_map(|(_, format)| payload::misfit(format, scheme, method))
}

/// Why an endpoint cannot have what the sources of its events say, of `sources` or of all: the
/// source, and what is wrong with its version.
pub fn misfit_of_sources(endpoint: &Endpoint, sources: &[Arc<str>]) -> Option<(Arc<str>, String)> {
    if endpoint.payload.version.is_some() {
        return None;
    }
    let of_sources = endpoint.payload.of_sources.iter();
    let mut meant = of_sources.filter(|(source, _)| sources.is_empty() || sources.contains(source));
    meant.find_map(|(source, version)| {
        let why = misfit(version, &endpoint.signature, &endpoint.method)?;
        Some((source.clone(), why))
    })
}

fn one<'a>(name: &Name, field: Field<'a>) -> Option<Written<'a>> {
    let map = field.map(&keys::VERSION)?;
    let formats = map.take("formats").map(|field| field.entries());
    let formats = formats.unwrap_or_default().into_iter();
    let (fields, formats) = formats
        .filter_map(|entry| Some((entry, format(entry)?)))
        .unzip();
    let deprecated = map.take("deprecated").and_then(date);
    let sunset_field = map.take("sunset");
    let sunset = sunset_field.and_then(date);
    if let (Some(field), Some(sunset), Some(deprecated)) = (sunset_field, sunset, deprecated)
        && sunset < deprecated
    {
        field.note("a version ends after it is deprecated", None);
    }
    let version = Arc::new(Version {
        name: name.text.clone(),
        formats,
        deprecated,
        sunset,
    });
    Some(Written { version, fields })
}

fn format(entry: Field<'_>) -> Option<(Pattern, Format)> {
    let pattern = match entry.key.parse::<Pattern>() {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            entry.note_key(error.to_string(), None);
            None
        }
    };
    let format = formats::format(entry, &Scheme::default());
    Some((pattern?, format?))
}

/// A day, which is its beginning in UTC, or a time.
pub fn date(field: Field<'_>) -> Option<Timestamp> {
    let text = field.text()?;
    let of_day = || {
        let day: Date = text.parse().ok()?;
        let midnight = day.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        Some(midnight.timestamp())
    };
    let time = text.parse().ok().or_else(of_day);
    if time.is_none() {
        let help = "such as `2026-01-31` or `2026-01-31T12:00:00Z`".to_owned();
        field.note(format!("{} is not a time", field.shown()), help);
    }
    time
}
