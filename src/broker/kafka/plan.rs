//! Plans: sources as the config says them, and what their `topics:` mean.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::start::Start;
use super::wanted::Wanted;
use crate::broker::Naming;
use crate::meters::SourceMeters;

/// A source as the config says it.
#[derive(Clone)]
pub struct SourceSettings {
    pub name: Arc<str>,
    /// Names, or regular expressions when they begin with `^`.
    pub topics: Vec<String>,
    pub start: Start,
    /// Events older than this, by their Kafka timestamp, are settled without being sent.
    pub ignore_older_than: Option<Duration>,
    pub naming: Naming,
    pub meters: SourceMeters,
}

/// A source, and what its `topics:` mean.
pub struct Plan {
    pub settings: SourceSettings,
    pub wanted: Vec<Wanted>,
}

/// The plans of all sources of a broker; an error where two name the same topic.
pub fn plans(group: &str, sources: Vec<SourceSettings>) -> anyhow::Result<Vec<Arc<Plan>>> {
    let mut owners: HashMap<String, Arc<str>> = HashMap::new();
    let mut all = Vec::with_capacity(sources.len());
    for settings in sources {
        let mut wanted = Vec::with_capacity(settings.topics.len());
        for entry in &settings.topics {
            if let Some(other) = owners.insert(entry.clone(), settings.name.clone()) {
                bail!(
                    "topic `{entry}` is given twice: sources `{other}` and `{}`",
                    settings.name
                );
            }
            let entry =
                Wanted::new(group, entry).with_context(|| format!("source `{}`", settings.name))?;
            wanted.push(entry);
        }
        all.push(Arc::new(Plan { settings, wanted }));
    }
    Ok(all)
}

/// What a source is called in the state of its broker.
pub fn part(name: &str) -> String {
    format!("source {name}")
}
