//! The broker's clock, as far as it can be known without trusting ours.
//!
//! AMQP has no request for the time, but a message that is dead-lettered is stamped by the broker:
//! one that goes through two short-lived queues of our own tells between which of our (monotonic)
//! moments the broker's clock passed that second. A parked delivery carries the latest time at which
//! it can have been parked, and what has passed since is taken to be the least that it can be, so
//! that no wall clock of ours makes a delivery early. Where we may not make the queues the time is not
//! known, and a wait that is interrupted begins its tier anew: late, not early.
//!
//! In a cluster it is the clock of the node that we are connected to, and AMQP does not say which that
//! is: a delivery that is parked through one node and taken off its tier through another is early by as
//! much as their clocks are apart, but never by more than it had still to wait on that tier.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::RabbitMq;
use super::connect::answer;

/// Between two looks at the broker's clock.
const EVERY: Duration = Duration::from_secs(60);
/// After one that failed.
const AGAIN: Duration = Duration::from_secs(5);
/// An older look says nothing any more: clocks drift, and are set.
const GOOD_FOR: Duration = Duration::from_secs(600);
/// For one look.
const DEADLINE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);
/// The stamp is in whole seconds, rounded down.
const STAMP: Duration = Duration::from_secs(1);

/// What one look has shown.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// When the message was sent, and when it was back.
    sent: Instant,
    back: Instant,
    /// What the broker stamped on it in between.
    stamp: Timestamp,
}

impl Reading {
    /// The broker's clock shows this now, at the latest.
    fn at_the_latest(&self) -> Option<Timestamp> {
        self.stamp
            .checked_add(self.sent.elapsed() + STAMP)
            .ok()
            .filter(|_| self.back.elapsed() < GOOD_FOR)
    }

    /// What the broker's clock shows now, at the earliest and at the latest.
    pub fn now(&self) -> Option<(Timestamp, Timestamp)> {
        let earliest = self.stamp.checked_add(self.back.elapsed()).ok()?;
        Some((earliest, self.at_the_latest()?))
    }

    /// How much time has passed since the broker's clock showed `since`, at least.
    pub fn passed(&self, since: Timestamp) -> Duration {
        let now = self.stamp.checked_add(self.back.elapsed());
        let passed = now.map(|now| now.duration_since(since));
        passed.map_or(Duration::ZERO, |passed| {
            Duration::try_from(passed).unwrap_or_default()
        })
    }
}

/// The last look.
#[derive(Debug, Default)]
pub struct Clock(Mutex<Option<Reading>>);

