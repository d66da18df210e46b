//! The pipeline: the path of one event. The only place where stages meet.
//!
//! A broker hands over [`Received`](crate::broker::Received) through an intake ([`intake`]). A fresh
//! event is decoded where its source says so ([`decoding`]), and routed; each subscription that matches gets a delivery with a [`Ticket`](ticket::Ticket)
//! for the event's receipt. A delivery whose wait is over comes in beside it, with a receipt of its
//! own. Both are offered to the lane of their endpoint ([`lanes`]), which starts them, lets them wait
//! a little, or hands them back to be parked until it has a slot. Where several go in one request they
//! wait for each other first ([`batches`], [`together`]). What starts is attempted once ([`attempt`]),
//! the verdict is carried out ([`resolve`]): delivered, parked or dead-lettered, the latter two
//! confirmed by the broker ([`keeper`]). What hangs for long is parked beside its request
//! ([`release`]). An endpoint that has to agree before it gets anything is asked ([`handshakes`]).
//! What breaks a contract or is too old is not sent ([`terms`]), nor is what is only rehearsed ([`shadow`]). When
//! all deliveries of an event are resolved, its receipt is settled. While it is us who can reach
//! nobody, all this waits ([`egress`]). Anything that goes wrong on the way drops the ticket, and the
//! broker delivers again; what makes it go wrong three times is dead-lettered ([`suspects`]). What an
//! event would become can be looked at without any of it ([`preview`]); what is sent can be watched
//! ([`tap`]), one request sent on demand ([`trial`]), and what is noticed on the way is told to those who ask
//! ([`meta`]). What all endpoints of a tenant may use together is counted in [`tenants`]. Subscriptions come and go
//! one by one ([`register`]), or all at once ([`Pipeline::install`]).

mod attempt;
mod batches;
mod decoding;
mod door;
mod egress;
mod excerpt;
mod handshakes;
mod intake;
mod keeper;
mod lanes;
mod meta;
mod panics;
mod pauses;
mod preview;
mod receiver;
mod register;
mod release;
mod resolve;
mod shadow;
mod sources;
mod standing;
mod suspects;
mod tap;
mod target;
mod tenants;
mod terms;
mod ticket;
mod together;
mod trial;
mod under_way;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::broker::{Broker, Budget, Filling, Intakes, Received, parked};
use crate::decode::Decoder;
use crate::deliver::Courier;
use crate::delivery::{Delivery, WaitKind};
use crate::journal::{self, Journal};
use crate::meters::{Meters, SourceMeters};
use crate::render::SharedJson;
use crate::route::Routes;
use crate::spans::Spans;
use crate::store::Store;
use crate::subscription::{Subscription, Uid};

use self::egress::Egress;
use self::handshakes::Handshakes;
use self::keeper::Keeper;
use self::lanes::Lanes;
use self::meta::Desk;
use self::release::Ends;
use self::sources::{Side, Sources};
use self::suspects::{Suspects, Witness};
use self::target::{Parked, Target};
use self::tenants::{Pass, Tenants};
use self::ticket::Ticket;
use self::under_way::UnderWay;

pub use self::decoding::OverHttp;
pub use self::egress::Check;
pub use self::handshakes::HandshakeStatus;
pub use self::meta::Meta;
pub use self::preview::{Preview, Previewed};
pub use self::receiver::Receiver;
pub use self::register::Prepared;
pub use self::standing::{State, SubscriptionStatus, Wanted};
pub use self::tap::{Filter, Heard, Shown, ShownAnswer, Tap, Tapped, Taps};
pub use self::terms::Rules;
pub use self::trial::{MARK, NotTried, Tried, Turn};
pub use self::under_way::Running;

/// A delivery on its way, with the right to settle it.
pub struct Job {
    delivery: Delivery,
    target: Arc<Target>,
    keeper: Arc<Keeper>,
    ticket: Ticket,
    witness: Witness,
    /// The window that it was taken through.
    window: Filling,
    /// The event's body, decoded and parsed once for all that are made of it here.
    json: Option<SharedJson>,
    /// Where its tenant's deliveries are counted.
    pass: Option<Box<Pass>>,
}

