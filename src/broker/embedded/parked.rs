//! Parked deliveries: listed, brought forward, dropped.
//!
//! The index by due time is read in pages; what an order is about goes to the writer page by page,
//! each page one transaction, so that an order about very many holds nobody up and one that is
//! interrupted has been carried out for the pages so far.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use redb::ReadableDatabase;
use tracing::info;

use super::letters::reading;
use super::writer::{Place, Work};
use super::{Declined, Embedded, Shared, clock, kind_number, record, tables};
use crate::broker::envelope::{self, Envelope};
use crate::broker::parked::{Deed, Done, Follow, Order, Waiting, Whose};
use crate::delivery::{Delivery, WaitKind};
use crate::subscription::Uid;

/// Entries of the index that are read, and changed, at once.
const PAGE: usize = 1_024;
/// How long it may take to look whose they are; beyond that only how many there are is told.
pub const LOOK_WITHIN: Duration = Duration::from_secs(10);

/// Whose a delivery is, where its record can be read.
type Owner = Option<(Arc<str>, Uid)>;

/// By kind and subscription, as far as that is found out `within` a time; those beyond are nobody's.
pub async fn list(shared: Arc<Shared>, within: Duration) -> Result<Vec<Waiting>, Declined> {
    let began = Instant::now();
    let mut groups: BTreeMap<(u8, Owner), Waiting> = BTreeMap::new();
    for kind in [WaitKind::Retry, WaitKind::Hold] {
        let mut from = (0, 0);
        loop {
            let page = page(shared.clone(), kind, from, Look::Owners).await?;
            let read = page.len();
            for entry in page {
                from = (entry.place.due_ms, entry.place.sequence + 1);
                let owner = entry.owner.clone();
                let row = groups
                    .entry((kind_number(kind), entry.owner))
                    .or_insert_with(|| empty_row(kind, owner));
                row.count += 1;
                let since = entry.place.due_ms.saturating_sub(entry.delay_ms);
                row.oldest = earlier(row.oldest, clock::timestamp(since));
                row.next_due = earlier(row.next_due, clock::timestamp(entry.place.due_ms));
            }
            if read < PAGE {
                break;
            }
            if began.elapsed() < within {
                continue;
            }
            let number = kind_number(kind);
            let known = groups.range_mut((number, None)..(number + 1, None));
            known.for_each(|(_, row)| row.at_least = true);
            let rest = rest(shared.clone(), kind, from).await?;
            if rest.count > 0 {
                let row = groups.entry((number, None));
                let row = row.or_insert_with(|| empty_row(kind, None));
                row.count += rest.count;
                row.oldest = earlier(row.oldest, rest.oldest);
                row.next_due = earlier(row.next_due, rest.next_due);
            }
            break;
        }
    }
    Ok(groups.into_values().collect())
}

/// What lies in the index from (due in ms, sequence) on, whoever's it is.
async fn rest(shared: Arc<Shared>, kind: WaitKind, from: (u64, u64)) -> Result<Waiting, Declined> {
    reading(shared, move |_, db| {
        let due = db.begin_read()?.open_table(tables::DUE)?;
        let number = kind_number(kind);
        let mut rest = empty_row(kind, None);
        for row in due.range((number, from.0, from.1)..=(number, u64::MAX, u64::MAX))? {
            let (key, delay_ms) = row?;
            let (_, due_ms, _) = key.value();
            let since = due_ms.saturating_sub(delay_ms.value());
            rest.count += 1;
            rest.oldest = earlier(rest.oldest, clock::timestamp(since));
            rest.next_due = earlier(rest.next_due, clock::timestamp(due_ms));
        }
        Ok(rest)
    })
    .await
}

fn empty_row(kind: WaitKind, subscription: Owner) -> Waiting {
    Waiting {
        kind,
        tier_seconds: None,
        subscription,
        count: 0,
        at_least: false,
        oldest: None,
        next_due: None,
    }
}

