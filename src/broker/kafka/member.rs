//! A member of a consumer group: what it was assigned, and the commits of that.
//!
//! The group's wishes are not granted inside the library's callback but noted there and granted
//! from the consumer's own loop ([`Member::turn`]): looking up offsets, and up to two seconds in
//! which what is in hand may be settled before partitions go, then never block the poll. Nothing
//! is committed for partitions that were lost rather than revoked.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::client::{Bootstrap, blocking, fatal};
use super::commits::{self, Committed, committed};
use super::noted::{Closing, Consumer, Noted, Wish, grant_all};
use super::partition::{Partition, Pulse};
use super::watermark::Watermark;
use crate::meters::SourceMeters;

const COMMIT_EVERY: Duration = Duration::from_millis(200);
/// How long what is in hand may take when partitions are revoked.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);
/// How long closing may take: leaving the group and the last answers.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// Between two times that the library's thread is woken for sure.
const NUDGE_EVERY: Duration = Duration::from_secs(1);
/// For so long after all brokers went down it is told of them again: while the library still lets go of
/// one it does not take the same anew.
const BOOTSTRAP_FOR: Duration = Duration::from_secs(10);
/// Before offsets are looked up again.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(1);

/// Partitions that went without a chance to commit, for the case that they come back to us. Kept
/// beyond a member, since one that is fenced is replaced by another: a broker that was killed does
/// that to members that nobody has replaced.
#[derive(Default)]
pub struct Lost(Mutex<HashMap<Place, Arc<Partition>>>);

/// Topic and number of a partition.
type Place = (Arc<str>, i32);

impl Lost {
    fn keep(&self, partition: Arc<Partition>) {
        partition.lose();
        let place = (partition.topic.clone(), partition.number);
        self.lock().insert(place, partition);
    }

    fn take(&self, topic: &Arc<str>, number: i32) -> Option<Arc<Partition>> {
        self.lock().remove(&(topic.clone(), number))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Place, Arc<Partition>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A change of the assignment that is under way.
enum Change {
    /// The committed offsets of what we get are being looked up.
    Coming(TopicPartitionList, JoinHandle<anyhow::Result<Committed>>),
    /// What we lose is being finished, until then.
    Going(TopicPartitionList, Instant),
}

/// Where a partition without a committed offset begins.
pub type Begin = Arc<dyn Fn(&str, i32) -> Offset + Send + Sync>;

pub struct Member {
    /// For logs: the source's name, or what the tiers are called.
    label: Arc<str>,
    pub consumer: Arc<Consumer>,
    pub pulse: Arc<Pulse>,
    meters: Option<SourceMeters>,
    begin: Begin,
    partitions: HashMap<Arc<str>, BTreeMap<i32, Arc<Partition>>>,
    lost: Arc<Lost>,
    epoch: u64,
    change: Option<Change>,
    /// To be begun anew, and from where on.
    anew: Vec<(Arc<Partition>, i64)>,
    look_up_at: Instant,
    commit_at: Instant,
    nudge_at: Instant,
    bootstrap: Bootstrap,
    bootstrap_until: Instant,
    paused: bool,
    /// Since when the group owes an answer: from the start, and after partitions have been revoked or
    /// lost, it gives an assignment, if only an empty one, and the offsets committed for that.
    unanswered_since: Option<Instant>,
    _closing: Closing,
}

impl Member {
    pub fn new(
        label: Arc<str>,
        config: &ClientConfig,
        begin: Begin,
        lost: Arc<Lost>,
        meters: Option<SourceMeters>,
    ) -> anyhow::Result<Self> {
        let pulse = Arc::new(Pulse::default());
        let noted = Noted::new(pulse.clone());
        let bootstrap = config.get("bootstrap.servers").unwrap_or_default();
        let consumer: Consumer = config.create_with_context(noted)?;
        let consumer = Arc::new(consumer);
        let now = Instant::now();
        Ok(Self {
            _closing: Closing(consumer.clone()),
            label,
            consumer,
            pulse,
            meters,
            begin,
            partitions: HashMap::new(),
            lost,
            epoch: 0,
            change: None,
            anew: Vec::new(),
            look_up_at: now,
            commit_at: now,
            nudge_at: now,
            bootstrap: Bootstrap::new(bootstrap),
            bootstrap_until: now,
            paused: false,
            unanswered_since: Some(now),
        })
    }

    pub fn partition(&self, topic: &str, number: i32) -> Option<&Arc<Partition>> {
        self.partitions.get(topic)?.get(&number)
    }

    pub fn partitions(&self) -> impl Iterator<Item = &Arc<Partition>> {
        self.partitions.values().flat_map(BTreeMap::values)
    }

    /// Records in somebody's hands, of all partitions.
    pub fn in_hand(&self) -> usize {
        self.partitions().map(|p| p.in_hand()).sum()
    }

    /// Since when the group owes this member an assignment and its offsets, if it does.
    pub fn unanswered_since(&self) -> Option<Instant> {
        self.unanswered_since
    }

    /// Why this client is useless for good, if it is.
    pub fn fatal(&self) -> Option<String> {
        fatal(self.consumer.client())
    }

    /// Grants what the group wishes, seeks back to what was given back, commits what is due.
    /// Called between polls, at least every 200 ms; never blocks. Whether the assignment changed.
    pub fn turn(&mut self) -> bool {
        let now = Instant::now();
        self.note_commits();
        let changed = self.grant(now);
        self.renew();
        self.seek(now);
        self.nudge(now);
        if now >= self.commit_at || self.pulse.many_answers() {
            self.commit();
        }
        changed
    }

    fn grant(&mut self, now: Instant) -> bool {
        match self.change.take() {
            None => {
                match self.consumer.context().next_wish() {
                    None => return false,
                    Some(Wish::Assign(list)) => self.change = Some(self.coming(list)),
                    Some(Wish::Revoke(list)) => {
                        self.unanswered_since.get_or_insert(now);
                        return self.going(list, now);
                    }
                }
                false
            }
            Some(Change::Coming(list, looking)) if looking.is_finished() => {
                self.come(list, looking);
                true
            }
            Some(Change::Going(list, until)) => {
                let drained = self.of(&list).all(|p| p.in_hand() == 0);
                if !drained && now < until {
                    self.change = Some(Change::Going(list, until));
                    return false;
                }
                self.commit();
                self.go(&list);
                true
            }
            unfinished => {
                self.change = unfinished;
                false
            }
        }
    }

    fn of<'a>(&'a self, list: &'a TopicPartitionList) -> impl Iterator<Item = &'a Arc<Partition>> {
        list.elements()
            .into_iter()
            .filter_map(|e| self.partition(e.topic(), e.partition()))
    }

    fn coming(&self, list: TopicPartitionList) -> Change {
        let consumer = self.consumer.clone();
        let pulse = self.pulse.clone();
        let asked = list.clone();
        // Within the first second nothing went wrong yet: later ones are second tries.
        let pause = self.look_up_at.saturating_duration_since(Instant::now());
        let looking = tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let found = blocking(move || committed(&*consumer, asked)).await;
            pulse.wake.notify_one();
            found
        });
        Change::Coming(list, looking)
    }

