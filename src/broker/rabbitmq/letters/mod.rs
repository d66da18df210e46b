//! Dead letters in their queue: one pass on a connection of its own.
//!
//! Letters are taken without being acknowledged, in chunks by a consumer each, so that memory holds
//! a chunk of bodies and of all that was passed only the tags. What was not removed is given back
//! in order ([`give_back`]). Reading never counts against a letter, since our queue of dead letters
//! has no delivery limit.
//!
//! The pass ends after as many letters as lay in the queue when it began, so it never meets what died
//! meanwhile. Letters under the eyes of another reader are not there for that moment; a pass that
//! finds fewer than it counted while others read waits for them, for a while.
//!
//! The replay lock is an exclusive queue, gone with its connection.

mod give_back;
mod read;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::protocol::AMQPSoftError;
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::connect::answer;
use super::{RabbitMq, failures};
use crate::broker::letters::{PATIENCE, nothing_to_remove};
use crate::broker::{Letter, Letters, NotOpened, Purpose, Refused};

use give_back::{Held, give_back};
pub use read::PUT_AWAY_AT;

/// Letters in the first chunk; later ones hold about [`CHUNK_BYTES`].
const FIRST_CHUNK: u16 = 32;
const LARGEST_CHUNK: u16 = 1_000;
const CHUNK_BYTES: usize = 8 << 20;
/// How long nothing comes before we look whether there is something.
const LULL: Duration = Duration::from_millis(200);
/// A queue that has letters and hands out none for so long does not work.
const SILENCE: Duration = Duration::from_secs(20);
/// How long a reader waits for what other readers hold.
const FOR_OTHERS_LISTING: Duration = Duration::from_secs(3);
const FOR_OTHERS_CHANGING: Duration = Duration::from_secs(15);
/// How long a listing of this instance waits for the one before it.
const TURN: Duration = Duration::from_secs(10);
/// Between tries to get the lock.
const AGAIN: Duration = Duration::from_millis(250);

