//! Looking at dead letters: pages, groups, counts, a single one, all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::change::unfit_receiver;
use super::{Choice, NotDone, Receiver, Rounds, Shown};
use crate::broker::{Letter, Purpose, Refused};
use crate::operations::Operations;
use crate::pipeline::SubscriptionStatus;

/// Groups that are told apart; the letters of further ones are only counted.
const MAX_GROUPS: usize = 1_000;
/// Letters of an export that wait for whoever reads it.
const EXPORT_AHEAD: usize = 4;
/// Shortest beginning of an id that stands for the whole, in bytes.
const MIN_PREFIX: usize = 8;
/// Letters that are told apart when an id is not clear.
const CANDIDATES: usize = 10;

/// One page of letters, oldest first.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = DeadLetterPage)]
pub struct Page {
    pub letters: Vec<Shown>,
    /// To be given for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// Perhaps why there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// How many there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = DeadLetterCount)]
pub struct Count {
    /// Selected ones.
    pub count: u64,
    /// All that were looked at.
    pub seen: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Letters that died of the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = DeadLetterGroup)]
pub struct Group {
    pub subscription: String,
    pub reason: String,
    /// The last status or error class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_result: Option<String>,
    pub count: u64,
    /// When the first and the last of them died.
    pub first: Timestamp,
    pub last: Timestamp,
    /// The id of the one that died last.
    pub example: String,
    /// What it was answered, or the error's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excerpt: Option<String>,
}

/// All causes, the most frequent first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = DeadLetterGroups)]
pub struct Groups {
    pub groups: Vec<Group>,
    /// All selected letters.
    pub count: u64,
    /// Those of groups beyond the thousandth.
    pub ungrouped: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The letter that a page ended with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    broker: String,
    dead_at: Timestamp,
    id: String,
    generation: u32,
}

impl Cursor {
    fn of(letter: &Letter, broker: &str) -> Self {
        Self {
            broker: broker.to_owned(),
            dead_at: letter.dead_at,
            id: letter.delivery.id.to_string(),
            generation: letter.delivery.generation,
        }
    }

    pub fn read(text: &str) -> Result<Self, NotDone> {
        let bytes = URL_SAFE_NO_PAD.decode(text);
        let bytes = bytes.map_err(|_| NotDone::BadCursor)?;
        serde_json::from_slice(&bytes).map_err(|_| NotDone::BadCursor)
    }

    fn write(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }
}

/// The next `limit` selected letters after `cursor`.
///
/// A page goes on behind the letter of the cursor. Should that be gone, it goes on with what comes
/// after it by broker and time of death.
pub async fn list(
    operations: &Operations,
    choice: &Choice,
    limit: usize,
    cursor: Option<&Cursor>,
) -> Result<Page, NotDone> {
    let mut rounds = Rounds::open(operations, choice, Purpose::List).await?;
    // The last letter that is shown, and whether there are more.
    let mut letters: Vec<(Cursor, Shown)> = Vec::new();
    let mut more = false;
    // Those that would be shown if the letter of the cursor does not come.
    let mut waiting = cursor;
    while let Some((letter, is_selected, broker)) = rounds.next().await? {
        let here = Cursor::of(&letter, broker.name());
        if let Some(wanted) = waiting {
            if here == *wanted {
                waiting = None;
                letters.clear();
                more = false;
                continue;
            }
            if here < *wanted {
                continue;
            }
        }
        if !is_selected {
            continue;
        }
        if letters.len() < limit {
            letters.push((here, Shown::brief(&letter, broker.name())));
            continue;
        }
        more = true;
        if waiting.is_none() {
            break;
        }
    }
    rounds.close().await;
    let last = letters.last().map(|(cursor, _)| cursor.write());
    let notes = match letters.is_empty() {
        true => notes(operations, choice),
        false => Vec::new(),
    };
    Ok(Page {
        letters: letters.into_iter().map(|(_, shown)| shown).collect(),
        next_cursor: last.filter(|_| more),
        notes,
    })
}

pub async fn count(operations: &Operations, choice: &Choice) -> Result<Count, NotDone> {
    let mut rounds = Rounds::open(operations, choice, Purpose::List).await?;
    let (mut count, mut seen) = (0, 0);
    while let Some((_, is_selected, _)) = rounds.next().await? {
        seen += 1;
        count += u64::from(is_selected);
    }
    let notes = match count {
        0 => notes(operations, choice),
        _ => Vec::new(),
    };
    Ok(Count { count, seen, notes })
}

