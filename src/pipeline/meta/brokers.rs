//! Which brokers are away, and since when.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::notice::Notice;
use crate::broker::Health;

/// One that is away for less is not told of.
const AWAY: Duration = Duration::from_secs(10);
/// Of why it is away, in characters.
const WHY: usize = 300;

/// A broker as it was when it was looked at last.
pub struct Looked {
    name: Arc<str>,
    /// When it was first found away.
    since: Option<(Instant, Timestamp)>,
    told: bool,
}

impl Looked {
    pub fn new(name: Arc<str>) -> Self {
        let (since, told) = (None, false);
        Self { name, since, told }
    }

    /// What is to be said of it now.
    pub fn at(&mut self, health: &Health, now: Instant) -> Option<Notice> {
        match health {
            Health::Down { why } => {
                let (since, at) = *self.since.get_or_insert((now, Timestamp::now()));
                if self.told || now.duration_since(since) < AWAY {
                    return None;
                }
                self.told = true;
                let why: String = why.chars().take(WHY).collect();
                Some(Notice::down(&self.name, at, &why))
            }
            // On its way from the one to the other.
            Health::Starting { .. } => None,
            Health::Ready => {
                let since = self.since.take();
                let (_, at) = since.filter(|_| std::mem::take(&mut self.told))?;
                Some(Notice::up(&self.name, at))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::notice::{DOWN, UP};
    use super::*;

    #[test]
    fn one_that_is_away_for_long_is_told_of_and_so_is_its_return() {
        let (mut looked, begin) = (Looked::new("rabbit".into()), Instant::now());
        let why = || "connection refused".to_owned();
        let (down, starting) = (Health::Down { why: why() }, Health::Starting { why: why() });
        let mut at = |health: &Health, seconds| {
            let told = looked.at(health, begin + Duration::from_secs(seconds));
            told.map(|notice| notice.kind)
        };
        assert_eq!(at(&Health::Ready, 0), None);
        // Away for a moment.
        assert_eq!(at(&down, 1), None);
        assert_eq!(at(&Health::Ready, 5), None);
        assert_eq!(at(&down, 6), None);
        assert_eq!(at(&starting, 15), None);
        assert_eq!(at(&down, 16), Some(DOWN));
        assert_eq!(at(&down, 60), None);
        assert_eq!(at(&starting, 61), None);
        assert_eq!(at(&Health::Ready, 62), Some(UP));
        assert_eq!(at(&Health::Ready, 63), None);
    }
}
