//! Subscriptions that were made over the API, and requests for them that were answered.
//!
//! A record holds the subscription as its caller wrote it, in the words of the config, so that a
//! release reads it as it reads a config; what may hold a secret in it is sealed. All of them are in
//! one tree, so that a change of a subscription, of its name and of what is remembered of the request
//! is made as a whole or not at all. How they are changed is `shared.rs`'s.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Edit, Kept, Sealed, Store, StoreError, Tree, codec};
use crate::subscription::Uid;

/// Prefixes of keys. By uid, uids by name, answers by what they answered.
pub(super) const OF_UID: &str = "uid:";
pub(super) const OF_NAME: &str = "name:";
pub(super) const ANSWER: &str = "answer:";

/// A subscription of the API as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Registered {
    pub uid: Uid,
    pub name: String,
    /// One more with each change.
    pub revision: u64,
    pub made_at: Timestamp,
    pub changed_at: Timestamp,
    /// As it was written, without what is sealed.
    pub document: Value,
    /// Its `endpoint`, where that is written in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Sealed>,
    /// Until when its second secret signs, its third, and so on; those beyond stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub old_until: Vec<Timestamp>,
}

/// An answer that is given again to the same request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Remembered {
    /// SHA-256 of the request, in hex; empty where it is sealed with the answer.
    pub request: String,
    pub until: Timestamp,
    pub answer: Answer,
}

/// It may hold a secret, which is then sealed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Open(Value),
    Sealed(Sealed),
}

impl Store {
    /// All subscriptions made over the API, ordered by uid, as they are read. It ends with the first
    /// error.
    pub fn each_registered(&self) -> impl Iterator<Item = Result<Registered, StoreError>> {
        let mut rows = self.kept.registered.scan_prefix(OF_UID);
        let mut failed = false;
        std::iter::from_fn(move || {
            if failed {
                return None;
            }
            let next = self.read(|_| rows.next().transpose()).transpose()?;
            let read = next.and_then(|(key, bytes)| {
                let record = codec::decode(Tree::Registered.name(), &key, &bytes)?;
                Ok(record)
            });
            failed = read.is_err();
            Some(read)
        })
    }

    pub fn registered_as(&self, name: &str) -> Result<Option<Registered>, StoreError> {
        match self.one::<Uid>(OF_NAME, name)? {
            Some(uid) => self.one(OF_UID, uid.as_str()),
            None => Ok(None),
        }
    }

    pub fn registered_with(&self, uid: &Uid) -> Result<Option<Registered>, StoreError> {
        self.one(OF_UID, uid.as_str())
    }

    /// Takes in many that are new, in one commit: for who has their records already.
    pub async fn register_many(&self, records: Vec<Registered>) -> Result<(), StoreError> {
        let mut edits = Vec::with_capacity(2 * records.len());
        for record in &records {
            let what = format!("subscription {}", record.name);
            let (uid, name) = (record.uid.as_str(), &record.name);
            edits.push(edit(OF_UID, uid, Some(codec::encode(&what, record)?)));
            edits.push(edit(
                OF_NAME,
                name,
                Some(codec::encode(&what, &record.uid)?),
            ));
        }
        self.write(move |_| Ok(((), edits))).await
    }

    /// The answer that was given to a request with this key.
    pub fn remembered(&self, key: &str) -> Result<Option<Remembered>, StoreError> {
        self.one(ANSWER, key)
    }

    /// Until when which answers are remembered.
    pub fn all_remembered(&self) -> Result<Vec<(String, Timestamp)>, StoreError> {
        let all: Vec<(String, Remembered)> = self.below(ANSWER)?;
        Ok(all.into_iter().map(|(key, one)| (key, one.until)).collect())
    }

    /// Puts these in the place of those that are remembered.
    pub async fn remember(&self, all: Vec<(String, Remembered)>) -> Result<(), StoreError> {
        if all.is_empty() {
            return Ok(());
        }
        let edits = all.iter().map(|(key, remembered)| {
            let bytes = codec::encode("an answer", remembered)?;
            Ok(edit(ANSWER, key, Some(bytes)))
        });
        let edits = edits.collect::<Result<_, StoreError>>()?;
        self.write(move |_| Ok(((), edits))).await
    }

    pub async fn forget(&self, keys: Vec<String>) -> Result<(), StoreError> {
        let edits = keys.iter().map(|key| edit(ANSWER, key, None)).collect();
        self.write(move |_| Ok(((), edits))).await
    }

    pub(super) fn one<T: DeserializeOwned>(
        &self,
        prefix: &str,
        key: &str,
    ) -> Result<Option<T>, StoreError> {
        one(&self.kept, prefix, key)
    }

    pub(super) fn below<T: DeserializeOwned>(
        &self,
        prefix: &str,
    ) -> Result<Vec<(String, T)>, StoreError> {
        let all: Vec<_> = self.read(|kept| kept.registered.scan_prefix(prefix).collect())?;
        all.iter()
            .map(|(key, bytes)| {
                let name = String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
                let record = codec::decode(Tree::Registered.name(), key, bytes)?;
                Ok((name, record))
            })
            .collect()
    }
}

fn one<T: DeserializeOwned>(kept: &Kept, prefix: &str, key: &str) -> Result<Option<T>, StoreError> {
    let key = format!("{prefix}{key}");
    let found = kept.guarded(|kept| kept.registered.get(&key))?;
    let decode = |bytes: sled::IVec| codec::decode(Tree::Registered.name(), key.as_bytes(), &bytes);
    Ok(found.map(decode).transpose()?)
}

fn edit(prefix: &str, key: &str, value: Option<Vec<u8>>) -> Edit {
    Edit {
        tree: Tree::Registered,
        key: format!("{prefix}{key}").into_bytes(),
        value,
    }
}
