//! Reloading: the config file read again while everything runs.
//!
//! SIGHUP, the API and the watch over the file all come to [`Reloader::reload`]. Subscriptions,
//! endpoints and sources take effect, for what comes next: deliveries under way are not touched, and
//! only sources that have changed stop for it. Whatever a broker has to be told at its start
//! needs a restart, and is named. A file that is not valid changes nothing, and is said in the log,
//! a metric and `/readyz` until a good one is read.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::sources::{Sources, possible};
use super::{Failure, From, compiled, registry, state};
use crate::admin::Control;
use crate::config::{self, Config, Problems};
use crate::failpoint;
use crate::meters::Meters;
use crate::operations::settings::{Differences, Flaw, Intake, NotReloaded, Reloaded};
use crate::operations::subscriptions::Registry;
use crate::pipeline::Pipeline;
use crate::store::Store;
use crate::telemetry;

/// Problems of a file that an answer names.
const MOST_PROBLEMS: usize = 1_000;
/// A file that somebody is still writing looks different after this.
const SETTLE: Duration = Duration::from_millis(100);

/// See the module.
pub struct Reloader {
    from: From,
    registry: Arc<Registry>,
    pipeline: Arc<Pipeline>,
    sources: Sources,
    meters: Arc<Meters>,
    /// What runs. One reload at a time.
    running: tokio::sync::Mutex<Config>,
    noted: Mutex<Noted>,
    watch: watch::Sender<Option<Duration>>,
}

/// For whoever asks how it stands.
#[derive(Default)]
struct Noted {
    /// Why the file is not in force, if it is not.
    refused: Option<String>,
    needs_restart: Vec<String>,
    /// Of the last file that was looked at, good or not.
    hash: Option<String>,
    /// How long a stop may take.
    shutdown: Duration,
}

impl Reloader {
    pub fn new(
        config: &Config,
        from: From,
        registry: Arc<Registry>,
        sources: Sources,
    ) -> Arc<Self> {
        let (pipeline, meters) = (sources.pipeline.clone(), sources.meters.clone());
        Arc::new(Self {
            from,
            registry,
            pipeline,
            sources,
            meters,
            running: tokio::sync::Mutex::new(config.clone()),
            noted: Mutex::new(Noted {
                shutdown: config.limits.shutdown,
                ..Noted::default()
            }),
            watch: watch::channel(config.reload.watch).0,
        })
    }

    /// What people should know of the config file, for readiness.
    pub fn note(&self) -> Option<String> {
        let noted = self.noted();
        let restart = || {
            let parts = noted.needs_restart.join(", ");
            (!parts.is_empty()).then(|| format!("a restart is needed for: {parts}"))
        };
        noted.refused.clone().or_else(restart)
    }

    /// How long a stop may take, by the config in force.
    pub fn shutdown(&self) -> Duration {
        self.noted().shutdown
    }

    /// Reads the config again and has it take effect.
    pub async fn reload(&self) -> Result<Reloaded, NotReloaded> {
        let reloaded = self.try_reload().await;
        let mut noted = self.noted();
        match &reloaded {
            Ok(Reloaded { needs_restart, .. }) => {
                if !needs_restart.is_empty() {
                    warn!(parts = ?needs_restart, "these parts of the config have changed and are not in force: restart to use them");
                }
                noted.refused = None;
                noted.needs_restart.clone_from(needs_restart);
            }
            Err(NotReloaded::NoFile) => {
                info!("running without a config file: nothing to reload");
                return reloaded;
            }
            Err(why) => {
                error!(error = %why, "the config is not reloaded; the one before stays in force");
                noted.refused = Some(format!("the config before stays in force: {}", openly(why)));
            }
        }
        let waiting = noted.needs_restart.len();
        self.meters.reloaded(reloaded.is_ok(), waiting);
        reloaded
    }