fn earlier(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Carries out an order about what is parked by now.
pub async fn carry_out(
    broker: &Embedded,
    order: &Order,
    follow: &dyn Follow,
) -> Result<Done, Declined> {
    let shared = &broker.shared;
    let parked_by_now = next_sequence(shared.clone()).await?;
    let of_somebody = order.whose != Whose::All;
    let look = match (follow.records(), of_somebody) {
        (true, _) => Look::Deliveries,
        (false, true) => Look::Owners,
        (false, false) => Look::Places,
    };
    let mut done = Done::default();
    for kind in order.kinds() {
        // What is due is on its way already.
        let mut from = (shared.clock.now_ms() + 1, 0);
        while !follow.cancelled().is_cancelled() {
            let page = page(shared.clone(), kind, from, look).await?;
            let Some(last) = page.last() else { break };
            from = (last.place.due_ms, last.place.sequence + 1);
            let (read, mut meant) = (page.len(), Vec::new());
            for entry in page {
                let old = entry.place.sequence < parked_by_now;
                let whose = match &entry.owner {
                    Some((name, uid)) => order.whose.includes_of(uid, name),
                    None => !of_somebody,
                };
                if old && whose {
                    meant.push((entry.place, entry.delivery));
                } else if old {
                    follow.expects(1);
                    follow.saw(false);
                }
            }
            done.count += change(broker, order.deed, meant, follow).await?;
            if read < PAGE {
                break;
            }
        }
    }
    if done.count > 0 {
        info!(broker = %shared.name, order = order.deed.as_str(), count = done.count, "parked deliveries were brought forward or dropped");
    }
    Ok(done)
}

async fn change(
    broker: &Embedded,
    deed: Deed,
    meant: Vec<(Place, Option<Slim>)>,
    follow: &dyn Follow,
) -> Result<u64, Declined> {
    let (meant, deliveries): (Vec<_>, Vec<Option<Slim>>) = meant.into_iter().unzip();
    if meant.is_empty() {
        return Ok(0);
    }
    let changed = broker
        .shared
        .ask(match deed {
            Deed::Now => Work::Bring(meant),
            Deed::Drop => Work::Discard(meant),
        })
        .await?;
    // Some may have become due meanwhile.
    let count = changed.iter().filter(|changed| **changed).count() as u64;
    follow.expects(count);
    for (_, delivery) in changed
        .iter()
        .zip(&deliveries)
        .filter(|(changed, _)| **changed)
    {
        follow.saw(true);
        if let Some(Slim(delivery, size_bytes)) = delivery {
            follow.did(delivery, *size_bytes);
        }
    }
    Ok(count)
}

/// An entry of the index.
struct Entry {
    place: Place,
    delay_ms: u64,
    /// Only where it was asked for.
    owner: Owner,
    /// Where it was asked for.
    delivery: Option<Slim>,
}

/// What is read of parked deliveries besides their places.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Places,
    Owners,
    Deliveries,
}

/// The entries of `kind` from (due in ms, sequence) on.
async fn page(
    shared: Arc<Shared>,
    kind: WaitKind,
    from: (u64, u64),
    look: Look,
) -> Result<Vec<Entry>, Declined> {
    reading(shared, move |_, db| {
        let txn = db.begin_read()?;
        let due = txn.open_table(tables::DUE)?;
        let parked = txn.open_table(tables::PARKED)?;
        let number = kind_number(kind);
        let mut page = Vec::new();
        for row in due
            .range((number, from.0, from.1)..=(number, u64::MAX, u64::MAX))?
            .take(PAGE)
        {
            let (key, delay_ms) = row?;
            let (_, due_ms, sequence) = key.value();
            let (owner, delivery) = match look {
                Look::Places => (None, None),
                Look::Owners => (parked.get(sequence)?.and_then(|r| owner(r.value())), None),
                Look::Deliveries => match parked.get(sequence)? {
                    Some(record) => (owner(record.value()), slim(record.value())),
                    None => (None, None),
                },
            };
            page.push(Entry {
                place: Place {
                    kind,
                    due_ms,
                    sequence,
                },
                delay_ms: delay_ms.value(),
                owner,
                delivery,
            });
        }
        Ok(page)
    })
    .await
}

fn owner(record: &[u8]) -> Owner {
    let written = record::read_delivery(Bytes::copy_from_slice(record)).ok()?;
    let (name, uid) = envelope::owner(&written.headers)?;
    Some((name.into(), uid))
}

/// A delivery without its body and headers, and the bytes of its event with them.
struct Slim(Delivery, usize);

/// The delivery without what may be large.
fn slim(record: &[u8]) -> Option<Slim> {
    let written = record::read_delivery(Bytes::copy_from_slice(record)).ok()?;
    let delivery = Envelope::read(written.headers, written.body).ok()?.delivery;
    let size_bytes = delivery.event.size_bytes();
    Some(Slim(delivery.slim(), size_bytes))
}

/// What is parked from now on has this sequence or a later one.
async fn next_sequence(shared: Arc<Shared>) -> Result<u64, Declined> {
    reading(shared, |_, db| {
        tables::counts(db).map(|counts| counts.next_sequence)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::super::{Embedded, Settings, letters};
    use super::*;
    use crate::broker::{Broker as _, Wait};

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_not_looked_at_in_time_is_counted_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let broker = Embedded::open(Settings::for_tests(folder.path())).unwrap();
        let (name, body) = ("here".into(), Bytes::from_static(b"x"));
        let letter = letters::unreadable(&name, 1, "dlv_1", body, Timestamp::now());
        let delivery = Delivery {
            subscription: "crm".into(),
            uid: Uid::of_config("crm"),
            ..letter.delivery
        };
        let wait = Wait {
            kind: WaitKind::Hold,
            delay: Duration::from_secs(3_600),
        };
        const COUNT: usize = PAGE + 500;
        let all = (0..COUNT).map(|_| broker.park(&delivery, wait));
        for parked in futures_util::future::join_all(all).await {
            parked.unwrap();
        }
        let told = |rows: Vec<Waiting>| -> Vec<_> {
            let each = rows.into_iter();
            each.map(|row| (row.subscription.is_some(), row.count, row.at_least))
                .collect()
        };
        let in_time = list(broker.shared.clone(), LOOK_WITHIN).await.unwrap();
        assert_eq!(told(in_time), [(true, COUNT as u64, false)]);
        let late = list(broker.shared.clone(), Duration::ZERO).await.unwrap();
        assert_eq!(told(late), [(false, 500, false), (true, PAGE as u64, true)]);
    }
}
