//! Tending: what an instance tells of its own accord.
//!
//! What endpoints have said of themselves while deliveries went on: it is in force here already and
//! noted in the store, so that an outage of the broker or of this process delays it and no more; of an
//! endpoint only the last is told. That this instance is there. What is in force, where the last record
//! of a key says something else. And all of it once more, before a broker that keeps only so many bytes
//! drops what was said first.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::follow::{said_of, said_of_endpoint};
use super::peers::BEAT;
use super::said::{Said, What, key_of, key_of_endpoint, key_of_instance, key_of_standing, nothing};
use super::{SayingAgain, Shared};
use crate::broker::state::{Keeping, Record};
use crate::operations::subscriptions::{Refused, Registry};
use crate::store::StoreError;
use crate::subscription::Uid;

/// Between two looks at what is to be done.
const LOOK: Duration = Duration::from_secs(30);
/// After something could not be told.
const AGAIN: Duration = Duration::from_secs(2);
/// For the last word of an instance that ends.
const GOODBYE: Duration = Duration::from_secs(2);
/// What was told and is not read by then is told once more.
const READ_BY: Duration = Duration::from_secs(30);
/// Who told a record that lost repairs it at once, others when it has not been done by then.
const REPAIRED_BY: Duration = Duration::from_secs(60);
/// Records told at once.
const AT_ONCE: usize = 200;
/// The least that is read before everything is said once more.
const LEAST_BYTES: u64 = 64 << 20;

/// Why something was not told.
enum Untold {
    Store(StoreError),
    Broker(Refused),
}

impl From<StoreError> for Untold {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Refused> for Untold {
    fn from(refused: Refused) -> Self {
        Self::Broker(refused)
    }
}

impl Registry {
    /// Tells what there is to tell, until `stop`.
    pub async fn tend(self: Arc<Self>, stop: CancellationToken) {
        let shared = &self.shared;
        if stop.run_until_cancelled(self.in_step()).await.is_none() {
            return;
        }
        let mut told = HashMap::new();
        let mut look = interval(LOOK);
        let mut beat = interval(BEAT);
        // It was told at the start.
        beat.reset();
        let mut failed = false;
        loop {
            // That this one is there is to be told; configs may be others than before.
            let (mut is_there, mut is_changed) = (false, false);
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.store.news() => {}
                () = shared.work.notified() => {}
                () = shared.peers.changed() => (is_there, is_changed) = (true, true),
                () = shared.peers.compared() => is_changed = true,
                _ = beat.tick(), if !shared.is_alone() => is_there = true,
                _ = look.tick() => {
                    is_changed = true;
                    shared.peers.look(Timestamp::now());
                    shared.look_for_mark();
                }
                () = sleep(AGAIN), if failed => {}
            }
            if shared.behind().is_some() {
                continue;
            }
            let telling = async {
                self.tell_all(&mut told, is_there).await?;
                match is_changed {
                    true => self.forget_unknown().await,
                    false => Ok(()),
                }
            };
            let Some(tended) = stop.run_until_cancelled(telling).await else {
                break;
            };
            failed = tended.is_err();
            match tended {
                Ok(()) => {}
                Err(Untold::Broker(why)) => debug!(%why, "the group is not told, trying again"),
                // The process ends of it, elsewhere.
                Err(Untold::Store(error)) => error!(%error, "what is to be told cannot be read"),
            }
        }
        if !shared.is_alone() && shared.behind().is_none() {
            let me = key_of_instance(&shared.peers.me().name);
            let _ = timeout(GOODBYE, shared.write(vec![nothing(me)])).await;
        }
    }

    async fn tell_all(
        &self,
        told: &mut HashMap<String, (String, Instant)>,
        is_there: bool,
    ) -> Result<(), Untold> {
        let shared = &self.shared;
        if is_there && !shared.is_alone() {
            shared.say_there().await?;
        }
        let mut records = Vec::new();
        for gone in shared.peers.gone(Timestamp::now()) {
            records.push(nothing(key_of_instance(&gone)));
            shared.peers.left(&gone);
        }
        records.extend(self.repairs().await?);
        if !records.is_empty() {
            shared.write(records).await?;
        }
        self.tell_unsaid(told).await?;
        self.say_again_in_time().await
    }

