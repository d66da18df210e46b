//! The store: subscriptions, and what became of them and their endpoints, kept in sled;
//! and what the process may have died of.
//!
//! What a mutation has returned `Ok` for survives a crash. Event bodies and secrets of the config
//! never come here; those of subscriptions made over the API are sealed first. One process at a time: `data_dir` is locked for as long as the store lives,
//! which also makes the kept instance name unique.
//!
//! sled is opened, synced and given up on with care. After any storage error the store is
//! *failed*: every method answers [`StoreError::Failed`], and the process is expected to become
//! unready, stop intake and leave through `std::process::exit`. Dropping a failed store leaks sled
//! on purpose, since sled's own drop would hang on a full disk; so would a runtime's, which waits
//! for the blocking thread that hangs.

mod codec;
mod export;
mod open;
mod registered;
mod seal;
mod secrets;
mod shared;
mod standing;
mod subscriptions;
mod suspects;

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use seal::Sum;

pub use codec::{Unreadable, Why};
pub use open::OpenError;
pub use registered::{Answer, Registered, Remembered};
pub use secrets::{Key, KeyError, Keys, Sealed};
pub use shared::{Step, Unsaid};
pub use standing::{Agreement, Disabled, DisabledBecause, EndpointStanding, SubscriptionStanding};
pub use subscriptions::{Changes, Owner, Record};
pub use suspects::{Begun, Suspect};

/// The open store.
pub struct Store {
    kept: Arc<Kept>,
    instance: Arc<str>,
    /// Something waits to be told to other instances.
    news: tokio::sync::Notify,
    /// Mutations go one after another.
    writing: tokio::sync::Mutex<()>,
    flush_seconds: Histogram,
    disk_bytes: Gauge,
    /// `data_dir`'s lock, held until the process ends or the store is dropped.
    _lock: File,
}

/// sled's handles, and what went wrong with them first.
struct Kept {
    folder: PathBuf,
    db: sled::Db,
    subscriptions: sled::Tree,
    subscription_standings: sled::Tree,
    endpoint_standings: sled::Tree,
    suspects: sled::Tree,
    registered: sled::Tree,
    /// Over all records; see `seal.rs`.
    sum: Mutex<Sum>,
    /// A descriptor of our own of sled's log: sled flushes with `sync_file_range`, which does not
    /// reach the disk.
    log: File,
    failed: OnceLock<String>,
}

/// One change of one record, which no other edit of the same commit touches.
struct Edit {
    tree: Tree,
    key: Vec<u8>,
    /// `None` removes it.
    value: Option<Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tree {
    Subscriptions,
    SubscriptionStandings,
    EndpointStandings,
    Suspects,
    Registered,
}

impl Tree {
    const ALL: [Self; 5] = [
        Self::Subscriptions,
        Self::SubscriptionStandings,
        Self::EndpointStandings,
        Self::Suspects,
        Self::Registered,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Subscriptions => "subscriptions",
            Self::SubscriptionStandings => "subscription_standings",
            Self::EndpointStandings => "endpoint_standings",
            Self::Suspects => "suspects",
            Self::Registered => "registered",
        }
    }
}

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Storage failed, now or earlier. The process has to exit without waiting for the store.
    #[error("the store has failed: {cause}")]
    Failed { cause: String },
    #[error(
        "{what} takes {bytes} bytes, more than the {} that the store keeps in one record",
        Store::MAX_RECORD_BYTES
    )]
    TooLarge { what: String, bytes: usize },
    #[error("cannot read a record of the store")]
    Unreadable(#[from] Unreadable),
}

impl Store {
    /// sled moves larger values into files that it never syncs.
    pub const MAX_RECORD_BYTES: usize = 100_000;
    /// A mutation that is not on the disk by then fails the store.
    pub const DEADLINE: Duration = Duration::from_secs(10);

    /// A random name, made when `data_dir` was first opened and the same ever since.
    pub fn instance_name(&self) -> Arc<str> {
        Arc::clone(&self.instance)
    }

    /// What went wrong first, if the store has failed. For readiness.
    pub fn failure(&self) -> Option<&str> {
        self.kept.failed.get().map(String::as_str)
    }

