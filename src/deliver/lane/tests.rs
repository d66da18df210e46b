use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn limits(concurrency: usize) -> Limits {
    Limits {
        concurrency,
        adaptive: false,
        rate: None,
        breaker: Breaker {
            failures: 3,
            cool_down: Duration::from_secs(10),
        },
        slow_after: Duration::from_secs(3_600),
    }
}

fn started<J>(offer: Offer<J>) -> J {
    match offer {
        Offer::Start(job) => job,
        _ => panic!("did not start"),
    }
}

#[test]
fn jobs_start_up_to_the_concurrency_then_wait_then_are_refused() {
    let now = Instant::now();
    let lane = Lane::new(limits(2), now);
    assert_eq!(lane.offer(1, now, true), Offer::Start(1));
    assert_eq!(lane.offer(2, now, true), Offer::Start(2));
    assert_eq!(lane.offer(3, now, true), Offer::Waiting { wake: true });
    assert_eq!(lane.offer(4, now, true), Offer::Waiting { wake: false });
    assert_eq!(lane.offer(5, now, true), Offer::Full(5));
}

#[test]
fn a_job_waits_in_no_room_when_all_rooms_are_full() {
    let now = Instant::now();
    let lane = Lane::new(limits(1), now);
    started(lane.offer(1, now, false));
    assert_eq!(lane.offer(2, now, false), Offer::Full(2));
}

#[test]
fn a_finished_attempt_starts_the_one_that_waited_longest() {
    let now = Instant::now();
    let lane = Lane::new(limits(1), now);
    started(lane.offer(1, now, true));
    lane.offer(2, now, true);
    assert_eq!(lane.finished(Ended::Well, MS, None, now), Some(2));
    assert_eq!(lane.finished(Ended::Well, MS, None, now), None);
}

#[test]
fn a_job_that_waited_five_seconds_is_handed_back_with_a_slot() {
    let now = Instant::now();
    let lane = Lane::new(limits(1), now);
    started(lane.offer(1, now, true));
    lane.offer(2, now, true);
    assert!(lane.due(now + Duration::from_secs(4)).overflow.is_empty());
    let due = lane.due(now + LONGEST_WAIT);
    assert_eq!(due.overflow.len(), 1);
    assert_eq!(due.next, None);
}

#[test]
fn the_breaker_shuts_after_failures_in_a_row_and_one_probe_opens_it() {
    let now = Instant::now();
    let lane = Lane::new(limits(4), now);
    for _ in 0..3 {
        started(lane.offer(0, now, true));
        lane.finished(Ended::Badly, MS, None, now);
    }
    assert_eq!(lane.offer(1, now, true), Offer::Shut(1));
    let later = now + Duration::from_secs(1);
    started(lane.offer(2, later, true));
    assert_eq!(lane.offer(3, later, true), Offer::Shut(3));
    lane.finished(Ended::Well, MS, None, later);
    assert_eq!(lane.gate(), Gate::Open { failures: 0 });
}

#[test]
fn a_failed_probe_shuts_the_lane_for_longer_up_to_its_cool_down() {
    let now = Instant::now();
    let lane = Lane::new(limits(4), now);
    for _ in 0..3 {
        started(lane.offer(0, now, true));
        lane.finished(Ended::Badly, MS, None, now);
    }
    for (probed, again) in [(1, 1), (16, 1), (48, 3), (600, 10)] {
        let probed = now + Duration::from_secs(probed);
        started(lane.offer(2, probed, true));
        lane.finished(Ended::Badly, MS, None, probed);
        let until = probed + Duration::from_secs(again);
        assert_eq!(lane.gate(), Gate::Shut { until });
    }
}

#[test]
fn a_lane_that_has_been_shut_for_long_is_probed_by_whatever_there_is() {
    let now = Instant::now();
    let lane = Lane::new(limits(4), now);
    assert!(!lane.probes_with_others(now), "it is open");
    for _ in 0..3 {
        started(lane.offer(0, now, true));
        lane.finished(Ended::Badly, MS, None, now);
    }
    let due = now + Duration::from_secs(1);
    assert!(lane.probes_with_others(now));
    assert!(lane.probes_with_others(due));
    assert!(!lane.probes_with_others(due + OTHERS_PROBE_FOR));
}

#[test]
fn waiting_jobs_leave_a_lane_that_shuts() {
    let now = Instant::now();
    let lane = Lane::new(
        Limits {
            breaker: Breaker {
                failures: 1,
                cool_down: MS * 500,
            },
            ..limits(1)
        },
        now,
    );
    started(lane.offer(1, now, true));
    lane.offer(2, now, true);
    assert_eq!(lane.finished(Ended::Badly, MS, None, now), None);
    let due = lane.due(now);
    assert_eq!(due.overflow.len(), 1);
    assert!(due.overflow[0].1 >= MS * 500);
}