    async fn try_reload(&self) -> Result<Reloaded, NotReloaded> {
        let From::File { path, .. } = &self.from else {
            return Err(NotReloaded::NoFile);
        };
        let mut running = self.running.lock().await;
        let loaded = config::load(path, &|name| std::env::var(name).ok());
        let loaded = loaded.map_err(|problems| invalid(&problems))?;
        let new = loaded.config;
        let compiled = |store: &Store| compiled(store, &new).map_err(Failure::into_error);
        let failed = |error: anyhow::Error| NotReloaded::Failed(format!("{error:#}"));
        let change = self.sources.begin(&running, &new).await.map_err(failed)?;
        let reloading =
            self.registry
                .reload(registry::settings(&new), &new.subscriptions, compiled);
        let changes = match reloading.await {
            Ok(changes) => changes,
            Err(error) => {
                self.sources.take_back(&running, change).await;
                return Err(failed(error));
            }
        };
        self.pipeline.set_quotas(new.tenants.clone());
        self.registry.now_has(state::hash(&new));
        failpoint::reach("subscriptions reloaded", b"config");
        // After the subscriptions, so that the first event of a source that is new finds its own.
        let sources = self.sources.follow(change);
        let limits = &new.limits;
        if limits.in_flight_bytes != running.limits.in_flight_bytes {
            self.pipeline.set_budget(limits.in_flight_bytes);
        }
        self.noted().shutdown = limits.shutdown;
        let reloaded = Reloaded {
            hash: loaded.hash.clone(),
            subscriptions: Differences::between(&running.subscriptions, &new.subscriptions),
            endpoints: Differences::between(&running.endpoints, &new.endpoints),
            sources: Differences::between(&running.sources, &new.sources),
            needs_restart: needs_restart(&running, &new),
        };
        info!(
            added = ?changes.added, changed = ?changes.changed, removed = ?changes.removed,
            endpoints = ?reloaded.endpoints.all().collect::<Vec<_>>(),
            sources = ?reloaded.sources.all().collect::<Vec<_>>(),
            hash = loaded.hash, "the config is reloaded"
        );
        take_over(&mut running, new, sources);
        self.meters.config(&loaded.hash);
        self.watch.send_replace(running.reload.watch);
        self.noted().hash = Some(loaded.hash);
        Ok(reloaded)
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the file now and then, as the config says, and reloads when it has changed. For ever.
    pub async fn watch(self: Arc<Self>) {
        let From::File { path, hash: read } = &self.from else {
            return;
        };
        let mut every = self.watch.subscribe();
        // It may have changed since it was read: the first look is at its text.
        let mut stamp = None;
        self.noted().hash = Some(read.clone());
        loop {
            let Some(interval) = *every.borrow_and_update() else {
                if every.changed().await.is_err() {
                    return;
                }
                continue;
            };
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                changed = every.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            }
            let now = self::stamp(path).await;
            if now == stamp {
                continue;
            }
            let first = hash(path).await;
            tokio::time::sleep(SETTLE).await;
            let settled = hash(path).await;
            if settled.is_none() || settled != first {
                continue;
            }
            stamp = now;
            let is_known = {
                let mut noted = self.noted();
                std::mem::replace(&mut noted.hash, settled.clone()) == settled
            };
            if !is_known {
                info!(file = %path.display(), "the config file has changed");
                // What came of it is logged there.
                let _ = self.reload().await;
            }
        }
    }
}

/// When a file was changed, and how long it is.
async fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let about = tokio::fs::metadata(path).await.ok()?;
    Some((about.modified().ok()?, about.len()))
}

/// As [`config::Loaded`] has it.
async fn hash(path: &Path) -> Option<String> {
    let text = tokio::fs::read(path).await.ok()?;
    let mut hash = hex::encode(Sha256::digest(&text));
    hash.truncate(12);
    Some(hash)
}

/// Readiness is for everybody, and what is wrong in a file may be a secret in the wrong place.
fn openly(why: &NotReloaded) -> String {
    match why {
        NotReloaded::Invalid(flaws) => {
            let many = flaws.len();
            format!("the file has problems ({many}); the log and `hookbridge validate` name them")
        }
        other => other.to_string(),
    }
}

fn invalid(problems: &Problems) -> NotReloaded {
    let flaws = problems.list().iter().take(MOST_PROBLEMS);
    let flaws = flaws.map(|problem| Flaw {
        line: problem.line,
        column: problem.col,
        message: problem.message.clone(),
        help: problem.help.clone(),
    });
    NotReloaded::Invalid(flaws.collect())
}

/// The parts of `new` that only a restart brings into force. A new part of the config does not
/// compile until somebody has decided about it here.
fn needs_restart(running: &Config, new: &Config) -> Vec<String> {
    let Config {
        group,
        instance,
        data_dir,
        admin,
        dead_letters,
        delivery,
        limits,
        attempts,
        reload: _,
        telemetry,
        tenants: _,
        state_on,
        store_keys: _,
        referred: _,
        brokers,
        sources: _,
        endpoints: _,
        subscriptions: _,
        tests: _,
    } = running;
    let whole = [
        ("group", *group != new.group),
        ("instance", *instance != new.instance),
        ("data_dir", *data_dir != new.data_dir),
        ("admin", *admin != new.admin),
        ("dead_letters", *dead_letters != new.dead_letters),
        ("delivery", *delivery != new.delivery),
        (
            "limits.due_window",
            limits.due_window != new.limits.due_window,
        ),
        ("limits.workers", limits.workers != new.limits.workers),
        ("attempts", *attempts != new.attempts),
        ("state_on", *state_on != new.state_on),
        ("telemetry", *telemetry != new.telemetry),
    ];
    let whole = whole.into_iter().filter(|(_, differs)| *differs);
    let mut parts: Vec<_> = whole.map(|(part, _)| part.to_owned()).collect();
    let of_brokers = Differences::between(brokers, &new.brokers);
    parts.extend(of_brokers.all().map(|name| format!("brokers.{name}")));
    let of_sources = Differences::between(&possible(running, new), &new.sources);
    parts.extend(of_sources.all().map(|name| format!("sources.{name}")));
    parts
}

