//! Taking: what a member of the group is handed goes in where there is room, until it is stopped.
//!
//! While a window is full for a moment the next event simply waits in hand; when that takes longer than
//! [`PATIENCE`] the partitions are paused and the client is polled beside the wait, because a member that
//! does not poll is put out of its group, and because pausing throws away what was fetched ahead.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use rdkafka::bindings as native;
use rdkafka::consumer::Consumer as _;
use rdkafka::message::{BorrowedMessage, Message as _};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    AFTER_ERROR, Prepared, Source, TURN, changed, leave_for_later, lock, more, subscribe, ticks,
};
use crate::broker::Admission;
use crate::broker::kafka::anew;
use crate::broker::kafka::client::{ASK, blocking};
use crate::broker::kafka::member::Member;
use crate::broker::kafka::noted::Consumer;
use crate::broker::kafka::partition::Partition;
use crate::broker::kafka::reading::Reading;
use crate::broker::kafka::watchdog::{self, Ended, Watchdog};
use crate::event::Event;

/// How long an event waits in hand before its source is paused.
const PATIENCE: Duration = Duration::from_secs(1);
const LAG_EVERY: Duration = Duration::from_secs(5);

/// How taking one message ended.
enum Step {
    Next,
    Stopped,
}

impl Source {
    /// Takes until `stop`, or until the group does not answer any more.
    pub(super) async fn take_all(
        &mut self,
        member: &mut Member,
        prepared: Prepared,
        watchdog: &mut Watchdog,
        part: &str,
        stop: &CancellationToken,
    ) -> anyhow::Result<Ended> {
        let consumer = member.consumer.clone();
        let pulse = member.pulse.clone();
        let mut stream = consumer.stream();
        let Prepared {
            topics,
            ids,
            starts,
            ..
        } = prepared;
        let mut topics = self.discover(topics, part);
        let admin = self.kafka.admin.clone();
        let mut made_anew = anew::follow(admin, &self.settings().name, topics.clone(), ids);
        let mut turn = ticks(TURN);
        let mut lag = ticks(LAG_EVERY);
        let mut look = ticks(watchdog::LOOK_EVERY);
        loop {
            // What was answered and what the group wants go before new events.
            let message = tokio::select! { biased;
                () = stop.cancelled() => return Ok(Ended::Stopped),
                () = pulse.wake.notified() => {
                    member.turn();
                    continue;
                }
                _ = turn.tick() => {
                    member.turn();
                    continue;
                }
                _ = lag.tick() => {
                    self.measure(member);
                    continue;
                }
                _ = look.tick() => {
                    let wanted = topics.borrow().clone();
                    if watchdog.gives_up(member, Some(&wanted)).await {
                        return Ok(Ended::Unanswered);
                    }
                    continue;
                }
                Some(topic) = made_anew.recv() => {
                    lock(&starts).retain(|(of, _), _| *of != topic);
                    self.begin_anew(member, &topic);
                    continue;
                }
                new = changed(&mut topics) => {
                    info!(source = %self.settings().name, topics = new.len(), "topics that match have changed");
                    subscribe(&consumer, &new)?;
                    continue;
                }
                message = stream.next() => message,
            };
            let (mut next, mut taken) = (message, 0);
            while let Some(message) = next {
                match message {
                    Ok(message) => {
                        if let Step::Stopped = self.take(message, member, stop).await {
                            return Ok(Ended::Stopped);
                        }
                    }
                    Err(error) => {
                        if let Some(reason) = member.fatal() {
                            bail!("source `{}` cannot go on: {reason}", self.settings().name);
                        }
                        self.note(member, &error).await?;
                    }
                }
                taken += 1;
                next = more(&mut stream, taken);
            }
            tokio::task::yield_now().await;
        }
    }

    async fn take(
        &mut self,
        message: BorrowedMessage<'_>,
        member: &mut Member,
        stop: &CancellationToken,
    ) -> Step {
        let offset = message.offset();
        let Some(partition) = member
            .partition(message.topic(), message.partition())
            .cloned()
        else {
            return Step::Next;
        };
        if !partition.receive(offset) {
            return Step::Next;
        }
        self.settings().meters.received.inc();
        if self.too_old(&message, &partition) {
            self.settings().meters.settled.inc();
            partition.settle(offset);
            return Step::Next;
        }
        let event = self.event(&message, &partition);
        drop(message);
        let size = event.size_bytes();
        let admission = match self.intake.try_admit(size) {
            Some(admission) => admission,
            None => match self.wait_for_room(size, member, stop).await {
                Some(admission) => admission,
                None => {
                    partition.give_back(offset);
                    return Step::Stopped;
                }
            },
        };
        let token = partition.token(offset);
        self.intake.event(event, partition, token, admission);
        Step::Next
    }

