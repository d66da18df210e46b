//! Tracing: what became of one event.
//!
//! Put together from the journal (attempts, parks and dead letters that this instance made), the
//! attempts under way, and the dead letters on the brokers, which are the truth about themselves
//! whoever made them. What could not be looked at is said beside the rest.

mod field;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::letters;
use crate::broker::{Broker, Letter};
use crate::delivery::WaitKind;
use crate::event::EventId;
use crate::journal::{Cursor, Deed, Entry, Journal, Page, Query, Then, Unreadable, What};
use crate::pipeline::{Pipeline, Running};

pub use field::{BadField, Field};

/// Entries of one event that are looked at, the newest.
const MOST_ENTRIES: usize = 5_000;
/// Events that a search by field shows.
pub const MOST_FOUND: usize = 20;

/// Where traces are taken from.
#[derive(Default)]
pub struct Traces {
    /// `None` where it could not be opened, which `notes` say.
    pub journal: Option<Journal>,
    /// The brokers that keep deliveries.
    pub keepers: BTreeMap<Arc<str>, Keeper>,
    /// `None` where no bridge runs.
    pub pipeline: Option<Arc<Pipeline>>,
    /// What cannot be looked at anyway.
    pub notes: Vec<String>,
}

/// A broker that keeps deliveries.
pub struct Keeper {
    pub broker: Arc<dyn Broker>,
    /// The start of our names on it; `None` on an embedded one.
    pub group: Option<Arc<str>>,
}

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Trace {
    pub event: String,
    pub topic: String,
    pub r#type: String,
    pub source: String,
    /// Whether any subscription did.
    pub matched: bool,
    /// In the order of their first sign of life.
    pub deliveries: Vec<Traced>,
    /// What could not be looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What became of one delivery of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Traced {
    /// Empty for an event that matched nothing and is kept all the same.
    pub subscription: String,
    pub uid: String,
    pub delivery: String,
    /// One more for each time that its dead letter was retried.
    pub generation: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    pub now: Now,
    /// The letter that it was made of, edited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_of: Option<String>,
    /// How many were made, here or elsewhere, as far as it is known.
    pub attempts: u32,
    /// What this instance recorded, the oldest first.
    pub steps: Vec<Entry>,
}

/// Where a delivery is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Now {
    Delivered {
        at: Timestamp,
        outcome: String,
    },
    /// A request is out.
    InFlight {
        attempt: u32,
        since: Timestamp,
    },
    /// It comes back at about this time; a tenth of the wait later at most.
    Parked {
        wait: WaitKind,
        until: Timestamp,
        on: String,
        place: String,
    },
    Dead {
        reason: String,
        at: Timestamp,
        on: String,
        place: String,
    },
    /// It was dead-lettered, and the letter is no longer there: retried, or dropped.
    LetterGone {
        reason: String,
        at: Timestamp,
        on: String,
    },
    /// It was parked, and an operator has dropped it.
    Dropped {
        at: Timestamp,
        on: String,
    },
    /// Its letter was sent again, and goes on as this generation.
    SentAgain {
        generation: u32,
        at: Timestamp,
        on: String,
    },
    /// Its letter was edited, and goes on as this event.
    Edited {
        event: String,
        at: Timestamp,
        on: String,
    },
    /// An operator has removed its letter.
    LetterRemoved {
        at: Timestamp,
        on: String,
    },
    /// It was settled without being sent, on purpose.
    NotSent {
        why: NotSent,
        at: Timestamp,
    },
    /// It was a test, and is done with.
    Tested {
        at: Timestamp,
        outcome: String,
    },
    /// It was attempted, and no broker has confirmed what came next.
    Unsettled {
        since: Timestamp,
    },
}

/// Why nothing was sent of a delivery that is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NotSent {
    /// The event was older than `max_age`.
    Stale,
    /// The subscription is `shadow: true`.
    Shadow,
}

/// Why there is no trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nothing is known of {what}: {}", reasons.join("; "))]
pub struct Untraced {
    pub what: String,
    pub reasons: Vec<String>,
}

impl Traces {
    /// What became of the event of this id, as receivers see it in `webhook-id`, or as it was given
    /// by the publisher.
    pub async fn of(&self, id: &str) -> Result<Trace, Untraced> {
        self.seen_by(None, id).await
    }

