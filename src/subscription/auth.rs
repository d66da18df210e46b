//! Authorization: what a request shows of us beside its signature, or instead of one.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};
use url::{Url, form_urlencoded};

use super::Secret;

#[derive(Debug, Clone, PartialEq)]
pub enum Auth {
    /// A header that is always the same. Its value is marked sensitive.
    Header(HeaderName, HeaderValue),
    /// A key in the query.
    Query { name: String, key: Secret },
    /// A token that is asked for when it is needed.
    OAuth2(Arc<OAuth2>),
}

/// A client of an authorization server: client credentials (RFC 6749, section 4.4).
#[derive(Debug, Clone, PartialEq)]
pub struct OAuth2 {
    pub token_url: Url,
    pub client_id: String,
    pub client_secret: Secret,
    pub scope: Option<String>,
    /// Asked for by some servers, in no RFC.
    pub audience: Option<String>,
    pub credentials: Credentials,
}

/// Where the token request has the client's credentials (RFC 6749, section 2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// Basic authentication, which every server has to take.
    Header,
    Body,
}

impl Auth {
    /// Bearer tokens (RFC 6750). `None`: HTTP cannot carry it.
    pub fn bearer(token: &str) -> Option<Self> {
        Self::header(AUTHORIZATION, &format!("Bearer {token}"))
    }

    /// Basic authentication (RFC 7617), in UTF-8. `None`: the user has a colon.
    pub fn basic(user: &str, password: &str) -> Option<Self> {
        let pair = format!("{user}:{password}");
        match user.contains(':') {
            true => None,
            false => Self::header(AUTHORIZATION, &format!("Basic {}", STANDARD.encode(pair))),
        }
    }

    /// What a receiver or a proxy could repeat of it, in each of its spellings. For masking only.
    pub fn shown(&self) -> Vec<String> {
        match self {
            Self::Header(_, value) => {
                let text = value.to_str().unwrap_or_default();
                let bare = text.rsplit(' ').next().unwrap_or_default();
                let decoded = text.strip_prefix("Basic ");
                let decoded = decoded.and_then(|pair| STANDARD.decode(pair).ok());
                let decoded = decoded.and_then(|pair| String::from_utf8(pair).ok());
                let password = decoded.as_deref().and_then(|pair| pair.split_once(':'));
                let password = password.map(|(_, password)| password.to_owned());
                let all = [Some(text.to_owned()), Some(bare.to_owned()), password];
                all.into_iter().flatten().collect()
            }
            Self::Query { key, .. } => {
                let encoded = form_urlencoded::byte_serialize(key.expose().as_bytes()).collect();
                vec![key.expose().to_owned(), encoded]
            }
            Self::OAuth2(client) => vec![client.client_secret.expose().to_owned()],
        }
    }

    /// A key in a header of its own. `None`: HTTP cannot carry it.
    pub fn header(name: HeaderName, value: &str) -> Option<Self> {
        let mut value = HeaderValue::from_str(value).ok()?;
        value.set_sensitive(true);
        Some(Self::Header(name, value))
    }
}
