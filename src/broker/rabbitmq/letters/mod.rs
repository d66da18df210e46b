//! Dead letters in their queue: one pass on a connection of its own.
//!
//! Letters are taken without being acknowledged ([`taking`]), so that memory holds few bodies and of
//! all that was passed only the tags. What was not removed is given back in order ([`give_back`]).
//! Reading never counts against a letter, since our queue of dead letters has no delivery limit.
//!
//! The pass ends after as many letters as lay in the queue when it began, so it never meets what died
//! meanwhile. Letters under the eyes of another reader are not there for that moment; a pass that
//! finds fewer than it counted while others read waits for them, for a while.
//!
//! The replay lock is an exclusive queue, gone with its connection.

mod give_back;
mod read;
mod taking;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lapin::options::QueueDeclareOptions;
use lapin::protocol::AMQPSoftError;
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::time::{sleep, timeout};

use super::connect::answer;
use super::{RabbitMq, failures};
use crate::broker::letters::{PATIENCE, nothing_to_remove};
use crate::broker::{Letter, Letters, NotOpened, Purpose, Refused};

use give_back::give_back;
use taking::Taking;

pub use read::PUT_AWAY_AT;

/// How long a reader waits for what other readers hold.
const FOR_OTHERS_LISTING: Duration = Duration::from_secs(3);
const FOR_OTHERS_CHANGING: Duration = Duration::from_secs(15);
/// How long a listing of this instance waits for the one before it.
const TURN: Duration = Duration::from_secs(10);
/// Between looks at what others do.
const LOOK: Duration = Duration::from_millis(50);
/// Between tries to get the lock.
const AGAIN: Duration = Duration::from_millis(250);

/// One pass over the dead letters.
pub struct Pass {
    broker: Arc<str>,
    purpose: Purpose,
    total: u32,
    /// `None`: all was given back.
    taking: Option<Taking>,
    /// The tag of the letter that was returned last.
    in_hand: Option<u64>,
}

/// Opens the letters, as far as they reach now.
pub async fn open(broker: &RabbitMq, purpose: Purpose) -> Result<Pass, NotOpened> {
    let turn = match purpose {
        // Without its turn a listing shows what is there.
        Purpose::List => timeout(TURN, broker.letters.clone().lock_owned())
            .await
            .ok(),
        Purpose::Change => None,
    };
    let failed = |error: anyhow::Error| NotOpened::from(broker.unavailable(format!("{error:#}")));
    let connection = broker.connector.connect("letters").await.map_err(failed)?;
    if purpose == Purpose::Change {
        lock(broker, &connection).await?;
    }
    let queue = broker.names.dead.clone();
    let opened = async {
        let channel = answer("no channel", connection.create_channel()).await?;
        let until = Instant::now() + for_others(purpose);
        loop {
            let (ready, readers) = look(&channel, &queue).await?;
            if readers == 0 || Instant::now() >= until {
                return anyhow::Ok((channel, ready));
            }
            sleep(LOOK).await;
        }
    };
    let (channel, total) = opened.await.map_err(failed)?;
    Ok(Pass {
        broker: broker.settings.name.clone(),
        purpose,
        total,
        taking: Some(Taking::new(connection, channel, queue, total, turn)),
        in_hand: None,
    })
}

/// Takes the replay lock for as long as `connection` lives.
async fn lock(broker: &RabbitMq, connection: &Connection) -> Result<(), NotOpened> {
    let queue = &broker.names.replay;
    let until = Instant::now() + PATIENCE;
    loop {
        let declared = async {
            // The broker closes the channel when it says no.
            let channel = answer("no channel", connection.create_channel()).await?;
            let options = QueueDeclareOptions {
                exclusive: true,
                auto_delete: true,
                ..QueueDeclareOptions::default()
            };
            let declared =
                channel.queue_declare(queue.as_str().into(), options, FieldTable::default());
            answer(format!("queue `{queue}` cannot be declared"), declared).await?;
            // Auto-delete only counts for queues that had consumers: this one ends with its connection.
            anyhow::Ok(())
        };
        match declared.await {
            Ok(()) => return Ok(()),
            Err(error) if refusal(&error) != Some(AMQPSoftError::RESOURCELOCKED) => {
                return Err(broker.unavailable(format!("{error:#}")).into());
            }
            Err(_) if Instant::now() >= until => {
                return Err(NotOpened::Busy(format!(
                    "another connection has the exclusive queue `{queue}`, which is the replay lock \
                     (`rabbitmqctl list_queues name owner_pid` shows which)"
                )));
            }
            Err(_) => sleep(AGAIN).await,
        }
    }
}

fn refusal(error: &anyhow::Error) -> Option<AMQPSoftError> {
    error
        .downcast_ref::<lapin::Error>()
        .and_then(failures::soft)
}

fn for_others(purpose: Purpose) -> Duration {
    match purpose {
        Purpose::List => FOR_OTHERS_LISTING,
        Purpose::Change => FOR_OTHERS_CHANGING,
    }
}

/// How many letters lie there that nobody holds, and how many consumers the queue has.
async fn look(channel: &Channel, queue: &str) -> anyhow::Result<(u32, u32)> {
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let asked = channel.queue_declare(queue.into(), options, FieldTable::default());
    let found = answer(format!("queue `{queue}` cannot be looked at"), asked).await?;
    Ok((found.message_count(), found.consumer_count()))
}

impl Pass {
    fn unavailable(&self, error: &anyhow::Error) -> Refused {
        Refused::Unavailable {
            broker: self.broker.clone(),
            why: format!("{error:#}"),
        }
    }

    async fn find(&mut self) -> anyhow::Result<Option<Letter>> {
        let patience = for_others(self.purpose);
        while let Some(taking) = &mut self.taking
            && let Some(message) = taking.take(patience).await?
        {
            let tag = message.delivery_tag;
            match read::read(&self.broker, &taking.queue, message) {
                Some(letter) => {
                    self.in_hand = Some(tag);
                    return Ok(Some(letter));
                }
                // One that outlived its check: the broker expires messages at the head only.
                None => taking.remove_last().await?,
            }
        }
        Ok(None)
    }
}

#[async_trait]
impl Letters for Pass {
    fn total(&self) -> Option<u64> {
        Some(u64::from(self.total))
    }

    async fn next(&mut self) -> Result<Option<Letter>, Refused> {
        self.in_hand = None;
        let found = self.find().await;
        let found = found.map_err(|error| self.unavailable(&error))?;
        if found.is_none() {
            self.close().await;
        }
        Ok(found)
    }

    async fn remove(&mut self) -> Result<(), Refused> {
        let in_hand = self.in_hand.take();
        let taking = match (self.purpose, in_hand, &mut self.taking) {
            (Purpose::Change, Some(_), Some(taking)) => taking,
            _ => return Err(nothing_to_remove(&self.broker)),
        };
        let removed = taking.remove_last().await;
        removed.map_err(|error| self.unavailable(&error))
    }

    async fn close(&mut self) {
        if let Some(taking) = self.taking.take() {
            give_back(taking).await;
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(taking) = self.taking.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(give_back(taking));
        }
    }
}
