//! Authorization of requests: against an authorization server and receivers that check it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use hookbridge::attempt::{Attempt, ErrorClass, Outcome};
use hookbridge::deliver::{Access, AddressPolicy, Courier, Signer};
use hookbridge::event::EventId;
use hookbridge::subscription::{Auth, Credentials, OAuth2, Scheme, Secret};
use serde_json::json;

use super::deliver_http::{courier, plain, post as request};
use crate::support::bridge::Bridge;
use crate::support::receiver::{Answer, Receiver};

const ID: &str = "bridge";
const SECRET: &str = "a secret: with signs & spaces";

/// Grants tokens to one client, numbered from 1; what it was asked with is kept.
struct Authority {
    url: String,
    asked: Arc<Asked>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Asked {
    count: AtomicUsize,
    forms: Mutex<Vec<(Option<String>, String)>>,
    /// Seconds that tokens last.
    life: Mutex<f64>,
}

impl Authority {
    async fn new() -> Self {
        let asked = Arc::new(Asked::default());
        *asked.life.lock().unwrap() = 3600.0;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/token", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/token", post(grant))
            .with_state(asked.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, asked, task }
    }

    fn client(&self, secret: &str) -> Auth {
        Auth::OAuth2(Arc::new(OAuth2 {
            token_url: self.url.parse().unwrap(),
            client_id: ID.to_owned(),
            client_secret: Secret::new(secret),
            scope: Some("events:write".to_owned()),
            audience: None,
            credentials: Credentials::Header,
        }))
    }