pub async fn groups(operations: &Operations, choice: &Choice) -> Result<Groups, NotDone> {
    let mut rounds = Rounds::open(operations, choice, Purpose::List).await?;
    let mut causes: BTreeMap<_, Group> = BTreeMap::new();
    let (mut count, mut ungrouped) = (0, 0);
    while let Some((letter, is_selected, _)) = rounds.next().await? {
        if !is_selected {
            continue;
        }
        count += 1;
        let progress = &letter.delivery.progress;
        let cause = (
            letter.delivery.subscription.clone(),
            letter.reason.as_str(),
            progress.last_result.clone(),
        );
        if causes.len() >= MAX_GROUPS && !causes.contains_key(&cause) {
            ungrouped += 1;
            continue;
        }
        let group = causes.entry(cause).or_insert_with(|| Group {
            subscription: letter.delivery.subscription.to_string(),
            reason: letter.reason.to_string(),
            last_result: progress.last_result.clone(),
            count: 0,
            first: letter.dead_at,
            last: letter.dead_at,
            example: String::new(),
            excerpt: None,
        });
        group.count += 1;
        group.first = group.first.min(letter.dead_at);
        if letter.dead_at >= group.last {
            group.last = letter.dead_at;
            group.example = letter.delivery.id.to_string();
            group.excerpt.clone_from(&progress.last_excerpt);
        }
    }
    let mut groups: Vec<_> = causes.into_values().collect();
    // Stable: causes of the same count stay in the order of their names.
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    let notes = match count {
        0 => notes(operations, choice),
        _ => Vec::new(),
    };
    Ok(Groups {
        groups,
        count,
        ungrouped,
        notes,
    })
}

/// One letter with headers, body and where it would go. `id` is its delivery id or the beginning of
/// it, or its event id where no other letter has the same.
pub async fn find(operations: &Operations, choice: &Choice, id: &str) -> Result<Shown, NotDone> {
    let (letter, broker) = find_letter(operations, choice, id).await?;
    let receiver = operations.receiver_of(&letter.delivery);
    Ok(Shown {
        receiver: receiver.as_ref().map(Receiver::of),
        unfit: unfit_receiver(&letter, operations),
        ..Shown::whole(&letter, &broker)
    })
}

/// Of a choice, whatever it selects.
pub(super) async fn find_letter(
    operations: &Operations,
    choice: &Choice,
    id: &str,
) -> Result<(Letter, Arc<str>), NotDone> {
    let mut rounds = Rounds::open(operations, choice, Purpose::List).await?;
    let mut found: BTreeMap<String, (bool, Letter, Arc<str>)> = BTreeMap::new();
    while let Some((letter, _, broker)) = rounds.next().await? {
        let delivery = &letter.delivery;
        let own = delivery.id.as_str();
        let is_exact = own == id;
        let begins = id.len() >= MIN_PREFIX && own.starts_with(id);
        if !is_exact && !begins && delivery.event.id.as_str() != id {
            continue;
        }
        let earlier = found
            .get(own)
            .map(|(_, letter, _)| letter.delivery.generation);
        // Of the same delivery the last life is meant.
        if earlier.is_none_or(|earlier| earlier <= delivery.generation)
            && (found.len() < CANDIDATES || earlier.is_some() || is_exact)
        {
            let at = broker.name().clone();
            found.insert(own.to_owned(), (is_exact, letter, at));
        }
    }
    if let Some((_, letter, broker)) = found.values().find(|(is_exact, ..)| *is_exact) {
        return Ok((letter.clone(), broker.clone()));
    }
    if found.len() > 1 {
        return Err(NotDone::Ambiguous {
            id: id.to_owned(),
            candidates: found.into_keys().collect(),
        });
    }
    let only = found.into_values().next();
    let (_, letter, broker) = only.ok_or_else(|| NotDone::NotFound(id.to_owned()))?;
    Ok((letter, broker))
}

/// All selected letters with headers and bodies, as they are asked for: it goes no further than a few
/// letters ahead, and ends when the receiver is dropped. The first error is the last item.
pub async fn export(
    operations: &Operations,
    choice: &Choice,
) -> Result<mpsc::Receiver<Result<Shown, Refused>>, NotDone> {
    let mut rounds = Rounds::open(operations, choice, Purpose::List).await?;
    let (sender, receiver) = mpsc::channel(EXPORT_AHEAD);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                next = rounds.next() => next,
                () = sender.closed() => break,
            };
            let item = match next {
                Ok(None) => break,
                Ok(Some((_, false, _))) => continue,
                Ok(Some((letter, true, broker))) => Ok(Shown::whole(&letter, broker.name())),
                Err(refused) => Err(refused),
            };
            let ends = item.is_err();
            if sender.send(item).await.is_err() || ends {
                break;
            }
        }
        rounds.close().await;
    });
    Ok(receiver)
}

/// Names in the filter that are no subscription's now.
fn notes(operations: &Operations, choice: &Choice) -> Vec<String> {
    if choice.selection.subscriptions().next().is_none() {
        return Vec::new();
    }
    let known = operations.subscriptions();
    let is_seen =
        |one: &&SubscriptionStatus| choice.tenant.is_none() || one.tenant == choice.tenant;
    let seen = known.iter().filter(is_seen);
    let names: Vec<_> = seen.map(|one| &*one.name).collect();
    let strange = choice
        .selection
        .subscriptions()
        .filter(|name| !names.contains(name));
    strange
        .map(|name| {
            let near = names
                .iter()
                .min_by_key(|known| strsim::osa_distance(known, name));
            match near.filter(|known| strsim::osa_distance(known, name) <= 2) {
                Some(near) => format!("there is no subscription `{name}`: did you mean `{near}`?"),
                None if names.is_empty() => format!("there is no subscription `{name}`"),
                None => {
                    let names = names[..names.len().min(20)].join(", ");
                    format!("there is no subscription `{name}`: there are {names}")
                }
            }
        })
        .collect()
}
