//! The broker's clock, as far as it can be known without trusting ours.
//!
//! Due times are in the broker's time: a record's append timestamp and its tier's delay. Each
//! confirmed record tells that the broker's clock had reached its timestamp *before* the
//! confirmation came in; from then on our monotonic clock counts. The best of several such bounds
//! is late by the fastest confirmation's way back and never early, whatever either wall clock says.
//!
//! Brokers of one cluster are taken to agree with each other, as Kafka itself wants them to (NTP).

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// How long a bound counts after a newer one was begun: clocks drift, and are set back.
const WINDOW: Duration = Duration::from_secs(300);

/// A lower bound of the broker's time.
#[derive(Debug)]
pub struct Clock {
    begun: Instant,
    bounds: Mutex<Bounds>,
}

/// Broker milliseconds minus ours since `begun`.
#[derive(Debug)]
struct Bounds {
    present: Option<i64>,
    past: Option<i64>,
    since: Instant,
}

impl Clock {
    pub fn new() -> Self {
        let begun = Instant::now();
        Self {
            begun,
            bounds: Mutex::new(Bounds {
                present: None,
                past: None,
                since: begun,
            }),
        }
    }

    /// The broker stamped a record with `broker_ms`, and we know of it since `seen_at`.
    pub fn observe(&self, broker_ms: i64, seen_at: Instant) {
        let ours = seen_at
            .duration_since(self.begun)
            .as_micros()
            .div_ceil(1_000) as i64;
        let bound = broker_ms - ours;
        let mut bounds = self.bounds.lock().unwrap_or_else(|p| p.into_inner());
        if seen_at.duration_since(bounds.since) > WINDOW {
            bounds.past = bounds.present.take();
            bounds.since = seen_at;
        }
        bounds.present = bounds.present.max(Some(bound));
    }

    /// Milliseconds since 1970 that the broker's clock has reached; `None` before any record.
    pub fn reached_ms(&self) -> Option<i64> {
        let bounds = self.bounds.lock().unwrap_or_else(|p| p.into_inner());
        let bound = bounds.present.max(bounds.past)?;
        Some(bound + self.begun.elapsed().as_millis() as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_late_confirmation_only_makes_the_bound_later() {
        let clock = Clock::new();
        tokio::time::advance(Duration::from_millis(500)).await;
        clock.observe(10_000, Instant::now());
        assert_eq!(clock.reached_ms(), Some(10_000));
        tokio::time::advance(Duration::from_secs(1)).await;
        // Stamped at 10,100 and known 900 ms later: the older bound is the better one.
        clock.observe(10_100, Instant::now());
        assert_eq!(clock.reached_ms(), Some(11_000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_set_back_is_followed_after_a_while() {
        let clock = Clock::new();
        clock.observe(1_000_000, Instant::now());
        for n in 1..=3 {
            tokio::time::advance(WINDOW + Duration::from_secs(1)).await;
            clock.observe(5_000 + n * 301_000, Instant::now());
        }
        assert_eq!(clock.reached_ms(), Some(5_000 + 3 * 301_000));
    }
}
