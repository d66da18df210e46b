//! The admin listener over real sockets, with a real embedded broker behind it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use hookbridge::admin::{
    self, Change, Component, Condition, Control, NotChanged, Readiness, Scope, State,
    Subscriptions, Token,
};
use hookbridge::broker::Naming;
use hookbridge::broker::embedded::{Embedded, Settings, SourceSettings};
use hookbridge::meters::Meters;
use hookbridge::operations::settings::{Flaw, Intake, NotReloaded, Reloaded};
use hookbridge::operations::subscriptions::{Cursor, Listed, Page};
use hookbridge::pipeline::Wanted;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[derive(Default)]
struct Recorded(Mutex<Vec<(String, Change)>>);

#[async_trait]
impl Subscriptions for Recorded {
    async fn list(&self) -> Vec<Listed> {
        vec![listed("active")]
    }

    async fn page(&self, _: &Wanted, after: Option<&Cursor>, _: usize) -> Page {
        let all = self.list().await.into_iter();
        let behind = |one: &Listed| after.is_none_or(|after| one.place() > after.place());
        Page {
            listed: all.filter(behind).collect(),
            next: None,
        }
    }

    async fn one(&self, which: &str, _: Option<&str>) -> Option<Listed> {
        (which == "crm").then(|| listed("active"))
    }

    async fn parked(&self, _: Option<&str>) -> Vec<(Arc<str>, u64)> {
        Vec::new()
    }

    async fn change(&self, name: &str, change: Change) -> Result<Listed, NotChanged> {
        if name != "crm" {
            return Err(NotChanged::Unknown);
        }
        if change == Change::Enable {
            return Err(NotChanged::Conflict("it is not disabled".into()));
        }
        self.0.lock().unwrap().push((name.to_owned(), change));
        Ok(listed("paused"))
    }
}

/// A bridge whose config is wrong and which has one source.
struct Uncontrolled;

#[async_trait]
impl Control for Uncontrolled {
    async fn reload(&self) -> Result<Reloaded, NotReloaded> {
        let flaw = |line, message: &str| Flaw {
            line,
            column: 1,
            message: message.to_owned(),
            help: None,
        };
        Err(NotReloaded::Invalid(vec![
            flaw(1, "unknown key `x`"),
            flaw(2, "no"),
        ]))
    }

    fn log_filter(&self) -> String {
        "info".to_owned()
    }

    fn set_log_filter(&self, filter: &str) -> Result<(), String> {
        Err(format!("`{filter}` is no log filter"))
    }

    fn intakes(&self) -> Vec<Intake> {
        Vec::new()
    }

    async fn pause(
        &self,
        source: Option<&str>,
        paused: bool,
    ) -> anyhow::Result<Option<Vec<Intake>>> {
        let intake = |name: &str| Intake {
            name: name.to_owned(),
            paused,
        };
        match source {
            Some("stuck") => anyhow::bail!("the store has failed"),
            Some("orders") | None => Ok(Some(vec![intake("orders")])),
            Some(_) => Ok(None),
        }
    }
}

fn listed(state: &'static str) -> Listed {
    Listed {
        name: "crm".into(),
        uid: "config:crm".into(),
        owner: "config",
        state,
        handshake: None,
        why: None,
        topics: vec!["orders.*".into()],
        tenant: None,
        labels: BTreeMap::new(),
        endpoint: "crm".into(),
        url: "https://crm.example.com".into(),
        parked: 0,
    }
}

