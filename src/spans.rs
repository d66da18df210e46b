//! Spans: what a trace shows of an event on its way, as data, and the sink that takes them.
//!
//! One span for each event that is taken, from the take to its settling (kind consumer), and one
//! for each request (kind client), whose context the receiver gets. Nothing of them travels with a
//! delivery: the ids of an event's trace and of its consumer span are made of what the message says
//! and of the event's id, so that a retry on another instance a day later belongs to the same span.
//! The sink never waits: what it has no room for is dropped and counted. Exporting is `telemetry`'s.
//!
//! Names follow OpenTelemetry's conventions for messaging and HTTP. Neither paths of URLs nor
//! anything of a body gets into a span.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::attempt::{Attempt, Outcome};
use crate::delivery::Delivery;
use crate::event::context::{Parent, TRACEPARENT, TRACESTATE, TraceContext};
use crate::event::{Event, EventId, Place};
use crate::subscription::Endpoint;

/// Links of a span: a batch may have thousands of members.
const MOST_LINKS: usize = 128;
const SAMPLED: u8 = 1;

/// Something that took from one time to another.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    pub trace_id: [u8; 16],
    pub id: [u8; 8],
    pub parent: Option<[u8; 8]>,
    /// As it came.
    pub state: Option<String>,
    pub kind: Kind,
    pub name: String,
    pub start: Timestamp,
    pub end: Timestamp,
    pub attributes: Vec<(&'static str, Value)>,
    /// Spans of other traces that this one is about.
    pub links: Vec<([u8; 16], [u8; 8])>,
    /// What went wrong, for people.
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Client,
    Consumer,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(String),
    Int(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

/// The sink. Cloning shares it; one that is off takes nothing and costs a look.
#[derive(Clone, Default)]
pub struct Spans(Option<Arc<Open>>);

struct Open {
    sink: mpsc::Sender<Span>,
    /// Of 2^63: traces of which the lower half is below this are sampled, where nobody has decided.
    bound: u64,
    lost: Counter,
}

/// The trace of an event that is sampled.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Trace {
    id: [u8; 16],
    /// Who published it.
    parent: Option<[u8; 8]>,
    state: Option<String>,
    flags: u8,
    /// Of the event here, on whatever instance.
    consumer: [u8; 8],
}

impl Spans {
    pub fn off() -> Self {
        Self(None)
    }

    /// `ratio`: of events that come without a trace, how many get one (0 to 1). `lost` counts what
    /// there is no room for.
    pub fn to(sink: mpsc::Sender<Span>, ratio: f64, lost: Counter) -> Self {
        let bound = (ratio.clamp(0.0, 1.0) * (1_u64 << 63) as f64) as u64;
        Self(Some(Arc::new(Open { sink, bound, lost })))
    }

    /// The span of an event that is taken now, if it is sampled.
    pub fn consuming(&self, event: &Arc<Event>) -> Option<Box<Consuming>> {
        let open = self.0.as_ref()?;
        let trace = open.trace(event)?;
        Some(Box::new(Consuming {
            open: open.clone(),
            trace,
            event: event.clone(),
            start: Timestamp::now(),
        }))
    }

    /// The span of a request for `delivery` that is made now, if its event is sampled.
    pub fn requesting(&self, delivery: &Delivery, endpoint: &Endpoint) -> Option<Box<Requesting>> {
        let open = self.0.as_ref()?;
        let trace = open.trace(&delivery.event)?;
        let mut attributes = about(endpoint);
        attributes.extend([
            ("hookbridge.subscription", (&*delivery.subscription).into()),
            ("hookbridge.delivery.id", delivery.id.as_str().into()),
            ("messaging.message.id", delivery.event.id.as_str().into()),
        ]);
        attributes.extend(delivery.event.tenant.as_deref().map(of_tenant));
        if delivery.progress.attempts > 0 {
            let again = i64::from(delivery.progress.attempts);
            attributes.push(("http.request.resend_count", again.into()));
        }
        Some(Requesting::new(open, trace, endpoint, attributes))
    }

    /// The span of one request for several deliveries, if the event of any is sampled: in the trace
    /// of the first such, with links to the others.
    pub fn requesting_together<'a>(
        &self,
        id: &EventId,
        deliveries: impl Iterator<Item = &'a Delivery>,
        endpoint: &Endpoint,
    ) -> Option<Box<Requesting>> {
        let open = self.0.as_ref()?;
        let (mut first, mut links, mut count) = (None, Vec::new(), 0_i64);
        let mut tenant = None;
        for delivery in deliveries {
            count += 1;
            let its = delivery.event.tenant.as_deref();
            // Whose they are only if they are all one's.
            match tenant {
                None => tenant = Some(its),
                Some(all) if all == its => {}
                Some(_) => tenant = Some(None),
            }
            if links.len() == MOST_LINKS {
                continue;
            }
            let Some(trace) = open.trace(&delivery.event) else {
                continue;
            };
            match &first {
                None => first = Some((trace, delivery.subscription.clone())),
                Some(_) => links.push((trace.id, trace.consumer)),
            }
        }
        let (trace, subscription) = first?;
        let mut attributes = about(endpoint);
        attributes.extend([
            ("hookbridge.subscription", (&*subscription).into()),
            ("messaging.batch.message_count", count.into()),
            ("messaging.message.id", id.as_str().into()),
        ]);
        attributes.extend(tenant.flatten().map(of_tenant));
        let mut request = Requesting::new(open, trace, endpoint, attributes);
        request.links = links;
        Some(request)
    }
}

