//! Keepers: the brokers where deliveries wait and end, and what happens while one refuses.
//!
//! A delivery that its broker does not confirm stays ours. As long as there is one, the intakes
//! that would bring more for this broker are paused, a gauge is 1 and the log says why.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info};

use super::meta::Meta;
use super::sources::Gauges;
use crate::broker::{Broker, Refused, Wait};
use crate::delivery::{Delivery, Reason, WaitKind};
use crate::journal::Journal;

/// Between two tries to have the same delivery kept.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// A broker that is full refuses and keeps in turns; the log says so no more often than this.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// A broker that keeps deliveries.
pub struct Keeper {
    pub broker: Arc<dyn Broker>,
    refusing: AtomicUsize,
    said: Mutex<Said>,
    /// Nobody can be reached from here, so nothing more is to be taken.
    held_back: AtomicBool,
    pause: watch::Sender<bool>,
    /// Of the sources whose deliveries are kept here.
    pub gauges: Gauges,
    refusals: Counter,
    journal: Journal,
    meta: Meta,
}

/// What the log says of a broker that refuses.
#[derive(Default)]
struct Said {
    last: Option<Instant>,
    refuses: bool,
}

impl Said {
    /// It has refused at `now`: whether to say so.
    fn refused(&mut self, now: Instant) -> bool {
        let is_late = |last| now.duration_since(last) >= SAID_EVERY;
        if self.refuses || !self.last.is_none_or(is_late) {
            return false;
        }
        (self.last, self.refuses) = (Some(now), true);
        true
    }

    /// It has kept all that it had refused: whether to say so.
    fn kept(&mut self) -> bool {
        std::mem::take(&mut self.refuses)
    }
}

/// Where a delivery is that was to be parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    Parked,
    /// Still in hand, and it fits on no tier.
    TooLarge,
    /// Still in hand.
    Not,
}

impl Keeper {
    pub fn new(
        broker: Arc<dyn Broker>,
        pause: watch::Sender<bool>,
        refusals: Counter,
        journal: Journal,
        meta: Meta,
    ) -> Self {
        Self {
            broker,
            refusing: AtomicUsize::new(0),
            said: Mutex::default(),
            held_back: AtomicBool::new(false),
            pause,
            gauges: Gauges::default(),
            refusals,
            journal,
            meta,
        }
    }

    /// The broker refused one delivery; intake is paused until what this returns is dropped.
    fn refused(self: &Arc<Self>) -> Refusal<'_> {
        if self.refusing.fetch_add(1, Ordering::AcqRel) == 0 {
            self.pause_or_not();
            self.gauges.set(1);
        }
        Refusal(self)
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Holds intake back, or no longer, whatever the broker confirms.
    pub fn hold_back(&self, hold: bool) {
        self.held_back.store(hold, Ordering::Release);
        self.pause_or_not();
    }

    /// Two causes, one pause: both are read under the lock of the channel, so that whoever comes
    /// last writes what holds.
    fn pause_or_not(&self) {
        self.pause.send_if_modified(|paused| {
            let refusing = self.refusing.load(Ordering::Acquire) > 0;
            let wanted = refusing || self.held_back.load(Ordering::Acquire);
            std::mem::replace(paused, wanted) != wanted
        });
    }

    /// Dead-letters `delivery`, trying until the broker has confirmed.
    pub async fn dead_letter(self: &Arc<Self>, delivery: &Delivery, reason: Reason) {
        let mut refusal = None;
        let mut backoff = FIRST_BACKOFF;
        while let Err(why) = self.broker.dead_letter(delivery, reason).await {
            self.note(&mut refusal, delivery, &why);
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
        self.journal.dead(delivery, reason, self.broker.name());
        self.meta.buried(delivery, reason);
    }

    /// Parks `delivery` as a hold, trying until the broker has confirmed.
    pub async fn hold(self: &Arc<Self>, delivery: &Delivery, delay: Duration) {
        let wait = Wait {
            kind: WaitKind::Hold,
            delay,
        };
        // Without a limit in time it is never given back for being refused.
        if self.park(delivery, wait, None).await == Kept::TooLarge {
            self.dead_letter(delivery, Reason::Unparkable).await;
        }
    }

    /// Parks `delivery`, trying until the broker has confirmed or `patience` is over. What is too
    /// large will never fit, and only the dead letters can keep some of it.
    pub async fn park(
        self: &Arc<Self>,
        delivery: &Delivery,
        wait: Wait,
        patience: Option<Duration>,
    ) -> Kept {
        let since = Instant::now();
        let mut refusal = None;
        let mut backoff = FIRST_BACKOFF;
        loop {
            let rest = wait.delay.saturating_sub(since.elapsed());
            let why = match self
                .broker
                .park(
                    delivery,
                    Wait {
                        delay: rest,
                        ..wait
                    },
                )
                .await
            {
                Ok(()) => {
                    let until = Timestamp::now().checked_add(rest).unwrap_or(Timestamp::MAX);
                    self.journal
                        .parked(delivery, wait.kind, until, self.broker.name());
                    return Kept::Parked;
                }
                Err(Refused::TooLarge { .. }) => return Kept::TooLarge,
                Err(why) => why,
            };
            self.note(&mut refusal, delivery, &why);
            if patience.is_some_and(|patience| since.elapsed() >= patience) {
                return Kept::Not;
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    fn note<'a>(
        self: &'a Arc<Self>,
        refusal: &mut Option<Refusal<'a>>,
        delivery: &Delivery,
        why: &Refused,
    ) {
        debug!(delivery = %delivery.id, %why, "not kept, trying again");
        self.refusals.inc();
        if self.said().refused(Instant::now()) {
            error!(broker = %self.broker.name(), %why, "the broker does not keep what we park or dead-letter; intake is paused until it does");
        }
        refusal.get_or_insert_with(|| self.refused());
    }
}

/// A delivery that its broker has refused and that we still hold.
struct Refusal<'a>(&'a Arc<Keeper>);

impl Drop for Refusal<'_> {
    fn drop(&mut self) {
        if self.0.refusing.fetch_sub(1, Ordering::AcqRel) == 1 {
            if self.0.said().kept() {
                info!(broker = %self.0.broker.name(), "the broker keeps our deliveries again; intake goes on");
            }
            self.0.pause_or_not();
            self.0.gauges.set(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In tenths of a second, when the log says that it refuses, and that it keeps all again.
    fn said(refusing: impl Fn(u64) -> bool) -> (Vec<u64>, Vec<u64>) {
        let (mut said, began) = (Said::default(), Instant::now());
        let (mut refuses, mut keeps) = (Vec::new(), Vec::new());
        for tenth in 0..300 {
            let now = began + Duration::from_millis(100 * tenth);
            match refusing(tenth) {
                true if said.refused(now) => refuses.push(tenth),
                false if said.kept() => keeps.push(tenth),
                _ => (),
            }
        }
        (refuses, keeps)
    }

    #[test]
    fn a_broker_that_refuses_and_keeps_in_turns_does_not_flood_the_log() {
        let (refuses, keeps) = said(|tenth| tenth.is_multiple_of(2));
        assert_eq!(refuses, [0, 100, 200]);
        assert_eq!(keeps, [1, 101, 201]);
    }

    #[test]
    fn a_refusal_that_lasts_is_said_however_soon_it_follows_another() {
        let (refuses, keeps) = said(|tenth| matches!(tenth, 0 | 2..=250));
        assert_eq!(refuses, [0, 100]);
        assert_eq!(keeps, [1, 251]);
    }
}