/// A broker, the sources taken from it, and the windows of what it hands over.
pub struct BrokerPlan {
    pub broker: Arc<dyn Broker>,
    /// The broker that keeps retries and dead letters, where it is not this one.
    pub retries_on: Option<Arc<str>>,
    pub sources: Vec<SourcePlan>,
    /// Messages in flight of the retries, and of the holds.
    pub due_window: usize,
}

/// What the pipeline knows of a source.
pub struct SourcePlan {
    pub name: Arc<str>,
    /// Messages in flight.
    pub window: usize,
    pub rules: Rules,
    /// Where its messages are not to be read as they are.
    pub decoder: Option<Arc<Decoder>>,
    /// Its events say whose they are.
    pub has_tenants: bool,
    pub meters: SourceMeters,
}

/// What becomes of an event that no subscription matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unmatched {
    #[default]
    Settle,
    DeadLetter,
    Hold,
}

/// See the module.
pub struct Pipeline {
    routes: ArcSwap<Routes<Target>>,
    sources: Sources,
    lanes: Lanes,
    courier: Arc<Courier>,
    store: Arc<Store>,
    meters: Arc<Meters>,
    journal: Journal,
    spans: Spans,
    taps: Taps,
    meta: Meta,
    desk: Desk,
    egress: Egress,
    handshakes: Handshakes,
    under_way: UnderWay,
    suspects: Arc<Suspects>,
    ends: Ends,
    /// Messages in flight of all windows together, as they are at the start.
    windows: usize,
    /// While it is true nothing is taken.
    shut: watch::Sender<bool>,
    /// The process ends: no delivery waits for others any more.
    leaving: CancellationToken,
    /// Of each subscription, over reloads.
    parked: Mutex<BTreeMap<Uid, Arc<Parked>>>,
    /// One snapshot is made after the other.
    installing: Mutex<()>,
    /// So many have come and gone that all should be gathered.
    crowded: Notify,
    tenants: Tenants,
}

/// What is told of everything that happens.
pub struct Told {
    pub meters: Arc<Meters>,
    pub journal: Journal,
    pub spans: Spans,
    pub taps: Taps,
    pub meta: Meta,
}

/// One broker's intakes, to be given to its `run`, and the loops that empty them.
pub struct Feeding {
    pub broker: Arc<dyn Broker>,
    pub intakes: Intakes,
    loops: Vec<intake::Loop>,
}

