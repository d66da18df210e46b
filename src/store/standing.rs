//! Standing: what became of subscriptions and endpoints after they were written down.
//!
//! Kept apart from the specs, so that a reload of the config neither pauses nor enables anything.
//! One that was never touched has no record.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Edit, Store, StoreError, Tree, Unsaid, codec};
use crate::subscription::Uid;

/// The standing of an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStanding {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<Disabled>,
    /// When the first 410 of a row came; a second one a minute later disables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_gone_at: Option<Timestamp>,
    /// It has agreed to get deliveries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreed: Option<Agreement>,
}

/// What an endpoint has agreed to in its handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    /// What it holds for, as a hash ([`crate::subscription::Endpoint::agreement_key`]).
    pub key: String,
    pub at: Timestamp,
    /// No more requests than this in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<u32>,
}

/// Since when and why an endpoint is not called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disabled {
    pub reason: DisabledBecause,
    pub at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DisabledBecause {
    /// It answered 410 twice.
    Gone,
    /// It answered `webhook-delivery: disable`.
    Asked,
}

/// The standing of a subscription.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriptionStanding {
    /// Matched and held.
    #[serde(default)]
    pub paused: bool,
}

impl Store {
    /// The standing of the endpoint called `name`; the default if nothing ever happened to it.
    pub fn endpoint_standing(&self, name: &str) -> Result<EndpointStanding, StoreError> {
        let found = self.read(|kept| kept.endpoint_standings.get(name))?;
        decoded(Tree::EndpointStandings, name, found)
    }

    pub async fn set_endpoint_standing(
        &self,
        name: &str,
        standing: EndpointStanding,
    ) -> Result<(), StoreError> {
        self.put(Tree::EndpointStandings, name, standing).await
    }

    /// Changes one part of an endpoint's standing; the others stay as they are.
    pub async fn change_endpoint_standing(
        &self,
        name: &str,
        change: impl FnOnce(&mut EndpointStanding) + Send + 'static,
    ) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.write(move |kept| {
            let tree = Tree::EndpointStandings;
            let found = kept.guarded(|kept| kept.endpoint_standings.get(&name))?;
            let mut standing: EndpointStanding = decoded(tree, &name, found)?;
            change(&mut standing);
            Ok(((), vec![edit(tree, &name, &standing)?]))
        })
        .await
    }

    /// As [`Store::change_endpoint_standing`], to be told to the other instances.
    pub async fn note_endpoint_standing(
        &self,
        name: &str,
        change: impl FnOnce(&mut EndpointStanding) + Send + 'static,
    ) -> Result<(), StoreError> {
        let name = name.to_owned();
        let noted = self.write(move |kept| {
            let tree = Tree::EndpointStandings;
            let found = kept.guarded(|kept| kept.endpoint_standings.get(&name))?;
            let mut standing: EndpointStanding = decoded(tree, &name, found)?;
            change(&mut standing);
            let edits = vec![edit(tree, &name, &standing)?, Unsaid::edit(&name)?];
            Ok(((), edits))
        });
        noted.await?;
        self.news.notify_one();
        Ok(())
    }

    /// The standings of all endpoints that have one.
    pub fn endpoint_standings(&self) -> Result<Vec<(String, EndpointStanding)>, StoreError> {
        let all: Vec<_> = self.read(|kept| kept.endpoint_standings.iter().collect())?;
        each(Tree::EndpointStandings, &all)
    }

    /// The standings of all subscriptions that have one.
    pub fn subscription_standings(&self) -> Result<Vec<(Uid, SubscriptionStanding)>, StoreError> {
        let all: Vec<_> = self.read(|kept| kept.subscription_standings.iter().collect())?;
        let all = each(Tree::SubscriptionStandings, &all)?.into_iter();
        let of_one = all.map(|(uid, standing)| (Uid::from_stored(&uid), standing));
        Ok(of_one.filter(|(uid, _)| !is_source(uid)).collect())
    }

    pub fn subscription_standing(&self, uid: &Uid) -> Result<SubscriptionStanding, StoreError> {
        let found = self.read(|kept| kept.subscription_standings.get(uid.as_str()))?;
        decoded(Tree::SubscriptionStandings, uid.as_str(), found)
    }

    pub async fn set_subscription_standing(
        &self,
        uid: &Uid,
        standing: SubscriptionStanding,
    ) -> Result<(), StoreError> {
        self.put(Tree::SubscriptionStandings, uid.as_str(), standing)
            .await
    }

    /// The standing of a source. It lies among those of subscriptions, under a key that no
    /// subscription has: a tree of its own would be missing from what earlier releases seal.
    pub fn source_standing(&self, source: &str) -> Result<SubscriptionStanding, StoreError> {
        self.subscription_standing(&key_of_source(source))
    }

    pub async fn set_source_standing(
        &self,
        source: &str,
        standing: SubscriptionStanding,
    ) -> Result<(), StoreError> {
        let key = key_of_source(source);
        self.set_subscription_standing(&key, standing).await
    }

    async fn put<T: Default + PartialEq + Serialize>(
        &self,
        tree: Tree,
        key: &str,
        standing: T,
    ) -> Result<(), StoreError> {
        let edit = edit(tree, key, &standing)?;
        self.write(move |_| Ok(((), vec![edit]))).await
    }
}

fn key_of_source(source: &str) -> Uid {
    Uid::from_stored(&format!("source:{source}"))
}

fn is_source(key: &Uid) -> bool {
    key.as_str().starts_with("source:")
}

fn each<T: DeserializeOwned>(
    tree: Tree,
    all: &[(sled::IVec, sled::IVec)],
) -> Result<Vec<(String, T)>, StoreError> {
    all.iter()
        .map(|(key, bytes)| {
            let name = String::from_utf8_lossy(key).into_owned();
            Ok((name, codec::decode(tree.name(), key, bytes)?))
        })
        .collect()
}

/// A standing that is the default has no record.
pub(super) fn edit<T: Default + PartialEq + Serialize>(
    tree: Tree,
    key: &str,
    standing: &T,
) -> Result<Edit, StoreError> {
    let value = match *standing == T::default() {
        true => None,
        false => Some(codec::encode(key, standing)?),
    };
    let key = key.as_bytes().to_vec();
    Ok(Edit { tree, key, value })
}

pub(super) fn decoded<T: Default + DeserializeOwned>(
    tree: Tree,
    key: &str,
    found: Option<sled::IVec>,
) -> Result<T, StoreError> {
    match found {
        Some(bytes) => Ok(codec::decode(tree.name(), key.as_bytes(), &bytes)?),
        None => Ok(T::default()),
    }
}
