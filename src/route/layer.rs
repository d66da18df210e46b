//! Layers: subscriptions that were indexed together, and never change.

use std::sync::Arc;

use super::index::{self, Index, Key, Leaf};
use super::keyed::Keyed;
use super::names::Names;
use crate::event::Event;
use crate::subscription::{LazyJson, Subscription, Uid};

/// See the module.
pub(super) struct Layer<S> {
    subscriptions: Vec<Arc<S>>,
    index: Index,
    by_uid: Names,
    by_name: Names,
    renamed: Names,
    of_tenants: OfTenants,
}

/// The numbers of subscriptions that have a tenant, by the hash of its name, each tenant's in order.
struct OfTenants {
    numbers: Box<[(u32, u32)]>,
    keyed: Keyed,
}

/// A subscription stands in the index once for each combination of its topics, types and sources.
/// Where those would be more than this, sources and then types are only looked at, not indexed.
const MAX_LEAVES_EACH: usize = 256;

impl<S: AsRef<Subscription>> Layer<S> {
    /// Where two subscriptions have the same uid or name, or claim the same former name, the first
    /// one is found by it.
    pub(super) fn build(subscriptions: impl IntoIterator<Item = Arc<S>>) -> Self {
        let subscriptions: Vec<_> = subscriptions.into_iter().collect();
        let mut index = index::Builder::default();
        for (number, subscription) in (0..).zip(&subscriptions) {
            let subscription = (**subscription).as_ref();
            if subscription.spec.enabled {
                plant(&mut index, number, subscription);
            }
        }
        let all = || (0..).zip(subscriptions.iter().map(|one| (**one).as_ref()));
        let uids = all().map(|(number, one)| (number, one.uid.as_str()));
        let names = all().map(|(number, one)| (number, &*one.spec.name));
        let former =
            all().flat_map(|(number, one)| one.spec.was.iter().map(move |was| (number, &**was)));
        let one = |number: u32| (*subscriptions[number as usize]).as_ref();
        Self {
            by_uid: Names::new(uids, |number, uid| one(number).uid.as_str() == uid),
            by_name: Names::new(names, |number, name| &*one(number).spec.name == name),
            renamed: Names::new(former, |number, name| was_called(one(number), name)),
            of_tenants: OfTenants::new(all()),
            index: index.finish(),
            subscriptions,
        }
    }

    /// Calls `found` with each subscription that `event` is for, and its number.
    pub(super) fn visit(
        &self,
        event: &Event,
        body: &LazyJson<'_>,
        mut found: impl FnMut(u32, &Arc<S>),
    ) {
        let Event {
            topic,
            kind,
            source,
            tenant,
            ..
        } = event;
        self.index
            .visit(topic, kind, source, tenant.as_deref(), |leaf| {
                let subscription = &self.subscriptions[leaf.subscription as usize];
                if leaf.settled || lets_through((**subscription).as_ref(), leaf, event, body) {
                    found(leaf.subscription, subscription);
                }
            });
    }

    /// Whether `event` could be for anybody but those `gone`, whatever its body is.
    pub(super) fn has_candidate(&self, event: &Event, is_gone: impl Fn(u32) -> bool) -> bool {
        let mut found = false;
        let Event {
            topic,
            kind,
            source,
            tenant,
            ..
        } = event;
        self.index
            .visit(topic, kind, source, tenant.as_deref(), |leaf| {
                let subscription = (*self.subscriptions[leaf.subscription as usize]).as_ref();
                let Subscription { spec, types, .. } = subscription;
                let is_of_type =
                    types.is_empty() || types.iter().any(|pattern| pattern.matches(kind));
                let is_of_source = spec.sources.is_empty() || spec.sources.contains(source);
                found |= is_of_type && is_of_source && !is_gone(leaf.subscription);
            });
        found
    }

    pub(super) fn by_uid(&self, uid: &Uid) -> Option<u32> {
        let uid = uid.as_str();
        self.by_uid
            .get(uid, |number| self.one(number).uid.as_str() == uid)
    }

    pub(super) fn by_name(&self, name: &str) -> Option<u32> {
        self.by_name
            .get(name, |number| &*self.one(number).spec.name == name)
    }

    pub(super) fn renamed(&self, name: &str) -> Option<u32> {
        self.renamed
            .get(name, |number| was_called(self.one(number), name))
    }

