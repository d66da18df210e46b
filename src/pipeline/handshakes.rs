//! Handshakes: endpoints that have to agree before they get anything.
//!
//! Each is asked when its config is taken over, and again with growing pauses until it agrees; in the
//! meantime its deliveries are held on the broker, as those of a paused subscription are, and no attempt
//! is counted. An agreement is kept in the store with what it holds for, so that a restart asks nobody
//! and a changed URL asks anew. What is asked and what counts as yes is the courier's.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{Pipeline, Target};
use crate::deliver::{Agreed, NotAgreed};
use crate::store::Agreement;
use crate::subscription::{Endpoint, Rate, Uid};

/// The first pause; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Endpoints asked at once.
const AT_ONCE: usize = 8;
/// What is held comes back so long after the endpoint is asked again.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
const NEVER: Duration = Duration::from_secs(3600);

/// All endpoints with a handshake, by name.
#[derive(Default)]
pub struct Handshakes {
    all: Mutex<BTreeMap<Arc<str>, Arc<Handshaking>>>,
    changed: Notify,
}

/// One endpoint's.
pub struct Handshaking {
    agreed: AtomicBool,
    state: Mutex<State>,
    /// Held while it is asked.
    turn: tokio::sync::Mutex<()>,
}

struct State {
    endpoint: Arc<Endpoint>,
    /// What an agreement holds for.
    key: String,
    agreement: Option<Agreement>,
    /// Times that it was asked in vain since it last agreed.
    refusals: u32,
    why: Option<String>,
    /// When it is asked next.
    next: Instant,
    /// Somebody is about to ask.
    is_taken: bool,
}

/// What an operator is told of a handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = Handshake)]
pub struct HandshakeStatus {
    /// `options`, `challenge` or `hook-secret`.
    pub kind: &'static str,
    /// Since when the endpoint agrees; nothing while it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreed_at: Option<Timestamp>,
    /// The rate that it allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_rate: Option<String>,
    /// Why it has not agreed, once it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Handshaking {
    fn new(endpoint: Arc<Endpoint>, key: String, agreement: Option<Agreement>) -> Self {
        Self {
            agreed: AtomicBool::new(agreement.is_some()),
            state: Mutex::new(State {
                endpoint,
                key,
                agreement,
                refusals: 0,
                why: None,
                next: Instant::now(),
                is_taken: false,
            }),
            turn: tokio::sync::Mutex::default(),
        }
    }

    pub fn is_agreed(&self) -> bool {
        self.agreed.load(Ordering::Relaxed)
    }

    /// The most that the endpoint takes, by its own word.
    pub fn allowed(&self) -> Option<Rate> {
        let state = self.lock();
        state.agreement.as_ref().and_then(rate_of)
    }

    /// How long to hold what comes now: until it is known whether the endpoint agrees when it is asked
    /// again.
    pub fn hold(&self) -> Duration {
        let next = self.lock().next;
        next.saturating_duration_since(Instant::now()) + ANSWER_WITHIN
    }

    pub fn status(&self) -> HandshakeStatus {
        let state = self.lock();
        let agreement = state.agreement.as_ref();
        HandshakeStatus {
            kind: state.kind(),
            agreed_at: agreement.map(|agreement| agreement.at),
            allowed_rate: agreement.and_then(rate_of).map(|rate| rate.to_string()),
            why: state.why.clone(),
        }
    }

    /// Whether it is to be asked now; who hears yes does so.
    fn take(&self, now: Instant) -> bool {
        let mut state = self.lock();
        let is_due = state.agreement.is_none() && !state.is_taken && state.next <= now;
        state.is_taken |= is_due;
        is_due
    }

    /// When it is to be asked, if it is.
    fn next(&self) -> Option<Instant> {
        let state = self.lock();
        (state.agreement.is_none() && !state.is_taken).then_some(state.next)
    }

    fn agree(&self, agreement: Agreement) {
        let mut state = self.lock();
        state.agreement = Some(agreement);
        (state.refusals, state.why) = (0, None);
        self.agreed.store(true, Ordering::Relaxed);
    }

    /// Notes a refusal; the pause until it is asked again.
    fn refuse(&self, not: &NotAgreed) -> Duration {
        let mut state = self.lock();
        state.agreement = None;
        let doubled = FIRST_PAUSE.saturating_mul(1 << state.refusals.min(16));
        let pause = doubled.min(LONGEST_PAUSE);
        state.refusals += 1;
        state.why = Some(format!("{} ({})", not.why, not.advice));
        state.next = Instant::now() + pause;
        self.agreed.store(false, Ordering::Relaxed);
        pause
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn kind(&self) -> &'static str {
        let handshake = self.endpoint.handshake.as_ref();
        handshake.map_or("none", |handshake| handshake.name())
    }
}

