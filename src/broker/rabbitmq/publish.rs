//! Publishing: parks and dead letters, each confirmed before it counts.
//!
//! One publish in flight per channel, because a returned message is handed to whichever publish of
//! its channel completes first; a pool of channels gives the width. Success is a positive
//! confirmation without a returned message, and nothing else. Every publish has a deadline: when it
//! passes, the connection is dropped and the next publish opens another. The message goes out again
//! under the same message id, so what was kept after all is a duplicate, not a second delivery.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ErrorKind};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::time::timeout;

use super::connect::Connector;
use crate::broker::Refused;

/// Publishes under way at once.
const CHANNELS: usize = 32;
/// From asking for a channel to the confirmation.
const DEADLINE: Duration = Duration::from_secs(10);
/// Room in a header frame for what is not a header (properties, frame).
const FRAME_RESERVE_BYTES: usize = 4 * 1024;
/// RabbitMQ's own limit on a frame where the handshake named none.
const DEFAULT_FRAME_BYTES: u32 = 131_072;

/// Where a message is published to.
pub struct Target {
    pub exchange: String,
    pub routing_key: String,
}

impl Target {
    /// A queue by its name, through the default exchange.
    pub fn queue(name: &str) -> Self {
        Self {
            exchange: String::new(),
            routing_key: name.to_owned(),
        }
    }
}

/// An open connection and its idle channels.
struct Link {
    connection: Connection,
    idle: Mutex<Vec<Channel>>,
}

/// A pool of confirming channels on a connection of its own.
pub struct Publisher {
    broker: Arc<str>,
    connector: Connector,
    places: Semaphore,
    link: AsyncMutex<Option<Arc<Link>>>,
}

impl Publisher {
    pub fn new(broker: Arc<str>, connector: Connector) -> Self {
        Self {
            broker,
            connector,
            places: Semaphore::new(CHANNELS),
            link: AsyncMutex::new(None),
        }
    }

    /// How many bytes of headers fit into a frame of the connection.
    pub async fn header_room(&self) -> anyhow::Result<usize> {
        let link = timeout(DEADLINE, self.link())
            .await
            .context("no connection in time")??;
        let negotiated = link.connection.configuration().frame_max();
        let frame = if negotiated == 0 {
            DEFAULT_FRAME_BYTES
        } else {
            negotiated
        };
        Ok((frame as usize).saturating_sub(FRAME_RESERVE_BYTES))
    }

    /// Publishes a persistent message and returns when a queue has it.
    pub async fn publish(
        &self,
        target: Target,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), Refused> {
        let published = timeout(DEADLINE, self.publish_once(&target, body, properties)).await;
        match published {
            Ok(result) => result,
            Err(_) => {
                // Blocked by an alarm, or half open: nothing on this connection can be trusted.
                self.drop_link().await;
                Err(self.unavailable(format!("no confirmation within {DEADLINE:?}")))
            }
        }
    }

    async fn publish_once(
        &self,
        target: &Target,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), Refused> {
        let _place = self
            .places
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let link = self
            .link()
            .await
            .map_err(|e| self.unavailable(format!("{e:#}")))?;
        let channel = self
            .channel(&link)
            .await
            .map_err(|e| self.unavailable(format!("{e:#}")))?;
        let options = BasicPublishOptions {
            mandatory: true,
            ..Default::default()
        };
        let sent = channel
            .basic_publish(
                target.exchange.as_str().into(),
                target.routing_key.as_str().into(),
                options,
                body,
                properties,
            )
            .await;
        let confirmed = match sent {
            Ok(confirm) => confirm.await,
            Err(error) => Err(error),
        };
        match confirmed {
            Ok(Confirmation::Ack(None)) => {
                link.idle
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner())
                    .push(channel);
                Ok(())
            }
            Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_))) => Err(self.rejected(
                format!("nothing is bound to routing key `{}`", target.routing_key),
            )),
            Ok(Confirmation::Nack(None)) => {
                Err(self.rejected("negative confirmation (is the queue full?)".into()))
            }
            Ok(Confirmation::NotRequested) => {
                Err(self.rejected("the channel does not confirm".into()))
            }
            Err(error) => {
                if !link.connection.status().connected() {
                    self.drop_link().await;
                }
                Err(self.publish_error(&error, body.len()))
            }
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

    /// The connection for things beside publishing (listing dead letters).
    pub async fn connection_channel(&self) -> anyhow::Result<Channel> {
        let link = self.link().await?;
        link.connection.create_channel().await.context("no channel")
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

    async fn drop_link(&self) {
        self.link.lock().await.take();
    }

    async fn channel(&self, link: &Link) -> anyhow::Result<Channel> {
        loop {
            let idle = link
                .idle
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .pop();
            match idle {
                Some(channel) if channel.status().connected() => return Ok(channel),
                Some(_) => {}
                None => break,
            }
        }
        let channel = link
            .connection
            .create_channel()
            .await
            .context("no channel")?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .context("no confirms")?;
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
