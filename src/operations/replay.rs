//! Replay: what a source made in a span of time, sent again to one subscription.
//!
//! For a receiver that answered 200 and lost an hour, and for a new one that wants what was before.
//! Each event of the span that the subscription matches as it is now becomes a delivery with the
//! same `webhook-id` and a fresh budget of attempts, and is handed to the broker's tiers as due at
//! once. Other subscriptions get nothing, and the source's own reading goes on undisturbed.
//!
//! Only what the broker has confirmed counts as sent. A replay that is interrupted says how far it
//! came; started again from there it repeats at most what was under way, which receivers tell by
//! the `webhook-id`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::job::TooMany;
use super::said::Said;
use super::{Job, Operations, Pace};
use crate::broker::{Broker, History, NotPossible, Refused, Span, Wait};
use crate::decode::Decoder;
use crate::delivery::{Delivery, DeliveryId, WaitKind};
use crate::event::Event;
use crate::pipeline::{Receiver, State};
use crate::route::Routes;
use crate::selection::{Facts, Selection};
use crate::subscription::{LazyJson, Rate, Subscription, Uid};

/// What the jobs are called: one that sends, and one that only counts.
pub const OPERATIONS: [&str; 2] = ["replay", "replay_dry_run"];
/// Without a rate: so many a second, or fewer where the endpoint takes fewer.
pub const DEFAULT_RATE: Rate = Rate {
    count: 50,
    per: Duration::from_secs(1),
};
/// Deliveries on their way to the tiers at once.
const AT_ONCE: usize = 64;
/// How long a broker that does not take a delivery is asked again.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a replay waits for a subscription for which too much waits already.
const CROWDED: Duration = Duration::from_secs(60);
const BACKOFF: Duration = Duration::from_millis(500);
/// One more than a first delivery has, so that a letter of the first one keeps its place.
const GENERATION: u32 = 1;

/// What is to be replayed.
#[derive(Debug, Clone)]
pub struct Request {
    pub source: String,
    pub subscription: String,
    pub span: Span,
    /// `None`: [`DEFAULT_RATE`], or what the endpoint takes.
    pub rate: Option<Rate>,
    pub filter: Selection,
    /// Count only.
    pub dry_run: bool,
}