    /// Has the group forget that subscriptions of the config were paused that no config has any more.
    /// An instance whose config is another one may have them still, or have them already.
    async fn forget_unknown(&self) -> Result<(), Untold> {
        let shared = &self.shared;
        let now = Timestamp::now();
        if !shared.peers.have_one_config(now) || !shared.peers.is_first(now) {
            return Ok(());
        }
        let settings = shared.settings();
        let is_gone = |uid: &Uid| {
            let name = uid.as_str().strip_prefix("config:");
            name.is_some_and(|name| !settings.reader.has(name))
        };
        let all = self.store.subscription_standings()?.into_iter();
        let gone: Vec<_> = all.map(|(uid, _)| uid).filter(is_gone).collect();
        shared.forget_pauses(&gone).await;
        Ok(())
    }

    /// Tells what endpoints have said of themselves.
    async fn tell_unsaid(
        &self,
        told: &mut HashMap<String, (String, Instant)>,
    ) -> Result<(), Untold> {
        let unsaid = self.store.unsaid()?;
        let names: BTreeSet<_> = unsaid.iter().map(|(name, _)| name.clone()).collect();
        told.retain(|name, _| names.contains(name));
        let is_under_way = |name: &str, change: &str| {
            told.get(name)
                .is_some_and(|(last, at)| last == change && at.elapsed() < READ_BY)
        };
        let due: Vec<_> = unsaid
            .into_iter()
            .filter(|(name, unsaid)| !is_under_way(name, &unsaid.change))
            .collect();
        for some in due.chunks(AT_ONCE) {
            let mut records = Vec::with_capacity(some.len());
            for (name, unsaid) in some {
                let standing = self.store.endpoint_standing(name)?;
                let what = said_of_endpoint(name.as_str().into(), standing);
                let said = Said::with_id(unsaid.change.clone(), &self.shared.me, what);
                records.push(said.record());
            }
            self.shared.write(records).await?;
            for (name, unsaid) in some {
                told.insert(name.clone(), (unsaid.change.clone(), Instant::now()));
            }
        }
        Ok(())
    }

    async fn repairs(&self) -> Result<Vec<Record>, StoreError> {
        let mut folding = self.shared.folding.lock().await;
        let is_due = |since: &Instant, ours: &bool| *ours || since.elapsed() > REPAIRED_BY;
        let due = folding.misled.iter_mut();
        let due = due.filter(|(_, (since, ours))| is_due(since, ours));
        let keys: Vec<_> = due
            .take(AT_ONCE)
            .map(|(key, (since, ours))| {
                // If that gets lost on its way, it is told once more.
                (*since, *ours) = (Instant::now(), false);
                key.clone()
            })
            .collect();
        let records = keys.iter().map(|key| self.repair(key));
        let records: Vec<_> = records.collect::<Result<_, _>>()?;
        Ok(records.into_iter().flatten().collect())
    }

    /// Says everything once more when the log has grown so long that it may lose its beginning.
    async fn say_again_in_time(&self) -> Result<(), Untold> {
        let shared = &self.shared;
        let Keeping::Newest { bytes } = shared.log.keeping() else {
            return Ok(());
        };
        let (since, enough) = {
            let folding = shared.folding.lock().await;
            (folding.length.since, folding.length.enough)
        };
        if since < LEAST_BYTES.max(enough) || !shared.peers.is_first(Timestamp::now()) {
            return Ok(());
        }
        let (store, me) = (self.store.clone(), shared.me.clone());
        let adding_up = move || -> Result<_, StoreError> {
            let (mut all, mut needed) = (Vec::new(), 0);
            for record in store.each_registered() {
                let record = record?;
                all.push(record.uid.clone());
                needed += said_bytes(&Said::new(&me, said_of(record, true))) as u64;
            }
            Ok((all, needed))
        };
        let added_up = tokio::task::spawn_blocking(adding_up).await;
        let (all, needed) =
            added_up.map_err(|why| Untold::Broker(Refused::Unavailable(why.to_string())))??;
        if since < 2 * needed {
            shared.folding.lock().await.length.enough = 2 * needed;
            return Ok(());
        }
        if since + 2 * needed > bytes {
            error!(broker = %shared.broker, bytes = needed, kept = bytes, "what the group shares is more than its stream keeps: move it to Kafka (`state_on`), or remove subscriptions");
        }
        let began = Instant::now();
        self.say_all_again(all).await?;
        info!(broker = %shared.broker, took = ?began.elapsed(), "everything that the group shares was written once more, so that what is old can go");
        Ok(())
    }