impl Open {
    fn trace(&self, event: &Event) -> Option<Trace> {
        let context = TraceContext::of(event);
        let trace = match context.parent() {
            Some(parent) if !parent.is_sampled() => return None,
            Some(parent) => Trace {
                id: parent.trace_id,
                parent: Some(parent.span_id),
                state: context.tracestate.map(Into::into),
                flags: parent.flags,
                consumer: made_of(&[&parent.trace_id, event.id.as_str().as_bytes()]),
            },
            None => {
                let id: [u8; 16] = made_of(&[b"trace", event.id.as_str().as_bytes()]);
                let (_, half) = id.split_at(8);
                let half = half.iter().fold(0, |all, b| (all << 8) | u64::from(*b));
                if half >> 1 >= self.bound {
                    return None;
                }
                Trace {
                    id,
                    parent: None,
                    state: None,
                    flags: SAMPLED,
                    consumer: made_of(&[&id, event.id.as_str().as_bytes()]),
                }
            }
        };
        Some(trace)
    }

    fn take(&self, span: Span) {
        if self.sink.try_send(span).is_err() {
            self.lost.inc();
        }
    }
}

/// An id that is the same wherever it is made.
fn made_of<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let hash = hasher.finalize();
    let mut id = [0; N];
    id.copy_from_slice(&hash[..N]);
    id
}

/// An event between its take and its settling. Dropped before that it leaves no span: the broker
/// delivers the event again.
pub struct Consuming {
    open: Arc<Open>,
    trace: Trace,
    event: Arc<Event>,
    start: Timestamp,
}

impl Consuming {
    /// All deliveries of the event have a durable verdict.
    pub fn settled(self) {
        let Trace {
            id,
            parent,
            state,
            consumer,
            ..
        } = self.trace;
        let (destination, mut attributes) = place(&self.event.origin.place);
        attributes.extend([
            ("messaging.operation.name", "process".into()),
            ("messaging.operation.type", "process".into()),
            ("messaging.message.id", self.event.id.as_str().into()),
            (
                "messaging.message.body.size",
                (self.event.body.len() as i64).into(),
            ),
            ("hookbridge.source", (&*self.event.source).into()),
            ("hookbridge.topic", (&*self.event.topic).into()),
            ("hookbridge.type", (&*self.event.kind).into()),
        ]);
        attributes.extend(self.event.tenant.as_deref().map(of_tenant));
        self.open.take(Span {
            trace_id: id,
            id: consumer,
            parent,
            state,
            kind: Kind::Consumer,
            name: format!("process {destination}"),
            start: self.start,
            end: Timestamp::now(),
            attributes,
            links: Vec::new(),
            error: None,
        });
    }
}

