//! Tapping: whoever listens gets each attempt, with the request as it was sent and its answer.
//!
//! While nobody listens this costs an attempt the look at one number. Who listens has a queue of his
//! own: where he is too slow, what it does not take is dropped and counted, and he is told how much
//! that was. Deliveries never wait for him. Credentials are masked before anything gets into a queue:
//! authorization, what the config gives for headers and templates, secrets, and of URLs all after
//! the host. Signatures are shown, since they are what people look for.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION, SET_COOKIE};
use http::{HeaderName, HeaderValue};
use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::excerpt;
use super::target::Target;
use crate::attempt::Attempt;
use crate::deliver::{Seen, SeenAnswer};
use crate::delivery::Delivery;
use crate::journal::{self, Entry, Exchange, Query, Then};
use crate::outgoing::Outgoing;
use crate::subscription::{Auth, Endpoint};

/// Who may listen at once.
const LISTENERS: usize = 16;
/// Those of one tenant.
const OF_TENANT: usize = 4;
/// Exchanges that wait for one of them, of up to 80 KiB each.
const WAITING: usize = 64;
const MASK: &str = "***";
/// Shorter secrets are found in any text.
const SHORTEST: usize = 6;

/// What is listened for.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub query: Query,
    /// Attempts only, without what went over the wire.
    pub without_exchanges: bool,
}

/// An attempt, and what went over the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Exchange)]
pub struct Tapped {
    pub attempt: Entry,
    /// `None` where no request could be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Shown>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<ShownAnswer>,
}

/// A request as it was sent, with what is secret masked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = SentRequest)]
pub struct Shown {
    /// Scheme, host and port.
    pub url: String,
    #[serde(flatten)]
    pub exchange: Exchange,
}

/// The start of an answer, with what is secret masked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Answer)]
pub struct ShownAnswer {
    pub version: String,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// Up to 16 KiB of it.
    pub body: String,
}

/// Where attempts are listened to. Cloning shares it.
#[derive(Clone)]
pub struct Taps(Arc<Shared>);

struct Shared {
    instance: Arc<str>,
    listening: AtomicUsize,
    listeners: RwLock<Vec<Arc<Listener>>>,
    closed: CancellationToken,
    lost: Counter,
}

struct Listener {
    filter: Filter,
    sink: mpsc::Sender<Arc<Tapped>>,
    lost: AtomicU64,
}

/// One who listens, until it is dropped.
pub struct Tap {
    shared: Arc<Shared>,
    listener: Arc<Listener>,
    taken: mpsc::Receiver<Arc<Tapped>>,
}

/// What a listener gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    Attempt(Arc<Tapped>),
    /// So many since the last time were dropped, since he was too slow.
    Lost(u64),
}

impl Taps {
    /// `lost` counts what listeners were too slow for.
    pub fn new(instance: Arc<str>, lost: Counter) -> Self {
        Self(Arc::new(Shared {
            instance,
            listening: AtomicUsize::new(0),
            listeners: RwLock::default(),
            closed: CancellationToken::new(),
            lost,
        }))
    }

    /// Listens from now on; `None` when there are too many who do.
    pub fn listen(&self, filter: Filter) -> Option<Tap> {
        let (sink, taken) = mpsc::channel(WAITING);
        let listener = Arc::new(Listener {
            filter,
            sink,
            lost: AtomicU64::new(0),
        });
        let mut listeners = write(&self.0);
        let tenant = &listener.filter.query.tenant;
        let same = |other: &&Arc<Listener>| other.filter.query.tenant == *tenant;
        let is_crowd = tenant.is_some() && listeners.iter().filter(same).count() >= OF_TENANT;
        if listeners.len() >= LISTENERS || is_crowd {
            return None;
        }
        listeners.push(listener.clone());
        self.0.listening.store(listeners.len(), Ordering::Release);
        drop(listeners);
        Some(Tap {
            shared: self.0.clone(),
            listener,
            taken,
        })
    }

    /// Ends all listening.
    pub fn close(&self) {
        self.0.closed.cancel();
    }

    /// A place for what goes over the wire for `delivery`, if somebody may want to know.
    pub(super) fn wanted(&self, delivery: &Delivery) -> Option<Box<Seen>> {
        if self.0.listening.load(Ordering::Acquire) == 0 {
            return None;
        }
        let wants = |listener: &Arc<Listener>| may_want(&listener.filter.query, delivery);
        read(&self.0).iter().any(wants).then(Box::default)
    }

    /// Tells whoever wants to know of an attempt.
    pub(super) fn tell(
        &self,
        delivery: &Delivery,
        target: &Target,
        attempt: &Attempt,
        then: Then,
        seen: &Seen,
    ) {
        let (shown, instance) = (&target.endpoint_shown, &self.0.instance);
        let Some(entry) = journal::entry_of(delivery, shown, attempt, then, instance) else {
            return;
        };
        let endpoint = &target.subscription.endpoint;
        let (mut whole, mut short) = (None, None);
        for listener in read(&self.0).iter() {
            let Filter {
                query,
                without_exchanges,
            } = &listener.filter;
            if !query.holds(&entry) {
                continue;
            }
            // Before anything is made for him, which for a batch would be made for each member.
            let Ok(place) = listener.sink.try_reserve() else {
                listener.lost.fetch_add(1, Ordering::Relaxed);
                self.0.lost.inc();
                continue;
            };
            let tapped = match without_exchanges {
                true => short.get_or_insert_with(|| {
                    Arc::new(Tapped {
                        attempt: entry.clone(),
                        request: None,
                        response: None,
                    })
                }),
                false => whole
                    .get_or_insert_with(|| Arc::new(tapped(entry.clone(), endpoint, shown, seen))),
            };
            place.send(tapped.clone());
        }
    }

