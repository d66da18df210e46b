//! What the callbacks of the library's consumer note down for the loop that runs it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tracing::debug;

use super::client::Quiet;
use super::partition::Pulse;

pub type Consumer = StreamConsumer<Noted>;

/// See the module.
pub struct Noted {
    pulse: Arc<Pulse>,
    wishes: Mutex<VecDeque<Wish>>,
    commits: Mutex<Vec<CommitAnswer>>,
    /// Nobody runs the loop any more: wishes are granted at once.
    closing: AtomicBool,
    /// There is no broker that the client is connected to.
    all_down: AtomicBool,
}

/// The result of a commit, and what it was about: place, offset, and whether it was refused there.
pub type CommitAnswer = (KafkaResult<()>, Vec<((String, i32), Offset, bool)>);

/// What the group wishes, and waits for.
pub enum Wish {
    Assign(TopicPartitionList),
    Revoke(TopicPartitionList),
}

impl Noted {
    pub fn new(pulse: Arc<Pulse>) -> Self {
        Self {
            pulse,
            wishes: Mutex::default(),
            commits: Mutex::default(),
            closing: AtomicBool::new(false),
            all_down: AtomicBool::new(false),
        }
    }

    pub fn next_wish(&self) -> Option<Wish> {
        lock(&self.wishes).pop_front()
    }

    pub fn has_wishes(&self) -> bool {
        !lock(&self.wishes).is_empty()
    }

    /// How commits have ended since this was asked last.
    pub fn commits(&self) -> Vec<CommitAnswer> {
        std::mem::take(&mut *lock(&self.commits))
    }

    /// Whether all brokers have gone down since this was asked last.
    pub fn lost_all_brokers(&self) -> bool {
        self.all_down.swap(false, Ordering::AcqRel)
    }

    /// From now on wishes are granted at once; those that nobody has granted yet.
    pub fn close(&self) -> Vec<Wish> {
        self.closing.store(true, Ordering::Release);
        lock(&self.wishes).drain(..).collect()
    }
}

impl ClientContext for Noted {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Quiet.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.all_down.store(true, Ordering::Release);
        }
        Quiet.error(error, reason);
    }
}

impl ConsumerContext for Noted {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        err: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let assign = err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.closing.load(Ordering::Acquire) {
            let granted = if assign {
                consumer.incremental_assign(partitions)
            } else {
                consumer.incremental_unassign(partitions)
            };
            if let Err(error) = granted {
                debug!(%error, "a rebalance while closing");
            }
            return;
        }
        let wish = if assign {
            Wish::Assign(partitions.clone())
        } else {
            Wish::Revoke(partitions.clone())
        };
        lock(&self.wishes).push_back(wish);
        self.pulse.wake.notify_one();
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        let offsets = offsets
            .elements()
            .iter()
            .map(|e| {
                let place = (e.topic().to_owned(), e.partition());
                (place, e.offset(), e.error().is_err())
            })
            .collect();
        lock(&self.commits).push((result, offsets));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Dropping a client waits until its group has let it go, which takes answers to what the group
/// asks: without the loop (a panic, an aborted task) they are given in the callback.
pub struct Closing(pub Arc<Consumer>);

impl Drop for Closing {
    fn drop(&mut self) {
        let unanswered = self.0.context().close();
        grant_all(&self.0, unanswered);
    }
}

/// Grants wishes without looking anything up: nothing is going to be taken or committed.
pub fn grant_all(consumer: &Consumer, wishes: impl IntoIterator<Item = Wish>) {
    for wish in wishes {
        let _ = match wish {
            Wish::Assign(list) => consumer.incremental_assign(&list),
            Wish::Revoke(list) => consumer.incremental_unassign(&list),
        };
    }
}
