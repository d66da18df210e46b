//! The start-up check: a marker through the shortest tier and back, and one into the dead letters.
//!
//! The due queue is shared by all instances of the group, so another one may get our marker; it
//! sends it on to the due queue until it reaches its owner, or is dropped after a while (the check
//! is then made again). The dead letters' marker expires when all before it are gone, and is passed over
//! when listing; there is one in a process's life, or they would pile up behind a letter that stays.
//! Behind thousands of deliveries that are due the marker comes late: while they come, the way back
//! works, and that is enough.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use lapin::BasicProperties;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::info;

use super::{RabbitMq, message};
use crate::broker::envelope;
use crate::delivery::WaitKind;
use crate::event::{HeaderValue, Headers};

const BOUNCES: &str = "hookbridge-probe-bounces";
/// A marker that has gone round so often among other instances is dropped.
const MAX_BOUNCES: u32 = 200;
/// Added to the tier's own delay.
const PATIENCE: Duration = Duration::from_secs(10);

/// The markers of this instance.
pub struct Probe {
    waiting_for: Mutex<Option<(String, watch::Sender<bool>)>>,
    /// Deliveries that came by the due queue of retries.
    came: AtomicU64,
    /// The dead letters have taken a marker.
    dead_take: AtomicBool,
}

impl Probe {
    pub fn new() -> Self {
        Self {
            waiting_for: Mutex::new(None),
            came: AtomicU64::new(0),
            dead_take: AtomicBool::new(false),
        }
    }

    /// A delivery came by the due queue of retries.
    pub fn delivery_came(&self) {
        self.came.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends the markers and returns when the one through the tier is back, or when only other
    /// deliveries stand before it.
    pub async fn check(&self, broker: &RabbitMq) -> anyhow::Result<()> {
        let marker = uuid::Uuid::now_v7().simple().to_string();
        let (seen, mut back) = watch::channel(false);
        *self.lock() = Some((marker.clone(), seen));
        let shortest = broker.settings.tiers.shortest();
        let tier = broker.names.tier(WaitKind::Retry, shortest);
        broker
            .publish_own(&tier, b"", properties(&marker, 0))
            .await?;
        if !self.dead_take.load(Ordering::Relaxed) {
            let expiring = properties(&marker, 0).with_expiration("1000".into());
            broker
                .publish_own(&broker.names.dead, b"", expiring)
                .await?;
            self.dead_take.store(true, Ordering::Relaxed);
        }
        let before = self.came.load(Ordering::Relaxed);
        let patience = shortest + PATIENCE;
        match timeout(patience, back.wait_for(|seen| *seen)).await {
            Ok(seen) => drop(seen.context("the check was given up")?),
            Err(_) if self.came.load(Ordering::Relaxed) > before => {
                info!(tier, "the marker is behind other deliveries that are due");
            }
            Err(_) => bail!("the marker sent to `{tier}` did not come back in {patience:?}"),
        }
        Ok(())
    }

    /// A marker came out of a due queue: ours is noted, another instance's sent on.
    pub async fn came_back(&self, broker: &RabbitMq, marker: &str, bounces: u32, queue: &str) {
        {
            let waiting = self.lock();
            if let Some((ours, seen)) = waiting.as_ref()
                && ours == marker
            {
                seen.send_replace(true);
                return;
            }
        }
        if bounces < MAX_BOUNCES {
            tokio::time::sleep(Duration::from_millis(50)).await;
            // A marker that is lost here only makes its owner check again.
            let _ = broker
                .publish_own(queue, b"", properties(marker, bounces + 1))
                .await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(String, watch::Sender<bool>)>> {
        self.waiting_for
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// How often a marker was sent on.
pub fn bounces(headers: &Headers) -> u32 {
    match headers.get(BOUNCES) {
        Some(HeaderValue::Int(bounces)) => u32::try_from(*bounces).unwrap_or(u32::MAX),
        _ => 0,
    }
}

fn properties(marker: &str, bounces: u32) -> BasicProperties {
    let mut headers = Headers::default();
    headers.push(envelope::PROBE, HeaderValue::text(marker));
    headers.push(BOUNCES, HeaderValue::Int(i64::from(bounces)));
    BasicProperties::default()
        .with_delivery_mode(2)
        .with_headers(message::table_from(&headers))
}