impl Pipeline {
    /// A pipeline over these brokers, and for each of them its intakes. Nothing runs yet.
    /// `egress_check`: what is asked whether our own network works.
    pub fn new(
        plans: Vec<BrokerPlan>,
        courier: Arc<Courier>,
        store: Arc<Store>,
        told: Told,
        budget_bytes: usize,
        egress_check: Option<Check>,
    ) -> (Arc<Self>, Vec<Feeding>) {
        let Told {
            meters,
            journal,
            spans,
            taps,
            meta,
        } = told;
        let budget = Budget::new(budget_bytes);
        let windows: usize = plans
            .iter()
            .flat_map(|plan| &plan.sources)
            .map(|source| source.window)
            .sum();
        let due_windows: usize = plans.iter().map(|plan| plan.due_window * 2).sum();
        let shut = watch::channel(false).0;
        let mut pauses = BTreeMap::new();
        let mut keepers = BTreeMap::new();
        for plan in &plans {
            let name = plan.broker.name();
            let (pause, paused) = watch::channel(false);
            let keeper = Keeper::new(
                plan.broker.clone(),
                pause,
                meters.refusals(name),
                journal.clone(),
                meta.clone(),
            );
            keepers.insert(name.clone(), Arc::new(keeper));
            pauses.insert(name.clone(), paused);
        }
        let egress = Egress::new(egress_check, keepers.values().cloned().collect());
        let keeping = plans.iter().filter(|plan| plan.retries_on.is_none());
        let keeping = keeping.filter_map(|plan| keepers.get(plan.broker.name()).cloned());
        let all = keepers.values().cloned().collect();
        let desk = Desk::new(all, keeping.collect(), budget.clone());
        let suspects = Suspects::new(store.clone(), meters.clone());
        let sides = plans.iter().map(|plan| {
            let own = &keepers[plan.broker.name()];
            let keeper = keepers.get(plan.keeper_name()).unwrap_or(own).clone();
            let paused = pauses[keeper.broker.name()].clone();
            (plan.broker.name().clone(), Side::new(keeper, paused))
        });
        let (pace, shut_sources) = (suspects.pace(), shut.subscribe());
        let sources = Sources::new(sides.collect(), budget, pace, shut_sources);
        let (mut feedings, mut entering) = (Vec::new(), Vec::new());
        for plan in plans {
            let name = plan.broker.name().clone();
            let feeding = feeding(&plan, &sources, &pauses[&name], &keepers[&name]);
            feedings.push(feeding);
            let of_broker = plan.sources.into_iter();
            entering.extend(of_broker.map(|source| (name.clone(), source)));
        }
        for (broker, each) in sources.change(&[], entering, &store, &egress) {
            let feeding = feedings.iter_mut().find(|f| *f.broker.name() == broker);
            feeding.expect("a source has a broker").loops.push(each);
        }
        let tenants = Tenants::new(meters.clone());
        let pipeline = Arc::new(Self {
            routes: ArcSwap::from_pointee(Routes::build(std::iter::empty())),
            sources,
            lanes: Lanes::new((windows + due_windows) / 4),
            courier,
            store,
            meters,
            journal,
            spans,
            taps,
            meta,
            desk,
            egress,
            handshakes: Handshakes::default(),
            under_way: UnderWay::default(),
            suspects,
            ends: Ends::default(),
            windows: (windows + due_windows).max(1),
            shut,
            leaving: CancellationToken::new(),
            parked: Mutex::default(),
            installing: Mutex::default(),
            crowded: Notify::new(),
            tenants,
        });
        (pipeline, feedings)
    }

    /// Swaps in a complete snapshot of all subscriptions ([`register`] changes one). Deliveries under way
    /// are not touched; the new settings hold from their next attempt.
    pub fn install(
        &self,
        subscriptions: impl IntoIterator<Item = Subscription>,
    ) -> anyhow::Result<()> {
        self.install_with(subscriptions, Vec::new())
    }

    /// As [`Pipeline::install`], with some that are prepared already.
    pub fn install_with(
        &self,
        subscriptions: impl IntoIterator<Item = Subscription>,
        prepared: Vec<Prepared>,
    ) -> anyhow::Result<()> {
        let _turn = self
            .installing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut targets = Vec::new();
        for subscription in subscriptions {
            let prepared = self.prepare(subscription)?;
            targets.push(self.greeted(prepared));
        }
        targets.extend(prepared.into_iter().map(|one| self.greeted(one)));
        self.swap_in(targets);
        Ok(())
    }

    /// A delivery of so many bytes was put on a tier, or dropped from one, past this: for the count
    /// of what is parked.
    pub fn ordered(&self, deed: journal::Deed, delivery: &Delivery, size_bytes: usize) {
        use journal::Deed::{
            BroughtForward, Dropped, Edited, LetterRemoved, MadeOfLetter, SentAgain,
        };
        let routes = self.routes.load();
        let Some(target) = target_of(&routes, delivery) else {
            return;
        };
        match deed {
            SentAgain | MadeOfLetter => target.park_anyway(size_bytes),
            Dropped => target.unpark(size_bytes),
            BroughtForward | Edited | LetterRemoved => {}
        }
    }

    /// Has nothing taken, new or due, until it is opened again. Brokers connect and make ready meanwhile.
    pub fn shut(&self, is_shut: bool) {
        self.shut.send_replace(is_shut);
    }

    /// Reads how the last process ended, and goes carefully if that was a crash. Before anything is
    /// taken.
    pub async fn begin(&self) -> anyhow::Result<()> {
        Ok(self.suspects.begin().await?)
    }

