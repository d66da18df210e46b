//! Taking dead letters from their queue without acknowledging them.
//!
//! Each chunk has a consumer with a prefetch of its own, so that no more than a chunk of bodies is on
//! its way to us, however many letters are held. It stays until the next chunk is wanted: other readers
//! know by it that letters are held.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use futures_util::StreamExt as _;
use lapin::message::Delivery as Message;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;
use tracing::debug;

use super::look;
use crate::broker::rabbitmq::connect::answer;

/// Letters in the first chunk; later ones hold about [`CHUNK_BYTES`].
const FIRST_CHUNK: u16 = 32;
const LARGEST_CHUNK: u16 = 1_000;
const CHUNK_BYTES: usize = 8 << 20;
/// How long nothing comes before we look whether there is something.
const LULL: Duration = Duration::from_millis(200);
/// A queue that has letters and hands out none for so long does not work.
const SILENCE: Duration = Duration::from_secs(20);

/// What is taken, and by what.
pub struct Taking {
    pub queue: String,
    pub connection: Connection,
    pub channel: Channel,
    /// Tags of what was taken and not removed, in order.
    pub taken: Vec<u64>,
    total: u32,
    /// Of the total, not taken yet.
    pub left: u32,
    /// The consumer of the present chunk, and how many it is still to bring.
    pub chunk: Option<(Consumer, u16)>,
    next_chunk: u16,
    bytes_seen: usize,
    /// Of this instance, one pass at a time: they would hide letters from each other.
    _turn: Option<OwnedMutexGuard<()>>,
}

impl Taking {
    pub fn new(
        connection: Connection,
        channel: Channel,
        queue: String,
        total: u32,
        turn: Option<OwnedMutexGuard<()>>,
    ) -> Self {
        Self {
            queue,
            connection,
            channel,
            taken: Vec::new(),
            total,
            left: total,
            chunk: None,
            next_chunk: FIRST_CHUNK,
            bytes_seen: 0,
            _turn: turn,
        }
    }

    /// The next one; `None` after the last. While other readers hold some of what was counted it
    /// waits for them as long as `patience`.
    pub async fn take(&mut self, patience: Duration) -> anyhow::Result<Option<Message>> {
        let began = Instant::now();
        while self.left > 0 {
            let (consumer, missing) = match &mut self.chunk {
                Some((_, 0)) => {
                    self.end_chunk().await?;
                    continue;
                }
                Some(chunk) => (&mut chunk.0, &mut chunk.1),
                None => {
                    self.begin_chunk().await?;
                    continue;
                }
            };
            match timeout(LULL, consumer.next()).await {
                Ok(Some(message)) => {
                    let message = message?;
                    *missing -= 1;
                    self.left -= 1;
                    self.bytes_seen += message.data.len() + 1_024;
                    self.taken.push(message.delivery_tag);
                    return Ok(Some(message));
                }
                Ok(None) => return Err(anyhow!("the queue of dead letters hands out no more")),
                Err(_) if self.is_more_to_come(began.elapsed(), patience).await? => {}
                Err(_) => self.left = 0,
            }
        }
        Ok(None)
    }

    /// Removes the one that was taken last, and returns when the broker has done it.
    pub async fn remove_last(&mut self) -> anyhow::Result<()> {
        self.acknowledge_last().await?;
        // An acknowledgement has no answer of its own, but the broker takes requests in turn.
        look(&self.channel, &self.queue).await?;
        Ok(())
    }

    /// Removes the one that was taken last before anything else is done on this channel.
    pub async fn acknowledge_last(&mut self) -> anyhow::Result<()> {
        // Or the removal would draw one more letter into a chunk that is over.
        if matches!(self.chunk, Some((_, 0))) {
            self.end_chunk().await?;
        }
        let Some(tag) = self.taken.pop() else {
            return Ok(());
        };
        let acked = self.channel.basic_ack(tag, BasicAckOptions::default());
        answer("a dead letter cannot be removed", acked).await?;
        // For each one acknowledged the broker hands the present consumer another one.
        if let Some((_, missing)) = &mut self.chunk {
            *missing += 1;
        }
        Ok(())
    }

    /// A consumer that is given so many letters and no more.
    async fn begin_chunk(&mut self) -> anyhow::Result<()> {
        let left = u16::try_from(self.left).unwrap_or(u16::MAX);
        let wanted = self.next_chunk.min(left);
        let prefetch = self.channel.basic_qos(wanted, BasicQosOptions::default());
        answer("no prefetch", prefetch).await?;
        let consume = self.channel.basic_consume(
            self.queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = answer("the dead letters cannot be read", consume).await?;
        self.chunk = Some((consumer, wanted));
        Ok(())
    }

    async fn end_chunk(&mut self) -> anyhow::Result<()> {
        let Some((consumer, _)) = &self.chunk else {
            return Ok(());
        };
        let options = BasicCancelOptions::default();
        let cancelled = self.channel.basic_cancel(consumer.tag(), options);
        answer("a consumer cannot be cancelled", cancelled).await?;
        self.chunk = None;
        let average = self.bytes_seen / (self.total - self.left).max(1) as usize;
        let fitting = u16::try_from(CHUNK_BYTES / average.max(1)).unwrap_or(u16::MAX);
        self.next_chunk = fitting.clamp(1, LARGEST_CHUNK);
        Ok(())
    }

    /// Nothing came for a moment.
    async fn is_more_to_come(&self, waited: Duration, patience: Duration) -> anyhow::Result<bool> {
        let (ready, readers) = look(&self.channel, &self.queue).await?;
        if ready > 0 && waited > SILENCE {
            return Err(anyhow!(
                "{ready} dead letters lie there and none is handed out"
            ));
        }
        debug!(queue = %self.queue, ready, readers, left = self.left, "no dead letter came for a moment");
        Ok(ready > 0 || (readers > 1 && waited < patience))
    }
}
