//! Meta-events: what the bridge says of endpoints, dead letters and brokers, to those who ask for it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use hookbridge::config;
use serde_json::{Value, json};

use crate::chaos_broker::NAMES_ON_DISK;
use crate::docs_blocks::blocks;
use crate::path::subscription;
use crate::registration_support::{KEY, post};
use crate::support::bridge::Bridge;
use crate::support::brokers::Own;
use crate::support::bus::Bus;
use crate::support::receiver::{Answer, Receiver, Request};
use crate::support::refused::{bodies, giving_up};
use crate::support::{SECRET, eventually};
use crate::trace_states::hookbridge;

const SOON: Duration = Duration::from_secs(60);
const FAILING: &str = "hookbridge.endpoint.failing";
const RECOVERED: &str = "hookbridge.endpoint.recovered";
const DISABLED: &str = "hookbridge.endpoint.disabled";
const LETTERS: &str = "hookbridge.dead_letter.created";

/// A subscription to all that the bridge says.
fn owner(name: &str, url: &str, more: &str) -> String {
    format!(
        "  {name}: {{ topics: ['hookbridge.#'], sources: [hookbridge], endpoint: {{ url: '{url}', secret: '{SECRET}' }}, retry: {{ schedule: [1s], jitter: 0 }}{more} }}\n"
    )
}

fn told(requests: &[Request], kind: &str) -> Vec<Value> {
    let bodies = requests
        .iter()
        .map(|request| serde_json::from_slice::<Value>(&request.body).expect("JSON"));
    bodies.filter(|body| body["type"] == kind).collect()
}

async fn until_told(owner: &Receiver, kind: &str) -> Value {
    eventually(kind, SOON, async || told(&owner.requests(), kind).pop()).await
}

/// The members of each type, as docs/meta-events.md shows them.
fn documented(kind: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/meta-events.md");
    let text = std::fs::read_to_string(path).expect("the page");
    let shown: Vec<Value> = blocks(&text, "json")
        .into_iter()
        .map(|block| serde_json::from_str(block).expect("JSON"))
        .collect();
    let found = shown.iter().find(|shown| shown["type"] == kind);
    members(found.unwrap_or_else(|| panic!("{kind} is shown")))
}

