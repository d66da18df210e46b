//! The app: builds everything that a config asks for, runs it, and ends it in order.
//!
//! The only place where settings of the config become settings of the stages ([`brokers`]).

mod brokers;
mod failure;
mod journal;
pub mod memory;
mod openapi;
mod operations;
mod preview;
mod readiness;
mod registry;
mod reload;
mod sources;
mod spans;
mod state;
mod subscriptions;
mod upkeep;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::admin;
use crate::broker::Broker;
use crate::config::{self, Config};
use crate::decode;
use crate::deliver::Courier;
use crate::journal::Journal;
use crate::meters::Meters;
use crate::operations::subscriptions::Registry;
use crate::operations::{Traces, retention, topology};
use crate::pipeline::{Meta, Pipeline, Taps, Told};
use crate::shutdown::{Asked, Shutdown, Signals};
use crate::store::Store;
use crate::subscription::Subscription;

use brokers::Handle;
pub use brokers::publisher;
pub use failure::Failure;
pub use journal::traces;
pub use openapi::openapi;
pub use operations::{on_source, operations};
pub use preview::{bytes_of, event, preview};
use reload::Reloader;
pub use upkeep::{address_policy, all_upkeep, checks, upkeep};

/// How long subscriptions may take to be written to disk.
const EXIT_GRACE: Duration = Duration::from_secs(5);
/// What closing the rest may take after that, before the process leaves without.
const LEAVE_GRACE: Duration = Duration::from_secs(15);

/// Where the config came from, to be read again.
pub enum From {
    File {
        path: PathBuf,
        /// Of its text, as [`config::Loaded`] has it.
        hash: String,
    },
    /// The one for trying it out.
    BuiltIn,
}

/// Runs until it is asked to stop, or until something fails that only a restart mends.
pub async fn run(config: Config, from: From) -> Result<(), Failure> {
    let signals = Signals::listen()
        .context("signals cannot be listened to")
        .map_err(Failure::Io)?;
    let app = App::build(&config).await?;
    app.run(config, from, signals).await
}

struct App {
    store: Arc<Store>,
    meters: Arc<Meters>,
    journal: Journal,
    exporting: spans::Exporting,
    taps: Taps,
    pipeline: Arc<Pipeline>,
    registry: Arc<Registry>,
    feedings: Vec<crate::pipeline::Feeding>,
    brokers: BTreeMap<Arc<str>, Arc<dyn Broker>>,
    handles: BTreeMap<Arc<str>, Handle>,
    room: decode::Room,
    /// Looks for what earlier configs have left on the brokers.
    left_over: Pin<Box<dyn Future<Output = ()> + Send>>,
    listener: TcpListener,
}

impl App {
    async fn build(config: &Config) -> Result<Self, Failure> {
        let meters = Meters::new();
        meters.count_with(
            "log_lines_lost",
            "Log lines not written",
            crate::telemetry::lost_lines,
        );
        std::fs::create_dir_all(&config.data_dir)
            .with_context(|| format!("{} (`data_dir`) cannot be made", config.data_dir.display()))
            .map_err(Failure::Io)?;
        let store = Arc::new(Store::open(
            &config.data_dir,
            meters.store_bytes.clone(),
            meters.store_flush.clone(),
        )?);
        let changes = store
            .reconcile(&config.subscriptions)
            .await
            .map_err(Failure::store)?;
        info!(added = ?changes.added, changed = ?changes.changed, removed = ?changes.removed, "subscriptions of the config are in the store");
        // Bound before anything is taken: a second process on the same address stops here.
        let listener = TcpListener::bind(config.admin.listen)
            .await
            .with_context(|| {
                format!(
                    "the admin address {} (`admin.listen`) cannot be listened on",
                    config.admin.listen
                )
            })
            .map_err(Failure::Io)?;
        let instance = brokers::instance(config, &store);
        let brokers::Built {
            plans,
            handles,
            room,
        } = brokers::build(config, instance, &meters)?;
        let brokers: BTreeMap<_, _> = handles
            .iter()
            .map(|(name, handle)| (name.clone(), handle.broker()))
            .collect();
        let upkeep: Vec<_> = handles.values().filter_map(Handle::upkeep).collect();
        let journal = journal::start(config, &store, &meters, &brokers);
        let declared = topology::note(&config.data_dir, &config.group, &upkeep);
        let declared = declared.unwrap_or_else(|error| {
            warn!(
                error = format!("{error:#}"),
                "what was declared on the brokers is not noted: what we leave behind may not be found later"
            );
            topology::Declared::default()
        });
        let (spans, exporting) = spans::start(config, &store, &meters).map_err(Failure::Io)?;
        let named = brokers::instance(config, &store).unwrap_or_else(|| store.instance_name());
        let taps = Taps::new(named.clone(), meters.tap_lost.clone());
        let courier = Courier::new(address_policy(config));
        let (pipeline, feedings) = Pipeline::new(
            plans,
            courier,
            store.clone(),
            Told {
                meters: meters.clone(),
                journal: journal.clone(),
                spans,
                taps: taps.clone(),
                meta: Meta::new(named, meters.meta_told.clone(), meters.meta_lost.clone()),
            },
            config.limits.in_flight_bytes,
            brokers::egress_check(config),
        );
        pipeline.set_quotas(config.tenants.clone());
        // Until it is known what the group knows.
        pipeline.shut(true);
        let registry = Registry::open(
            store.clone(),
            pipeline.clone(),
            registry::settings(config),
            compiled(&store, config)?,
            state::sharing(config, &store, &meters, &brokers)?,
        )?;
        Ok(Self {
            store,
            meters,
            journal,
            exporting,
            taps,
            pipeline,
            registry,
            feedings,
            brokers,
            handles,
            room,
            left_over: Box::pin(topology::warn_of_orphans(upkeep, declared)),
            listener,
        })
    }

