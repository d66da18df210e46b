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
use crate::subscription::{Answers, RetryPolicy};

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
    /// What statuses mean.
    pub answers: &'a Answers,
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
    /// The whole lane waits this long (`Retry-After`, or a limit of the receiver's).
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
    /// A second 410, or a status that says so at once: disable it.
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
        answers,
        first_gone_at,
        now,
        ..
    } = *situation;
    let wish = wish(outcome);
    let delivered = answers.accept(outcome);
    let status = status(outcome);
    let failed = status.filter(|_| !delivered);
    let gone = failed == Some(410);
    let confirmed = first_gone_at.is_some_and(|first| elapsed(first, now) >= GONE_CONFIRMED_AFTER);
    let disables = failed.is_some_and(|status| answers.disable.contains(status));
    let endpoint = if wish == Some(Wish::Disable) {
        EndpointNews::Unwilling
    } else if disables || (gone && confirmed) {
        EndpointNews::Gone
    } else if gone && first_gone_at.is_none() {
        EndpointNews::FirstGone
    } else if first_gone_at.is_some() && status.is_some() && !gone {
        EndpointNews::NotGone
    } else {
        EndpointNews::None
    };
    let wait = asked_to_wait(outcome, answers, delivered);
    let wait = wait.map(|asked| asked.min(policy.max_retry_after));
    let signal = match delivered {
        true => Signal::Works,
        false => signal(outcome),
    };
    let verdict = |fate| Verdict {
        fate,
        endpoint,
        hold_lane: wait,
        signal,
    };

    if delivered || matches!(outcome, Outcome::Withheld) {
        return verdict(Fate::Delivered);
    }
    if matches!(outcome, Outcome::Unsendable(_)) {
        return verdict(Fate::DeadLetter(Reason::Unsendable));
    }
    if matches!(outcome, Outcome::Unrenderable(_)) {
        return verdict(Fate::DeadLetter(Reason::RenderFailed));
    }
    if matches!(outcome, Outcome::Invalid(_)) {
        return verdict(Fate::DeadLetter(Reason::InvalidPayload));
    }
    if wish == Some(Wish::Abort) {
        return verdict(Fate::DeadLetter(Reason::Aborted));
    }
    if matches!(endpoint, EndpointNews::Gone | EndpointNews::Unwilling) {
        return verdict(Fate::Hold);
    }
    if status.is_some_and(|status| answers.no_retry.contains(status)) {
        return verdict(Fate::DeadLetter(Reason::NoRetry));
    }
    if progress.attempts >= policy.max_attempts {
        return verdict(Fate::DeadLetter(Reason::AttemptsExhausted));
    }
    let mut wait = delay(policy, progress.attempts, situation.jitter).max(wait.unwrap_or_default());
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
        Outcome::Failed(_)
        | Outcome::Unsendable(_)
        | Outcome::Unrenderable(_)
        | Outcome::Invalid(_)
        | Outcome::Withheld => None,
    }
}

fn wish(outcome: &Outcome) -> Option<Wish> {
    match outcome {
        Outcome::Answered(answer) => answer.wish,
        Outcome::Failed(_)
        | Outcome::Unsendable(_)
        | Outcome::Unrenderable(_)
        | Outcome::Invalid(_)
        | Outcome::Withheld => None,
    }
}

