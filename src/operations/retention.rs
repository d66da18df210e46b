//! Retention: dead letters that are older than allowed are removed, on every broker the same way.
//!
//! A queue's TTL cannot be changed once it is there and a topic's retention counts from other times,
//! so it is we who remove them, under the replay lock and letter by letter, confirmed. Nothing goes
//! silently: each sweep that removes something says how many, and a metric counts them.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::broker::{Broker, Health, Letter, Letters, NotOpened, Purpose, Refused};

/// Before the first sweep, and before a broker that is not ready is looked at again.
const FIRST: Duration = Duration::from_secs(5);
/// Between sweeps: a hundredth of the retention, within these. Looking costs the broker something.
const OFTENEST: Duration = Duration::from_secs(300);
const RAREST: Duration = Duration::from_secs(3_600);
/// Letters lie about in the order of their death: after so many young ones in a row all are young.
const YOUNG: usize = 100;

/// Sweeps `broker` every so often until `stop`. `expired` counts what was removed.
pub async fn keep(
    broker: Arc<dyn Broker>,
    retention: Duration,
    expired: Counter,
    stop: CancellationToken,
) {
    let mut pause = FIRST;
    while stop
        .run_until_cancelled(tokio::time::sleep(pause))
        .await
        .is_some()
    {
        pause = FIRST;
        if broker.health() != Health::Ready {
            continue;
        }
        // Instances that started together do not all come at once.
        pause = (retention / 100)
            .clamp(OFTENEST, RAREST)
            .mul_f64(1.0 + rand::random::<f64>() / 4.0);
        let sweeping = sweep(&*broker, retention, Timestamp::now(), &expired);
        let Some(swept) = stop.run_until_cancelled(sweeping).await else {
            return;
        };
        match swept {
            Ok(0) => {}
            Ok(removed) => {
                info!(broker = %broker.name(), removed, ?retention, "dead letters older than their retention were removed");
            }
            Err(NotOpened::Busy(holder)) => {
                debug!(broker = %broker.name(), holder, "dead letters are being changed; their retention is seen to later");
            }
            Err(NotOpened::Refused(refused)) => {
                warn!(broker = %broker.name(), %refused, "dead letters older than their retention could not be removed; tried again later");
            }
        }
    }
}

/// Removes the letters that died before `now` less `retention`; how many.
pub async fn sweep(
    broker: &dyn Broker,
    retention: Duration,
    now: Timestamp,
    expired: &Counter,
) -> Result<u64, NotOpened> {
    let Ok(before) = now.checked_sub(retention) else {
        return Ok(0);
    };
    let old = |letter: &Letter| letter.dead_at < before;
    // Most times there is nothing to do, and nobody is to be kept from anything for it.
    if !any_old(broker, old).await? {
        return Ok(0);
    }
    let mut letters = broker.open_letters(Purpose::Change).await?;
    let removed = remove_old(&mut *letters, old, expired).await;
    letters.close().await;
    Ok(removed?)
}

async fn remove_old(
    letters: &mut dyn Letters,
    old: impl Fn(&Letter) -> bool,
    expired: &Counter,
) -> Result<u64, Refused> {
    let (mut removed, mut young) = (0, 0);
    while young < YOUNG
        && let Some(letter) = letters.next().await?
    {
        if !old(&letter) {
            young += 1;
            continue;
        }
        young = 0;
        letters.remove().await?;
        expired.inc();
        removed += 1;
    }
    Ok(removed)
}

async fn any_old(broker: &dyn Broker, old: impl Fn(&Letter) -> bool) -> Result<bool, NotOpened> {
    let mut letters = broker.open_letters(Purpose::List).await?;
    // Before anything else is opened: until then the letters are not all back.
    let found = is_any_old(&mut *letters, old).await;
    letters.close().await;
    Ok(found?)
}

async fn is_any_old(
    letters: &mut dyn Letters,
    old: impl Fn(&Letter) -> bool,
) -> Result<bool, Refused> {
    let mut young = 0;
    while young < YOUNG
        && let Some(letter) = letters.next().await?
    {
        if old(&letter) {
            // What is still held would hide from whoever comes next.
            letters.close().await;
            return Ok(true);
        }
        young += 1;
    }
    Ok(false)
}
