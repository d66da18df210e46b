//! The contract between the bridge and a broker.
//!
//! A broker is both where events come from and where deliveries wait and end: RabbitMQ, Kafka and
//! the embedded one implement [`Broker`], and `tests/it/contract` runs the same cases against each.
//! Delivery tags, offsets and the like never leave this folder; what leaves it is [`Received`].
//!
//! What the pipeline may assume of every implementation:
//! - a [`Receipt`] that is settled leaves the source for good, one that is dropped comes again;
//! - `park` and `dead_letter` return `Ok` only when the broker has confirmed that it keeps the message;
//! - a parked delivery comes back as [`Received::Due`], never before its wait is over, on any
//!   instance of the group, whatever tiers the config names by then;
//! - `run` reconnects for ever and returns early only for what a restart alone can mend.
//!
//! What a broker may assume: `run` is called once, and intakes are closed only after `stop`.

pub mod embedded;
pub mod envelope;
pub mod history;
mod identify;
pub mod in_flight;
mod inspect;
pub mod kafka;
pub mod letters;
pub mod parked;
pub mod rabbitmq;
mod receipt;
mod roster;
pub mod state;
pub mod tiers;
pub mod upkeep;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use history::{History, NotPossible, Reach, Span};
pub use identify::{IdFrom, Naming, Taken, TenantFrom};
pub use in_flight::{Admission, Budget, Filling, Intake, Window};
pub use letters::{Letter, Letters, NotOpened, Purpose};
pub use receipt::{Answer, Receipt, Settlement, Token};

use crate::delivery::{Delivery, Reason, WaitKind};
use crate::event::{Event, Headers};

/// What a broker hands to the pipeline.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a channel has one slot for each place in a window; boxing would cost every due delivery an allocation"
)]
pub enum Received {
    /// A fresh event of a source.
    Event(Arc<Event>, Receipt),
    /// A fresh event that has been handed out so often that its broker may soon give it up. To be
    /// parked before anything is attempted.
    Worn(Arc<Event>, Receipt),
    /// A parked delivery whose wait is over.
    Due(Delivery, WaitKind, Receipt),
}

/// Where a broker puts what it takes: a window per source, and one each for retries and holds.
#[derive(Clone)]
pub struct Intakes {
    pub sources: watch::Receiver<Arc<SourceIntakes>>,
    pub retries: Intake,
    pub holds: Intake,
    /// Hears of each parked delivery with which `run` itself does what was ordered.
    pub obeyed: Obeyed,
}

/// The sources that are wanted now, by name. One whose intake is another than before is stopped, what it
/// has handed out is answered, and it begins again by what its broker was told of it meanwhile; one
/// that is no longer there is stopped ([`roster`]).
pub type SourceIntakes = BTreeMap<Arc<str>, Intake>;

pub type Obeyed = Arc<dyn Fn(parked::Deed, &Delivery) + Send + Sync>;

/// How long a delivery is to wait on the broker, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    pub kind: WaitKind,
    /// From now. The delivery comes back after this, and at most a tenth (or a second) later.
    pub delay: Duration,
}

impl Wait {
    /// The shortest way back that there is.
    pub const AT_ONCE: Self = Self {
        kind: WaitKind::Retry,
        delay: Duration::ZERO,
    };
}

/// The broker did not confirm. The delivery is still ours: hold it, pause intake, try again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refused {
    /// Not connected, timed out, or an alarm blocks publishers.
    #[error("broker `{broker}` is not available: {why}")]
    Unavailable { broker: Arc<str>, why: String },
    /// The broker said no (nack, unroutable, not authorised).
    #[error("broker `{broker}` refused the message: {why}")]
    Rejected { broker: Arc<str>, why: String },
    /// Larger than the broker takes, even with metadata truncated.
    #[error("message of {size_bytes} bytes is larger than broker `{broker}` accepts")]
    TooLarge { broker: Arc<str>, size_bytes: usize },
}

/// The state of a broker, for `/readyz` and logs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Health {
    /// Connected, and the loop through a retry tier was seen to work.
    Ready,
    /// Connecting, or checking the loop.
    Starting { why: String },
    /// Not working; tried again with backoff.
    Down { why: String },
}

/// An event to publish, for `hookbridge send` and the embedded broker's API.
#[derive(Debug, Clone, Default)]
pub struct Publication {
    /// The topic on Kafka and embedded; the routing key on RabbitMQ.
    pub topic: String,
    /// RabbitMQ only: the exchange, default `""`, where the routing key is a queue's name.
    pub exchange: String,
    pub id: Option<String>,
    pub kind: Option<String>,
    pub key: Option<Bytes>,
    pub content_type: Option<String>,
    pub headers: Headers,
    pub body: Bytes,
}

/// A message broker: source of events, and the place where deliveries wait and end.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// The broker's name in the config.
    fn name(&self) -> &Arc<str>;

    /// Takes from all sources and due queues into `intakes` until `stop`, reconnecting for ever. Sources
    /// come, change and go as [`Intakes::sources`] says.
    /// After `stop` it takes no more but goes on settling until the receipts handed out are
    /// answered or `drain` is cancelled. `Err` is what only a restart mends (a fenced member).
    async fn run(
        self: Arc<Self>,
        intakes: Intakes,
        stop: CancellationToken,
        drain: CancellationToken,
    ) -> anyhow::Result<()>;

    /// Keeps `delivery` for `wait` and returns when the broker has confirmed.
    async fn park(&self, delivery: &Delivery, wait: Wait) -> Result<(), Refused>;

    /// Keeps `delivery` among the dead letters and returns when the broker has confirmed.
    async fn dead_letter(&self, delivery: &Delivery, reason: Reason) -> Result<(), Refused>;

    /// Opens the dead letters, as far as they reach now.
    async fn open_letters(&self, purpose: Purpose) -> Result<Box<dyn Letters>, NotOpened>;

    /// Gives a dead letter a new life: parks it to be due at once ([`Letter::revived`]). `Ok` when
    /// the broker has confirmed; the letter itself is still there.
    async fn revive(&self, letter: &Letter) -> Result<(), Refused> {
        let delivery = letter.revived_on(self.name())?;
        self.park(&delivery, Wait::AT_ONCE).await
    }

    /// What is parked, as far as it can be told without disturbing anything.
    async fn parked(&self) -> Result<Vec<parked::Waiting>, Refused>;

    /// Makes due or drops what `order` is about among all that is parked by now. What it is not
    /// about is left as it is, or waits on for what remains of its delay.
    async fn order(
        &self,
        order: &parked::Order,
        follow: &dyn parked::Follow,
    ) -> Result<parked::Done, Refused>;

    /// Publishes an event and returns when the broker has confirmed.
    async fn publish(&self, publication: Publication) -> Result<(), Refused>;

    /// What `source` made in `span`, to be read again without disturbing anything.
    async fn history(&self, source: &str, span: Span) -> Result<Box<dyn History>, NotPossible>;

    /// How far back `source` can be read.
    async fn reach(&self, source: &str) -> Result<Reach, NotPossible>;

    fn health(&self) -> Health;

    /// Where the group keeps its state, if this broker is the one.
    fn state(self: Arc<Self>) -> Arc<dyn state::StateLog>;
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Starting { why } => write!(f, "starting: {why}"),
            Self::Down { why } => write!(f, "down: {why}"),
        }
    }
}
