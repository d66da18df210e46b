//! Sources of a config that is read again: which of them are begun, begun anew or ended.
//!
//! Brokers are told first and may refuse, which changes nothing. Then nothing more is taken from the
//! sources concerned, subscriptions are changed, and the pipeline has those sources stopped, what they have
//! in hand finished, and begun by what their brokers know. A source of a broker that itself needs a restart
//! stays as it is until then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tracing::warn;

use super::brokers::{self, Handle};
use crate::config::{self, Config};
use crate::decode;
use crate::meters::Meters;
use crate::operations::{Operations, topology};
use crate::pipeline::{Pipeline, Rules, SourcePlan};

/// What the sources of a running bridge hang on.
pub struct Sources {
    pub handles: BTreeMap<Arc<str>, Handle>,
    pub room: decode::Room,
    pub operations: Arc<Operations>,
    pub pipeline: Arc<Pipeline>,
    pub meters: Arc<Meters>,
}

/// All sources of a config, by name.
type All = BTreeMap<Arc<str>, config::Source>;

/// What a config that is read again makes of the sources, and the brokers know of it.
pub struct Change {
    /// The config that runs, with the sources that are to run.
    then: Config,
    /// Whose brokers have to be told something else.
    told: Vec<Arc<str>>,
    leaving: Vec<Arc<str>>,
    /// Those that are new or taken otherwise than before.
    entering: Vec<Arc<str>>,
}

impl Change {
    fn between(running: &Config, new: &Config) -> Self {
        let then = Config {
            sources: possible(running, new),
            ..running.clone()
        };
        let before = |name: &Arc<str>| running.sources.get(name).map(as_taken);
        let entering = then.sources.iter();
        let entering = entering.filter(|(name, source)| before(name) != Some(as_taken(source)));
        let leaving = running.sources.keys();
        let leaving = leaving.filter(|name| !then.sources.contains_key(*name));
        Self {
            told: Vec::new(),
            leaving: leaving.cloned().collect(),
            entering: entering.map(|(name, _)| name.clone()).collect(),
            then,
        }
    }

    /// The brokers that the sources concerned come from, or came from.
    fn brokers(&self, running: &Config) -> BTreeSet<Arc<str>> {
        let concerned = self.leaving.iter().chain(&self.entering);
        let of = |name| [&running.sources, &self.then.sources].map(|all| all.get(name));
        let sources = concerned.flat_map(of).flatten();
        sources.map(|source| source.broker.clone()).collect()
    }
}

impl Sources {
    /// Tells the brokers, and has nothing more taken from the sources concerned as they are: events
    /// must not meet subscriptions that are made for what comes. When a broker refuses, nothing has changed.
    pub async fn begin(&self, running: &Config, new: &Config) -> anyhow::Result<Change> {
        let mut change = Change::between(running, new);
        for name in change.brokers(running) {
            change.told.push(name.clone());
            let told = self.handles[&name].set_sources(&change.then, &self.meters);
            if let Err(error) = told.await {
                self.untell(running, &change).await;
                return Err(error.context(format!("the sources of broker `{name}`")));
            }
        }
        let concerned = change.leaving.iter().chain(&change.entering);
        self.pipeline.close_sources(concerned);
        Ok(change)
    }

    /// The change is not to be: everything goes on as it was.
    pub async fn take_back(&self, running: &Config, change: Change) {
        self.untell(running, &change).await;
        let Change {
            leaving, entering, ..
        } = change;
        let is_running = |name: &Arc<str>| running.sources.contains_key(name);
        let again = leaving.into_iter().chain(entering).filter(is_running);
        self.pipeline
            .change_sources(&[], self.plans(running, again));
    }

    async fn untell(&self, running: &Config, change: &Change) {
        for name in &change.told {
            let told = self.handles[name].set_sources(running, &self.meters).await;
            if let Err(error) = told {
                warn!(broker = %name, error = format!("{error:#}"), "the broker does not take its sources back as they were; a restart mends it");
            }
        }
    }