    /// The same, as far as it is about subscriptions of the tenant that asks. One that has none of it is
    /// told that there is nothing.
    pub async fn seen_by(&self, tenant: Option<&str>, id: &str) -> Result<Trace, Untraced> {
        let mut ids = vec![id.to_owned()];
        ids.extend(EventId::from_outside(id.as_bytes()).map(|id| id.to_string()));
        ids.dedup();
        let mut notes = self.notes.clone();
        let mut entries = Vec::new();
        for id in &ids {
            entries = match self.entries_of(id).await {
                Ok(entries) => entries,
                Err(why) => {
                    notes.push(why.to_string());
                    break;
                }
            };
            if !entries.is_empty() {
                break;
            }
        }
        entries.retain(|entry| tenant.is_none_or(|tenant| entry.tenant == tenant));
        if entries.len() >= MOST_ENTRIES {
            notes.push(format!("only the newest {MOST_ENTRIES} records are shown"));
        }
        let under_way: Vec<_> = match &self.pipeline {
            Some(pipeline) => {
                let all = ids.iter().flat_map(|id| pipeline.under_way(id));
                let is_seen = |one: &Running| {
                    tenant.is_none_or(|tenant| one.tenant.as_deref() == Some(tenant))
                };
                all.filter(is_seen).collect()
            }
            None => Vec::new(),
        };
        let of_event = |letter: &Letter| {
            let event = letter.delivery.event.id.as_str();
            let owner = letter.delivery.tenant.as_deref();
            let is_seen = tenant.is_none_or(|tenant| owner == Some(tenant));
            (is_seen && ids.iter().any(|id| id == event)).then(|| Letter {
                delivery: letter.delivery.slim(),
                ..letter.clone()
            })
        };
        let (dead, unlisted) = self.dead(of_event, &mut notes).await;
        let dead: Vec<_> = dead
            .into_iter()
            .map(|(on, letter)| Dead { on, letter })
            .collect();
        let mut event = Assembly::default();
        entries.into_iter().for_each(|entry| event.recorded(entry));
        under_way
            .into_iter()
            .for_each(|running| event.running(running));
        event.settle_dead(&dead, &unlisted);
        dead.iter().for_each(|letter| event.letter(letter));
        match event.trace(&self.keepers, notes) {
            Ok(trace) => Ok(trace),
            Err(notes) => Err(self.unknown(id, notes).await),
        }
    }

    /// The ids of up to [`MOST_FOUND`] events with this field, the newest first, and what could not
    /// be looked at. Fields are known of dead letters, and of attempts where bodies are kept.
    pub async fn with(&self, field: &Field) -> (Vec<String>, Vec<String>) {
        let mut notes = self.notes.clone();
        let with_field = |letter: &Letter| {
            let event = &letter.delivery.event;
            let when_and_which = || (letter.dead_at, event.id.to_string());
            field.is_of(event).then(when_and_which)
        };
        let (dead, _) = self.dead(with_field, &mut notes).await;
        let mut found: Vec<_> = dead.into_iter().map(|(_, found)| found).collect();
        let (journal, wanted) = (self.journal.clone(), field.clone());
        let searched = blocking(move || match journal {
            Some(journal) => field::search(&journal, &wanted),
            None => Ok((Vec::new(), true)),
        })
        .await;
        match searched {
            Ok((entries, all)) => {
                found.extend(entries);
                if !all {
                    notes.push("only the newest attempts were looked at".to_owned());
                }
            }
            Err(why) => notes.push(why.to_string()),
        }
        found.sort_by(|a, b| b.cmp(a));
        let mut ids: Vec<String> = Vec::new();
        for (_, id) in found {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        if ids.len() > MOST_FOUND {
            ids.truncate(MOST_FOUND);
            notes.push(format!("only the newest {MOST_FOUND} events are shown"));
        }
        (ids, notes)
    }

    /// Recorded entries, the newest first.
    pub async fn attempts(
        &self,
        query: Query,
        before: Option<Cursor>,
        limit: usize,
    ) -> Result<Page, Unreadable> {
        match self.journal.clone() {
            Some(journal) => blocking(move || journal.page(&query, before, limit)).await,
            None => Err(Unreadable::Storage(self.notes.join("; "))),
        }
    }

    pub(super) async fn entries_of(&self, id: &str) -> Result<Vec<Entry>, Unreadable> {
        let id = id.to_owned();
        match self.journal.clone() {
            Some(journal) => blocking(move || journal.of_event(&id, MOST_ENTRIES)).await,
            None => Ok(Vec::new()),
        }
    }

    /// What `pick` makes of dead letters, each with its broker, and the brokers on which not all
    /// were looked at. All are asked at once: one that hangs does not use up the others' time.
    async fn dead<T>(
        &self,
        pick: impl Fn(&Letter) -> Option<T>,
        notes: &mut Vec<String>,
    ) -> (Vec<(Arc<str>, T)>, Vec<Arc<str>>) {
        let (mut dead, mut unlisted) = (Vec::new(), Vec::new());
        let asked = self.keepers.iter().map(async |(name, keeper)| {
            let found = letters::matching(&*keeper.broker, &pick).await;
            (name, found)
        });
        for (name, found) in join_all(asked).await {
            match found {
                Ok((picked, all)) => {
                    dead.extend(picked.into_iter().map(|one| (name.clone(), one)));
                    if !all {
                        notes.push(format!("not all dead letters on {name} were looked at"));
                        unlisted.push(name.clone());
                    }
                }
                Err(why) => {
                    notes.push(format!("dead letters on {name} cannot be listed: {why}"));
                    unlisted.push(name.clone());
                }
            }
        }
        (dead, unlisted)
    }

    async fn unknown(&self, id: &str, notes: Vec<String>) -> Untraced {
        let journal = self.journal.clone();
        let oldest = match journal {
            Some(journal) => blocking(move || journal.oldest()).await,
            None => Err(Unreadable::Broken),
        };
        let mut reasons = match oldest {
            Ok(Some(oldest)) => vec![format!(
                "it may be older than the oldest attempt that is kept ({oldest:.0})"
            )],
            Ok(None) => vec!["no attempt was recorded yet".to_owned()],
            Err(_) => Vec::new(),
        };
        reasons.extend(notes);
        reasons.push(
            "it may not have been taken yet, or by another instance, or its first attempt waits for a place"
                .to_owned(),
        );
        reasons.push(
            "the id is the one that receivers see as `webhook-id`, which of a CloudEvent is a hash of source and id"
                .to_owned(),
        );
        Untraced {
            what: format!("event `{id}`"),
            reasons,
        }
    }
}

/// Reading a file blocks.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, Unreadable> + Send + 'static,
) -> Result<T, Unreadable> {
    let reading = tokio::task::spawn_blocking(read).await;
    reading.unwrap_or_else(|error| Err(Unreadable::Storage(error.to_string())))
}

