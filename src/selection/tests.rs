use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn selection(text: &str) -> Selection {
    Selection::parse(text, now()).unwrap_or_else(|mistake| panic!("{mistake}"))
}

fn mistake(text: &str) -> String {
    Selection::parse(text, now()).unwrap_err().to_string()
}

/// Whether `text` selects a letter to `crm` that died an hour ago.
fn selects(text: &str) -> bool {
    let body = LazyJson::new(
        br#"{"total": 120, "customer": {"id": 42, "name": "A B"}, "tags": ["new", "eu"], "none": null,
             "account": 1234567890123456789}"#,
    );
    selection(text).matches(&Facts {
        subscription: Some("crm"),
        reason: Some("attempts_exhausted"),
        kind: Some("order.created"),
        topic: Some("orders.eu.created"),
        source: Some("orders"),
        broker: Some("shop"),
        result: Some("503"),
        at: Some("2026-03-01T11:00:00Z".parse().unwrap()),
        ids: [Some("evt_1"), Some("dlv_x"), None],
        body: Some(&body),
    })
}

#[test]
fn terms_are_joined_and_values_of_a_key_are_alternatives() {
    for yes in [
        "",
        "subscription:crm",
        "sub:crm",
        "subscription:crm reason:attempts_exhausted",
        "subscription:stock subscription:crm",
        "type:order.* topic:orders.*.created source:orders broker:shop",
        "-subscription:stock",
        "-reason:no_retry -reason:gone",
        "id:evt_1",
        "id:dlv_*",
    ] {
        assert!(selects(yes), "{yes}");
    }
    for no in [
        "subscription:cr",
        "subscription:crm reason:no_retry",
        "-subscription:crm",
        "-subscription:stock -subscription:crm",
        "topic:\"orders.*\"",
        "id:evt_2",
    ] {
        assert!(!selects(no), "{no}");
    }
}

#[test]
fn a_status_is_a_number_a_class_or_an_error() {
    assert!(selects("status:503") && selects("status:5xx") && selects("status:4xx status:5XX"));
    assert!(!selects("status:502") && !selects("status:timeout") && !selects("status:none"));
    let timed_out = Facts {
        result: Some("timeout"),
        ..Facts::default()
    };
    assert!(selection("status:timeout").matches(&timed_out));
    assert!(!selection("status:5xx").matches(&timed_out));
    assert!(selection("status:none").matches(&Facts::default()));
}

#[test]
fn times_are_written_out_or_counted_back() {
    for yes in [
        "since:2h",
        "since:1d",
        "since:2026-03-01",
        "since:2026-03-01T11:00:00Z",
        "since:2026-03-01T12:00:00+01:00",
        "until:30m",
        "since:90m until:30m",
    ] {
        assert!(selects(yes), "{yes}");
    }
    // From `since` on, and before `until`.
    assert!(!selects("since:30m") && !selects("until:2h"));
    assert!(!selects("until:2026-03-01T11:00:00Z"));
}

#[test]
fn places_in_the_body_are_compared_as_they_are_written() {
    for yes in [
        "data.total:120",
        "data.total:120.0",
        "data.total:>=100",
        "data.total:>=100 data.total:<200",
        "data.customer.id:42",
        "data.customer.name:\"A B\"",
        "data.customer.name:A*",
        "data.tags:eu",
        "data.tags.0:new",
        "data.total:*",
        "data.none:null",
        "-data.none:*",
        "-data.missing:*",
        "data.total:1 data.total:120",
        "data.account:1234567890123456789",
        "data.account:>1234567890123456788",
    ] {
        assert!(selects(yes), "{yes}");
    }
    for no in [
        "data.total:\"120\"",
        "data.total:>120",
        "data.total:>=100 data.total:<110",
        "data.customer:*x",
        "data.missing:1",
        // Its neighbours are others, although a float could not tell them apart.
        "data.account:1234567890123456790",
        "data.account:>=1234567890123456790",
    ] {
        assert!(!selects(no), "{no}");
    }
}

#[test]
fn a_missing_fact_holds_nothing_but_a_negation() {
    let nothing = Facts::default();
    for text in [
        "subscription:crm",
        "since:2h",
        "id:x",
        "data.a:1",
        "status:5xx",
    ] {
        assert!(!selection(text).matches(&nothing), "{text}");
    }
    assert!(selection("-subscription:crm -data.a:1").matches(&nothing));
}

#[test]
fn it_says_what_it_needs() {
    assert!(selection("").is_everything() && !selection("status:5xx").is_everything());
    assert!(selection("data.a:1").needs_body() && !selection("id:1").needs_body());
    let one = selection("broker:shop status:5xx");
    assert!(one.may_be_on("shop") && !one.may_be_on("lake"));
    let named = selection("subscription:crm subscription:st* -subscription:old");
    assert_eq!(named.subscriptions().collect::<Vec<_>>(), ["crm"]);
}

