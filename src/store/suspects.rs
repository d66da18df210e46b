//! Suspects: events and deliveries that the process may have died of, and whether it runs.
//!
//! Written only around unclean stops and panics; a bridge in normal running writes nothing here. A
//! mark stands for as long as a process runs, so one that finds it there knows that the last one did
//! not stop in order. What was in hand then has one try more against it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Edit, Store, StoreError, Tree, codec};

/// The mark of a running process; no id contains `~`.
const RUNNING: &[u8] = b"~running";

/// What is known of one suspect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspect {
    /// How often the process, or the work on it, has ended badly with it in hand.
    pub tries: u32,
    /// When it last did, or was taken in hand.
    pub last: Timestamp,
    /// It is in hand: were the process to die now, that would be one try more.
    #[serde(default)]
    pub in_hand: bool,
}

/// How the last process ended, and what it left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Begun {
    /// It was killed, crashed, or lost its power.
    pub unclean: bool,
    /// With the tries of the unclean stop; nothing is in hand any more.
    pub suspects: BTreeMap<String, Suspect>,
}

impl Store {
    /// Marks the process as running and says how the last one ended.
    pub async fn begin(&self) -> Result<Begun, StoreError> {
        self.write(|kept| {
            let entries: Vec<_> = kept.guarded(|it| it.suspects.iter().collect())?;
            let mut begun = Begun {
                unclean: entries.iter().any(|(key, _)| *key == *RUNNING),
                ..Begun::default()
            };
            let mut changes = Vec::new();
            for (key, bytes) in entries {
                if *key == *RUNNING {
                    continue;
                }
                let mut suspect: Suspect = codec::decode(Tree::Suspects.name(), &key, &bytes)?;
                let name = String::from_utf8_lossy(&key).into_owned();
                if suspect.in_hand {
                    suspect.in_hand = false;
                    suspect.tries += u32::from(begun.unclean);
                    let known = suspect.tries > 0;
                    let value = known.then(|| codec::encode(&name, &suspect));
                    changes.push(edit(key.to_vec(), value.transpose()?));
                }
                if suspect.tries > 0 {
                    begun.suspects.insert(name, suspect);
                }
            }
            if !begun.unclean {
                changes.push(edit(RUNNING.to_vec(), Some(codec::encode("mark", &true)?)));
            }
            Ok((begun, changes))
        })
        .await
    }

    /// The process stops in order.
    pub async fn end(&self) -> Result<(), StoreError> {
        self.write(|_| Ok(((), vec![edit(RUNNING.to_vec(), None)])))
            .await
    }

    /// Writes down what is known of these, and removes those of which nothing is.
    pub async fn note_suspects(
        &self,
        notes: Vec<(String, Option<Suspect>)>,
    ) -> Result<(), StoreError> {
        let edits = notes.into_iter().map(|(key, suspect)| {
            let value = suspect.map(|suspect| codec::encode(&key, &suspect));
            Ok(edit(key.into_bytes(), value.transpose()?))
        });
        let edits = edits.collect::<Result<Vec<_>, StoreError>>()?;
        self.write(move |_| Ok(((), edits))).await
    }
}

fn edit(key: Vec<u8>, value: Option<Vec<u8>>) -> Edit {
    Edit {
        tree: Tree::Suspects,
        key,
        value,
    }
}