    fn asked(&self) -> usize {
        self.asked.count.load(Ordering::SeqCst)
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn grant(
    State(asked): State<Arc<Asked>>,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, Json<serde_json::Value>) {
    use base64::Engine as _;
    let authorization = headers.get("authorization");
    let authorization = authorization.map(|value| value.to_str().unwrap().to_owned());
    asked
        .forms
        .lock()
        .unwrap()
        .push((authorization.clone(), body.clone()));
    let number = asked.count.fetch_add(1, Ordering::SeqCst) + 1;
    // Long enough for others to come meanwhile.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let form =
        |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pair = format!("{}:{}", form(ID), form(SECRET));
    let basic = base64::engine::general_purpose::STANDARD.encode(pair);
    let in_body = format!("&client_id={}&client_secret={}", form(ID), form(SECRET));
    let known = authorization == Some(format!("Basic {basic}")) || body.ends_with(&in_body);
    if !known {
        return (
            StatusCode::UNAUTHORIZED,
            Json(json!({ "error": "invalid_client" })),
        );
    }
    let life = *asked.life.lock().unwrap();
    let granted = json!({ "access_token": format!("token-{number}"), "token_type": "Bearer", "expires_in": life });
    (StatusCode::OK, Json(granted))
}

/// A receiver that takes these tokens and says 401 to others.
async fn taking(tokens: &'static [&'static str]) -> Receiver {
    Receiver::answering(move |request, _| {
        let shown = request.headers.get("authorization");
        let shown = shown.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        Answer::status(if shown.is_some_and(|shown| tokens.contains(&shown)) {
            204
        } else {
            401
        })
    })
    .await
}

async fn attempt(courier: &Courier, url: &str, auth: &Auth) -> Attempt {
    let signer = Signer::new(&Scheme::None, &[]).unwrap();
    let id = EventId::kept("evt_1").unwrap();
    let access = Access {
        auth: Some(auth),
        ..plain()
    };
    courier.attempt(request(url), &signer, &id, access).await
}

fn status(attempt: &Attempt) -> u16 {
    match &attempt.outcome {
        Outcome::Answered(answer) => answer.status,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn many_at_once_ask_for_one_token() {
    let (authority, receiver) = (Authority::new().await, taking(&["token-1"]).await);
    let (courier, auth) = (courier(), authority.client(SECRET));
    let url = receiver.url("/in");
    let attempts = (0..16).map(|_| attempt(&courier, &url, &auth));
    for attempt in futures_util::future::join_all(attempts).await {
        assert_eq!(status(&attempt), 204);
    }
    assert_eq!(authority.asked(), 1);
    let forms = authority.asked.forms.lock().unwrap();
    assert_eq!(
        forms[0].1,
        "grant_type=client_credentials&scope=events%3Awrite"
    );
}

#[tokio::test]
async fn the_credentials_are_in_the_form_where_the_server_wants_them_there() {
    let (authority, receiver) = (Authority::new().await, taking(&["token-1"]).await);
    let Auth::OAuth2(client) = authority.client(SECRET) else {
        unreachable!()
    };
    let auth = Auth::OAuth2(Arc::new(OAuth2 {
        credentials: Credentials::Body,
        ..(*client).clone()
    }));
    let attempt = attempt(&courier(), &receiver.url("/"), &auth).await;
    assert_eq!(status(&attempt), 204);
    assert_eq!(authority.asked.forms.lock().unwrap()[0].0, None);
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced_within_the_attempt() {
    let (authority, receiver) = (Authority::new().await, taking(&["token-2"]).await);
    let (courier, auth) = (courier(), authority.client(SECRET));
    // Fresh, and refused: asking again would not help.
    let first = attempt(&courier, &receiver.url("/"), &auth).await;
    assert_eq!((status(&first), authority.asked()), (401, 1));
    // Used before, so it may have been revoked.
    let second = attempt(&courier, &receiver.url("/"), &auth).await;
    assert_eq!((status(&second), authority.asked()), (204, 2));
    let third = attempt(&courier, &receiver.url("/"), &auth).await;
    assert_eq!((status(&third), authority.asked()), (204, 2));
}

#[tokio::test]
async fn a_receiver_that_refuses_every_token_costs_the_server_few() {
    let (authority, receiver) = (Authority::new().await, taking(&[]).await);
    let (courier, auth) = (courier(), authority.client(SECRET));
    for _ in 0..5 {
        let attempt = attempt(&courier, &receiver.url("/"), &auth).await;
        assert_eq!(status(&attempt), 401);
    }
    assert_eq!(authority.asked(), 2);
}

#[tokio::test]
async fn a_token_is_not_used_to_its_very_end() {
    let (authority, receiver) = (
        Authority::new().await,
        taking(&["token-1", "token-2"]).await,
    );
    *authority.asked.life.lock().unwrap() = 0.0;
    let (courier, auth) = (courier(), authority.client(SECRET));
    for asked in 1..=2 {
        let attempt = attempt(&courier, &receiver.url("/"), &auth).await;
        assert_eq!((status(&attempt), authority.asked()), (204, asked));
    }
}

#[tokio::test]
async fn without_a_token_nothing_is_sent_and_the_servers_word_is_told() {
    let (authority, receiver) = (Authority::new().await, taking(&[]).await);
    let (courier, auth) = (courier(), authority.client("another secret"));
    for _ in 0..2 {
        let attempt = attempt(&courier, &receiver.url("/"), &auth).await;
        let Outcome::Failed(failure) = attempt.outcome else {
            panic!("{attempt:?}")
        };
        assert_eq!(failure.class, ErrorClass::Auth);
        assert_eq!(failure.detail, "token request: answered 401 invalid_client");
    }
    assert_eq!(receiver.count(), 0);
    assert_eq!(
        authority.asked(),
        1,
        "a refusal is not asked for again at once"
    );
}

#[tokio::test]
async fn token_requests_are_guarded_like_any_other() {
    let authority = Authority::new().await;
    let strict = Courier::new(AddressPolicy {
        allow_http: true,
        allow_networks: Vec::new(),
    });
    let attempt = attempt(&strict, "http://8.8.8.8/", &authority.client(SECRET)).await;
    let Outcome::Failed(failure) = attempt.outcome else {
        panic!("{attempt:?}")
    };
    assert_eq!(failure.class, ErrorClass::Denied);
    assert_eq!(authority.asked(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_shows_what_its_config_gives() {
    let receiver = Receiver::accepting().await;
    let url = receiver.url("/in");
    let kinds = [
        ("bearer", "{ bearer: tok_abcdef }"),
        (
            "basic",
            "{ basic: { user: aladdin, password: 'opensesame' } }",
        ),
        (
            "header",
            "{ api_key: { header: x-api-key, key: key_abcdef } }",
        ),
        ("query", "{ api_key: { query: key, key: key_abcdef } }"),
    ];
    let subscriptions: String = kinds
        .iter()
        .map(|(name, auth)| format!("  {name}: {{ topics: ['#'], endpoint: {{ url: '{url}/{name}', signature: none, auth: {auth} }} }}\n"))
        .collect();
    let bridge = Bridge::start(&format!(
        "group: hookbridge
data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers: {{ here: {{ embedded: {{}} }} }}
sources: {{ local: {{ broker: here, topics: ['#'] }} }}
subscriptions:
{subscriptions}"
    ))
    .await
    .ready()
    .await;
    let (status, _) = bridge.post("/v1/topics/orders/events", "{}").await;
    assert_eq!(status, 202);
    let mut requests = receiver.wait_for(4, Duration::from_secs(10)).await;
    requests.sort_by(|one, other| one.path.cmp(&other.path));
    let shown: Vec<String> = requests
        .iter()
        .map(|request| {
            let header = |name: &str| {
                request
                    .headers
                    .get(name)
                    .map_or("-", |value| value.to_str().unwrap())
            };
            let query = request.query.as_deref().unwrap_or_default();
            format!(
                "{}?{query} {} {}",
                request.path,
                header("authorization"),
                header("x-api-key")
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "/in/basic? Basic YWxhZGRpbjpvcGVuc2VzYW1l -",
            "/in/bearer? Bearer tok_abcdef -",
            "/in/header? - key_abcdef",
            "/in/query?key=key_abcdef - -",
        ]
    );
    assert!(!bridge.log().contains("abcdef"), "a credential was logged");
}