fn rate_of(agreement: &Agreement) -> Option<Rate> {
    let count = agreement.per_minute.filter(|count| *count > 0)?;
    let per = Duration::from_secs(60);
    Some(Rate { count, per })
}

impl Handshakes {
    /// The handshake of `endpoint`, if it has one: the one that is known as long as what it is bound to
    /// has not changed. `kept` is asked for the agreement of an endpoint that is new here.
    pub fn of(
        &self,
        endpoint: &Arc<Endpoint>,
        kept: impl FnOnce() -> Option<Agreement>,
    ) -> Option<Arc<Handshaking>> {
        let key = endpoint.agreement_key()?;
        let mut all = self.lock();
        if let Some(known) = all.get(&endpoint.name) {
            let mut state = known.lock();
            if state.key == key {
                state.endpoint = endpoint.clone();
                drop(state);
                return Some(known.clone());
            }
        }
        let agreement = kept().filter(|agreement| agreement.key == key);
        let new = Arc::new(Handshaking::new(endpoint.clone(), key, agreement));
        all.insert(endpoint.name.clone(), new.clone());
        Some(new)
    }

    /// Forgets all but those `in_use`, and has the others asked if they have to be.
    pub fn keep(&self, in_use: impl Fn(&str) -> bool) {
        self.lock().retain(|name, _| in_use(name));
        self.changed.notify_one();
    }

    /// Those that have not agreed, by name.
    pub fn awaited(&self) -> Vec<Arc<str>> {
        let all = self.lock();
        let awaited = all.iter().filter(|(_, one)| !one.is_agreed());
        awaited.map(|(name, _)| name.clone()).collect()
    }

    /// At most `room` that are to be asked now, and when the next one is.
    fn due(&self, now: Instant, room: usize) -> (Vec<Arc<Handshaking>>, Option<Instant>) {
        let all = self.lock();
        let due = all.values().filter(|one| one.take(now));
        let due: Vec<_> = due.take(room).cloned().collect();
        (due, all.values().filter_map(|one| one.next()).min())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Arc<Handshaking>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pipeline {
    /// Asks endpoints that have to agree, when they are due, for ever.
    pub async fn shake_hands(self: Arc<Self>) {
        let mut asking = JoinSet::new();
        loop {
            let room = AT_ONCE - asking.len();
            let (due, next) = self.handshakes.due(Instant::now(), room);
            for one in due {
                let pipeline = self.clone();
                asking.spawn(async move { pipeline.ask(&one, false).await });
            }
            // With no room left the next one waits for an answer.
            let next = next.filter(|_| asking.len() < AT_ONCE);
            let next = next.unwrap_or_else(|| Instant::now() + NEVER);
            tokio::select! {
                () = self.handshakes.changed.notified() => {}
                Some(_) = asking.join_next(), if !asking.is_empty() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Asks the endpoint of a subscription now, whether it has agreed or not. `None`: there is no such
    /// subscription; `false`: its endpoint is not to be asked.
    pub async fn verify(&self, subscription: &str) -> Option<bool> {
        let target = self.routes.load().by_name(subscription).cloned()?;
        let Some(handshake) = &target.handshake else {
            return Some(false);
        };
        self.ask(handshake, true).await;
        self.handshakes.changed.notify_one();
        Some(true)
    }

    /// The endpoints whose deliveries are held until they agree.
    pub fn unverified(&self) -> Vec<Arc<str>> {
        self.handshakes.awaited()
    }

    /// Asks once. Unless it is `forced`, somebody who has agreed meanwhile is left alone.
    async fn ask(&self, one: &Arc<Handshaking>, forced: bool) {
        let _turn = one.turn.lock().await;
        let _taken = Taken(one);
        if one.is_agreed() && !forced {
            return;
        }
        let (endpoint, key, kind, before) = {
            let state = one.lock();
            let before = state.agreement.is_some();
            (
                state.endpoint.clone(),
                state.key.clone(),
                state.kind(),
                before,
            )
        };
        let shown = endpoint.shown();
        let name = &endpoint.name;
        let stored = match self.courier.shake_hands(&endpoint).await {
            Ok(Agreed { rate }) => {
                let agreement = Agreement {
                    key,
                    at: Timestamp::now(),
                    per_minute: rate.map(|rate| rate.count),
                };
                // Stored first, so that nobody sees what a crash would take back.
                let stored = self.keep_agreement(name, Some(agreement.clone())).await;
                one.agree(agreement);
                let allowed = rate.map_or("any".to_owned(), |rate| rate.to_string());
                info!(endpoint = %name, kind, url = %shown, %allowed, "the endpoint agrees to get deliveries");
                stored
            }
            Err(not) => {
                let pause = one.refuse(&not);
                warn!(endpoint = %name, kind, url = %shown, why = %not.why, advice = not.advice, asked_again_s = pause.as_secs(), "the endpoint has not agreed to get deliveries: they are held");
                match before {
                    true => self.keep_agreement(name, None).await,
                    false => Ok(()),
                }
            }
        };
        if let Err(error) = stored {
            // In memory it holds; after a restart the endpoint is asked once more.
            error!(endpoint = %name, %error, "the endpoint's agreement cannot be stored");
        }
        self.note_handshake(name);
    }

    async fn keep_agreement(
        &self,
        endpoint: &str,
        agreement: Option<Agreement>,
    ) -> Result<(), crate::store::StoreError> {
        let change = move |standing: &mut crate::store::EndpointStanding| {
            standing.agreed = agreement;
        };
        self.store.change_endpoint_standing(endpoint, change).await
    }

    /// Has lane and gauges follow what the handshake of `endpoint` says now.
    fn note_handshake(&self, endpoint: &str) {
        let routes = self.routes.load();
        let note = |target: &Arc<Target>| {
            // One that sends nothing has no say in it.
            if target.handshake.is_none() {
                return;
            }
            self.lanes.update(&target.subscription, target.allowed());
            target.meters.unverified.set(target.is_unverified().into());
        };
        // One that is written in a subscription has its uid for a name, and is no other's.
        if let Some(target) = routes.by_uid(&Uid::from_stored(endpoint)) {
            return note(target);
        }
        let is_of_it = |target: &&Arc<Target>| *target.subscription.endpoint.name == *endpoint;
        routes.iter().filter(is_of_it).for_each(note);
    }
}

/// Gives the turn to ask back, also after a panic.
struct Taken<'a>(&'a Handshaking);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.lock().is_taken = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscription::{Handshake, Secret};

    fn endpoint(url: &str, secret: &str) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            name: "crm".into(),
            url: Arc::new(url.parse().unwrap()),
            method: http::Method::POST,
            headers: None,
            signature: Default::default(),
            secrets: vec![Secret::new(secret)],
            payload: Default::default(),
            auth: None,
            handshake: Some(Box::new(Handshake::HookSecret)),
            tls: None,
            concurrency: 1,
            adaptive: false,
            rate: None,
            breaker: Default::default(),
        })
    }