    /// Numbers of a tenant's, from `first` on, in order.
    pub(super) fn of_tenant<'s>(
        &'s self,
        tenant: &'s str,
        first: u32,
    ) -> impl Iterator<Item = u32> + 's {
        let is_its = move |number: &u32| self.one(*number).spec.tenant.as_deref() == Some(tenant);
        self.of_tenants.from(tenant, first).filter(is_its)
    }

    pub(super) fn all(&self) -> &[Arc<S>] {
        &self.subscriptions
    }

    pub(super) fn at(&self, number: u32) -> &Arc<S> {
        &self.subscriptions[number as usize]
    }

    fn one(&self, number: u32) -> &Subscription {
        (*self.subscriptions[number as usize]).as_ref()
    }
}

impl OfTenants {
    fn new<'a>(all: impl Iterator<Item = (u32, &'a Subscription)>) -> Self {
        let keyed = Keyed::new();
        let mut numbers: Vec<_> = all
            .filter_map(|(number, one)| {
                let tenant = one.spec.tenant.as_deref()?;
                Some((keyed.hash(0, tenant.as_bytes()), number))
            })
            .collect();
        numbers.sort_unstable();
        Self {
            numbers: numbers.into(),
            keyed,
        }
    }

    /// Of this tenant, and perhaps of one with the same hash.
    fn from(&self, tenant: &str, first: u32) -> impl Iterator<Item = u32> {
        let hash = self.keyed.hash(0, tenant.as_bytes());
        let begin = self.numbers.partition_point(|one| *one < (hash, first));
        let rest = self.numbers[begin..].iter();
        rest.take_while(move |(other, _)| *other == hash)
            .map(|(_, number)| *number)
    }
}

fn was_called(subscription: &Subscription, name: &str) -> bool {
    subscription.spec.was.iter().any(|was| **was == *name)
}

/// Puts every combination of topic, type and source that `subscription` names into the index.
fn plant(index: &mut index::Builder, number: u32, subscription: &Subscription) {
    let Subscription { topics, types, .. } = subscription;
    let sources = &subscription.spec.sources;
    let with_types = topics.len() * types.len().max(1);
    let type_is_indexed = !types.is_empty() && with_types <= MAX_LEAVES_EACH;
    let leaves = if type_is_indexed {
        with_types
    } else {
        topics.len()
    };
    let source_is_indexed = !sources.is_empty() && leaves * sources.len() <= MAX_LEAVES_EACH;

    let kinds = || {
        let all = types.iter().enumerate().map(Some);
        let unless_none = type_is_indexed.then_some(all);
        let none = (!type_is_indexed).then_some(None);
        unless_none.into_iter().flatten().chain(none)
    };
    // Then the index has looked at all there is, where the first patterns speak.
    let settled = (types.is_empty() || type_is_indexed)
        && (sources.is_empty() || source_is_indexed)
        && subscription.filter.is_none();

    let mut from: Vec<Option<&str>> = vec![None];
    if source_is_indexed {
        from = sources.iter().map(|source| Some(&**source)).collect();
        from.sort_unstable();
        from.dedup();
    }
    for (topic_number, topic) in (0..).zip(topics) {
        for kind in kinds() {
            for source in &from {
                let key = Key {
                    tenant: subscription.spec.tenant.as_deref(),
                    topic,
                    kind: kind.map(|(_, pattern)| pattern),
                    source: *source,
                };
                let kind = kind.map(|(number, _)| u8::try_from(number).expect("256 at the most"));
                let leaf = Leaf {
                    subscription: number,
                    topic: topic_number,
                    kind,
                    settled: settled && topic_number == 0 && kind.is_none_or(|kind| kind == 0),
                };
                index.insert(key, leaf);
            }
        }
    }
}

/// Whether the candidate really matches, and this leaf is the one that reports it. A subscription
/// whose patterns overlap is found by several leaves: the first pattern that matches speaks for it,
/// so that nothing has to be remembered between leaves.
fn lets_through(
    subscription: &Subscription,
    leaf: &Leaf,
    event: &Event,
    body: &LazyJson<'_>,
) -> bool {
    let Subscription {
        spec,
        topics,
        types,
        filter,
        ..
    } = subscription;
    let topic_spoke_before = topics[..leaf.topic as usize]
        .iter()
        .any(|pattern| pattern.matches(&event.topic));
    let kind_fits = match leaf.kind {
        Some(number) => !types[..number as usize]
            .iter()
            .any(|pattern| pattern.matches(&event.kind)),
        None => types.is_empty() || types.iter().any(|pattern| pattern.matches(&event.kind)),
    };
    !topic_spoke_before
        && kind_fits
        && (spec.sources.is_empty() || spec.sources.contains(&event.source))
        && filter
            .as_ref()
            .is_none_or(|filter| filter.matches(event, body))
}
