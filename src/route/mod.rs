//! Routes: which subscriptions an event is for.
//!
//! A [`Routes`] is an immutable snapshot of all subscriptions with an index over them. Asking takes
//! no lock, does no I/O and allocates nothing in ordinary cases, and costs what the subscriptions
//! that match cost, not those that do not. Building one is work for start and reload; swapping it
//! in, and what to do with an event that nothing matches, is the pipeline's business.
//!
//! What a match is, each subscription says for itself: one of its topic patterns matches the topic,
//! one of its types (if it names any) the type, its sources (if it names any) have the event's, and
//! its filter (if any) lets the event through. The index only finds candidates fast; a property
//! test holds that it finds the same ones.

mod index;
mod keyed;
mod names;
mod nodes;

use std::sync::Arc;

use crate::event::Event;
use crate::subscription::{LazyJson, Subscription, Uid};

use index::{Index, Key, Leaf};
use names::Names;

/// All subscriptions at one moment, `S` being a [`Subscription`] with whatever the caller keeps
/// beside it (meters, a lane).
pub struct Routes<S> {
    subscriptions: Vec<Arc<S>>,
    index: Index,
    by_uid: Names,
    by_name: Names,
    renamed: Names,
}

/// A subscription stands in the index once for each combination of its topics, types and sources.
/// Where those would be more than this, sources and then types are only looked at, not indexed.
const MAX_LEAVES_EACH: usize = 256;

impl<S: AsRef<Subscription>> Routes<S> {
    /// Where two subscriptions have the same uid or name, or claim the same former name, the first
    /// one is found by it.
    pub fn build(subscriptions: impl IntoIterator<Item = Arc<S>>) -> Self {
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
            index: index.finish(),
            subscriptions,
        }
    }

    /// Appends the subscriptions that `event` is for to `out`, each once, in no promised order.
    /// `body` is the event's, and is parsed only if a filter of a candidate looks into it.
    pub fn matching(&self, event: &Event, body: &LazyJson<'_>, out: &mut Vec<Arc<S>>) {
        self.visit(event, body, |subscription| {
            out.push(Arc::clone(subscription));
        });
    }

    /// As [`Routes::matching`], without cloning.
    pub fn visit(&self, event: &Event, body: &LazyJson<'_>, mut found: impl FnMut(&Arc<S>)) {
        self.index
            .visit(&event.topic, &event.kind, &event.source, |leaf| {
                let subscription = &self.subscriptions[leaf.subscription as usize];
                if leaf.settled || lets_through((**subscription).as_ref(), leaf, event, body) {
                    found(subscription);
                }
            });
    }

    /// Whether `event` could be for anybody, whatever its body is.
    pub fn has_candidate(&self, event: &Event) -> bool {
        let mut found = false;
        self.index
            .visit(&event.topic, &event.kind, &event.source, |leaf| {
                let subscription = (*self.subscriptions[leaf.subscription as usize]).as_ref();
                let Subscription { spec, types, .. } = subscription;
                let is_of_type =
                    types.is_empty() || types.iter().any(|pattern| pattern.matches(&event.kind));
                let is_of_source = spec.sources.is_empty() || spec.sources.contains(&event.source);
                found |= is_of_type && is_of_source;
            });
        found
    }

    /// The subscription of a delivery that comes back, enabled or not.
    pub fn by_uid(&self, uid: &Uid) -> Option<&Arc<S>> {
        let uid = uid.as_str();
        let is_it = |number| self.one(number).uid.as_str() == uid;
        self.named(self.by_uid.get(uid, is_it))
    }

    pub fn by_name(&self, name: &str) -> Option<&Arc<S>> {
        let is_it = |number| &*self.one(number).spec.name == name;
        self.named(self.by_name.get(name, is_it))
    }

    /// The subscription that was once called `name` (`was:`). One that is called so now is not
    /// meant, and is to be looked for first.
    pub fn renamed(&self, name: &str) -> Option<&Arc<S>> {
        let is_it = |number| was_called(self.one(number), name);
        self.named(self.renamed.get(name, is_it))
    }

    /// Every subscription, in the order given to [`Routes::build`].
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<S>> {
        self.subscriptions.iter()
    }

    /// The same as a slice.
    pub fn all(&self) -> &[Arc<S>] {
        &self.subscriptions
    }

    pub fn len(&self) -> usize {
        self.subscriptions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.subscriptions.is_empty()
    }

    fn named(&self, number: Option<u32>) -> Option<&Arc<S>> {
        self.subscriptions.get(number? as usize)
    }

    fn one(&self, number: u32) -> &Subscription {
        (*self.subscriptions[number as usize]).as_ref()
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

#[cfg(test)]
mod tests;
