//! Routes: which subscriptions an event is for.
//!
//! A [`Routes`] is an immutable snapshot of all subscriptions with an index over them. Asking takes
//! no lock, does no I/O and allocates nothing in ordinary cases, and costs what the subscriptions
//! that match cost, not those that do not. Swapping one in, and what to do with an event that nothing
//! matches, is the pipeline's business.
//!
//! What a match is, each subscription says for itself: it is of the event's tenant, or of none; one
//! of its topic patterns matches the topic, one of its types (if it names any) the type, its sources
//! (if it names any) have the event's, and its filter (if any) lets the event through. The index only
//! finds candidates fast; a property test holds that it finds the same ones.
//!
//! Building one over all is work for start and reload. Among many, a change ([`Routes::with`],
//! [`Routes::without`]) makes a snapshot that shares their [`Layer`] and has a small one over it; when
//! that has grown, all are [gathered](Routes::gathered) into one again, while changes go on.

mod index;
mod keyed;
mod layer;
mod names;
mod nodes;

use std::cmp::Ordering;
use std::iter::Peekable;
use std::sync::Arc;

use crate::event::Event;
use crate::subscription::{LazyJson, Subscription, Uid};

use layer::Layer;

/// So many are indexed anew with each change.
const FEW: usize = if cfg!(test) { 8 } else { 1_024 };
/// What lies over the base is gathered when it is this share of it.
const CROWDED_SHARE: usize = 256;
const CROWDED_AT: usize = 4_096;
/// Changes wait for the gathering when so many times more have come since.
const OVERFULL: usize = 8;

/// All subscriptions at one moment, `S` being a [`Subscription`] with whatever the caller keeps
/// beside it (meters, a lane).
pub struct Routes<S> {
    base: Arc<Layer<S>>,
    /// What came since the base was made, and what is in place of some of it.
    fresh: Option<Box<Layer<S>>>,
    /// The numbers of those of the base that are no more, sorted.
    gone: Box<[u32]>,
}

impl<S: AsRef<Subscription>> Routes<S> {
    /// Where two subscriptions have the same uid or name, or claim the same former name, the first
    /// one is found by it. What is done with single ones later needs them in the order of their
    /// [places](place).
    pub fn build(subscriptions: impl IntoIterator<Item = Arc<S>>) -> Self {
        Self {
            base: Arc::new(Layer::build(subscriptions)),
            fresh: None,
            gone: Box::default(),
        }
    }

    /// With `one`, in place of the one of its uid.
    pub fn with(&self, one: Arc<S>) -> Self {
        let uid = (*one).as_ref().uid.clone();
        self.changed(&uid, Some(one))
    }

    /// Without the one of this uid.
    pub fn without(&self, uid: &Uid) -> Self {
        self.changed(uid, None)
    }

    fn changed(&self, uid: &Uid, one: Option<Arc<S>>) -> Self {
        let is_other = |other: &&Arc<S>| (***other).as_ref().uid != *uid;
        if self.base.all().len() <= FEW {
            let others = self.iter().filter(is_other).cloned();
            return Self::build(sorted(others.chain(one)));
        }
        let mut gone = self.gone.to_vec();
        if let Some(number) = self.base.by_uid(uid)
            && let Err(at) = gone.binary_search(&number)
        {
            gone.insert(at, number);
        }
        let fresh = self.fresh_ones().iter().filter(is_other).cloned();
        self.over(fresh.chain(one), gone)
    }

    fn over(&self, fresh: impl Iterator<Item = Arc<S>>, gone: Vec<u32>) -> Self {
        let fresh = sorted(fresh);
        Self {
            base: self.base.clone(),
            fresh: (!fresh.is_empty()).then(|| Box::new(Layer::build(fresh))),
            gone: gone.into(),
        }
    }

    /// Whether so much has changed that all should be gathered.
    pub fn is_crowded(&self) -> bool {
        self.changes() > self.crowd()
    }

    /// Whether more changes should wait for that.
    pub fn is_overfull(&self) -> bool {
        self.changes() > OVERFULL * self.crowd()
    }

    fn crowd(&self) -> usize {
        (self.base.all().len() / CROWDED_SHARE).clamp(64, CROWDED_AT)
    }

    fn changes(&self) -> usize {
        self.fresh_ones().len() + self.gone.len()
    }

    /// The same in one layer.
    pub fn gathered(&self) -> Self {
        Self::build(self.iter().cloned())
    }

    /// What `now` is, over `self`, which was gathered of `then`. `None` where everything was built
    /// anew meanwhile.
    pub fn caught_up(self, then: &Self, now: &Self) -> Option<Self> {
        if !Arc::ptr_eq(&then.base, &now.base) {
            return None;
        }
        let was_there = |one: &&Arc<S>| {
            let before = then.fresh.as_ref().and_then(|fresh| {
                let number = fresh.by_uid(&(***one).as_ref().uid)?;
                Some(fresh.at(number))
            });
            before.is_some_and(|before| Arc::ptr_eq(before, one))
        };
        let fresh: Vec<_> = now
            .fresh_ones()
            .iter()
            .filter(|one| !was_there(one))
            .cloned()
            .collect();
        // What is no more, and what something else is in place of.
        let left = then.fresh_ones().iter().filter(|one| {
            let uid = &(***one).as_ref().uid;
            let still = now.fresh.as_ref().and_then(|fresh| fresh.by_uid(uid));
            still.is_none()
        });
        let gone = now.gone.iter();
        let gone = gone.filter(|number| then.gone.binary_search(number).is_err());
        let gone = gone.map(|number| now.base.at(*number));
        let uids = left.chain(gone).chain(&fresh);
        let mut gone: Vec<_> = uids
            .filter_map(|one| self.base.by_uid(&(**one).as_ref().uid))
            .collect();
        gone.sort_unstable();
        gone.dedup();
        Some(self.over(fresh.into_iter(), gone))
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
        self.base.visit(event, body, |number, subscription| {
            if !self.is_gone(number) {
                found(subscription);
            }
        });
        if let Some(fresh) = &self.fresh {
            fresh.visit(event, body, |_, subscription| found(subscription));
        }
    }

