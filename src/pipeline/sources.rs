//! Sources: those that are taken from, which come, change and go while everything runs.
//!
//! A source that is replaced gets an intake of its own and a loop behind it; the loop before it ends
//! when its broker has finished with what it took, and the broker begins the new one only then. What
//! a source asks of single events is changed in place ([`Pipeline::set_rules`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;

use super::egress::Egress;
use super::intake::Loop;
use super::keeper::Keeper;
use super::pauses::Pause;
use super::terms::Rules;
use super::{Pipeline, SourcePlan};
use crate::broker::{Budget, Intake, SourceIntakes, Window};
use crate::decode::Decoder;
use crate::store::Store;

/// All sources, by name.
type Known = BTreeMap<Arc<str>, Arc<Source>>;

pub struct Sources {
    known: ArcSwap<Known>,
    brokers: BTreeMap<Arc<str>, Side>,
    budget: Budget,
    pace: watch::Receiver<usize>,
    shut: watch::Receiver<bool>,
    /// One change after the other.
    changing: Mutex<()>,
}

/// A source, as the pipeline knows it while it is taken from.
pub struct Source {
    pub rules: Arc<ArcSwap<Rules>>,
    /// Where its messages are not to be read as they are.
    pub decoder: Option<Arc<Decoder>>,
    pub pause: Arc<Pause>,
    broker: Arc<str>,
    intake: Intake,
}

impl Source {
    /// It is taken from no more as it is: what waits for its schema registry is left to be taken again.
    pub fn leave(&self) {
        if let Some(decoder) = &self.decoder {
            decoder.leave();
        }
    }
}

/// A broker, as its sources see it.
pub struct Side {
    /// Keeps what waits of its sources.
    pub keeper: Arc<Keeper>,
    /// While that refuses.
    pub paused: watch::Receiver<bool>,
    wanted: watch::Sender<Arc<SourceIntakes>>,
}

impl Side {
    pub fn new(keeper: Arc<Keeper>, paused: watch::Receiver<bool>) -> Self {
        Self {
            keeper,
            paused,
            wanted: watch::channel(Arc::default()).0,
        }
    }
}

impl Sources {
    /// None yet.
    pub fn new(
        brokers: BTreeMap<Arc<str>, Side>,
        budget: Budget,
        pace: watch::Receiver<usize>,
        shut: watch::Receiver<bool>,
    ) -> Self {
        Self {
            known: ArcSwap::default(),
            brokers,
            budget,
            pace,
            shut,
            changing: Mutex::default(),
        }
    }

    pub fn all(&self) -> Guard<Arc<Known>> {
        self.known.load()
    }

    /// Those that a broker is to take from, as they change.
    pub fn wanted_of(&self, broker: &str) -> Option<watch::Receiver<Arc<SourceIntakes>>> {
        Some(self.brokers.get(broker)?.wanted.subscribe())
    }

    /// An intake that is paused as `paused` says, and the end of it that a loop empties.
    pub fn open(&self, window: usize, paused: &watch::Receiver<bool>) -> (Intake, super::Taken) {
        let (intake, taken) = Intake::new(Window::new(window), self.budget.clone(), paused.clone());
        let intake = intake.paced(self.pace.clone()).shut_by(self.shut.clone());
        (intake, taken)
    }

