//! Who may do what: bearer tokens with scopes, and on loopback only requests from here.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::problem::Problem;
use super::tenancy::{self, Caller};

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Metrics and everything that is only shown.
    Read,
    /// Publishing events.
    Publish,
    /// Replaying dead letters.
    Replay,
    /// Everything.
    Admin,
}

impl Scope {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Publish => "publish",
            Self::Replay => "replay",
            Self::Admin => "admin",
        }
    }
}

/// A bearer token, of which only the SHA-256 is known.
#[derive(Clone)]
pub struct Token {
    /// For people; never compared.
    pub name: String,
    pub sha256: [u8; 32],
    pub scopes: Vec<Scope>,
    /// Whom it acts for; `None`: the operator.
    pub tenant: Option<Arc<str>>,
}

/// Lets a request through that carries a token with `scope`, or any when there are no tokens.
pub async fn need(
    State((tokens, scope)): State<(Arc<[Token]>, Scope)>,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = match allowed(&tokens, scope, request.headers()) {
        Ok(caller) => caller,
        Err(problem) => return problem.into_response(),
    };
    let route = request.extensions().get::<MatchedPath>();
    let is_open = |route: &MatchedPath| tenancy::is_open(request.method(), route.as_str());
    if caller.0.is_some() && !route.is_some_and(is_open) {
        return tenancy::operators_only().into_response();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Who asks, if he may.
fn allowed(tokens: &[Token], scope: Scope, headers: &HeaderMap) -> Result<Caller, Problem> {
    const REALM: &str = "Bearer realm=\"hookbridge\"";
    if tokens.is_empty() {
        return Ok(Caller::default());
    }
    let unauthorized = |detail: &str| {
        Problem::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "A token is needed",
            detail,
        )
    };
    let Some(given) = bearer(headers) else {
        let detail = "send `Authorization: Bearer <token>`";
        return Err(unauthorized(detail).challenging(REALM));
    };
    let digest: [u8; 32] = Sha256::digest(given).into();
    // All are compared, each in constant time, so that time tells nothing about any of them.
    let mut found = None;
    for token in tokens {
        if bool::from(token.sha256.ct_eq(&digest)) {
            found = Some(token);
        }
    }
    let Some(token) = found else {
        let challenge = format!("{REALM}, error=\"invalid_token\"");
        return Err(unauthorized("the token is not known").challenging(challenge));
    };
    let enough = [scope, Scope::Admin];
    if token.scopes.iter().any(|scope| enough.contains(scope)) {
        return Ok(Caller(token.tenant.clone()));
    }
    let scope = scope.name();
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "forbidden",
        "The token does not allow this",
        format!("this needs the scope `{scope}`"),
    )
    .challenging(format!(
        "{REALM}, error=\"insufficient_scope\", scope=\"{scope}\""
    )))
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

/// Refuses what a web page could have sent through a browser on this machine: a `Host` that is a
/// name from the DNS (which may have been pointed here), or an `Origin` that is not ours.
pub async fn only_from_here(request: Request, next: Next) -> Response {
    if is_from_here(request.uri(), request.headers()) {
        return next.run(request).await;
    }
    Problem::new(
        StatusCode::FORBIDDEN,
        "foreign-origin",
        "The request comes from elsewhere",
        "on loopback, `Host` must be `localhost` or an address, and `Origin`, if any, the same",
    )
    .into_response()
}

fn is_from_here(uri: &Uri, headers: &HeaderMap) -> bool {
    let host_header = headers.get(header::HOST).map(|host| host.to_str());
    let host = match (uri.authority(), host_header) {
        (Some(authority), _) => Some(authority.as_str()),
        (None, Some(Ok(host))) => Some(host),
        (None, Some(Err(_))) => return false,
        (None, None) => None,
    };
    if host.is_some_and(|host| !is_local_name(host)) {
        return false;
    }
    match headers.get(header::ORIGIN).map(|origin| origin.to_str()) {
        None => true,
        Some(Ok(origin)) => origin
            .strip_prefix("http://")
            .is_some_and(|origin| host.is_some_and(|host| host.eq_ignore_ascii_case(origin))),
        Some(Err(_)) => false,
    }
}

/// `localhost` or an IP address, with or without a port. No DNS answer can make these foreign.
fn is_local_name(host: &str) -> bool {
    let Ok(authority) = host.parse::<axum::http::uri::Authority>() else {
        return false;
    };
    let name = authority.host();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        pairs.collect()
    }

    fn from_here(pairs: &[(&'static str, &str)]) -> bool {
        is_from_here(&Uri::from_static("/metrics"), &headers(pairs))
    }

    #[test]
    fn names_from_the_dns_are_foreign_on_loopback() {
        for host in ["localhost", "LOCALHOST:8400", "127.0.0.1:8400", "[::1]:1"] {
            assert!(from_here(&[("host", host)]), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8400", "", "a b"] {
            assert!(!from_here(&[("host", host)]), "{host}");
        }
    }

    #[test]
    fn another_origin_is_foreign_even_on_this_machine() {
        let host = ("host", "localhost:8400");
        assert!(from_here(&[host, ("origin", "http://localhost:8400")]));
        for origin in ["http://localhost:3000", "https://evil.example", "null"] {
            assert!(!from_here(&[host, ("origin", origin)]), "{origin}");
        }
    }

    fn check(scope: Scope, authorization: Option<&str>) -> Result<Caller, String> {
        let token = |name: &str, scopes: &[Scope]| Token {
            name: name.into(),
            sha256: Sha256::digest(name).into(),
            scopes: scopes.to_vec(),
            tenant: None,
        };
        let tokens = [
            token("reader", &[Scope::Read]),
            token("sender", &[Scope::Publish]),
            token("root", &[Scope::Admin]),
        ];
        let given: Vec<_> = authorization
            .into_iter()
            .map(|value| ("authorization", value))
            .collect();
        allowed(&tokens, scope, &headers(&given)).map_err(|problem| format!("{problem:?}"))
    }

    #[test]
    fn a_token_allows_its_scopes_and_no_more() {
        assert!(check(Scope::Read, Some("Bearer reader")).is_ok());
        assert!(check(Scope::Publish, Some("bearer sender")).is_ok());
        assert!(check(Scope::Publish, Some("Bearer root")).is_ok());
        let refused = check(Scope::Publish, Some("Bearer reader")).unwrap_err();
        assert!(refused.contains("403") && refused.contains("insufficient_scope"));
    }

    #[test]
    fn without_a_known_token_nothing_is_allowed() {
        for given in [None, Some("Bearer nobody"), Some("Basic root"), Some("x")] {
            let refused = check(Scope::Read, given).unwrap_err();
            assert!(refused.contains("401"), "{given:?}: {refused}");
        }
        assert!(allowed(&[], Scope::Admin, &HeaderMap::new()).is_ok());
    }
}
