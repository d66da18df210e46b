use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::Method;
use proptest::prelude::*;
use serde_json::json;

use super::{Routes, place};
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
        tenant: None,
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

/// Of two tenants and the operator, by number.
fn tenant(number: u8) -> Option<Arc<str>> {
    [None, Some("a".into()), Some("b".into())][usize::from(number % 3)].clone()
}

fn of_tenant(name: &str, topics: &[&str], tenant: Option<Arc<str>>) -> Spec {
    Spec {
        tenant,
        ..spec(name, topics)
    }
}

fn compiled(spec: Spec) -> Arc<Subscription> {
    let uid = Uid::of_config(&spec.name);
    Arc::new(Subscription::compile(uid, spec, endpoint()).unwrap())
}

#[test]
fn an_event_of_a_tenant_reaches_its_subscriptions_and_the_operators() {
    let routes = routes([
        of_tenant("of-a", &["orders.#", "#"], tenant(1)),
        of_tenant("of-b", &["#"], tenant(2)),
        spec("operators", &["#"]),
    ]);
    let of = |tenant| Event {
        tenant,
        ..event("orders.created", "x", "s")
    };
    assert_eq!(found(&routes, &of(tenant(1))), ["of-a", "operators"]);
    assert_eq!(found(&routes, &of(tenant(2))), ["of-b", "operators"]);
    assert_eq!(found(&routes, &of(None)), ["operators"]);
    assert_eq!(found(&routes, &of(Some("c".into()))), ["operators"]);
    let alone = super::Routes::build([compiled(of_tenant("x", &["#"], tenant(1)))]);
    assert!(alone.has_candidate(&of(tenant(1))));
    assert!(!alone.has_candidate(&of(tenant(2))) && !alone.has_candidate(&of(None)));
}

/// What is done to a snapshot.
#[derive(Debug, Clone)]
enum Deed {
    Enter(u8, u8, u8),
    Leave(u8),
    Gather,
    /// Gathers, and these are done meanwhile.
    GatherDuring(Vec<(u8, u8)>),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        6 => (0..30_u8, 0..3_u8, 0..4_u8).prop_map(|(n, t, topic)| Deed::Enter(n, t, topic)),
        3 => (0..30_u8).prop_map(Deed::Leave),
        1 => Just(Deed::Gather),
        1 => proptest::collection::vec((0..30_u8, 0..4_u8), 0..6).prop_map(Deed::GatherDuring),
    ];
    proptest::collection::vec(deed, 0..60)
}

const TOPICS: [&str; 4] = ["orders.created", "orders.*", "#", "bills.#"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn changed_one_by_one_or_built_anew_it_is_the_same(deeds in deeds()) {
        let made = |n: u8, t: u8, topic: u8| {
            compiled(of_tenant(&format!("s{n:02}"), &[TOPICS[usize::from(topic % 4)]], tenant(t)))
        };
        let mut model: std::collections::BTreeMap<u8, Arc<Subscription>> =
            (0..20).map(|n| (n, made(n, n, n))).collect();
        let mut routes = Routes::build(model.values().cloned());
        for deed in deeds {
            match deed {
                Deed::Enter(n, t, topic) => {
                    let one = made(n, t, topic);
                    routes = routes.with(one.clone());
                    model.insert(n, one);
                }
                Deed::Leave(n) => {
                    routes = routes.without(&Uid::of_config(&format!("s{n:02}")));
                    model.remove(&n);
                }
                Deed::Gather => routes = routes.gathered(),
                Deed::GatherDuring(meanwhile) => {
                    let gathered = routes.gathered();
                    let mut now = routes.with(made(29, 0, 0));
                    model.insert(29, made(29, 0, 0));
                    for (n, t) in meanwhile {
                        if t == 3 {
                            now = now.without(&Uid::of_config(&format!("s{n:02}")));
                            model.remove(&n);
                        } else {
                            let one = made(n, t, n);
                            now = now.with(one.clone());
                            model.insert(n, one);
                        }
                    }
                    routes = gathered.caught_up(&routes, &now).unwrap_or(now);
                }
            }
        }
        let anew = Routes::build(model.values().cloned());
        let names = |routes: &Routes<Subscription>| -> Vec<String> {
            routes.iter().map(|one| one.spec.name.to_string()).collect()
        };
        prop_assert_eq!(names(&routes), names(&anew));
        prop_assert_eq!(routes.len(), model.len());
        for owner in 0..3 {
            for topic in ["orders.created", "bills.x.y", "other"] {
                let event = Event { tenant: tenant(owner), ..event(topic, "x", "s") };
                let found = found(&routes, &event);
                prop_assert_eq!(&found, &self::found(&anew, &event));
                prop_assert_eq!(routes.has_candidate(&event), !found.is_empty());
                for name in found {
                    let of = &routes.by_name(&name).unwrap().spec.tenant;
                    prop_assert!(of.is_none() || *of == event.tenant);
                }
            }
        }
        for name in ["a", "b"] {
            let of = |routes: &Routes<Subscription>, after: Option<(&str, &str)>| -> Vec<String> {
                let all = routes.of_tenant(name, after);
                all.map(|one| one.spec.name.to_string()).collect()
            };
            prop_assert_eq!(of(&routes, None), of(&anew, None));
            let after = ("s10", "config:s10");
            prop_assert_eq!(of(&routes, Some(after)), of(&anew, Some(after)));
        }
        for one in model.values() {
            prop_assert!(routes.by_uid(&one.uid).is_some_and(|is| is.spec.tenant == one.spec.tenant));
            let next = routes.after(Some(place(one))).next().map(|one| one.spec.name.clone());
            let wanted = model.values().find(|other| other.spec.name > one.spec.name);
            prop_assert_eq!(next, wanted.map(|one| one.spec.name.clone()));
        }
    }
}
