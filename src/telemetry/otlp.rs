//! Exporting spans: OTLP over HTTP, as JSON, in batches.
//!
//! Written by hand (docs/decisions/otlp.md). A collector that is away costs spans and nothing else:
//! a batch is tried three times, meanwhile the queue fills, and what it does not take is dropped and
//! counted, as is a batch that is given up. One line says that spans are lost, and one that it is over.
//! The mapping is <https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>.

use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use reqwest::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::Url;

use crate::spans::{self, Kind, Span, Spans};

/// Spans that wait to be sent; more are dropped.
const WAITING: usize = 4_096;
/// Spans in one request.
const BATCH: usize = 512;
/// How long a batch is waited for.
const GATHER: Duration = Duration::from_secs(1);
/// For a request and its answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Waits before a batch is tried again.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// How long the last spans may take.
const LAST: Duration = Duration::from_secs(2);
const ANSWER_BYTES: usize = 64 << 10;

/// Whom spans are sent to.
pub struct Settings {
    /// Without `/v1/traces`.
    pub endpoint: Url,
    pub headers: HeaderMap,
    /// Of events that come without a trace, how many get one.
    pub ratio: f64,
    /// Which process this is, by keys of OpenTelemetry's resources.
    pub resource: Vec<(&'static str, String)>,
    pub exported: Counter,
    pub lost: Counter,
}

/// Sends spans until it is stopped.
pub struct Exporter {
    taken: mpsc::Receiver<Span>,
    client: Client,
    traces: Url,
    headers: HeaderMap,
    resource: Vec<(&'static str, String)>,
    exported: Counter,
    lost: Counter,
    is_failing: bool,
}

/// Why a batch was not taken, and whether it may be on another try.
struct NotTaken {
    why: String,
    may_help: bool,
}

/// A sink for spans, and what empties it.
pub fn exporter(settings: Settings) -> anyhow::Result<(Spans, Exporter)> {
    let client = Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(ANSWER)
        .build()
        .context("no HTTP client for `telemetry.otlp`")?;
    let (sink, taken) = mpsc::channel(WAITING);
    let spans = Spans::to(sink, settings.ratio, settings.lost.clone());
    let mut traces = settings.endpoint;
    let path = format!("{}/v1/traces", traces.path().trim_end_matches('/'));
    traces.set_path(&path);
    let exporter = Exporter {
        taken,
        client,
        traces,
        headers: settings.headers,
        resource: settings.resource,
        exported: settings.exported,
        lost: settings.lost,
        is_failing: false,
    };
    Ok((spans, exporter))
}

impl Exporter {
    /// Runs until `stop`, and sends then what is there, for two seconds at most.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = gather(&mut self.taken, &mut batch) => {}
            }
            let mut sending = pin!(self.send(std::mem::take(&mut batch)));
            tokio::select! {
                biased;
                () = &mut sending => {}
                () = stop.cancelled() => { let _ = timeout(LAST, sending).await; }
            }
        }
        let rest = async {
            while let Ok(span) = self.taken.try_recv() {
                batch.push(span);
            }
            while !batch.is_empty() {
                let rest = batch.split_off(batch.len().min(BATCH));
                self.send(std::mem::replace(&mut batch, rest)).await;
            }
        };
        let _ = timeout(LAST, rest).await;
    }

    async fn send(&mut self, batch: Vec<Span>) {
        if batch.is_empty() {
            return;
        }
        let count = batch.len() as u64;
        let body = request(&self.resource, &batch).to_string();
        drop(batch);
        let mut again = AGAIN.iter();
        let not_taken = loop {
            let not_taken = match self.post(body.clone()).await {
                Ok(rejected) => {
                    let rejected = rejected.min(count);
                    self.exported.inc_by(count - rejected);
                    self.lost.inc_by(rejected);
                    if std::mem::take(&mut self.is_failing) {
                        info!("the collector takes spans again");
                    }
                    return;
                }
                Err(not_taken) => not_taken,
            };
            match again.next().filter(|_| not_taken.may_help) {
                Some(wait) => sleep(*wait).await,
                None => break not_taken,
            }
        };
        self.lost.inc_by(count);
        if !std::mem::replace(&mut self.is_failing, true) {
            warn!(why = %not_taken.why, "the collector (`telemetry.otlp`) takes no spans; they are dropped and counted until it does");
        }
    }

    /// How many spans the collector has rejected.
    async fn post(&self, body: String) -> Result<u64, NotTaken> {
        let request = self.client.post(self.traces.clone());
        let request = request.headers(self.headers.clone());
        let request = request.header(http::header::CONTENT_TYPE, "application/json");
        let answer = request.body(body).send().await;
        let mut answer = answer.map_err(|error| NotTaken {
            why: format!("{:#}", anyhow::Error::from(error.without_url())),
            may_help: true,
        })?;
        let status = answer.status();
        if !status.is_success() {
            return Err(NotTaken {
                why: format!("it answers {status}"),
                may_help: matches!(
                    status,
                    StatusCode::TOO_MANY_REQUESTS
                        | StatusCode::BAD_GATEWAY
                        | StatusCode::SERVICE_UNAVAILABLE
                        | StatusCode::GATEWAY_TIMEOUT
                ),
            });
        }
        let mut said = Vec::new();
        while let Ok(Some(more)) = answer.chunk().await {
            said.extend_from_slice(&more);
            if said.len() > ANSWER_BYTES {
                break;
            }
        }
        Ok(rejected(&said))
    }
}