    /// The process ends in order: what is in hand is no suspect.
    pub async fn end(&self) -> anyhow::Result<()> {
        Ok(self.suspects.end().await?)
    }

    /// Drops what is no longer used, now and then, for ever.
    pub async fn tidy(&self) {
        loop {
            tokio::time::sleep(Duration::from_secs(60)).await;
            self.lanes.drop_idle(Instant::now());
            self.suspects.forget(Timestamp::now());
        }
    }
}

impl BrokerPlan {
    fn keeper_name(&self) -> &Arc<str> {
        self.retries_on
            .as_ref()
            .unwrap_or_else(|| self.broker.name())
    }
}

/// What is to be fed of a broker, but for its sources.
fn feeding(
    plan: &BrokerPlan,
    sources: &Sources,
    paused: &watch::Receiver<bool>,
    keeper: &Arc<Keeper>,
) -> Feeding {
    let mut loops = Vec::new();
    let mut due = |kind: WaitKind| {
        let (intake, taken) = sources.open(plan.due_window, paused);
        let window = intake.filling();
        loops.push(intake::Loop::due(kind, keeper.clone(), window, taken));
        intake
    };
    let (retries, holds) = (due(WaitKind::Retry), due(WaitKind::Hold));
    let name = plan.broker.name();
    let sources = sources.wanted_of(name);
    Feeding {
        broker: plan.broker.clone(),
        intakes: Intakes {
            sources: sources.expect("the broker is known"),
            retries,
            holds,
            obeyed: Arc::new(|_, _| ()),
        },
        loops,
    }
}

/// Says which versions of the payload are on their way out here.
fn warn_of_versions(subscription: &Subscription) {
    let payload = &subscription.endpoint.payload;
    let of_sources = payload.of_sources.values();
    let of_sources = of_sources.filter(|_| payload.version.is_none());
    for version in payload.version.iter().chain(of_sources) {
        let shown = |at: Option<Timestamp>| at.map_or("-".to_owned(), |at| at.to_string());
        if version.deprecated.is_some() || version.sunset.is_some() {
            let (deprecated, sunset) = (shown(version.deprecated), shown(version.sunset));
            warn!(subscription = %subscription.spec.name, version = %version.name, deprecated, sunset, "this version of the payload is deprecated");
        }
    }
}

/// Whose a delivery is now: by its identity, or by a name that the subscription had before.
fn target_of<'a>(routes: &'a Routes<Target>, delivery: &Delivery) -> Option<&'a Arc<Target>> {
    let found = routes
        .by_uid(&delivery.uid)
        .or_else(|| routes.renamed(&delivery.subscription));
    // What was made for one tenant is not for the next one.
    found.filter(|target| target.subscription.spec.tenant == delivery.tenant)
}

/// An order about parked deliveries, as the journal calls it.
pub fn recorded(deed: parked::Deed) -> journal::Deed {
    match deed {
        parked::Deed::Now => journal::Deed::BroughtForward,
        parked::Deed::Drop => journal::Deed::Dropped,
    }
}

impl Feeding {
    /// Runs the loops that empty the intakes; ends when the broker has dropped its ends.
    pub fn run(
        mut self,
        pipeline: &Arc<Pipeline>,
    ) -> (Arc<dyn Broker>, Intakes, Vec<tokio::task::JoinHandle<()>>) {
        let (by, on) = (pipeline.clone(), self.broker.name().clone());
        self.intakes.obeyed = Arc::new(move |deed, delivery| {
            let deed = recorded(deed);
            by.journal.ordered(delivery, deed, &on, "");
            by.ordered(deed, delivery, delivery.event.size_bytes());
        });
        let tasks = self
            .loops
            .into_iter()
            .map(|each| tokio::spawn(each.run(pipeline.clone())))
            .collect();
        (self.broker, self.intakes, tasks)
    }
}

/// The channel end that a loop empties.
type Taken = tokio::sync::mpsc::Receiver<Received>;
