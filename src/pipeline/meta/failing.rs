//! Which endpoints fail, and when that is told: once per change, and of one that comes and goes at
//! most once in a while.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::notice::{Cause, Notice};

/// Of the same endpoint it is not told more often that it fails.
pub const DISTANCE: Duration = Duration::from_secs(60);
/// Endpoints that are known to fail; of more nothing is told.
const MOST: usize = 10_000;

/// By the endpoint.
#[derive(Default)]
pub struct Failing(BTreeMap<Arc<str>, Seen>);

struct Seen {
    /// The last attempt that found it failing.
    cause: Cause,
    /// Since when it fails, if it does.
    since: Option<Timestamp>,
    /// It was told that it fails, and not that it works again.
    told: bool,
    /// It is not told before.
    next: Instant,
}

/// What an answer has shown.
#[derive(Debug, PartialEq)]
pub enum Change {
    Nothing,
    /// To be told.
    Tell(Notice),
    /// There are too many.
    NoRoom,
}

impl Failing {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its breaker has shut, or is still shut.
    pub fn fails(&mut self, cause: Cause, now: Instant) -> Change {
        let endpoint = cause.endpoint.clone();
        if !self.0.contains_key(&endpoint) && self.0.len() >= MOST {
            return Change::NoRoom;
        }
        let seen = self.0.entry(endpoint).or_insert_with(|| Seen {
            cause: cause.clone(),
            since: None,
            told: false,
            next: now,
        });
        if seen.since.is_some() {
            return Change::Nothing;
        }
        seen.since = Some(Timestamp::now());
        seen.cause = cause;
        seen.due(now).map_or(Change::Nothing, Change::Tell)
    }

    /// Its breaker lets everything pass.
    pub fn works(&mut self, endpoint: &str) -> Change {
        let Some(seen) = self.0.get_mut(endpoint) else {
            return Change::Nothing;
        };
        let since = seen.since.take();
        match since.filter(|_| std::mem::take(&mut seen.told)) {
            Some(since) => Change::Tell(Notice::recovered(&seen.cause, since)),
            None => Change::Nothing,
        }
    }

    /// What it was last said to tell of `endpoint` is lost: it is told when it is due again.
    pub fn was_not_told(&mut self, endpoint: &str) {
        if let Some(seen) = self.0.get_mut(endpoint) {
            seen.told = false;
        }
    }

    /// What is to be told by now, so much at the most; the rest the next time. Endpoints are forgotten
    /// that work, or that are not `there` any more.
    pub fn due(
        &mut self,
        now: Instant,
        there: impl Fn(&Cause) -> bool,
        most: usize,
    ) -> Vec<Notice> {
        self.0.retain(|_, seen| match seen.since {
            Some(_) => there(&seen.cause),
            None => now < seen.next,
        });
        let all = self.0.values_mut();
        all.filter_map(|seen| seen.due(now)).take(most).collect()
    }
}

impl Seen {
    fn due(&mut self, now: Instant) -> Option<Notice> {
        if self.since.is_none() || self.told || now < self.next {
            return None;
        }
        self.told = true;
        self.next = now + DISTANCE;
        Some(Notice::failing(&self.cause))
    }
}

#[cfg(test)]
mod tests {
    use super::super::notice::{FAILING, RECOVERED, cause};
    use super::*;

    fn kind(change: Change) -> &'static str {
        match change {
            Change::Nothing => "-",
            Change::Tell(notice) => notice.kind,
            Change::NoRoom => "no room",
        }
    }

    #[test]
    fn it_is_told_once_per_change_and_not_too_often() {
        let (mut failing, begin) = (Failing::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let there = |_: &Cause| true;
        assert_eq!(kind(failing.works("crm")), "-");
        assert_eq!(kind(failing.fails(cause("crm"), at(0))), FAILING);
        assert_eq!(kind(failing.fails(cause("crm"), at(1))), "-");
        assert_eq!(kind(failing.works("crm")), RECOVERED);
        assert_eq!(kind(failing.works("crm")), "-");
        // It comes and goes.
        assert_eq!(kind(failing.fails(cause("crm"), at(3))), "-");
        assert_eq!(kind(failing.works("crm")), "-");
        assert_eq!(kind(failing.fails(cause("crm"), at(5))), "-");
        assert_eq!(failing.due(at(59), there, MOST), []);
        let due = failing.due(at(60), there, MOST);
        assert_eq!(due.len(), 1);
        assert_eq!(due[0].kind, FAILING);
        assert_eq!(failing.due(at(500), there, MOST), []);
        assert_eq!(kind(failing.works("crm")), RECOVERED);
        assert_eq!(failing.due(at(501), there, MOST), []);
        assert!(failing.is_empty());
    }

    #[test]
    fn what_there_is_no_room_for_is_told_later() {
        let (mut failing, begin) = (Failing::default(), Instant::now());
        for endpoint in ["crm", "erp", "shop"] {
            failing.fails(cause(endpoint), begin);
            failing.was_not_told(endpoint);
        }
        let later = begin + Duration::from_secs(60);
        let there = |_: &Cause| true;
        assert_eq!(failing.due(later, there, 2).len(), 2);
        assert_eq!(failing.due(later, there, 2).len(), 1);
        // Never told that it fails, it is not told to work again.
        failing.fails(cause("new"), later);
        failing.was_not_told("new");
        assert_eq!(kind(failing.works("new")), "-");
    }

    #[test]
    fn one_that_is_gone_is_forgotten() {
        let (mut failing, now) = (Failing::default(), Instant::now());
        failing.fails(cause("crm"), now);
        failing.due(now, |_| false, MOST);
        assert!(failing.is_empty());
    }

    #[test]
    fn more_than_can_be_remembered_are_not_told_of() {
        let (mut failing, now) = (Failing::default(), Instant::now());
        for number in 0..MOST {
            failing.fails(cause(&number.to_string()), now);
        }
        assert_eq!(failing.fails(cause("one more"), now), Change::NoRoom);
        assert_eq!(failing.fails(cause("1"), now), Change::Nothing);
    }
}
