//! The retry policy of a subscription: delays, limits, and which answers are final.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Statuses;

/// How often and how long a delivery is tried. The default spans 75.6 hours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Delay before the 2nd, 3rd, … attempt; the last one is repeated if `max_attempts` allows.
    pub schedule: Vec<Duration>,
    /// Each delay is lengthened by up to this share of itself (0.1 = 10 %), never shortened.
    pub jitter: f64,
    /// First attempt included.
    pub max_attempts: u32,
    /// Counted from the first take; ends holds too.
    pub give_up_after: Duration,
    /// A longer `Retry-After` is cut to this.
    pub max_retry_after: Duration,
    /// Statuses that mean delivered, in place of 2xx. Where it is none, and for those below, the
    /// endpoint's adapter says it.
    #[serde(default)]
    pub success: Option<Statuses>,
    /// Statuses that disable the endpoint.
    #[serde(default)]
    pub disable: Option<Statuses>,
    /// Statuses that are dead-lettered at once.
    #[serde(default)]
    pub no_retry: Option<Statuses>,
}

impl RetryPolicy {
    /// The policy for a subscription to keep: all that have the default share one.
    pub fn shared(policy: impl Into<Arc<Self>>) -> Arc<Self> {
        static DEFAULT: LazyLock<Arc<RetryPolicy>> = LazyLock::new(Arc::default);
        let policy = policy.into();
        match policy == *DEFAULT {
            true => Arc::clone(&DEFAULT),
            false => policy,
        }
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        let hours = |h: u64| Duration::from_secs(h * 3600);
        let schedule = vec![
            Duration::from_secs(5),
            Duration::from_secs(5 * 60),
            Duration::from_secs(30 * 60),
            hours(2),
            hours(5),
            hours(10),
            hours(14),
            hours(20),
            hours(24),
        ];
        let max_attempts = schedule.len() as u32 + 1;
        Self {
            schedule,
            jitter: 0.1,
            max_attempts,
            give_up_after: hours(96),
            max_retry_after: hours(24),
            success: None,
            disable: None,
            no_retry: None,
        }
    }
}
