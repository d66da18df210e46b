//! Windows: how much may be in flight, in messages and in bytes.
//!
//! A slot is taken *before* a message is handed over, so pressure reaches the broker instead of
//! memory. Each source has a window of its own, and so have retries and holds; all share one byte
//! budget. The slot lives in the [`Receipt`](super::Receipt) and is free again when that is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Answer, Receipt, Received, Token};
use crate::delivery::{Delivery, WaitKind};
use crate::event::Event;

/// Bytes of all messages in flight, in units of 1 KiB. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Budget {
    units: Arc<Semaphore>,
    total: Arc<Total>,
}

#[derive(Debug)]
struct Total {
    units: AtomicU32,
    /// It is another one now.
    changed: Notify,
}

impl Budget {
    const UNIT_BYTES: usize = 1024;

    pub fn new(bytes: usize) -> Self {
        let total = Self::total_of(bytes);
        Self {
            units: Arc::new(Semaphore::new(total as usize)),
            total: Arc::new(Total {
                units: AtomicU32::new(total),
                changed: Notify::new(),
            }),
        }
    }

    fn total_of(bytes: usize) -> u32 {
        (bytes / Self::UNIT_BYTES).clamp(1, u32::MAX as usize / 2) as u32
    }

    /// Sets it to so many bytes. More may be taken at once; less holds as soon as messages in flight
    /// have given back what is too much, which a task sees to.
    pub fn resize(&self, bytes: usize) {
        let new = Self::total_of(bytes);
        let old = self.total.units.swap(new, Ordering::AcqRel);
        if new > old {
            self.units.add_permits((new - old) as usize);
        }
        let less = old.saturating_sub(new) as usize;
        let mut owed = less - self.units.forget_permits(less);
        self.total.changed.notify_waiters();
        if owed == 0 {
            return;
        }
        let units = self.units.clone();
        tokio::spawn(async move {
            // A few at a time, so that those that wait have their turn in between.
            while owed > 0 {
                let some = owed.min(64);
                let Ok(given_back) = units.acquire_many(some as u32).await else {
                    return;
                };
                given_back.forget();
                owed -= some;
            }
        });
    }

    fn bytes(&self) -> usize {
        self.total.units.load(Ordering::Acquire) as usize * Self::UNIT_BYTES
    }

    /// A message larger than the whole budget takes all of it, and so goes alone.
    fn units_of(&self, size_bytes: usize) -> u32 {
        let total = self.total.units.load(Ordering::Acquire);
        (size_bytes.div_ceil(Self::UNIT_BYTES).max(1) as u32).min(total)
    }

    fn try_take(&self, size_bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = self.units.clone();
        units.try_acquire_many_owned(self.units_of(size_bytes)).ok()
    }

    async fn take(&self, size_bytes: usize) -> OwnedSemaphorePermit {
        if let Some(taken) = self.try_take(size_bytes) {
            return taken;
        }
        loop {
            // Before the total is looked at, so that no change of it is missed.
            let changed = self.total.changed.notified();
            let units = self.units_of(size_bytes);
            tokio::select! {
                taken = self.units.clone().acquire_many_owned(units) => {
                    return taken.expect("budgets are never closed");
                }
                // What takes all of it waits for another number of units now.
                () = changed => {}
            }
        }
    }
}

/// A bounded number of messages in flight.
#[derive(Debug, Clone)]
pub struct Window {
    slots: Arc<Semaphore>,
    size: usize,
}

impl Window {
    pub fn new(size: usize) -> Self {
        let size = size.max(1);
        Self {
            slots: Arc::new(Semaphore::new(size)),
            size,
        }
    }

    pub fn size(&self) -> usize {
        self.size
    }
}

/// A place in a window, held until the message is settled.
#[derive(Debug)]
pub struct Admission {
    _slot: OwnedSemaphorePermit,
    _units: OwnedSemaphorePermit,
    in_flight: Arc<AtomicUsize>,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The door by which a broker hands messages to the pipeline.
#[derive(Debug, Clone)]
pub struct Intake {
    window: Window,
    budget: Budget,
    paused: watch::Receiver<bool>,
    held: watch::Receiver<bool>,
    shut: watch::Receiver<bool>,
    in_flight: Arc<AtomicUsize>,
    pace: watch::Receiver<usize>,
    closed: CancellationToken,
    hand_over: mpsc::Sender<Received>,
}

/// How full a window is, for whoever looks after its oldest messages.
#[derive(Debug, Clone)]
pub struct Filling {
    in_flight: Arc<AtomicUsize>,
    size: usize,
}

impl Filling {
    pub fn is_half_full(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) * 2 >= self.size
    }

    /// No more messages are taken until one of them is settled.
    pub fn is_full(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) >= self.size
    }

    /// How many messages may be in flight.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Which window it is of.
    pub fn number(&self) -> usize {
        Arc::as_ptr(&self.in_flight).addr()
    }
}