    /// Takes no longer from `leaving`, and takes from `entering`, each of a broker; one that is there
    /// already is replaced. Gives back what is to be run for those that enter, by broker.
    pub fn change(
        &self,
        leaving: &[Arc<str>],
        entering: Vec<(Arc<str>, SourcePlan)>,
        store: &Store,
        egress: &Egress,
    ) -> Vec<(Arc<str>, Loop)> {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = Known::clone(&self.known.load());
        let mut concerned = BTreeSet::new();
        for name in leaving {
            if let Some(source) = known.remove(name) {
                self.retire(name, &source);
                egress.gauges.remove(name);
                source.pause.forget();
                concerned.insert(source.broker.clone());
            }
        }
        let mut loops = Vec::new();
        for (broker, plan) in entering {
            let Some(side) = self.brokers.get(&broker) else {
                continue;
            };
            let pause = match known.get(&plan.name) {
                Some(before) => {
                    self.retire(&plan.name, before);
                    concerned.insert(before.broker.clone());
                    before.pause.clone()
                }
                None => Arc::new(Pause::new(&plan, store)),
            };
            concerned.insert(broker.clone());
            let (intake, taken) = self.open(plan.window, &side.paused);
            let intake = intake.held_by(pause.held());
            let (name, meters) = (&plan.name, &plan.meters);
            side.keeper
                .gauges
                .add(name, meters.paused_by_broker.clone());
            egress.gauges.add(name, meters.paused_by_egress.clone());
            let rules = Arc::new(ArcSwap::from_pointee(plan.rules.clone()));
            let source = Source {
                rules: rules.clone(),
                decoder: plan.decoder.clone(),
                pause,
                broker: broker.clone(),
                intake: intake.clone(),
            };
            known.insert(name.clone(), Arc::new(source));
            let (keeper, window) = (side.keeper.clone(), intake.filling());
            let looping = Loop::source(plan, rules, intake.closed(), keeper, window, taken);
            loops.push((broker, looping));
        }
        // Before the brokers hear of it, so that what they hand over is of a source that is known.
        let known = Arc::new(known);
        self.known.store(known.clone());
        for (name, side) in &self.brokers {
            if !concerned.contains(name) {
                continue;
            }
            let own = known.iter().filter(|(_, source)| source.broker == *name);
            let wanted: SourceIntakes = own
                .map(|(name, source)| (name.clone(), source.intake.clone()))
                .collect();
            side.wanted.send_replace(Arc::new(wanted));
        }
        loops
    }

    /// What a source that leaves or is replaced has held up goes on without it.
    fn retire(&self, name: &str, source: &Source) {
        source.leave();
        if let Some(side) = self.brokers.get(&source.broker) {
            side.keeper.gauges.remove(name);
        }
    }
}

impl Pipeline {
    /// Lets messages of so many bytes be in flight, of all sources together.
    pub fn set_budget(&self, bytes: usize) {
        self.sources.budget.resize(bytes);
    }

    /// Takes nothing more from these sources as they are. What was handed over and is not routed yet goes
    /// back to its broker. Each of them is then to be changed ([`Pipeline::change_sources`]).
    pub fn close_sources<'a>(&self, names: impl Iterator<Item = &'a Arc<str>>) {
        let known = self.sources.all();
        for source in names.filter_map(|name| known.get(name)) {
            source.intake.close();
        }
    }

    /// Takes no longer from `leaving`, and takes from `entering`, each of the broker of this name, which
    /// has been told of it; one that is there already is replaced. What is in hand is not touched.
    pub fn change_sources(
        self: &Arc<Self>,
        leaving: &[Arc<str>],
        entering: Vec<(Arc<str>, SourcePlan)>,
    ) {
        let loops = self
            .sources
            .change(leaving, entering, &self.store, &self.egress);
        for (_, each) in loops {
            tokio::spawn(each.run(self.clone()));
        }
    }
}

/// Gauges that say the same of many sources, of those that come later too.
#[derive(Default)]
pub struct Gauges(Mutex<Same>);

#[derive(Default)]
struct Same {
    value: i64,
    all: BTreeMap<Arc<str>, Gauge>,
}

impl Gauges {
    fn add(&self, source: &Arc<str>, gauge: Gauge) {
        let mut same = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gauge.set(same.value);
        same.all.insert(source.clone(), gauge);
    }

    fn remove(&self, source: &str) {
        let mut same = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gauge) = same.all.remove(source) {
            gauge.set(0);
        }
    }

    pub fn set(&self, value: i64) {
        let mut same = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        same.value = value;
        for gauge in same.all.values() {
            gauge.set(value);
        }
    }
}
