//! The demo's receiver: three endpoints that behave as receivers do, and keep what they were sent.
//!
//! Every request is checked as a real receiver would check it, with the endpoint's own secret.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use base64::Engine as _;
use http::StatusCode;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::cli::listen::Verifier;
use crate::deliver::signature::Received;

/// Takes everything.
pub const WAREHOUSE: &str = "warehouse";
/// Refuses each event twice, then takes it.
pub const CRM: &str = "crm";
/// Refuses everything until it is healed.
pub const BILLING: &str = "billing";
pub const ENDPOINTS: [&str; 3] = [WAREHOUSE, CRM, BILLING];

const CRM_REFUSES: usize = 2;
const MAX_BODY_BYTES: usize = 1 << 20;
/// Far more than the demo sends.
const MAX_KEPT: usize = 1_000;

/// One request, as it came and as it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    pub endpoint: String,
    /// Its `webhook-id`.
    pub event: String,
    pub status: u16,
    /// Why its signature is not right.
    pub unverified: Option<String>,
}

/// Listening until it is dropped.
pub struct Receiver {
    pub address: SocketAddr,
    secrets: BTreeMap<&'static str, String>,
    ears: Arc<Ears>,
    serving: JoinHandle<()>,
}

struct Ears {
    verifiers: BTreeMap<&'static str, Verifier>,
    healed: AtomicBool,
    heard: Mutex<Vec<Heard>>,
}

impl Receiver {
    /// Listens on a free port of loopback, with new secrets.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let secrets: BTreeMap<_, _> = ENDPOINTS.map(|endpoint| (endpoint, secret())).into();
        let mut verifiers = BTreeMap::new();
        for (endpoint, secret) in &secrets {
            verifiers.insert(*endpoint, Verifier::new(None, vec![secret.clone()], None)?);
        }
        let ears = Arc::new(Ears {
            verifiers,
            healed: AtomicBool::new(false),
            heard: Mutex::default(),
        });
        let app = Router::new().fallback(receive).with_state(ears.clone());
        let serving = tokio::spawn(async move {
            // Ends with the demo; what goes wrong before is seen by what does not arrive.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self {
            address,
            secrets,
            ears,
            serving,
        })
    }

    pub fn secret(&self, endpoint: &str) -> &str {
        self.secrets.get(endpoint).map_or("", String::as_str)
    }

    /// From now on every endpoint takes what it gets.
    pub fn heal(&self) {
        self.ears.healed.store(true, Ordering::SeqCst);
    }

    /// All requests so far, in their order.
    pub fn heard(&self) -> Vec<Heard> {
        self.ears.lock().clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Ears {
    fn lock(&self) -> MutexGuard<'_, Vec<Heard>> {
        self.heard.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// What `endpoint` answers to `event`, of which it has refused or taken `before` already.
    fn answer(&self, endpoint: &str, before: usize) -> StatusCode {
        let healed = self.healed.load(Ordering::SeqCst);
        match endpoint {
            CRM if before < CRM_REFUSES => StatusCode::SERVICE_UNAVAILABLE,
            BILLING if !healed => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::NO_CONTENT,
        }
    }
}

async fn receive(State(ears): State<Arc<Ears>>, request: Request<Body>) -> StatusCode {
    let (head, body) = request.into_parts();
    let endpoint = head.uri.path().trim_matches('/').to_owned();
    let Some(verifier) = ears.verifiers.get(endpoint.as_str()) else {
        return StatusCode::NOT_FOUND;
    };
    let Ok(body) = to_bytes(body, MAX_BODY_BYTES).await else {
        return StatusCode::PAYLOAD_TOO_LARGE;
    };
    let request = Received {
        method: &head.method,
        // Standard Webhooks do not sign it.
        url: "",
        headers: &head.headers,
        body: &body,
    };
    let unverified = verifier
        .verify(&request, Timestamp::now().as_second())
        .err()
        .map(|why| why.to_string());
    let id = head.headers.get("webhook-id");
    let event = id.and_then(|id| id.to_str().ok()).unwrap_or("-").to_owned();
    let mut heard = ears.lock();
    if heard.len() >= MAX_KEPT {
        return StatusCode::TOO_MANY_REQUESTS;
    }
    let same = |one: &&Heard| one.endpoint == endpoint && one.event == event;
    let status = match &unverified {
        None => ears.answer(&endpoint, heard.iter().filter(same).count()),
        Some(_) => StatusCode::UNAUTHORIZED,
    };
    heard.push(Heard {
        endpoint,
        event,
        status: status.as_u16(),
        unverified,
    });
    status
}

/// A new one for each run: nothing of the demo is worth keeping.
fn secret() -> String {
    let bytes: [u8; 32] = rand::random();
    let encoded = base64::engine::general_purpose::STANDARD.encode(bytes);
    format!("whsec_{encoded}")
}