    async fn run(self, config: Config, from: From, mut signals: Signals) -> Result<(), Failure> {
        let Self {
            store,
            meters,
            journal,
            exporting,
            taps,
            pipeline,
            registry,
            feedings,
            brokers,
            handles,
            room,
            left_over,
            listener,
        } = self;
        let shutdown = Shutdown::default();
        let is_built_in = matches!(from, From::BuiltIn);
        meters.config(&hash_of(&from));
        meters.brokers_with(readiness::brokers_up(&brokers));
        let operations =
            operations::of_pipeline(&config, brokers.clone(), pipeline.clone(), journal.clone());
        let embedded: BTreeMap<_, _> = handles
            .iter()
            .filter_map(|(name, handle)| Some((name.clone(), handle.embedded()?.clone())))
            .collect();
        let sources = sources::Sources {
            handles,
            room,
            operations: operations.clone(),
            pipeline: pipeline.clone(),
            meters: meters.clone(),
        };
        let reloader = Reloader::new(&config, from, registry.clone(), sources);
        let readiness = readiness::of(&brokers, &store, &pipeline, &registry, &reloader);
        let address = listener.local_addr().unwrap_or(config.admin.listen);
        let state = admin::State {
            version: env!("CARGO_PKG_VERSION"),
            meters: meters.clone(),
            readiness,
            default_broker: embedded
                .keys()
                .next()
                .filter(|_| embedded.len() == 1)
                .cloned(),
            embedded,
            subscriptions: Arc::new(subscriptions::OfPipeline {
                pipeline: pipeline.clone(),
                operations: operations.clone(),
                registry: registry.clone(),
            }),
            registry: Some(registry.clone()),
            traces: Arc::new(Traces {
                journal: Some(journal.clone()),
                keepers: journal::keepers(&config, &brokers),
                pipeline: Some(pipeline.clone()),
                notes: Vec::new(),
            }),
            control: Arc::new(reload::OfBridge(reloader.clone())),
            taps: taps.clone(),
            operations: operations.clone(),
            tokens: brokers::tokens(&config).into(),
            max_event_bytes: config.admin.max_event_bytes,
            openapi: openapi().into(),
        };
        let admin_stop = tokio_util::sync::CancellationToken::new();
        let admin = tokio::spawn(admin::serve(listener, state, admin_stop.clone()));
        tokio::spawn({
            let pipeline = pipeline.clone();
            async move { pipeline.tidy().await }
        });
        tokio::spawn(pipeline.clone().gather_changes());
        tokio::spawn(registry.clone().keep_up());
        let mut following = tokio::spawn(registry.clone().follow(shutdown.stop.clone()));
        let tending = tokio::spawn(registry.clone().tend(shutdown.stop.clone()));
        tokio::spawn({
            let (registry, pipeline) = (registry.clone(), pipeline.clone());
            async move {
                registry.in_step().await;
                pipeline.shut(false);
            }
        });
        tokio::spawn(pipeline.clone().watch_egress());
        tokio::spawn(reloader.clone().watch());
        tokio::spawn(pipeline.clone().shake_hands());
        tokio::spawn(pipeline.clone().release_old());
        tokio::spawn(pipeline.clone().tell_meta());
        tokio::spawn(memory::give_back());
        if let Some(retention) = config.dead_letters.retention {
            for broker in keeping_letters(&config, &brokers) {
                let (expired, stop) = (meters.expired(broker.name()), shutdown.stop.clone());
                tokio::spawn(retention::keep(broker, retention, expired, stop));
            }
        }
        pipeline.begin().await.map_err(Failure::Storage)?;
        let mut running = JoinSet::new();
        let mut loops = vec![tokio::spawn(left_over)];
        for feeding in feedings {
            let (broker, intakes, tasks) = feeding.run(&pipeline);
            loops.extend(tasks);
            let (stop, drain) = (shutdown.stop.clone(), shutdown.drain.clone());
            running.spawn(async move {
                let name = broker.name().clone();
                broker
                    .run(intakes, stop, drain)
                    .await
                    .with_context(|| format!("broker `{name}`"))
            });
        }
        info!(admin = %address, brokers = brokers.len(), subscriptions = config.subscriptions.len(), "hookbridge is running");
        if is_built_in {
            brokers::say_how_to_send(address);
        }
        let failed = loop {
            tokio::select! {
                asked = signals.next() => match asked {
                    Asked::Stop => break None,
                    Asked::Reload => {
                        // Beside what is listened for here: it may wait for a change to be carried out.
                        // What came of it is logged there.
                        let reloader = reloader.clone();
                        tokio::spawn(async move { reloader.reload().await });
                    }
                },
                ended = running.join_next(), if !running.is_empty() => match ended {
                    Some(Ok(Ok(()))) | None => {}
                    Some(Ok(Err(error))) => break Some(Failure::Broker(error)),
                    Some(Err(panicked)) => break Some(Failure::Broker(anyhow::anyhow!(panicked))),
                },
                ended = &mut following => match ended {
                    // Only when it is asked to stop.
                    Ok(Ok(())) => break None,
                    Ok(Err(error)) => break Some(error.into()),
                    Err(panicked) => break Some(Failure::Broker(anyhow::anyhow!(panicked))),
                },
                why = storage_failure(&store) => break Some(Failure::Storage(why)),
            }
        };
        let deadline = reloader.shutdown();
        info!(
            ?deadline,
            "stopping: taking no more, finishing what is in hand"
        );
        shutdown.stop.cancel();
        pipeline.leave_in_hand();
        tokio::spawn(signals.exit_on_second());
        let code = failed.as_ref().map_or(70, Failure::code);
        leave_after(deadline + EXIT_GRACE + LEAVE_GRACE, code);
        let enforcing = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.enforce(deadline).await }
        });
        let drained = async {
            let brokers = async { while running.join_next().await.is_some() {} };
            let _ = tokio::join!(brokers, operations.jobs.stop(), tending);
        };
        if tokio::time::timeout(deadline + EXIT_GRACE, drained)
            .await
            .is_err()
        {
            warn!("a broker or a job did not end in time; leaving without it");
        }
        enforcing.abort();
        for task in loops {
            task.abort();
        }
        journal::close(journal).await;
        taps.close();
        exporting.end().await;
        admin_stop.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(1), admin).await;
        if store.failure().is_some() {
            // A failed store would hang in its own destructor; nothing in it can be saved any more.
            let code = failed.as_ref().map_or(70, Failure::code);
            error!("leaving without closing the store, which has failed");
            std::process::exit(code);
        }
        if let Err(why) = pipeline.end().await {
            warn!(
                why = format!("{why:#}"),
                "the next start will take this for an unclean stop"
            );
        }
        info!("stopped");
        failed.map_or(Ok(()), Err)
    }
}