/// Why a replay was not begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotStarted {
    #[error("there is no source `{name}`{}", known(.there))]
    UnknownSource { name: String, there: Vec<String> },
    #[error("there is no subscription `{0}`")]
    UnknownSubscription(String),
    /// It is in a state in which nothing would be delivered.
    #[error("{0}")]
    NotReceiving(String),
    #[error("{0}")]
    BadSpan(String),
    #[error(transparent)]
    NotPossible(#[from] NotPossible),
    #[error(transparent)]
    TooMany(#[from] TooMany),
}

fn known(there: &[String]) -> String {
    match there {
        [] => String::new(),
        names => format!("; there is {}", names.join(", ")),
    }
}

/// Checks everything and starts the job.
pub async fn start(
    operations: &Arc<Operations>,
    mut request: Request,
) -> Result<Arc<Job>, NotStarted> {
    check(request.span, Timestamp::now())?;
    let sources = operations.sources();
    let Some(source) = sources.get(&*request.source) else {
        return Err(NotStarted::UnknownSource {
            name: request.source.clone(),
            there: sources.keys().map(|n| n.to_string()).collect(),
        });
    };
    let receiver = Arc::new(receiver(operations, &request)?);
    let broker = |name: &Arc<str>| {
        let found = operations.brokers.get(name).cloned();
        found.ok_or_else(|| NotPossible::Unavailable(format!("broker `{name}` is not here")))
    };
    // The past ends now: what comes later is delivered as it comes, and is not done with.
    let now = Timestamp::now();
    let is_cut = request.span.until > now;
    request.span.until = request.span.until.min(now);
    let past = broker(&source.broker)?
        .history(&request.source, request.span)
        .await?;
    let keeper = broker(&source.keeper)?;
    let decoder = operations.decoder(&request.source);
    let pace = rate_of(&request, &receiver.subscription);
    let operation = OPERATIONS[usize::from(request.dry_run)];
    let job = operations.jobs.start(operation, |job| {
        job.expects(past.total());
        for note in past.notes() {
            job.note(note);
        }
        if is_cut {
            job.note(format!(
                "`until` lies in the future: this goes up to now, {now:.0}"
            ));
        }
        if request.rate.is_none() && !request.dry_run {
            job.note(format!(
                "sending at {} a second: say otherwise with a rate",
                per_second(pace)
            ));
        }
        if !receiver.is_served() && !request.dry_run {
            job.note("no bridge runs here: what is sent waits on the broker until one does");
        }
        let replay = Replay {
            job,
            keeper,
            decoder,
            pace: Pace::new((!request.dry_run).then_some(pace)),
            routes: Routes::build([receiver.clone()]),
            receiver,
            request,
            under_way: VecDeque::new(),
            stuck: false,
            count: 0,
            bytes: 0,
        };
        replay.run(past)
    })?;
    Ok(job)
}

/// A span in which there can be something.
fn check(span: Span, now: Timestamp) -> Result<(), NotStarted> {
    let Span { since, until } = span;
    if since > now {
        let why =
            format!("the range begins in the future: `since` is {since}, and now is {now:.0}");
        return Err(NotStarted::BadSpan(why));
    }
    if since >= until {
        let why = format!("the range is empty: `since` ({since}) is not before `until` ({until})");
        return Err(NotStarted::BadSpan(why));
    }
    Ok(())
}

/// The subscription, if it is one that anything would be delivered to now.
fn receiver(operations: &Operations, request: &Request) -> Result<Receiver, NotStarted> {
    let name = &request.subscription;
    let Some(receiver) = operations.receiver(name) else {
        return Err(NotStarted::UnknownSubscription(name.clone()));
    };
    let why = match receiver.state {
        State::Active => None,
        State::Paused => Some(format!(
            "subscription `{name}` is paused: resume it first, or what is replayed only waits"
        )),
        State::Disabled => Some(format!(
            "subscription `{name}` is disabled, because its endpoint is gone or asked for it: enable it first"
        )),
        State::Unverified => Some(format!(
            "the endpoint of subscription `{name}` has not agreed to get deliveries: what is replayed would only wait"
        )),
        State::Off => Some(format!(
            "subscription `{name}` is not enabled (`enabled: false`)"
        )),
    };
    let sources = &receiver.subscription.spec.sources;
    let others = !sources.is_empty() && !sources.iter().any(|s| **s == *request.source);
    let why = why.or_else(|| {
        let source = &request.source;
        others.then(|| {
            format!("subscription `{name}` takes nothing from source `{source}` (its `sources`)")
        })
    });
    match why {
        Some(why) => Err(NotStarted::NotReceiving(why)),
        None => Ok(receiver),
    }
}

fn rate_of(request: &Request, subscription: &Subscription) -> Rate {
    let own = subscription.endpoint.rate;
    let slower = own.filter(|rate| rate.interval() > DEFAULT_RATE.interval());
    request.rate.or(slower).unwrap_or(DEFAULT_RATE)
}

fn per_second(rate: Rate) -> String {
    let each = f64::from(rate.count) / rate.per.as_secs_f64();
    format!("{each:.1}").trim_end_matches(".0").to_owned()
}

/// A replay at work.
struct Replay {
    job: Arc<Job>,
    keeper: Arc<dyn Broker>,
    /// Of the source.
    decoder: Option<Arc<Decoder>>,
    pace: Pace,
    receiver: Arc<Receiver>,
    /// Of the one subscription.
    routes: Routes<Receiver>,
    request: Request,
    /// In the order of the events.
    under_way: VecDeque<Sending>,
    /// One could not be sent: those behind it do not move the place that was reached.
    stuck: bool,
    count: u64,
    bytes: u64,
}

/// A delivery on its way to the tiers.
struct Sending {
    reached: Option<Timestamp>,
    task: JoinHandle<anyhow::Result<Sent>>,
}

enum Sent {
    /// So many bytes wait on the broker now.
    Kept(usize),
    TooLarge,
    /// The job was cancelled before the broker took it.
    Not,
}

impl Replay {
    async fn run(mut self, mut past: Box<dyn History>) -> anyhow::Result<()> {
        let mut ended = self.send_all(&mut *past).await;
        while !self.under_way.is_empty() {
            let finished = self.finish(0).await;
            ended = ended.and(finished);
        }
        if ended.is_ok() && !self.job.cancelled().is_cancelled() {
            self.job.reached(self.request.span.until);
        }
        ended
    }

    async fn send_all(&mut self, past: &mut dyn History) -> anyhow::Result<()> {
        let cancelled = self.job.cancelled().clone();
        loop {
            let next = tokio::select! { biased;
                () = cancelled.cancelled() => return Ok(()),
                next = past.next() => next?,
            };
            let Some(event) = next else { return Ok(()) };
            let reached = past.reached();
            self.job.saw();
            if !self.wants(&event).await? {
                self.finish(AT_ONCE).await?;
                self.passed(reached);
                continue;
            }
            self.job.matched();
            if self.request.dry_run {
                self.job.did();
                self.passed(reached);
                continue;
            }
            if !self.pace.turn(&self.job).await || !self.room(&event).await? {
                return Ok(());
            }
            self.finish(AT_ONCE - 1).await?;
            self.send(event, reached);
        }
    }

    /// One that is not sent does not hold the place up.
    fn passed(&self, reached: Option<Timestamp>) {
        if let Some(at) = reached.filter(|_| self.under_way.is_empty()) {
            self.job.reached(at);
        }
    }

    /// By what the event says, as its source decodes it. What cannot be decoded is nobody's then either.
    async fn wants(&self, event: &Event) -> anyhow::Result<bool> {
        if !self.routes.has_candidate(event) {
            return Ok(false);
        }
        let said = Said::by(self.decoder.as_ref(), event).await;
        let said = match said.map_err(anyhow::Error::msg)? {
            Said::Undecodable => {
                self.job.skipped("it cannot be decoded");
                return Ok(false);
            }
            said => said,
        };
        let body = LazyJson::new(said.body(event));
        let mut matched = false;
        self.routes.visit(event, &body, |_| matched = true);
        if !matched || self.request.filter.is_everything() {
            return Ok(matched);
        }
        let Subscription { uid, spec, .. } = &self.receiver.subscription;
        let delivery = DeliveryId::of(&event.id, uid);
        Ok(self.request.filter.matches(&Facts {
            subscription: Some(&spec.name),
            kind: Some(&event.kind),
            topic: Some(&event.topic),
            source: Some(&event.source),
            broker: Some(&event.origin.broker),
            at: event.published_at,
            ids: [Some(event.id.as_str()), Some(delivery.as_str()), None],
            body: Some(&body),
            ..Facts::default()
        }))
    }

    /// Waits while too much waits for the subscription already. `false`: cancelled meanwhile.
    async fn room(&mut self, event: &Event) -> anyhow::Result<bool> {
        let spec = &self.receiver.subscription.spec;
        if !self.receiver.is_served() {
            self.count += 1;
            self.bytes += event.size_bytes() as u64;
            let limit = spec.max_parked;
            anyhow::ensure!(
                self.count <= limit.count && self.bytes <= limit.bytes,
                "`max_parked` of subscription `{}` is reached: start the bridge, and go on when it has delivered these",
                spec.name
            );
        }
        let until = Instant::now() + CROWDED;
        while self.receiver.is_crowded() {
            anyhow::ensure!(
                Instant::now() < until,
                "half of `max_parked` of subscription `{}` waits on the broker already, and does not become less: go on when its receiver has caught up",
                spec.name
            );
            tokio::select! {
                () = self.job.cancelled().cancelled() => return Ok(false),
                () = sleep(BACKOFF) => {}
            }
        }
        Ok(true)
    }

    fn send(&mut self, event: Arc<Event>, reached: Option<Timestamp>) {
        let Subscription { uid, spec, .. } = &self.receiver.subscription;
        let delivery = delivery(event, spec.name.clone(), uid.clone());
        let delivery = delivery.of_tenant(spec.tenant.clone());
        let (keeper, job) = (self.keeper.clone(), self.job.clone());
        let task = tokio::spawn(async move { send(&*keeper, &delivery, &job).await });
        self.under_way.push_back(Sending { reached, task });
    }

    /// Counts what has been sent, in order, until at most so many are under way.
    async fn finish(&mut self, most: usize) -> anyhow::Result<()> {
        while let Some(first) = self.under_way.front()
            && (self.under_way.len() > most || first.task.is_finished())
        {
            let Some(Sending { reached, task }) = self.under_way.pop_front() else {
                return Ok(());
            };
            match task.await.map_err(anyhow::Error::from).flatten() {
                Ok(Sent::Kept(size_bytes)) => {
                    self.receiver.parked(size_bytes);
                    self.job.did();
                }
                Ok(Sent::TooLarge) => self.job.skipped("larger than the retry tiers take"),
                Ok(Sent::Not) => self.stuck = true,
                Err(error) => {
                    self.stuck = true;
                    return Err(error);
                }
            }
            if let Some(at) = reached.filter(|_| !self.stuck) {
                self.job.reached(at);
            }
        }
        Ok(())
    }
}

fn delivery(event: Arc<Event>, subscription: Arc<str>, uid: Uid) -> Delivery {
    Delivery {
        generation: GENERATION,
        ..Delivery::first(event, subscription, uid, Timestamp::now())
    }
}

/// Has the broker keep a delivery that is due at once, trying for a while.
async fn send(keeper: &dyn Broker, delivery: &Delivery, job: &Job) -> anyhow::Result<Sent> {
    let wait = Wait {
        kind: WaitKind::Hold,
        delay: Duration::ZERO,
    };
    let until = Instant::now() + PATIENCE;
    loop {
        match keeper.park(delivery, wait).await {
            Ok(()) => return Ok(Sent::Kept(delivery.event.size_bytes())),
            Err(Refused::TooLarge { .. }) => return Ok(Sent::TooLarge),
            Err(Refused::Unavailable { .. }) if Instant::now() < until => {}
            Err(refused) => return Err(refused.into()),
        }
        tokio::select! {
            () = job.cancelled().cancelled() => return Ok(Sent::Not),
            () = sleep(BACKOFF) => {}
        }
    }
}
