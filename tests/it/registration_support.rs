//! What the tests of registration share: a config with a store key, and a client of the API.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName};
use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::support::bridge::Bridge;
use crate::support::unique;

pub const SOON: Duration = Duration::from_secs(20);
pub const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
pub const OTHER_KEY: &str = "101112131415161718191a1b1c1d1e1f000102030405060708090a0b0c0d0e0f";

/// A bridge over the embedded broker, with `keys` to seal with and these further lines of config.
pub fn config(keys: &[&str], more: &str) -> String {
    let group = unique("register");
    let keys = match keys {
        [] => String::new(),
        keys => format!(
            "store_key: [{}]\n",
            keys.iter()
                .map(|key| format!("'{key}'"))
                .collect::<Vec<_>>()
                .join(", ")
        ),
    };
    format!(
        "group: {group}
data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
{keys}delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers: {{ here: {{ embedded: {{}} }} }}
sources: {{ orders: {{ broker: here, topics: ['#'] }} }}
{more}"
    )
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Came {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Came {
    pub fn header(&self, name: &str) -> String {
        let value = self.headers.get(name);
        value.map_or(String::new(), |value| {
            value.to_str().expect("ASCII").to_owned()
        })
    }

    /// If it has this status.
    pub fn with(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:#}", self.body);
        self
    }

    /// Pointers of all that is wrong.
    pub fn pointers(&self) -> Vec<&str> {
        let errors = self.body["errors"].as_array();
        let errors = errors.map(Vec::as_slice).unwrap_or_default();
        errors
            .iter()
            .filter_map(|wrong| wrong["pointer"].as_str())
            .collect()
    }
}

/// A request with a body of JSON.
pub async fn ask(
    bridge: &Bridge,
    method: Method,
    path: &str,
    body: Option<&Value>,
    headers: &[(&'static str, &str)],
) -> Came {
    let text = body.map(Value::to_string);
    let mut all = vec![("content-type", "application/json")];
    all.retain(|_| text.is_some());
    all.extend(headers);
    let request = Client::new().request(method, format!("http://{}{path}", bridge.admin));
    let mut named = HeaderMap::new();
    for (name, value) in all {
        named.insert(
            HeaderName::from_static(name),
            value.parse().expect("a value"),
        );
    }
    let request = request.headers(named).body(text.unwrap_or_default());
    let answer = request.send().await.expect("the admin answers");
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let text = answer.text().await.expect("text");
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Came {
        status,
        headers,
        body,
    }
}

pub async fn get(bridge: &Bridge, path: &str) -> Came {
    ask(bridge, Method::GET, path, None, &[]).await
}

pub async fn post(bridge: &Bridge, path: &str, body: &Value) -> Came {
    ask(bridge, Method::POST, path, Some(body), &[]).await
}

/// A subscription of all orders to `url`, signed as Standard Webhooks says, with a secret of its own.
pub fn to(name: &str, url: &str) -> Value {
    json!({ "name": name, "topics": ["orders.#"], "endpoint": { "url": url } })
}

pub async fn publish(bridge: &Bridge, body: &str) {
    let (status, answer) = bridge.post("/v1/topics/orders.created/events", body).await;
    assert_eq!(status, 202, "{answer}");
}
