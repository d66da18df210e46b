//! Publishing: parks and dead letters, each confirmed before it counts.
//!
//! One publish in flight per channel, because a returned message is handed to whichever publish of
//! its channel completes first; a pool of channels gives the width. Success is a positive
//! confirmation without a returned message, and nothing else. Every publish has a deadline: when it
//! passes, the connection is dropped and the next publish opens another. The message goes out again
//! under the same message id, so what was kept after all is a duplicate, not a second delivery.
//! A connection that an alarm has blocked is kept, since the broker would block the next one too and
//! would not even read that we have gone; nothing more is written to it until the alarm is over.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context as _;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ErrorKind};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::time::timeout;

use super::connect::{Connector, answer};
use crate::broker::Refused;

/// Publishes under way at once.
const CHANNELS: usize = 32;
/// For each step of a publish: a place in the pool, the connection, and the confirmation.
const DEADLINE: Duration = Duration::from_secs(10);
/// Room in a header frame for what is not a header (properties, frame).
const FRAME_RESERVE_BYTES: usize = 4 * 1024;
/// RabbitMQ's own limit on a frame where the handshake named none.
const DEFAULT_FRAME_BYTES: u32 = 131_072;
pub const BLOCKED: &str = "an alarm (memory or disk) blocks publishers";

/// Where a message is published to.
#[derive(Debug)]
pub struct Target {
    exchange: ShortString,
    routing_key: ShortString,
}

impl Target {
    /// A queue of ours by its name, through the default exchange.
    pub fn queue(name: &str) -> Self {
        Self {
            exchange: ShortString::default(),
            routing_key: name.into(),
        }
    }

    /// `None` where one of them is longer than the 255 bytes that AMQP has room for.
    pub fn new(exchange: &str, routing_key: &str) -> Option<Self> {
        Some(Self {
            exchange: ShortString::try_new(exchange).ok()?,
            routing_key: ShortString::try_new(routing_key).ok()?,
        })
    }

    /// Whether it goes to one queue, through the default exchange.
    pub fn is_queue(&self) -> bool {
        self.exchange.as_str().is_empty()
    }
}

/// An open connection and its idle channels.
struct Link {
    connection: Connection,
    idle: Mutex<Vec<Channel>>,
}

impl Link {
    fn idle(&self) -> MutexGuard<'_, Vec<Channel>> {
        self.idle
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn take_idle(&self) -> Option<Channel> {
        self.idle().pop()
    }
}

/// Why a message was not kept.
#[derive(Debug)]
pub enum Unkept {
    /// It came back: no queue takes it.
    Unroutable,
    /// The queue said no: full, or it has no leader just now.
    Nacked,
    Refused(Refused),
}

impl From<Refused> for Unkept {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// How many bytes of headers fit into a frame of `connection`.
pub fn header_room(connection: &Connection) -> usize {
    let negotiated = connection.configuration().frame_max();
    let frame = if negotiated == 0 {
        DEFAULT_FRAME_BYTES
    } else {
        negotiated
    };
    (frame as usize).saturating_sub(FRAME_RESERVE_BYTES)
}

/// Publishes on `channel`, which confirms and has no other publish under way. Kept is what is
/// answered with `Ack(None)`, and nothing else.
pub async fn publish_alone(
    channel: &Channel,
    target: &Target,
    body: &[u8],
    properties: BasicProperties,
) -> lapin::Result<Confirmation> {
    let options = BasicPublishOptions {
        mandatory: true,
        ..Default::default()
    };
    let sent = channel.basic_publish(
        target.exchange.clone(),
        target.routing_key.clone(),
        options,
        body,
        properties,
    );
    sent.await?.await
}

/// A pool of confirming channels on a connection of its own.
pub struct Publisher {
    broker: Arc<str>,
    connector: Connector,
    places: Semaphore,
    link: AsyncMutex<Option<Arc<Link>>>,
    repairing: AsyncMutex<()>,
    repairs: AtomicU64,
}

impl Publisher {
    pub fn new(broker: Arc<str>, connector: Connector) -> Self {
        Self {
            broker,
            connector,
            places: Semaphore::new(CHANNELS),
            link: AsyncMutex::new(None),
            repairing: AsyncMutex::new(()),
            repairs: AtomicU64::new(0),
        }
    }

    /// How many bytes of headers fit into a frame of the connection.
    pub async fn header_room(&self) -> anyhow::Result<usize> {
        let link = self.connected().await?;
        Ok(header_room(&link.connection))
    }

    /// Publishes a persistent message and returns when a queue has it.
    pub async fn publish(
        &self,
        target: &Target,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), Unkept> {
        let place = timeout(DEADLINE, self.places.acquire())
            .await
            .map_err(|_| self.unavailable("too many messages wait to be published".into()))?;
        let _place = place.expect("the semaphore is never closed");
        let link = timeout(DEADLINE, self.link())
            .await
            .map_err(|_| self.unavailable(format!("not connected within {DEADLINE:?}")))?
            .map_err(|error| self.unavailable(format!("{error:#}")))?;
        if link.connection.status().blocked() {
            return Err(self.unavailable(BLOCKED.into()).into());
        }
        let published = timeout(DEADLINE, self.publish_on(&link, target, body, properties)).await;
        match published {
            Ok(result) => result,
            Err(_) if link.connection.status().blocked() => {
                Err(self.unavailable(BLOCKED.into()).into())
            }
            Err(_) => {
                // Half open: nothing on this connection can be trusted.
                self.drop_link(&link).await;
                let why = format!("no confirmation within {DEADLINE:?}");
                Err(self.unavailable(why).into())
            }
        }
    }

