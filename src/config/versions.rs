//! `versions:` of payloads, and which of them sources and endpoints have.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::Date;

use super::field::{Field, Name};
use super::reader::suggestion;
use super::{keys, payload};
use crate::subscription::{Format, Pattern, Scheme, Version};

/// All versions by name, and those of sources.
#[derive(Default)]
pub struct Versions {
    known: Vec<(Name, Option<Arc<Version>>)>,
    pub of_sources: Arc<BTreeMap<Arc<str>, Arc<Version>>>,
}

impl Versions {
    /// Reads `versions:`.
    pub fn read(field: Field<'_>) -> Self {
        let named = field.named().into_iter();
        Self {
            known: named
                .map(|(name, field)| {
                    let version = one(&name, field).map(Arc::new);
                    (name, version)
                })
                .collect(),
            ..Self::default()
        }
    }

    /// The version that `field` names, or a problem.
    pub fn named(&self, field: Field<'_>) -> Option<Arc<Version>> {
        let wanted = field.name()?;
        match self.known.iter().find(|(name, _)| name.text == wanted.text) {
            Some((_, version)) => version.clone(),
            None => {
                let known = self.known.iter().map(|(name, _)| &*name.text);
                let help = suggestion(&wanted.text, known)
                    .unwrap_or_else(|| "write it under `versions:`".to_owned());
                field.note(format!("there is no version {}", wanted.shown), help);
                None
            }
        }
    }

    /// With what sources say, by their `version:`.
    pub fn with_sources(mut self, sources: Option<Field<'_>>) -> Self {
        let entries = sources.filter(Field::is_map).map(|field| field.entries());
        let of_sources = entries
            .unwrap_or_default()
            .into_iter()
            .filter_map(|source| {
                let version = source.child("version")?;
                Some((Arc::from(source.key), self.named(version)?))
            });
        self.of_sources = Arc::new(of_sources.collect());
        self
    }
}

fn one(name: &Name, field: Field<'_>) -> Option<Version> {
    let map = field.map(&keys::VERSION)?;
    let formats = map.take("formats").map(|field| field.entries());
    let formats = formats.unwrap_or_default().into_iter();
    let formats = formats.filter_map(format).collect();
    let deprecated = map.take("deprecated").and_then(date);
    let sunset_field = map.take("sunset");
    let sunset = sunset_field.and_then(date);
    if let (Some(field), Some(sunset), Some(deprecated)) = (sunset_field, sunset, deprecated)
        && sunset < deprecated
    {
        field.note("a version ends after it is deprecated", None);
    }
    Some(Version {
        name: name.text.clone(),
        formats,
        deprecated,
        sunset,
    })
}

fn format(entry: Field<'_>) -> Option<(Pattern, Format)> {
    let pattern = match entry.key.parse::<Pattern>() {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            entry.note_key(error.to_string(), None);
            None
        }
    };
    let format = payload::format(entry, &Scheme::default());
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
