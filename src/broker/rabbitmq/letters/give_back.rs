//! Giving back what a pass has taken and not removed, so that the queue is in order again.
//!
//! A quorum queue hands returned messages out again in the order in which it was told of them, before
//! those it never handed out. That order holds for single returns that it takes one after the other:
//! several in one command come back in any order, and so do those that the broker itself puts together
//! because more commands than [`AT_ONCE`] are on their way to the queue. So they are sent a few at a
//! time, each time until the queue counts them.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use lapin::options::{BasicCancelOptions, BasicNackOptions};
use lapin::{Channel, Connection, Consumer};
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;
use tracing::debug;

use super::look;
use crate::broker::rabbitmq::connect::answer;

/// Half of what RabbitMQ lets be under way to a quorum queue before it puts commands together.
const AT_ONCE: usize = 16;
/// How long a queue may take to count what came back. Then the order may suffer, and nothing else.
const COUNTED: Duration = Duration::from_millis(500);
/// What is on its way to a cancelled consumer is here after this.
const DRAINED: Duration = Duration::from_millis(500);

/// What a pass has taken, and by what.
pub struct Held {
    pub queue: String,
    pub connection: Connection,
    pub channel: Channel,
    /// Tags of what was passed and not removed, in order.
    pub passed: Vec<u64>,
    /// Of this instance, one listing at a time: they would hide letters from each other.
    pub turn: Option<OwnedMutexGuard<()>>,
}

/// Gives back everything in its order, and closes the connection: with it goes the replay lock.
pub async fn give_back(mut held: Held, chunk: Option<Consumer>) {
    let done = async {
        if let Some(consumer) = chunk {
            take_in(&mut held, consumer).await?;
        }
        give_back_passed(&held).await?;
        let closed = held.connection.close(200, "done".into());
        answer("the connection cannot be closed", closed).await
    };
    if let Err(error) = done.await {
        // They go back by themselves with the connection, in any order.
        debug!(
            error = format!("{error:#}"),
            "dead letters were not given back in order"
        );
    }
    drop(held.turn);
}

/// Ends the last consumer, which would otherwise be handed again what is given back, and counts
/// what it still has among what was passed.
async fn take_in(held: &mut Held, mut consumer: Consumer) -> anyhow::Result<()> {
    let options = BasicCancelOptions::default();
    let cancelled = held.channel.basic_cancel(consumer.tag(), options);
    answer("a consumer cannot be cancelled", cancelled).await?;
    while let Ok(Some(message)) = timeout(DRAINED, consumer.next()).await {
        held.passed.push(message?.delivery_tag);
    }
    Ok(())
}

async fn give_back_passed(held: &Held) -> anyhow::Result<()> {
    let options = BasicNackOptions {
        requeue: true,
        multiple: false,
    };
    let (mut ready, _) = look(&held.channel, &held.queue).await?;
    for some in held.passed.chunks(AT_ONCE) {
        for &tag in some {
            let back = held.channel.basic_nack(tag, options);
            answer("a dead letter cannot be given back", back).await?;
        }
        let wanted = ready + some.len() as u32;
        let until = Instant::now() + COUNTED;
        while ready < wanted && Instant::now() < until {
            ready = look(&held.channel, &held.queue).await?.0;
        }
    }
    Ok(())
}
