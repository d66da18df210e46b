//! `endpoints:` and endpoints written inside a subscription: URL, headers, secrets, lane.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use url::Url;

use super::field::{Field, Name};
use super::reader::{Map, suggestion};
use super::versions::Versions;
use super::{
    DeliverySettings, adapters, address, auth, brokers, handshakes, keys, payload, signatures,
};
use crate::deliver::signature::sets_header;
use crate::subscription::{Breaker, Endpoint, Payload, Rate, Scheme, TlsFiles};

const MOST_HEADERS: usize = 64;
const LONGEST_HEADER: usize = 8 * 1024;

/// Set by HTTP or by us; a custom value would break one of them.
const RESERVED_HEADERS: [&str; 12] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "expect",
];
const RESERVED_PREFIX: &str = "hookbridge-";

/// Whether a header is set by HTTP or by us.
pub fn is_reserved(name: &HeaderName) -> bool {
    RESERVED_HEADERS.contains(&name.as_str()) || name.as_str().starts_with(RESERVED_PREFIX)
}

/// The lane's settings, from an endpoint or from the subscription that it is written in.
pub struct Lane {
    pub concurrency: Option<usize>,
    pub adaptive: Option<bool>,
    pub rate: Option<Rate>,
    pub breaker: Option<Breaker>,
}

pub const LANE_KEYS: [&str; 4] = ["concurrency", "adaptive", "rate", "breaker"];

pub fn lane(map: &Map<'_>) -> Lane {
    Lane {
        concurrency: map
            .take("concurrency")
            .and_then(|field| field.integer(keys::CONCURRENCY))
            .map(|count| count as usize),
        adaptive: map.take("adaptive").and_then(|field| field.bool()),
        rate: map
            .take("rate")
            .and_then(|field| field.parsed("a rate such as `50/s` or `100/m`")),
        breaker: map.take("breaker").and_then(breaker),
    }
}

fn breaker(field: Field<'_>) -> Option<Breaker> {
    let map = field.map(&keys::BREAKER)?;
    let defaults = Breaker::default();
    let failures = map
        .take("failures")
        .and_then(|field| field.integer((1, 10_000)))
        .map_or(defaults.failures, |count| count as u32);
    let cool_down = map
        .take("cool_down")
        .and_then(|field| field.duration(Duration::from_millis(100)..=Duration::from_secs(3600)))
        .unwrap_or(defaults.cool_down);
    Some(Breaker {
        failures,
        cool_down,
    })
}