    fn come(&mut self, list: TopicPartitionList, looking: JoinHandle<anyhow::Result<Committed>>) {
        use futures_util::FutureExt as _;
        let found = looking
            .now_or_never()
            .context("the look-up is not finished")
            .and_then(|joined| joined?);
        let committed = match found {
            Ok(committed) => committed,
            Err(error) => {
                warn!(source = %self.label, error = format!("{error:#}"), "committed offsets cannot be read, trying again");
                self.look_up_at = Instant::now() + LOOK_UP_AGAIN;
                self.change = Some(self.coming(list));
                return;
            }
        };
        self.unanswered_since = None;
        self.epoch += 1;
        let mut assignment = TopicPartitionList::new();
        let mut fresh = Vec::new();
        for (lane, element) in list.elements().iter().enumerate() {
            let place = (element.topic().to_owned(), element.partition());
            let topic: Arc<str> = place.0.as_str().into();
            let known = committed.get(&place).cloned().flatten();
            let lost = self.lost.take(&topic, place.1);
            let remembered = lost.zip(known.as_ref()).and_then(|(lost, (offset, _))| {
                let remembered = lost.remembered(*offset);
                lost.close();
                remembered
            });
            let recalls = remembered.is_some();
            let (offset, mark) = match remembered
                .map(|commit| (commit.offset, commit.metadata))
                .as_ref()
                .or(known.as_ref())
            {
                Some((offset, metadata)) => (
                    Offset::Offset(*offset),
                    Watermark::starting_at(*offset, metadata),
                ),
                None => {
                    let offset = (self.begin)(&place.0, place.1);
                    let first = offset.to_raw().filter(|raw| *raw >= 0).unwrap_or(0);
                    (offset, Watermark::starting_at(first, ""))
                }
            };
            let partition = Arc::new(Partition::new(
                (topic.clone(), place.1),
                (self.epoch, lane as u32),
                mark,
                self.pulse.clone(),
                self.meters.clone(),
            ));
            match known {
                Some((offset, _)) => partition.commit_confirmed(offset),
                // Where we begin is decided once.
                None if matches!(offset, Offset::Offset(_)) => partition.commit_failed(),
                None => {}
            }
            if recalls {
                partition.commit_failed();
            }
            let _ = assignment.add_partition_offset(&place.0, place.1, offset);
            fresh.push((topic, partition));
        }
        match self.consumer.incremental_assign(&assignment) {
            Ok(()) => {
                info!(source = %self.label, partitions = fresh.len(), "taking from partitions that the group gave us");
                for (topic, partition) in fresh {
                    let old = self
                        .partitions
                        .entry(topic)
                        .or_default()
                        .insert(partition.number, partition);
                    if let Some(old) = old {
                        old.close();
                    }
                }
                // The library remembers a pause beyond the assignment: a partition that went away
                // paused would come back paused, for ever.
                let _ = match self.paused {
                    true => self.consumer.pause(&list),
                    false => self.consumer.resume(&list),
                };
                self.commit();
            }
            Err(error) => warn!(source = %self.label, %error, "an assignment came too late"),
        }
    }

