//! Verdicts: what the outcome of an attempt means for the delivery, the lane and the endpoint.
//!
//! [`decide`] is pure: no clock, no I/O, no randomness. It is told the time and the jitter, so its
//! laws are properties and a year of retries is a unit test. What it says is carried out by
//! `pipeline`.

mod backoff;
pub mod outage;

use std::time::Duration;

use jiff::Timestamp;

use crate::attempt::{ErrorClass, Outcome, Wish};
use crate::delivery::{Progress, Reason};
use crate::subscription::RetryPolicy;

pub use backoff::delay;

/// A second 410 counts only when it comes at least this long after the first, so that one bad proxy
/// answer disables nobody.
pub const GONE_CONFIRMED_AFTER: Duration = Duration::from_secs(60);

/// What [`decide`] is told.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    pub outcome: &'a Outcome,
    /// With this attempt counted already.
    pub progress: &'a Progress,
    pub policy: &'a RetryPolicy,
    /// When the endpoint first answered 410, if it has not answered otherwise since.
    pub first_gone_at: Option<Timestamp>,
    pub now: Timestamp,
    /// Uniform in 0..1.
    pub jitter: f64,
}

/// What happens now, to the delivery and to its endpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    pub fate: Fate,
    pub endpoint: EndpointNews,
    /// The whole lane waits this long (`Retry-After`).
    pub hold_lane: Option<Duration>,
    /// What the breaker learns.
    pub signal: Signal,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fate {
    Delivered,
    /// Attempt again, after this long.
    Retry(Duration),
    DeadLetter(Reason),
    /// The endpoint has just been disabled: hold until it is enabled or `give_up_after` is over.
    Hold,
}

/// What the attempt says about the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointNews {
    None,
    /// A first 410.
    FirstGone,
    /// It answered otherwise after a 410.
    NotGone,
    /// A second 410: disable it.
    Gone,
    /// It asked to be disabled.
    Unwilling,
}

/// What the breaker learns from an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The endpoint works: it took this one, or refused it for what it is (most 4xx).
    Works,
    /// The endpoint does not work: no answer, 408, 425, 429 or 5xx.
    Fails,
    /// It did not answer within the deadline.
    Unanswered,
    /// The attempt says nothing about the endpoint.
    Silent,
}

/// Decides what becomes of a delivery after an attempt.
pub fn decide(situation: &Situation<'_>) -> Verdict {
    let Situation {
        outcome,
        progress,
        policy,
        first_gone_at,
        now,
        ..
    } = *situation;
    let wish = wish(outcome);
    let status = status(outcome);
    let gone_again = status == Some(410)
        && first_gone_at.is_some_and(|first| elapsed(first, now) >= GONE_CONFIRMED_AFTER);
    let endpoint = if wish == Some(Wish::Disable) {
        EndpointNews::Unwilling
    } else if gone_again {
        EndpointNews::Gone
    } else if status == Some(410) && first_gone_at.is_none() {
        EndpointNews::FirstGone
    } else if first_gone_at.is_some() && status.is_some_and(|status| status != 410) {
        EndpointNews::NotGone
    } else {
        EndpointNews::None
    };
    let retry_after = retry_after(outcome).map(|asked| asked.min(policy.max_retry_after));
    let signal = signal(outcome);
    let verdict = |fate| Verdict {
        fate,
        endpoint,
        hold_lane: retry_after,
        signal,
    };

    if outcome.is_success() {
        return Verdict {
            hold_lane: None,
            ..verdict(Fate::Delivered)
        };
    }
    if matches!(outcome, Outcome::Unsendable(_)) {
        return verdict(Fate::DeadLetter(Reason::Unsendable));
    }
    if matches!(outcome, Outcome::Unrenderable(_)) {
        return verdict(Fate::DeadLetter(Reason::RenderFailed));
    }
    if wish == Some(Wish::Abort) {
        return verdict(Fate::DeadLetter(Reason::Aborted));
    }
    if matches!(endpoint, EndpointNews::Gone | EndpointNews::Unwilling) {
        return verdict(Fate::Hold);
    }
    if status.is_some_and(|status| policy.no_retry.contains(&status)) {
        return verdict(Fate::DeadLetter(Reason::NoRetry));
    }
    if progress.attempts >= policy.max_attempts {
        return verdict(Fate::DeadLetter(Reason::AttemptsExhausted));
    }
    let mut wait =
        delay(policy, progress.attempts, situation.jitter).max(retry_after.unwrap_or_default());
    if status == Some(410) {
        wait = wait.max(GONE_CONFIRMED_AFTER);
    }
    if gives_up(progress, policy, now, wait) {
        return verdict(Fate::DeadLetter(Reason::GaveUp));
    }
    verdict(Fate::Retry(wait))
}

