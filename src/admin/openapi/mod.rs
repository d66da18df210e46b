//! The API's own description: OpenAPI 3.1, made of the handlers and of what they take and give.
//!
//! Each handler says beside itself what it does (`utoipa::path`), and each type what it looks like. What
//! is the same for all is added here: problems, who may ask, and the requests that receivers get from
//! us ([`webhooks`]). A subscription looks as the config file has it, so its schema is the config's
//! and comes from there. A test compares the routes with what is described, another one the document
//! with `docs/openapi.json`, and a third one asks every operation what comes of it.

mod shapes;
mod webhooks;

use axum::Router;
use axum::extract::State as Extract;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Map, Value, json};
use utoipa::OpenApi as _;

use super::State;
use super::problem::{Detailed, Wrong};
use super::{
    attempts, control, dead_letters, events, health, jobs, parked, registration, replays, sources,
    subscriptions, tap, transfer, trial,
};
use crate::operations::subscriptions::{Listed, ShownRegistered};
use crate::pipeline::Tapped;

pub use shapes::*;

/// What a problem is sent as.
const PROBLEM: &str = "application/problem+json";
/// Lines and streams, of which no schema holds for the whole.
const STREAMED: [&str; 2] = ["application/x-ndjson", "text/event-stream"];

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "hookbridge",
        description = "The admin API of a running bridge."
    ),
    paths(
        attempts::export,
        attempts::find,
        attempts::list,
        attempts::trace,
        control::log,
        control::pause,
        control::pause_all,
        control::reload,
        control::resume,
        control::resume_all,
        control::set_log,
        dead_letters::count,
        dead_letters::export,
        dead_letters::groups,
        dead_letters::list,
        dead_letters::purge,
        dead_letters::retry,
        dead_letters::retry_one,
        dead_letters::show,
        events::publish,
        health::alive,
        health::metrics,
        health::ready,
        health::version,
        jobs::cancel,
        jobs::list,
        jobs::show,
        parked::drop_them,
        parked::list,
        parked::now,
        registration::create,
        registration::list,
        registration::merge,
        registration::remove,
        registration::replace,
        registration::rotate,
        registration::show,
        replays::list,
        replays::start,
        show,
        sources::list,
        subscriptions::enable,
        subscriptions::pause,
        subscriptions::resume,
        subscriptions::verify,
        tap::tap,
        transfer::export,
        transfer::import,
        trial::test,
    ),
    components(schemas(Detailed, Listed, ShownRegistered, Tapped, Wrong))
)]
struct Described;

/// Needs no token: it says nothing of this bridge.
pub fn reading() -> Router<State> {
    Router::new().route("/v1/openapi.json", get(show))
}

#[utoipa::path(
    get,
    path = "/v1/openapi.json",
    tag = "bridge",
    operation_id = "describeApi",
    summary = "This description",
    responses((status = 200, description = "OpenAPI 3.1", body = Object))
)]
async fn show(Extract(state): Extract<State>) -> Response {
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind)], state.openapi.clone()).into_response()
}

/// The document. `subscription`: schemas by name, the one of a subscription as a caller writes it as
/// [`SUBSCRIPTION`], and those that it refers to.
pub fn document(subscription: Map<String, Value>) -> Value {
    let described = Described::openapi();
    let mut document = serde_json::to_value(described).expect("texts, lists and maps");
    document["openapi"] = "3.1.0".into();
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    document["info"]["license"] =
        json!({ "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" });
    document["servers"] =
        json!([{ "url": "http://127.0.0.1:8400", "description": "`admin.listen` of the config" }]);
    document["components"]["securitySchemes"] = json!({ "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token of `admin.tokens`, with the scope that the operation names or `admin`. Needed as soon as the config has one.",
    } });
    also_at(
        &mut document,
        "/v1/events/{id}/trace",
        "/v1/events/{id}",
        "showEvent",
    );
    let schemas = object(&mut document["components"]["schemas"]);
    schemas.extend(subscription);
    written_subscriptions(schemas);
    let paths = object(&mut document["paths"]);
    for (path, operations) in paths {
        for (method, operation) in object(operations) {
            finish(operation);
            // Whoever tries the examples removes nothing.
            if method != "delete" {
                name_for_example(operation, path);
            }
        }
    }
    let made = "/paths/~1v1~1subscriptions/post/requestBody/content/application~1json/schema";
    if let Some(schema) = document.pointer_mut(made) {
        *schema = json!({ "allOf": [schema.take()], "required": ["name"] });
    }
    examples(&mut document);
    document["webhooks"] = webhooks::all();
    document
}

