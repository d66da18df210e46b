//! The key `telemetry`: whom spans are sent to.

use http::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::field::Field;
use super::reader::Map;
use super::{Otlp, Telemetry, keys};

const DEFAULT_SAMPLE: f64 = 1.0;
const MOST_HEADERS: usize = 32;

pub fn read(map: Option<&Map<'_>>) -> Telemetry {
    let otlp = map.and_then(|map| map.take("otlp"));
    Telemetry {
        otlp: otlp.and_then(self::otlp),
    }
}

/// `None` where a problem was noted.
fn otlp(field: Field<'_>) -> Option<Otlp> {
    let map = field.map(&keys::OTLP)?;
    let endpoint = map.need("endpoint").and_then(endpoint);
    let headers = map.take("headers").map(headers).unwrap_or_default();
    let sample = match map.take("sample") {
        Some(field) => field.number((0.0, 1.0)),
        None => Some(DEFAULT_SAMPLE),
    };
    Some(Otlp {
        endpoint: endpoint?,
        headers,
        sample: sample?,
    })
}

/// Shows nothing of the text: it may have a credential.
fn endpoint(field: Field<'_>) -> Option<Url> {
    let text = field.text()?;
    let url = Url::parse(text).ok().filter(|url| {
        let is_plain = url.query().is_none() && url.fragment().is_none();
        ["http", "https"].contains(&url.scheme()) && url.has_host() && is_plain
    });
    let Some(url) = url else {
        field.note(
            "`endpoint` is not a URL of a collector",
            "write `http://` or `https://`, host and port, such as `http://127.0.0.1:4318`"
                .to_owned(),
        );
        return None;
    };
    if !url.username().is_empty() || url.password().is_some() {
        field.note(
            "a collector's URL has no user",
            "send it as `headers: { authorization: \"Basic ...\" }`".to_owned(),
        );
        return None;
    }
    Some(url)
}

fn headers(field: Field<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let entries = field.entries();
    if entries.len() > MOST_HEADERS {
        field.note_key(format!("more than {MOST_HEADERS} headers"), None);
    }
    for entry in entries {
        let Ok(name) = HeaderName::from_bytes(entry.key.as_bytes()) else {
            let message = format!("`{}` cannot be the name of a header", entry.key);
            entry.note_key(message, None);
            continue;
        };
        let Some(text) = entry.text_or_empty() else {
            continue;
        };
        match HeaderValue::from_str(text) {
            Ok(mut value) => {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
            Err(_) => entry.note("a header's value may not hold control characters", None),
        }
    }
    headers
}
