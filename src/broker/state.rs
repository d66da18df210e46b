//! State: the log that all instances of a group share, `<group>.state` on one of its brokers.
//!
//! A broker keeps records in one order, the same for everybody who reads, and hands them out from the
//! first one on. What they say is not its business. Of several records of one key the last one is
//! kept; what happens to those before it is [`Keeping`].

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Refused;

/// Records read ahead of whoever follows.
pub const AHEAD: usize = 256;

/// A record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub key: String,
    /// `None`: there is nothing under this key any more.
    pub body: Option<Bytes>,
}

/// A record, and where it lies: later ones have larger numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub place: u64,
    pub record: Record,
}

/// What becomes of records that a later one of their key has replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// They are gone at once, and nobody else reads: there is one instance.
    Alone,
    /// They go some time after they were replaced.
    LastOfEach,
    /// Nothing goes because it was replaced, but the oldest go when there are more bytes than this.
    Newest { bytes: u64 },
}

/// Where a group keeps its state.
#[async_trait]
pub trait StateLog: Send + Sync {
    /// Adds records, those of different keys in any order, and returns when the broker has
    /// confirmed all of them. After an error some may be there all the same.
    async fn tell(&self, records: Vec<Record>) -> Result<(), Refused>;

    /// Makes the log where it is missing, and reads it: from this place on, or from its first record.
    async fn follow(&self, from: Option<u64>) -> Result<Reading, Refused>;

    fn keeping(&self) -> Keeping;
}

/// What is read, until it is dropped.
pub struct Reading {
    entries: mpsc::Receiver<Entry>,
    _until_dropped: DropGuard,
}

impl Reading {
    /// Of what comes by `entries`; `stop` is cancelled when nobody wants more.
    pub fn new(entries: mpsc::Receiver<Entry>, stop: CancellationToken) -> Self {
        Self {
            entries,
            _until_dropped: stop.drop_guard(),
        }
    }

    /// The next records, in their order; none when the connection is lost. Cancel-safe.
    pub async fn next(&mut self) -> Vec<Entry> {
        let mut some = Vec::new();
        self.entries.recv_many(&mut some, AHEAD).await;
        some
    }
}
