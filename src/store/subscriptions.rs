//! Subscriptions of the config in the store, which are made equal to the config. Those made over the
//! API are in a tree of their own, which nothing here touches.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Edit, Kept, Store, StoreError, Tree, codec};
use crate::subscription::{Spec, Uid};

/// A subscription as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub uid: Uid,
    pub owner: Owner,
    pub spec: Spec,
}

/// Who may change a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// The config file.
    Config,
    /// The admin API.
    Api,
}

/// Names of what a reconciliation did, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    pub added: Vec<Arc<str>>,
    pub changed: Vec<Arc<str>>,
    pub removed: Vec<Arc<str>>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        let Self {
            added,
            changed,
            removed,
        } = self;
        added.is_empty() && changed.is_empty() && removed.is_empty()
    }
}

impl Store {
    /// Makes the config-owned subscriptions those of `specs`, by name, all at once or not at all, and says what
    /// that changed. Whether one is paused is the group's to say, and outlives it.
    pub async fn reconcile(&self, specs: &BTreeMap<Arc<str>, Spec>) -> Result<Changes, StoreError> {
        let mut wanted = BTreeMap::new();
        for (name, spec) in specs {
            let record = Record {
                uid: Uid::of_config(name),
                owner: Owner::Config,
                spec: spec.clone(),
            };
            let bytes = codec::encode(&format!("subscription {name}"), &record)?;
            wanted.insert(record.uid, (Arc::clone(name), bytes));
        }
        self.write(move |kept| reconcile(kept, wanted)).await
    }

    /// All subscriptions, ordered by uid.
    pub fn subscriptions(&self) -> Result<Vec<Record>, StoreError> {
        let entries: Vec<_> = self.read(|kept| kept.subscriptions.iter().collect())?;
        entries
            .iter()
            .map(|(key, bytes)| Ok(codec::decode(Tree::Subscriptions.name(), key, bytes)?))
            .collect()
    }
}

fn reconcile(
    kept: &Kept,
    mut wanted: BTreeMap<Uid, (Arc<str>, Vec<u8>)>,
) -> Result<(Changes, Vec<Edit>), StoreError> {
    let mut changes = Changes::default();
    let mut edits = Vec::new();
    let mut edit = |tree, key: &[u8], value| {
        let key = key.to_vec();
        edits.push(Edit { tree, key, value });
    };
    let entries: Vec<_> = kept.guarded(|it| it.subscriptions.iter().collect())?;
    for (key, bytes) in entries {
        let old: Record = codec::decode(Tree::Subscriptions.name(), &key, &bytes)?;
        if old.owner != Owner::Config {
            continue;
        }
        match wanted.remove(&old.uid) {
            None => {
                edit(Tree::Subscriptions, &key, None);
                changes.removed.push(old.spec.name);
            }
            // As bytes, since what was written once is written the same way again, while a float
            // that was read back may differ in its last digit.
            Some((name, new)) if new != *bytes => {
                edit(Tree::Subscriptions, &key, Some(new));
                changes.changed.push(name);
            }
            Some(_) => {}
        }
    }
    for (uid, (name, bytes)) in wanted {
        edit(Tree::Subscriptions, uid.as_str().as_bytes(), Some(bytes));
        changes.added.push(name);
    }
    let Changes {
        added,
        changed,
        removed,
    } = &mut changes;
    for names in [added, changed, removed] {
        names.sort();
    }
    Ok((changes, edits))
}
