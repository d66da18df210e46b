//! Parked deliveries, as people ask about them: what waits where, and orders about it.
//!
//! An [`Order`] is about what was parked before it was given. What is made due now goes the way of
//! everything that is due, through its endpoint's lane, and keeps its attempts; what is dropped is
//! gone. How a broker finds what an order is about, and what it can tell without disturbing
//! anything, is the broker's own.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::delivery::{Delivery, WaitKind};
use crate::subscription::Uid;

/// What to do with parked deliveries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub deed: Deed,
    pub whose: Whose,
    /// `None`: retries and holds.
    pub kind: Option<WaitKind>,
    /// Refuse when more than so many messages would have to be moved to find those meant. Brokers
    /// that find them in place do not mind.
    pub most: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deed {
    /// They are due at once.
    Now,
    /// They are gone.
    Drop,
}

/// Whose deliveries an order is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    All,
    /// Those of this identity, and those that carry this name.
    Of {
        uid: Uid,
        name: Arc<str>,
    },
}

impl Order {
    pub fn new(deed: Deed, whose: Whose, kind: Option<WaitKind>) -> Self {
        Self {
            deed,
            whose,
            kind,
            most: None,
        }
    }

    /// The kinds it is about.
    pub fn kinds(&self) -> impl Iterator<Item = WaitKind> {
        let only = self.kind;
        [WaitKind::Retry, WaitKind::Hold]
            .into_iter()
            .filter(move |kind| only.is_none_or(|only| only == *kind))
    }
}

impl Deed {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Now => "now",
            Self::Drop => "drop",
        }
    }
}

impl Whose {
    pub fn includes(&self, delivery: &Delivery) -> bool {
        self.includes_of(&delivery.uid, &delivery.subscription)
    }

    pub fn includes_of(&self, uid: &Uid, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Of {
                uid: wanted,
                name: by_name,
                // Names of those made over the API can be another one's later.
            } => uid == wanted || (wanted.is_of_config() && name == &**by_name),
        }
    }
}

/// What came of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    /// Made due or dropped. On Kafka those that the order was found to be about when it was given:
    /// it is carried out by whoever reads the tiers.
    pub count: u64,
    /// Taken off their tier with the others and parked again for the rest of their wait.
    pub parked_again: u64,
}

impl std::ops::AddAssign for Done {
    fn add_assign(&mut self, more: Self) {
        self.count += more.count;
        self.parked_again += more.parked_again;
    }
}

/// Some of what waits, as one row of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub kind: WaitKind,
    /// The tier's delay in seconds, where there are tiers.
    pub tier_seconds: Option<u64>,
    /// Whose it is, where the broker can tell without being disturbed.
    pub subscription: Option<(Arc<str>, Uid)>,
    pub count: u64,
    /// The count was not finished in time: there are at least so many.
    pub at_least: bool,
    /// When the oldest of them was put where it lies.
    pub oldest: Option<Timestamp>,
    /// When the first of them will be due.
    pub next_due: Option<Timestamp>,
}

/// Watches an order being carried out, and may ask for its end.
pub trait Follow: Send + Sync {
    /// So many more are to be looked at.
    fn expects(&self, more: u64);
    /// One more was looked at; whether it was one of those meant, and so is done.
    fn saw(&self, meant: bool);
    /// Whether [`Follow::did`] wants to hear of each delivery.
    fn records(&self) -> bool {
        false
    }
    /// The order was carried out on this delivery, whose body and headers may be missing; its event
    /// has so many bytes.
    fn did(&self, _: &Delivery, _: usize) {}
    /// Something about how the order was carried out that the one who gave it should know.
    fn note(&self, _: String) {}
    /// Cancelled when the order is to end between two deliveries.
    fn cancelled(&self) -> &CancellationToken;
}

/// Nobody watches.
#[derive(Debug, Default)]
pub struct Unwatched(CancellationToken);

impl Follow for Unwatched {
    fn expects(&self, _: u64) {}

    fn saw(&self, _: bool) {}

    fn cancelled(&self) -> &CancellationToken {
        &self.0
    }
}