    /// Has the sources run as they are to, and gives them back.
    pub fn follow(&self, change: Change) -> All {
        let Change {
            then,
            leaving,
            entering,
            ..
        } = change;
        for (name, source) in &then.sources {
            self.pipeline.set_rules(name, brokers::rules(source));
        }
        if !leaving.is_empty() || !entering.is_empty() {
            self.operations.set_sources(brokers::sources(&then));
            let entering = self.plans(&then, entering.into_iter());
            self.pipeline.change_sources(&leaving, entering);
            self.note(&then);
        }
        then.sources
    }

    fn plans(
        &self,
        config: &Config,
        names: impl Iterator<Item = Arc<str>>,
    ) -> Vec<(Arc<str>, SourcePlan)> {
        let plan = |name: Arc<str>| {
            let source = &config.sources[&name];
            let plan = brokers::source_plan(&name, source, &self.meters, &self.room);
            (source.broker.clone(), plan)
        };
        names.map(plan).collect()
    }

    /// Notes what is declared on the brokers now, and looks for what is left over.
    fn note(&self, config: &Config) {
        let upkeep: Vec<_> = self.handles.values().filter_map(Handle::upkeep).collect();
        match topology::note(&config.data_dir, &config.group, &upkeep) {
            Ok(declared) => {
                tokio::spawn(topology::warn_of_orphans(upkeep, declared));
            }
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "what is declared on the brokers is not noted: what we leave behind may not be found later"
                );
            }
        }
    }
}

/// A source without what is asked of its single events, which is changed while it runs.
fn as_taken(source: &config::Source) -> config::Source {
    let Rules {
        unmatched,
        contract,
    } = Rules::default();
    config::Source {
        unmatched,
        contract,
        ..source.clone()
    }
}

/// The sources of `new` that can run without a restart, and as they are those that cannot: a source
/// comes from, or goes to, a broker that is not as it was.
pub fn possible(running: &Config, new: &Config) -> All {
    let same = |broker: &Arc<str>| running.brokers.get(broker) == new.brokers.get(broker);
    let stays = |config: &Config, name: &Arc<str>| {
        let source = config.sources.get(name);
        source.is_some_and(|source| !same(&source.broker))
    };
    let is_stuck = |name: &Arc<str>| stays(running, name) || stays(new, name);
    let kept = running.sources.iter().filter(|(name, _)| is_stuck(name));
    let taken = new.sources.iter().filter(|(name, _)| !is_stuck(name));
    let all = kept.chain(taken);
    all.map(|(name, source)| (name.clone(), source.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const BEFORE: &str = "
brokers: { here: { embedded: {} }, there: { embedded: {} } }
sources:
  stays: { broker: here, topics: [a] }
  goes: { broker: here, topics: [b] }
  elsewhere: { broker: there, topics: [c] }
subscriptions: { a: { topics: ['#'], endpoint: { url: https://h/, signature: none } } }
";

    fn config(text: &str) -> Config {
        config::parse(text, "c.yaml", Path::new(""), &|_| None).unwrap()
    }

    #[test]
    fn sources_come_change_and_go_on_brokers_that_stay_as_they_are() {
        let after = BEFORE
            .replace(
                "goes: { broker: here, topics: [b] }",
                "comes: { broker: here, topics: [d] }",
            )
            .replace("topics: [a]", "topics: [a, e]");
        let all = possible(&config(BEFORE), &config(&after));
        let names: Vec<_> = all.keys().map(|name| &**name).collect();
        assert_eq!(names, ["comes", "elsewhere", "stays"]);
        assert_eq!(all, config(&after).sources);
    }

    #[test]
    fn a_source_of_a_broker_that_changes_stays_as_it_is() {
        let after = BEFORE
            .replace(
                "there: { embedded: {} }",
                "there: { embedded: { retention: 1d } }",
            )
            .replace("topics: [c]", "topics: [d]")
            .replace("stays: { broker: here,", "stays: { broker: there,");
        assert_eq!(
            possible(&config(BEFORE), &config(&after)),
            config(BEFORE).sources
        );
    }
}
