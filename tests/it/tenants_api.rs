//! What a token that acts for one tenant sees and changes.

use std::time::Duration;

use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::registration_support::{Came, SOON};
use crate::support::bridge::Bridge;
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver};
use crate::tenants_support::{ACME, ALL, BOLT, OPERATOR, by, with_tokens};

/// An event of a tenant has its name at the head of the topic.
const SEGMENT: &str = "segment: 1";

fn own(name: &str, tenant: &str, url: &str) -> Value {
    let topics = [format!("{tenant}.#"), "#".to_owned()];
    let endpoint = json!({ "url": url, "signature": "none" });
    json!({ "name": name, "topics": topics, "endpoint": endpoint, "retry": { "max_attempts": 1 } })
}

async fn publish(bridge: &Bridge, topic: &str, body: &str) -> String {
    let url = format!("http://{}/v1/topics/{topic}/events", bridge.admin);
    let request = Client::new().post(url).bearer_auth(OPERATOR);
    let answer = request
        .body(body.to_owned())
        .send()
        .await
        .expect("an answer");
    let answer: Value = answer.json().await.expect("JSON");
    answer["id"].as_str().expect("an id").to_owned()
}

fn names(page: &Value) -> Vec<&str> {
    let all = page["subscriptions"].as_array().expect("a list");
    all.iter().filter_map(|one| one["name"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_sees_and_changes_its_own_and_nothing_else() {
    let receiver = Receiver::answering(|request, _| match request.path.as_str() {
        "/fails" => Answer::status(400),
        _ => Answer::status(200),
    })
    .await;
    let more = format!(
        "endpoints: {{ shared: {{ url: '{}', signature: none }} }}\n\
         subscriptions: {{ of-config: {{ topics: ['#'], endpoint: shared, tenant: acme }}, \
         of-operator: {{ topics: ['#'], endpoint: shared }} }}\n\
         tenants: {{ defaults: {{ subscriptions: 3 }} }}\n",
        receiver.url("/shared")
    );
    let bridge = Bridge::start(&with_tokens(&more, SEGMENT))
        .await
        .ready()
        .await;
    let post = async |token: &str, path: &str, body: &Value| {
        by(&bridge, token, Method::POST, path, Some(body)).await
    };
    let get = async |token: &str, path: &str| by(&bridge, token, Method::GET, path, None).await;

    // What it makes is its own.
    let made = post(ACME, ALL, &own("acme-crm", "acme", &receiver.url("/acme")))
        .await
        .with(201);
    assert_eq!(made.body["tenant"], "acme");
    let uid = made.body["uid"].as_str().expect("a uid").to_owned();
    post(BOLT, ALL, &own("bolt-crm", "bolt", &receiver.url("/fails")))
        .await
        .with(201);
    let mut wrong = own("x", "acme", &receiver.url("/x"));
    wrong["tenant"] = "bolt".into();
    let refused = post(ACME, ALL, &wrong).await.with(422);
    assert_eq!(refused.pointers(), ["#/tenant"]);
    let shared = json!({ "name": "x", "topics": ["#"], "endpoint": "shared" });
    let refused = post(ACME, ALL, &shared).await.with(422);
    assert_eq!(refused.pointers(), ["#/endpoint"]);
    for patch in [json!({ "tenant": "bolt" }), json!({ "endpoint": "shared" })] {
        let path = format!("{ALL}/acme-crm");
        by(&bridge, ACME, Method::PATCH, &path, Some(&patch))
            .await
            .with(422);
    }
    let path = format!("{ALL}/acme-crm");
    let patch = json!({ "tenant": null });
    by(&bridge, OPERATOR, Method::PATCH, &path, Some(&patch))
        .await
        .with(422);
    let unchanged = by(&bridge, ACME, Method::PATCH, &path, Some(&patch))
        .await
        .with(200);
    assert_eq!(unchanged.body["tenant"], "acme");

    // So many and no more, those of the config included.
    post(ACME, ALL, &own("acme-two", "acme", &receiver.url("/two")))
        .await
        .with(201);
    let refused = post(ACME, ALL, &own("acme-three", "acme", &receiver.url("/t")))
        .await
        .with(403);
    assert_eq!(refused.body["type"], "urn:hookbridge:problem:quota");
    let patch = json!({ "labels": { "team": "crm" } });
    by(&bridge, ACME, Method::PATCH, &path, Some(&patch))
        .await
        .with(200);

    // Lists.
    let list = get(ACME, ALL).await.with(200);
    assert_eq!(names(&list.body), ["acme-crm", "acme-two", "of-config"]);
    let all = get(OPERATOR, ALL).await.with(200);
    assert_eq!(names(&all.body).len(), 5);
    let of_bolt = get(OPERATOR, &format!("{ALL}?tenant=bolt")).await.with(200);
    assert_eq!(names(&of_bolt.body), ["bolt-crm"]);
    let labelled = get(OPERATOR, &format!("{ALL}?label=team:crm"))
        .await
        .with(200);
    assert_eq!(names(&labelled.body), ["acme-crm"]);
    get(ACME, &format!("{ALL}?tenant=bolt")).await.with(404);
    let first = get(ACME, &format!("{ALL}?limit=2")).await.with(200);
    let next = first.body["next"].as_str().expect("more");
    let rest = get(ACME, &format!("{ALL}?limit=2&cursor={next}"))
        .await
        .with(200);
    assert_eq!(names(&rest.body), ["of-config"]);
    assert!(rest.body["next"].is_null());

    // Another's is answered as one that does not exist.
    let verbs = [
        (Method::GET, "", None),
        (Method::PUT, "", Some(own("x", "acme", "https://h/"))),
        (Method::PATCH, "", Some(json!({}))),
        (Method::DELETE, "", None),
        (Method::POST, "/rotate", None),
        (Method::POST, "/pause", None),
        (Method::POST, "/resume", None),
        (Method::POST, "/enable", None),
        (Method::POST, "/verify", None),
    ];
    for (method, verb, body) in &verbs {
        let to = async |token: &str, which: &str| {
            let path = format!("{ALL}/{which}{verb}");
            by(&bridge, token, method.clone(), &path, body.as_ref())
                .await
                .with(404)
                .body
        };
        let unknown = to(BOLT, "nobody").await;
        for foreign in [
            "acme-crm",
            &uid,
            "of-config",
            "config:of-config",
            "of-operator",
        ] {
            assert_eq!(to(BOLT, foreign).await, unknown, "{method} {foreign}{verb}");
        }
    }
    let wish = |name: &str| json!({ "subscription": name, "force": true });
    for path in ["/v1/parked/now", "/v1/parked/drop"] {
        let unknown = post(BOLT, path, &wish("nobody")).await.with(404);
        let foreign = post(BOLT, path, &wish("acme-crm")).await.with(404);
        let detail = |came: &Came| came.body["detail"].as_str().map(str::to_owned);
        let unknown = detail(&unknown).map(|it| it.replace("nobody", "acme-crm"));
        assert_eq!(detail(&foreign), unknown);
        post(BOLT, path, &json!({ "all": true })).await.with(403);
        post(BOLT, path, &wish("bolt-crm")).await.with(202);
    }
    let replay = |name: &str| json!({ "source": "orders", "subscription": name, "since": "1h" });
    post(BOLT, "/v1/replays", &replay("acme-crm"))
        .await
        .with(404);

    // What became of events.
    let event = publish(&bridge, "bolt.orders", "b").await;
    let other = publish(&bridge, "acme.orders", "a").await;
    receiver.wait_for(6, SOON).await;
    let attempts = async |token: &str| {
        let all = get(token, "/v1/attempts").await.with(200).body["attempts"].take();
        let all = all.as_array().expect("a list").iter();
        let names = all.map(|one| one["subscription"].as_str().expect("a name").to_owned());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let seen = eventually("the attempts", SOON, async || {
        let seen = attempts(ACME).await;
        (seen.len() == 3).then_some(seen)
    })
    .await;
    assert_eq!(seen, ["acme-crm", "acme-two", "of-config"]);
    assert_eq!(attempts(BOLT).await, ["bolt-crm"]);
    assert_eq!(attempts(OPERATOR).await.len(), 6);
    get(ACME, "/v1/attempts?tenant=bolt").await.with(404);
    let foreign = get(ACME, &format!("/v1/events/{event}")).await.with(404);
    assert_eq!(foreign.body["title"], "Not found");
    let trace = get(ACME, &format!("/v1/events/{other}")).await.with(200);
    assert_eq!(trace.body["deliveries"].as_array().map(Vec::len), Some(3));

    // Dead letters.
    let letters =
        async |token: &str| get(token, "/v1/dead-letters").await.with(200).body["letters"].take();
    let letter = eventually("the letter", SOON, async || {
        let letters = letters(BOLT).await;
        letters[0]["id"].as_str().map(str::to_owned)
    })
    .await;
    assert_eq!(letters(ACME).await, json!([]));
    let count = get(ACME, "/v1/dead-letters/count").await.with(200);
    assert_eq!(
        (&count.body["count"], &count.body["seen"]),
        (&json!(0), &json!(0))
    );
    for path in [
        format!("/v1/dead-letters/{letter}"),
        "/v1/dead-letters/nothing".into(),
    ] {
        get(ACME, &path).await.with(404);
        post(ACME, &format!("{path}/retry"), &json!({}))
            .await
            .with(404);
    }
    get(BOLT, &format!("/v1/dead-letters/{letter}"))
        .await
        .with(200);
    let dropped = post(ACME, "/v1/dead-letters/drop", &json!({ "all": true }))
        .await
        .with(202);
    let job = dropped.body["id"].as_str().expect("an id").to_owned();
    eventually("the job", SOON, async || {
        let report = get(ACME, &format!("/v1/jobs/{job}")).await.with(200);
        (report.body["state"] == "done").then_some(())
    })
    .await;
    assert_eq!(
        letters(BOLT).await.as_array().map(Vec::len),
        Some(1),
        "it is another's"
    );

    // Jobs.
    get(BOLT, &format!("/v1/jobs/{job}")).await.with(404);
    by(
        &bridge,
        BOLT,
        Method::DELETE,
        &format!("/v1/jobs/{job}"),
        None,
    )
    .await
    .with(404);
    let jobs = get(BOLT, "/v1/jobs").await.with(200);
    assert!(!jobs.body.to_string().contains(&job));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_hears_its_own_attempts_only() {
    let receiver = Receiver::accepting().await;
    let bridge = Bridge::start(&with_tokens("", SEGMENT)).await.ready().await;
    for (token, tenant) in [(ACME, "acme"), (BOLT, "bolt")] {
        let one = own(tenant, tenant, &receiver.url(&format!("/{tenant}")));
        by(&bridge, token, Method::POST, ALL, Some(&one))
            .await
            .with(201);
    }
    let url = format!("http://{}/v1/tap", bridge.admin);
    let mut tap = Client::new()
        .get(&url)
        .bearer_auth(ACME)
        .send()
        .await
        .expect("a tap");
    assert_eq!(tap.status(), 200);
    let foreign = Client::new()
        .get(format!("{url}?tenant=bolt"))
        .bearer_auth(ACME);
    assert_eq!(foreign.send().await.expect("an answer").status(), 404);
    tap.chunk().await.expect("it listens");
    publish(&bridge, "bolt.x", "of-bolt").await;
    publish(&bridge, "acme.x", "of-acme").await;
    let mut heard = String::new();
    while !heard.contains("of-acme") {
        let chunk = tokio::time::timeout(Duration::from_secs(10), tap.chunk());
        let chunk = chunk.await.expect("in time").expect("heard").expect("more");
        heard += std::str::from_utf8(&chunk).expect("text");
    }
    receiver.wait_for(2, SOON).await;
    assert!(
        !heard.contains("of-bolt") && !heard.contains("bolt"),
        "{heard}"
    );
}
