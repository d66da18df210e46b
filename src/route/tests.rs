use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::Method;
use proptest::prelude::*;
use serde_json::json;

use super::Routes;
use crate::event::{Event, EventId, Headers, Origin, Place};
use crate::subscription::{
    Breaker, Endpoint, LazyJson, MaxParked, RetryPolicy, Scheme, Spec, Subscription, Uid,
};

fn endpoint() -> Arc<Endpoint> {
    Arc::new(Endpoint {
        name: "e".into(),
        url: Arc::new("https://example.com".parse().unwrap()),
        method: Method::POST,
        headers: None,
        signature: Scheme::None,
        secrets: Vec::new(),
        payload: Default::default(),
        auth: None,
        handshake: None,
        tls: None,
        concurrency: 1,
        adaptive: false,
        rate: None,
        breaker: Breaker::default(),
    })
}

fn spec(name: &str, topics: &[&str]) -> Spec {
    Spec {
        name: name.into(),
        topics: topics.iter().map(|&topic| topic.to_owned()).collect(),
        types: Vec::new(),
        sources: Box::default(),
        filter: None,
        enabled: true,
        shadow: false,
        terms: None,
        was: Default::default(),
        retry: RetryPolicy::shared(RetryPolicy::default()),
        timeout: Spec::DEFAULT_TIMEOUT,
        connect_timeout: Spec::DEFAULT_CONNECT_TIMEOUT,
        slow_after: Spec::DEFAULT_SLOW_AFTER,
        max_parked: MaxParked::default(),
        tenant: None,
        labels: Default::default(),
        endpoint: "e".into(),
    }
}

fn routes(specs: impl IntoIterator<Item = Spec>) -> Routes<Subscription> {
    let endpoint = endpoint();
    Routes::build(specs.into_iter().map(|spec| {
        let uid = Uid::of_config(&spec.name);
        Arc::new(Subscription::compile(uid, spec, Arc::clone(&endpoint)).unwrap())
    }))
}

fn event(topic: &str, kind: &str, source: &str) -> Event {
    Event {
        id: EventId::from_outside(b"evt").unwrap(),
        topic: topic.into(),
        kind: kind.into(),
        source: source.into(),
        published_at: None,
        content_type: None,
        content_encoding: None,
        key: None,
        headers: Headers::default(),
        properties: Vec::new(),
        body: Bytes::from_static(b"{\"total\":1}"),
        origin: Origin {
            broker: "here".into(),
            place: Place::Embedded {
                topic: topic.into(),
                sequence: 1,
            },
        },
    }
}

/// Names of those found, sorted, duplicates kept.
fn found(routes: &Routes<Subscription>, event: &Event) -> Vec<String> {
    let mut out = Vec::new();
    routes.matching(event, &LazyJson::new(&event.body), &mut out);
    let mut names: Vec<_> = out
        .iter()
        .map(|found| found.spec.name.to_string())
        .collect();
    names.sort();
    names
}

#[test]
fn a_subscription_is_found_once_however_many_of_its_patterns_match() {
    let mut many = spec(
        "many",
        &[
            "orders.created",
            "orders.*",
            "#",
            "orders.#",
            "#",
            "#.#.created",
        ],
    );
    many.types = vec!["a.*".into(), "#".into(), "a.b".into()];
    many.sources = ["s".into(), "s".into()].into();
    let routes = routes([many]);
    assert_eq!(
        found(&routes, &event("orders.created", "a.b", "s")),
        ["many"]
    );
    assert_eq!(
        found(&routes, &event("orders.created", "a.b", "t")),
        [""; 0]
    );
}

#[test]
fn topic_type_source_and_filter_must_all_fit() {
    let mut crm = spec("crm", &["orders.*"]);
    crm.types = vec!["order.created".into()];
    crm.sources = ["shop".into()].into();
    crm.filter = Some(json!({"data.total": {"$gte": 1}}).into());
    let mut costly = spec("costly", &["orders.*"]);
    costly.filter = Some(json!({"data.total": {"$gte": 100}}).into());
    let routes = routes([crm, costly]);
    assert_eq!(
        found(&routes, &event("orders.new", "order.created", "shop")),
        ["crm"]
    );
    for (topic, kind, source) in [
        ("orders", "order.created", "shop"),
        ("orders.new", "order.deleted", "shop"),
        ("orders.new", "order.created", "lake"),
    ] {
        assert!(found(&routes, &event(topic, kind, source)).is_empty());
    }
}

