//! One subscription put in, changed or taken out while all others stay as they are.
//!
//! Everything that can go wrong does so in [`Pipeline::prepare`], before anything is written down or
//! seen by anybody.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::{Pipeline, State, SubscriptionStatus, Target, warn_of_versions};
use crate::route::{Routes, place};
use crate::subscription::{Subscription, Uid};

/// Changed at once, so many come one after the other over those that are indexed; or this share of
/// them. More are indexed anew with all others.
const ONE_BY_ONE: usize = 64;
const ONE_BY_ONE_SHARE: usize = 256;

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
    pub fn prepare(&self, mut subscription: Subscription) -> anyhow::Result<Prepared> {
        let tenant = self.tenants.of(&mut subscription);
        let name = subscription.spec.name.clone();
        let paused = self.store.subscription_standing(&subscription.uid)?.paused;
        let parked = {
            let all = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
            all.get(&subscription.uid).cloned().unwrap_or_default()
        };
        let target = Target::new(subscription, tenant, paused, parked, &self.meters)
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
        let target = self.greeted(prepared);
        let before = self.routes.load_full();
        self.install_change(
            &before,
            &target.subscription.uid,
            before.with(target.clone()),
        );
    }

    /// Takes the subscription of this uid out. What is parked for it finds nobody when it comes back.
    pub fn leave(&self, uid: &Uid) {
        let _turn = self
            .installing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = self.routes.load_full();
        self.install_change(&before, uid, before.without(uid));
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        parked.remove(uid);
    }

    /// Puts a snapshot in force that differs from the one before in the subscription of this uid.
    fn install_change(&self, before: &Routes<Target>, uid: &Uid, now: Routes<Target>) {
        let now = match now.is_overfull() {
            true => now.gathered(),
            false => now,
        };
        if now.is_crowded() {
            self.crowded.notify_one();
        }
        let old = before.by_uid(uid);
        if let Some(old) = old
            && now.by_name(&old.subscription.spec.name).is_none()
        {
            old.meters.unverified.set(0);
        }
        let asks = |target: &Arc<Target>, endpoint: &str| {
            target.handshake.is_some() && *target.subscription.endpoint.name == *endpoint
        };
        let endpoint = old.map(|old| old.subscription.endpoint.name.clone());
        // A shared one is the config's, and may be another one's too.
        let own = endpoint.filter(|endpoint| **endpoint == *uid.as_str());
        let is_asked = |endpoint: &str| now.by_uid(uid).is_some_and(|it| asks(it, endpoint));
        let forgotten = own.filter(|endpoint| !is_asked(endpoint));
        self.routes.store(Arc::new(now));
        self.handshakes
            .keep(|name| forgotten.as_deref() != Some(name));
    }

    /// Gathers the snapshot whenever so much has come over it, beside what goes on; for ever.
    pub async fn gather_changes(self: Arc<Self>) {
        loop {
            self.crowded.notified().await;
            let then = self.routes.load_full();
            if !then.is_crowded() {
                continue;
            }
            let of = then.clone();
            let gathering = tokio::task::spawn_blocking(move || of.gathered());
            let Ok(gathered) = gathering.await else {
                continue;
            };
            let now = {
                let _turn = self
                    .installing
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                let now = self.routes.load_full();
                if let Some(routes) = gathered.caught_up(&then, &now) {
                    self.routes.store(Arc::new(routes));
                }
                now
            };
            // There may be a million of them to be let go of.
            let _ = tokio::task::spawn_blocking(move || drop((then, now))).await;
        }
    }

    /// Puts these in and takes those out.
    pub fn change(&self, entering: Vec<Prepared>, leaving: &BTreeSet<Uid>) {
        let few = ONE_BY_ONE.max(self.routes.load().len() / ONE_BY_ONE_SHARE);
        if entering.len() + leaving.len() <= few {
            entering.into_iter().for_each(|one| self.enter(one));
            leaving.iter().for_each(|uid| self.leave(uid));
            return;
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
        targets.extend(entering.into_iter().map(|one| self.greeted(one)));
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
        targets.extend(prepared.into_iter().map(|one| self.greeted(one)));
        for target in &targets {
            let endpoint = &target.subscription.endpoint.name;
            if let Some(lane) = self.lanes.get(endpoint) {
                lane.follow(&self.endpoint_standing(endpoint));
            }
        }
        self.swap_in(targets);
    }

    /// Makes these all subscriptions of the config. Those of the API stay as they are, but for one whose
    /// name the config has now.
    pub fn replace_of_config(&self, subscriptions: Vec<Subscription>) -> anyhow::Result<()> {
        let _turn = self
            .installing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let routes = self.routes.load();
        let mut targets = Vec::new();
        let mut names = BTreeSet::new();
        for subscription in subscriptions {
            let before = routes.by_uid(&subscription.uid);
            names.insert(subscription.spec.name.clone());
            let target = self.greeted(self.prepare(subscription)?);
            if let Some(before) = before {
                target.paused.store(before.is_paused(), Ordering::Relaxed);
            }
            targets.push(target);
        }
        let stays = |one: &&Arc<Target>| {
            let Subscription { uid, spec, .. } = &one.subscription;
            !uid.is_of_config() && !names.contains(&spec.name)
        };
        targets.extend(routes.iter().filter(stays).cloned());
        self.swap_in(targets);
        Ok(())
    }

    pub(super) fn reread_pause(&self, target: &Target) {
        if let Ok(standing) = self.store.subscription_standing(&target.subscription.uid) {
            target.paused.store(standing.paused, Ordering::Relaxed);
        }
    }

    /// With what its endpoint has agreed to, and its lane told of its limits.
    pub(super) fn greeted(&self, Prepared(mut target): Prepared) -> Arc<Target> {
        let subscription = &target.subscription;
        // It may have been paused since it was prepared.
        self.reread_pause(&target);
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        parked.insert(subscription.uid.clone(), target.parked());
        drop(parked);
        let kept = || self.endpoint_standing(&subscription.endpoint.name).agreed;
        // A shadow asks its endpoint for nothing. What sends nothing has no say in the lane, which
        // others of the endpoint may share.
        let mut handshake = None;
        if subscription.spec.enabled && !subscription.spec.shadow {
            handshake = self.handshakes.of(&subscription.endpoint, kept);
            let allowed = handshake.as_ref().and_then(|it| it.allowed());
            self.lanes.update(subscription, allowed);
        }
        warn_of_versions(subscription);
        target.handshake = handshake;
        target.meters.unverified.set(target.is_unverified().into());
        Arc::new(target)
    }

    /// Makes these the subscriptions, ordered by their place.
    pub(super) fn swap_in(&self, mut targets: Vec<Arc<Target>>) {
        targets.sort_by(|one, other| place(&one.subscription).cmp(&place(&other.subscription)));
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
