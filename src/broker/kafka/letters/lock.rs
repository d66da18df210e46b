//! The replay lock: the one partition of topic `<group>.replay`, owned by a consumer group of the
//! same name.
//!
//! Who has the partition holds the lock, and loses it 6 s after it has died, when the group notices.
//! The assignor is sticky, so that a newcomer is never given what somebody has; and a newcomer looks
//! before it joins, which also tells who the holder is. A thread polls, so that the group hears of
//! us however slowly the letters are gone through.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::debug;

use super::names;
use crate::broker::NotOpened;
use crate::broker::kafka::client::{ASK, Connection, Quiet, Reset, blocking};
use crate::broker::kafka::{Kafka, topics};
use crate::broker::letters::PATIENCE;

/// The shortest that clusters allow unless told otherwise.
const SESSION: &str = "6000";
/// How long joining may take: an empty group is given 3 s for others to come, by default.
const JOIN: Duration = Duration::from_secs(20);
/// Between looks at the group.
const LOOK: Duration = Duration::from_millis(250);

/// How long leaving the group may take.
const LEAVE: Duration = Duration::from_secs(5);

/// The lock, held until this is dropped or [`Lock::is_lost`].
pub struct Lock {
    state: Arc<State>,
    polling: Option<JoinHandle<()>>,
}

impl Lock {
    /// Whether the group has taken the lock away: this process did not run for too long, or the
    /// cluster was not reached.
    pub fn is_lost(&self) -> bool {
        !self.state.held.load(Ordering::Acquire)
    }

    /// Gives the lock up and returns when the group knows.
    pub async fn release(mut self) {
        self.state.given_up.store(true, Ordering::Release);
        if let Some(polling) = self.polling.take() {
            let _ = timeout(LEAVE, polling).await;
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.state.given_up.store(true, Ordering::Release);
    }
}

/// What the polling thread and the holder share.
#[derive(Default)]
struct State {
    /// The group has given us the partition.
    held: AtomicBool,
    /// The group has answered at all.
    answered: AtomicBool,
    /// The lock is not wanted any more.
    given_up: AtomicBool,
}

/// Takes the lock of `group`, ours or one that is adopted, or says who has it.
pub async fn hold(kafka: &Kafka, group: &str) -> Result<Lock, NotOpened> {
    let failed = |error: anyhow::Error| NotOpened::Refused(kafka.unavailable(&error));
    let topic = names::replay(group);
    topics::ensure_lock(&kafka.admin, group, kafka.settings.declare)
        .await
        .map_err(failed)?;
    let until = Instant::now() + PATIENCE;
    loop {
        match try_to_hold(&kafka.connection, &topic)
            .await
            .map_err(failed)?
        {
            Ok(lock) => return Ok(lock),
            Err(holder) if Instant::now() >= until => return Err(NotOpened::Busy(holder)),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// The lock, or who has it.
async fn try_to_hold(connection: &Connection, topic: &str) -> anyhow::Result<Result<Lock, String>> {
    let mut config = connection.member(topic, None, Reset::Earliest);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let me = format!(
        "hookbridge process {} on {}",
        std::process::id(),
        host.trim()
    );
    config
        .set("client.id", &me)
        .set("session.timeout.ms", SESSION)
        // A holder that hangs must not keep newcomers waiting for its answer.
        .set("max.poll.interval.ms", "10000");
    let state = Arc::new(State::default());
    let context = Seen(state.clone());
    let topic = topic.to_owned();
    let asked = topic.clone();
    let (member, others) = blocking(move || {
        let member: BaseConsumer<Seen> = config.create_with_context(context)?;
        let others = members(&member, &asked)?;
        Ok((member, others))
    })
    .await?;
    if let Some(holder) = others.into_iter().next() {
        drop_elsewhere(member);
        return Ok(Err(holder));
    }
    let (reply, answer) = oneshot::channel();
    let polling = Polling {
        member,
        topic,
        state: state.clone(),
    };
    // From here on the thread lets go when the lock is dropped, or was never taken over.
    let mut lock = Lock {
        state,
        polling: None,
    };
    lock.polling = Some(tokio::task::spawn_blocking(move || polling.run(reply)));
    let outcome = answer.await.context("the replay lock's thread has ended")?;
    Ok(outcome?.map(|()| lock))
}

/// Closing may block.
fn drop_elsewhere(member: BaseConsumer<Seen>) {
    tokio::task::spawn_blocking(move || drop(member));
}

/// Who is in the group, beside ourselves once we are.
fn members(member: &BaseConsumer<Seen>, group: &str) -> anyhow::Result<Vec<String>> {
    let list = member
        .fetch_group_list(Some(group), ASK)
        .context("asking who holds the replay lock")?;
    let groups = list.groups().iter().filter(|found| found.name() == group);
    let all = groups.flat_map(|found| found.members());
    Ok(all
        .map(|m| {
            format!(
                "{} ({})",
                m.client_id(),
                m.client_host().trim_start_matches('/')
            )
        })
        .collect())
}

struct Polling {
    member: BaseConsumer<Seen>,
    topic: String,
    state: Arc<State>,
}

impl Polling {
    /// Blocks as long as the lock is held.
    fn run(self, reply: oneshot::Sender<anyhow::Result<Result<(), String>>>) {
        let joined = self.join();
        let held = matches!(joined, Ok(Ok(())));
        let wanted = reply.send(joined).is_ok();
        while held && wanted && !self.state.given_up.load(Ordering::Acquire) {
            self.poll();
            if !self.state.held.load(Ordering::Acquire) {
                break;
            }
        }
        // Dropping the member leaves the group, which is free for the next one at once.
        self.member.unsubscribe();
    }

    /// What the client reports, if anything.
    fn poll(&self) -> Option<KafkaError> {
        let error = self.member.poll(Duration::from_millis(100))?.err()?;
        debug!(%error, "the replay lock's client reports");
        Some(error)
    }

    fn join(&self) -> anyhow::Result<Result<(), String>> {
        self.member.subscribe(&[&self.topic])?;
        let until = Instant::now() + JOIN;
        let mut reported = None;
        while Instant::now() < until && !self.state.given_up.load(Ordering::Acquire) {
            reported = self.poll().or(reported);
            if self.state.held.load(Ordering::Acquire) {
                return Ok(Ok(()));
            }
            if self.state.answered.swap(false, Ordering::AcqRel) {
                // Nothing for us. Of several members one has it; alone, the topic is new and the
                // partition still to come.
                let others = members(&self.member, &self.topic)?;
                if others.len() > 1 {
                    return Ok(Err(others.join(", or ")));
                }
            }
        }
        let why = reported.map_or_else(String::new, |error| format!(": {error}"));
        bail!(
            "the cluster did not say within {JOIN:?} who holds the replay lock (group {}){why}",
            self.topic
        )
    }
}

/// Hears what the group decides.
struct Seen(Arc<State>);

impl ClientContext for Seen {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Quiet.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Quiet.error(error, reason);
    }
}

impl ConsumerContext for Seen {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(partitions) = rebalance
            && partitions.count() > 0
        {
            self.0.held.store(false, Ordering::Release);
        }
    }

    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(partitions) = rebalance {
            if partitions.count() > 0 {
                self.0.held.store(true, Ordering::Release);
            }
            self.0.answered.store(true, Ordering::Release);
        }
    }
}
