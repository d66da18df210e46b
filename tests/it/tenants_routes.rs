//! Every route of the API, asked with a token that acts for a tenant: it is open because somebody has
//! decided so here, or it is the operator's.

use std::collections::BTreeSet;

use regex::Regex;
use reqwest::{Client, Method};
use serde_json::Value;

use crate::registration_support::config;
use crate::support::bridge::Bridge;

const TOKEN: &str = "acme-0123456789abcdef";

/// What a tenant may ask for.
const OPEN: [&str; 35] = [
    "DELETE /v1/jobs/{id}",
    "DELETE /v1/subscriptions/{name}",
    "GET /v1/attempts",
    "GET /v1/attempts/export",
    "GET /v1/dead-letters",
    "GET /v1/dead-letters/count",
    "GET /v1/dead-letters/export",
    "GET /v1/dead-letters/groups",
    "GET /v1/dead-letters/{id}",
    "GET /v1/events/{id}",
    "GET /v1/events/{id}/trace",
    "GET /v1/jobs",
    "GET /v1/jobs/{id}",
    "GET /v1/parked",
    "GET /v1/replays",
    "GET /v1/subscriptions",
    "GET /v1/subscriptions/export",
    "GET /v1/subscriptions/{name}",
    "GET /v1/tap",
    "PATCH /v1/subscriptions/{name}",
    "POST /v1/dead-letters/drop",
    "POST /v1/dead-letters/retry",
    "POST /v1/dead-letters/{id}/retry",
    "POST /v1/parked/drop",
    "POST /v1/parked/now",
    "POST /v1/replays",
    "POST /v1/subscriptions",
    "POST /v1/subscriptions/import",
    "POST /v1/subscriptions/{name}/enable",
    "POST /v1/subscriptions/{name}/pause",
    "POST /v1/subscriptions/{name}/resume",
    "POST /v1/subscriptions/{name}/rotate",
    "POST /v1/subscriptions/{name}/test",
    "POST /v1/subscriptions/{name}/verify",
    "PUT /v1/subscriptions/{name}",
];

/// What says nothing of anybody, and needs no token.
const EVERYBODYS: [&str; 3] = ["GET /healthz", "GET /readyz", "GET /version"];

/// All routes, as the code of the API adds them.
fn routes() -> BTreeSet<String> {
    let one = Regex::new(r#"\.route\(\s*"([^"]+)",\s*(get|post|put|patch|delete)\("#).unwrap();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/admin");
    let mut found = BTreeSet::new();
    // What describes the API is beside it, and everybody's.
    let files = std::fs::read_dir(folder).unwrap();
    let files = files.map(|file| file.unwrap().path());
    for file in files.filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(file).unwrap();
        let routes = one.captures_iter(&text);
        found.extend(routes.map(|it| format!("{} {}", it[2].to_uppercase(), &it[1])));
        let read = one.captures_iter(&text).count();
        assert_eq!(read, text.matches(".route(").count(), "each route is read");
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_of_one_tenant_is_the_operators() {
    let token = format!("tokens: [{{ name: a, token: {TOKEN}, scopes: [admin], tenant: acme }}]");
    let config = config(&[], "").replace("admin: { ", &format!("admin: {{ {token}, "));
    let bridge = Bridge::start(&config).await.ready().await;
    let routes = routes();
    assert!(routes.len() > 40, "{routes:?}");
    for open in OPEN {
        assert!(routes.contains(open), "there is no {open}");
    }
    let variable = Regex::new(r"\{[a-z]+\}").unwrap();
    for route in &routes {
        let (method, path) = route.split_once(' ').unwrap();
        let path = variable.replace_all(path, "x");
        let url = format!("http://{}{path}", bridge.admin);
        let method: Method = method.parse().unwrap();
        let request = Client::new().request(method, url).bearer_auth(TOKEN);
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        if EVERYBODYS.contains(&route.as_str()) {
            assert_eq!(status, 200, "{route}");
        } else if OPEN.contains(&route.as_str()) {
            assert!(status != 401 && status != 403, "{route}: {status}");
        } else {
            assert_eq!(status, 403, "{route}");
            let problem: Value = answer.json().await.unwrap();
            let kind = "urn:hookbridge:problem:operator-only";
            assert_eq!(problem["type"], kind, "{route}");
        }
    }
}
