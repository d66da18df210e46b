//! A receiver: records every request, verifies its signature, answers as the test says.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};

use super::SECRET;

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub at: Instant,
    pub path: String,
    pub query: Option<String>,
    pub id: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// What the official Standard Webhooks library says.
    pub verified: bool,
    /// The status that it was answered with.
    pub answered: u16,
}

type Answers = dyn Fn(&Request, usize) -> Answer + Send + Sync;

/// How to answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
    pub after: Duration,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: String::new(),
            after: Duration::ZERO,
        }
    }

    /// Answers after so long; for a receiver that hangs, longer than anybody waits.
    pub fn after(self, after: Duration) -> Self {
        Self { after, ..self }
    }

    pub fn body(self, body: impl ToString) -> Self {
        let body = body.to_string();
        Self { body, ..self }
    }

    pub fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }
}

/// See the module. Stops when it is dropped.
pub struct Receiver {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    requests: Mutex<Requests>,
    answers: Box<Answers>,
}

#[derive(Default)]
struct Requests {
    all: Vec<Request>,
    by_id: HashMap<String, usize>,
}

impl Receiver {
    /// A receiver that says 204 to everything.
    pub async fn accepting() -> Self {
        Self::answering(|_, _| Answer::status(204)).await
    }

    /// `answers` is told the request and how many came before it with the same id.
    pub async fn answering(
        answers: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::answering_at(anywhere, answers).await
    }

    /// Like [`Receiver::answering`], at this address.
    pub async fn answering_at(
        address: SocketAddr,
        answers: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .expect("the port is free");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            requests: Mutex::default(),
            answers: Box::new(answers),
        });
        let router = Router::new().fallback(receive).with_state(shared.clone());
        let task =
            tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
        Self {
            address,
            shared,
            task,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().all.clone()
    }

    /// How many requests have come.
    pub fn count(&self) -> usize {
        self.shared.requests.lock().unwrap().all.len()
    }

    /// How many of the requests `is` true of.
    pub fn count_of(&self, is: impl Fn(&Request) -> bool) -> usize {
        let requests = self.shared.requests.lock().unwrap();
        requests.all.iter().filter(|request| is(request)).count()
    }

    /// How often each id came.
    pub fn by_id(&self) -> BTreeMap<String, usize> {
        let requests = self.shared.requests.lock().unwrap();
        let counts = requests.by_id.iter();
        counts.map(|(id, count)| (id.clone(), *count)).collect()
    }

    /// Waits until `count` requests have come.
    pub async fn wait_for(&self, count: usize, within: Duration) -> Vec<Request> {
        super::eventually(&format!("{count} requests"), within, async || {
            (self.count() >= count).then_some(())
        })
        .await;
        self.requests()
    }

    /// Waits until nothing has come for `quiet`.
    pub async fn quiet_for(&self, quiet: Duration, within: Duration) {
        let (mut count, mut since) = (self.count(), Instant::now());
        super::eventually("no more requests", within, async || {
            if self.count() != count {
                (count, since) = (self.count(), Instant::now());
            }
            (since.elapsed() >= quiet).then_some(())
        })
        .await;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A receiver that ends like a process: with all its connections.
pub struct Mortal {
    pub receiver: Receiver,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Mortal {
    /// One that takes `after` for each 204.
    pub fn at(address: SocketAddr, after: Duration) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let answers = move |_: &Request, _| Answer::status(204).after(after);
        let receiver = tokio::task::block_in_place(|| {
            runtime.block_on(Receiver::answering_at(address, answers))
        });
        Self {
            receiver,
            runtime: Some(runtime),
        }
    }

    /// Ends it, and waits until its connections have.
    pub fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            tokio::task::block_in_place(|| runtime.shutdown_timeout(Duration::from_secs(5)));
        }
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn receive(
    State(shared): State<Arc<Shared>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let verifier = standardwebhooks::Webhook::new(SECRET).expect("a good secret");
    let mut request = Request {
        at: Instant::now(),
        path: uri.path().to_owned(),
        query: uri.query().map(str::to_owned),
        id: text("webhook-id"),
        verified: verifier.verify(&body, &headers).is_ok(),
        headers,
        body,
        answered: 0,
    };
    let answer = {
        let mut requests = shared.requests.lock().unwrap();
        let count = requests.by_id.entry(request.id.clone()).or_default();
        let before = *count;
        *count += 1;
        let answer = (shared.answers)(&request, before);
        request.answered = answer.status;
        requests.all.push(request);
        answer
    };
    tokio::time::sleep(answer.after).await;
    let status = StatusCode::from_u16(answer.status).expect("a status");
    let mut response = match answer.body.is_empty() {
        true => status.into_response(),
        false => (status, answer.body).into_response(),
    };
    for (name, value) in answer.headers {
        response
            .headers_mut()
            .insert(name, value.parse().expect("a header value"));
    }
    response
}
