//! The clock that parked deliveries wait by.
//!
//! Within a run it is monotonic: anchored to the wall clock once, at the start, and moved by
//! `Instant` afterwards, so a wall clock that is set forward or back makes nothing early or late.
//! Due times are stored by this clock together with how far the wall clock has drifted from it, and
//! are moved to the new run's clock when the file is opened. Between two runs only the wall clock
//! is there to be trusted; set back in between, it makes nothing wait longer than its own delay
//! from the restart. While a machine is suspended the clock stands still: late, never early.

use std::time::{Duration, Instant};

use jiff::Timestamp;

#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    /// Milliseconds since 1970 at `start`.
    start_ms: u64,
}

impl Clock {
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
            start_ms: wall_ms(),
        }
    }

    /// Milliseconds since 1970 by this clock, rounded down.
    pub fn now_ms(&self) -> u64 {
        self.start_ms
            .saturating_add(self.start.elapsed().as_millis() as u64)
    }

    /// When something is due that waits `delay` from now, rounded up.
    pub fn due_ms(&self, delay: Duration) -> u64 {
        let passed = self.start.elapsed().saturating_add(delay);
        let passed_ms = passed.as_nanos().div_ceil(1_000_000);
        self.start_ms
            .saturating_add(u64::try_from(passed_ms).unwrap_or(u64::MAX))
    }

    /// How long until `due_ms`, rounded up.
    pub fn until(&self, due_ms: u64) -> Duration {
        Duration::from_millis(due_ms.saturating_sub(self.now_ms()))
    }

    /// How far the wall clock is ahead of this one.
    pub fn drift_ms(&self) -> i64 {
        wall_ms().cast_signed() - self.now_ms().cast_signed()
    }

    #[cfg(test)]
    pub fn at(start_ms: u64) -> Self {
        Self {
            start: Instant::now(),
            start_ms,
        }
    }
}

pub fn wall_ms() -> u64 {
    Timestamp::now().as_millisecond().max(0).cast_unsigned()
}

/// `None` beyond the years that a timestamp has.
pub fn timestamp(ms: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(ms.cast_signed()).ok()
}
