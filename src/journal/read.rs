//! Reading the ring: newest first, page by page.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use redb::{Database, ReadableDatabase, ReadableTable, TableError};

use super::record::{self, Entry, What};
use super::ring::{self, Head, Unreadable};
use crate::attempt::{ErrorClass, Outcome};
use crate::delivery::Reason;

/// A page ends after this long, filled or not: the next one goes on.
const PATIENCE: Duration = Duration::from_secs(2);

/// Which entries are wanted. What is `None` lets everything through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    pub event: Option<String>,
    /// An event's or a delivery's.
    pub id: Option<String>,
    pub subscription: Option<String>,
    /// Of the subscription.
    pub tenant: Option<String>,
    pub status: Option<Status>,
    pub kind: Option<String>,
    pub topic: Option<String>,
    /// Of dead letters, which are looked for then instead of attempts.
    pub reason: Option<Reason>,
    pub since: Option<Timestamp>,
    /// Not included.
    pub until: Option<Timestamp>,
    /// Attempts only, without parks, dead letters and events that matched nothing.
    pub attempts_only: bool,
}

/// How an attempt ended: `503`, `5xx`, `timeout`, or `failed` for anything but a 2xx.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    Exactly(String),
    /// The hundreds.
    Class(u8),
    Failed,
}

impl FromStr for Status {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let classes = ErrorClass::ALL.map(ErrorClass::as_str);
        let others = ["unsendable", "unrenderable", Outcome::SHADOW];
        let words = [&classes[..], &others].concat();
        let digits = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
        match text.as_bytes() {
            b"failed" => Ok(Self::Failed),
            [class @ b'1'..=b'5', b'x', b'x'] => Ok(Self::Class(class - b'0')),
            _ if digits || words.contains(&text) => Ok(Self::Exactly(text.to_owned())),
            _ => Err(format!(
                "`{text}` is no status: write `503`, `5xx`, `failed`, or one of {}",
                words.join(", ")
            )),
        }
    }
}

impl Status {
    fn holds(&self, outcome: &str) -> bool {
        let class = |class: u8| outcome.len() == 3 && outcome.starts_with(char::from(b'0' + class));
        match self {
            Self::Exactly(wanted) => outcome == wanted,
            Self::Class(wanted) => class(*wanted),
            Self::Failed => !class(2) && outcome != Outcome::SHADOW,
        }
    }
}

impl Query {
    fn may_be_in(&self, head: &Head) -> bool {
        self.since
            .is_none_or(|since| head.last_us >= since.as_microsecond())
            && self
                .until
                .is_none_or(|until| head.first_us < until.as_microsecond())
            && self
                .event
                .as_ref()
                .is_none_or(|event| head.may_have_event(event))
            && self.id.as_ref().is_none_or(|id| head.may_have(id))
            && (self.subscription.as_ref())
                .is_none_or(|subscription| head.may_have_subscription(subscription))
    }

    pub fn holds(&self, entry: &Entry) -> bool {
        let same =
            |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|wanted| wanted == is);
        let status = |status: &Status| match &entry.what {
            What::Attempt(attempt) => status.holds(&attempt.outcome),
            _ => false,
        };
        same(&self.event, &entry.event)
            && (same(&self.id, &entry.event) || same(&self.id, &entry.delivery))
            && same(&self.subscription, &entry.subscription)
            && same(&self.tenant, &entry.tenant)
            && same(&self.kind, &entry.r#type)
            && same(&self.topic, &entry.topic)
            && self.since.is_none_or(|since| entry.at >= since)
            && self.until.is_none_or(|until| entry.at < until)
            && self.status.as_ref().is_none_or(status)
            && match (&self.reason, &entry.what) {
                (Some(wanted), What::Dead { reason, .. }) => wanted.as_str() == reason,
                (Some(_), _) => false,
                (None, What::Attempt(_)) => true,
                (None, _) => !self.attempts_only,
            }
    }
}

/// Where a page ended. Opaque outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    block: u64,
    /// Records of the block that are still to come.
    left: usize,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.block, self.left)
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (block, left) = text.split_once('-')?;
            Some(Self {
                block: u64::from_str_radix(block, 16).ok()?,
                left: usize::from_str_radix(left, 16).ok()?,
            })
        };
        parse().ok_or_else(|| format!("`{text}` is no cursor: take `next` of the page before"))
    }
}

/// Some entries, the newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<Cursor>,
}

/// See [`super::Journal::page`].
pub fn page(
    db: &Database,
    query: &Query,
    before: Option<Cursor>,
    limit: usize,
) -> Result<Page, Unreadable> {
    let began = Instant::now();
    let txn = db.begin_read()?;
    let mut entries = Vec::new();
    let (heads, blocks) = match (txn.open_table(ring::HEADS), txn.open_table(ring::BLOCKS)) {
        (Ok(heads), Ok(blocks)) => (heads, blocks),
        (Err(TableError::TableDoesNotExist(_)), _) => {
            return Ok(Page {
                entries,
                next: None,
            });
        }
        (Err(error), _) | (_, Err(error)) => return Err(error.into()),
    };
    let last = before.map_or(u64::MAX, |cursor| cursor.block);
    for row in heads.range(..=last)?.rev() {
        let (number, head) = row?;
        let number = number.value();
        let full = entries.len() >= limit || began.elapsed() > PATIENCE;
        if full {
            let next = Some(Cursor {
                block: number,
                left: usize::MAX,
            });
            return Ok(Page { entries, next });
        }
        if !Head::decode(head.value()).is_some_and(|head| query.may_be_in(&head)) {
            continue;
        }
        let Some(block) = blocks.get(number)? else {
            continue;
        };
        let Some((instance, records)) = ring::opened_block(block.value()) else {
            continue;
        };
        let records: Vec<_> = record::split(records).collect();
        let left = match before {
            Some(cursor) if cursor.block == number => cursor.left.min(records.len()),
            _ => records.len(),
        };
        for (at, record) in records[..left].iter().enumerate().rev() {
            if entries.len() >= limit {
                let next = Some(Cursor {
                    block: number,
                    left: at + 1,
                });
                return Ok(Page { entries, next });
            }
            let entry = record::entry(record, instance);
            entries.extend(entry.filter(|entry| query.holds(entry)));
        }
    }
    Ok(Page {
        entries,
        next: None,
    })
}

pub fn oldest(db: &Database) -> Result<Option<Timestamp>, Unreadable> {
    let heads = match db.begin_read()?.open_table(ring::HEADS) {
        Ok(heads) => heads,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let first = heads.first()?;
    let head = first.and_then(|(_, head)| Head::decode(head.value()));
    Ok(head.and_then(|head| Timestamp::from_microsecond(head.first_us).ok()))
}
