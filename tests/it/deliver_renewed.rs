//! A receiver that is renewed while connections to it are held.

use std::time::Duration;

use crate::chaos_kill::bodies;
use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::eventually;
use crate::support::receiver::Mortal;

const WITHIN: Duration = Duration::from_secs(30);
const COUNT: usize = 200;

async fn failed(bridge: &Bridge) -> f64 {
    let metrics = bridge.metrics().await;
    let failed = metrics.lines().filter(|line| {
        line.starts_with("hookbridge_delivery_attempts_total") && line.contains("\"failed\"")
    });
    failed
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Between deliveries it costs none of them an attempt; with some under way, those and the few that
/// come while nobody listens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_receiver_fails_no_more_than_what_is_under_way() {
    let mut first = Mortal::at(([127, 0, 0, 1], 0).into(), Duration::ZERO);
    let address = first.receiver.address;
    let bus = Bus::embedded();
    let url = first.receiver.url("/");
    let config = bus.config(&subscription("crm", "#", &url, ", concurrency: 16"));
    let bridge = Bridge::start(&config).await.ready().await;
    let all = bodies(3 * COUNT);
    bus.publish(&bridge, &all[..COUNT]).await;
    first.receiver.wait_for(COUNT, WITHIN).await;
    let delivered = "hookbridge_delivery_attempts_total{subscription=\"crm\",outcome=\"delivered\",status_class=\"2xx\"}";
    eventually("the first are answered", WITHIN, async || {
        (bridge.metric(delivered).await == COUNT as f64).then_some(())
    })
    .await;

    // Its connections are idle, and end with it.
    first.end();
    let mut second = Mortal::at(address, Duration::from_millis(200));
    bus.publish(&bridge, &all[COUNT..2 * COUNT]).await;
    eventually("it is busy", WITHIN, async || {
        (second.receiver.count() >= 32).then_some(())
    })
    .await;
    assert_eq!(failed(&bridge).await, 0.0);

    // Now sixteen requests are under way on them.
    second.end();
    let third = Mortal::at(address, Duration::ZERO);
    bus.publish(&bridge, &all[2 * COUNT..]).await;
    eventually("all are delivered", WITHIN, async || {
        (bridge.metric(delivered).await == all.len() as f64).then_some(())
    })
    .await;
    let failures = failed(&bridge).await;
    println!("{failures} attempts failed");
    assert!(
        (1.0..=32.0).contains(&failures),
        "{failures} attempts failed"
    );
    // Nothing that was refused once was refused again.
    assert!(third.receiver.by_id().values().all(|count| *count == 1));
}
