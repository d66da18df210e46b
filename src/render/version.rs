//! `version:`: what a version of the payload says of itself, and how its events look.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue};
use jiff::Timestamp;

use super::{Maker, RenderError, headers};
use crate::subscription::{Pattern, Version};

const VERSION: HeaderName = HeaderName::from_static("webhook-version");
/// RFC 9745, and RFC 8594.
const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");
const SUNSET: HeaderName = HeaderName::from_static("sunset");

/// A version, its formats compiled.
pub(super) struct Edition {
    pub name: Arc<str>,
    formats: Vec<(Pattern, Maker)>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Edition {
    /// `batches`: its bodies become parts of arrays.
    pub fn new(version: &Version, batches: bool) -> Result<Self, RenderError> {
        let formats = version.formats.iter();
        let formats = formats
            .map(|(pattern, format)| Ok((pattern.clone(), Maker::new(format, batches)?)))
            .collect::<Result<_, RenderError>>()?;
        let mut said = vec![(VERSION, headers::encoded(&version.name))];
        if let Some(at) = version.deprecated {
            said.push((
                DEPRECATION,
                headers::encoded(&format!("@{}", at.as_second())),
            ));
        }
        if let Some(at) = version.sunset {
            said.push((SUNSET, headers::encoded(&http_date(at))));
        }
        Ok(Self {
            name: version.name.clone(),
            formats,
            headers: said,
        })
    }

    /// The format of events of this type, where the version has one.
    pub fn format(&self, kind: &str) -> Option<&Maker> {
        let mut formats = self.formats.iter();
        let found = formats.find(|(pattern, _)| pattern.matches(kind));
        found.map(|(_, maker)| maker)
    }

    pub fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        self.headers.iter().cloned()
    }
}

fn http_date(at: Timestamp) -> String {
    let since = Duration::from_secs(u64::try_from(at.as_second()).unwrap_or(0));
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + since)
}