struct Admin {
    at: SocketAddr,
    http: Client,
    broker: Arc<Embedded>,
    changes: Arc<Recorded>,
    condition: Arc<Mutex<Condition>>,
    stop: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Admin {
    async fn start(tokens: Vec<Token>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let meters = Meters::new();
        let broker = Embedded::open(Settings {
            name: "here".into(),
            group: "hookbridge".into(),
            path: folder.path().join("embedded-here.redb"),
            max_bytes: 40_000,
            retention: Duration::ZERO,
            sources: vec![SourceSettings {
                name: "all".into(),
                topics: vec!["orders.#".parse().unwrap()],
                naming: Naming {
                    source: "all".into(),
                    topic: None,
                    id: None,
                    tenant: None,
                },
                meters: meters.of_source("all"),
            }],
        })
        .unwrap();
        let condition = Arc::new(Mutex::new(Condition::Ready));
        let shown = condition.clone();
        let changes = Arc::new(Recorded::default());
        let name: Arc<str> = "here".into();
        let state = State {
            version: "1.2.3",
            meters,
            readiness: Arc::new(move || Readiness {
                components: vec![Component {
                    name: "broker here".into(),
                    state: *shown.lock().unwrap(),
                    why: None,
                }],
            }),
            embedded: BTreeMap::from([(name.clone(), broker.clone())]),
            default_broker: Some(name),
            operations: hookbridge::operations::Operations::new(Default::default()),
            taps: hookbridge::pipeline::Taps::new("i".into(), Default::default()),
            traces: Arc::default(),
            control: Arc::new(Uncontrolled),
            subscriptions: changes.clone(),
            registry: None,
            tokens: tokens.into(),
            max_event_bytes: 16_000,
            openapi: bytes::Bytes::from_static(b"{}"),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(admin::serve(listener, state, stop.clone()));
        let http = Client::builder().no_proxy().build().unwrap();
        Self {
            at,
            http,
            broker,
            changes,
            condition,
            stop,
            _folder: folder,
        }
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(format!("http://{}{path}", self.at))
    }

    fn post(&self, path: &str) -> RequestBuilder {
        self.http.post(format!("http://{}{path}", self.at))
    }

    fn event(&self, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.post("/v1/topics/orders.created/events").body(body)
    }
}

async fn json_of(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    (status, response.json().await.unwrap())
}

/// Sends, expects a problem of this status, and returns its detail.
async fn problem(request: RequestBuilder, status: u16) -> String {
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), status);
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["status"], status);
    assert!(body["type"].as_str().unwrap().starts_with("urn:hookbridge"));
    assert!(!body["title"].as_str().unwrap().is_empty());
    body["detail"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn config_log_and_sources_are_controlled() {
    let admin = Admin::start(vec![]).await;
    let said = problem(admin.post("/v1/config/reload"), 422).await;
    assert_eq!(
        said,
        "the config file has 2 problems: 1:1: unknown key `x`; 2:1: no"
    );
    let (_, log) = json_of(admin.get("/v1/log")).await;
    assert_eq!(log, json!({ "filter": "info" }));
    let put = |body: &'static str| {
        let url = format!("http://{}/v1/log", admin.at);
        admin.http.put(url).body(body)
    };
    assert_eq!(
        problem(put(r#"{ "filter": "=" }"#), 400).await,
        "`=` is no log filter"
    );
    problem(put("{}"), 400).await;
    problem(admin.post("/v1/log"), 405).await;
    for (path, paused) in [
        ("/v1/sources/orders/pause", true),
        ("/v1/sources/pause", true),
        ("/v1/sources/orders/resume", false),
        ("/v1/sources/resume", false),
    ] {
        let (status, said) = json_of(admin.post(path)).await;
        assert_eq!(status, 200);
        let all = json!([{ "name": "orders", "paused": paused }]);
        assert_eq!(said, json!({ "sources": all }));
    }
    problem(admin.post("/v1/sources/none/pause"), 404).await;
    problem(admin.post("/v1/sources/stuck/resume"), 503).await;
}

#[tokio::test]
async fn health_version_and_metrics_are_served() {
    let admin = Admin::start(vec![]).await;
    let alive = admin.get("/healthz").send().await.unwrap();
    assert_eq!(alive.text().await.unwrap(), "ok");
    let (status, body) = json_of(admin.get("/readyz")).await;
    assert_eq!((status.as_u16(), &body["ready"]), (200, &json!(true)));
    *admin.condition.lock().unwrap() = Condition::Starting;
    let (status, body) = json_of(admin.get("/readyz")).await;
    assert_eq!((status.as_u16(), &body["ready"]), (503, &json!(false)));
    assert_eq!(body["components"][0]["state"], "starting");
    let (_, body) = json_of(admin.get("/version")).await;
    assert_eq!(body["version"], "1.2.3");
    let metrics = admin.get("/metrics").send().await.unwrap();
    assert_eq!(
        metrics.headers()["content-type"],
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    assert!(metrics.text().await.unwrap().ends_with("# EOF\n"));
}

#[tokio::test]
async fn an_event_is_accepted_with_its_id() {
    let admin = Admin::start(vec![]).await;
    let event = admin
        .event("{\"a\":1}")
        .header("hookbridge-id", "evt.1")
        .header("hookbridge-type", "order")
        .header("hookbridge-key", "k")
        .header("hookbridge-header-tenant", "a");
    let (status, body) = json_of(event).await;
    assert_eq!(status, 202);
    assert_eq!(body, json!({ "id": "evt%2E1", "sources": 1 }));
    let (status, body) = json_of(admin.event("x")).await;
    assert_eq!(status, 202);
    assert_eq!(body["id"].as_str().unwrap().len(), 32);
    let untaken = admin.post("/v1/topics/bills/events").body("x");
    let (status, body) = json_of(untaken).await;
    assert_eq!((status.as_u16(), &body["sources"]), (202, &json!(0)));
}

#[tokio::test]
async fn many_events_are_accepted_all_or_none() {
    let admin = Admin::start(vec![]).await;
    let lines = |body: &str| {
        let event = admin.event(body.to_owned());
        event.header("content-type", "application/x-ndjson; charset=utf-8")
    };
    let (status, body) = json_of(lines("{\"id\":\"a\",\"data\":1}\n{\"data\":2}\n")).await;
    assert_eq!(status, 202);
    assert_eq!((&body["count"], &body["ids"][0]), (&json!(2), &json!("a")));
    let detail = problem(lines("{\"data\":1}\n{\"data\":}\n"), 400).await;
    assert!(detail.starts_with("line 2"), "{detail}");
    // Six of 7.8 kB do not fit into the 40,000 bytes of this broker: not one of them is kept.
    let large = format!("{{\"data\":\"{}\"}}\n", "x".repeat(7_700));
    for _ in 0..2 {
        json_of(lines(&large.repeat(2))).await;
    }
    let detail = problem(lines(&large.repeat(2)), 507).await;
    assert!(detail.contains("full"), "{detail}");
    let (status, _) = json_of(lines(&large)).await;
    assert_eq!(status, 202, "one still fits, so none of the two was kept");
}

#[tokio::test]
async fn what_is_wrong_is_said_as_a_problem() {
    let admin = Admin::start(vec![]).await;
    let topic = |topic: &str| {
        let path = format!("/v1/topics/{topic}/events");
        admin.post(&path).body("x")
    };
    let long = "x".repeat(256);
    for bad in ["", "a%0Ab", "hookbridge.dead", &*long, "%ff"] {
        problem(topic(bad), 400).await;
    }
    let detail = problem(admin.event("x".repeat(16_001)), 413).await;
    assert!(detail.contains("16000 bytes"), "{detail}");
    let pieces = futures_util::stream::iter(
        (0..20).map(|_| Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b'x'; 1_000]))),
    );
    problem(admin.event(reqwest::Body::wrap_stream(pieces)), 413).await;
    let named = |query: &str| admin.post(&format!("/v1/topics/t/events?{query}"));
    problem(named("broker=other"), 404).await;
    problem(named("brokre=here"), 400).await;
    let accepted = named("broker=here").send().await.unwrap();
    assert_eq!(accepted.status(), 202);
    problem(admin.event("x").header("hookbridge-idd", "a"), 400).await;
    problem(admin.event("x").header("hookbridge-id", ""), 400).await;
    problem(admin.event("x").header("content-encoding", "gzip"), 415).await;
    problem(admin.get("/v1/nothing"), 404).await;
    problem(admin.get("/v1/topics/t/events"), 405).await;
    drop(admin.broker);
}