#[test]
fn what_is_not_enabled_is_found_by_name_only() {
    let mut off = spec("off", &["#"]);
    off.enabled = false;
    off.was = ["older".into(), "oldest".into()].into();
    let routes = routes([off, spec("on", &["#"])]);
    assert_eq!(found(&routes, &event("a", "a", "s")), ["on"]);
    assert!(routes.by_name("off").is_some());
    assert!(routes.by_uid(&Uid::of_config("off")).is_some());
    assert_eq!(&*routes.renamed("oldest").unwrap().spec.name, "off");
    assert!(routes.renamed("off").is_none() && routes.by_name("older").is_none());
}

#[test]
fn no_routes_match_nothing() {
    let routes = routes([]);
    assert!(routes.is_empty() && found(&routes, &event("a.b", "c", "s")).is_empty());
}

#[test]
fn more_combinations_than_are_indexed_still_match() {
    let mut wide = spec("wide", &[]);
    wide.topics = (0..40).map(|n| format!("topic.{n}")).collect();
    wide.types = (0..40).map(|n| format!("kind.{n}")).collect();
    wide.sources = (0..10).map(|n| format!("source{n}").into()).collect();
    let routes = routes([wide]);
    assert_eq!(
        found(&routes, &event("topic.39", "kind.39", "source9")),
        ["wide"]
    );
    assert!(found(&routes, &event("topic.39", "kind.40", "source9")).is_empty());
    assert!(found(&routes, &event("topic.39", "kind.39", "source10")).is_empty());
}

#[test]
fn patterns_part_wherever_they_differ_however_long_they_are() {
    let long = "a-segment-longer-than-a-node-has-room-for";
    let patterns = [
        format!("{long}.{long}.created"),
        format!("{long}.{long}.*"),
        format!("{long}.{long}"),
        format!("{long}.{long}.created.#"),
        format!("{long}.{long}-too.created"),
    ];
    let specs = patterns.iter().map(|pattern| spec(pattern, &[pattern]));
    let routes = routes(specs);
    let [created, any, whole, below, too] = &patterns;
    for (topic, wanted) in [
        (created.clone(), vec![any, created, below]),
        (whole.clone(), vec![whole]),
        (format!("{created}.{long}"), vec![below]),
        (too.clone(), vec![too]),
        (format!("{long}."), vec![]),
        (long.to_owned(), vec![]),
    ] {
        let found = found(&routes, &event(&topic, "k", "s"));
        assert!(found.iter().eq(wanted), "{topic}: {found:?}");
    }
}

#[test]
fn as_many_types_as_are_indexed() {
    let mut typed = spec("typed", &["t"]);
    typed.types = (0..256).map(|n| format!("kind{n}")).collect();
    let routes = routes([typed]);
    assert_eq!(found(&routes, &event("t", "kind255", "s")), ["typed"]);
    assert!(found(&routes, &event("t", "kind256", "s")).is_empty());
}

#[test]
fn many_hashes_and_a_long_topic_do_not_explode() {
    let patterns: Vec<String> = (1..40).map(|n| vec!["#.a"; n].join(".") + ".#.b").collect();
    let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
    let routes = routes([spec("hashes", &patterns)]);
    let long = vec!["a"; 500].join(".");
    let started = Instant::now();
    assert!(found(&routes, &event(&long, "k", "s")).is_empty());
    assert_eq!(found(&routes, &event(&(long + ".b"), "k", "s")), ["hashes"]);
    assert!(started.elapsed().as_secs() < 2);
}

