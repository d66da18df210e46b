//! Parked deliveries on their tiers: counted, brought forward, dropped.
//!
//! A tier is never browsed in place: what is looked at is taken off it, one message at a time, and
//! removed only when the broker has confirmed its copy, on the due queue or on a tier again. So a
//! tier is emptied, up to the count that it had at the start, and what the order is not about waits
//! on for what is left of its delay, by the broker's own clock ([`super::clock`]). A process that dies
//! on the way repeats what it was moving just then, and loses nothing.
//!
//! Tiers that the config no longer has are looked at where they are usual ones; others cannot be found
//! over AMQP, and come due by themselves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use lapin::Channel;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use tracing::{info, warn};

use super::connect::answer;
use super::{RabbitMq, clock, message, topology};
use crate::broker::Refused;
use crate::broker::envelope::{Envelope, Stay};
use crate::broker::parked::{Deed, Done, Follow, Order, Waiting, Whose};
use crate::delivery::WaitKind;

/// Messages on the move at once; each has a channel of its own. Fewer than the publisher has, which
/// goes on parking beside this.
const AT_ONCE: usize = 24;

/// How many lie on each tier that has any.
pub async fn list(broker: &RabbitMq) -> Result<Vec<Waiting>, Refused> {
    let mut rows = Vec::new();
    if !broker.settings.keeps_deliveries {
        return Ok(rows);
    }
    for kind in [WaitKind::Retry, WaitKind::Hold] {
        for (delay, count) in counts(broker, kind).await? {
            if count > 0 {
                rows.push(Waiting {
                    kind,
                    tier_seconds: Some(delay.as_secs()),
                    subscription: None,
                    count,
                    at_least: false,
                    oldest: None,
                    next_due: None,
                });
            }
        }
    }
    Ok(rows)
}