impl Intake {
    /// An intake and the pipeline's end of it. `paused` holds new admissions back while true.
    pub fn new(
        window: Window,
        budget: Budget,
        paused: watch::Receiver<bool>,
    ) -> (Self, mpsc::Receiver<Received>) {
        let (hand_over, taken) = mpsc::channel(window.size());
        (
            Self {
                window,
                budget,
                paused,
                held: watch::channel(false).1,
                shut: watch::channel(false).1,
                in_flight: Arc::default(),
                pace: watch::channel(usize::MAX).1,
                closed: CancellationToken::new(),
                hand_over,
            },
            taken,
        )
    }

    /// The same, where fewer than the window may be asked for at a time for now.
    pub fn paced(self, pace: watch::Receiver<usize>) -> Self {
        Self { pace, ..self }
    }

    /// The same, which admits nothing either while `held` is true: somebody has paused it, maybe for
    /// days.
    pub fn held_by(self, held: watch::Receiver<bool>) -> Self {
        Self { held, ..self }
    }

    /// The same, which admits nothing at all while `shut` is true: the bridge does not know yet what is
    /// to become of it.
    pub fn shut_by(self, shut: watch::Receiver<bool>) -> Self {
        Self { shut, ..self }
    }

    /// Whether somebody has paused it. A broker that keeps what it has handed out waiting for an
    /// answer only so long takes it back meanwhile.
    pub fn held(&self) -> watch::Receiver<bool> {
        self.held.clone()
    }

    /// All that may be in flight, of this intake and of others.
    pub fn budget_bytes(&self) -> usize {
        self.budget.bytes()
    }

    /// How many messages a broker should hand out at a time for now. A broker that counts how often
    /// it has handed a message out, and gives up on it at some number, must not exceed it: after a
    /// crash all that were handed out count one more.
    pub fn pace(&self) -> watch::Receiver<usize> {
        self.pace.clone()
    }

    /// How many messages may be in flight: a broker's prefetch.
    pub fn window_size(&self) -> usize {
        self.window.size()
    }

    pub fn filling(&self) -> Filling {
        Filling {
            in_flight: self.in_flight.clone(),
            size: self.window.size(),
        }
    }

