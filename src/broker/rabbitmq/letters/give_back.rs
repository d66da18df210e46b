//! Giving back what a pass has taken and not removed, so that the queue is in order again.
//!
//! A quorum queue hands returned messages out again in the order in which it was told of them, before
//! those it never handed out. That order holds for single returns that it takes one after the other:
//! several in one command come back in any order, and so do those that the broker itself puts together
//! because more commands than [`AT_ONCE`] are on their way to the queue. So they are sent a few at a
//! time, each time until the queue counts them. And as letters that were returned earlier lie in the
//! same row, a pass that ends in the middle first takes the rest, or its own would end up behind it.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use futures_util::StreamExt as _;
use lapin::Consumer;
use lapin::options::{BasicCancelOptions, BasicNackOptions};
use tokio::time::timeout;
use tracing::debug;

use super::look;
use super::taking::Taking;
use crate::broker::rabbitmq::connect::answer;

/// Half of what RabbitMQ lets be under way to a quorum queue before it puts commands together.
const AT_ONCE: usize = 16;
/// How long a queue may take to count what came back. Then the order may suffer, and nothing else.
const COUNTED: Duration = Duration::from_millis(500);
/// So many times the queue may not count in time, as when somebody takes what comes back; then it is
/// not waited for any more.
const UNCOUNTED: u32 = 10;
/// For all of it. The broker takes back what is left when the connection goes.
const DEADLINE: Duration = Duration::from_secs(60);
/// What is on its way to a cancelled consumer is here after this.
const DRAINED: Duration = Duration::from_millis(500);
/// A rest of more than this is left where it is: it takes too long, and the order suffers instead.
const LARGEST_REST: u32 = 20_000;

/// Gives back everything in its order, and closes the connection: with it goes the replay lock.
pub async fn give_back(mut taking: Taking) {
    let done = async {
        if !taking.taken.is_empty() && taking.left <= LARGEST_REST {
            while taking.take(Duration::ZERO).await?.is_some() {}
        }
        if let Some((consumer, missing)) = taking.chunk.take() {
            take_in(&mut taking, consumer, missing).await?;
        }
        return_all(&taking).await?;
        let closed = taking.connection.close(200, "done".into());
        answer("the connection cannot be closed", closed).await
    };
    let done = timeout(DEADLINE, done).await;
    if let Err(error) = done.unwrap_or_else(|_| Err(anyhow!("not done within {DEADLINE:?}"))) {
        // They go back by themselves with the connection, in any order.
        debug!(
            error = format!("{error:#}"),
            "dead letters were not given back in order"
        );
    }
}

/// Ends the last consumer, which would otherwise be handed again what is given back, and counts
/// what it still has, of the `missing` that it may be given, among what was taken.
async fn take_in(taking: &mut Taking, mut consumer: Consumer, missing: u16) -> anyhow::Result<()> {
    let options = BasicCancelOptions::default();
    let cancelled = taking.channel.basic_cancel(consumer.tag(), options);
    answer("a consumer cannot be cancelled", cancelled).await?;
    for _ in 0..missing {
        let Ok(Some(message)) = timeout(DRAINED, consumer.next()).await else {
            break;
        };
        taking.taken.push(message?.delivery_tag);
    }
    Ok(())
}

async fn return_all(taking: &Taking) -> anyhow::Result<()> {
    let options = BasicNackOptions {
        requeue: true,
        multiple: false,
    };
    let (mut ready, _) = look(&taking.channel, &taking.queue).await?;
    let mut uncounted = 0;
    for some in taking.taken.chunks(AT_ONCE) {
        for &tag in some {
            let back = taking.channel.basic_nack(tag, options);
            answer("a dead letter cannot be given back", back).await?;
        }
        let wanted = ready + some.len() as u32;
        let until = Instant::now() + COUNTED;
        while uncounted < UNCOUNTED && ready < wanted {
            if Instant::now() >= until {
                uncounted += 1;
                break;
            }
            ready = look(&taking.channel, &taking.queue).await?.0;
        }
    }
    Ok(())
}