/// The schema of a subscription as a caller writes it.
pub const SUBSCRIPTION: &str = "config.subscription";

fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it is one now")
}

/// The same handler under another path.
fn also_at(document: &mut Value, path: &str, other: &str, id: &str) {
    let mut same = document["paths"][path].clone();
    for operation in object(&mut same).values_mut() {
        operation["operationId"] = id.into();
    }
    document["paths"][other] = same;
}

/// What callers write is the config's; what is shown is the listed part, and for those of the API more.
fn written_subscriptions(schemas: &mut Map<String, Value>) {
    let to = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    schemas.insert("SubscriptionWanted".to_owned(), to(SUBSCRIPTION));
    if let Some(registered) = schemas.get_mut("RegisteredSubscription") {
        object(registered).remove("required");
    }
    let shown = json!({
        "description": "One subscription; of those of the API with what their callers wrote.",
        "allOf": [to("ListedSubscription"), to("RegisteredSubscription")],
    });
    schemas.insert("Subscription".to_owned(), shown);
}

/// Adds to an operation what all of its kind can answer, and the form of problems.
fn finish(operation: &mut Value) {
    let has = |key: &str| operation.get(key).is_some();
    let (asks, has_body) = (has("parameters"), has("requestBody"));
    let needs_token = has("security");
    if let Some(Value::Array(needed)) = operation.get_mut("security") {
        // As long as there are no tokens nobody needs one.
        needed.push(json!({}));
    }
    let mut common = vec![
        (
            "403",
            "The token does not allow this, or the request comes from a web page",
        ),
        ("408", "The request took too long"),
    ];
    if needs_token {
        common.push(("401", "A token is needed"));
    }
    if asks || has_body {
        common.push(("400", "The request cannot be understood"));
    }
    if has_body {
        common.push(("413", "The body is too large"));
        common.push(("415", "The body is of another kind"));
    }
    if let Some(patch) = operation.pointer_mut("/requestBody/content") {
        let patch = object(patch);
        if let Some(merge) = patch.get("application/merge-patch+json").cloned() {
            patch.insert("application/json".to_owned(), merge);
        }
        by_lines(patch);
    }
    let responses = object(&mut operation["responses"]);
    for (status, description) in common {
        let response = || json!({ "description": description });
        responses.entry(status).or_insert_with(response);
    }
    for (status, response) in responses {
        let response = object(response);
        let is_problem = status.starts_with(['4', '5']) && !response.contains_key("content");
        if is_problem {
            let schema = json!({ "$ref": "#/components/schemas/Problem" });
            response.insert(
                "content".to_owned(),
                json!({ PROBLEM: { "schema": schema } }),
            );
        }
        let Some(content) = response.get_mut("content") else {
            continue;
        };
        by_lines(object(content));
    }
}

/// What is said of the content is said of a line of it.
fn by_lines(content: &mut Map<String, Value>) {
    for (kind, said) in content {
        if STREAMED.contains(&kind.as_str())
            && let Some(line) = object(said).remove("schema")
        {
            object(said).insert("x-line".to_owned(), line);
        }
    }
}

