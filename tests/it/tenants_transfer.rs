//! Tests, exports and imports of those who act for one tenant: of its own, and nothing of others.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::registration_support::{Came, SOON};
use crate::support::bridge::Bridge;
use crate::support::cli::{Ran, command, finished};
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver};
use crate::tenants_support::{self, ACME, ALL, BOLT, OPERATOR, by};

const EXPORT: &str = "/v1/subscriptions/export";
const IMPORT: &str = "/v1/subscriptions/import";

/// A bridge with a token for each, whose events say in a header whose they are, and which keeps them.
fn with_tokens(more: &str) -> String {
    tenants_support::with_tokens(more, "header: tenant")
        .replace("embedded: {}", "embedded: { retention: 1h }")
}

async fn get(bridge: &Bridge, token: &str, path: &str) -> Came {
    by(bridge, token, Method::GET, path, None).await
}

async fn post(bridge: &Bridge, token: &str, path: &str, body: &Value) -> Came {
    by(bridge, token, Method::POST, path, Some(body)).await
}

/// What came of each line, or the problem.
async fn import(bridge: &Bridge, token: &str, lines: &str) -> (u16, Vec<Value>) {
    let request = Client::new()
        .post(format!("http://{}{IMPORT}", bridge.admin))
        .header("content-type", "application/x-ndjson")
        .bearer_auth(token)
        .body(lines.to_owned());
    let answer = request.send().await.expect("an answer");
    let status = answer.status().as_u16();
    let text = answer.text().await.expect("text");
    (status, lines_of(&text))
}