/// The tiers of `kind`, shortest first, with what lies on each. One that is not there holds nothing.
async fn counts(broker: &RabbitMq, kind: WaitKind) -> Result<Vec<(Duration, u64)>, Refused> {
    let failed = |error: anyhow::Error| broker.unavailable(format!("{error:#}"));
    let mut channel = broker
        .publisher
        .connection_channel()
        .await
        .map_err(failed)?;
    let mut counts = Vec::new();
    for delay in broker.names.usual_tiers(kind) {
        let tier = broker.names.tier(kind, delay);
        match answer(format!("queue `{tier}`"), topology::look(&channel, &tier)).await {
            Ok((ready, _)) => counts.push((delay, u64::from(ready))),
            // The broker closes the channel with its "no".
            Err(error) if topology::is_missing(&error) => {
                let opened = broker.publisher.connection_channel().await;
                channel = opened.map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
    }
    close(&channel, "counted").await;
    Ok(counts)
}

/// Carries out an order, tier by tier, the shortest first: what is parked again goes to a tier that
/// is no longer than the one it came from, or behind those that were counted on a longer one, and so
/// is not met again.
pub async fn carry_out(
    broker: &RabbitMq,
    order: &Order,
    follow: &dyn Follow,
) -> Result<Done, Refused> {
    let mut done = Done::default();
    if !broker.settings.keeps_deliveries {
        return Ok(done);
    }
    let mut tiers = Vec::new();
    for kind in order.kinds() {
        let counts = counts(broker, kind).await?;
        tiers.extend(
            counts
                .into_iter()
                .map(|(delay, count)| (kind, delay, count)),
        );
    }
    let total = tiers.iter().map(|(_, _, count)| count).sum();
    if order.most.is_some_and(|most| total > most) && order.whose != Whose::All {
        return Err(Refused::Rejected {
            broker: broker.settings.name.clone(),
            why: format!("{total} messages lie on the tiers, which is too many to look through"),
        });
    }
    follow.expects(total);
    let now = match &order.whose {
        Whose::All => None,
        Whose::Of { .. } if total == 0 => None,
        Whose::Of { .. } => match clock::look(broker).await {
            Ok(reading) => Some(reading),
            Err(error) => {
                warn!(broker = %broker.settings.name, error = format!("{error:#}"), "the broker's time is not known: what is parked again begins its tier anew");
                None
            }
        },
    };
    for (kind, delay, count) in tiers {
        let tier = Emptying {
            broker,
            order,
            follow,
            kind,
            delay,
            queue: broker.names.tier(kind, delay),
            now,
            left: AtomicU64::new(count),
        };
        done += tier.empty().await?;
        if follow.cancelled().is_cancelled() {
            break;
        }
    }
    if done.count > 0 {
        info!(
            broker = %broker.settings.name, order = order.deed.as_str(), count = done.count,
            parked_again = done.parked_again, "parked deliveries were taken off their tiers"
        );
    }
    Ok(done)
}

/// One tier being emptied.
struct Emptying<'a> {
    broker: &'a RabbitMq,
    order: &'a Order,
    follow: &'a dyn Follow,
    kind: WaitKind,
    delay: Duration,
    queue: String,
    now: Option<clock::Reading>,
    /// How many of those that lay here at the start nobody has taken yet.
    left: AtomicU64,
}

impl Emptying<'_> {
    async fn empty(&self) -> Result<Done, Refused> {
        let movers = AT_ONCE.min(self.left.load(Ordering::Relaxed) as usize);
        let mut done = Done::default();
        for moved in join_all((0..movers).map(|_| self.take_turns())).await {
            done += moved?;
        }
        Ok(done)
    }

    /// Takes one message after the other until all are taken.
    async fn take_turns(&self) -> Result<Done, Refused> {
        let failed = |error: anyhow::Error| self.broker.unavailable(format!("{error:#}"));
        let opened = self.broker.publisher.connection_channel().await;
        let channel = opened.map_err(failed)?;
        let mut done = Done::default();
        let ended = self.take_all(&channel, &mut done).await;
        close(&channel, "moved").await;
        ended.map(|()| done)
    }

    async fn take_all(&self, channel: &Channel, done: &mut Done) -> Result<(), Refused> {
        let failed = |error: anyhow::Error| self.broker.unavailable(format!("{error:#}"));
        let one_less = |left: u64| left.checked_sub(1);
        while !self.follow.cancelled().is_cancelled()
            && self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
                .is_ok()
        {
            let Some(got) = get(channel, &self.queue).await.map_err(failed)? else {
                // The rest has become due by itself.
                self.left.store(0, Ordering::Relaxed);
                break;
            };
            let meant = self.move_one(got).await?;
            self.follow.saw(meant);
            match meant {
                true => done.count += 1,
                false => done.parked_again += 1,
            }
        }
        Ok(())
    }

    /// Whether the message was one that the order is about.
    async fn move_one(&self, got: BasicGetMessage) -> Result<bool, Refused> {
        let taken = got.delivery;
        let headers = message::own_headers(&taken.properties);
        let due = self.broker.names.due(self.kind);
        let mut done = None;
        match Envelope::read(headers, Bytes::from(taken.data.clone())) {
            Ok(envelope) => {
                if self.move_delivery(&envelope, due).await? {
                    done = Some(envelope.delivery);
                }
            }
            // Markers and foreign messages go on as they are; the due side knows what to do with them.
            Err(_) => {
                let as_it_was = taken.properties.clone();
                self.broker.publish_own(due, &taken.data, as_it_was).await?;
            }
        }
        let acked = taken.acker.ack(BasicAckOptions::default());
        answer("a message cannot be removed from its tier", acked)
            .await
            .map_err(|error| self.broker.unavailable(format!("{error:#}")))?;
        if let Some(delivery) = &done {
            self.follow.did(delivery, delivery.event.size_bytes());
        }
        Ok(done.is_some())
    }

    async fn move_delivery(&self, envelope: &Envelope, due: &str) -> Result<bool, Refused> {
        let meant = self.order.whose.includes(&envelope.delivery);
        let &Stay::Parked {
            kind,
            whole,
            remaining,
            since,
        } = &envelope.stay
        else {
            return self
                .broker
                .publish_envelope(envelope, due)
                .await
                .map(|()| false);
        };
        match (meant, self.order.deed) {
            (true, Deed::Drop) => {}
            (true, Deed::Now) => {
                let now = Envelope::parked(&envelope.delivery, kind, whole, Duration::ZERO);
                self.broker.publish_envelope(&now, due).await?;
            }
            (false, _) => {
                let passed = match (self.now, since) {
                    (Some(now), Some(since)) => now.passed(since),
                    _ => Duration::ZERO,
                };
                let rest = self.delay.saturating_sub(passed) + remaining;
                self.broker
                    .park_for(&envelope.delivery, self.kind, whole, rest)
                    .await?;
            }
        }
        Ok(meant)
    }
}

async fn get(channel: &Channel, queue: &str) -> anyhow::Result<Option<BasicGetMessage>> {
    answer(
        format!("queue `{queue}` cannot be read"),
        channel.basic_get(queue.into(), BasicGetOptions { no_ack: false }),
    )
    .await
}

/// A channel that cannot be closed in time is gone with its connection.
async fn close(channel: &Channel, why: &str) {
    let _ = answer(
        "the channel cannot be closed",
        channel.close(200, why.into()),
    )
    .await;
}
