//! Bridges with tokens for the operator and for two tenants, and what is asked in their names.

use reqwest::Method;
use serde_json::Value;

use crate::registration_support::{Came, KEY, ask, config};
use crate::support::bridge::Bridge;

pub const ALL: &str = "/v1/subscriptions";
pub const OPERATOR: &str = "operator-0123456789";
pub const ACME: &str = "acme-0123456789abcdef";
pub const BOLT: &str = "bolt-0123456789abcdef";

/// A config with a token for each, whose source knows by `tenant` whose an event is.
pub fn with_tokens(more: &str, tenant: &str) -> String {
    let tokens = format!(
        "tokens: [{{ name: root, token: {OPERATOR}, scopes: [admin] }}, \
         {{ name: acme, token: {ACME}, scopes: [admin], tenant: acme }}, \
         {{ name: bolt, token: {BOLT}, scopes: [admin], tenant: bolt }}]"
    );
    let source = format!("topics: ['#'], tenant: {{ {tenant} }}");
    config(&[KEY], more)
        .replace("admin: { ", &format!("admin: {{ {tokens}, "))
        .replacen("topics: ['#']", &source, 1)
}

/// Asks as the one who has this token.
pub async fn by(
    bridge: &Bridge,
    token: &str,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Came {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    ask(bridge, method, path, body, &headers).await
}