/// What a variable of the path may be.
fn name_for_example(operation: &mut Value, path: &str) {
    let named = [
        ("/v1/subscriptions/{name}", "name", "crm"),
        ("/v1/sources/{name}", "name", "orders"),
        ("/v1/topics/{topic}", "topic", "orders.created"),
    ];
    let Some(Value::Array(parameters)) = operation.get_mut("parameters") else {
        return;
    };
    for (prefix, name, example) in named {
        for parameter in parameters.iter_mut().filter(|_| path.starts_with(prefix)) {
            if parameter["name"] == name {
                parameter["example"] = example.into();
            }
        }
    }
}

/// For readers, and for clients that try them.
fn examples(document: &mut Value) {
    let wanted = json!({
        "name": "crm",
        "topics": ["orders.*"],
        "filter": { "data.total": { "$gte": 100 } },
        "endpoint": { "url": "https://crm.example.com/hooks", "rate": "20/s" },
    });
    let problem = json!({
        "type": "urn:hookbridge:problem:invalid",
        "title": "The body has mistakes",
        "status": 422,
        "detail": "nothing was done; `errors` says what is wrong, and where",
        "errors": [{
            "pointer": "#/topcs",
            "detail": "unknown key `topcs` in `subscription`",
            "help": "did you mean `topics`?",
        }],
    });
    let order = json!({ "filter": "reason:attempts_exhausted since:1h", "rate": "50/s" });
    let replay =
        json!({ "source": "orders", "subscription": "crm", "since": "1h", "rate": "50/s" });
    let schemas = object(&mut document["components"]["schemas"]);
    for (name, example) in [
        ("Problem", problem),
        ("DeadLetterOrder", order),
        ("ReplayOrder", replay),
        (SUBSCRIPTION, wanted),
        (
            "SubscriptionPatch",
            json!({ "timeout": "5s", "labels": null }),
        ),
        ("Rotate", json!({ "overlap": "24h" })),
        ("ParkedOrder", json!({ "subscription": "crm" })),
        (
            "TestOrder",
            json!({ "sample": { "type": "order.created", "data": { "total": 120 } } }),
        ),
        (
            "ExportedLine",
            json!({ "format": 1, "subscription": {
                "uid": "api:01a201faf7a87092a931c4362042db35",
                "name": "erp",
                "revision": 1,
                "made_at": "2026-11-22T06:39:14Z",
                "changed_at": "2026-11-22T06:39:14Z",
                "document": {
                    "name": "erp",
                    "topics": ["orders.#"],
                    "endpoint": { "url": "https://erp.example.com/hooks", "signature": "none" },
                },
            } }),
        ),
        ("Log", json!({ "filter": "info,hookbridge::deliver=debug" })),
    ] {
        if let Some(schema) = schemas.get_mut(name) {
            object(schema).insert("examples".to_owned(), json!([example]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reference in the document, and what is not there.
    fn dangling(value: &Value, document: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(to)) = map.get("$ref")
                    && document.pointer(&to[1..]).is_none()
                {
                    found.push(to.clone());
                }
                map.values()
                    .for_each(|value| dangling(value, document, found));
            }
            Value::Array(all) => all
                .iter()
                .for_each(|value| dangling(value, document, found)),
            _ => {}
        }
    }

    #[test]
    fn whatever_is_referred_to_is_there_and_ids_are_unique() {
        let subscription = [(SUBSCRIPTION.to_owned(), json!({ "type": "object" }))];
        let document = document(subscription.into_iter().collect());
        let mut found = Vec::new();
        dangling(&document, &document, &mut found);
        assert_eq!(found, [""; 0]);
        let paths = document["paths"].as_object().unwrap();
        let operations = paths
            .values()
            .flat_map(|path| path.as_object().unwrap().values());
        let mut ids: Vec<_> = operations
            .map(|one| one["operationId"].to_string())
            .collect();
        let count = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count);
        let listed = &document["paths"]["/v1/subscriptions"]["post"]["responses"];
        for status in [
            "201", "400", "401", "403", "408", "409", "413", "415", "422", "503",
        ] {
            assert!(listed.get(status).is_some(), "{status}");
        }
    }
}
