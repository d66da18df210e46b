//! What the instances of a group share, as it comes: many changes in one commit, in their order.
//!
//! Also what is known here and not told to the others yet, which outlives a restart; and by which names
//! the log has been known that all this came from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::registered::{ANSWER, OF_NAME, OF_UID};
use super::standing::decoded;
use super::{
    Disabled, Edit, EndpointStanding, Kept, Registered, Remembered, Store, StoreError,
    SubscriptionStanding, Tree, codec,
};
use crate::subscription::Uid;

/// Prefix of endpoints whose standing is not told yet.
const UNSAID: &str = "unsaid:";
/// The names of the log.
const LOG: &str = "log:";

/// One change.
#[derive(Debug, Clone)]
pub enum Step {
    /// It is the one of its uid from now on.
    Put {
        record: Box<Registered>,
        answered: Option<Box<(String, Remembered)>>,
    },
    /// With what was known of it and of its own endpoint.
    Remove(Uid),
    Endpoint {
        name: Arc<str>,
        disabled: Option<Disabled>,
        first_gone_at: Option<Timestamp>,
    },
    Subscription {
        uid: Uid,
        paused: bool,
    },
    /// The standing of this endpoint has been told, as it was after this change.
    Said {
        endpoint: Arc<str>,
        change: String,
    },
    /// The log has these names.
    Log(BTreeSet<String>),
}

/// The standing of an endpoint that is to be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsaid {
    /// Another one with each change.
    pub change: String,
}

impl Unsaid {
    /// Notes that this endpoint has changed.
    pub(super) fn edit(endpoint: &str) -> Result<Edit, StoreError> {
        let change = uuid::Uuid::now_v7().simple().to_string();
        Ok(Edit {
            tree: Tree::Registered,
            key: format!("{UNSAID}{endpoint}").into_bytes(),
            value: Some(codec::encode(endpoint, &Self { change })?),
        })
    }
}

impl Store {
    /// Makes these changes, all that belong to one tree at once or not at all.
    pub async fn fold(&self, steps: Vec<Step>) -> Result<(), StoreError> {
        if steps.is_empty() {
            return Ok(());
        }
        self.write(move |kept| {
            let mut ahead = Ahead {
                kept,
                edits: BTreeMap::new(),
            };
            for step in steps {
                ahead.step(step)?;
            }
            let edits = ahead.edits.into_iter();
            let edits = edits.map(|((tree, key), value)| Edit {
                tree: Tree::ALL[tree],
                key,
                value,
            });
            Ok(((), edits.collect()))
        })
        .await
    }

    /// Whether a record, and the answer about it, are small enough to be kept.
    pub fn fits(
        record: &Registered,
        answered: Option<&(String, Remembered)>,
    ) -> Result<(), StoreError> {
        let what = format!("subscription {}", record.name);
        codec::encode(&what, record)?;
        if let Some((_, remembered)) = answered {
            codec::encode(&format!("the answer about {what}"), remembered)?;
        }
        Ok(())
    }

    /// Endpoints whose standing is to be told to the other instances.
    pub fn unsaid(&self) -> Result<Vec<(String, Unsaid)>, StoreError> {
        self.below(UNSAID)
    }

    pub fn unsaid_of(&self, endpoint: &str) -> Result<Option<Unsaid>, StoreError> {
        self.one(UNSAID, endpoint)
    }

    /// Waits until there may be more to tell.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// The names of the log that this store was made from; none before it has ever been.
    pub fn log_names(&self) -> Result<BTreeSet<String>, StoreError> {
        Ok(self.one(LOG, "names")?.unwrap_or_default())
    }
}

/// Records as they will be: an edit of each at the most, since the store adds up what they replace.
struct Ahead<'a> {
    kept: &'a Kept,
    /// By the place of the tree among all, and the key.
    edits: BTreeMap<(usize, Vec<u8>), Option<Vec<u8>>>,
}