#[test]
fn a_mistake_is_shown_with_its_place() {
    assert_snapshot!(mistake("subscription:crm reasn:gone"), @r"
    the filter cannot be read at column 18
      subscription:crm reasn:gone
                       ^^^^^ there is no key `reasn`
      did you mean `reason`?
    ");
    assert_snapshot!(mistake("crm"), @r"
    the filter cannot be read at column 1
      crm
      ^^^ a term is a key, a colon and a value
      did you mean `subscription:crm`?
    ");
    assert_snapshot!(mistake("dlv_abc"), @r"
    the filter cannot be read at column 1
      dlv_abc
      ^^^^^^^ a term is a key, a colon and a value
      did you mean `id:dlv_abc`?
    ");
    assert_snapshot!(mistake("-reason:exhausted"), @r"
    the filter cannot be read at column 9
      -reason:exhausted
              ^^^^^^^^^ there is no reason `exhausted`
      reasons are attempts_exhausted, gave_up, no_retry, gone, aborted, parked_limit, subscription_unknown, subscription_disabled, decode_failed, invalid_payload, stale, unmatched, unsendable, render_failed, unparkable, poison, envelope_unreadable
    ");
    assert_snapshot!(mistake("reason:noretry"), @r"
    the filter cannot be read at column 8
      reason:noretry
             ^^^^^^^ there is no reason `noretry`
      did you mean `no_retry`?
    ");
    assert_snapshot!(mistake("status:6xx"), @r"
    the filter cannot be read at column 8
      status:6xx
             ^^^ `6xx` is no status
      a status is `503`, `5xx` or one of dns, denied, connect, tls, timeout, protocol, auth, unsendable, unrenderable, none
    ");
    assert_snapshot!(mistake("since:yesterday"), @r"
    the filter cannot be read at column 7
      since:yesterday
            ^^^^^^^^^ `yesterday` is neither a time nor an age
      for instance `2h`, `3d` or `2026-03-01T10:00:00Z`
    ");
    assert_snapshot!(mistake("since:2h since:3h"), @r"
    the filter cannot be read at column 10
      since:2h since:3h
               ^^^^^^^^ this is given twice
    ");
    assert_snapshot!(mistake("-since:2h"), @r"
    the filter cannot be read at column 1
      -since:2h
      ^ `since` is not negated
      `since` is from a time on, `until` is before it: use `until`
    ");
    assert_snapshot!(mistake("topic:\"a b"), @r#"
    the filter cannot be read at column 7
      topic:"a b
            ^ this quote is not closed
    "#);
    assert_snapshot!(mistake("topic: a"), @r#"
    the filter cannot be read at column 6
      topic: a
           ^ there is no value after this
      text with spaces needs quotes: `topic:"a b"`
    "#);
    assert_snapshot!(mistake("data:1"), @r"
    the filter cannot be read at column 1
      data:1
      ^^^^ `data` needs a path into the body
      for instance `data.total:>=100`
    ");
    assert_snapshot!(mistake("id:\u{e9}\u{e9} data.a..b:1"), @"
    the filter cannot be read at column 7
      id:\u{e9}\u{e9} data.a..b:1
            ^^^^^^^^^ `data.a..b` has an empty step
      a path is names with dots between them: `data.customer.id:42`
    ");
}

#[test]
fn a_filter_has_limits() {
    assert!(mistake(&"x".repeat(5_000)).contains("4096 bytes"));
    assert!(mistake(&"id:1 ".repeat(101)).contains("100 terms"));
}

proptest! {
    #[test]
    fn nothing_makes_it_panic_and_the_caret_is_below_the_text(text in ".{0,60}") {
        if let Err(mistake) = Selection::parse(&text, now()) {
            prop_assert!(mistake.column() <= text.chars().count().max(1) + 1);
            prop_assert!(!mistake.to_string().is_empty());
        }
    }

    #[test]
    fn terms_in_pieces_do_not_panic(
        words in proptest::collection::vec("(-)?(reason|since|data\\.a|id|status|x):(\"[a \\\\]*\"|[a-z0-9*<>=:\"]{0,5})", 0..4)
    ) {
        let _ = Selection::parse(&words.join(" "), now());
    }

    #[test]
    fn a_quoted_value_is_taken_whole(text in "[^\\p{C}]{1,20}") {
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        let selection = selection(&format!("topic:\"{quoted}\""));
        let facts = Facts { topic: Some(&text), ..Facts::default() };
        prop_assert!(selection.matches(&facts));
    }

    #[test]
    fn a_negation_selects_the_others(name in "[a-c]{1,2}", topic in "[a-c*]{1,3}") {
        let facts = Facts { topic: Some(&name), ..Facts::default() };
        let (is, not) = (format!("topic:{topic}"), format!("-topic:{topic}"));
        prop_assert_ne!(selection(&is).matches(&facts), selection(&not).matches(&facts));
    }

    #[test]
    fn a_pattern_fits_what_it_was_made_of(pieces in proptest::collection::vec("[ab]{0,2}", 2..5), fill in "[ab]{0,3}") {
        let text = pieces.join(&fill);
        prop_assert!(Text::written(&pieces.join("*")).matches(&text));
    }
}
