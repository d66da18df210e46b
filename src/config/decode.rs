//! `decode:` of a source.

use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::field::Field;
use super::reader::Map;
use super::{Decode, DeliverySettings, SchemaRegistry, auth, brokers, keys};
use crate::decode::{Coding, Format};
use crate::subscription::Scheme;

const DEFAULT_MAX_BYTES: u64 = 16 << 20;
const DEFAULT_CACHE: usize = 1_000;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

pub fn read(field: Field<'_>) -> Option<Decode> {
    let map = field.map(&keys::DECODE)?;
    let coding = match map.take("content_encoding") {
        Some(field) => field.one_of(&keys::CODINGS).map(coding),
        None => Some(Coding::Auto),
    };
    let format = match map.take("format") {
        Some(field) => schemas(field, &map),
        None => Some(Format::Auto),
    };
    let max_bytes = match map.take("max_bytes") {
        Some(field) => field.bytes(1..=keys::LARGEST_DECODED),
        None => Some(DEFAULT_MAX_BYTES),
    };
    let registry = match map.take("registry") {
        Some(field) => field
            .map(&keys::REGISTRY)
            .and_then(|map| registry(&map))
            .map(Some),
        None => Some(None),
    };
    Some(Decode {
        coding: coding?,
        format: format?,
        max_bytes: max_bytes? as usize,
        registry: registry?,
    })
}

fn coding(word: &str) -> Coding {
    match word {
        "gzip" => Coding::Gzip,
        "zstd" => Coding::Zstd,
        "none" => Coding::None,
        _ => Coding::Auto,
    }
}

fn schemas(field: Field<'_>, decode: &Map<'_>) -> Option<Format> {
    let format = match field.one_of(&keys::SCHEMAS)? {
        "avro" => Format::Avro,
        "protobuf" => Format::Protobuf,
        "json-schema" => Format::JsonSchema,
        _ => return Some(Format::Auto),
    };
    if !decode.has("registry") && !decode.means_one_of(&["registry"]) {
        field.note_key(
            "`format` is of schemas, and there is no `registry` that has them",
            "add `registry: { url: ... }`, or leave it out: JSON needs no format".to_owned(),
        );
    }
    Some(format)
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
