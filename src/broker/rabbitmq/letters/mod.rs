//! Dead letters in their queue: one pass on a connection of its own.
//!
//! Letters are taken without being acknowledged ([`taking`]), so that memory holds few bodies and of
//! all that was passed only the tags. What was not removed is given back in order ([`give_back`]).
//! Reading never counts against a letter, since our queue of dead letters has no delivery limit.
//!
//! The pass ends after as many letters as lay in the queue when it began, so it never meets what died
//! meanwhile. Letters under the eyes of another reader are not there for that moment, so passes of one
//! instance take turns, and of other instances' a pass that has taken something shows as a consumer
//! until it gives back; then the count grows. A pass that changes begins when there is no consumer and
//! the count has stood still, and not at all beside a reader that does not let go. One that finds
//! fewer than it counted while others read waits for them, for a while.
//!
//! A letter is sent again on the channel that it was taken on. The broker does what comes on a channel
//! in turn, so the removal of one is done before the next one is published, and needs no round trip
//! of its own: whoever is killed leaves at most one letter that is here and in its next life.
//!
//! The replay lock is an exclusive queue, gone with its connection.

mod give_back;
mod read;
mod taking;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use async_trait::async_trait;
use lapin::options::{ConfirmSelectOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::FieldTable;
use lapin::{Channel, Confirmation, Connection};
use tokio::time::{sleep, timeout};

use super::connect::answer;
use super::publish::{BLOCKED, Target, header_room, publish_alone};
use super::{RabbitMq, message, topology};
use crate::broker::envelope::{Dialect, Envelope};
use crate::broker::letters::{PATIENCE, nothing_to_remove};
use crate::broker::{Broker, Letter, Letters, NotOpened, Purpose, Refused, Wait};

use give_back::give_back;
use taking::Taking;

/// How long a reader waits for what other readers hold.
const FOR_OTHERS_LISTING: Duration = Duration::from_secs(3);
const FOR_OTHERS_CHANGING: Duration = Duration::from_secs(15);
/// How long a pass of this instance waits for the one before it.
const TURN: Duration = Duration::from_secs(10);
/// A count that stood still for so long is not being added to by somebody who gives back, who waits at
/// most half a second between two letters.
const STEADY: Duration = Duration::from_millis(750);
/// Between looks at what others do.
const LOOK: Duration = Duration::from_millis(50);
/// A larger body, in bytes, is not published on a pass's own channel: a broker that refuses one for
/// its size closes the channel, and with it the pass.
const SMALL: usize = 64 << 10;
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
    /// Where deliveries lie that are due.
    due: Target,
}

/// Opens the letters, as far as they reach now.
pub async fn open(broker: &RabbitMq, purpose: Purpose) -> Result<Pass, NotOpened> {
    let take_turn = || timeout(TURN, broker.letters.clone().lock_owned());
    let mut turn = match purpose {
        // Without its turn a listing shows what is there.
        Purpose::List => take_turn().await.ok(),
        Purpose::Change => None,
    };
    let failed = |error: anyhow::Error| NotOpened::from(broker.unavailable(format!("{error:#}")));
    let connection = broker.connector.connect("letters").await.map_err(failed)?;
    if purpose == Purpose::Change {
        lock(broker, &connection).await?;
        let busy = |_| NotOpened::Busy("this bridge is going through them already".into());
        turn = Some(take_turn().await.map_err(busy)?);
    }
    let queue = broker.names.dead.clone();
    let opened = async {
        let channel = answer("no channel", connection.create_channel()).await?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        answer("no confirms", confirms).await?;
        let (ready, readers) = look_when_quiet(&channel, &queue, purpose).await?;
        anyhow::Ok((channel, ready, readers))
    };
    let (channel, total, readers) = opened.await.map_err(failed)?;
    if purpose == Purpose::Change && readers > 0 {
        return Err(NotOpened::Busy(format!(
            "queue `{queue}` has {readers} readers, who may hold some of them \
             (`rabbitmqctl list_consumers queue_name channel_pid` shows which)"
        )));
    }
    Ok(Pass {
        broker: broker.settings.name.clone(),
        purpose,
        total,
        taking: Some(Taking::new(connection, channel, queue, total, turn)),
        in_hand: None,
        due: Target::queue(broker.names.due(Wait::AT_ONCE.kind)),
    })
}

/// Looks until nobody else seems to have taken letters, or for as long as `purpose` has patience.
async fn look_when_quiet(
    channel: &Channel,
    queue: &str,
    purpose: Purpose,
) -> anyhow::Result<(u32, u32)> {
    let steady = match purpose {
        Purpose::List => Duration::ZERO,
        Purpose::Change => STEADY,
    };
    let until = Instant::now() + for_others(purpose);
    let (mut last, mut since) = (None, Instant::now());
    loop {
        let seen = look(channel, queue).await?;
        if seen.1 > 0 || last != Some(seen) {
            (last, since) = (Some(seen), Instant::now());
        }
        let is_quiet = seen.1 == 0 && since.elapsed() >= steady;
        if is_quiet || Instant::now() >= until {
            return Ok(seen);
        }
        sleep(LOOK).await;
    }
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
            Err(error) if topology::refusal(&error) != Some(AMQPSoftError::RESOURCELOCKED) => {
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

fn for_others(purpose: Purpose) -> Duration {
    match purpose {
        Purpose::List => FOR_OTHERS_LISTING,
        Purpose::Change => FOR_OTHERS_CHANGING,
    }
}

/// How many letters lie there that nobody holds, and how many consumers the queue has.
async fn look(channel: &Channel, queue: &str) -> anyhow::Result<(u32, u32)> {
    let what = format!("queue `{queue}` cannot be looked at");
    answer(what, topology::look(channel, queue)).await
}

impl Pass {
    fn unavailable(&self, error: &anyhow::Error) -> Refused {
        Refused::Unavailable {
            broker: self.broker.clone(),
            why: format!("{error:#}"),
        }
    }

    /// Publishes the letter in its next life where it was taken: `false` when it was not kept.
    async fn publish_here(&mut self, letter: &Letter) -> Result<bool, Refused> {
        let delivery = letter.revived_on(&self.broker)?;
        let Some(taking) = &self.taking else {
            return Err(nothing_to_remove(&self.broker));
        };
        if taking.connection.status().blocked() {
            return Err(self.unavailable(&anyhow!(BLOCKED)));
        }
        let Wait { kind, delay } = Wait::AT_ONCE;
        let envelope = Envelope::parked(&delivery, kind, delay, delay);
        let written = envelope.write(Dialect::Amqp, header_room(&taking.connection));
        let properties = message::properties_of(&delivery, &written.headers);
        let published = publish_alone(&taking.channel, &self.due, &written.body, properties);
        let confirmed = answer("a letter cannot be sent again", published).await;
        let confirmed = confirmed.map_err(|error| self.unavailable(&error))?;
        Ok(matches!(confirmed, Confirmation::Ack(None)))
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

    async fn send_again(&mut self, broker: &dyn Broker, letter: &Letter) -> Result<(), Refused> {
        let may_be_removed = self.purpose == Purpose::Change && self.in_hand.is_some();
        if !may_be_removed {
            return Err(nothing_to_remove(&self.broker));
        }
        let is_small = letter.delivery.event.body.len() <= SMALL;
        if !is_small || !self.publish_here(letter).await? {
            // The broker's own way, which mends what can be mended.
            broker.revive(letter).await?;
            return self.remove().await;
        }
        self.in_hand = None;
        let Some(taking) = &mut self.taking else {
            return Ok(());
        };
        let removed = taking.acknowledge_last().await;
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
