//! One subscription put in, changed or taken out while all others stay as they are.
//!
//! Everything that can go wrong does so in [`Pipeline::prepare`], before anything is written down or
//! seen by anybody.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::{Pipeline, State, SubscriptionStatus, Target, warn_of_versions};
use crate::route::Routes;
use crate::subscription::{Subscription, Uid};

/// A subscription that deliveries can be made for, not in the snapshot yet.
pub struct Prepared(Target);

impl Prepared {
    /// How it will be shown as soon as it is in.
    pub fn status(&self) -> SubscriptionStatus {
        let Subscription {
            uid,
            spec,
            endpoint,
            ..
        } = &self.0.subscription;
        let state = if !spec.enabled {
            State::Off
        } else if self.0.is_paused() {
            State::Paused
        } else if endpoint.handshake.is_some() {
            State::Unverified
        } else {
            State::Active
        };
        SubscriptionStatus::of(uid.clone(), spec, endpoint, state)
    }
}

impl Pipeline {
    /// Makes `subscription` ready. Nothing is changed by it.
    pub fn prepare(&self, subscription: Subscription) -> anyhow::Result<Prepared> {
        let name = subscription.spec.name.clone();
        let paused = self.store.subscription_standing(&subscription.uid)?.paused;
        let parked = {
            let all = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
            all.get(&subscription.uid).cloned().unwrap_or_default()
        };
        let target = Target::new(subscription, paused, parked, &self.meters)
            .map_err(|why| anyhow::anyhow!("subscription `{name}`: {why}"))?;
        Ok(Prepared(target))
    }

    /// Puts it in, in place of the one of its uid. It matches from the next event on; deliveries under
    /// way are not touched, and have its settings from their next attempt on.
    pub fn enter(&self, prepared: Prepared) {
        let _turn = self
            .installing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // It may have been paused since it was prepared.
        self.reread_pause(&prepared.0);
        let target = self.greeted(prepared);
        let mut targets = self.all_but(&target.subscription.uid);
        targets.push(target);
        self.swap_in(targets);
    }

    /// Takes the subscription of this uid out. What is parked for it finds nobody when it comes back.
    pub fn leave(&self, uid: &Uid) {
        let _turn = self
            .installing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.swap_in(self.all_but(uid));
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        parked.remove(uid);
    }

    /// Puts these in and takes those out, in one new snapshot.
    pub fn change(&self, entering: Vec<Prepared>, leaving: &BTreeSet<Uid>) {
        match (entering.len(), leaving.len()) {
            (0, 0) => return,
            (1, 0) => return entering.into_iter().for_each(|one| self.enter(one)),
            (0, 1) => return leaving.iter().for_each(|uid| self.leave(uid)),
            _ => {}
        }
        let _turn = self
            .installing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let of = |prepared: &Prepared| prepared.0.subscription.uid.clone();
        let replaced: BTreeSet<_> = entering.iter().map(of).collect();
        let routes = self.routes.load();
        let stays = |uid: &Uid| !leaving.contains(uid) && !replaced.contains(uid);
        let stay = routes.iter().filter(|one| stays(&one.subscription.uid));
        let mut targets: Vec<_> = stay.cloned().collect();
        for prepared in entering {
            self.reread_pause(&prepared.0);
            targets.push(self.greeted(prepared));
        }
        self.swap_in(targets);
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        parked.retain(|uid, _| !leaving.contains(uid));
    }

    /// Makes these all subscriptions of the API. Those of the config stay, and what the store says of
    /// them and of endpoints is read again.
    pub fn replace_registered(&self, prepared: Vec<Prepared>) {
        let _turn = self
            .installing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let routes = self.routes.load();
        let of_config = |one: &&Arc<Target>| one.subscription.uid.is_of_config();
        let mut targets: Vec<_> = routes.iter().filter(of_config).cloned().collect();
        for target in &targets {
            self.reread_pause(target);
        }
        for prepared in prepared {
            self.reread_pause(&prepared.0);
            targets.push(self.greeted(prepared));
        }
        for target in &targets {
            let endpoint = &target.subscription.endpoint.name;
            if let Some(lane) = self.lanes.get(endpoint) {
                lane.follow(&self.endpoint_standing(endpoint));
            }
        }
        self.swap_in(targets);
    }

    pub(super) fn reread_pause(&self, target: &Target) {
        if let Ok(standing) = self.store.subscription_standing(&target.subscription.uid) {
            target.paused.store(standing.paused, Ordering::Relaxed);
        }
    }

    fn all_but(&self, uid: &Uid) -> Vec<Arc<Target>> {
        let routes = self.routes.load();
        let others = routes.iter().filter(|one| one.subscription.uid != *uid);
        others.cloned().collect()
    }

    /// With what its endpoint has agreed to, and its lane told of its limits.
    pub(super) fn greeted(&self, Prepared(mut target): Prepared) -> Arc<Target> {
        let subscription = &target.subscription;
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        parked.insert(subscription.uid.clone(), target.parked());
        drop(parked);
        let kept = || self.endpoint_standing(&subscription.endpoint.name).agreed;
        // A shadow asks its endpoint for nothing.
        let handshake = match subscription.spec.enabled && !subscription.spec.shadow {
            true => self.handshakes.of(&subscription.endpoint, kept),
            false => None,
        };
        let allowed = handshake.as_ref().and_then(|it| it.allowed());
        self.lanes.update(subscription, allowed);
        warn_of_versions(subscription);
        target.handshake = handshake;
        target.meters.unverified.set(target.is_unverified().into());
        Arc::new(target)
    }

    /// Makes these the subscriptions, ordered by their place.
    pub(super) fn swap_in(&self, mut targets: Vec<Arc<Target>>) {
        targets.sort_by(|one, other| one.place().cmp(&other.place()));
        let routes = Routes::build(targets);
        for before in self.routes.load().iter() {
            let name = &before.subscription.spec.name;
            if routes.by_name(name).is_none() {
                before.meters.unverified.set(0);
            }
        }
        let asked: BTreeSet<_> = routes
            .iter()
            .filter(|target| target.handshake.is_some())
            .map(|target| target.subscription.endpoint.name.clone())
            .collect();
        self.routes.store(Arc::new(routes));
        self.handshakes.keep(|name| asked.contains(name));
    }
}
