//! History: the events that a source made in a span of time, read again.
//!
//! For those who answered 200 and lost an hour, and for a new subscriber who wants what was before.
//! What is read is exactly what the source made: the same conversion, and so the same event ids.
//! Reading disturbs nothing: no offset is committed, no member joins or leaves the source's group,
//! nothing is settled. The end of the span is fixed when the reading begins, and what comes later
//! is not part of it. `start:` and `ignore_older_than:` of the source do not hold here.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;

use super::Refused;
use crate::event::Event;

/// From `since`, which is part of it, to `until`, which is not, by the broker's own timestamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub since: Timestamp,
    pub until: Timestamp,
}

impl Span {
    pub fn contains_ms(&self, at_ms: i64) -> bool {
        self.since.as_millisecond() <= at_ms && at_ms < self.until.as_millisecond()
    }
}

/// A reading under way. Its memory is bounded; dropping it ends it.
#[async_trait]
pub trait History: Send {
    /// About how many events there are, more rather than less.
    fn total(&self) -> u64;

    /// What the reader should know of it, in sentences: what of the span is gone, for instance.
    fn notes(&self) -> Vec<String>;

    /// The next event, and `None` after the last. Events of one partition come in its order.
    async fn next(&mut self) -> Result<Option<Arc<Event>>, Refused>;

    /// Everything before this was given out by `next`: to go on from here is to miss nothing, as
    /// far as the timestamps of a partition do not go back. `None` before there was anything.
    fn reached(&self) -> Option<Timestamp>;
}

/// How far back a source can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// The oldest event that is still there; `None` when there is none.
    pub oldest: Option<Timestamp>,
}

/// Why there is no history of a source, or not of this span.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotPossible {
    #[error("broker `{broker}` has no source `{name}`")]
    UnknownSource { broker: Arc<str>, name: Arc<str> },
    /// This kind of source is forgotten as it is read.
    #[error("{why}")]
    Forgotten { why: String },
    /// All of the span is older than what is still there.
    #[error(
        "the range ends before the oldest event that source `{name}` still has, which is of {oldest}: what was before is gone (retention)"
    )]
    TooOld { name: Arc<str>, oldest: Timestamp },
    /// There is something, but not in this span.
    #[error("source `{name}` has no events in this range; {there}")]
    Nothing { name: Arc<str>, there: String },
    #[error("{0}")]
    Unavailable(String),
}

impl From<Refused> for NotPossible {
    fn from(refused: Refused) -> Self {
        Self::Unavailable(refused.to_string())
    }
}

/// What there is, for those who asked for a span in which there is nothing.
pub fn what_there_is(oldest: Option<Timestamp>) -> String {
    match oldest {
        Some(oldest) => format!("the oldest event there is of {oldest}"),
        None => "it has none at all".to_owned(),
    }
}