    fn agreement(endpoint: &Endpoint) -> Agreement {
        Agreement {
            key: endpoint.agreement_key().unwrap(),
            at: Timestamp::UNIX_EPOCH,
            per_minute: Some(6),
        }
    }

    #[test]
    fn an_agreement_holds_for_the_url_and_the_secret_that_it_was_made_with() {
        let handshakes = Handshakes::default();
        let first = endpoint("https://a.example.com/1", "one");
        let kept = agreement(&first);
        let of = |endpoint: &Arc<Endpoint>| handshakes.of(endpoint, || Some(kept.clone())).unwrap();
        let known = of(&first);
        assert!(known.is_agreed());
        assert_eq!(known.allowed().unwrap().to_string(), "6/m");
        assert!(Arc::ptr_eq(
            &known,
            &of(&endpoint("https://a.example.com/1", "one"))
        ));
        for other in [
            endpoint("https://a.example.com/2", "one"),
            endpoint("https://a.example.com/1", "two"),
        ] {
            assert!(!of(&other).is_agreed());
        }
        assert_eq!(handshakes.awaited(), ["crm".into()]);
        handshakes.keep(|_| false);
        assert!(handshakes.awaited().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_end_with_an_agreement() {
        let handshakes = Handshakes::default();
        let one = handshakes
            .of(&endpoint("https://a.example.com", "one"), || None)
            .unwrap();
        let refusal = NotAgreed {
            why: "it answered 404".to_owned(),
            advice: "mend it",
            unreachable: false,
        };
        let due = || handshakes.due(Instant::now(), 8).0.len();
        assert_eq!((due(), due()), (1, 0), "one asks at a time");
        drop(Taken(&one));
        let pauses: Vec<_> = (0..12).map(|_| one.refuse(&refusal).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(one.hold(), LONGEST_PAUSE + ANSWER_WITHIN);
        assert_eq!(due(), 0);
        tokio::time::advance(LONGEST_PAUSE).await;
        assert_eq!(due(), 1);
        one.agree(agreement(&endpoint("https://a.example.com", "one")));
        assert_eq!(one.status().why, None);
        assert_eq!(handshakes.due(Instant::now(), 8).1, None);
    }
}