/// Whether `wait` from `now` would pass `give_up_after`. Holds are ended by this as well.
pub fn gives_up(progress: &Progress, policy: &RetryPolicy, now: Timestamp, wait: Duration) -> bool {
    elapsed(progress.taken_at, now).saturating_add(wait) > policy.give_up_after
}

/// Time from `earlier` to `later` by the wall clock; none when the clock was set back.
fn elapsed(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

fn status(outcome: &Outcome) -> Option<u16> {
    match outcome {
        Outcome::Answered(answer) => Some(answer.status),
        Outcome::Failed(_) | Outcome::Unsendable(_) | Outcome::Unrenderable(_) => None,
    }
}

fn wish(outcome: &Outcome) -> Option<Wish> {
    match outcome {
        Outcome::Answered(answer) => answer.wish,
        Outcome::Failed(_) | Outcome::Unsendable(_) | Outcome::Unrenderable(_) => None,
    }
}

fn retry_after(outcome: &Outcome) -> Option<Duration> {
    match outcome {
        Outcome::Answered(answer) => answer.retry_after,
        Outcome::Failed(_) | Outcome::Unsendable(_) | Outcome::Unrenderable(_) => None,
    }
}

fn signal(outcome: &Outcome) -> Signal {
    match outcome {
        Outcome::Answered(answer) => match answer.status {
            408 | 425 | 429 | 500.. => Signal::Fails,
            _ => Signal::Works,
        },
        Outcome::Failed(failure) => match failure.class {
            ErrorClass::Dns
            | ErrorClass::Denied
            | ErrorClass::Connect
            | ErrorClass::Tls
            | ErrorClass::Protocol
            | ErrorClass::Auth => Signal::Fails,
            ErrorClass::Timeout => Signal::Unanswered,
        },
        Outcome::Unsendable(_) | Outcome::Unrenderable(_) => Signal::Silent,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attempt::{Answer, Failure};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn answered(status: u16) -> Outcome {
        Outcome::Answered(Answer {
            status,
            retry_after: None,
            wish: None,
            excerpt: String::new(),
        })
    }

    fn after_attempts(attempts: u32) -> Progress {
        Progress {
            attempts,
            ..Progress::new(at(0))
        }
    }

    fn verdict(
        outcome: &Outcome,
        attempts: u32,
        first_gone_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Verdict {
        let policy = RetryPolicy {
            no_retry: vec![400],
            ..RetryPolicy::default()
        };
        decide(&Situation {
            outcome,
            progress: &after_attempts(attempts),
            policy: &policy,
            first_gone_at,
            now,
            jitter: 0.0,
        })
    }

    #[test]
    fn any_2xx_is_delivered() {
        for status in 200..300 {
            assert_eq!(
                verdict(&answered(status), 1, None, at(1)).fate,
                Fate::Delivered
            );
        }
    }

    #[test]
    fn a_redirect_is_a_failure() {
        assert_eq!(
            verdict(&answered(302), 1, None, at(1)).fate,
            Fate::Retry(Duration::from_secs(5))
        );
    }

    #[test]
    fn a_status_listed_in_no_retry_is_final() {
        assert_eq!(
            verdict(&answered(400), 1, None, at(1)).fate,
            Fate::DeadLetter(Reason::NoRetry)
        );
    }

    #[test]
    fn the_last_attempt_exhausts_the_policy() {
        assert_eq!(
            verdict(&answered(500), 10, None, at(1)).fate,
            Fate::DeadLetter(Reason::AttemptsExhausted)
        );
        assert!(matches!(
            verdict(&answered(500), 9, None, at(1)).fate,
            Fate::Retry(_)
        ));
    }

    #[test]
    fn a_wait_beyond_give_up_after_is_not_begun() {
        let four_days = 96 * 3600;
        assert_eq!(
            verdict(&answered(500), 1, None, at(four_days - 4)).fate,
            Fate::DeadLetter(Reason::GaveUp)
        );
        assert!(matches!(
            verdict(&answered(500), 1, None, at(four_days - 6)).fate,
            Fate::Retry(_)
        ));
    }

    #[test]
    fn one_410_is_tried_again_after_a_minute_and_a_second_disables() {
        let first = verdict(&answered(410), 1, None, at(0));
        assert_eq!(
            (first.fate, first.endpoint),
            (Fate::Retry(GONE_CONFIRMED_AFTER), EndpointNews::FirstGone)
        );
        let too_soon = verdict(&answered(410), 2, Some(at(0)), at(59));
        assert_eq!(too_soon.endpoint, EndpointNews::None);
        let second = verdict(&answered(410), 2, Some(at(0)), at(60));
        assert_eq!(
            (second.fate, second.endpoint),
            (Fate::Hold, EndpointNews::Gone)
        );
    }

    #[test]
    fn an_answer_other_than_410_clears_the_first() {
        assert_eq!(
            verdict(&answered(500), 2, Some(at(0)), at(60)).endpoint,
            EndpointNews::NotGone
        );
    }

    #[test]
    fn no_answer_says_nothing_about_gone() {
        let failed = Outcome::Failed(Failure {
            class: ErrorClass::Timeout,
            detail: String::new(),
        });
        assert_eq!(
            verdict(&failed, 2, Some(at(0)), at(60)).endpoint,
            EndpointNews::None
        );
    }

    #[test]
    fn a_receiver_may_disable_itself_while_it_accepts() {
        let outcome = Outcome::Answered(Answer {
            status: 200,
            retry_after: None,
            wish: Some(Wish::Disable),
            excerpt: String::new(),
        });
        let verdict = verdict(&outcome, 1, None, at(1));
        assert_eq!(
            (verdict.fate, verdict.endpoint),
            (Fate::Delivered, EndpointNews::Unwilling)
        );
    }

    #[test]
    fn most_4xx_do_not_trip_the_breaker() {
        assert_eq!(
            verdict(&answered(404), 1, None, at(1)).signal,
            Signal::Works
        );
        assert_eq!(
            verdict(&answered(429), 1, None, at(1)).signal,
            Signal::Fails
        );
    }

    fn any_outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            (
                100u16..600,
                proptest::option::of(0u64..u64::MAX / 2),
                0..3u8
            )
                .prop_map(|(status, after, wish)| {
                    Outcome::Answered(Answer {
                        status,
                        retry_after: after.map(Duration::from_secs),
                        wish: [None, Some(Wish::Disable), Some(Wish::Abort)][usize::from(wish)],
                        excerpt: String::new(),
                    })
                }),
            proptest::sample::select(ErrorClass::ALL.to_vec()).prop_map(|class| Outcome::Failed(
                Failure {
                    class,
                    detail: String::new()
                }
            )),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// Retry-After only ever delays, and never beyond the policy's maximum.
        #[test]
        fn a_wait_is_at_least_scheduled_and_bounded(
            outcome in any_outcome(), attempts in 1u32..20, jitter in 0.0..1.0f64, second in 0i64..400_000,
        ) {
            let policy = RetryPolicy::default();
            let progress = after_attempts(attempts);
            let verdict = decide(&Situation {
                outcome: &outcome, progress: &progress, policy: &policy, first_gone_at: None, now: at(second), jitter,
            });
            if let Fate::Retry(wait) = verdict.fate {
                prop_assert!(wait >= delay(&policy, attempts, jitter));
                prop_assert!(wait <= policy.max_retry_after.mul_f64(1.1));
                prop_assert!(attempts < policy.max_attempts);
                prop_assert!(Duration::from_secs(second as u64) + wait <= policy.give_up_after);
            }
            prop_assert!(verdict.hold_lane.unwrap_or_default() <= policy.max_retry_after);
            prop_assert_eq!(verdict.fate == Fate::Delivered, outcome.is_success());
        }

        /// A clock that jumps, to 1970 or far ahead, never panics and never delivers or drops.
        #[test]
        fn any_clock_gives_a_verdict(outcome in any_outcome(), second in -1_800_000_000i64..9_000_000_000) {
            let verdict = verdict(&outcome, 1, Some(at(0)), at(second));
            prop_assert_eq!(verdict.fate == Fate::Delivered, outcome.is_success());
        }
    }
}
