//! What the demo checks: what the receiver has heard, what lies among the dead letters, how far a
//! job is. Nothing here waits or asks anybody.

use super::receiver::Heard;
use super::steps::Not;
use crate::operations::{Report, State};

/// Whether `endpoint` has been sent `event` as often as `answers` say, and answered so. More is
/// never right, whatever comes.
pub fn answered(heard: &[Heard], endpoint: &str, event: &str, answers: &[u16]) -> Result<(), Not> {
    let given: Vec<u16> = of(heard, endpoint, event).map(|one| one.status).collect();
    if given == answers {
        return Ok(());
    }
    let why = format!("{endpoint} has answered {event} with {given:?} instead of {answers:?}");
    Err(match answers.starts_with(&given) {
        true => Not::Yet(why),
        false => Not::Ever(why),
    })
}

/// Whether every request carried a signature that its endpoint could verify.
pub fn verified(heard: &[Heard]) -> Result<usize, Not> {
    match heard.iter().find(|one| one.unverified.is_some()) {
        None => Ok(heard.len()),
        Some(one) => Err(Not::Ever(format!(
            "{} could not verify {}: {}",
            one.endpoint,
            one.event,
            one.unverified.as_deref().unwrap_or_default()
        ))),
    }
}

/// What `endpoint` has heard of `event`.
pub fn of<'a>(
    heard: &'a [Heard],
    endpoint: &'a str,
    event: &'a str,
) -> impl Iterator<Item = &'a Heard> {
    heard
        .iter()
        .filter(move |one| one.endpoint == endpoint && one.event == event)
}

/// Whether `event` is the only dead letter. Another one is wrong, whatever comes.
pub fn only_letter(letters: &[String], event: &str) -> Result<(), Not> {
    match letters {
        [one] if one == event => Ok(()),
        [] => Err(Not::Yet(format!("{event} is no dead letter"))),
        others => Err(Not::Ever(format!(
            "the dead letters are {others:?} instead of {event}"
        ))),
    }
}

pub fn no_letter(letters: &[String]) -> Result<(), Not> {
    match letters {
        [] => Ok(()),
        left => Err(Not::Yet(format!("still among the dead letters: {left:?}"))),
    }
}

/// Whether the job has sent one letter again.
pub fn sent_again(report: &Report) -> Result<(), Not> {
    let why = report.why.as_deref().unwrap_or("no reason given");
    match (report.state, report.done) {
        (State::Running, _) => Err(Not::Yet(format!("{} letters were sent again", report.done))),
        (State::Done, 1) => Ok(()),
        (State::Done, done) => Err(Not::Ever(format!(
            "{done} letters were sent again instead of 1"
        ))),
        (State::Cancelled | State::Failed, _) => {
            Err(Not::Ever(format!("the job has ended: {why}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(endpoint: &str, event: &str, status: u16) -> Heard {
        Heard {
            endpoint: endpoint.to_owned(),
            event: event.to_owned(),
            status,
            unverified: None,
        }
    }

    #[test]
    fn too_few_may_still_come_and_too_many_are_wrong() {
        let two = [heard("crm", "a", 503), heard("crm", "a", 204)];
        assert_eq!(answered(&two, "crm", "a", &[503, 204]), Ok(()));
        let few = answered(&two, "crm", "a", &[503, 204, 204]);
        assert!(matches!(few, Err(Not::Yet(_))), "{few:?}");
        for wrong in [&[503][..], &[204, 204], &[503, 503, 204]] {
            let wrong = answered(&two, "crm", "a", wrong);
            assert!(matches!(wrong, Err(Not::Ever(_))), "{wrong:?}");
        }
        let other = answered(&two, "crm", "b", &[204]);
        assert!(matches!(other, Err(Not::Yet(_))), "{other:?}");
    }

    #[test]
    fn one_signature_that_is_wrong_is_enough() {
        let mut all = vec![heard("crm", "a", 204), heard("warehouse", "a", 204)];
        assert_eq!(verified(&all), Ok(2));
        all[1].unverified = Some("no signature matches".to_owned());
        let why = "warehouse could not verify a: no signature matches";
        assert_eq!(verified(&all), Err(Not::Ever(why.to_owned())));
    }

    #[test]
    fn exactly_one_letter_is_expected_and_then_none() {
        let letters = |ids: &[&str]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(only_letter(&letters(&["a"]), "a"), Ok(()));
        assert!(matches!(only_letter(&[], "a"), Err(Not::Yet(_))));
        for wrong in [&["b"][..], &["a", "a"], &["a", "b"]] {
            let wrong = only_letter(&letters(wrong), "a");
            assert!(matches!(wrong, Err(Not::Ever(_))), "{wrong:?}");
        }
        assert_eq!(no_letter(&[]), Ok(()));
        assert!(matches!(no_letter(&letters(&["a"])), Err(Not::Yet(_))));
    }

    #[test]
    fn a_job_that_did_something_else_is_noticed() {
        let report = |state: &str, done: u64| -> Report {
            let report = serde_json::json!({
                "id": "j", "operation": "dead_retry", "state": state, "why": "cancelled",
                "started_at": "2026-11-21T10:00:00Z", "done": done, "seen": done, "skipped": {},
            });
            serde_json::from_value(report).unwrap()
        };
        assert_eq!(sent_again(&report("done", 1)), Ok(()));
        let running = sent_again(&report("running", 0));
        assert!(matches!(running, Err(Not::Yet(_))), "{running:?}");
        for wrong in [report("done", 0), report("done", 2), report("failed", 0)] {
            assert!(matches!(sent_again(&wrong), Err(Not::Ever(_))), "{wrong:?}");
        }
    }
}
