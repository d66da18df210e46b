//! What the integration tests share: real brokers, a receiver that records, a bridge process.

pub mod bridge;
pub mod brokers;
pub mod bus;
pub mod cli;
pub mod letters;
pub mod receiver;

use std::time::{Duration, Instant};

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
