//! A bridge with a past: events of which a receiver has refused some.

use std::time::Duration;

use super::bridge::Bridge;
use super::bus::Bus;
use super::receiver::{Answer, Receiver};
use super::shop::subscription;

const WITHIN: Duration = Duration::from_secs(30);

/// JSON with the numbers from 1.
pub fn bodies(count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("{{\"n\": {n}}}")).collect()
}

/// The line of a subscription that gives up at once what is answered with 400.
pub fn giving_up(name: &str, url: &str) -> String {
    subscription(name, "orders.*", url, "").replace("jitter: 0", "jitter: 0, no_retry: [400]")
}

/// A bridge that has sent `count` events to `crm`, which refuses those whose number ends in 1.
pub async fn one_in_ten_refused(count: usize) -> (Bridge, Receiver) {
    let receiver = Receiver::answering(|request, _| {
        let is_refused = request.body.ends_with(b"1}");
        Answer::status(if is_refused { 400 } else { 204 })
    })
    .await;
    let bus = Bus::embedded();
    let config = bus.config(&giving_up("crm", &receiver.url("/")));
    let bridge = Bridge::start(&config).await.ready().await;
    bus.publish(&bridge, &bodies(count)).await;
    receiver.wait_for(count, WITHIN).await;
    (bridge, receiver)
}