    async fn say_all_again(&self, all: Vec<Uid>) -> Result<(), Untold> {
        let shared = &self.shared;
        // Begin and end are told by a name of their own.
        let by = super::said::unique();
        let bound = |begins| vec![Said::new(&by, What::Again { begins }).record()];
        shared.write(bound(true)).await?;
        for some in all.chunks(AT_ONCE) {
            let mut records = Vec::with_capacity(some.len());
            for uid in some {
                if let Some(record) = self.store.registered_with(uid)? {
                    records.push(Said::new(&shared.me, said_of(record, true)).record());
                }
            }
            shared.write(records).await?;
        }
        let names = shared.folding.lock().await.names.clone();
        let names = names.into_iter().map(|name| What::Log { name });
        let mut rest: Vec<_> = names
            .map(|what| Said::new(&shared.me, what).record())
            .collect();
        for (name, standing) in self.store.endpoint_standings()? {
            let key = key_of_endpoint(&name);
            let what = said_of_endpoint(name.into(), standing);
            rest.push(self.said_again(key, what).await);
        }
        for (uid, standing) in self.store.subscription_standings()? {
            let paused = standing.paused;
            let key = key_of_standing(&uid);
            let what = What::Subscription { uid, paused };
            rest.push(self.said_again(key, what).await);
        }
        rest.push(Said::new(&shared.me, What::Instance(shared.peers.me())).record());
        for some in rest.chunks(AT_ONCE) {
            shared.write(some.to_vec()).await?;
        }
        Ok(shared.write(bound(false)).await?)
    }

    /// Of these the last holds: should another come first, what is in force is told after that.
    async fn said_again(&self, key: String, what: What) -> Record {
        let said = Said::new(&self.shared.me, what);
        let id = said.id.clone();
        let ours = SayingAgain { id, is_late: false };
        let mut folding = self.shared.folding.lock().await;
        folding.saying_again.insert(key, ours);
        said.record()
    }

    /// Has the log forget a subscription that was removed, and what was known of it. It is removed
    /// whether or not this comes to pass.
    pub(in crate::operations::subscriptions) fn forget_removed(self: &Arc<Self>, uid: Uid) {
        let registry = self.clone();
        tokio::spawn(async move {
            let keys = [
                key_of(&uid),
                key_of_standing(&uid),
                key_of_endpoint(uid.as_str()),
            ];
            let records = keys.into_iter().map(nothing).collect();
            if let Err(why) = registry.shared.write(records).await {
                debug!(%uid, %why, "a removed subscription stays in the log as removed");
            }
        });
    }
}

fn said_bytes(said: &Said) -> usize {
    said.record().body.map_or(0, |body| body.len())
}

impl Shared {
    /// Has the group forget that these were paused, which are not there.
    pub async fn forget_pauses(&self, gone: &[Uid]) {
        let records = gone.iter().map(|uid| nothing(key_of_standing(uid)));
        let records: Vec<_> = records.collect();
        if records.is_empty() || self.behind().is_some() {
            return;
        }
        // Nobody waits for a broker that is away.
        match timeout(GOODBYE, self.write(records)).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => debug!(%why, "the group is not told that a pause is over"),
            Err(_) => debug!("the group is not told in time that a pause is over"),
        }
    }
}