fn lines_of(text: &str) -> Vec<Value> {
    let lines = text.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

async fn exported(bridge: &Bridge, token: &str, query: &str) -> (u16, String) {
    let url = format!("http://{}{EXPORT}{query}", bridge.admin);
    let answer = Client::new().get(url).bearer_auth(token).send().await;
    let answer = answer.expect("an answer");
    let status = answer.status().as_u16();
    (status, answer.text().await.expect("text"))
}

fn names(export: &str) -> BTreeSet<String> {
    let lines = lines_of(export).into_iter();
    lines
        .map(|line| {
            line["subscription"]["name"]
                .as_str()
                .expect("a name")
                .to_owned()
        })
        .collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn one(name: &str, url: &str) -> Value {
    json!({
        "name": name, "topics": ["orders.#"], "retry": { "max_attempts": 1 },
        "endpoint": { "url": url, "signature": "none" },
    })
}

async fn publish(bridge: &Bridge, tenant: Option<&str>, body: &str) -> String {
    let url = format!("http://{}/v1/topics/orders.created/events", bridge.admin);
    let mut request = Client::new().post(url).bearer_auth(OPERATOR);
    if let Some(tenant) = tenant {
        request = request.header("hookbridge-header-tenant", tenant);
    }
    let answer = request.body(body.to_owned()).send().await;
    let answer: Value = answer.expect("an answer").json().await.expect("JSON");
    answer["id"].as_str().expect("an id").to_owned()
}

/// So many of its attempts are recorded.
async fn recorded(bridge: &Bridge, token: &str, count: usize) -> Vec<Value> {
    eventually("the attempts", SOON, async || {
        let page = get(bridge, token, "/v1/attempts?limit=500")
            .await
            .with(200)
            .body;
        let all = page["attempts"].as_array().expect("a list").clone();
        (all.len() >= count).then_some(all)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_tries_its_own_with_its_own_events() {
    let receiver = Receiver::answering(|request, _| match request.path.as_str() {
        "/fails" => Answer::status(400),
        "/slow" => Answer::status(204).after(std::time::Duration::from_secs(2)),
        _ => Answer::status(204),
    })
    .await;
    let more = format!(
        "endpoints: {{ shared: {{ url: '{}', signature: none }} }}\n\
         subscriptions: {{ of-config: {{ topics: [none], endpoint: shared, tenant: acme }}, \
         of-operator: {{ topics: [none], endpoint: shared }} }}\n",
        receiver.url("/shared")
    );
    let bridge = Bridge::start(&with_tokens(&more)).await.ready().await;
    for (token, name, path) in [
        (ACME, "acme-crm", "/acme"),
        (ACME, "acme-slow", "/slow"),
        (BOLT, "bolt-crm", "/fails"),
    ] {
        let mut one = one(name, &receiver.url(path));
        if path == "/slow" {
            one["topics"] = json!(["none"]);
        }
        post(&bridge, token, ALL, &one).await.with(201);
    }
    let own = publish(&bridge, Some("acme"), "of-acme").await;
    let other = publish(&bridge, Some("bolt"), "of-bolt").await;
    let nobodys = publish(&bridge, None, "of-nobody").await;
    recorded(&bridge, ACME, 1).await;
    recorded(&bridge, BOLT, 1).await;
    eventually("bolt's letter", SOON, async || {
        let letters = get(&bridge, BOLT, "/v1/dead-letters").await.with(200).body;
        (letters["letters"].as_array()?.len() == 1).then_some(())
    })
    .await;

    let test = async |token: &str, which: &str, order: Value| {
        post(&bridge, token, &format!("{ALL}/{which}/test"), &order).await
    };
    let tried = test(ACME, "acme-crm", json!({})).await.with(200).body;
    assert_eq!(tried["accepted"], true);
    let tried = test(ACME, "acme-crm", json!({ "event": own }))
        .await
        .with(200)
        .body;
    assert_eq!(tried["request"]["body"], "of-acme");
    let unknown = test(ACME, "nobody", json!({})).await.with(404).body;
    for foreign in ["bolt-crm", "of-operator", "config:of-operator"] {
        assert_eq!(test(ACME, foreign, json!({})).await.with(404).body, unknown);
    }
    // With the operator's credentials it sends nothing, nor does it look through its sources.
    test(ACME, "of-config", json!({})).await.with(409);
    let order = json!({ "sample": { "source": "orders" } });
    test(ACME, "acme-crm", order).await.with(400);

    // Another's event, and nobody's, is as one that never was; be it a dead letter or in a log.
    let never = test(ACME, "acme-crm", json!({ "event": "never" }))
        .await
        .with(404);
    for foreign in [&other, &nobodys] {
        let came = test(ACME, "acme-crm", json!({ "event": foreign }))
            .await
            .with(404);
        let said = came.body.to_string().replace(foreign.as_str(), "never");
        assert_eq!(said, never.body.to_string());
    }
    let again = test(BOLT, "bolt-crm", json!({ "event": other }))
        .await
        .with(200)
        .body;
    assert_eq!(
        (&again["accepted"], &again["request"]["body"]),
        (&json!(false), &json!("of-bolt"))
    );
    // Whoever asks: a subscription gets what is its tenant's.
    let refused = test(OPERATOR, "acme-crm", json!({ "event": other }))
        .await
        .with(404)
        .body;
    let detail = refused["detail"].as_str().expect("why");
    assert!(
        detail.contains("only events of tenant `acme` are sent to it"),
        "{detail}"
    );
    let tried = test(OPERATOR, "of-operator", json!({ "event": other }))
        .await
        .with(200)
        .body;
    assert_eq!(tried["request"]["body"], "of-bolt");

    // Some at once, and never all of those that there may be.
    let each = (0..3).map(|_| test(ACME, "acme-slow", json!({})));
    let mut statuses: Vec<_> = join_all(each)
        .await
        .iter()
        .map(|came| came.status)
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 429]);
    test(ACME, "acme-slow", json!({})).await.with(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_takes_out_and_in_what_is_its_own() {
    let more = "endpoints: { shared: { url: 'http://127.0.0.1:9/', signature: none } }\n\
                tenants: { defaults: { subscriptions: 3 } }\n";
    let bridge = Bridge::start(&with_tokens(more)).await.ready().await;
    let url = "http://127.0.0.1:9/T0";
    let shared = |name: &str| json!({ "name": name, "topics": ["x"], "endpoint": "shared" });
    post(&bridge, ACME, ALL, &one("acme-crm", url))
        .await
        .with(201);
    post(&bridge, BOLT, ALL, &one("bolt-crm", url))
        .await
        .with(201);
    post(&bridge, OPERATOR, ALL, &shared("ops")).await.with(201);
    let mut made = shared("acme-shared");
    made["tenant"] = "acme".into();
    post(&bridge, OPERATOR, ALL, &made).await.with(201);

    let (_, of_acme) = exported(&bridge, ACME, "").await;
    assert_eq!(names(&of_acme), set(&["acme-crm", "acme-shared"]));
    let (_, of_bolt) = exported(&bridge, BOLT, "").await;
    assert_eq!(names(&of_bolt), set(&["bolt-crm"]));
    let (_, all) = exported(&bridge, OPERATOR, "").await;
    assert_eq!(names(&all).len(), 4);
    assert_eq!(
        exported(&bridge, OPERATOR, "?tenant=bolt").await,
        (200, of_bolt.clone())
    );
    assert_eq!(exported(&bridge, ACME, "?tenant=bolt").await.0, 404);

    let results = |came: &[Value]| -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let each = came.iter();
        each.map(|one| (text(&one["result"]), text(&one["why"])))
            .collect()
    };
    // What the operator has given it an endpoint for is there as it is.
    let (status, came) = import(&bridge, ACME, &of_acme).await;
    assert_eq!(status, 200, "{came:?}");
    assert!(
        results(&came)
            .iter()
            .all(|(result, _)| result == "unchanged"),
        "{came:?}"
    );

    // Lines of others are wrong, and then nothing is done.
    let (status, came) = import(&bridge, ACME, &all).await;
    assert_eq!(status, 422);
    let wrong = came[0]["errors"].as_array().expect("errors").iter();
    let pointers: BTreeSet<_> = wrong
        .clone()
        .map(|one| one["pointer"].to_string())
        .collect();
    assert_eq!(pointers, set(&["\"#/subscription/document/tenant\""]));
    assert_eq!(wrong.count(), 2);

    let line = |name: &str, uid: &str, endpoint: Value| {
        json!({ "format": 1, "subscription": {
            "uid": uid, "name": name, "revision": 1,
            "document": { "name": name, "topics": ["x"], "tenant": "acme", "endpoint": endpoint },
            "made_at": "2026-11-01T00:00:00Z", "changed_at": "2026-11-01T00:00:00Z",
        } })
        .to_string()
    };
    let own = json!({ "url": url, "signature": "none" });
    // The operator's endpoints are, whether they are there or not.
    let mut said = BTreeSet::new();
    for endpoint in ["shared", "none"] {
        let (status, came) = import(&bridge, ACME, &line("n", "api:01", json!(endpoint))).await;
        assert_eq!(status, 422);
        said.insert(came[0].to_string());
    }
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said.first()
            .expect("one")
            .contains("#/subscription/document/endpoint")
    );
    let last = line("n", "api:01", own.clone())
        .replace("\"revision\":1", &format!("\"revision\":{}", u64::MAX));
    assert_eq!(import(&bridge, ACME, &last).await.0, 422);

    // A uid or a name that another one has stays with it, and nothing more is told.
    let uid = lines_of(&of_bolt)[0]["subscription"]["uid"]
        .as_str()
        .expect("a uid")
        .to_owned();
    let taken = [
        line("n", &uid, own.clone()),
        line("bolt-crm", "api:02", own.clone()),
    ];
    let (_, came) = import(&bridge, ACME, &taken.join("\n")).await;
    let came = results(&came);
    assert!(
        came.iter().all(|(result, _)| result == "conflict"),
        "{came:?}"
    );
    assert_eq!(
        came[0].1,
        "its uid was given to another one, and does not come again"
    );
    assert_eq!(came[1].1, "there is a subscription `bolt-crm` already");
    assert_eq!(exported(&bridge, BOLT, "").await.1, of_bolt);

    // As many as it may have.
    let two = [
        line("n-1", "api:03", own.clone()),
        line("n-2", "api:04", own.clone()),
    ];
    let (_, came) = import(&bridge, ACME, &two.join("\n")).await;
    let came = results(&came);
    assert_eq!((&*came[0].0, &*came[1].0), ("made", "conflict"), "{came:?}");
    assert!(came[1].1.contains("has 3 subscriptions"), "{came:?}");
    // One that was removed is told as one of another.
    by(&bridge, ACME, Method::DELETE, "/v1/subscriptions/n-1", None)
        .await
        .with(204);
    let (_, came) = import(&bridge, ACME, &two[0]).await;
    let removed = (
        "conflict".to_owned(),
        "its uid was given to another one, and does not come again".to_owned(),
    );
    assert_eq!(results(&came), [removed]);
}

/// Generated subscriptions and events of two tenants and the operator: what a token gets to see, by
/// whatever way, is its tenant's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tenants_never_see_each_other_over_the_api() {
    const OWNERS: [(&str, Option<&str>); 3] =
        [(OPERATOR, None), (ACME, Some("acme")), (BOLT, Some("bolt"))];
    let mut runner = TestRunner::deterministic();
    let owners = proptest::collection::vec(0..3_usize, 6);
    let events = proptest::collection::vec(0..3_usize, 20);
    let plan = (owners, events).prop_map(|(mut owners, events)| {
        owners.extend([1, 2]);
        (owners, events)
    });
    let (owners, events) = plan.new_tree(&mut runner).expect("a plan").current();
    let receiver = Receiver::answering(|request, _| match request.path.ends_with('3') {
        true => Answer::status(400),
        false => Answer::status(204),
    })
    .await;
    let bridge = Bridge::start(&with_tokens("")).await.ready().await;
    let mut subscriptions: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for (number, owner) in owners.iter().enumerate() {
        let name = format!("s{number}");
        let one = one(&name, &receiver.url(&format!("/{number}")));
        post(&bridge, OWNERS[*owner].0, ALL, &one).await.with(201);
        subscriptions.entry(*owner).or_default().insert(name);
    }
    let mut published = Vec::new();
    for (number, owner) in events.iter().enumerate() {
        let id = publish(&bridge, OWNERS[*owner].1, &number.to_string()).await;
        published.push((id, *owner));
    }
    let (_, all) = exported(&bridge, OPERATOR, "").await;
    for (owner, (token, tenant)) in OWNERS.iter().enumerate().skip(1) {
        let own = &subscriptions[&owner];
        let its = published.iter().filter(|(_, of)| *of == owner).count();
        let attempts = recorded(&bridge, token, its * own.len()).await;
        assert_eq!(attempts.len(), its * own.len());
        for attempt in &attempts {
            let name = attempt["subscription"].as_str().expect("a name");
            assert!(own.contains(name), "{attempt}");
        }
        let list = get(&bridge, token, ALL).await.with(200).body;
        let list = list["subscriptions"].as_array().expect("a list").iter();
        let listed: BTreeSet<_> = list
            .filter_map(|one| one["name"].as_str())
            .map(str::to_owned)
            .collect();
        assert_eq!(&listed, own);
        assert_eq!(&names(&exported(&bridge, token, "").await.1), own);

        // Of all lines there are it may take in its own.
        for line in all.lines() {
            let read: Value = serde_json::from_str(line).expect("JSON");
            let name = read["subscription"]["name"].as_str().expect("a name");
            let (status, came) = import(&bridge, token, line).await;
            match own.contains(name) {
                true => assert_eq!((status, &came[0]["result"]), (200, &json!("unchanged"))),
                false => assert_eq!(status, 422, "{came:?}"),
            }
        }
        // And of all events send its own, to its own.
        let mut refusals = BTreeSet::new();
        for (id, of) in &published {
            for name in owners
                .iter()
                .enumerate()
                .map(|(number, _)| format!("s{number}"))
            {
                let is_its = own.contains(&name);
                if !is_its && *of != owner {
                    continue;
                }
                let path = format!("{ALL}/{name}/test");
                let came = post(&bridge, token, &path, &json!({ "event": id })).await;
                match (is_its, *of == owner) {
                    (true, true) => {
                        let event = came.with(200).body["attempt"]["event"].clone();
                        assert_eq!(event, json!(id));
                    }
                    (true, false) => {
                        refusals.insert(came.with(404).body.to_string().replace(id.as_str(), "it"));
                    }
                    (false, _) => {
                        assert_eq!(
                            came.with(404).body["detail"],
                            "there is no such subscription"
                        );
                    }
                }
            }
        }
        assert_eq!(refusals.len(), 1, "{tenant:?}: {refusals:?}");
    }
}

async fn ran(bridge: &Bridge, arguments: &[&str]) -> Ran {
    let mut command = command(&bridge.config_path(), arguments);
    command.env("HOOKBRIDGE_TOKEN", OPERATOR);
    finished(command).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_s_commands_know_tenants() {
    let receiver = Receiver::accepting().await;
    let bridge = Bridge::start(&with_tokens("")).await.ready().await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    for tenant in ["acme", "bolt"] {
        let file = path(tenant);
        let written = one(
            &format!("{tenant}-crm"),
            &receiver.url(&format!("/{tenant}")),
        );
        std::fs::write(&file, written.to_string()).expect("written");
        ran(&bridge, &["subscription", "add", &file, "--tenant", tenant])
            .await
            .ok();
    }
    let mut other = one("x", "http://127.0.0.1:9/");
    other["tenant"] = "bolt".into();
    std::fs::write(path("x"), other.to_string()).expect("written");
    let refused = ran(
        &bridge,
        &["subscription", "add", &path("x"), "--tenant", "acme"],
    )
    .await;
    assert_eq!(refused.code, Some(64), "{}", refused.err);

    let list = ran(&bridge, &["subscription", "list", "--tenant", "acme"])
        .await
        .ok();
    assert!(
        list.contains("acme-crm  acme ") && !list.contains("bolt"),
        "{list}"
    );
    let file = path("all");
    ran(
        &bridge,
        &["subscription", "export", "--tenant", "acme", "--out", &file],
    )
    .await
    .ok();
    let text = std::fs::read_to_string(&file).expect("written");
    assert_eq!(names(&text), set(&["acme-crm"]));
    let refused = ran(
        &bridge,
        &["subscription", "import", &file, "--tenant", "bolt"],
    )
    .await;
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    let said = "line 1, /subscription/document/tenant: you act for tenant `bolt`";
    assert!(refused.err.contains(said), "{}", refused.err);
    let taken = ran(
        &bridge,
        &["subscription", "import", &file, "--tenant", "acme"],
    )
    .await;
    assert!(taken.err.contains("1 unchanged"), "{}", taken.err);

    publish(&bridge, Some("acme"), "1").await;
    publish(&bridge, Some("bolt"), "2").await;
    eventually("both attempts", SOON, async || {
        let all = ran(&bridge, &["attempts", "--json"]).await;
        (lines_of(&all.out).len() == 2).then_some(())
    })
    .await;
    let attempts = ran(&bridge, &["attempts", "--json", "--tenant", "acme"])
        .await
        .ok();
    let attempts = lines_of(&attempts);
    assert_eq!(attempts.len(), 1);
    assert_eq!(attempts[0]["subscription"], "acme-crm");
}
