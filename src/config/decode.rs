//! `decode:` of a source.

use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::field::Field;
use super::reader::Map;
use super::{Decode, DeliverySettings, SchemaRegistry, auth, brokers, keys};
use crate::decode::{Coding, Format};
use crate::subscription::Scheme;

const DEFAULT_MAX_BYTES: usize = 16 << 20;
const DEFAULT_CACHE: usize = 1_000;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

pub fn read(field: Field<'_>) -> Option<Decode> {
    let map = field.map(&keys::DECODE)?;
    let coding = map.take("content_encoding");
    let coding = match coding.map(|field| field.one_of(&keys::CODINGS)) {
        Some(word) => match word? {
            "gzip" => Coding::Gzip,
            "zstd" => Coding::Zstd,
            "none" => Coding::None,
            _ => Coding::Auto,
        },
        None => Coding::Auto,
    };
    let format = map.take("format");
    if let Some(format) = format.filter(|_| !map.has("registry") && !misses_registry(&map)) {
        format.note_key(
            "`format` is of schemas, and there is no `registry` that has them",
            "add `registry: { url: ... }`, or leave it out: JSON needs no format".to_owned(),
        );
    }
    let format = match format.map(|field| field.one_of(&keys::SCHEMAS)) {
        Some(word) => match word? {
            "avro" => Format::Avro,
            "protobuf" => Format::Protobuf,
            "json-schema" => Format::JsonSchema,
            _ => Format::Auto,
        },
        None => Format::Auto,
    };
    let max_bytes = match map.take("max_bytes") {
        Some(field) => field.bytes(1..=keys::LARGEST_DECODED)? as usize,
        None => DEFAULT_MAX_BYTES,
    };
    let registry = match map.take("registry") {
        Some(field) => Some(registry(&field.map(&keys::REGISTRY)?)?),
        None => None,
    };
    Some(Decode {
        coding,
        format,
        max_bytes,
        registry,
    })
}

fn misses_registry(map: &Map<'_>) -> bool {
    map.means_one_of(&["registry"])
}

fn registry(map: &Map<'_>) -> Option<SchemaRegistry> {
    let url = map.need("url").and_then(url);
    // A token's URL is as much the operator's own as the registry's.
    let open = DeliverySettings {
        allow_http: true,
        allow_networks: ["0.0.0.0/0", "::/0"]
            .iter()
            .filter_map(|net| net.parse().ok())
            .collect(),
        ..DeliverySettings::default()
    };
    let auth = map.take("auth");
    let auth = auth.map(|field| auth::read(field, &Scheme::None, None, &open));
    let tls = map.take("tls").map(brokers::tls);
    let timeout = map
        .take("timeout")
        .map(|field| field.duration(Duration::from_millis(100)..=Duration::from_secs(60)));
    let cache = map
        .take("cache")
        .map(|field| field.integer(keys::SCHEMAS_KEPT));
    Some(SchemaRegistry {
        url: url?,
        auth: auth.map_or(Some(None), |auth| auth.map(Some))?,
        tls: tls.map_or(Some(None), |tls| tls.map(|tls| Some(Arc::new(tls))))?,
        timeout: timeout.unwrap_or(Some(DEFAULT_TIMEOUT))?,
        cache: cache.map_or(Some(DEFAULT_CACHE), |cache| cache.map(|it| it as usize))?,
    })
}

fn url(field: Field<'_>) -> Option<Url> {
    let text = field.text()?;
    let help = "such as `https://registry.example.com:8081`".to_owned();
    let Ok(url) = text.parse::<Url>() else {
        field.note("this is not a URL", help);
        return None;
    };
    if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none_or(str::is_empty) {
        field.note("this is not an `http:` or `https:` URL", help);
        return None;
    }
    if !url.username().is_empty() || url.password().is_some() {
        field.note(
            "a user in the URL of a registry is not used",
            "write `auth: { basic: { user: ..., password: ... } }`".to_owned(),
        );
        return None;
    }
    if url.query().is_some() || url.fragment().is_some() {
        field.note("the URL of a registry has neither query nor fragment", help);
        return None;
    }
    Some(url)
}