    /// What a listener would be told of an attempt.
    pub(super) fn shown(
        &self,
        delivery: &Delivery,
        target: &Target,
        attempt: &Attempt,
        then: Then,
        seen: &Seen,
    ) -> Option<Tapped> {
        let (shown, instance) = (&target.endpoint_shown, &self.0.instance);
        let entry = journal::entry_of(delivery, shown, attempt, then, instance)?;
        Some(tapped(entry, &target.subscription.endpoint, shown, seen))
    }
}

fn tapped(entry: Entry, endpoint: &Endpoint, shown: &str, seen: &Seen) -> Tapped {
    let (sent, answer) = (seen.sent.as_ref(), seen.answer.as_ref());
    Tapped {
        attempt: entry,
        request: sent.map(|sent| request(sent, endpoint, shown)),
        response: answer.map(|answer| self::answer(answer, endpoint)),
    }
}

impl Tap {
    /// What comes next; `None` when the bridge ends.
    pub async fn next(&mut self) -> Option<Heard> {
        let lost = self.listener.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            return Some(Heard::Lost(lost));
        }
        tokio::select! {
            // What is there already is still told.
            biased;
            tapped = self.taken.recv() => tapped.map(Heard::Attempt),
            () = self.shared.closed.cancelled() => None,
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let mut listeners = write(&self.shared);
        listeners.retain(|other| !Arc::ptr_eq(other, &self.listener));
        let left = listeners.len();
        self.shared.listening.store(left, Ordering::Release);
    }
}

fn read(shared: &Shared) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Listener>>> {
    let listeners = shared.listeners.read();
    listeners.unwrap_or_else(PoisonError::into_inner)
}

fn write(shared: &Shared) -> std::sync::RwLockWriteGuard<'_, Vec<Arc<Listener>>> {
    let listeners = shared.listeners.write();
    listeners.unwrap_or_else(PoisonError::into_inner)
}

/// Before the attempt is made: as far as it can be known.
fn may_want(query: &Query, delivery: &Delivery) -> bool {
    let same = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|it| it == is);
    let event = &delivery.event;
    let id = &query.id;
    (same(id, event.id.as_str()) || same(id, delivery.id.as_str()))
        && same(&query.subscription, &delivery.subscription)
        && same(
            &query.tenant,
            delivery.tenant.as_deref().unwrap_or_default(),
        )
        && same(&query.kind, &event.kind)
        && same(&query.topic, &event.topic)
}

fn request(sent: &Outgoing, endpoint: &Endpoint, shown: &str) -> Shown {
    let given = endpoint.headers.as_deref();
    let headers = sent.headers.iter().map(|(name, value)| {
        let is_given = given.is_some_and(|given| given.contains_key(name));
        let value = match is_given || is_credential(name, value) {
            true => MASK.to_owned(),
            false => {
                let mut text = String::from_utf8_lossy(value.as_bytes()).into_owned();
                excerpt::masked(&mut text, endpoint);
                without_secrets(&mut text, endpoint);
                text
            }
        };
        (name.to_string(), value)
    });
    let mut headers: Vec<_> = headers.collect();
    if let Some(Auth::OAuth2(_)) = endpoint.auth.as_deref() {
        headers.push((AUTHORIZATION.to_string(), MASK.to_owned()));
    }
    let body = excerpt::without_params(&sent.body, endpoint);
    Shown {
        url: format!("{shown}/{MASK}"),
        exchange: Exchange::new(sent.method.as_str(), headers, &body),
    }
}

fn answer(answer: &SeenAnswer, endpoint: &Endpoint) -> ShownAnswer {
    let plain = |text: &str| {
        let mut text = text.to_owned();
        excerpt::masked(&mut text, endpoint);
        without_secrets(&mut text, endpoint);
        text
    };
    let headers = answer.headers.iter().map(|(name, value)| {
        let value = match *name == SET_COOKIE.as_str() {
            true => MASK.to_owned(),
            false => plain(value),
        };
        (name.clone(), value)
    });
    ShownAnswer {
        version: answer.version.clone(),
        status: answer.status,
        headers: headers.collect(),
        body: plain(&answer.body),
    }
}

fn is_credential(name: &HeaderName, value: &HeaderValue) -> bool {
    value.is_sensitive() || [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE].contains(name)
}

/// What signs, in case that it is sent.
fn without_secrets(text: &mut String, endpoint: &Endpoint) {
    for secret in &endpoint.secrets {
        let secret = secret.expose();
        if secret.len() >= SHORTEST && text.contains(secret) {
            *text = text.replace(secret, MASK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taps() -> Taps {
        Taps::new("i".into(), Counter::default())
    }

    #[tokio::test]
    async fn there_are_so_many_listeners_and_places_are_given_back() {
        let taps = taps();
        let mut all: Vec<_> = (0..LISTENERS)
            .map(|_| taps.listen(Filter::default()).unwrap())
            .collect();
        assert!(taps.listen(Filter::default()).is_none());
        all.pop();
        assert!(taps.listen(Filter::default()).is_some());
        drop(all);
        assert_eq!(taps.0.listening.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn what_was_lost_is_told_and_the_end_is_told() {
        let taps = taps();
        let mut tap = taps.listen(Filter::default()).unwrap();
        tap.listener.lost.store(3, Ordering::Relaxed);
        assert_eq!(tap.next().await, Some(Heard::Lost(3)));
        taps.close();
        assert_eq!(tap.next().await, None);
    }
}
