//! Events and subscriptions of tenants: who gets what, and what each may use.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use reqwest::Client;
use serde_json::json;

use crate::registration_support::{KEY, SOON, config, post};
use crate::support::bridge::Bridge;
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver};

/// A bridge whose events say in a header whose they are.
fn with_tenants(more: &str) -> String {
    let of_source = "orders: { broker: here, topics: ['#']";
    let config = config(&[KEY], more);
    assert!(config.contains(of_source));
    config.replace(
        of_source,
        &format!("{of_source}, tenant: {{ header: tenant }}"),
    )
}

async fn publish_for(bridge: &Bridge, tenant: Option<&str>, body: &str) {
    let url = format!("http://{}/v1/topics/orders.created/events", bridge.admin);
    let mut request = Client::new().post(url).body(body.to_owned());
    if let Some(tenant) = tenant {
        request = request.header("hookbridge-header-tenant", tenant);
    }
    let answer = request.send().await.expect("the admin answers");
    assert_eq!(answer.status(), 202);
}

fn of(tenant: Option<&str>, name: &str, url: String) -> serde_json::Value {
    let mut document = json!({
        "name": name, "topics": ["orders.#"],
        "endpoint": { "url": url, "signature": "none" },
    });
    if let Some(tenant) = tenant {
        document["tenant"] = tenant.into();
    }
    document
}

/// Generated events and subscriptions of two tenants and the operator: each subscription gets what is
/// its tenant's and nothing else, and the operator's get everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tenants_never_see_each_other() {
    const TENANTS: [Option<&str>; 3] = [None, Some("acme"), Some("bolt")];
    let mut runner = TestRunner::deterministic();
    let owners = proptest::collection::vec(0..3_usize, 12);
    // What says nothing, what is no tenant, and one that has no subscription.
    let events = proptest::collection::vec(0..6_usize, 120);
    let plan = (owners, events).new_tree(&mut runner).expect("a plan");
    let (owners, events) = plan.current();
    let receiver = Receiver::accepting().await;
    let bridge = Bridge::start(&with_tenants("")).await.ready().await;
    for (number, owner) in owners.iter().enumerate() {
        let url = receiver.url(&format!("/{number}"));
        let one = of(TENANTS[*owner], &format!("s{number}"), url);
        post(&bridge, "/v1/subscriptions", &one).await.with(201);
    }
    let said = [
        None,
        Some("acme"),
        Some("bolt"),
        Some("a b"),
        Some(""),
        Some("cold"),
    ];
    let mut wanted = BTreeMap::new();
    for (number, event) in events.iter().enumerate() {
        // An empty header cannot be published.
        let tenant = said[*event].filter(|tenant| !tenant.is_empty());
        publish_for(&bridge, tenant, &format!("{number}")).await;
        for (at, owner) in owners.iter().enumerate() {
            let owner = TENANTS[*owner];
            if owner.is_none() || owner == tenant {
                wanted.insert((format!("/{at}"), number.to_string()), 1);
            }
        }
    }
    receiver.wait_for(wanted.len(), SOON).await;
    receiver.quiet_for(Duration::from_millis(300), SOON).await;
    let mut found = BTreeMap::new();
    for request in receiver.requests() {
        let body = String::from_utf8(request.body.to_vec()).expect("a number");
        *found.entry((request.path, body)).or_insert(0) += 1;
    }
    assert_eq!(found, wanted);
    let nobodys = events.iter().filter(|event| [0, 3, 4].contains(*event));
    let counted = bridge.metric("hookbridge_events_without_tenant_total{source=\"orders\"}");
    assert_eq!(counted.await as usize, nobodys.count());
}

/// A tenant that has used up its share waits, and another one does not wait with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_over_its_share_waits_and_holds_nobody_up() {
    const SLOW: Duration = Duration::from_millis(300);
    let slow = Receiver::answering(|_, _| Answer::status(200).after(SLOW)).await;
    let quick = Receiver::accepting().await;
    let tenants = "tenants: { named: { slow: { in_flight: 2 }, limited: { rate: 5/s } } }\n";
    let bridge = Bridge::start(&with_tenants(tenants)).await.ready().await;
    for at in 0..3 {
        let url = slow.url(&format!("/{at}"));
        let one = of(Some("slow"), &format!("slow-{at}"), url);
        post(&bridge, "/v1/subscriptions", &one).await.with(201);
    }
    for tenant in ["other", "limited"] {
        let one = of(Some(tenant), tenant, quick.url(&format!("/{tenant}")));
        post(&bridge, "/v1/subscriptions", &one).await.with(201);
    }
    let began = Instant::now();
    for number in 0..6 {
        publish_for(&bridge, Some("slow"), &number.to_string()).await;
        publish_for(&bridge, Some("limited"), &number.to_string()).await;
    }
    let after = Instant::now();
    publish_for(&bridge, Some("other"), "x").await;
    let came = eventually("the other tenant's", SOON, async || {
        let all = quick.requests().into_iter();
        all.rev().find(|request| request.path == "/other")
    })
    .await;
    assert!(came.at - after < SLOW * 4, "{:?}", came.at - after);
    // 18 of them, two at a time.
    let all = slow.wait_for(18, SOON).await;
    let last = all.iter().map(|request| request.at).max().expect("some");
    assert!(last - began >= SLOW * 7, "{:?}", last - began);
    let limited = quick.wait_for(7, SOON).await;
    let limited: Vec<_> = limited.iter().filter(|it| it.path == "/limited").collect();
    assert_eq!(limited.len(), 6);
    let last = limited
        .iter()
        .map(|request| request.at)
        .max()
        .expect("some");
    assert!(
        last - began >= Duration::from_millis(900),
        "{:?}",
        last - began
    );
    for (tenant, count) in [("slow", 18.0), ("limited", 6.0), ("(other)", 1.0)] {
        let labels = format!("tenant=\"{tenant}\",outcome=\"delivered\"");
        let line = format!("hookbridge_tenant_delivery_attempts_total{{{labels}}}");
        // It is counted after the answer.
        eventually(tenant, SOON, async || {
            (bridge.metric(&line).await == count).then_some(())
        })
        .await;
    }
}