#[test]
fn retry_after_holds_the_whole_lane() {
    let now = Instant::now();
    let lane = Lane::new(limits(4), now);
    started(lane.offer(1, now, true));
    lane.finished(Ended::Unknown, MS, Some(Duration::from_secs(7)), now);
    assert_eq!(
        lane.offer(2, now + Duration::from_secs(6), true),
        Offer::Shut(2)
    );
    started(lane.offer(3, now + Duration::from_secs(7), true));
}

#[test]
fn a_rate_reserves_one_slot_after_the_other() {
    let now = Instant::now();
    let rate = Rate {
        count: 1,
        per: Duration::from_secs(1),
    };
    let lane = Lane::new(
        Limits {
            rate: Some(rate),
            ..limits(100)
        },
        now,
    );
    started(lane.offer(0, now, true));
    let waits: Vec<Duration> = (0..3).map(|_| lane.reserve(now)).collect();
    assert!(waits[0] >= Duration::from_secs(1));
    assert_eq!(waits[1] - waits[0], Duration::from_secs(1));
    assert_eq!(waits[2] - waits[1], Duration::from_secs(1));
}

#[test]
fn a_waiting_job_starts_when_the_rate_has_a_token() {
    let now = Instant::now();
    let rate = Rate {
        count: 1,
        per: Duration::from_secs(1),
    };
    let lane = Lane::new(
        Limits {
            rate: Some(rate),
            ..limits(100)
        },
        now,
    );
    started(lane.offer(0, now, true));
    assert_eq!(lane.offer(1, now, true), Offer::Waiting { wake: true });
    let next = lane.due(now).next.unwrap();
    assert_eq!(next, now + Duration::from_secs(1));
    assert_eq!(lane.due(next).start, [1]);
}

#[test]
fn a_silent_lane_lets_one_probe_through_at_a_time() {
    let now = Instant::now();
    let slow_after = Duration::from_secs(2);
    let lane = Lane::new(
        Limits {
            slow_after,
            ..limits(4)
        },
        now,
    );
    started(lane.offer(1, now, true));
    let silent = now + slow_after;
    started(lane.offer(2, silent, true));
    assert_eq!(lane.offer(3, silent, true), Offer::Shut(3));
    started(lane.offer(4, silent + slow_after, true));
    lane.finished(Ended::Unanswered, slow_after, None, silent + slow_after);
    assert_eq!(lane.offer(5, silent + slow_after, true), Offer::Shut(5));
    lane.finished(Ended::Well, slow_after, None, silent + slow_after);
    started(lane.offer(6, silent + slow_after, true));
    started(lane.offer(7, silent + slow_after, true));
}

#[test]
fn slots_of_a_silent_lane_are_a_probe_apart() {
    let now = Instant::now();
    let slow_after = Duration::from_secs(2);
    let lane = Lane::new(
        Limits {
            slow_after,
            ..limits(4)
        },
        now,
    );
    started(lane.offer(1, now, true));
    let silent = now + slow_after * 20;
    let (first, second) = (lane.reserve(silent), lane.reserve(silent));
    assert_eq!(second - first, slow_after);
}

#[derive(Debug, Clone)]
enum Step {
    Offer,
    Finish(bool),
    Look,
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Offer),
        3 => any::<bool>().prop_map(Step::Finish),
        1 => Just(Step::Look),
        1 => (1u64..4_000).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..200)
}

proptest! {
    /// Whatever happens: no more run than allowed, no more start than the rate allows, and every
    /// job is at any time in exactly one place.
    #[test]
    fn limits_hold_and_no_job_is_lost(
        steps in steps(),
        concurrency in 1usize..5,
        per_second in proptest::option::of(1u32..20),
    ) {
        let begin = Instant::now();
        let rate = per_second.map(|count| Rate { count, per: Duration::from_secs(1) });
        let lane = Lane::new(Limits { rate, ..limits(concurrency) }, begin);
        let (mut now, mut job, mut running, mut waiting, mut starts) = (begin, 0u32, 0usize, 0usize, 0u32);
        for step in steps {
            match step {
                Step::Offer => {
                    job += 1;
                    let outlook = lane.outlook(now, true);
                    let said = match lane.offer(job, now, true) {
                        Offer::Start(_) => { running += 1; starts += 1; Outlook::Takes }
                        Offer::Waiting { .. } => { waiting += 1; Outlook::Takes }
                        Offer::Full(back) => { prop_assert_eq!(back, job); Outlook::Full }
                        Offer::Shut(back) => { prop_assert_eq!(back, job); Outlook::Shut }
                    };
                    prop_assert_eq!(said, outlook);
                }
                Step::Finish(well) if running > 0 => {
                    running -= 1;
                    let ended = if well { Ended::Well } else { Ended::Badly };
                    if lane.finished(ended, MS, None, now).is_some() { running += 1; waiting -= 1; starts += 1; }
                }
                Step::Finish(_) => {}
                Step::Look => {
                    let due = lane.due(now);
                    running += due.start.len();
                    starts += due.start.len() as u32;
                    waiting -= due.start.len() + due.overflow.len();
                    prop_assert_eq!(due.next.is_none(), waiting == 0);
                }
                Step::Pass(ms) => now += Duration::from_millis(ms),
            }
            prop_assert!(running <= concurrency);
            prop_assert!(waiting <= concurrency);
            if let Some(count) = per_second {
                let allowed = (now - begin + RATE_BURST).as_secs_f64() * f64::from(count) + 1.0;
                prop_assert!(f64::from(starts) <= allowed + 1e-6, "{starts} starts, {allowed} allowed");
            }
        }
    }
}