/// Where a delivery is after an order about it; `None` where it has gone on since.
fn ordered(entry: &Entry, before: &Traced) -> Option<Now> {
    let What::Ordered {
        deed,
        on,
        next_generation,
        other,
    } = &entry.what
    else {
        return None;
    };
    let (at, on) = (entry.at, on.clone());
    // Attempts that came of what was brought forward may have been recorded first.
    let is_parked = matches!(before.now, Now::Parked { .. });
    Some(match deed {
        Deed::BroughtForward | Deed::Dropped if !is_parked => return None,
        Deed::MadeOfLetter if before.attempts > 0 => return None,
        Deed::Dropped => Now::Dropped { at, on },
        Deed::BroughtForward | Deed::MadeOfLetter => Now::Parked {
            wait: WaitKind::Hold,
            until: at,
            on,
            place: String::new(),
        },
        Deed::SentAgain => Now::SentAgain {
            generation: next_generation.unwrap_or_default(),
            at,
            on,
        },
        Deed::Edited => Now::Edited {
            event: other.clone(),
            at,
            on,
        },
        Deed::LetterRemoved => Now::LetterRemoved { at, on },
    })
}

/// A letter and its broker.
struct Dead {
    on: Arc<str>,
    letter: Letter,
}

/// A trace while it is put together.
#[derive(Default)]
struct Assembly {
    event: String,
    topic: String,
    r#type: String,
    source: String,
    matched: bool,
    seen: bool,
    deliveries: Vec<Traced>,
}

impl Assembly {
    fn event(&mut self, event: &str, topic: &str, kind: &str, source: &str) {
        if !self.seen {
            self.seen = true;
            self.event = event.to_owned();
            self.topic = topic.to_owned();
            self.r#type = kind.to_owned();
            self.source = source.to_owned();
        }
    }

    fn delivery(&mut self, like: Traced) -> &mut Traced {
        self.matched |= !like.subscription.is_empty();
        let same =
            |known: &Traced| known.delivery == like.delivery && known.generation == like.generation;
        match self.deliveries.iter().position(same) {
            Some(at) => &mut self.deliveries[at],
            None => {
                self.deliveries.push(like);
                let last = self.deliveries.len() - 1;
                &mut self.deliveries[last]
            }
        }
    }

