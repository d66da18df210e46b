//! A window full of hanging requests: it is emptied for others, and nothing is sent twice.

use std::time::Duration;

use crate::support::SECRET;
use crate::support::bridge::Bridge;
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver};

const WINDOW: usize = 8;
/// What the slow one takes for an answer; its deadline is later.
const TAKES: Duration = Duration::from_secs(6);

async fn publish(bridge: &Bridge, topic: &str, number: usize) {
    let path = format!("/v1/topics/{topic}/events");
    let url = format!("http://{}{path}", bridge.admin);
    let request = reqwest::Client::new().post(url);
    let request = request.header("Hookbridge-Id", format!("{topic}-{number}"));
    let answer = request.body("{}").send().await.expect("published");
    assert_eq!(answer.status(), 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hangs_is_parked_beside_its_request_and_sent_once() {
    let slow = Receiver::answering(|_, _| Answer::status(204).after(TAKES)).await;
    let good = Receiver::accepting().await;
    let (slow_url, good_url) = (slow.url("/"), good.url("/"));
    let bridge = Bridge::start(&format!(
        "group: hookbridge
data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers: {{ here: {{ embedded: {{}} }} }}
sources: {{ local: {{ broker: here, topics: ['#'], window: {WINDOW} }} }}
subscriptions:
  slow: {{ topics: [slow], timeout: 10s, slow_after: 500ms, endpoint: {{ url: '{slow_url}', secret: '{SECRET}' }} }}
  good: {{ topics: [good], endpoint: {{ url: '{good_url}', secret: '{SECRET}' }} }}
"
    ))
    .await
    .ready()
    .await;
    for number in 0..WINDOW {
        publish(&bridge, "slow", number).await;
    }
    slow.wait_for(WINDOW, Duration::from_secs(5)).await;
    publish(&bridge, "good", 0).await;
    good.wait_for(1, Duration::from_secs(3)).await;
    // The copies come back once the deadlines are over, and are met with what became of the requests.
    eventually("nothing is parked", Duration::from_secs(30), async || {
        let (_, listed) = bridge.get("/v1/parked").await;
        let listed: serde_json::Value = serde_json::from_str(&listed).ok()?;
        let all = listed["parked"].as_array()?.iter();
        let count: u64 = all.filter_map(|one| one["count"].as_u64()).sum();
        (count == 0).then_some(())
    })
    .await;
    slow.quiet_for(Duration::from_millis(1_500), Duration::from_secs(10))
        .await;
    assert_eq!(slow.count(), WINDOW);
    let retries = "hookbridge_deliveries_parked_total{subscription=\"slow\",reason=\"retry\"}";
    assert!(bridge.metric(retries).await > 0.0);
}