impl Ahead<'_> {
    fn step(&mut self, step: Step) -> Result<(), StoreError> {
        let of = Tree::Registered;
        match step {
            Step::Put { record, answered } => {
                let what = format!("subscription {}", record.name);
                let uid = record.uid.as_str();
                let before: Option<Registered> = self.of_uid(uid)?;
                if let Some(before) = before.filter(|before| before.name != record.name) {
                    self.free(&before)?;
                }
                let name = codec::encode(&what, &record.uid)?;
                self.set(of, format!("{OF_NAME}{}", record.name), Some(name));
                let bytes = codec::encode(&what, &record)?;
                self.set(of, format!("{OF_UID}{uid}"), Some(bytes));
                if let Some((key, remembered)) = answered.map(|answered| *answered) {
                    let bytes = codec::encode(&format!("the answer about {what}"), &remembered)?;
                    self.set(of, format!("{ANSWER}{key}"), Some(bytes));
                }
            }
            Step::Remove(uid) => {
                let before: Option<Registered> = self.of_uid(uid.as_str())?;
                if let Some(before) = before {
                    self.free(&before)?;
                }
                self.set(of, format!("{OF_UID}{uid}"), None);
                self.set(of, format!("{UNSAID}{uid}"), None);
                for tree in [Tree::SubscriptionStandings, Tree::EndpointStandings] {
                    self.set(tree, uid.as_str().to_owned(), None);
                }
            }
            Step::Endpoint {
                name,
                disabled,
                first_gone_at,
            } => {
                let tree = Tree::EndpointStandings;
                let found = self.get(tree, &name)?;
                let mut standing: EndpointStanding = decoded(tree, &name, found)?;
                (standing.disabled, standing.first_gone_at) = (disabled, first_gone_at);
                self.edit(super::standing::edit(tree, &name, &standing)?);
            }
            Step::Subscription { uid, paused } => {
                let standing = SubscriptionStanding { paused };
                let tree = Tree::SubscriptionStandings;
                self.edit(super::standing::edit(tree, uid.as_str(), &standing)?);
            }
            Step::Said { endpoint, change } => {
                let key = format!("{UNSAID}{endpoint}");
                let unsaid: Option<Unsaid> = self.one(&key)?;
                if unsaid.is_some_and(|unsaid| unsaid.change == change) {
                    self.set(of, key, None);
                }
            }
            Step::Log(names) => {
                let names = codec::encode("the names of the log", &names)?;
                self.set(of, format!("{LOG}names"), Some(names));
            }
        }
        Ok(())
    }

    /// Gives its name back, unless another has taken it.
    fn free(&mut self, record: &Registered) -> Result<(), StoreError> {
        let key = format!("{OF_NAME}{}", record.name);
        let owner: Option<Uid> = self.one(&key)?;
        if owner.is_some_and(|owner| owner == record.uid) {
            self.set(Tree::Registered, key, None);
        }
        Ok(())
    }

    fn of_uid(&self, uid: &str) -> Result<Option<Registered>, StoreError> {
        self.one(&format!("{OF_UID}{uid}"))
    }

    fn one<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let tree = Tree::Registered;
        let found = self.get(tree, key)?;
        let decode = |bytes: sled::IVec| codec::decode(tree.name(), key.as_bytes(), &bytes);
        Ok(found.map(decode).transpose()?)
    }

    fn get(&self, tree: Tree, key: &str) -> Result<Option<sled::IVec>, StoreError> {
        match self.edits.get(&(place(tree), key.as_bytes().to_vec())) {
            Some(ahead) => Ok(ahead.as_deref().map(sled::IVec::from)),
            None => self.kept.guarded(|kept| kept.tree(tree).get(key)),
        }
    }

    fn set(&mut self, tree: Tree, key: String, value: Option<Vec<u8>>) {
        self.edits.insert((place(tree), key.into_bytes()), value);
    }

    fn edit(&mut self, Edit { tree, key, value }: Edit) {
        self.edits.insert((place(tree), key), value);
    }
}

fn place(tree: Tree) -> usize {
    let found = Tree::ALL.iter().position(|other| *other == tree);
    found.expect("all of them are there")
}
