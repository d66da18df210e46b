//! What the API says of itself: kept in the repository, complete, and served.
//!
//! `HOOKBRIDGE_BLESS=1 cargo test --test it openapi_document` writes the document anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use hookbridge::app;
use regex::Regex;
use reqwest::{Client, Method};
use serde_json::Value;

use crate::registration_support::{KEY, config};
use crate::support::bridge::Bridge;
use crate::support::cli::run;

const FILE: &str = "docs/openapi.json";
/// Said of `/v1/topics/{topic}/events` already: the topic is empty there, which is refused.
const SAID_ELSEWHERE: [(&str, &str); 1] = [("/v1/topics//events", "post")];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn document() -> Value {
    serde_json::from_str(&app::openapi()).expect("JSON")
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => rust_files(&path, found),
            false => found.push(path),
        }
    }
}

#[test]
fn the_document_in_the_repository_is_that_of_the_code() {
    let (path, should) = (root().join(FILE), app::openapi());
    if std::env::var_os("HOOKBRIDGE_BLESS").is_some() {
        std::fs::write(&path, &should).expect("written");
    }
    let is = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        is == should,
        "{FILE} is out of date: HOOKBRIDGE_BLESS=1 cargo test --test it openapi_document"
    );
}

/// Path and method of everything in the document.
fn described(document: &Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().expect("paths");
    let each = paths.iter().flat_map(|(path, operations)| {
        let operations = operations.as_object().expect("operations");
        operations
            .keys()
            .map(|method| (path.clone(), method.clone()))
    });
    each.collect()
}

#[test]
fn every_route_is_described_and_nothing_else() {
    let mut files = Vec::new();
    rust_files(&root().join("src/admin"), &mut files);
    let route = Regex::new(r#"\.route\(\s*"([^"]+)",\s*((?:\.?[a-z]+\([a-z_:]+\)\s*)+),?\s*\)"#)
        .expect("a pattern");
    let method = Regex::new(r"\b(get|post|put|patch|delete)\(").expect("a pattern");
    let mut routes = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("text");
        let found: Vec<_> = route.captures_iter(&text).collect();
        let all = text.matches(".route(").count();
        assert_eq!(found.len(), all, "{}: not all are seen", file.display());
        for one in found {
            for method in method.captures_iter(&one[2]) {
                routes.insert((one[1].to_owned(), method[1].to_owned()));
            }
        }
    }
    assert!(routes.len() > 40, "{routes:#?}");
    for (path, method) in SAID_ELSEWHERE {
        assert!(routes.remove(&(path.to_owned(), method.to_owned())));
    }
    assert_eq!(described(&document()), routes);
}

#[test]
fn problems_tokens_and_what_receivers_get_are_described() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, method) in described(&document) {
        let operation = &document["paths"][&path][&method];
        let what = format!("{method} {path}");
        assert!(operation["summary"].is_string(), "{what} has no summary");
        for (status, response) in operation["responses"].as_object().expect("responses") {
            let is_problem =
                status.starts_with(['4', '5']) && !(path == "/readyz" && status == "503");
            if is_problem {
                let schema = &response["content"]["application/problem+json"]["schema"];
                assert_eq!(
                    schema["$ref"], "#/components/schemas/Problem",
                    "{what} {status}"
                );
            }
        }
    }
    let delivery = &document["webhooks"]["delivery"]["post"];
    let headers = delivery["parameters"].as_array().expect("headers");
    for name in [
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
        "webhook-test",
    ] {
        assert!(
            headers.iter().any(|header| header["name"] == name),
            "{name}"
        );
    }
    let wanted = &document["components"]["schemas"]["config.subscription"];
    assert!(wanted["properties"]["topics"].is_object());
    assert!(wanted["properties"]["name"].is_object() && wanted["properties"]["was"].is_null());
    assert!(!document.to_string().contains("#/definitions/"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_served_and_its_scopes_are_those_that_are_asked_for() {
    let all = ["read", "publish", "replay", "admin"];
    let token = |scope: &str| format!("{scope}-0123456789abcdef");
    let tokens: Vec<_> = all
        .iter()
        .map(|scope| {
            format!(
                "{{ name: {scope}, token: {}, scopes: [{scope}] }}",
                token(scope)
            )
        })
        .collect();
    let text = config(&[KEY], "").replace(
        "admin: { listen: '{admin}' }",
        &format!(
            "admin: {{ listen: '{{admin}}', tokens: [{}] }}",
            tokens.join(", ")
        ),
    );
    let bridge = Bridge::start(&text).await;
    let (status, served) = bridge.get("/v1/openapi.json").await;
    assert_eq!((status, served), (200, app::openapi()));
    let printed = run(&bridge.config_path(), &["schema", "--openapi"])
        .await
        .ok();
    assert_eq!(printed, app::openapi());

    let document = document();
    for (path, method) in described(&document) {
        let operation = &document["paths"][&path][&method];
        let needed = operation["security"][0]["token"][0].as_str();
        let filled = path.replace("{name}", "none").replace("{id}", "none");
        let url = format!(
            "http://{}{}",
            bridge.admin,
            filled.replace("{topic}", "none")
        );
        let ask = async |token: Option<String>| {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
            let mut request = Client::new().request(method, &url).body("{");
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            let answer = request.send().await.expect("an answer");
            let challenge = answer.headers().get("www-authenticate").cloned();
            let challenge = challenge.map(|it| it.to_str().expect("ASCII").to_owned());
            (answer.status().as_u16(), challenge.unwrap_or_default())
        };
        let what = format!("{method} {path}");
        let Some(needed) = needed else {
            assert_ne!(ask(None).await.0, 401, "{what}");
            continue;
        };
        assert_eq!(ask(None).await.0, 401, "{what}");
        let other = if needed == "read" { "publish" } else { "read" };
        let (status, challenge) = ask(Some(token(other))).await;
        assert_eq!(status, 403, "{what}");
        assert!(
            challenge.contains(&format!("scope=\"{needed}\"")),
            "{what}: {challenge}"
        );
    }
}

#[test]
fn operations_are_named_once() {
    let document = document();
    let mut named = BTreeMap::new();
    for (path, method) in described(&document) {
        let id = document["paths"][&path][&method]["operationId"].clone();
        let before = named.insert(id.to_string(), (path.clone(), method.clone()));
        assert_eq!(before, None, "{id}: {method} {path}");
    }
}