    /// Admits nothing any more. What was handed over before is not touched; whoever empties the intake
    /// decides what becomes of it ([`Intake::closed`]).
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Cancelled when the intake is closed.
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    /// Whether this is a clone of it.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.in_flight, &other.in_flight)
    }

    /// Messages handed over and not yet settled.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Waits for room for a message of `size_bytes`; for ever once it is closed. Cancel-safe: dropped, it
    /// has taken nothing.
    /// A broker that must keep polling its client (Kafka) polls beside this.
    pub async fn admit(&self, size_bytes: usize) -> Admission {
        let (slot, units) = loop {
            let mut paused = self.paused.clone();
            // A closed pause channel means that the pipeline is gone; its intake is then closed too.
            let _ = paused.wait_for(|paused| !paused).await;
            if *self.shut.borrow() {
                let mut shut = self.shut.clone();
                let _ = shut.wait_for(|shut| !shut).await;
            }
            if *self.held.borrow() {
                let mut held = self.held.clone();
                let _ = held.wait_for(|held| !held).await;
            }
            let slots = self.window.slots.clone();
            let slot = slots.acquire_owned().await;
            let slot = slot.expect("windows are never closed");
            let units = self.budget.take(size_bytes).await;
            if self.closed.is_cancelled() {
                drop((slot, units));
                return std::future::pending().await;
            }
            // Somebody may have paused the source while there was no room.
            if !*self.held.borrow() || self.held.has_changed().is_err() {
                break (slot, units);
            }
        };
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Admission {
            _slot: slot,
            _units: units,
            in_flight: self.in_flight.clone(),
        }
    }

    /// Room for a message of `size_bytes` if there is some right now.
    pub fn try_admit(&self, size_bytes: usize) -> Option<Admission> {
        let is_held = || *self.paused.borrow() || *self.held.borrow() || *self.shut.borrow();
        if is_held() || self.closed.is_cancelled() {
            return None;
        }
        let slot = self.window.slots.clone().try_acquire_owned().ok()?;
        let units = self.budget.try_take(size_bytes)?;
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(Admission {
            _slot: slot,
            _units: units,
            in_flight: self.in_flight.clone(),
        })
    }

    /// Hands a fresh event over. Never blocks: the admission is the room for it. When the pipeline
    /// is gone the receipt is dropped, which asks for redelivery.
    pub fn event(&self, event: Event, answer: Arc<dyn Answer>, token: Token, admission: Admission) {
        let receipt = Receipt::new(answer, token, admission);
        let _ = self
            .hand_over
            .try_send(Received::Event(Arc::new(event), receipt));
    }

    /// Hands a fresh event over that the broker has handed out too often, like [`Intake::event`].
    pub fn worn(&self, event: Event, answer: Arc<dyn Answer>, token: Token, admission: Admission) {
        let receipt = Receipt::new(answer, token, admission);
        let _ = self
            .hand_over
            .try_send(Received::Worn(Arc::new(event), receipt));
    }

    /// Hands a due delivery over, like [`Intake::event`].
    pub fn due(
        &self,
        delivery: Delivery,
        kind: WaitKind,
        answer: Arc<dyn Answer>,
        token: Token,
        admission: Admission,
    ) {
        let receipt = Receipt::new(answer, token, admission);
        let _ = self
            .hand_over
            .try_send(Received::Due(delivery, kind, receipt));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn intake(window: usize, bytes: usize) -> (Intake, watch::Sender<bool>) {
        let (pause, paused) = watch::channel(false);
        (
            Intake::new(Window::new(window), Budget::new(bytes), paused).0,
            pause,
        )
    }

    async fn is_full(intake: &Intake, size: usize) -> bool {
        timeout(Duration::from_millis(1), intake.admit(size))
            .await
            .is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_window_admits_again_when_a_place_is_given_back() {
        let (intake, _pause) = intake(1, 1 << 20);
        let held = intake.admit(10).await;
        assert!(is_full(&intake, 10).await);
        drop(held);
        assert!(!is_full(&intake, 10).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_byte_budget_bounds_few_large_messages() {
        let (intake, _pause) = intake(100, 10 * 1024);
        let _held = intake.admit(8 * 1024).await;
        assert!(is_full(&intake, 4 * 1024).await);
        assert!(!is_full(&intake, 1024).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_larger_than_the_budget_goes_alone() {
        let (intake, _pause) = intake(100, 10 * 1024);
        let _held = intake.admit(1 << 30).await;
        assert!(is_full(&intake, 1).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_can_be_made_smaller_and_larger_while_it_is_used() {
        let budget = Budget::new(10 * 1024);
        let (_pause, paused) = watch::channel(false);
        let (intake, _taken) = Intake::new(Window::new(100), budget.clone(), paused);
        let held = intake.admit(8 * 1024).await;
        budget.resize(4 * 1024);
        assert!(is_full(&intake, 1).await);
        drop(held);
        let held = intake.admit(4 * 1024).await;
        assert!(is_full(&intake, 1).await);
        assert_eq!(intake.budget_bytes(), 4 * 1024);
        budget.resize(6 * 1024);
        assert!(!is_full(&intake, 2 * 1024).await);
        assert!(is_full(&intake, 3 * 1024).await);
        drop(held);
        let _all = intake.admit(6 * 1024).await;
        assert!(is_full(&intake, 1).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_all_of_a_budget_does_so_when_it_has_become_smaller() {
        let budget = Budget::new(10 * 1024);
        let (_pause, paused) = watch::channel(false);
        let (intake, _taken) = Intake::new(Window::new(100), budget.clone(), paused);
        let held = intake.admit(1024).await;
        let other = intake.clone();
        let large = tokio::spawn(async move { other.admit(1 << 30).await });
        tokio::task::yield_now().await;
        budget.resize(2 * 1024);
        tokio::task::yield_now().await;
        drop(held);
        let large = timeout(Duration::from_secs(1), large);
        large.await.expect("it is admitted").expect("it ends");
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_intake_admits_nothing() {
        let (intake, pause) = intake(100, 1 << 20);
        pause.send(true).unwrap();
        assert!(is_full(&intake, 1).await);
        pause.send(false).unwrap();
        assert!(!is_full(&intake, 1).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_intake_that_is_held_admits_nothing() {
        let (intake, _pause) = intake(100, 1 << 20);
        let (hold, held) = watch::channel(true);
        let (shut, is_shut) = watch::channel(true);
        let intake = intake.held_by(held).shut_by(is_shut);
        hold.send(false).unwrap();
        assert!(is_full(&intake, 1).await);
        hold.send(true).unwrap();
        shut.send(false).unwrap();
        assert!(is_full(&intake, 1).await);
        assert!(intake.try_admit(1).is_none());
        hold.send(false).unwrap();
        assert!(!is_full(&intake, 1).await);
        assert!(intake.try_admit(1).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_room_is_held_too() {
        let (intake, _pause) = intake(1, 1 << 20);
        let (hold, held) = watch::channel(false);
        let intake = intake.held_by(held);
        let only = intake.admit(1).await;
        let mut waits = Box::pin(intake.admit(1));
        assert!(timeout(Duration::from_millis(1), &mut waits).await.is_err());
        hold.send(true).unwrap();
        drop(only);
        assert!(timeout(Duration::from_millis(1), &mut waits).await.is_err());
        hold.send(false).unwrap();
        assert!(timeout(Duration::from_millis(1), waits).await.is_ok());
    }
}
