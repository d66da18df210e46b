//! Rivals: whether another process has the same instance name.
//!
//! Two processes of one name fence each other's members out again and again, and the first has to end.
//! But a cluster that was killed or cut off, or has lost leaders, may fence members that nobody has replaced,
//! so only what happens while the cluster is there all the time counts.

use std::time::Duration;

use tokio::time::Instant;

/// Fenced out so often within [`SPAN`]: there is a rival.
const TIMES: usize = 3;
const SPAN: Duration = Duration::from_secs(120);
/// A cluster that was away has forgotten what it would fence for after this time.
const SETTLED: Duration = Duration::from_secs(60);

/// The times that our clients were fenced out, without a reason of the cluster's own.
#[derive(Debug, Default)]
pub struct Rivals(Vec<Instant>);

impl Rivals {
    /// Fenced out at `now`; `away` is when the cluster, or a part of it, was last seen not to answer. Whether
    /// there is a rival.
    pub fn fenced(&mut self, now: Instant, away: Option<Instant>) -> bool {
        if away.is_some_and(|away| now.saturating_duration_since(away) < SETTLED) {
            return false;
        }
        self.0
            .retain(|at| now.saturating_duration_since(*at) < SPAN);
        self.0.push(now);
        self.0.len() >= TIMES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fenced(at: &[u64], away: Option<u64>) -> bool {
        let begin = Instant::now();
        let at_second = |second: u64| begin + Duration::from_secs(second);
        let mut rivals = Rivals::default();
        let mut last = false;
        for second in at {
            let away = away.filter(|away| away <= second).map(at_second);
            last = rivals.fenced(at_second(*second), away);
        }
        last
    }

    #[test]
    fn who_fences_again_and_again_is_a_rival() {
        assert!(!fenced(&[0, 5], None));
        assert!(fenced(&[0, 5, 10], None));
        assert!(!fenced(&[0, 130, 260, 390], None));
    }

    #[test]
    fn a_cluster_that_was_away_is_none() {
        assert!(!fenced(&[10, 20, 30, 40, 50], Some(5)));
        assert!(fenced(&[100, 105, 110], Some(5)));
    }
}