/// One pass over the dead letters.
pub struct Pass {
    broker: Arc<str>,
    queue: String,
    purpose: Purpose,
    total: u32,
    /// Of the total, not seen yet.
    left: u32,
    /// The consumer of the present chunk and how many it is still to bring.
    chunk: Option<(Consumer, u16)>,
    next_chunk: u16,
    bytes_seen: usize,
    held: Option<Held>,
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
        let patience = Instant::now() + for_others(purpose);
        loop {
            let (ready, readers) = look(&channel, &queue).await?;
            if readers == 0 || Instant::now() >= patience {
                return anyhow::Ok((channel, ready));
            }
            sleep(LULL / 4).await;
        }
    };
    let (channel, ready) = opened.await.map_err(failed)?;
    Ok(Pass {
        broker: broker.settings.name.clone(),
        queue,
        purpose,
        total: ready,
        left: ready,
        chunk: None,
        next_chunk: FIRST_CHUNK,
        bytes_seen: 0,
        held: Some(Held {
            queue: broker.names.dead.clone(),
            connection,
            channel,
            passed: Vec::new(),
            turn,
        }),
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
        let began = Instant::now();
        while self.left > 0 {
            if self.chunk.is_none() {
                self.begin_chunk().await?;
            }
            let (consumer, _) = self.chunk.as_mut().context("a chunk was begun")?;
            match timeout(LULL, consumer.next()).await {
                Ok(Some(message)) => {
                    let message = message?;
                    let tag = message.delivery_tag;
                    self.count(message.data.len()).await?;
                    match read::read(&self.broker, &self.queue, message) {
                        Some(letter) => {
                            self.held.as_mut().context("open")?.passed.push(tag);
                            self.in_hand = Some(tag);
                            return Ok(Some(letter));
                        }
                        None => self.clear_away(tag).await?,
                    }
                }
                Ok(None) => return Err(anyhow!("the queue of dead letters hands out no more")),
                Err(_) if !self.is_more_to_come(began.elapsed()).await? => break,
                Err(_) => {}
            }
        }
        self.left = 0;
        Ok(None)
    }

    /// A consumer that is given so many letters and no more.
    async fn begin_chunk(&mut self) -> anyhow::Result<()> {
        let held = self.held.as_ref().context("the pass is over")?;
        let wanted = self
            .next_chunk
            .min(u16::try_from(self.left).unwrap_or(u16::MAX));
        let prefetch = held.channel.basic_qos(wanted, BasicQosOptions::default());
        answer("no prefetch", prefetch).await?;
        let consume = held.channel.basic_consume(
            self.queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = answer("the dead letters cannot be read", consume).await?;
        self.chunk = Some((consumer, wanted));
        Ok(())
    }

    /// One more has come. A chunk that is complete is cancelled, or a removal would draw a letter
    /// into it beside those of the next one.
    async fn count(&mut self, bytes: usize) -> anyhow::Result<()> {
        self.left -= 1;
        self.bytes_seen += bytes + 1_024;
        let Some((consumer, missing)) = &mut self.chunk else {
            return Ok(());
        };
        *missing -= 1;
        if *missing > 0 {
            return Ok(());
        }
        let tag = consumer.tag();
        if let Some(held) = &self.held {
            let cancel = held
                .channel
                .basic_cancel(tag, BasicCancelOptions::default());
            answer("a consumer cannot be cancelled", cancel).await?;
        }
        self.chunk = None;
        let average = self.bytes_seen / (self.total - self.left).max(1) as usize;
        let fitting = u16::try_from(CHUNK_BYTES / average.max(1)).unwrap_or(u16::MAX);
        self.next_chunk = fitting.clamp(1, LARGEST_CHUNK);
        Ok(())
    }

    /// Nothing came for a moment.
    async fn is_more_to_come(&self, waited: Duration) -> anyhow::Result<bool> {
        let held = self.held.as_ref().context("the pass is over")?;
        let (ready, readers) = look(&held.channel, &self.queue).await?;
        if ready > 0 {
            return match waited > SILENCE {
                true => Err(anyhow!(
                    "{ready} dead letters lie there and none is handed out"
                )),
                false => Ok(true),
            };
        }
        debug!(queue = %self.queue, readers, left = self.left, "fewer dead letters than were counted");
        Ok(readers > 1 && waited < for_others(self.purpose))
    }

    /// Removes a marker that outlived its check: the broker expires messages at the head only.
    async fn clear_away(&mut self, tag: u64) -> anyhow::Result<()> {
        let held = self.held.as_ref().context("the pass is over")?;
        let cleared = held.channel.basic_ack(tag, BasicAckOptions::default());
        answer("a marker cannot be removed", cleared).await?;
        self.draws_another();
        Ok(())
    }

    /// For each message acknowledged the broker hands the present consumer another one.
    fn draws_another(&mut self) {
        if let Some((_, missing)) = &mut self.chunk {
            *missing += 1;
        }
    }

    async fn take_away(&mut self, tag: u64) -> anyhow::Result<()> {
        let held = self.held.as_mut().context("the pass is over")?;
        debug_assert_eq!(held.passed.last(), Some(&tag));
        let acked = held.channel.basic_ack(tag, BasicAckOptions::default());
        answer("a dead letter cannot be removed", acked).await?;
        // An acknowledgement has no answer of its own, but the broker takes requests in turn.
        look(&held.channel, &self.queue).await?;
        held.passed.pop();
        self.draws_another();
        Ok(())
    }
}

#[async_trait]
impl Letters for Pass {
    fn total(&self) -> Option<u64> {
        Some(u64::from(self.total))
    }

    async fn next(&mut self) -> Result<Option<Letter>, Refused> {
        self.in_hand = None;
        if self.held.is_none() {
            return Ok(None);
        }
        let found = self
            .find()
            .await
            .map_err(|error| self.unavailable(&error))?;
        if found.is_none()
            && let Some(giving_back) = self.close()
        {
            giving_back.await;
        }
        Ok(found)
    }

    async fn remove(&mut self) -> Result<(), Refused> {
        let tag = match (self.purpose, self.in_hand.take()) {
            (Purpose::Change, Some(tag)) => tag,
            _ => return Err(nothing_to_remove(&self.broker)),
        };
        let removed = self.take_away(tag).await;
        removed.map_err(|error| self.unavailable(&error))
    }
}

impl Pass {
    /// Gives back what is held, which ends the pass.
    fn close(&mut self) -> Option<impl Future<Output = ()> + use<>> {
        let held = self.held.take()?;
        let chunk = self.chunk.take();
        Some(give_back(held, chunk.map(|(consumer, _)| consumer)))
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(giving_back) = self.close()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(giving_back);
        }
    }
}
