//! Topology: what the config needs on the brokers, and what earlier configs have left there.
//!
//! AMQP cannot list queues, so what we have declared is noted down in `data_dir` (`declared.json`)
//! at each start, before it is declared. A note that is lost means that orphans are not found; it
//! never means that something is removed that is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::broker::upkeep::{Adopted, Known, Orphan, Thing, Upkeep};

const FILE: &str = "declared.json";
const VERSION: u32 = 1;
/// Things remembered of one broker; the oldest names are as good as any to forget.
const MOST_THINGS: usize = 5_000;
/// A broker that cannot be asked at the start is asked so often, at these intervals.
const TRIES: u32 = 20;
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Orphans that the log names.
const SHOWN: usize = 20;
/// How long the look for orphans may take.
const LOOK: Duration = Duration::from_secs(60);

/// What was declared, by broker.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Declared {
    version: u32,
    brokers: BTreeMap<String, OfBroker>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct OfBroker {
    groups: BTreeSet<String>,
    things: BTreeSet<Thing>,
}

impl Declared {
    /// What is noted in `data_dir`; nothing where there is no note yet.
    pub fn read(data_dir: &Path) -> anyhow::Result<Self> {
        let path = path(data_dir);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => {
                return Err(error).with_context(|| format!("{} cannot be read", path.display()));
            }
        };
        let read: Self = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is damaged: move it away", path.display()))?;
        if read.version > VERSION {
            bail!("{} was written by a later release", path.display());
        }
        Ok(read)
    }

    /// Adds what `broker` has by the present config, under `group`.
    pub fn note(&mut self, broker: &dyn Upkeep, group: &str) {
        let of = self.brokers.entry(broker.name().to_string()).or_default();
        of.groups.insert(group.to_owned());
        of.things.extend(broker.ours());
        while of.things.len() > MOST_THINGS {
            of.things.pop_first();
        }
    }

    /// What is known of a broker.
    pub fn of(&self, broker: &str) -> Known {
        let of = self.brokers.get(broker);
        Known {
            things: of.map(|of| of.things.clone()).unwrap_or_default(),
            groups: of.map(|of| of.groups.clone()).unwrap_or_default(),
        }
    }

    /// Something is gone from a broker.
    pub fn forget(&mut self, broker: &str, thing: &Thing) {
        if let Some(of) = self.brokers.get_mut(broker) {
            of.things.remove(thing);
        }
    }

    /// Whole or not at all.
    pub fn write(&self, data_dir: &Path) -> anyhow::Result<()> {
        let path = path(data_dir);
        let new = path.with_extension("json.new");
        let whole = serde_json::json!({ "version": VERSION, "brokers": self.brokers });
        let written = File::create(&new)
            .and_then(|mut file| {
                file.write_all(&serde_json::to_vec_pretty(&whole)?)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&new, &path));
        written.with_context(|| format!("{} cannot be written", path.display()))
    }
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// Notes what is about to be declared; what was known before is returned, and goes on being known.
pub fn note(data_dir: &Path, group: &str, brokers: &[Arc<dyn Upkeep>]) -> anyhow::Result<Declared> {
    let mut declared = Declared::read(data_dir)?;
    for broker in brokers {
        declared.note(broker.as_ref(), group);
    }
    declared.write(data_dir)?;
    Ok(declared)
}

/// The orphans of one broker.
pub async fn orphans(broker: &dyn Upkeep, declared: &Declared) -> anyhow::Result<Vec<Orphan>> {
    let known = declared.of(broker.name());
    timeout(LOOK, broker.orphans(&known))
        .await
        .with_context(|| format!("no answer within {LOOK:?}"))?
}

/// Looks for orphans and warns about them, once for each broker, when it can be reached.
pub async fn warn_of_orphans(brokers: Vec<Arc<dyn Upkeep>>, declared: Declared) {
    let mut unasked = brokers;
    for _ in 0..TRIES {
        let mut again = Vec::new();
        for broker in unasked {
            let name = broker.name();
            match orphans(broker.as_ref(), &declared).await {
                Ok(orphans) if orphans.is_empty() => {}
                Ok(orphans) => {
                    let left = orphans.iter().take(SHOWN);
                    let left: Vec<_> = left.map(|orphan| orphan.thing.to_string()).collect();
                    warn!(broker = %name, count = orphans.len(), left = left.join(", "), "left over from an earlier config: `hookbridge topology --prune` lists and removes it");
                }
                Err(error) => {
                    debug!(broker = %name, error = format!("{error:#}"), "what is left over cannot be looked for");
                    again.push(broker);
                }
            }
        }
        if again.is_empty() {
            return;
        }
        unasked = again;
        sleep(LOOK_AGAIN).await;
    }
}

/// Why an orphan is not removed, if it is not.
pub fn keeps(orphan: &Orphan, force: bool) -> Option<&'static str> {
    if orphan.in_use {
        return Some("somebody reads it now");
    }
    if force {
        return None;
    }
    match (&orphan.thing, orphan.messages) {
        (_, Some(1..)) => Some("it is not empty"),
        (Thing::Queue(_) | Thing::Topic(_), None) => Some("it cannot be told whether it is empty"),
        _ => None,
    }
}

/// Removes one orphan, and forgets it.
pub async fn remove(broker: &dyn Upkeep, orphan: &Orphan, data_dir: &Path) -> anyhow::Result<()> {
    timeout(LOOK, broker.remove(&orphan.thing))
        .await
        .with_context(|| format!("no answer within {LOOK:?}"))??;
    let mut declared = Declared::read(data_dir)?;
    declared.forget(broker.name(), &orphan.thing);
    declared.write(data_dir)
}

/// Moves what is parked and dead under `group` to the present group.
pub async fn adopt(
    broker: &dyn Upkeep,
    group: &str,
    declared: &Declared,
) -> anyhow::Result<Adopted> {
    broker.adopt(group, &declared.of(broker.name())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_back_and_damage_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let mut declared = Declared::read(folder.path()).unwrap();
        let of = declared.brokers.entry("shop".to_owned()).or_default();
        let (queue, binding) = (
            Thing::Queue("g.dead".into()),
            Thing::Binding {
                queue: "q".into(),
                exchange: "e".into(),
                key: "k".into(),
                arguments: BTreeMap::new(),
            },
        );
        of.things.extend([queue.clone(), binding.clone()]);
        of.groups.insert("g".into());
        declared.write(folder.path()).unwrap();
        let mut read = Declared::read(folder.path()).unwrap();
        assert_eq!(
            read.of("shop").things,
            BTreeSet::from([queue.clone(), binding.clone()])
        );
        read.forget("shop", &queue);
        assert_eq!(read.of("shop").things, BTreeSet::from([binding]));
        assert_eq!(read.of("other").groups, BTreeSet::new());
        fs::write(path(folder.path()), "{").unwrap();
        let error = Declared::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
    }

    #[test]
    fn what_is_read_or_not_empty_is_kept() {
        let orphan = |messages, in_use| Orphan {
            thing: Thing::Queue("q".into()),
            messages,
            in_use,
        };
        assert_eq!(keeps(&orphan(Some(0), false), false), None);
        let doubt = keeps(&orphan(None, false), false);
        assert_eq!(doubt, Some("it cannot be told whether it is empty"));
        assert_eq!(
            keeps(&orphan(Some(1), false), false),
            Some("it is not empty")
        );
        assert_eq!(keeps(&orphan(Some(1), false), true), None);
        assert_eq!(
            keeps(&orphan(Some(0), true), true),
            Some("somebody reads it now")
        );
    }
}