/// Waits for a span, and for others to go with it.
async fn gather(taken: &mut mpsc::Receiver<Span>, batch: &mut Vec<Span>) {
    if batch.is_empty() && taken.recv_many(batch, BATCH).await == 0 {
        // The pipeline is gone: only `stop` is left to come.
        return std::future::pending().await;
    }
    let until = Instant::now() + GATHER;
    while batch.len() < BATCH {
        let room = BATCH - batch.len();
        match timeout_at(until, taken.recv_many(batch, room)).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
}

fn rejected(said: &[u8]) -> u64 {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Said {
        partial_success: Option<Partial>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Partial {
        rejected_spans: Option<Value>,
    }
    let said = serde_json::from_slice::<Said>(said).ok();
    let count = said.and_then(|said| said.partial_success?.rejected_spans);
    // 64-bit numbers are texts, and some write them as numbers.
    let count = count.and_then(|count| match count {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    });
    count.unwrap_or_default()
}

/// The body of an export.
fn request(resource: &[(&'static str, String)], batch: &[Span]) -> Value {
    let resource = resource
        .iter()
        .map(|(key, value)| json!({ "key": key, "value": { "stringValue": value } }));
    let scope = json!({ "name": "hookbridge", "version": env!("CARGO_PKG_VERSION") });
    let spans: Vec<_> = batch.iter().map(span).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": resource.collect::<Vec<_>>() },
        "scopeSpans": [{ "scope": scope, "spans": spans }],
    }] })
}

fn span(span: &Span) -> Value {
    let Span {
        trace_id,
        id,
        parent,
        state,
        kind,
        name,
        start,
        end,
        attributes,
        links,
        error,
    } = span;
    let attributes: Vec<_> = attributes.iter().map(attribute).collect();
    let mut written = json!({
        "traceId": hex::encode(trace_id),
        "spanId": hex::encode(id),
        "name": name,
        "kind": match kind { Kind::Client => 3, Kind::Consumer => 5 },
        "startTimeUnixNano": nanos(*start),
        "endTimeUnixNano": nanos(*end),
        "attributes": attributes,
        "status": {},
    });
    if let Some(parent) = parent {
        written["parentSpanId"] = hex::encode(parent).into();
    }
    if let Some(state) = state {
        written["traceState"] = state.as_str().into();
    }
    if let Some(error) = error {
        written["status"] = json!({ "code": 2, "message": error });
    }
    if !links.is_empty() {
        let links = links.iter().map(
            |(trace, span)| json!({ "traceId": hex::encode(trace), "spanId": hex::encode(span) }),
        );
        written["links"] = links.collect();
    }
    written
}

fn attribute((key, value): &(&'static str, spans::Value)) -> Value {
    let value = match value {
        spans::Value::Text(text) => json!({ "stringValue": text }),
        spans::Value::Int(number) => json!({ "intValue": number.to_string() }),
    };
    json!({ "key": key, "value": value })
}

fn nanos(at: Timestamp) -> String {
    at.as_nanosecond().max(0).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_written_as_the_protocol_has_it() {
        let start: Timestamp = "2026-11-22T03:00:00Z".parse().unwrap();
        let all = [Span {
            trace_id: [0x0a; 16],
            id: [0xb7; 8],
            parent: Some([1; 8]),
            state: Some("a=1".to_owned()),
            kind: Kind::Client,
            name: "POST".to_owned(),
            start,
            end: start + Duration::from_millis(12),
            attributes: vec![
                ("http.response.status_code", 503_i64.into()),
                ("error.type", "503".into()),
            ],
            links: vec![([2; 16], [3; 8])],
            error: Some("503".to_owned()),
        }];
        let written = request(&[("service.name", "hookbridge".to_owned())], &all);
        let span = &written["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        let expected = json!({
            "traceId": "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a",
            "spanId": "b7b7b7b7b7b7b7b7",
            "parentSpanId": "0101010101010101",
            "traceState": "a=1",
            "name": "POST",
            "kind": 3,
            "startTimeUnixNano": "1795316400000000000",
            "endTimeUnixNano": "1795316400012000000",
            "attributes": [
                { "key": "http.response.status_code", "value": { "intValue": "503" } },
                { "key": "error.type", "value": { "stringValue": "503" } },
            ],
            "links": [{
                "traceId": "02020202020202020202020202020202",
                "spanId": "0303030303030303",
            }],
            "status": { "code": 2, "message": "503" },
        });
        assert_eq!(*span, expected);
        let resource = &written["resourceSpans"][0]["resource"]["attributes"][0];
        assert_eq!(resource["value"]["stringValue"], "hookbridge");
    }

    #[test]
    fn what_a_collector_rejects_is_read_either_way() {
        assert_eq!(rejected(b"{}"), 0);
        assert_eq!(rejected(b""), 0);
        assert_eq!(rejected(br#"{"partialSuccess":{"rejectedSpans":"3"}}"#), 3);
        assert_eq!(rejected(br#"{"partialSuccess":{"rejectedSpans":2}}"#), 2);
    }
}