/// Names a config by its text, without what is put in for its secrets.
fn hash_of(from: &From) -> String {
    match from {
        From::File { hash, .. } => hash.clone(),
        From::BuiltIn => hex::encode(&Sha256::digest(config::TRY)[..6]),
    }
}

/// The brokers on which dead letters of ours lie.
fn keeping_letters(
    config: &Config,
    brokers: &BTreeMap<Arc<str>, Arc<dyn Broker>>,
) -> Vec<Arc<dyn Broker>> {
    let keeps = |name: &Arc<str>| {
        let settings = config.brokers.get(name);
        settings.is_some_and(|settings| settings.keeps_deliveries())
    };
    let keeping = brokers.iter().filter(|(name, _)| keeps(name));
    keeping.map(|(_, broker)| broker.clone()).collect()
}

/// The store's subscriptions with the endpoints of the config, ready for the snapshot.
fn compiled(store: &Store, config: &Config) -> Result<Vec<Subscription>, Failure> {
    let mut all = Vec::new();
    for record in store.subscriptions().map_err(Failure::store)? {
        let Some(endpoint) = config.endpoints.get(&record.spec.endpoint) else {
            warn!(subscription = %record.spec.name, endpoint = %record.spec.endpoint, "the endpoint of a stored subscription is not in the config; it is left out");
            continue;
        };
        let name = record.spec.name.clone();
        let compiled = Subscription::compile(record.uid, record.spec, endpoint.clone())
            .with_context(|| format!("subscription `{name}`"))
            .map_err(Failure::Config)?;
        all.push(compiled);
    }
    Ok(all)
}

/// Ends the process if it is still there then: whatever hangs, a stop has an end. On a thread of its
/// own, so that it does not need a runtime that still works.
fn leave_after(deadline: Duration, code: i32) {
    let thread = std::thread::Builder::new().name("leave".into());
    let spawned = thread.spawn(move || {
        std::thread::sleep(deadline);
        error!(?deadline, "stopping hangs, leaving at once");
        std::process::exit(code);
    });
    if let Err(error) = spawned {
        warn!(%error, "nothing watches over the stop");
    }
}

/// Returns when the store has failed.
async fn storage_failure(store: &Store) -> anyhow::Error {
    loop {
        if let Some(why) = store.failure() {
            return anyhow::anyhow!("the store has failed: {why}");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