    /// Room for the event in hand; `None` on `stop`.
    async fn wait_for_room(
        &self,
        size: usize,
        member: &mut Member,
        stop: &CancellationToken,
    ) -> Option<Admission> {
        let intake = self.intake.clone();
        let admit = intake.admit(size);
        tokio::pin!(admit);
        let pulse = member.pulse.clone();
        let mut turn = ticks(TURN);
        let patience = Instant::now() + PATIENCE;
        while Instant::now() < patience {
            tokio::select! { biased;
                admission = &mut admit => return Some(admission),
                () = stop.cancelled() => return None,
                () = pulse.wake.notified() => { member.turn(); }
                _ = turn.tick() => { member.turn(); }
            }
        }
        member.pause();
        let consumer = member.consumer.clone();
        let mut stream = consumer.stream();
        let mut lag = ticks(LAG_EVERY);
        let admission = loop {
            tokio::select! { biased;
                admission = &mut admit => break Some(admission),
                () = stop.cancelled() => break None,
                () = pulse.wake.notified() => { member.turn(); }
                _ = turn.tick() => { member.turn(); }
                // What is paused falls behind all the same.
                _ = lag.tick() => { self.measure(member); }
                message = stream.next() => match message {
                    // Fetched before the pause took hold: again, later.
                    Some(Ok(message)) => leave_for_later(member, &message),
                    _ => sleep(AFTER_ERROR).await,
                },
            }
        };
        member.resume();
        admission
    }

    fn too_old(&mut self, message: &BorrowedMessage<'_>, partition: &Partition) -> bool {
        let (Some(limit), Some(stamp)) = (
            self.settings().ignore_older_than,
            message.timestamp().to_millis(),
        ) else {
            return false;
        };
        let age_ms = Timestamp::now().as_millisecond() - stamp;
        let old = age_ms > limit.as_millis() as i64;
        if old && self.said_old.insert(partition.topic.clone()) {
            warn!(
                source = %self.settings().name,
                topic = %partition.topic,
                "events older than `ignore_older_than` are settled without being sent"
            );
        }
        old
    }

    fn event(&self, message: &BorrowedMessage<'_>, partition: &Partition) -> Event {
        let read = Reading {
            naming: &self.settings().naming,
            broker: &self.kafka.settings.name,
            cluster: &self.cluster,
        };
        read.event(message, &partition.topic)
    }

    pub(super) async fn note(
        &self,
        member: &mut Member,
        error: &rdkafka::error::KafkaError,
    ) -> anyhow::Result<()> {
        use rdkafka::error::RDKafkaErrorCode as Code;
        match error.rdkafka_error_code() {
            Some(Code::AutoOffsetReset) => self.find_lost_offsets(member).await?,
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => {
                warn!(source = %self.settings().name, "a topic of this source does not exist (yet)");
            }
            _ => tracing::debug!(source = %self.settings().name, %error, "the client reports"),
        }
        sleep(AFTER_ERROR).await;
        Ok(())
    }

    /// A topic was deleted and made anew: what is in it now is taken from its beginning.
    fn begin_anew(&self, member: &mut Member, topic: &str) {
        let of_topic = |partition: &&Arc<Partition>| &*partition.topic == topic;
        let partitions: Vec<_> = member.partitions().filter(of_topic).cloned().collect();
        warn!(
            source = %self.settings().name,
            topic,
            partitions = partitions.len(),
            "the topic was made anew: taking it from its beginning"
        );
        for partition in partitions {
            member.begin_anew(&partition, 0);
        }
    }

    /// The log no longer has (or never had) the offset that we stand at: retention was shorter
    /// than our absence, or the topic was made anew. What is gone is gone, and is said; what is
    /// left is taken from its beginning.
    async fn find_lost_offsets(&self, member: &mut Member) -> anyhow::Result<()> {
        let partitions: Vec<_> = member.partitions().cloned().collect();
        for partition in partitions {
            let consumer = member.consumer.clone();
            let (topic, number) = (partition.topic.clone(), partition.number);
            let asked = blocking(move || Ok(consumer.fetch_watermarks(&topic, number, ASK)?));
            let Ok((low, high)) = asked.await else {
                continue;
            };
            let next = partition.stands_at();
            if (low..=high).contains(&next) {
                continue;
            }
            let gone = (low - next).max(0);
            self.settings().meters.gone.inc_by(gone.unsigned_abs());
            warn!(
                source = %self.settings().name,
                topic = %partition.topic,
                partition = partition.number,
                stood_at = next,
                first = low,
                end = high,
                gone,
                "events are gone from the topic before they were taken (retention, or the topic \
                 was made anew); going on with what is left"
            );
            member.begin_anew(&partition, low);
        }
        Ok(())
    }

    /// Messages behind the end, from what the client knows without asking.
    fn measure(&self, member: &Member) {
        let mut lags = std::collections::BTreeMap::new();
        for partition in member.partitions() {
            if let Some(high) = known_end(&member.consumer, partition) {
                let behind = (high - partition.next()).max(0) + partition.in_hand() as i64;
                *lags.entry(partition.number).or_insert(0) += behind;
            }
        }
        for (number, lag) in lags {
            self.settings().meters.lag(number, lag);
        }
    }
}

/// The partition's end as of the last fetch.
fn known_end(consumer: &Consumer, partition: &Partition) -> Option<i64> {
    let topic = std::ffi::CString::new(&*partition.topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client is alive, the name is NUL-terminated, both results are written to.
    let error = unsafe {
        native::rd_kafka_get_watermark_offsets(
            consumer.client().native_ptr(),
            topic.as_ptr(),
            partition.number,
            &raw mut low,
            &raw mut high,
        )
    };
    (error == native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some(high)
}