fn members(of: &Value) -> BTreeSet<String> {
    of.as_object().expect("an object").keys().cloned().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_are_told_of_endpoints_and_dead_letters_and_nobody_else_is() {
    let crm = Receiver::answering(|request, _| {
        let is_bad = String::from_utf8_lossy(&request.body).contains("bad");
        Answer::status(if is_bad { 503 } else { 204 })
    })
    .await;
    let leaver =
        Receiver::answering(|_, _| Answer::status(204).header("webhook-delivery", "disable")).await;
    let (all, acme, slack) = (
        Receiver::accepting().await,
        Receiver::accepting().await,
        Receiver::accepting().await,
    );
    let (api, everything) = (Receiver::accepting().await, Receiver::accepting().await);
    let config = [
        subscription("crm", "orders.*", &crm.url("/s3cret"), ", tenant: acme")
            .replace(
                "endpoint: {",
                "endpoint: { breaker: { failures: 1, cool_down: 1s },",
            )
            .replace("jitter: 0", "jitter: 0, max_attempts: 2"),
        subscription("leaver", "orders.*", &leaver.url("/"), ""),
        subscription("everything", "#", &everything.url("/"), ""),
        owner("all", &all.url("/"), ""),
        owner("acme", &acme.url("/"), ", tenant: acme"),
        owner("other", &everything.url("/"), ", tenant: other"),
        format!(
            "  slack: {{ topics: ['hookbridge.#'], sources: [hookbridge], endpoint: {{ url: '{}', format: {{ slack: {{ text: '{{{{ data.summary | mrkdwn }}}}' }} }} }} }}\n",
            slack.url("/")
        ),
    ];
    let bus = Bus::embedded();
    let config = format!("store_key: ['{KEY}']\n{}", bus.config(&config.concat()));
    let config = config.replace("topics: ['#'] }", "topics: ['#'], tenant: { json: of } }");
    let bridge = Bridge::start(&config).await.ready().await;
    let made = json!({
        "name": "made", "topics": ["hookbridge.dead_letter.*"], "sources": ["hookbridge"],
        "filter": { "data.count": { "$gte": 1 } },
        "endpoint": { "url": api.url("/"), "signature": "none" },
    });
    post(&bridge, "/v1/subscriptions", &made).await.with(201);

    let event = |is: &str| format!(r#"{{"of": "acme", "is": "{is}"}}"#);
    bus.publish(&bridge, &[event("bad")]).await;
    let failing = until_told(&all, FAILING).await;
    assert_eq!(failing["endpoint"], "crm", "{failing}");
    assert_eq!(failing["result"], "503");
    assert_eq!(failing["tenant"], "acme");
    let letters = until_told(&all, LETTERS).await;
    assert_eq!(letters["subscription"], "crm", "{letters}");
    assert_eq!(letters["reasons"], json!({ "attempts_exhausted": 1 }));
    let letter = letters["first"]["delivery"].as_str().expect("an id");
    let shown = hookbridge(&bridge, &["dead", "show", letter]).await;
    assert!(shown.out.contains("crm"), "{}", shown.err);
    let disabled = until_told(&all, DISABLED).await;
    assert_eq!(disabled["endpoint"], "leaver", "{disabled}");
    assert_eq!(disabled["because"], "asked");
    bus.publish(&bridge, &[event("good")]).await;
    let recovered = until_told(&all, RECOVERED).await;
    assert_eq!(recovered["endpoint"], "crm", "{recovered}");

    for told in [&failing, &letters, &disabled, &recovered] {
        let kind = told["type"].as_str().expect("a type");
        assert_eq!(members(told), documented(kind), "{kind}");
        assert!(!told.to_string().contains("s3cret"), "{told}");
    }
    let requests = all.requests();
    assert!(requests.iter().all(|request| request.verified));
    let id = failing["id"].as_str().expect("an id");
    assert!(requests.iter().any(|request| request.id == id));
    // Each hears what is his.
    until_told(&acme, RECOVERED).await;
    until_told(&acme, LETTERS).await;
    assert_eq!(told(&acme.requests(), DISABLED), [] as [Value; 0]);
    until_told(&api, LETTERS).await;
    let text = eventually("slack", SOON, async || {
        let texts = slack.requests();
        let said = texts
            .iter()
            .map(|request| String::from_utf8_lossy(&request.body).into_owned());
        said.into_iter().find(|text| text.contains("fails: 503"))
    })
    .await;
    assert!(text.contains("endpoint crm (http://"), "{text}");
    let heard = everything.requests();
    let meta = heard
        .iter()
        .filter(|request| String::from_utf8_lossy(&request.body).contains("hookbridge."));
    assert_eq!(meta.count(), 0);
    assert_eq!(
        bridge.metric("hookbridge_meta_events_lost_total").await,
        0.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_is_told_and_fails_makes_no_meta_events() {
    let (crm, fails, hears) = (
        Receiver::answering(|_, _| Answer::status(400)).await,
        Receiver::answering(|_, _| Answer::status(503)).await,
        Receiver::accepting().await,
    );
    let config = [
        // It is told too, but not of itself.
        giving_up("crm", &crm.url("/")).replace(
            "topics: ['orders.*']",
            "topics: ['orders.*', 'hookbridge.#'], sources: [orders, hookbridge]",
        ),
        owner("fails", &fails.url("/"), "").replace(
            "endpoint: {",
            "endpoint: { breaker: { failures: 1, cool_down: 1s },",
        ),
        owner("hears", &hears.url("/"), ""),
    ];
    let bus = Bus::embedded();
    let bridge = Bridge::start(&bus.config(&config.concat()))
        .await
        .ready()
        .await;
    bus.publish(&bridge, &bodies(1)).await;
    eventually("both are dead letters", SOON, async || {
        let metrics = bridge.metrics().await;
        let dead = |name: &str, reason: &str| {
            let labels = format!("{{subscription=\"{name}\",reason=\"{reason}\"}}");
            metrics.contains(&format!("hookbridge_dead_letters_total{labels} 1"))
        };
        (dead("crm", "no_retry") && dead("fails", "attempts_exhausted")).then_some(())
    })
    .await;
    // Longer than dead letters are gathered, and parked.
    hears.quiet_for(Duration::from_secs(9), SOON).await;
    let heard = told(&hears.requests(), LETTERS);
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert_eq!(heard[0]["subscription"], "crm");
    assert_eq!((hears.count(), fails.count(), crm.count()), (1, 2, 1));
    assert_eq!(bridge.metric("hookbridge_meta_events_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_meta_event_survives_a_crash_and_is_retried_under_its_id() {
    let crm = Receiver::answering(|_, _| Answer::status(400)).await;
    let hears = Receiver::answering(|_, before| Answer::status([503, 204][before.min(1)])).await;
    let config = giving_up("crm", &crm.url("/")) + &owner("hears", &hears.url("/"), "");
    let bus = Bus::embedded();
    let mut bridge = Bridge::start(&bus.config(&config)).await.ready().await;
    bus.publish(&bridge, &bodies(1)).await;
    hears.wait_for(1, SOON).await;
    bridge.kill9_and_restart().await;
    let requests = hears.wait_for(2, SOON).await;
    assert_eq!(requests[0].id, requests[1].id);
    assert_eq!(requests[0].body, requests[1].body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_hears_that_the_only_broker_is_down_while_it_is() {
    let broker = tokio::task::block_in_place(Own::rabbitmq);
    let hears = Receiver::accepting().await;
    let bus = Bus::rabbitmq(broker.address()).await;
    let config = bus.config(&owner("hears", &hears.url("/"), ""));
    let bridge = Bridge::start(&config).await.ready().await;
    tokio::time::sleep(NAMES_ON_DISK).await;
    tokio::task::block_in_place(|| broker.kill9());
    let down = until_told(&hears, "hookbridge.broker.down").await;
    assert_eq!(down["broker"], "here", "{down}");
    assert_eq!(members(&down), documented("hookbridge.broker.down"));
    tokio::task::block_in_place(|| broker.start_again());
    let up = until_told(&hears, "hookbridge.broker.up").await;
    assert_eq!(up["down_since"], down["since"]);
    assert_eq!(members(&up), documented("hookbridge.broker.up"));
    assert_eq!(
        bridge.metric("hookbridge_meta_events_lost_total").await,
        0.0
    );
}

#[test]
fn the_source_is_known_and_no_other_has_its_name() {
    let parse = |sources: &str, named: &str| {
        let text = format!(
            "brokers: {{ here: {{ embedded: {{}} }} }}\nsources: {{ {sources}: {{ broker: here, topics: ['#'] }} }}\nsubscriptions: {{ a: {{ topics: ['#'], sources: [{named}], endpoint: {{ url: 'https://h/', signature: none }} }} }}\n"
        );
        let parsed = config::parse(&text, "c.yaml", Path::new("."), &|_| None);
        let problems = parsed.err().map(|problems| {
            let problem = &problems.list()[0];
            let help = problem.help.as_deref().unwrap_or_default();
            format!(
                "{}:{} {} ({help})",
                problem.line, problem.col, problem.message
            )
        });
        problems.unwrap_or_default()
    };
    assert_eq!(parse("orders", "hookbridge"), "");
    insta::assert_snapshot!(parse("hookbridge", "hookbridge"), @"2:12 `hookbridge` is the source of what the bridge itself says (give this one another name)");
    insta::assert_snapshot!(parse("orders", "hookbrige"), @"3:48 there is no source `hookbrige` (did you mean `hookbridge`?)");
}
