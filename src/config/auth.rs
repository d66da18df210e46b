//! `auth:` of an endpoint.

use std::sync::Arc;

use http::HeaderName;
use http::header::AUTHORIZATION;

use super::field::Field;
use super::reader::Map;
use super::{DeliverySettings, endpoints, keys};
use crate::deliver::signature::sets_header;
use crate::subscription::{Auth, Credentials, OAuth2, Scheme, Secret};

/// Reads what the requests of an endpoint show of us. `headers` are its own.
pub fn read(
    field: Field<'_>,
    scheme: &Scheme,
    headers: Option<Field<'_>>,
    delivery: &DeliverySettings,
) -> Option<Auth> {
    let map = field.map(&keys::AUTH)?;
    let names = keys::AUTH.keys.iter().map(|key| key.name);
    let given: Vec<_> = names.clone().filter_map(|name| map.take(name)).collect();
    let [kind] = given[..] else {
        if !map.means_one_of(&names.collect::<Vec<_>>()) {
            field.note_key(
                "`auth` has exactly one key, the kind of authorization",
                "such as `{ bearer: \"${file:/run/secrets/token}\" }`".to_owned(),
            );
        }
        return None;
    };
    let auth = match kind.key {
        "bearer" => {
            let auth = Auth::bearer(kind.text()?);
            sendable(kind, auth)?
        }
        "basic" => basic(kind.map(&keys::BASIC)?)?,
        "api_key" => api_key(kind, &kind.map(&keys::API_KEY)?)?,
        _ => oauth2(&kind.map(&keys::OAUTH2)?, delivery)?,
    };
    let header = match &auth {
        Auth::Header(name, _) => name.clone(),
        Auth::Query { .. } => return Some(auth),
        Auth::OAuth2(_) => AUTHORIZATION,
    };
    if sets_header(scheme, &header) || endpoints::is_reserved(&header) {
        let help = "receivers would see one of the two".to_owned();
        kind.note_key(
            format!("`{header}` is set by the signature or by HTTP"),
            help,
        );
    }
    let twice = headers.into_iter().flat_map(|headers| headers.entries());
    for entry in twice.filter(|entry| entry.key.eq_ignore_ascii_case(header.as_str())) {
        entry.note_key(
            format!("`{header}` is set by `auth`, too"),
            "keep one of them".to_owned(),
        );
    }
    Some(auth)
}

fn sendable(field: Field<'_>, auth: Option<Auth>) -> Option<Auth> {
    if auth.is_none() {
        field.note("a header's value may not hold control characters", None);
    }
    auth
}

fn basic(map: Map<'_>) -> Option<Auth> {
    let (user, password) = (map.need("user"), map.need("password"));
    let (user, password) = (user?, password?);
    let auth = Auth::basic(user.text()?, password.text()?);
    if auth.is_none() {
        user.note("a user of basic authentication has no colon", None);
    }
    auth
}

fn api_key(field: Field<'_>, map: &Map<'_>) -> Option<Auth> {
    let key = map.need("key");
    match (map.take("header"), map.take("query")) {
        (Some(header), None) => {
            let Ok(name) = header.text()?.parse::<HeaderName>() else {
                header.note("this is not the name of a header", None);
                return None;
            };
            let key = key?;
            sendable(key, Auth::header(name, key.text()?))
        }
        (None, Some(query)) => Some(Auth::Query {
            name: query.text()?.to_owned(),
            key: Secret::new(key?.text()?),
        }),
        _ => {
            if !map.means_one_of(&["header", "query"]) {
                field.note_key(
                    "`api_key` has either `header` or `query`",
                    "such as `{ header: x-api-key, key: ... }`".to_owned(),
                );
            }
            None
        }
    }
}

fn oauth2(map: &Map<'_>, delivery: &DeliverySettings) -> Option<Auth> {
    let url = map.need("token_url");
    let url = url.and_then(|field| endpoints::url(field, delivery));
    let id = map.need("client_id").and_then(|field| field.text());
    let secret = map.need("client_secret").and_then(|field| field.text());
    let text = |key| Some(map.take(key)?.text()?.to_owned());
    let credentials = map.take("credentials");
    let credentials = credentials.and_then(|field| field.one_of(&keys::CREDENTIALS));
    Some(Auth::OAuth2(Arc::new(OAuth2 {
        token_url: url?,
        client_id: id?.to_owned(),
        client_secret: Secret::new(secret?),
        scope: text("scope"),
        audience: text("audience"),
        credentials: match credentials {
            Some("body") => Credentials::Body,
            _ => Credentials::Header,
        },
    })))
}
