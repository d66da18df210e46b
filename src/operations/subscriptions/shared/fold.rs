//! The fold: which records of the log hold.
//!
//! All instances read the same records in the same order, so whatever is decided by them alone is
//! decided the same everywhere. A change is based on a revision, and is the next one: of two that are
//! based on the same one the first in the log holds. Where a broker has dropped what was replaced,
//! revisions are missing, so that one holds whenever it is later than the one in force. What was
//! removed never comes again.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::subscription::Uid;

/// Removed ones that are remembered: who tells something of one has read of it shortly before.
const MOST_BURIED: usize = 100_000;

/// A subscription as far as the fold is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub name: String,
    pub revision: u64,
}

/// What has come of the records so far.
pub trait View {
    type Error;

    fn of(&self, uid: &Uid) -> Result<Option<Known>, Self::Error>;

    /// Who has this name.
    fn named(&self, name: &str) -> Result<Option<Uid>, Self::Error>;
}

/// What a record comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Holds,
    /// Another change was first, or it is not there any more.
    Changed,
    /// The name is another's.
    Taken,
    /// There is nothing to it.
    Nothing,
}

impl Verdict {
    /// Whether the last record of its key now says something else than what is in force.
    pub fn misleads(self) -> bool {
        matches!(self, Self::Changed | Self::Taken)
    }
}

/// A subscription is made or changed to be `next`; `again`: it is said to be in force already.
pub fn put<V: View>(
    view: &V,
    buried: &Buried,
    uid: &Uid,
    next: &Known,
    again: bool,
) -> Result<Verdict, V::Error> {
    if buried.has(uid) {
        return Ok(Verdict::Changed);
    }
    let now = view.of(uid)?;
    if again {
        return Ok(match now {
            Some(now) if now.revision > next.revision => Verdict::Changed,
            _ => Verdict::Holds,
        });
    }
    if now.is_some_and(|now| now.revision >= next.revision) {
        return Ok(Verdict::Changed);
    }
    Ok(match view.named(&next.name)? {
        Some(owner) if owner != *uid => Verdict::Taken,
        _ => Verdict::Holds,
    })
}

/// A subscription is removed by a change that has this revision.
pub fn removed<V: View>(view: &V, uid: &Uid, revision: u64) -> Result<Verdict, V::Error> {
    Ok(match view.of(uid)? {
        None => Verdict::Nothing,
        Some(now) if revision > now.revision => Verdict::Holds,
        Some(_) => Verdict::Changed,
    })
}

/// Those that were removed.
#[derive(Debug, Default)]
pub struct Buried {
    all: HashSet<Uid>,
    order: VecDeque<Uid>,
}

impl Buried {
    pub fn add(&mut self, uid: Uid) {
        if !self.all.insert(uid.clone()) {
            return;
        }
        self.order.push_back(uid);
        if self.order.len() > MOST_BURIED
            && let Some(oldest) = self.order.pop_front()
        {
            self.all.remove(&oldest);
        }
    }

    pub fn has(&self, uid: &Uid) -> bool {
        self.all.contains(uid)
    }
}

/// Records of a batch that hold and are not written down yet, over what is.
pub struct Ahead<'a, V> {
    under: &'a V,
    by_uid: HashMap<Uid, Option<Known>>,
    by_name: HashMap<String, Option<Uid>>,
}

impl<'a, V: View> Ahead<'a, V> {
    pub fn of(under: &'a V) -> Self {
        Self {
            under,
            by_uid: HashMap::new(),
            by_name: HashMap::new(),
        }
    }

    pub fn put(&mut self, uid: &Uid, next: Known) -> Result<(), V::Error> {
        self.free(uid)?;
        self.by_name.insert(next.name.clone(), Some(uid.clone()));
        self.by_uid.insert(uid.clone(), Some(next));
        Ok(())
    }

    /// Whether the batch leaves this name to somebody else, or to nobody.
    pub fn takes_from(&self, uid: &Uid, name: &str) -> bool {
        let owner = self.by_name.get(name);
        owner.is_some_and(|owner| owner.as_ref() != Some(uid))
    }

    pub fn remove(&mut self, uid: &Uid) -> Result<(), V::Error> {
        self.free(uid)?;
        self.by_uid.insert(uid.clone(), None);
        Ok(())
    }

