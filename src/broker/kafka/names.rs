//! Names of our topics: the delay is in the name, so that changing the tiers strands nothing.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::topics::Catalogue;
use crate::delivery::WaitKind;

/// `<group>.retry.<seconds>` or `<group>.hold.<seconds>`.
pub fn tier(group: &str, kind: WaitKind, delay: Duration) -> String {
    format!("{group}.{}.{}", kind.as_str(), delay.as_secs())
}

/// The static name of a member (`group.instance.id`) that wants `topics` with so many partitions:
/// `name` and four bytes of a hash. A coordinator gives a static member that comes back what it had
/// before, and looks at what it wants only when the group is balanced anew; so who wants something else
/// has another name.
pub fn member(name: &str, topics: &Catalogue) -> String {
    let mut wanted = Sha256::new();
    for (topic, partitions) in topics {
        wanted.update(format!("{topic}={partitions}\n"));
    }
    format!("{name}.{}", hex::encode(&wanted.finalize()[..4]))
}

/// `<group>.dead`.
pub fn dead(group: &str) -> String {
    format!("{group}.dead")
}

/// `<group>.replay`: topic and consumer group of the lock on changing dead letters.
pub fn replay(group: &str) -> String {
    format!("{group}.replay")
}

/// `<group>.due.orders`: what people want to become of parked deliveries.
pub fn orders(group: &str) -> String {
    format!("{group}.due.orders")
}

/// `<group>.state`: what all instances have in common.
pub fn state(group: &str) -> String {
    format!("{group}.state")
}

/// The group that reads tiers.
pub fn tier_group(group: &str) -> String {
    format!("{group}.retry")
}

/// The group that the past is read under; it never has members or offsets.
pub fn history_group(group: &str) -> String {
    format!("{group}.history")
}

/// All tiers of `group` that there are, as the client library's own (POSIX) regular expression.
pub fn every_tier(group: &str) -> String {
    format!(
        "^{}\\.(retry|hold)\\.[0-9]+$",
        group.replace('.', "\\.").replace('+', "\\+")
    )
}

/// What a tier's name says.
pub fn read_tier(group: &str, topic: &str) -> Option<(WaitKind, Duration)> {
    let rest = topic.strip_prefix(group)?.strip_prefix('.')?;
    let (kind, seconds) = rest.split_once('.')?;
    let kind = match kind {
        "retry" => WaitKind::Retry,
        "hold" => WaitKind::Hold,
        _ => return None,
    };
    if !seconds.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((kind, Duration::from_secs(seconds.parse().ok()?)))
}

/// Whether a topic was made by a bridge of this group. Narrower than [`is_reserved`], since a group
/// may be called `shop.retry` beside one called `shop`.
pub fn belongs_to(group: &str, topic: &str) -> bool {
    [dead(group), replay(group), orders(group), state(group)]
        .iter()
        .any(|ours| ours == topic)
        || read_tier(group, topic).is_some()
}

/// Whether a topic is one of ours, or the cluster's own: never a source.
pub fn is_reserved(group: &str, topic: &str) -> bool {
    let ours = topic
        .strip_prefix(group)
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|rest| {
            matches!(rest, "dead" | "replay" | "state")
                || ["retry.", "hold.", "due."]
                    .iter()
                    .any(|kind| rest.starts_with(kind))
        });
    ours || matches!(
        topic,
        "__consumer_offsets" | "__transaction_state" | "__share_group_state"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_is_read_back_from_its_name() {
        let delay = Duration::from_secs(300);
        for kind in [WaitKind::Retry, WaitKind::Hold] {
            assert_eq!(
                read_tier("a.b", &tier("a.b", kind, delay)),
                Some((kind, delay))
            );
        }
        for other in [
            "a.b.dead",
            "a.b.retry.",
            "a.b.retry.1x",
            "x.a.b.retry.1",
            "a.b.retry.+5",
        ] {
            assert_eq!(read_tier("a.b", other), None, "{other}");
        }
    }

    #[test]
    fn a_group_has_no_topics_of_another_whose_name_begins_alike() {
        let theirs = [
            "g.dead",
            "g.retry.5",
            "g.hold.300",
            "g.replay",
            "g.due.orders",
            "g.state",
        ];
        for theirs in theirs {
            assert!(belongs_to("g", theirs), "{theirs}");
        }
        let others = [
            "g.retry.dead",
            "g.retry.retry.5",
            "gg.dead",
            "g.orders",
            "g",
        ];
        for other in others.into_iter().chain(["__consumer_offsets"]) {
            assert!(!belongs_to("g", other), "{other}");
        }
    }

    #[test]
    fn our_topics_are_reserved_and_others_are_not() {
        for ours in [
            "g.dead",
            "g.replay",
            "g.retry.5",
            "g.hold.1",
            "g.due.retry",
            "g.state",
        ] {
            assert!(is_reserved("g", ours), "{ours}");
        }
        for other in ["g", "g.orders", "gg.dead", "orders", "g.deadline"] {
            assert!(!is_reserved("g", other), "{other}");
        }
    }
}