    fn recorded(&mut self, entry: Entry) {
        self.event(&entry.event, &entry.topic, &entry.r#type, &entry.source);
        if entry.what == What::Unmatched {
            return;
        }
        let traced = self.delivery(Traced {
            subscription: entry.subscription.clone(),
            uid: entry.uid.clone(),
            delivery: entry.delivery.clone(),
            generation: entry.generation,
            endpoint: String::new(),
            now: Now::Unsettled { since: entry.at },
            replay_of: None,
            attempts: 0,
            steps: Vec::new(),
        });
        traced.now = match &entry.what {
            What::Attempt(attempt) => {
                traced.attempts = traced.attempts.max(attempt.attempt);
                traced.endpoint.clone_from(&attempt.endpoint);
                match attempt.then {
                    Then::Delivered => Now::Delivered {
                        at: entry.at,
                        outcome: attempt.outcome.clone(),
                    },
                    Then::Test => Now::Tested {
                        at: entry.at,
                        outcome: attempt.outcome.clone(),
                    },
                    Then::Shadow => Now::NotSent {
                        why: NotSent::Shadow,
                        at: entry.at,
                    },
                    Then::Retry | Then::Hold | Then::DeadLetter => {
                        Now::Unsettled { since: entry.at }
                    }
                }
            }
            What::Parked { wait, until, on } => Now::Parked {
                wait: *wait,
                until: *until,
                on: on.clone(),
                place: String::new(),
            },
            What::Dead { reason, on } => Now::Dead {
                reason: reason.clone(),
                at: entry.at,
                on: on.clone(),
                place: String::new(),
            },
            What::Stale => Now::NotSent {
                why: NotSent::Stale,
                at: entry.at,
            },
            What::Unmatched => Now::Unsettled { since: entry.at },
            What::Ordered { .. } => match ordered(&entry, traced) {
                Some(now) => now,
                None => traced.now.clone(),
            },
        };
        if let What::Ordered {
            deed: Deed::MadeOfLetter,
            other,
            ..
        } = &entry.what
        {
            traced.replay_of = Some(other.clone());
        }
        traced.steps.push(entry);
    }

    fn running(&mut self, running: Running) {
        self.event(
            &running.event,
            &running.topic,
            &running.r#type,
            &running.source,
        );
        let now = Now::InFlight {
            attempt: running.attempt,
            since: running.since,
        };
        let traced = self.delivery(Traced {
            subscription: running.subscription,
            uid: running.uid,
            delivery: running.delivery,
            generation: running.generation,
            endpoint: running.endpoint,
            now: now.clone(),
            replay_of: None,
            attempts: running.attempt - 1,
            steps: Vec::new(),
        });
        traced.now = now;
    }

    /// What the journal says is dead and is on no list any more, is not there any more.
    fn settle_dead(&mut self, dead: &[Dead], unlisted: &[Arc<str>]) {
        for traced in &mut self.deliveries {
            let Now::Dead { reason, at, on, .. } = &traced.now else {
                continue;
            };
            let there = |dead: &Dead| {
                dead.letter.delivery.id.as_str() == traced.delivery
                    && dead.letter.delivery.generation == traced.generation
            };
            if !dead.iter().any(there) && !unlisted.iter().any(|broker| **broker == **on) {
                traced.now = Now::LetterGone {
                    reason: reason.clone(),
                    at: *at,
                    on: on.clone(),
                };
            }
        }
    }

    fn letter(&mut self, dead: &Dead) {
        let Dead { on, letter } = dead;
        let delivery = &letter.delivery;
        let event = &delivery.event;
        self.event(event.id.as_str(), &event.topic, &event.kind, &event.source);
        let now = Now::Dead {
            reason: letter.reason.to_string(),
            at: letter.dead_at,
            on: on.to_string(),
            place: String::new(),
        };
        let traced = self.delivery(Traced {
            subscription: delivery.subscription.to_string(),
            uid: delivery.uid.to_string(),
            delivery: delivery.id.to_string(),
            generation: delivery.generation,
            endpoint: String::new(),
            now: now.clone(),
            replay_of: delivery.replay_of.as_ref().map(ToString::to_string),
            attempts: 0,
            steps: Vec::new(),
        });
        traced.attempts = traced.attempts.max(delivery.progress.attempts);
        traced.now = now;
    }

    /// `Err` gives the notes back when there is nothing to tell.
    fn trace(
        mut self,
        keepers: &BTreeMap<Arc<str>, Keeper>,
        notes: Vec<String>,
    ) -> Result<Trace, Vec<String>> {
        if !self.seen {
            return Err(notes);
        }
        let group = |on: &str| keepers.get(on).and_then(|keeper| keeper.group.clone());
        for traced in &mut self.deliveries {
            match &mut traced.now {
                Now::Parked {
                    wait, on, place, ..
                } => {
                    *place = match group(on) {
                        Some(group) => format!("{group}.{}.*", wait.as_str()),
                        None => String::new(),
                    };
                }
                Now::Dead { on, place, .. } => {
                    *place = match group(on) {
                        Some(group) => format!("{group}.dead"),
                        None => String::new(),
                    };
                }
                _ => {}
            }
        }
        Ok(Trace {
            event: self.event,
            topic: self.topic,
            r#type: self.r#type,
            source: self.source,
            matched: self.matched,
            deliveries: self.deliveries,
            notes,
        })
    }
}