    async fn publish_on(
        &self,
        link: &Arc<Link>,
        target: &Target,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), Unkept> {
        let channel = self
            .channel(link)
            .await
            .map_err(|error| self.unavailable(format!("{error:#}")))?;
        match publish_alone(&channel, target, body, properties).await {
            Ok(Confirmation::Ack(None)) => {
                link.idle().push(channel);
                Ok(())
            }
            // Any other answer costs the channel, so that nothing of it can be taken for the
            // answer to a later publish.
            Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_))) => Err(Unkept::Unroutable),
            Ok(Confirmation::Nack(None)) => Err(Unkept::Nacked),
            Ok(Confirmation::NotRequested) => {
                Err(self.rejected("the channel does not confirm".into()).into())
            }
            Err(error) => {
                if !link.connection.status().connected() {
                    self.drop_link(link).await;
                }
                Err(self.publish_error(&error, body.len()).into())
            }
        }
    }

    /// Why nothing can be published just now, where the broker has said so.
    pub fn blocked(&self) -> Option<&'static str> {
        // Who holds the lock is connecting, and that is not blocked.
        let link = self.link.try_lock().ok()?;
        let status = link.as_ref()?.connection.status();
        (status.connected() && status.blocked()).then_some(BLOCKED)
    }

    /// What a publish that was not kept means to the pipeline.
    pub fn refused(&self, unkept: Unkept, target: &Target) -> Refused {
        match unkept {
            Unkept::Unroutable => self.rejected(format!(
                "no queue takes routing key `{}`",
                target.routing_key
            )),
            Unkept::Nacked => self.rejected("negative confirmation (is the queue full?)".into()),
            Unkept::Refused(refused) => refused,
        }
    }

    fn publish_error(&self, error: &lapin::Error, size_bytes: usize) -> Refused {
        match error.kind() {
            // The reply to a body above `max_message_size` names no class of its own.
            ErrorKind::ProtocolError(why) if why.get_message().as_str().contains("larger than") => {
                Refused::TooLarge {
                    broker: self.broker.clone(),
                    size_bytes,
                }
            }
            ErrorKind::ProtocolError(why) => self.rejected(why.to_string()),
            _ => self.unavailable(error.to_string()),
        }
    }

    /// A channel for errands beside publishing: the broker's time, and what lies on tiers.
    pub async fn connection_channel(&self) -> anyhow::Result<Channel> {
        let link = self.connected().await?;
        answer("no channel", link.connection.create_channel()).await
    }

    /// Declares with `declare` on this connection, once for all who found the same thing missing:
    /// who waited here while another did it goes without.
    pub async fn repair(
        &self,
        declare: impl AsyncFnOnce(&Connection) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let seen = self.repairs.load(Ordering::Acquire);
        let _turn = self.repairing.lock().await;
        if self.repairs.load(Ordering::Acquire) != seen {
            return Ok(());
        }
        let link = self.connected().await?;
        declare(&link.connection).await?;
        self.repairs.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Declares with `declare` on this connection, whatever others declare.
    pub async fn beside(
        &self,
        declare: impl AsyncFnOnce(&Connection) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let link = self.connected().await?;
        declare(&link.connection).await
    }

    async fn connected(&self) -> anyhow::Result<Arc<Link>> {
        timeout(DEADLINE, self.link())
            .await
            .context("not connected in time")?
    }

    async fn link(&self) -> anyhow::Result<Arc<Link>> {
        let mut link = self.link.lock().await;
        if let Some(open) = link
            .as_ref()
            .filter(|link| link.connection.status().connected())
        {
            return Ok(open.clone());
        }
        let connection = self.connector.connect("publish").await?;
        let open = Arc::new(Link {
            connection,
            idle: Mutex::default(),
        });
        *link = Some(open.clone());
        Ok(open)
    }

    /// Forgets `broken`, unless another publish has put a new connection in its place already.
    async fn drop_link(&self, broken: &Arc<Link>) {
        self.link
            .lock()
            .await
            .take_if(|link| Arc::ptr_eq(link, broken));
    }

    async fn channel(&self, link: &Link) -> anyhow::Result<Channel> {
        while let Some(channel) = link.take_idle() {
            if channel.status().connected() {
                return Ok(channel);
            }
        }
        let channel = answer("no channel", link.connection.create_channel()).await?;
        answer(
            "no confirms",
            channel.confirm_select(ConfirmSelectOptions::default()),
        )
        .await?;
        Ok(channel)
    }

    fn unavailable(&self, why: String) -> Refused {
        Refused::Unavailable {
            broker: self.broker.clone(),
            why,
        }
    }

    fn rejected(&self, why: String) -> Refused {
        Refused::Rejected {
            broker: self.broker.clone(),
            why,
        }
    }
}