/// Where an event came from: a name of few values, and everything else.
fn place(place: &Place) -> (Arc<str>, Vec<(&'static str, Value)>) {
    let (system, destination, more) = match place {
        Place::Amqp {
            exchange,
            routing_key,
            queue,
        } => {
            let key = (
                "messaging.rabbitmq.destination.routing_key",
                (&**routing_key).into(),
            );
            let from = ("hookbridge.exchange", (&**exchange).into());
            ("rabbitmq", queue.clone(), vec![key, from])
        }
        Place::Kafka {
            topic,
            partition,
            offset,
        } => {
            let partition = (
                "messaging.destination.partition.id",
                partition.to_string().into(),
            );
            let offset = ("messaging.kafka.offset", (*offset).into());
            ("kafka", topic.clone(), vec![partition, offset])
        }
        Place::Embedded { topic, .. } => ("hookbridge", topic.clone(), Vec::new()),
    };
    let mut attributes = vec![
        ("messaging.system", system.into()),
        ("messaging.destination.name", (&*destination).into()),
    ];
    attributes.extend(more);
    (destination, attributes)
}

/// Whose an event is.
fn of_tenant(tenant: &str) -> (&'static str, Value) {
    ("hookbridge.tenant", tenant.into())
}

/// What a request's span says of whom it goes to.
fn about(endpoint: &Endpoint) -> Vec<(&'static str, Value)> {
    let url = &endpoint.url;
    let mut attributes = vec![
        ("http.request.method", endpoint.method.as_str().into()),
        ("url.scheme", url.scheme().into()),
        ("server.address", url.host_str().unwrap_or_default().into()),
    ];
    if let Some(port) = url.port_or_known_default() {
        attributes.push(("server.port", i64::from(port).into()));
    }
    attributes
}

/// A request between its beginning and its answer.
pub struct Requesting {
    open: Arc<Open>,
    trace: Trace,
    id: [u8; 8],
    name: String,
    start: Timestamp,
    attributes: Vec<(&'static str, Value)>,
    links: Vec<([u8; 16], [u8; 8])>,
}

impl Requesting {
    fn new(
        open: &Arc<Open>,
        trace: Trace,
        endpoint: &Endpoint,
        attributes: Vec<(&'static str, Value)>,
    ) -> Box<Self> {
        Box::new(Self {
            open: open.clone(),
            trace,
            id: rand::random::<u64>().max(1).to_be_bytes(),
            name: endpoint.method.to_string(),
            start: Timestamp::now(),
            attributes,
            links: Vec::new(),
        })
    }

    /// Makes the receiver's span a child of this one. What the config gives goes before.
    pub fn sign(&self, headers: &mut HeaderMap, endpoint: &Endpoint) {
        let given = endpoint.headers.as_deref();
        if given.is_some_and(|given| given.contains_key(TRACEPARENT)) {
            return;
        }
        let parent = Parent {
            trace_id: self.trace.id,
            span_id: self.id,
            flags: self.trace.flags | SAMPLED,
        };
        if let Ok(value) = HeaderValue::try_from(parent.to_string()) {
            headers.insert(TRACEPARENT, value);
        }
        let state = self.trace.state.as_deref().map(HeaderValue::try_from);
        if let Some(Ok(state)) = state {
            headers.entry(TRACESTATE).or_insert(state);
        }
    }

    /// It was answered, or not.
    pub fn ended(mut self, attempt: &Attempt, delivered: bool) {
        let label = attempt.outcome.label();
        if let Outcome::Answered(answer) = &attempt.outcome {
            let status = i64::from(answer.status);
            let key = "http.response.status_code";
            self.attributes.push((key, status.into()));
        }
        if !delivered {
            self.attributes.push(("error.type", label.clone().into()));
        }
        let took = jiff::SignedDuration::try_from(attempt.took).unwrap_or_default();
        self.open.take(Span {
            trace_id: self.trace.id,
            id: self.id,
            parent: Some(self.trace.consumer),
            state: self.trace.state,
            kind: Kind::Client,
            name: self.name,
            start: self.start,
            end: self.start.checked_add(took).unwrap_or(self.start),
            attributes: self.attributes,
            links: self.links,
            error: (!delivered).then_some(label),
        });
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::event::{HeaderValue as Field, Headers, Origin};

    fn event(id: &str, traceparent: Option<&str>) -> Arc<Event> {
        let mut headers = Headers::default();
        if let Some(parent) = traceparent {
            headers.push(TRACEPARENT, Field::text(parent));
        }
        Arc::new(Event {
            id: EventId::kept(id).unwrap(),
            topic: "orders".into(),
            kind: "orders".into(),
            source: "local".into(),
            tenant: None,
            published_at: None,
            content_type: None,
            content_encoding: None,
            key: None,
            headers,
            properties: Vec::new(),
            body: Bytes::new(),
            origin: Origin {
                broker: "here".into(),
                place: Place::Embedded {
                    topic: "orders".into(),
                    sequence: 1,
                },
            },
        })
    }

    fn spans(ratio: f64) -> (Spans, mpsc::Receiver<Span>, Counter) {
        let (sink, taken) = mpsc::channel(2);
        let lost = Counter::default();
        (Spans::to(sink, ratio, lost.clone()), taken, lost)
    }

    #[test]
    fn who_published_decides_and_else_the_ratio() {
        let not = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        let sampled = format!("{}01", &not[..53]);
        let (all, ..) = spans(1.0);
        let (none, ..) = spans(0.0);
        for spans in [&all, &none] {
            assert!(spans.consuming(&event("e", Some(not))).is_none());
            let consuming = spans.consuming(&event("e", Some(&sampled))).unwrap();
            assert_eq!(
                hex::encode(consuming.trace.parent.unwrap()),
                "b7ad6b7169203331"
            );
        }
        assert!(all.consuming(&event("e", None)).is_some());
        assert!(none.consuming(&event("e", None)).is_none());
        assert!(
            Spans::off()
                .consuming(&event("e", Some(&sampled)))
                .is_none()
        );
        let (some, ..) = spans(0.25);
        let ids = (0..2_000).map(|n| format!("e{n}"));
        let count = ids.filter(|id| some.consuming(&event(id, None)).is_some());
        assert!((400..600).contains(&count.count()));
    }

    #[test]
    fn the_same_event_has_the_same_ids_everywhere() {
        let (one, ..) = spans(1.0);
        let (other, ..) = spans(1.0);
        let of = |spans: &Spans, id: &str| spans.consuming(&event(id, None)).unwrap().trace;
        assert_eq!(of(&one, "a"), of(&other, "a"));
        assert_ne!(of(&one, "a").id, of(&one, "b").id);
    }

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let (spans, mut taken, lost) = spans(1.0);
        for n in 0..5 {
            let event = event(&format!("e{n}"), None);
            spans.consuming(&event).unwrap().settled();
        }
        drop(spans.consuming(&event("given-back", None)));
        assert_eq!(lost.get(), 3);
        let span = taken.try_recv().unwrap();
        assert_eq!(
            (span.name.as_str(), span.kind),
            ("process orders", Kind::Consumer)
        );
    }
}
