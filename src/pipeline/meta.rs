//! Meta-events: what the bridge has to say of endpoints, dead letters and brokers, as events of the
//! built-in source [`META_SOURCE`], for the subscriptions that name it.
//!
//! Whoever notices something leaves a notice in a bounded queue and goes on; [`tell`] makes an event
//! of it, and a delivery for each subscription that is to be told. Those are parked on a broker at
//! once, where one works, and come back from there as any other delivery. What is lost before that is
//! counted; what it was about is in the log.
//!
//! They cannot loop: nothing that a meta-event's own delivery causes makes a meta-event, so that each
//! one stands for an ordinary delivery, or for a broker.

mod brokers;
mod failing;
mod letters;
mod notice;
mod tell;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::failing::{Change, Failing};
use self::letters::Gathered;
pub(super) use self::notice::Cause;
use self::notice::Notice;
pub(super) use self::tell::Desk;
use crate::deliver::lane::Gate;
use crate::delivery::{Delivery, Reason};
use crate::event::Event;
use crate::store::DisabledBecause;
use crate::subscription::META_SOURCE;

/// Notices that wait to be made events; more are lost.
const WAITING: usize = 1_024;

/// What is noticed, and what is known of it. Cloning shares it.
#[derive(Clone)]
pub struct Meta(Arc<Shared>);

struct Shared {
    instance: Arc<str>,
    told: Counter,
    lost: Counter,
    notices: mpsc::Sender<Notice>,
    taken: Mutex<Option<mpsc::Receiver<Notice>>>,
    /// Some endpoint is known to fail.
    some_fail: AtomicBool,
    failing: Mutex<Failing>,
    letters: Mutex<Gathered>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether it is one of these.
pub(super) fn is_meta(event: &Event) -> bool {
    *event.source == *META_SOURCE
}

impl Meta {
    /// `told` counts the events that were made, `lost` what was not told or got lost.
    pub fn new(instance: Arc<str>, told: Counter, lost: Counter) -> Self {
        let (notices, taken) = mpsc::channel(WAITING);
        Self(Arc::new(Shared {
            instance,
            told,
            lost,
            notices,
            taken: Mutex::new(Some(taken)),
            some_fail: AtomicBool::new(false),
            failing: Mutex::default(),
            letters: Mutex::default(),
        }))
    }

    /// After an answer to the delivery of `event`: how the breaker of `endpoint` stands.
    pub(super) fn answered(
        &self,
        event: &Event,
        endpoint: &str,
        gate: Gate,
        cause: impl FnOnce() -> Cause,
    ) {
        let shut = match gate {
            Gate::Shut { .. } => true,
            Gate::Open { .. } if self.0.some_fail.load(Ordering::Acquire) => false,
            Gate::Open { .. } | Gate::Probing => return,
        };
        if is_meta(event) {
            return;
        }
        let change = self.with_failing(|failing| match shut {
            true => failing.fails(cause(), Instant::now()),
            false => failing.works(endpoint),
        });
        match change {
            Change::Nothing => {}
            Change::Tell(notice) => {
                if !self.note(notice) && shut {
                    self.with_failing(|failing| failing.was_not_told(endpoint));
                }
            }
            Change::NoRoom => self.lose(1),
        }
    }

    /// After an answer to the delivery of `event`: its endpoint gets nothing any more until somebody
    /// enables it.
    pub(super) fn disabled(
        &self,
        event: &Event,
        because: DisabledBecause,
        cause: impl FnOnce() -> Cause,
    ) {
        if !is_meta(event) {
            self.note(Notice::disabled(&cause(), because));
        }
    }

    /// A broker keeps a dead letter.
    pub(super) fn buried(&self, delivery: &Delivery, reason: Reason) {
        let is_room =
            is_meta(&delivery.event) || lock(&self.0.letters).add(delivery, reason, Instant::now());
        if !is_room {
            self.lose(1);
        }
    }

    fn with_failing<T>(&self, then: impl FnOnce(&mut Failing) -> T) -> T {
        let mut failing = lock(&self.0.failing);
        let made = then(&mut failing);
        let some_fail = !failing.is_empty();
        self.0.some_fail.store(some_fail, Ordering::Release);
        made
    }

    /// `false`: it is lost.
    fn note(&self, notice: Notice) -> bool {
        let is_noted = self.0.notices.try_send(notice).is_ok();
        if !is_noted {
            self.lose(1);
        }
        is_noted
    }

    fn lose(&self, count: u64) {
        self.0.lost.inc_by(count);
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::notice::{DISABLED, FAILING, RECOVERED, cause};
    use super::*;

    const SHUT: fn() -> Gate = || Gate::Shut {
        until: Instant::now(),
    };

    fn kinds(taken: &mut mpsc::Receiver<Notice>) -> Vec<&'static str> {
        std::iter::from_fn(|| taken.try_recv().ok())
            .map(|notice| notice.kind)
            .collect()
    }

    fn meta() -> (Meta, mpsc::Receiver<Notice>) {
        let meta = Meta::new("one".into(), Counter::default(), Counter::default());
        let taken = lock(&meta.0.taken).take().unwrap();
        (meta, taken)
    }

    /// A meta-event, and one that is none.
    fn events() -> (Event, Event) {
        let own = Notice::up(&"rabbit".into(), Timestamp::UNIX_EPOCH).event("one");
        let other = Event {
            source: "orders".into(),
            ..own.clone()
        };
        (own, other)
    }

    #[test]
    fn what_a_meta_event_causes_is_not_told() {
        let (meta, mut taken) = meta();
        let (own, other) = events();
        for (event, told) in [(own, &[][..]), (other, &[FAILING, DISABLED, RECOVERED][..])] {
            meta.answered(&event, "crm", SHUT(), || cause("crm"));
            meta.answered(&event, "crm", SHUT(), || cause("crm"));
            meta.answered(&event, "crm", Gate::Probing, || cause("crm"));
            meta.disabled(&event, DisabledBecause::Gone, || cause("crm"));
            meta.answered(&event, "crm", Gate::Open { failures: 0 }, || cause("crm"));
            assert_eq!(kinds(&mut taken), told);
            let uid = crate::subscription::Uid::of_config("crm");
            let delivery = Delivery::first(Arc::new(event), "crm".into(), uid, Timestamp::now());
            meta.buried(&delivery, Reason::GaveUp);
            let later = Instant::now() + std::time::Duration::from_secs(60);
            let due = lock(&meta.0.letters).due(later, 10);
            assert_eq!(due.is_empty(), told.is_empty());
        }
    }

    #[test]
    fn what_the_queue_has_no_room_for_is_counted() {
        let (meta, mut taken) = meta();
        let (_, other) = events();
        for _ in 0..WAITING + 7 {
            meta.disabled(&other, DisabledBecause::Asked, || cause("crm"));
        }
        assert_eq!(meta.0.lost.get(), 7);
        assert_eq!(kinds(&mut taken).len(), WAITING);
    }

    #[test]
    fn an_event_says_whom_it_is_about_and_nothing_secret() {
        let event = Notice::failing(&cause("crm")).event("one");
        let body: serde_json::Value = serde_json::from_slice(&event.body).unwrap();
        for (member, value) in [
            ("type", FAILING),
            ("id", event.id.as_str()),
            ("subject", "crm"),
            ("instance", "one"),
            ("tenant", "acme"),
            ("endpoint", "crm"),
            ("url", "https://crm.example.com"),
            ("uid", "config:crm"),
            ("result", "503"),
        ] {
            assert_eq!(body[member], value, "{member}");
        }
        assert_eq!(event.published_at.unwrap().to_string(), body["time"]);
    }
}