impl Clock {
    /// The broker's time now, at the latest; `None` when it is not known.
    pub fn at_the_latest(&self) -> Option<Timestamp> {
        self.lock().and_then(|reading| reading.at_the_latest())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Reading>> {
        self.0.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// Looks at the broker's clock now and then until `stop`.
pub async fn keep(broker: &RabbitMq, stop: &CancellationToken) {
    loop {
        let mut pause = AGAIN;
        if broker.publisher.blocked().is_none() {
            match stop.run_until_cancelled(look(broker)).await {
                Some(Err(error)) => {
                    debug!(broker = %broker.settings.name, error = format!("{error:#}"), "the broker's time is not known");
                }
                Some(Ok(_)) => pause = EVERY,
                None => return,
            }
        }
        if stop.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// Asks for the broker's time, and remembers the answer.
pub async fn look(broker: &RabbitMq) -> anyhow::Result<Reading> {
    if !broker.settings.declare {
        bail!(
            "it takes queues that are made for the moment, and nothing is made with `declare: false`"
        );
    }
    let reading = timeout(DEADLINE, ask(broker))
        .await
        .context("the broker's time was not told in time")??;
    *broker.clock.lock() = Some(reading);
    Ok(reading)
}

async fn ask(broker: &RabbitMq) -> anyhow::Result<Reading> {
    let channel = broker.publisher.connection_channel().await?;
    let back = format!(
        "{}.clock.{}",
        broker.settings.group,
        uuid::Uuid::now_v7().simple()
    );
    let stamped = format!("{back}.stamped");
    let asked = ask_on(&channel, &back, &stamped).await;
    // The connection they belong to lives on; those of a failed channel go with it.
    for queue in [back, stamped] {
        let deleted = channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default());
        let _ = answer("not deleted", deleted).await;
    }
    let closed = channel.close(200, "the time is known".into());
    let _ = answer("not closed", closed).await;
    asked
}

async fn ask_on(channel: &Channel, back: &str, stamped: &str) -> anyhow::Result<Reading> {
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    let mut at_once = FieldTable::default();
    at_once.insert("x-message-ttl".into(), AMQPValue::LongInt(0));
    at_once.insert(
        "x-dead-letter-exchange".into(),
        AMQPValue::LongString("".into()),
    );
    at_once.insert(
        "x-dead-letter-routing-key".into(),
        AMQPValue::LongString(back.into()),
    );
    for (queue, mut arguments) in [(back, FieldTable::default()), (stamped, at_once)] {
        // Where the question is given up on the way, nobody deletes them.
        arguments.insert("x-expires".into(), AMQPValue::LongInt(60_000));
        let declared = channel.queue_declare(queue.into(), options, arguments);
        answer(format!("queue `{queue}` cannot be declared"), declared).await?;
    }
    let sent = Instant::now();
    let published = channel.basic_publish(
        "".into(),
        stamped.into(),
        BasicPublishOptions::default(),
        b"",
        BasicProperties::default(),
    );
    answer("a question for the time cannot be sent", published).await?;
    let got = loop {
        let got = channel.basic_get(back.into(), BasicGetOptions { no_ack: true });
        match answer("the time cannot be read", got).await? {
            Some(got) => break got,
            None => sleep(LOOK).await,
        }
    };
    let seen = Instant::now();
    let Some(stamp) = stamp(&got.delivery.properties) else {
        bail!("the broker stamps no time on what it dead-letters");
    };
    Ok(Reading {
        sent,
        back: seen,
        stamp,
    })
}

/// When the broker dead-lettered a message, by its own clock.
fn stamp(properties: &BasicProperties) -> Option<Timestamp> {
    let headers = properties.headers().as_ref()?;
    let AMQPValue::FieldArray(deaths) = headers.inner().get("x-death")? else {
        return None;
    };
    let AMQPValue::FieldTable(death) = deaths.as_slice().first()? else {
        return None;
    };
    match death.inner().get("time")? {
        AMQPValue::Timestamp(seconds) => Timestamp::from_second(i64::try_from(*seconds).ok()?).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_has_passed_is_never_too_much() {
        let sent = Instant::now();
        tokio::time::advance(Duration::from_millis(40)).await;
        let reading = Reading {
            sent,
            back: Instant::now(),
            stamp: Timestamp::from_second(1_000).unwrap(),
        };
        // The broker's clock was anywhere in 1,000 .. 1,001 s somewhere between the two moments.
        let parked_at = reading.at_the_latest().unwrap();
        assert_eq!(parked_at, Timestamp::from_millisecond(1_001_040).unwrap());
        tokio::time::advance(Duration::from_secs(100)).await;
        let passed = reading.passed(parked_at);
        assert!(passed < Duration::from_secs(100));
        assert!(passed > Duration::from_secs(98));
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_reading_says_nothing_and_a_time_to_come_has_not_passed() {
        let now = Instant::now();
        let reading = Reading {
            sent: now,
            back: now,
            stamp: Timestamp::from_second(1_000).unwrap(),
        };
        let later = Timestamp::from_second(5_000).unwrap();
        assert_eq!(reading.passed(later), Duration::ZERO);
        tokio::time::advance(GOOD_FOR).await;
        assert_eq!(reading.at_the_latest(), None);
    }
}
