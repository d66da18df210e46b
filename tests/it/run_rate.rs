//! A rate on an endpoint that two subscriptions share holds for both together.

use std::time::Duration;

use crate::support::SECRET;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::receiver::Receiver;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_subscriptions_share_one_rate() {
    const RATE: usize = 5;
    let receiver = Receiver::accepting().await;
    let subscriptions = "  one: { topics: ['orders.one'], endpoint: shared }
  two: { topics: ['orders.two'], endpoint: shared }
endpoints:
  shared: { url: 'URL', secret: 'SECRET', rate: 5/s }
"
    .replace("URL", &receiver.url("/"))
    .replace("SECRET", SECRET);
    let bridge = Bridge::start(&Bus::embedded().config(&subscriptions))
        .await
        .ready()
        .await;
    for number in 0..20 {
        for topic in ["orders.one", "orders.two"] {
            let body = format!("{topic} {number}");
            let (status, answer) = bridge
                .post(&format!("/v1/topics/{topic}/events"), &body)
                .await;
            assert_eq!(status, 202, "{answer}");
        }
    }
    let mut requests = receiver.wait_for(40, Duration::from_secs(60)).await;
    requests.sort_by_key(|request| request.at);
    let bodies: std::collections::BTreeSet<_> = requests.iter().map(|r| &r.body).collect();
    assert_eq!(bodies.len(), 40, "each once");
    // Arrivals wobble a little; a rate that is not held is far beyond.
    for (first, request) in requests.iter().enumerate() {
        let second = Duration::from_secs(1);
        let within = requests[first..]
            .iter()
            .take_while(|later| later.at - request.at < second)
            .count();
        assert!(within <= RATE + 2, "{within} within a second");
    }
    let all = requests[39].at - requests[0].at;
    println!("40 events at 5/s took {all:?}");
    assert!(all < Duration::from_secs(40), "much slower than the rate");
}
