//! Backoff: the delay before the next attempt, from the policy's schedule.

use std::time::Duration;

use crate::subscription::RetryPolicy;

/// The delay after the attempt number `attempts` (1 is the first), lengthened by up to the policy's
/// jitter. `jitter` is uniform in 0..1. Beyond the schedule its last entry repeats.
pub fn delay(policy: &RetryPolicy, attempts: u32, jitter: f64) -> Duration {
    let step = (attempts.max(1) as usize - 1).min(policy.schedule.len().saturating_sub(1));
    let base = policy.schedule.get(step).copied().unwrap_or_default();
    base.mul_f64(1.0 + policy.jitter.clamp(0.0, 1.0) * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_default_schedule_spans_75_hours_and_a_half() {
        let policy = RetryPolicy::default();
        let whole: Duration = (1..policy.max_attempts)
            .map(|attempt| delay(&policy, attempt, 0.0))
            .sum();
        assert_eq!(whole, Duration::from_secs(5 + 5 * 60 + 30 * 60 + 75 * 3600));
    }

    proptest! {
        #[test]
        fn jitter_only_lengthens_and_by_its_share_at_most(attempts in 0u32..40, jitter in 0.0..=1.0f64) {
            let policy = RetryPolicy::default();
            let base = delay(&policy, attempts, 0.0);
            let with = delay(&policy, attempts, jitter);
            prop_assert!(with >= base);
            prop_assert!(with <= base.mul_f64(1.0 + policy.jitter) + Duration::from_nanos(1));
        }
    }
}
