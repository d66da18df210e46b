//! What answers mean under a real bridge, as each subscription says it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use crate::support::bridge::Bridge;
use crate::support::receiver::{Answer, Receiver};
use crate::support::{SECRET, eventually};

const SOON: Duration = Duration::from_secs(30);

/// Name, lists of its `retry`, the status of the first request and of those after it, and what
/// becomes of the delivery with how many requests.
const ROWS: [(&str, &str, [u16; 2], &str, usize); 7] = [
    ("wide", "success: [2xx, 409], ", [409, 500], "delivered", 1),
    ("narrow", "success: [202], ", [200, 202], "delivered", 2),
    ("usual", "", [404, 204], "delivered", 2),
    ("final", "no_retry: [410-420], ", [418, 204], "no_retry", 1),
    (
        "gone",
        "disable: [4xx], no_retry: [404], ",
        [404, 204],
        "gone",
        1,
    ),
    ("aborted", "", [500, 204], "aborted", 1),
    (
        "first",
        "success: [404], disable: [404], ",
        [404, 500],
        "delivered",
        1,
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_mean_what_the_subscription_says() {
    let before: Mutex<HashMap<String, usize>> = Mutex::default();
    let receiver = Receiver::answering(move |request, _| {
        let row = ROWS.iter().find(|row| request.path[1..] == *row.0);
        let (name, _, statuses, ..) = row.expect("a row");
        let mut before = before.lock().unwrap();
        let before = before.entry(request.path.clone()).or_default();
        let answer = Answer::status(statuses[(*before).min(1)]);
        *before += 1;
        match *name {
            "aborted" => answer.header("webhook-delivery", "abort-message"),
            _ => answer,
        }
    })
    .await;
    let subscriptions = ROWS.map(|(name, lists, ..)| {
        let url = receiver.url(&format!("/{name}"));
        format!(
            "  {name}: {{ topics: ['#'], endpoint: {{ url: '{url}', secret: '{SECRET}' }}, retry: {{ {lists}schedule: [100ms], jitter: 0, give_up_after: 50s }} }}\n"
        )
    });
    let bridge = Bridge::start(&format!(
        "data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers: {{ here: {{ embedded: {{}} }} }}
sources: {{ shop: {{ broker: here, topics: ['#'] }} }}
subscriptions:
{}",
        subscriptions.concat()
    ))
    .await
    .ready()
    .await;
    let (status, said) = bridge.post("/v1/topics/orders.created/events", "{}").await;
    assert_eq!(status, 202, "{said}");
    for (name, _, _, end, count) in ROWS {
        let line = match end {
            "delivered" => {
                format!(
                    "hookbridge_delivery_attempts_total{{subscription=\"{name}\",outcome=\"delivered\""
                )
            }
            reason => format!(
                "hookbridge_dead_letters_total{{subscription=\"{name}\",reason=\"{reason}\"}} 1"
            ),
        };
        eventually(&line, SOON, async || {
            let metrics = bridge.metrics().await;
            let is = |found: &str| found.starts_with(&line) && found.ends_with(" 1");
            metrics.lines().any(is).then_some(())
        })
        .await;
        let path = format!("/{name}");
        let requests = receiver.count_of(|request| request.path == path);
        assert_eq!(requests, count, "{name}");
    }
    let (_, said) = bridge.get("/v1/subscriptions").await;
    assert_eq!(said.matches("\"disabled\"").count(), 1, "{said}");
}
