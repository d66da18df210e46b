//! Adopting: what another group has left on the broker becomes the present group's.
//!
//! Only a group that nobody runs any more can be adopted. A message is published to our own queue,
//! confirmed, and only then removed from the other's. How long a message has waited on a tier is
//! not known here, so it waits the tier's whole delay again: late, never early.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{anyhow, bail};
use bytes::Bytes;
use lapin::Channel;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions};

use super::connect::{answer, hang_up};
use super::topology::{self, Declarer, Names};
use super::{RabbitMq, message};
use crate::broker::envelope::{self, Envelope, Stay};
use crate::broker::upkeep::{Adopted, Known, Thing};
use crate::delivery::WaitKind;

/// Moves what lies in the queues of `group`, as far as their names are known.
pub async fn group(broker: &RabbitMq, group: &str, known: &Known) -> anyhow::Result<Adopted> {
    if group == &*broker.settings.group {
        bail!("this is the present group itself");
    }
    let connection = broker.connector.connect("adopt").await?;
    let version = broker.version().await?;
    let mut declarer = Declarer::new(&connection, version);
    let names = Names::new(group, &broker.settings.tiers);
    let mut there = Vec::new();
    for queue in candidates(&names, group, known) {
        if declarer.is_there(&queue.name).await? {
            let (_, consumers) = declarer.look(&queue.name).await?;
            if consumers > 0 {
                bail!(
                    "queue `{}` is being read: stop the bridge of that group first",
                    queue.name
                );
            }
            there.push(queue);
        }
    }
    if there.is_empty() {
        bail!("none of its queues is on broker `{}`", broker.settings.name);
    }
    let queues = broker.own_queues();
    topology::declare_own(&connection, &queues, version, broker.settings.declare).await?;
    let channel = answer("no channel", connection.create_channel()).await?;
    let mut adopted = Adopted::default();
    for queue in &there {
        let mut left = u64::MAX;
        while left > 0 {
            let got = channel.basic_get(queue.name.as_str().into(), BasicGetOptions::default());
            let got = answer(format!("queue `{}` cannot be read", queue.name), got).await?;
            let Some(got) = got else { break };
            left = left.saturating_sub(1).min(u64::from(got.message_count));
            move_one(broker, queue, got, &channel, &mut adopted).await?;
        }
    }
    hang_up(&connection).await;
    Ok(adopted)
}

/// A queue of the other group: what lies in it, and how long it waits there.
struct Left {
    name: String,
    holds: Holds,
}

enum Holds {
    Letters,
    Parked(WaitKind, Duration),
}

/// The queues that the group has by its name, those of any tier that was noted down or is usual.
fn candidates(names: &Names, group: &str, known: &Known) -> Vec<Left> {
    let mut delays: BTreeSet<Duration> = names.usual_tiers(WaitKind::Retry);
    for thing in &known.things {
        if let Thing::Queue(name) = thing
            && let Some(rest) = name.strip_prefix(group)
            && let Some((_, seconds)) = rest.rsplit_once('.')
            && let Ok(seconds) = seconds.parse()
        {
            delays.insert(Duration::from_secs(seconds));
        }
    }
    let mut all = vec![Left {
        name: names.dead.clone(),
        holds: Holds::Letters,
    }];
    // Tiers first: what comes due meanwhile is found in the due queues afterwards.
    for kind in [WaitKind::Retry, WaitKind::Hold] {
        all.extend(delays.iter().map(|&delay| Left {
            name: names.tier(kind, delay),
            holds: Holds::Parked(kind, delay),
        }));
    }
    for kind in [WaitKind::Retry, WaitKind::Hold] {
        all.push(Left {
            name: names.due(kind).to_owned(),
            holds: Holds::Parked(kind, Duration::ZERO),
        });
    }
    all
}

async fn move_one(
    broker: &RabbitMq,
    queue: &Left,
    got: BasicGetMessage,
    channel: &Channel,
    adopted: &mut Adopted,
) -> anyhow::Result<()> {
    let BasicGetMessage { delivery, .. } = got;
    let headers = message::own_headers(&delivery.properties);
    // A marker of the other group's start is of no use to anybody.
    if headers.get(envelope::PROBE).is_none() {
        let read = Envelope::read(headers, Bytes::from(delivery.data.clone()));
        let envelope = read.map_err(|unreadable| {
            anyhow!(
                "a message in queue `{}` is not one of ours ({unreadable}): take it away and try again",
                queue.name
            )
        })?;
        match (&envelope.stay, &queue.holds) {
            (Stay::Dead { .. }, Holds::Letters) => {
                let dead = &broker.names.dead;
                broker.publish_envelope(&envelope, dead).await?;
                adopted.dead += 1;
            }
            (
                Stay::Parked {
                    whole, remaining, ..
                },
                Holds::Parked(kind, delay),
            ) => {
                park(broker, &envelope, *kind, *whole, *remaining + *delay).await?;
                adopted.parked += 1;
            }
            _ => bail!(
                "a message in queue `{}` does not belong there: take it away and try again",
                queue.name
            ),
        }
    }
    let acked = channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default());
    answer("a message that was moved cannot be removed", acked).await?;
    Ok(())
}

async fn park(
    broker: &RabbitMq,
    envelope: &Envelope,
    kind: WaitKind,
    whole: Duration,
    rest: Duration,
) -> anyhow::Result<()> {
    if rest.is_zero() {
        let due = broker.names.due(kind);
        broker.publish_envelope(envelope, due).await?;
        return Ok(());
    }
    broker
        .park_for(&envelope.delivery, kind, whole, rest)
        .await?;
    Ok(())
}
