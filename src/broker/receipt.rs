//! Receipts: the promise to answer the broker exactly once.
//!
//! A receipt dropped without an answer asks for redelivery, so a panic or a lost task can repeat an
//! event and never lose one. Whether an answer is *durable* is the pipeline's business; this module
//! only carries it. Answering never blocks: a broker collects answers and batches them.

use std::fmt;
use std::sync::Arc;

use super::in_flight::Admission;

/// What to tell the broker about one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Every delivery of the event has a durable verdict.
    Ack,
    /// No verdict could be recorded; send the event again.
    Redeliver,
}

/// What a broker needs to find the message again: its own numbers, meaningless to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The connection or assignment that the message came by; answers of an older one are ignored.
    pub epoch: u64,
    /// A queue or partition, as the broker numbers them.
    pub lane: u32,
    /// Delivery tag, offset or sequence.
    pub position: u64,
}

/// Takes a broker's answers. Called once per token, from any thread; must not block.
pub trait Answer: Send + Sync + 'static {
    fn answer(&self, token: Token, settlement: Settlement);
}

/// The right and the duty to answer for one message. Holds the message's place in the window.
pub struct Receipt {
    open: Option<(Arc<dyn Answer>, Token)>,
    _admission: Option<Admission>,
}

impl Receipt {
    pub fn new(answer: Arc<dyn Answer>, token: Token, admission: Admission) -> Self {
        Self {
            open: Some((answer, token)),
            _admission: Some(admission),
        }
    }

    /// A receipt outside any window.
    #[cfg(test)]
    pub fn unbounded(answer: Arc<dyn Answer>, token: Token) -> Self {
        Self {
            open: Some((answer, token)),
            _admission: None,
        }
    }

    /// Answers the broker and gives the place in the window back.
    pub fn settle(mut self, settlement: Settlement) {
        if let Some((answer, token)) = self.open.take() {
            answer.answer(token, settlement);
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some((answer, token)) = self.open.take() {
            answer.answer(token, Settlement::Redeliver);
        }
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receipt")
            .field(&self.open.as_ref().map(|(_, token)| token))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Settlement)>>);

    impl Answer for Recorder {
        fn answer(&self, token: Token, settlement: Settlement) {
            self.0.lock().unwrap().push((token.position, settlement));
        }
    }

    fn receipt(recorder: &Arc<Recorder>, position: u64) -> Receipt {
        Receipt::unbounded(
            recorder.clone(),
            Token {
                epoch: 0,
                lane: 0,
                position,
            },
        )
    }

    #[test]
    fn a_settled_receipt_answers_once() {
        let recorder = Arc::new(Recorder::default());
        receipt(&recorder, 1).settle(Settlement::Ack);
        assert_eq!(*recorder.0.lock().unwrap(), [(1, Settlement::Ack)]);
    }

    #[test]
    fn a_dropped_receipt_asks_for_redelivery() {
        let recorder = Arc::new(Recorder::default());
        drop(receipt(&recorder, 2));
        assert_eq!(*recorder.0.lock().unwrap(), [(2, Settlement::Redeliver)]);
    }

    #[test]
    fn a_panic_asks_for_redelivery() {
        let recorder = Arc::new(Recorder::default());
        let held = receipt(&recorder, 3);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = held;
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        assert_eq!(*recorder.0.lock().unwrap(), [(3, Settlement::Redeliver)]);
    }
}