/// Offers each of `jobs` when its reservation is over, for `lasting`; how often one was put off.
/// What is started is never answered.
fn put_off(lane: &Lane<usize>, jobs: usize, begin: Instant, lasting: Duration) -> usize {
    let mut due: std::collections::BTreeSet<_> = (0..jobs).map(|job| (begin, job)).collect();
    let mut count = 0;
    while let Some((now, job)) = due.pop_first() {
        if now > begin + lasting {
            break;
        }
        if let Offer::Shut(job) | Offer::Full(job) = lane.offer(job, now, false) {
            count += 1;
            // The clock of a broker's tier.
            due.insert((now + lane.reserve(now).max(MS), job));
        }
    }
    count
}

/// One that has just been shut.
fn dead(now: Instant) -> Lane<usize> {
    let lane = Lane::new(limits(16), now);
    for _ in 0..3 {
        started(lane.offer(0, now, false));
        lane.finished(Ended::Badly, MS, None, now);
    }
    lane
}

#[test]
fn what_waits_for_a_silent_endpoint_does_not_spin() {
    let now = Instant::now();
    let mut limits = limits(10_000);
    limits.slow_after = MS * 100;
    let lane = Lane::new(limits, now);
    started(lane.offer(0, now, false));
    let silent = now + MS * 100;
    // One of 100 starts each 100 ms; each of the others is put off a few times until its turn.
    let count = put_off(&lane, 100, silent, Duration::from_secs(10));
    assert!((100..1_000).contains(&count), "{count}");
}

#[test]
fn what_waits_for_a_dead_endpoint_does_not_spin() {
    let now = Instant::now();
    let lane = Lane::new(limits(16), now);
    let fail = |now| {
        started(lane.offer(0, now, false));
        lane.finished(Ended::Badly, MS, None, now);
    };
    (0..3).for_each(|_| fail(now));
    // It stays dead for ten minutes, a probe each time the breaker lets one through.
    (1..=60).for_each(|turn| fail(now + Duration::from_secs(10 * turn)));
    let later = now + Duration::from_secs(601);
    let waits: Vec<_> = (0..1_000).map(|_| lane.reserve(later)).collect();
    let soon = waits.iter().filter(|wait| **wait < Duration::from_secs(60));
    assert!(soon.count() < 10, "most would come within a minute");
    assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(310)));
    // It works again: what comes now is not sent behind them.
    let works = now + Duration::from_secs(610);
    started(lane.offer(0, works, false));
    lane.finished(Ended::Well, MS, None, works);
    assert!(lane.reserve(works) < Duration::from_secs(1));
}

#[test]
fn a_great_many_that_wait_for_a_dead_endpoint_do_not_spin() {
    const MANY: usize = 100_000;
    let now = Instant::now();
    let lane = dead(now);
    // 500 a second, behind the first round of all; and not the others at once.
    let minute = now + Duration::from_secs(60);
    let count = put_off(&lane, MANY, minute, Duration::from_secs(20));
    assert!(count <= MANY + 10_000, "{count}");
    let lane = dead(now);
    let mut waits: Vec<_> = (0..10 * MANY).map(|_| lane.reserve(minute)).collect();
    waits.sort();
    let most = waits.windows(10_000);
    let most = most.map(|some| *some.last().unwrap() - some[0]);
    assert!(most.min().unwrap() > Duration::from_secs(5));
    let last = waits.last().unwrap();
    assert!(*last <= Duration::from_secs(1_811), "{last:?}");
}

#[test]
fn after_a_short_failure_what_waited_comes_back_soon() {
    let now = Instant::now();
    let lane = dead(now);
    let waits = (0..1_000).map(|_| lane.reserve(now));
    assert!(waits.max().unwrap() <= Duration::from_secs(11));
}