fn name() -> impl Strategy<Value = String> {
    let segment = prop::sample::select(vec!["a", "b", "c", ""]);
    prop_oneof![
        9 => prop::collection::vec(segment, 1..6).prop_map(|segments| segments.join(".")),
        1 => Just(vec!["a"; 20].join(".")),
    ]
}

fn pattern() -> impl Strategy<Value = String> {
    let segment = prop::sample::select(vec!["a", "b", "", "*", "#", "#"]);
    prop::collection::vec(segment, 1..6)
        .prop_map(|segments| segments.join("."))
        .prop_filter("not empty", |text| !text.is_empty())
}

fn any_spec() -> impl Strategy<Value = Spec> {
    let sources = prop::collection::vec(prop::sample::select(vec!["s", "t"]), 0..3);
    (
        prop::collection::vec(pattern(), 1..4),
        prop::collection::vec(pattern(), 0..3),
        sources,
        prop::bool::weighted(0.9),
        prop::option::weighted(0.2, 0..3),
    )
        .prop_map(|(topics, types, sources, enabled, total)| {
            let mut spec = spec("", &[]);
            spec.topics = topics;
            spec.types = types;
            spec.sources = sources.into_iter().map(Arc::from).collect();
            spec.enabled = enabled;
            spec.filter = total.map(|total| json!({"data.total": total}).into());
            spec
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn the_index_finds_what_each_subscription_says_of_itself(
        specs in prop::collection::vec(any_spec(), 0..12),
        events in prop::collection::vec((name(), name(), prop::sample::select(vec!["s", "t", "u"])), 1..6),
    ) {
        let specs = specs.into_iter().enumerate().map(|(number, mut spec)| {
            spec.name = format!("{number:02}").into();
            spec
        });
        let routes = routes(specs);
        for (topic, kind, source) in events {
            let event = event(&topic, &kind, source);
            let wanted: Vec<String> = routes
                .iter()
                .filter(|s| {
                    s.spec.enabled
                        && s.topics.iter().any(|pattern| pattern.matches(&topic))
                        && (s.types.is_empty() || s.types.iter().any(|pattern| pattern.matches(&kind)))
                        && (s.spec.sources.is_empty() || s.spec.sources.contains(&event.source))
                        && s.spec.filter.as_ref().is_none_or(|filter| filter["data.total"] == 1)
                })
                .map(|s| s.spec.name.to_string())
                .collect();
            prop_assert_eq!(found(&routes, &event), wanted);
        }
    }
}

/// Prints what one question costs with many subscriptions:
/// `cargo test --release --lib route -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, worth running in release only"]
fn cost_of_a_question() {
    for count in [1, 1_000, 100_000, 1_000_000_u32] {
        let started = Instant::now();
        let routes = routes((0..count).map(|n| {
            let topic = match n % 4 {
                0 => format!("shop.{n}.created"),
                1 => format!("shop.{n}.*"),
                2 => format!("tenant{n}.#"),
                _ => "orders.shared.created".to_owned(),
            };
            let mut spec = spec(&n.to_string(), &[&topic]);
            if n % 4 == 3 {
                spec.types = vec![format!("com.example.kind{n}")];
            }
            spec
        }));
        let built = started.elapsed();
        for (what, topic, kind) in [
            (
                "one match",
                "shop.0.created".to_owned(),
                "com.example.kind0",
            ),
            (
                "no match",
                "users.7.deleted".to_owned(),
                "com.example.kind0",
            ),
            (
                "one by type",
                "orders.shared.created".to_owned(),
                "com.example.kind3",
            ),
        ] {
            let event = event(&topic, kind, "s");
            let body = LazyJson::new(&event.body);
            let mut out = Vec::new();
            let rounds = 1_000_000;
            let started = Instant::now();
            for _ in 0..rounds {
                out.clear();
                routes.matching(&event, &body, &mut out);
                std::hint::black_box(&out);
            }
            let each = started.elapsed() / rounds;
            println!(
                "{count:>8} subscriptions, {what:<12} {each:?}, {} found",
                out.len()
            );
        }
        println!("{count:>8} subscriptions, built in {built:?}, compilation included");
    }
}
