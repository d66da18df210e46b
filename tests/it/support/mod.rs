//! What the integration tests share: real brokers, a receiver that records, a bridge process.

pub mod bridge;
pub mod brokers;
pub mod bus;
pub mod cli;
pub mod command;
pub mod letters;
pub mod receiver;
pub mod refused;
pub mod shop;

use std::time::{Duration, Instant};

use hookbridge::broker::Broker;
use hookbridge::broker::parked::{Deed, Order, Unwatched, Whose};
use hookbridge::delivery::WaitKind;

/// The demo secret of Standard Webhooks' documentation.
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Asks every 20 ms until `done` says `Some`, or fails after `within` with what was awaited.
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut done: impl AsyncFnMut() -> Option<T>,
) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = done().await {
            return value;
        }
        assert!(began.elapsed() < within, "{what}: not within {within:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A name that no other test uses, on brokers that tests share.
pub fn unique(prefix: &str) -> String {
    format!(
        "{prefix}-{}",
        &uuid::Uuid::now_v7().simple().to_string()[14..]
    )
}

/// Makes everything of `kind` due that is parked on `broker`; how many there were.
pub async fn all_now(broker: &dyn Broker, kind: WaitKind) -> u64 {
    let order = Order::new(Deed::Now, Whose::All, Some(kind));
    let done = broker.order(&order, &Unwatched::default()).await;
    done.expect("brought forward").count
}
