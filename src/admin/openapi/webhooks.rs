//! What receivers get from us, for the `webhooks` of the document; at length in docs/receivers.md and
//! docs/formats.md.

use serde_json::{Value, json};

/// `delivery`: every event. `agreement`: what an endpoint with a handshake is asked first.
pub fn all() -> Value {
    json!({ "delivery": { "post": delivery() }, "agreement": agreement() })
}

fn header(name: &str, required: bool, description: &str, example: &str) -> Value {
    json!({
        "name": name,
        "in": "header",
        "required": required,
        "description": description,
        "schema": { "type": "string" },
        "example": example,
    })
}

fn delivery() -> Value {
    let event = json!({ "total": 120, "currency": "EUR" });
    let time = "2026-03-01T12:00:00Z";
    let json_body = json!({
        "schema": {},
        "examples": {
            "raw": { "summary": "`format: raw`, the default: the message's bytes, untouched", "value": event },
            "envelope": {
                "summary": "`format: envelope`, as Standard Webhooks recommends",
                "value": { "type": "orders.created", "timestamp": time, "data": event },
            },
        },
    });
    let cloud_event = json!({
        "schema": {
            "type": "object",
            "required": ["specversion", "id", "source", "type"],
            "properties": {
                "specversion": { "const": "1.0" },
                "id": { "type": "string" },
                "source": { "type": "string" },
                "type": { "type": "string" },
                "time": { "type": "string", "format": "date-time" },
                "datacontenttype": { "type": "string" },
                "data": {},
                "data_base64": { "type": "string" },
            },
        },
        "example": {
            "specversion": "1.0", "id": "evt_1", "source": "orders", "type": "orders.created",
            "time": time, "datacontenttype": "application/json", "data": event,
        },
    });
    json!({
        "operationId": "receiveDelivery",
        "summary": "An event for a subscription",
        "description": "`POST` unless the endpoint's `method` says otherwise. Verify the signature over the raw body before anything parses it; remember `webhook-id` to tell duplicates. Formats are composed in the order fields, format, batch, encrypt, gzip, signature.",
        "tags": ["webhooks"],
        "security": [{ "signature": [] }],
        "parameters": [
            header("webhook-id", true, "The event's id: the same on every attempt, and to every subscription", "evt_1"),
            header("webhook-timestamp", true, "The attempt's time, in seconds since 1970", "1772366400"),
            header("webhook-signature", false, "Standard Webhooks: HMAC-SHA256 of `<webhook-id>.<webhook-timestamp>.<body>` as `v1,<base64>`, or ed25519 as `v1a,<base64>`; one for each secret, separated by spaces. With another `signature:` of the endpoint the headers of that", "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="),
            header("user-agent", false, "What sends it", "hookbridge/0.1.0"),
            header("content-encoding", false, "The message's, or `gzip` where the endpoint has `gzip: true`", "gzip"),
            header("webhook-version", false, "Where the payload has a version", "2026-03"),
            header("webhook-test", false, "`true` for what somebody has asked for to try the endpoint", "true"),
            header("traceparent", false, "The message's, if it has one that is valid", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            header("tracestate", false, "The message's, if it has one that is valid", "vendor=1"),
            header("baggage", false, "The message's, if it has one that is valid", "tenant=a"),
        ],
        "requestBody": {
            "required": true,
            "content": {
                "application/json": json_body,
                "application/cloudevents+json": cloud_event,
                "application/cloudevents-batch+json": { "schema": { "type": "array", "items": { "type": "object" } } },
                "application/x-www-form-urlencoded": { "schema": { "type": "object" } },
                "application/xml": { "schema": { "type": "string" } },
                "application/jose": { "schema": { "type": "string", "description": "A JWE, with `encrypt`" } },
                "*/*": { "schema": {}, "x-says": "With `format: raw`: whatever the message is" },
            },
        },
        "responses": {
            "2XX": {
                "description": "It is delivered. Answer when the event is safe with you; do the work afterwards.",
                "headers": {
                    "webhook-delivery": { "description": "`disable`: the endpoint is disabled from now on", "schema": { "type": "string" } },
                },
            },
            "410": { "description": "The endpoint is gone: after a second one a minute later it is disabled" },
            "default": {
                "description": "Attempted again by the retry schedule, unless the status is one of `no_retry`",
                "headers": {
                    "retry-after": { "description": "No attempt comes before", "schema": { "type": "string" } },
                    "webhook-delivery": { "description": "`abort-message`: a dead letter at once. `disable`: the endpoint is disabled", "schema": { "type": "string" } },
                },
            },
        },
    })
}

fn agreement() -> Value {
    let yes = |description: &str| json!({ "2XX": { "description": description } });
    json!({
        "options": {
            "operationId": "agreeByOptions",
            "summary": "`handshake: options`, as CloudEvents has it",
            "tags": ["webhooks"],
            "parameters": [
                header("webhook-request-origin", true, "Who wants to send", "events.example.com"),
                header("webhook-request-rate", false, "Requests a minute, where the endpoint has a `rate`", "6000"),
            ],
            "responses": yes("`webhook-allowed-origin` is the same origin, or `*`; `webhook-allowed-rate` is kept to"),
        },
        "post": {
            "operationId": "agreeByAnswer",
            "summary": "`handshake: challenge` (Slack's), or `hook-secret` (Asana's)",
            "tags": ["webhooks"],
            "parameters": [
                header("x-hook-secret", false, "With `hook-secret`: the newest secret, to be sent back in the same header", "c2VjcmV0"),
            ],
            "requestBody": { "content": { "application/json": {
                "schema": { "type": "object" },
                "example": { "token": "t", "challenge": "c", "type": "url_verification" },
            } } },
            "responses": yes("The challenge as the body or as `challenge` of it; with `hook-secret` the same `x-hook-secret`"),
        },
    })
}