#[tokio::test]
async fn subscriptions_are_listed_and_changed() {
    let admin = Admin::start(vec![]).await;
    let (_, body) = json_of(admin.get("/v1/subscriptions")).await;
    assert_eq!(body["subscriptions"][0]["name"], "crm");
    let (status, body) = json_of(admin.post("/v1/subscriptions/crm/pause")).await;
    assert_eq!((status.as_u16(), &body["state"]), (200, &json!("paused")));
    json_of(admin.post("/v1/subscriptions/crm/resume")).await;
    let changes = admin.changes.0.lock().unwrap().clone();
    let made: Vec<_> = changes.into_iter().map(|(_, change)| change).collect();
    assert_eq!(made, [Change::Pause, Change::Resume]);
    problem(admin.post("/v1/subscriptions/none/pause"), 404).await;
    problem(admin.post("/v1/subscriptions/crm/enable"), 409).await;
}

#[tokio::test]
async fn with_tokens_everything_but_health_needs_one() {
    let token = |name: &str, scope| Token {
        name: name.into(),
        sha256: Sha256::digest(name).into(),
        scopes: vec![scope],
        tenant: None,
    };
    let tokens = vec![
        token("reader", Scope::Read),
        token("sender", Scope::Publish),
        token("root", Scope::Admin),
    ];
    let admin = Admin::start(tokens).await;
    for open in ["/healthz", "/readyz", "/version"] {
        assert_eq!(admin.get(open).send().await.unwrap().status(), 200);
    }
    let refused = admin.get("/metrics").send().await.unwrap();
    assert_eq!(refused.status(), 401);
    assert!(
        refused.headers()["www-authenticate"].to_str().unwrap() == "Bearer realm=\"hookbridge\""
    );
    problem(admin.get("/metrics").bearer_auth("guess"), 401).await;
    problem(admin.event("x"), 401).await;
    problem(admin.event("x").bearer_auth("reader"), 403).await;
    let pause = || admin.post("/v1/subscriptions/crm/pause");
    problem(pause().bearer_auth("sender"), 403).await;
    for allowed in [
        admin.get("/metrics").bearer_auth("reader"),
        admin.event("x").bearer_auth("sender"),
        pause().bearer_auth("root"),
        admin.event("x").bearer_auth("root"),
    ] {
        assert!(allowed.send().await.unwrap().status().is_success());
    }
}

#[tokio::test]
async fn a_web_page_cannot_reach_it_on_loopback() {
    let admin = Admin::start(vec![]).await;
    problem(admin.get("/metrics").header("host", "evil.example"), 403).await;
    let foreign = admin.event("x").header("origin", "https://evil.example");
    problem(foreign, 403).await;
    let local = admin.get("/healthz").header("host", "localhost:8400");
    assert_eq!(local.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn it_ends_when_it_is_told_to() {
    let admin = Admin::start(vec![]).await;
    admin.get("/healthz").send().await.unwrap();
    admin.stop.cancel();
    let closed = tokio::time::timeout(Duration::from_secs(10), async {
        while tokio::net::TcpStream::connect(admin.at).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    closed.await.unwrap();
}
