//! Members that their group does not answer.
//!
//! A group answers each member that joins, if only with an assignment that is empty. Where it does not,
//! although the cluster does, the member's client is replaced by another. The library (2.12.1) was seen to
//! leave its group for good: a cluster that goes on after a pause tells for a moment that it has no
//! brokers, and the library forgets the coordinator's address without looking for it again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::member::Member;
use super::{Kafka, topics};

/// Between two looks at a member.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a group may take at first. It waits for a member that is gone until its session is over, which
/// takes ten seconds here.
const FIRST: Duration = Duration::from_secs(20);
/// With members of other programs in it, a group may wait for theirs.
const LONGEST: Duration = Duration::from_secs(600);

/// How the work with a member ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Stopped,
    /// The group does not answer: another member is to take its place.
    Unanswered,
}

/// Watches the members that follow one another in one place.
pub struct Watchdog {
    kafka: Arc<Kafka>,
    /// What the place is called in the broker's health.
    part: String,
    patience: Patience,
    /// When there was last none of the topics that are wanted: then the group has nothing to answer.
    absent_at: Option<Instant>,
}

impl Watchdog {
    /// For the member of `part`.
    pub fn new(kafka: &Arc<Kafka>, part: &str) -> Self {
        Self {
            kafka: kafka.clone(),
            part: format!("group of {part}"),
            patience: Patience::default(),
            absent_at: None,
        }
    }

    /// Whether the member, which wants `topics` where it does not want whatever there is, is to be replaced.
    /// That is said then.
    pub async fn gives_up(&mut self, member: &Member, topics: Option<&BTreeSet<String>>) -> bool {
        let status = &self.kafka.status;
        let Some(since) = member.unanswered_since() else {
            if self.patience.answered() {
                status.ready(&self.part);
            }
            return false;
        };
        let excuses = [status.last_away(), self.absent_at];
        let since = excuses.into_iter().flatten().fold(since, Instant::max);
        if !self.patience.is_over(since, Instant::now()) {
            return false;
        }
        if !self.is_there(topics).await {
            self.absent_at = Some(Instant::now());
            return false;
        }
        let waited = self.patience.give_up().as_secs();
        let why = format!(
            "nothing came from the group for {waited} s, although the cluster answers: another client takes over"
        );
        status.down(&self.part, why);
        true
    }

    async fn is_there(&self, topics: Option<&BTreeSet<String>>) -> bool {
        let Some(wanted) = topics else { return true };
        let there = topics::catalogue(&self.kafka.admin).await;
        there.is_ok_and(|there| wanted.iter().any(|topic| there.contains_key(topic)))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.kafka.status.forget(&self.part);
    }
}

/// How long is waited: longer after each time that it was in vain.
#[derive(Default)]
struct Patience {
    in_vain: u32,
}

impl Patience {
    fn length(&self) -> Duration {
        FIRST
            .saturating_mul(2u32.saturating_pow(self.in_vain))
            .min(LONGEST)
    }

    fn is_over(&self, since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) >= self.length()
    }

    /// How long was waited.
    fn give_up(&mut self) -> Duration {
        let waited = self.length();
        self.in_vain = self.in_vain.saturating_add(1);
        waited
    }

    /// Whether it had been in vain before.
    fn answered(&mut self) -> bool {
        std::mem::take(&mut self.in_vain) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_while_it_is_in_vain_and_ends_at_ten_minutes() {
        let mut patience = Patience::default();
        let now = Instant::now();
        assert!(!patience.is_over(now, now + Duration::from_secs(19)));
        assert!(patience.is_over(now, now + Duration::from_secs(20)));
        let waited: Vec<_> = (0..7).map(|_| patience.give_up().as_secs()).collect();
        assert_eq!(waited, [20, 40, 80, 160, 320, 600, 600]);
        assert!(!patience.is_over(now, now + Duration::from_secs(599)));
    }

    #[test]
    fn after_an_answer_it_is_short_again() {
        let mut patience = Patience::default();
        assert!(!patience.answered(), "nothing was in vain");
        patience.give_up();
        assert!(patience.answered());
        let now = Instant::now();
        assert!(patience.is_over(now, now + Duration::from_secs(20)));
    }
}
