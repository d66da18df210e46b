use super::*;
use crate::journal::{Attempted, Then};

const AT: &str = "2026-11-21T13:00:00.25Z";

fn at(ms: i64) -> Timestamp {
    let start: Timestamp = AT.parse().unwrap();
    start + jiff::SignedDuration::from_millis(ms)
}

fn entry(ms: i64, what: What) -> Entry {
    Entry {
        at: at(ms),
        instance: "bridge-1".into(),
        event: "evt_1".into(),
        delivery: "dlv_1".into(),
        generation: 0,
        subscription: "crm".into(),
        uid: "c:crm".into(),
        tenant: String::new(),
        topic: "orders.created".into(),
        r#type: "order.created".into(),
        source: "orders".into(),
        broker: "shop".into(),
        what,
    }
}

fn attempt(ms: i64, number: u32, outcome: &str, excerpt: &str, then: Then) -> Entry {
    let what = What::Attempt(Attempted {
        attempt: number,
        endpoint: "https://crm.example.com".into(),
        outcome: outcome.into(),
        took_ms: 12.4,
        excerpt: excerpt.into(),
        then,
        request: None,
    });
    entry(ms, what)
}

fn parked(ms: i64, until_ms: i64) -> Entry {
    entry(
        ms,
        What::Parked {
            wait: WaitKind::Retry,
            until: at(until_ms),
            on: "shop".into(),
        },
    )
}

fn shown(now: Now, attempts: u32, steps: Vec<Entry>) -> String {
    let trace = Trace {
        event: "evt_1".into(),
        topic: "orders.created".into(),
        r#type: "order.created".into(),
        source: "orders".into(),
        matched: true,
        deliveries: vec![Traced {
            subscription: "crm".into(),
            uid: "c:crm".into(),
            delivery: "dlv_1".into(),
            generation: 0,
            endpoint: "https://crm.example.com".into(),
            now,
            replay_of: None,
            attempts,
            steps,
        }],
        notes: Vec::new(),
    };
    timeline(&trace, at(10_000))
}

#[test]
fn delivered_after_a_retry() {
    let now = Now::Delivered {
        at: at(5_100),
        outcome: "204".into(),
    };
    let steps = vec![
        attempt(0, 1, "503", "busy, come back", Then::Retry),
        parked(20, 5_020),
        attempt(5_100, 2, "204", "", Then::Delivered),
    ];
    insta::assert_snapshot!(shown(now, 2, steps), @r"
    event evt_1
      topic orders.created, type order.created, source orders

    crm -> https://crm.example.com
      now: delivered at 2026-11-21T13:00:05Z, 204
      2026-11-21T13:00:00.250Z  attempt 1: 503 in 12 ms  busy, come back
      2026-11-21T13:00:00.270Z  parked on shop until about 2026-11-21T13:00:05Z
      2026-11-21T13:00:05.350Z  attempt 2: 204 in 12 ms
    ");
}

#[test]
fn parked_in_flight_and_unsettled() {
    let first = || vec![attempt(0, 1, "timeout", "no answer in time", Then::Retry)];
    let until = |until: i64| Now::Parked {
        wait: WaitKind::Retry,
        until: at(until),
        on: "shop".into(),
        place: "hookbridge.retry.*".into(),
    };
    let mut steps = first();
    steps.push(parked(20, 300_020));
    insta::assert_snapshot!(shown(until(300_020), 1, steps.clone()), @r"
    event evt_1
      topic orders.created, type order.created, source orders

    crm -> https://crm.example.com
      now: parked on shop (hookbridge.retry.*), until about 2026-11-21T13:05:00Z
      2026-11-21T13:00:00.250Z  attempt 1: timeout in 12 ms  no answer in time
      2026-11-21T13:00:00.270Z  parked on shop until about 2026-11-21T13:05:00Z
    ");
    insta::assert_snapshot!(shown(until(5_000), 1, steps.clone()), @r"
    event evt_1
      topic orders.created, type order.created, source orders

    crm -> https://crm.example.com
      now: parked on shop (hookbridge.retry.*), due since 2026-11-21T13:00:05Z
      2026-11-21T13:00:00.250Z  attempt 1: timeout in 12 ms  no answer in time
      2026-11-21T13:00:00.270Z  parked on shop until about 2026-11-21T13:05:00Z
    ");
    let since = at(6_000);
    insta::assert_snapshot!(shown(Now::InFlight { attempt: 2, since }, 1, steps), @r"
    event evt_1
      topic orders.created, type order.created, source orders

    crm -> https://crm.example.com
      now: in flight, attempt 2 since 2026-11-21T13:00:06Z
      2026-11-21T13:00:00.250Z  attempt 1: timeout in 12 ms  no answer in time
      2026-11-21T13:00:00.270Z  parked on shop until about 2026-11-21T13:05:00Z
    ");
    insta::assert_snapshot!(shown(Now::Unsettled { since: at(0) }, 1, first()), @r"
    event evt_1
      topic orders.created, type order.created, source orders

    crm -> https://crm.example.com
      now: attempted at 2026-11-21T13:00:00Z, and no broker has confirmed what comes next
      2026-11-21T13:00:00.250Z  attempt 1: timeout in 12 ms  no answer in time
    ");
}

#[test]
fn dead_and_its_letter_gone() {
    let steps = || {
        vec![
            attempt(0, 3, "400", "bad total", Then::DeadLetter),
            entry(
                30,
                What::Dead {
                    reason: "no_retry".into(),
                    on: "shop".into(),
                },
            ),
        ]
    };
    let dead = Now::Dead {
        reason: "no_retry".into(),
        at: at(30),
        on: "shop".into(),
        place: "hookbridge.dead".into(),
    };
    insta::assert_snapshot!(shown(dead, 3, steps()), @r"
    event evt_1
      topic orders.created, type order.created, source orders

    crm -> https://crm.example.com
      now: dead on shop (hookbridge.dead) since 2026-11-21T13:00:00Z, no_retry
      2 of 3 attempts are not in this journal
      2026-11-21T13:00:00.250Z  attempt 3: 400 in 12 ms  bad total
      2026-11-21T13:00:00.280Z  dead-lettered on shop: no_retry
    ");
    let gone = Now::LetterGone {
        reason: "no_retry".into(),
        at: at(30),
        on: "shop".into(),
    };
    insta::assert_snapshot!(shown(gone, 3, steps()), @r"
    event evt_1
      topic orders.created, type order.created, source orders

    crm -> https://crm.example.com
      now: was dead-lettered at 2026-11-21T13:00:00Z, no_retry; the letter is no longer on shop: retried or dropped
      2 of 3 attempts are not in this journal
      2026-11-21T13:00:00.250Z  attempt 3: 400 in 12 ms  bad total
      2026-11-21T13:00:00.280Z  dead-lettered on shop: no_retry
    ");
}

#[test]
fn matched_nothing() {
    let trace = Trace {
        event: "evt_2".into(),
        topic: "orders.created".into(),
        r#type: "orders.created".into(),
        source: "orders".into(),
        matched: false,
        deliveries: Vec::new(),
        notes: vec!["dead letters on shop cannot be listed: it is away".into()],
    };
    insta::assert_snapshot!(timeline(&trace, at(0)), @r"
    event evt_2
      topic orders.created, source orders
      no subscription matched it

    note: dead letters on shop cannot be listed: it is away
    ");
}