/// Makes `running` what runs now, with these sources.
fn take_over(running: &mut Config, new: Config, sources: BTreeMap<Arc<str>, config::Source>) {
    running.sources = sources;
    running.store_keys = new.store_keys;
    running.referred = new.referred;
    running.endpoints = new.endpoints;
    running.subscriptions = new.subscriptions;
    running.tests = new.tests;
    running.reload = new.reload;
    running.tenants = new.tenants;
    running.limits.in_flight_bytes = new.limits.in_flight_bytes;
    running.limits.shutdown = new.limits.shutdown;
}

/// The bridge, behind what the API needs of it.
pub struct OfBridge(pub Arc<Reloader>);

#[async_trait]
impl Control for OfBridge {
    async fn reload(&self) -> Result<Reloaded, NotReloaded> {
        // A task of its own, which goes on when whoever asked has gone.
        let reloader = self.0.clone();
        let reloading = tokio::spawn(async move { reloader.reload().await });
        let ended = reloading.await;
        ended.unwrap_or_else(|panicked| Err(NotReloaded::Failed(panicked.to_string())))
    }

    fn log_filter(&self) -> String {
        telemetry::filter()
    }

    fn set_log_filter(&self, filter: &str) -> Result<(), String> {
        let before = telemetry::filter();
        telemetry::set_filter(filter).map_err(|error| error.to_string())?;
        info!(
            before,
            now = filter,
            "what is logged was changed over the API"
        );
        Ok(())
    }

    fn intakes(&self) -> Vec<Intake> {
        let all = self.0.pipeline.intakes().into_iter();
        let intake = |(name, paused): (Arc<str>, bool)| Intake {
            name: name.to_string(),
            paused,
        };
        all.map(intake).collect()
    }

    async fn pause(
        &self,
        source: Option<&str>,
        paused: bool,
    ) -> anyhow::Result<Option<Vec<Intake>>> {
        let wanted = |name: &str| source.is_none_or(|source| source == name);
        let pipeline = &self.0.pipeline;
        for (name, _) in pipeline.intakes() {
            if wanted(&name) {
                pipeline.set_source_paused(&name, paused).await?;
            }
        }
        let mut concerned = self.intakes();
        concerned.retain(|intake| wanted(&intake.name));
        Ok((source.is_none() || !concerned.is_empty()).then_some(concerned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "
brokers: { here: { embedded: {} } }
sources: { local: { broker: here, topics: ['#'] } }
subscriptions: { a: { topics: ['#'], endpoint: { url: https://h/, signature: none } } }
";

    fn config(text: &str) -> Config {
        config::parse(text, "c.yaml", Path::new(""), &|_| None).unwrap()
    }

    fn restart(after: &str) -> Vec<String> {
        needs_restart(&config(BEFORE), &config(after))
    }

    #[test]
    fn what_takes_effect_needs_no_restart() {
        assert_eq!(restart(BEFORE), [""; 0]);
        let rules =
            "topics: ['#'], unmatched: dead_letter, max_body: 1KiB, schema: { type: object }";
        let after = BEFORE.replace("topics: ['#'] }", &format!("{rules} }}"));
        assert_ne!(after, BEFORE);
        assert_eq!(restart(&after), [""; 0]);
        assert_eq!(
            restart(&BEFORE.replace("https://h/", "https://other/")),
            [""; 0]
        );
        assert_eq!(
            restart(&format!("{BEFORE}reload: {{ watch: 5s }}\n")),
            [""; 0]
        );
        let after = after + "limits: { in_flight_bytes: 2MiB, shutdown: 7s }\n";
        assert_eq!(restart(&after), [""; 0]);
        let mut running = config(BEFORE);
        take_over(&mut running, config(&after), config(&after).sources);
        assert_eq!(running, config(&after));
    }

    #[test]
    fn what_needs_a_restart_is_named_until_then() {
        let after = BEFORE
            .replace(
                "here: { embedded: {} }",
                "here: { embedded: { retention: 1d } }, more: { embedded: {} }",
            )
            .replace("topics: ['#'] }", "topics: [orders], window: 7 }")
            + "limits: { due_window: 9 }\nadmin: { listen: 127.0.0.1:9 }\n";
        let parts = [
            "admin",
            "limits.due_window",
            "brokers.more",
            "brokers.here",
            "sources.local",
        ];
        assert_eq!(restart(&after), parts);
        let (mut running, new) = (config(BEFORE), config(&after));
        let sources = possible(&running, &new);
        take_over(&mut running, new, sources);
        assert_eq!(needs_restart(&running, &config(&after)), parts);
    }
}
