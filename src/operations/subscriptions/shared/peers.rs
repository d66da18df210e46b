//! Peers: the instances of the group, and whether their configs are one.
//!
//! Each says who it is when it starts, when its config has changed, and now and then, so that one that
//! died without a word is forgotten. Two configs that differ deliver one event in two ways, depending
//! on who takes it; that is said in the log, by a metric, and in readiness.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;
use tracing::{info, warn};

use super::said::Peer;

/// Between two times that an instance says that it is there.
pub const BEAT: Duration = Duration::from_secs(300);
/// One that has said nothing for so long is gone. Clocks may be apart by what is left of it.
const GONE_AFTER: SignedDuration = SignedDuration::from_secs(750);
/// More than a group has; beyond it none is added.
const MOST: usize = 1_000;

/// See the module.
pub struct Peers {
    me: Mutex<Peer>,
    others: Mutex<BTreeMap<Arc<str>, Peer>>,
    /// The names of those with another config, as they were last said.
    differing: Mutex<Vec<Arc<str>>>,
    differ: Gauge,
    changed: Notify,
    /// The config of another one is not what it was.
    compared: Notify,
}

impl Peers {
    pub fn new(name: Arc<str>, config: String, differ: Gauge) -> Self {
        Self {
            me: Mutex::new(Peer {
                name,
                release: env!("CARGO_PKG_VERSION").to_owned(),
                config,
                at: Timestamp::now(),
            }),
            others: Mutex::default(),
            differing: Mutex::default(),
            differ,
            changed: Notify::new(),
            compared: Notify::new(),
        }
    }

    /// How this one describes itself now.
    pub fn me(&self) -> Peer {
        let mut me = lock(&self.me);
        me.at = Timestamp::now();
        me.clone()
    }

    /// This one has another config from now on.
    pub fn now_has(&self, config: String) {
        let before = std::mem::replace(&mut lock(&self.me).config, config);
        if before != lock(&self.me).config {
            self.changed.notify_one();
            self.look(Timestamp::now());
        }
    }

    /// Waits until the others have to hear of this one.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Waits until one of the others has another config than before.
    pub async fn compared(&self) {
        self.compared.notified().await;
    }

    pub fn heard(&self, peer: Peer) {
        if peer.name == lock(&self.me).name {
            return;
        }
        let mut others = lock(&self.others);
        let config = peer.config.clone();
        if others.len() < MOST || others.contains_key(&peer.name) {
            let before = others.insert(peer.name.clone(), peer);
            if before.is_none_or(|before| before.config != config) {
                self.compared.notify_one();
            }
        }
        drop(others);
        self.look(Timestamp::now());
    }

    pub fn left(&self, name: &str) {
        if lock(&self.others).remove(name).is_some() {
            self.look(Timestamp::now());
        }
    }

    /// Those that have been gone for long, to be forgotten by all.
    pub fn gone(&self, now: Timestamp) -> Vec<Arc<str>> {
        let others = lock(&self.others);
        let gone = others.values().filter(|peer| !is_there(peer, now));
        gone.map(|peer| peer.name.clone()).collect()
    }

    /// How many others are there.
    pub fn count(&self, now: Timestamp) -> usize {
        let others = lock(&self.others);
        others.values().filter(|peer| is_there(peer, now)).count()
    }

    /// Whether this is the one to do what one of them has to do.
    pub fn is_first(&self, now: Timestamp) -> bool {
        let me = lock(&self.me).name.clone();
        let others = lock(&self.others);
        let mut there = others.values().filter(|peer| is_there(peer, now));
        there.all(|peer| me < peer.name)
    }

    /// Whether all that are there have this one's config, as far as that can be told.
    pub fn have_one_config(&self, now: Timestamp) -> bool {
        let me = lock(&self.me).clone();
        let is_same = |peer: &Peer| peer.release == me.release && peer.config == me.config;
        let others = lock(&self.others);
        let mut there = others.values().filter(|peer| is_there(peer, now));
        there.all(is_same)
    }

    /// Compares, and says so when something has changed.
    pub fn look(&self, now: Timestamp) {
        let me = lock(&self.me).clone();
        let others = lock(&self.others);
        // Another release may write down the same config in another way.
        let differs = |peer: &&Peer| {
            peer.release == me.release && peer.config != me.config && is_there(peer, now)
        };
        let differing: Vec<_> = others.values().filter(differs).collect();
        let names: Vec<_> = differing.iter().map(|peer| peer.name.clone()).collect();
        let mut said = lock(&self.differing);
        if *said == names {
            return;
        }
        match names.is_empty() {
            true => info!("all instances of the group have the same config again"),
            false => warn!(
                instances = ?names,
                config = me.config,
                "these instances of the group run with another config than this one: an event is delivered by the config of whoever takes it"
            ),
        }
        self.differ.set(names.len() as i64);
        *said = names;
    }

    /// For readiness.
    pub fn note(&self) -> Option<String> {
        let differing = lock(&self.differing);
        let names = differing.join(", ");
        (!names.is_empty()).then(|| format!("their config differs from this one's: {names}"))
    }
}

fn is_there(peer: &Peer, now: Timestamp) -> bool {
    now.duration_since(peer.at) < GONE_AFTER
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, config: &str, at: Timestamp) -> Peer {
        Peer {
            name: name.into(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            config: config.to_owned(),
            at,
        }
    }

    #[test]
    fn configs_that_differ_are_noted_until_they_do_not() {
        let peers = Peers::new("b".into(), "1".to_owned(), Gauge::default());
        let now = Timestamp::now();
        peers.heard(peer("a", "1", now));
        assert_eq!(peers.note(), None);
        assert!(!peers.is_first(now));
        peers.heard(peer("c", "2", now));
        assert_eq!(
            peers.note().as_deref(),
            Some("their config differs from this one's: c")
        );
        assert_eq!((peers.differ.get(), peers.count(now)), (1, 2));
        assert!(!peers.have_one_config(now));
        peers.now_has("2".to_owned());
        assert_eq!(
            peers.note().as_deref(),
            Some("their config differs from this one's: a")
        );
        peers.left("a");
        assert_eq!(peers.note(), None);
        assert!(peers.have_one_config(now));
        let later = now + GONE_AFTER;
        assert_eq!(peers.gone(later), ["c".into()]);
        assert!(peers.is_first(later));
    }

    #[test]
    fn another_release_is_not_compared() {
        let peers = Peers::new("b".into(), "1".to_owned(), Gauge::default());
        let other = Peer {
            release: "0.0.0".to_owned(),
            ..peer("a", "2", Timestamp::now())
        };
        peers.heard(other);
        assert_eq!(peers.note(), None);
        assert!(!peers.have_one_config(Timestamp::now()), "nobody knows");
    }
}