    /// Reads. Blocks for as long as the disk takes, which for a store this small is its cache.
    fn read<T>(&self, read: impl FnOnce(&Kept) -> sled::Result<T>) -> Result<T, StoreError> {
        self.kept.guarded(read)
    }

    /// Makes the edits that `change` asks for, those of one tree all at once or not at all, and
    /// returns when they are on the disk.
    async fn write<T, F>(&self, change: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Kept) -> Result<(T, Vec<Edit>), StoreError> + Send + 'static,
    {
        let kept = Arc::clone(&self.kept);
        let flush_seconds = self.flush_seconds.clone();
        let disk_bytes = self.disk_bytes.clone();
        let work = async {
            let _turn = self.writing.lock().await;
            let blocking = tokio::task::spawn_blocking(move || {
                let (changed, edits) = change(&kept)?;
                let started = Instant::now();
                kept.commit(edits)?;
                flush_seconds.observe(started.elapsed().as_secs_f64());
                disk_bytes.set(kept.size_bytes());
                Ok(changed)
            });
            match blocking.await {
                Ok(done) => done,
                Err(ended) => Err(self.kept.fail(format!("the store's thread ended: {ended}"))),
            }
        };
        match tokio::time::timeout(Self::DEADLINE, work).await {
            Ok(done) => done,
            Err(_) => Err(self.kept.fail(format!(
                "not on the disk after {} s; is it full?",
                Self::DEADLINE.as_secs()
            ))),
        }
    }
}

impl Kept {
    /// Runs `with` unless the store has failed; fails it if `with` does. sled reports some kinds of
    /// damage by panicking.
    fn guarded<T>(&self, with: impl FnOnce(&Self) -> sled::Result<T>) -> Result<T, StoreError> {
        if let Some(cause) = self.failed.get() {
            let cause = cause.clone();
            return Err(StoreError::Failed { cause });
        }
        match catch_unwind(AssertUnwindSafe(|| with(self))) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(self.fail(error.to_string())),
            Err(_) => Err(self.fail("sled panicked; see the log".to_owned())),
        }
    }

    fn fail(&self, cause: String) -> StoreError {
        let cause = self.failed.get_or_init(|| cause).clone();
        StoreError::Failed { cause }
    }

    fn commit(&self, edits: Vec<Edit>) -> Result<(), StoreError> {
        if edits.is_empty() {
            return Ok(());
        }
        let mut kept_sum = self.sum.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sums = vec![*kept_sum];
        let mut sum = *kept_sum;
        let mut batches = Vec::new();
        for tree in Tree::ALL {
            let mut batch = sled::Batch::default();
            for edit in edits.iter().filter(|edit| edit.tree == tree) {
                let old = self.guarded(|it| it.tree(tree).get(&edit.key))?;
                if let Some(old) = old {
                    sum = sum.take(tree.name(), &edit.key, &old);
                }
                match &edit.value {
                    Some(value) => {
                        sum = sum.add(tree.name(), &edit.key, value);
                        batch.insert(edit.key.as_slice(), value.as_slice());
                    }
                    None => batch.remove(edit.key.as_slice()),
                }
            }
            batches.push((tree, batch));
            sums.push(sum);
        }
        self.guarded(|it| {
            seal::write(&it.folder, &sums)?;
            for (tree, batch) in batches {
                it.tree(tree).apply_batch(batch)?;
            }
            it.db.flush()?;
            it.log.sync_all()?;
            seal::write(&it.folder, &[sum]).map_err(sled::Error::Io)
        })?;
        *kept_sum = sum;
        Ok(())
    }

    fn tree(&self, tree: Tree) -> &sled::Tree {
        match tree {
            Tree::Subscriptions => &self.subscriptions,
            Tree::SubscriptionStandings => &self.subscription_standings,
            Tree::EndpointStandings => &self.endpoint_standings,
            Tree::Suspects => &self.suspects,
            Tree::Registered => &self.registered,
        }
    }

    fn size_bytes(&self) -> i64 {
        let bytes = self.db.size_on_disk().unwrap_or_default();
        i64::try_from(bytes).unwrap_or(i64::MAX)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if self.kept.failed.get().is_some() {
            // One handle too many, so that sled is never dropped: see above.
            std::mem::forget(Arc::clone(&self.kept));
        }
    }
}