    /// Whether `event` could be for anybody, whatever its body is.
    pub fn has_candidate(&self, event: &Event) -> bool {
        let is_gone = |number| self.is_gone(number);
        let fresh = || self.fresh.as_ref();
        self.base.has_candidate(event, is_gone)
            || fresh().is_some_and(|fresh| fresh.has_candidate(event, |_| false))
    }

    /// The subscription of a delivery that comes back, enabled or not.
    pub fn by_uid(&self, uid: &Uid) -> Option<&Arc<S>> {
        self.found(|layer| layer.by_uid(uid))
    }

    pub fn by_name(&self, name: &str) -> Option<&Arc<S>> {
        self.found(|layer| layer.by_name(name))
    }

    /// The subscription that was once called `name` (`was:`). One that is called so now is not
    /// meant, and is to be looked for first.
    pub fn renamed(&self, name: &str) -> Option<&Arc<S>> {
        self.found(|layer| layer.renamed(name))
    }

    /// Every subscription, in the order of their places where they were built in that.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<S>> {
        self.after(None)
    }

    /// Those behind this place.
    pub fn after(&self, after: Option<(&str, &str)>) -> impl Iterator<Item = &Arc<S>> {
        let behind = |layer: &[Arc<S>]| first_behind(layer, after);
        let base = self.base.all();
        let first = behind(base);
        let kept = (first..base.len()).filter(move |number| !self.is_gone(*number as u32));
        let fresh = self.fresh_ones();
        merged(
            kept.map(move |number| &base[number]),
            fresh[behind(fresh)..].iter(),
        )
    }

    /// Those of one tenant behind this place.
    pub fn of_tenant<'s>(
        &'s self,
        tenant: &'s str,
        after: Option<(&str, &str)>,
    ) -> impl Iterator<Item = &'s Arc<S>> {
        let first = |layer: &Layer<S>| first_behind(layer.all(), after) as u32;
        let kept = self.base.of_tenant(tenant, first(&self.base));
        let kept = kept.filter(move |number| !self.is_gone(*number));
        let fresh = self.fresh.iter().flat_map(move |layer| {
            let numbers = layer.of_tenant(tenant, first(layer));
            numbers.map(move |number| layer.at(number))
        });
        let fresh: Vec<_> = fresh.collect();
        merged(
            kept.map(move |number| self.base.at(number)),
            fresh.into_iter(),
        )
    }

    pub fn len(&self) -> usize {
        self.base.all().len() - self.gone.len() + self.fresh_ones().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn fresh_ones(&self) -> &[Arc<S>] {
        self.fresh.as_ref().map_or(&[][..], |fresh| fresh.all())
    }

    fn found(&self, find: impl Fn(&Layer<S>) -> Option<u32>) -> Option<&Arc<S>> {
        if let Some(fresh) = &self.fresh
            && let Some(number) = find(fresh)
        {
            return Some(fresh.at(number));
        }
        let number = find(&self.base)?;
        (!self.is_gone(number)).then(|| self.base.at(number))
    }

    fn is_gone(&self, number: u32) -> bool {
        !self.gone.is_empty() && self.gone.binary_search(&number).is_ok()
    }
}

/// The place of a subscription among all: by name, and where two have the same one, by uid.
pub fn place(subscription: &Subscription) -> (&str, &str) {
    (&subscription.spec.name, subscription.uid.as_str())
}

fn by_place<S: AsRef<Subscription>>(one: &Arc<S>, other: &Arc<S>) -> Ordering {
    place((**one).as_ref()).cmp(&place((**other).as_ref()))
}

fn sorted<S: AsRef<Subscription>>(all: impl Iterator<Item = Arc<S>>) -> Vec<Arc<S>> {
    let mut all: Vec<_> = all.collect();
    all.sort_by(by_place);
    all
}

fn first_behind<S: AsRef<Subscription>>(all: &[Arc<S>], after: Option<(&str, &str)>) -> usize {
    match after {
        Some(after) => all.partition_point(|one| place((**one).as_ref()) <= after),
        None => 0,
    }
}

/// Two that are ordered by their places, as one that is.
fn merged<'s, S: AsRef<Subscription> + 's>(
    one: impl Iterator<Item = &'s Arc<S>>,
    other: impl Iterator<Item = &'s Arc<S>>,
) -> impl Iterator<Item = &'s Arc<S>> {
    Merged {
        one: one.peekable(),
        other: other.peekable(),
    }
}

struct Merged<A: Iterator, B: Iterator> {
    one: Peekable<A>,
    other: Peekable<B>,
}

impl<'s, S, A, B> Iterator for Merged<A, B>
where
    S: AsRef<Subscription> + 's,
    A: Iterator<Item = &'s Arc<S>>,
    B: Iterator<Item = &'s Arc<S>>,
{
    type Item = &'s Arc<S>;

    fn next(&mut self) -> Option<Self::Item> {
        match (self.one.peek(), self.other.peek()) {
            (Some(one), Some(other)) if by_place(other, one).is_lt() => self.other.next(),
            (Some(_), _) => self.one.next(),
            (None, _) => self.other.next(),
        }
    }
}

#[cfg(test)]
mod tests;