    fn free(&mut self, uid: &Uid) -> Result<(), V::Error> {
        let Some(before) = self.of(uid)? else {
            return Ok(());
        };
        if self.named(&before.name)?.is_some_and(|owner| owner == *uid) {
            self.by_name.insert(before.name, None);
        }
        Ok(())
    }
}

impl<V: View> View for Ahead<'_, V> {
    type Error = V::Error;

    fn of(&self, uid: &Uid) -> Result<Option<Known>, V::Error> {
        match self.by_uid.get(uid) {
            Some(ahead) => Ok(ahead.clone()),
            None => self.under.of(uid),
        }
    }

    fn named(&self, name: &str) -> Result<Option<Uid>, V::Error> {
        match self.by_name.get(name) {
            Some(ahead) => Ok(ahead.clone()),
            None => self.under.named(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// Nothing is written down.
    struct Empty;

    impl View for Empty {
        type Error = Infallible;

        fn of(&self, _: &Uid) -> Result<Option<Known>, Infallible> {
            Ok(None)
        }

        fn named(&self, _: &str) -> Result<Option<Uid>, Infallible> {
            Ok(None)
        }
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Record {
        Put {
            uid: usize,
            known: Known,
            again: bool,
        },
        Removed {
            uid: usize,
            revision: u64,
        },
        Nothing {
            uid: usize,
        },
    }

    impl Record {
        fn uid(&self) -> usize {
            match self {
                Self::Put { uid, .. } | Self::Removed { uid, .. } | Self::Nothing { uid } => *uid,
            }
        }
    }

    fn uid(number: usize) -> Uid {
        Uid::from_stored(&format!("api:{number}"))
    }

    /// An instance: how far it has read, and what it has made of it.
    struct Instance {
        view: Ahead<'static, Empty>,
        buried: Buried,
        read: usize,
        /// Keys whose last record says something else than what is in force.
        misled: BTreeSet<usize>,
    }

    impl Instance {
        fn new() -> Self {
            Self {
                view: Ahead::of(&Empty),
                buried: Buried::default(),
                read: 0,
                misled: BTreeSet::new(),
            }
        }

        fn read(&mut self, log: &[Record], up_to: usize) {
            for record in &log[self.read..up_to] {
                self.fold(record);
            }
            self.read = self.read.max(up_to);
        }

        fn fold(&mut self, record: &Record) {
            let number = record.uid();
            let of = uid(number);
            let verdict = match record {
                Record::Put { known, again, .. } => {
                    let Ok(verdict) = put(&self.view, &self.buried, &of, known, *again);
                    if verdict == Verdict::Holds {
                        let Ok(()) = self.view.put(&of, known.clone());
                    }
                    verdict
                }
                Record::Removed { revision, .. } => {
                    let Ok(verdict) = removed(&self.view, &of, *revision);
                    if verdict == Verdict::Holds {
                        let Ok(()) = self.view.remove(&of);
                    }
                    if !verdict.misleads() {
                        self.buried.add(of);
                    }
                    verdict
                }
                Record::Nothing { .. } => {
                    let Ok(()) = self.view.remove(&of);
                    self.buried.add(of);
                    Verdict::Nothing
                }
            };
            match verdict.misleads() {
                true => self.misled.insert(number),
                false => self.misled.remove(&number),
            };
        }

        fn all(&self) -> BTreeMap<usize, Known> {
            let each = (0..UIDS).filter_map(|number| {
                let Ok(known) = self.view.of(&uid(number));
                Some((number, known?))
            });
            each.collect()
        }

        /// What it tells to have the last record of each key say what is in force.
        fn repairs(&self) -> Vec<Record> {
            let repair = |&number: &usize| {
                let Ok(known) = self.view.of(&uid(number));
                match known {
                    Some(known) => Record::Put {
                        uid: number,
                        known,
                        again: true,
                    },
                    None => Record::Nothing { uid: number },
                }
            };
            self.misled.iter().map(repair).collect()
        }
    }

    const UIDS: usize = 4;

    /// What a writer does: reads a little, then tells something by what it knows.
    #[derive(Debug, Clone)]
    struct Deed {
        writer: bool,
        reads: usize,
        uid: usize,
        name: u8,
        removes: bool,
    }

    fn deeds() -> impl Strategy<Value = Vec<Deed>> {
        let deed = (any::<bool>(), 0..4usize, 0..UIDS, 0..3u8, 0..5u8);
        let deed = deed.prop_map(|(writer, reads, uid, name, removes)| Deed {
            writer,
            reads,
            uid,
            name,
            removes: removes == 0,
        });
        proptest::collection::vec(deed, 0..40)
    }

    /// Only the last record of each key, in their order.
    fn compacted(log: &[Record]) -> Vec<Record> {
        let is_last = |at: usize| {
            log[at + 1..]
                .iter()
                .all(|later| later.uid() != log[at].uid())
        };
        let kept = log.iter().enumerate().filter(|(at, _)| is_last(*at));
        kept.map(|(_, record)| record.clone()).collect()
    }

    proptest! {
        /// Two writers that know of each other late, in any interleaving: all who read make the same of
        /// it, each change that was based on what held is there, and a log that was repaired and
        /// compacted says the same.
        #[test]
        fn any_interleaving_gives_the_same_view(deeds in deeds()) {
            let mut log: Vec<Record> = Vec::new();
            let mut writers = [Instance::new(), Instance::new()];
            for deed in deeds {
                let writer = &mut writers[usize::from(deed.writer)];
                let up_to = (writer.read + deed.reads).min(log.len());
                writer.read(&log, up_to);
                let of = uid(deed.uid);
                if writer.buried.has(&of) {
                    continue;
                }
                let Ok(now) = writer.view.of(&of);
                let revision = now.as_ref().map_or(1, |now| now.revision + 1);
                log.push(match (deed.removes, now) {
                    (true, Some(_)) => Record::Removed { uid: deed.uid, revision },
                    (true, None) => continue,
                    (false, _) => Record::Put {
                        uid: deed.uid,
                        known: Known { name: format!("n{}", deed.name), revision },
                        again: false,
                    },
                });
            }
            let [mut one, mut other] = writers;
            one.read(&log, log.len());
            other.read(&log, log.len());
            prop_assert_eq!(one.all(), other.all());
            let mut later = Instance::new();
            later.read(&log, log.len());
            prop_assert_eq!(one.all(), later.all());
            let names: HashSet<_> = one.all().into_values().map(|known| known.name).collect();
            prop_assert_eq!(names.len(), one.all().len(), "a name is one's own");

            log.extend(one.repairs());
            other.read(&log, log.len());
            prop_assert_eq!(one.all(), other.all(), "repairs change nothing");
            prop_assert!(other.repairs().is_empty());
            let mut fresh = Instance::new();
            let rest = compacted(&log);
            fresh.read(&rest, rest.len());
            prop_assert_eq!(one.all(), fresh.all());
        }
    }

    #[test]
    fn of_two_the_first_holds() {
        let mut view = Ahead::of(&Empty);
        let mut buried = Buried::default();
        let known = |name: &str, revision| Known {
            name: name.to_owned(),
            revision,
        };
        let (a, b) = (uid(1), uid(2));
        let Ok(()) = view.put(&a, known("crm", 1));
        let say = |view: &Ahead<'_, Empty>, buried: &Buried, of: &Uid, next, again| {
            let Ok(verdict) = put(view, buried, of, &next, again);
            verdict
        };
        assert_eq!(
            say(&view, &buried, &b, known("crm", 1), false),
            Verdict::Taken
        );
        assert_eq!(
            say(&view, &buried, &a, known("crm", 1), false),
            Verdict::Changed
        );
        assert_eq!(
            say(&view, &buried, &a, known("erp", 2), false),
            Verdict::Holds
        );
        assert_eq!(
            say(&view, &buried, &a, known("crm", 1), true),
            Verdict::Holds
        );
        let Ok(stale) = removed(&view, &a, 1);
        assert_eq!(stale, Verdict::Changed);
        let Ok(gone) = removed(&view, &a, 2);
        assert_eq!(gone, Verdict::Holds);
        let Ok(()) = view.remove(&a);
        buried.add(a.clone());
        assert_eq!(
            say(&view, &buried, &a, known("crm", 1), true),
            Verdict::Changed
        );
        assert_eq!(
            say(&view, &buried, &b, known("crm", 1), false),
            Verdict::Holds
        );
    }
}