/// Reads an endpoint. `outer` is the lane as the subscription around it says, whose keys may not
/// be here a second time.
pub fn read(
    name: Arc<str>,
    field: Field<'_>,
    delivery: &DeliverySettings,
    versions: &Versions<'_>,
    outer: Option<(&Map<'_>, Lane)>,
) -> Option<Endpoint> {
    let map = field.map(&keys::ENDPOINT)?;
    let url_field = map.need("url");
    let url = url_field.and_then(|field| url(field, delivery));
    let method = match map
        .take("method")
        .and_then(|field| field.one_of(&keys::METHODS))
    {
        Some("PUT") => Method::PUT,
        Some("PATCH") => Method::PATCH,
        Some("DELETE") => Method::DELETE,
        Some("GET") => Method::GET,
        _ => Method::POST,
    };
    let written = url_field.filter(|_| url.is_some()).and_then(|f| f.text());
    let adapter = map.take("format").and_then(adapters::meant);
    let (mut signature, secrets) = match adapter {
        // Nobody there looks for a signature.
        Some(_) if !signatures::is_given(&map) => (Scheme::None, Vec::new()),
        _ => signatures::read(&map),
    };
    let payload = payload::read(&map, &signature, &method, versions);
    let extended = payload::extends_url(&payload, &method) || has_key_in_query(&map);
    signatures::sign_as_written(&mut signature, &map, written, url.as_ref(), extended);
    let headers = map.take("headers");
    let auth = map
        .take("auth")
        .and_then(|field| auth::read(field, &signature, headers, delivery));
    let headers = headers.map(|field| self::headers(field, &signature));
    let handshake = map
        .take("handshake")
        .and_then(|field| handshakes::read(field, &secrets));
    let tls = map.take("tls").and_then(brokers::tls).map(|tls| {
        Arc::new(TlsFiles {
            ca: tls.ca,
            cert: tls.cert,
            key: tls.key,
        })
    });
    let mut lane = lane(&map);
    if let Some((around, outer)) = outer {
        for key in LANE_KEYS {
            if let (Some(field), true) = (map.take(key), around.has(key)) {
                field.note_key(
                    format!("`{key}` is given here and in the subscription"),
                    "keep one of them".to_owned(),
                );
            }
        }
        lane.concurrency = lane.concurrency.or(outer.concurrency);
        lane.adaptive = lane.adaptive.or(outer.adaptive);
        lane.rate = lane.rate.or(outer.rate);
        lane.breaker = lane.breaker.or(outer.breaker);
    }
    Some(Endpoint {
        name,
        url: Arc::new(url?),
        method,
        headers: headers.filter(|all| !all.is_empty()).map(Box::new),
        signature,
        secrets,
        payload: Payload::shared(payload),
        auth: auth.map(Box::new),
        handshake: handshake.map(Box::new),
        tls,
        concurrency: lane.concurrency.unwrap_or(Endpoint::DEFAULT_CONCURRENCY),
        adaptive: lane.adaptive.unwrap_or(false),
        rate: lane.rate.or_else(|| adapter?.rate()),
        breaker: lane.breaker.unwrap_or_default(),
    })
}

/// Whether `auth` adds to the URL.
fn has_key_in_query(map: &Map<'_>) -> bool {
    let auth = map.take("auth");
    let key = auth.and_then(|field| field.child("api_key"));
    key.is_some_and(|field| field.child("query").is_some())
}

/// URLs are never repeated in a message: their paths and queries are often credentials.
pub fn url(field: Field<'_>, delivery: &DeliverySettings) -> Option<Url> {
    let text = field.text()?;
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => {
            let help = "write it in full, such as `https://example.com/hooks`".to_owned();
            field.note(format!("this is not an absolute URL: {error}"), help);
            return None;
        }
    };
    let mut good = true;
    let mut refuse = |message: String, help: &str| {
        field.note(message, help.to_owned());
        good = false;
    };
    match url.scheme() {
        "https" => {}
        "http" if delivery.allow_http => {}
        "http" => refuse(
            "plain `http:` is refused, since anybody on the way can read and change it".into(),
            "use `https:`, or set `delivery: { allow_http: true }`",
        ),
        _ => {
            refuse(
                "a URL of another scheme than `https:`".into(),
                "such as `https://example.com/hooks`",
            );
            return None;
        }
    }
    if !url.username().is_empty() || url.password().is_some() {
        refuse(
            "user info in the URL is refused, since URLs are logged everywhere".into(),
            "send it as `headers: { authorization: \"Basic ...\" }`",
        );
    }
    if url.fragment().is_some() {
        refuse("a fragment (`#...`) is never sent".into(), "leave it out");
    }
    if let Some(why) = address::refused(&url, &delivery.allow_networks) {
        let message = if field.is_substituted() {
            "the URL's address is private or special, and refused".to_owned()
        } else {
            why
        };
        refuse(
            message,
            "open its network on purpose with `delivery: { allow_networks: [...] }`",
        );
    }
    good.then_some(url)
}

fn headers(field: Field<'_>, signature: &Scheme) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let entries = field.entries();
    if entries.len() > MOST_HEADERS {
        field.note_key(format!("more than {MOST_HEADERS} headers"), None);
    }
    for entry in entries {
        let name = match HeaderName::from_bytes(entry.key.as_bytes()) {
            Ok(name) => name,
            Err(_) => {
                entry.note_key(
                    format!("`{}` cannot be the name of a header", entry.key),
                    None,
                );
                continue;
            }
        };
        if is_reserved(&name) || sets_header(signature, &name) {
            entry.note_key(
                format!("the header `{name}` is not yours to set"),
                "it belongs to HTTP, to the signature or to hookbridge".to_owned(),
            );
            continue;
        }
        let Some(text) = entry.text_or_empty() else {
            continue;
        };
        match HeaderValue::from_str(text) {
            Ok(mut value) if text.len() <= LONGEST_HEADER => {
                value.set_sensitive(true);
                if headers.insert(name, value).is_some() {
                    entry.note_key("this header is there twice, in another spelling", None);
                }
            }
            Ok(_) => entry.note(
                format!("a header's value has {LONGEST_HEADER} bytes at most"),
                None,
            ),
            Err(_) => entry.note("a header's value may not hold control characters", None),
        }
    }
    headers
}

/// `endpoints:`.
pub fn all(
    field: Field<'_>,
    delivery: &DeliverySettings,
    versions: &Versions<'_>,
) -> Vec<(Name, Option<Endpoint>)> {
    field
        .named()
        .into_iter()
        .map(|(name, field)| {
            let endpoint = read(name.text.clone(), field, delivery, versions, None);
            (name, endpoint)
        })
        .collect()
}

/// Says that there is no endpoint of this name.
pub fn missing<'n>(name: &Name, field: Field<'_>, known: impl Iterator<Item = &'n str>) {
    let help = suggestion(&name.text, known).unwrap_or_else(|| {
        "write it under `endpoints:`, or in place as `{ url: ..., secret: ... }`".to_owned()
    });
    field.note(format!("there is no endpoint {}", name.shown), help);
}