    /// Partitions are taken from us: what is in hand gets a little time, unless they are lost.
    fn going(&mut self, list: TopicPartitionList, now: Instant) -> bool {
        if self.consumer.assignment_lost() {
            warn!(source = %self.label, partitions = list.count(), "lost partitions: what is in hand may come again");
            let lost: Vec<_> = self.of(&list).cloned().collect();
            self.go(&list);
            for partition in lost {
                self.lost.keep(partition);
            }
            return true;
        }
        for partition in self.of(&list) {
            partition.leave();
        }
        self.change = Some(Change::Going(list, now + LEAVE_WITHIN));
        self.grant(now)
    }

    fn go(&mut self, list: &TopicPartitionList) {
        for element in list.elements() {
            if let Some(of_topic) = self.partitions.get_mut(element.topic())
                && let Some(partition) = of_topic.remove(&element.partition())
            {
                partition.close();
            }
        }
        self.partitions.retain(|_, of_topic| !of_topic.is_empty());
        info!(source = %self.label, partitions = list.count(), "gave partitions back to the group");
        // A commit that was sent before this is waited for by the library.
        if let Err(error) = self.consumer.incremental_unassign(list) {
            warn!(source = %self.label, %error, "partitions could not be given back");
        }
    }

    /// Reads a partition of ours from `offset` on, where its records are others than those known so
    /// far: in the next turn in which the group wishes nothing, since changing the assignment is what
    /// the library takes for the answer to that.
    pub fn begin_anew(&mut self, old: &Arc<Partition>, offset: i64) {
        if !self.anew.iter().any(|(other, _)| Arc::ptr_eq(other, old)) {
            self.anew.push((old.clone(), offset));
        }
    }

    fn renew(&mut self) {
        if self.anew.is_empty() || self.change.is_some() || self.consumer.context().has_wishes() {
            return;
        }
        for (old, offset) in std::mem::take(&mut self.anew) {
            let is_ours = self
                .partition(&old.topic, old.number)
                .is_some_and(|now| Arc::ptr_eq(now, &old));
            if !is_ours {
                continue;
            }
            if let Err(error) = self.take_anew(&old, offset) {
                let (topic, partition) = (&old.topic, old.number);
                warn!(source = %self.label, %topic, partition, error = format!("{error:#}"), "a partition could not be begun anew");
            }
        }
    }