/// How long nothing may be sent to the receiver. `Retry-After` of what was delivered is about
/// something else.
fn asked_to_wait(outcome: &Outcome, answers: &Answers, delivered: bool) -> Option<Duration> {
    let Outcome::Answered(answer) = outcome else {
        return None;
    };
    let retry_after = answer.retry_after.filter(|_| !delivered);
    retry_after.max(answer.limit.filter(|_| answers.limits))
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
        Outcome::Unsendable(_)
        | Outcome::Unrenderable(_)
        | Outcome::Invalid(_)
        | Outcome::Withheld => Signal::Silent,
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
            limit: None,
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
        let answers = Answers {
            no_retry: "400".parse().unwrap(),
            ..Answers::default()
        };
        verdict_of(outcome, &answers, attempts, first_gone_at, now)
    }

    fn verdict_of(
        outcome: &Outcome,
        answers: &Answers,
        attempts: u32,
        first_gone_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Verdict {
        decide(&Situation {
            outcome,
            progress: &after_attempts(attempts),
            policy: &RetryPolicy::default(),
            answers,
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
            limit: None,
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

    /// With these lists, the first verdict about each status.
    fn fates(answers: &Answers, statuses: &[u16]) -> Vec<(Fate, EndpointNews, Signal)> {
        let one = |status: &u16| {
            let verdict = verdict_of(&answered(*status), answers, 1, None, at(1));
            (verdict.fate, verdict.endpoint, verdict.signal)
        };
        statuses.iter().map(one).collect()
    }

    #[test]
    fn a_list_of_successes_is_all_that_is_delivered() {
        let answers = Answers {
            success: "202 409 503".parse().unwrap(),
            ..Answers::default()
        };
        let delivered = (Fate::Delivered, EndpointNews::None, Signal::Works);
        let again = Fate::Retry(Duration::from_secs(5));
        let tried_again = (again, EndpointNews::None, Signal::Works);
        assert_eq!(
            fates(&answers, &[202, 409, 503, 200, 204]),
            [delivered, delivered, delivered, tried_again, tried_again]
        );
    }

    #[test]
    fn a_status_that_disables_does_so_at_once() {
        let answers = Answers {
            disable: "404 410".parse().unwrap(),
            no_retry: "4xx".parse().unwrap(),
            ..Answers::default()
        };
        let gone = (Fate::Hold, EndpointNews::Gone, Signal::Works);
        let final_one = (
            Fate::DeadLetter(Reason::NoRetry),
            EndpointNews::None,
            Signal::Works,
        );
        assert_eq!(fates(&answers, &[404, 410, 403]), [gone, gone, final_one]);
        // Of a status in several lists, success is the first.
        let answers = Answers {
            success: "404".parse().unwrap(),
            ..answers
        };
        assert_eq!(fates(&answers, &[404])[0].0, Fate::Delivered);
    }

    #[test]
    fn a_410_that_is_a_success_is_no_sign_of_being_gone() {
        let answers = Answers {
            success: "2xx 410".parse().unwrap(),
            ..Answers::default()
        };
        let verdict = verdict_of(&answered(410), &answers, 1, Some(at(0)), at(100));
        assert_eq!(
            (verdict.fate, verdict.endpoint),
            (Fate::Delivered, EndpointNews::NotGone)
        );
    }

    #[test]
    fn retry_after_holds_the_lane_unless_it_was_delivered() {
        let hold = |status, retry_after, limit, limits| {
            let outcome = Outcome::Answered(Answer {
                status,
                retry_after,
                limit,
                wish: None,
                excerpt: String::new(),
            });
            let answers = Answers {
                limits,
                ..Answers::default()
            };
            verdict_of(&outcome, &answers, 1, None, at(1)).hold_lane
        };
        let (short, long) = (Some(Duration::from_secs(7)), Some(Duration::from_secs(9)));
        for status in [429, 503, 400, 302] {
            assert_eq!(hold(status, short, long, false), short, "{status}");
        }
        assert_eq!(hold(200, short, long, false), None);
        // Of a receiver whose limits are believed.
        assert_eq!(hold(429, short, long, true), long);
        assert_eq!(hold(429, long, short, true), long);
        assert_eq!(hold(204, short, long, true), long);
        assert_eq!(hold(204, short, None, true), None);
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(hold(429, Some(day * 9), None, false), Some(day));
    }

    #[test]
    fn every_status_that_is_no_success_is_tried_again() {
        let answers = Answers::default();
        for status in (300..600).filter(|status| *status != 410) {
            let verdict = verdict_of(&answered(status), &answers, 1, None, at(1));
            let again = Fate::Retry(Duration::from_secs(5));
            assert_eq!(verdict.fate, again, "{status}");
            let fails = matches!(status, 408 | 425 | 429 | 500..);
            assert_eq!(verdict.signal == Signal::Fails, fails, "{status}");
        }
        for class in ErrorClass::ALL {
            let failed = Outcome::Failed(Failure {
                class,
                detail: String::new(),
            });
            let verdict = verdict_of(&failed, &answers, 1, None, at(1));
            assert!(matches!(verdict.fate, Fate::Retry(_)), "{class:?}");
        }
    }

    #[test]
    fn a_wish_to_abort_is_final_where_it_was_not_delivered() {
        let wishing = |status| {
            let outcome = Outcome::Answered(Answer {
                status,
                retry_after: None,
                limit: None,
                wish: Some(Wish::Abort),
                excerpt: String::new(),
            });
            verdict(&outcome, 1, None, at(1)).fate
        };
        assert_eq!(wishing(500), Fate::DeadLetter(Reason::Aborted));
        assert_eq!(wishing(200), Fate::Delivered);
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
                        limit: after.map(|after| Duration::from_secs(after / 2)),
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
                outcome: &outcome, progress: &progress, policy: &policy, answers: &Answers::default(), first_gone_at: None, now: at(second), jitter,
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
