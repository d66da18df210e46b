//! Tickets: an event's receipt, shared by its deliveries.
//!
//! Each delivery holds one. When the last is [resolved](Ticket::resolved), the event is settled; if
//! any is dropped instead, the receipt is, and the broker delivers the event again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::suspects::Pass;
use crate::broker::{Receipt, Settlement};
use crate::spans::Consuming;

/// One delivery's share in settling its event.
pub struct Ticket(Share);

enum Share {
    Whole(Held),
    Part(Arc<Shared>),
    /// Somebody else has it now.
    Gone,
}

struct Shared {
    /// How many deliveries there were at first.
    parts: usize,
    unresolved: AtomicUsize,
    held: Mutex<Option<Held>>,
}

/// What an event's deliveries settle together.
struct Held {
    receipt: Receipt,
    /// While suspects are looked for.
    pass: Option<Box<Pass>>,
    /// Where the event's trace is sampled.
    span: Option<Box<Consuming>>,
}

impl Held {
    fn settle(self) {
        if let Some(span) = self.span {
            span.settled();
        }
        if let Some(pass) = self.pass {
            (*pass).resolved();
        }
        self.receipt.settle(Settlement::Ack);
    }
}

impl Ticket {
    /// The share of who has an event for himself.
    pub const WHOLE: usize = 1024;

    /// The ticket of a whole event; with the pass it was let in with, if it needed one.
    pub fn whole(receipt: Receipt, pass: Option<Box<Pass>>) -> Self {
        let span = None;
        Self(Share::Whole(Held {
            receipt,
            pass,
            span,
        }))
    }

    /// The same with the event's span, which ends when it is settled.
    pub fn traced(mut self, span: Option<Box<Consuming>>) -> Self {
        if let Share::Whole(held) = &mut self.0 {
            held.span = span;
        }
        self
    }

    /// One ticket for each of `count` deliveries.
    fn parts(held: Held, count: usize) -> impl Iterator<Item = Self> {
        let shared = Arc::new(Shared {
            parts: count,
            unresolved: AtomicUsize::new(count),
            held: Mutex::new(Some(held)),
        });
        (0..count).map(move |_| Self(Share::Part(shared.clone())))
    }

    /// What is left where a ticket was taken away: resolving or dropping it does nothing.
    pub fn gone() -> Self {
        Self(Share::Gone)
    }

    pub fn is_gone(&self) -> bool {
        matches!(self.0, Share::Gone)
    }

    /// Its part of an event, in [`WHOLE`](Self::WHOLE)s; it does not change.
    pub fn share(&self) -> usize {
        match &self.0 {
            Share::Whole(_) => Self::WHOLE,
            Share::Part(shared) => (Self::WHOLE / shared.parts.max(1)).max(1),
            Share::Gone => 0,
        }
    }

    /// The ticket of a whole event, divided among `count` deliveries.
    pub fn split(self, count: usize) -> Vec<Self> {
        match self.0 {
            Share::Whole(held) => Self::parts(held, count).collect(),
            Share::Part(shared) => {
                shared
                    .unresolved
                    .fetch_add(count.saturating_sub(1), Ordering::AcqRel);
                (0..count)
                    .map(|_| Self(Share::Part(shared.clone())))
                    .collect()
            }
            Share::Gone => (0..count).map(|_| Self::gone()).collect(),
        }
    }

    /// The delivery's verdict is durable.
    pub fn resolved(self) {
        match self.0 {
            Share::Gone => {}
            Share::Whole(held) => held.settle(),
            Share::Part(shared) => {
                if shared.unresolved.fetch_sub(1, Ordering::AcqRel) == 1 {
                    let held = shared
                        .held
                        .lock()
                        .unwrap_or_else(|poisoned| poisoned.into_inner())
                        .take();
                    if let Some(held) = held {
                        held.settle();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Answer, Token};

    #[derive(Default)]
    struct Recorder(Mutex<Vec<Settlement>>);

    impl Answer for Recorder {
        fn answer(&self, _: Token, settlement: Settlement) {
            self.0.lock().unwrap().push(settlement);
        }
    }

    fn parts(recorder: &Arc<Recorder>, count: usize) -> Vec<Ticket> {
        let token = Token {
            epoch: 0,
            lane: 0,
            position: 1,
        };
        Ticket::whole(Receipt::unbounded(recorder.clone(), token), None).split(count)
    }

    #[test]
    fn an_event_is_settled_by_its_last_delivery() {
        let recorder = Arc::new(Recorder::default());
        let mut tickets = parts(&recorder, 3);
        let last = tickets.pop().unwrap();
        tickets.into_iter().for_each(Ticket::resolved);
        assert!(recorder.0.lock().unwrap().is_empty());
        last.resolved();
        assert_eq!(*recorder.0.lock().unwrap(), [Settlement::Ack]);
    }

    #[test]
    fn one_dropped_ticket_brings_the_event_back() {
        let recorder = Arc::new(Recorder::default());
        let mut tickets = parts(&recorder, 2);
        drop(tickets.pop());
        tickets.into_iter().for_each(Ticket::resolved);
        assert_eq!(*recorder.0.lock().unwrap(), [Settlement::Redeliver]);
    }
}