    fn take_anew(&mut self, old: &Arc<Partition>, offset: i64) -> anyhow::Result<()> {
        self.epoch += 1;
        let fresh = Arc::new(old.anew(self.epoch, offset));
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&old.topic, old.number, Offset::Offset(offset))?;
        // Not by a seek, which is lost where the partition is not fetched just now.
        self.consumer.incremental_unassign(&list)?;
        self.consumer.incremental_assign(&list)?;
        if self.paused {
            self.consumer.pause(&list)?;
        }
        old.close();
        let of_topic = self.partitions.entry(old.topic.clone()).or_default();
        of_topic.insert(old.number, fresh);
        Ok(())
    }

    /// Makes the library's own thread look at its timers. A timed wait of it ends at a time of the wall
    /// clock: when that was set back, there would be no heartbeat until somebody asks for something. And
    /// sees to it that there is somebody to ask.
    fn nudge(&mut self, now: Instant) {
        if now < self.nudge_at {
            return;
        }
        self.nudge_at = now + NUDGE_EVERY;
        let _ = self.consumer.assignment();
        if self.consumer.context().lost_all_brokers() {
            self.bootstrap_until = now + BOOTSTRAP_FOR;
        }
        if now < self.bootstrap_until {
            self.bootstrap.again(self.consumer.client());
        }
    }

    fn seek(&self, now: Instant) {
        for partition in self.partitions() {
            let Some(offset) = partition.seek_due(now) else {
                continue;
            };
            let sought = self.consumer.seek(
                &partition.topic,
                partition.number,
                Offset::Offset(offset),
                Duration::ZERO,
            );
            if let Err(error) = sought {
                debug!(source = %self.label, %error, "could not seek yet");
                partition.seek_failed();
            }
        }
    }

    fn pending_commit(&mut self) -> Option<TopicPartitionList> {
        self.commit_at = Instant::now() + COMMIT_EVERY;
        self.pulse.counted();
        let mut list = TopicPartitionList::new();
        for partition in self.partitions() {
            if let Some(commit) = partition.take_commit() {
                let mut element = list.add_partition(&partition.topic, partition.number);
                if element.set_offset(Offset::Offset(commit.offset)).is_ok()
                    && !commit.metadata.is_empty()
                {
                    element.set_metadata(&commit.metadata);
                }
            }
        }
        (list.count() > 0).then_some(list)
    }

    /// Sends what has changed; the answer comes by the callback.
    fn commit(&mut self) {
        let Some(list) = self.pending_commit() else {
            return;
        };
        if let Err(error) = commits::send(&*self.consumer, &list) {
            debug!(source = %self.label, %error, "a commit could not be sent");
            for partition in self.of(&list) {
                partition.commit_failed();
            }
        }
    }

    fn note_commits(&self) {
        for (result, offsets) in self.consumer.context().commits() {
            if let Err(error) = &result {
                debug!(source = %self.label, %error, "a commit was not accepted, trying again");
            }
            // One partition that is refused makes the whole an error; the others are committed all the same.
            let is_whole = !offsets.iter().any(|(_, _, refused)| *refused);
            for ((topic, number), offset, refused) in offsets {
                let Some(partition) = self.partition(&topic, number) else {
                    continue;
                };
                let failed = refused || (is_whole && result.is_err());
                match offset {
                    Offset::Offset(offset) if !failed => partition.commit_confirmed(offset),
                    _ => partition.commit_failed(),
                }
            }
        }
    }

    /// Takes nothing from now on, also of partitions that come later. The library drops what it
    /// has fetched ahead, so this is for waits that are long.
    pub fn pause(&mut self) {
        self.paused = true;
        if let Ok(all) = self.consumer.assignment()
            && let Err(error) = self.consumer.pause(&all)
        {
            debug!(source = %self.label, %error, "could not pause");
        }
    }

    pub fn resume(&mut self) {
        self.paused = false;
        if let Ok(all) = self.consumer.assignment()
            && let Err(error) = self.consumer.resume(&all)
        {
            debug!(source = %self.label, %error, "could not resume");
        }
    }

    /// The last commit, then out of the group, on a thread that may hang.
    pub async fn close(mut self) {
        let unanswered = self.consumer.context().close();
        // Also what was sent and is not answered: the answers are not heard any more.
        for partition in self.partitions() {
            partition.commit_failed();
        }
        let pending = self.pending_commit();
        // The last commit may be refused.
        for partition in self.partitions() {
            self.lost.keep(partition.clone());
        }
        let Self {
            consumer,
            label,
            change,
            _closing: closing,
            ..
        } = self;
        let (done, closed) = tokio::sync::oneshot::channel();
        let name = label.clone();
        let thread = std::thread::Builder::new().name("kafka-close".into());
        let spawned = thread.spawn(move || {
            if let Some(list) = pending
                && let Err(error) = consumer.commit(&list, CommitMode::Sync)
            {
                warn!(source = %name, %error, "the last commit failed: a few events will come again");
            }
            // The library waits for an answer to what it asked before it lets go.
            let asked = match change {
                Some(Change::Coming(list, _)) => Some(Wish::Assign(list)),
                Some(Change::Going(list, _)) => Some(Wish::Revoke(list)),
                None => None,
            };
            grant_all(&consumer, asked.into_iter().chain(unanswered));
            drop(closing);
            drop(consumer);
            let _ = done.send(());
        });
        let in_time = spawned.is_ok() && tokio::time::timeout(CLOSE_WITHIN, closed).await.is_ok();
        if !in_time {
            warn!(source = %label, "leaving the group takes too long, not waited for");
        }
    }
}
