//! Acknowledgements: collected from anywhere, sent in batches by the channel's own task.
//!
//! Settled tags that are contiguous from the oldest go out as one `multiple` acknowledgement, which
//! costs both sides less than half of single ones; what is settled out of order goes out singly
//! after one short round, so that a slow head holds nobody's prefetch. A tag asked to be
//! redelivered goes back to the queue after a second, so that a failing event does not spin.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::bail;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::broker::{Answer, Settlement, Token};
use crate::meters::SourceMeters;

/// How long answers are collected before they are sent.
const ROUND: Duration = Duration::from_millis(2);
/// Before a message goes back to its queue.
const REDELIVER_AFTER: Duration = Duration::from_secs(1);
/// For writing one answer to the connection.
const SEND_DEADLINE: Duration = Duration::from_secs(30);

/// The answers of one channel.
pub struct Acks {
    state: Mutex<State>,
    wake: Notify,
    /// Rung when so many are settled that a round is not waited for.
    full: Notify,
    batch: AtomicUsize,
    /// Of the source that the channel consumes for; due queues have none.
    meters: Option<SourceMeters>,
}

#[derive(Default)]
struct State {
    /// All tags up to this one are answered.
    answered_up_to: u64,
    /// Settled, above the contiguous part, not sent yet.
    settled: BTreeSet<u64>,
    /// Answered singly already, above the contiguous part.
    sent: BTreeSet<u64>,
    redeliver: Vec<(Instant, u64)>,
    /// Receipts handed out and not answered.
    open: u64,
}

/// What is to be sent now.
#[derive(Debug, Default, PartialEq)]
struct Round {
    /// One acknowledgement for all tags up to this one.
    up_to: Option<u64>,
    single: Vec<u64>,
    back: Vec<u64>,
}

impl Answer for Acks {
    fn answer(&self, token: Token, settlement: Settlement) {
        if let Some(meters) = &self.meters {
            match settlement {
                Settlement::Ack => meters.settled.inc(),
                Settlement::Redeliver => meters.redelivered.inc(),
            };
        }
        let mut state = self.lock();
        state.open = state.open.saturating_sub(1);
        match settlement {
            Settlement::Ack => {
                state.settled.insert(token.position);
                if state.settled.len() >= self.batch.load(Ordering::Relaxed) {
                    self.full.notify_one();
                }
            }
            Settlement::Redeliver => state
                .redeliver
                .push((Instant::now() + REDELIVER_AFTER, token.position)),
        }
        drop(state);
        self.wake.notify_one();
    }
}

fn batch_of(prefetch: u16) -> usize {
    usize::from(prefetch / 4).max(1)
}

impl Acks {
    /// For a channel with this many messages under way at most. A quarter of them settled is sent
    /// at once, so that a small prefetch is not held up by rounds.
    pub fn new(prefetch: u16, meters: Option<SourceMeters>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            wake: Notify::new(),
            full: Notify::new(),
            batch: AtomicUsize::new(batch_of(prefetch)),
            meters,
        })
    }

    /// So many messages are under way at most from now on.
    pub fn batch_for(&self, prefetch: u16) {
        self.batch.store(batch_of(prefetch), Ordering::Relaxed);
    }

    /// Notes that a tag was handed out and will be answered.
    pub fn handed_out(&self) {
        let mut state = self.lock();
        state.open += 1;
    }

    /// Receipts that are not answered yet.
    pub fn open(&self) -> u64 {
        self.lock().open
    }

    /// Messages that the broker has no answer to: with the pipeline, or settled and not sent yet.
    pub fn unanswered(&self) -> u64 {
        let state = self.lock();
        state.open + (state.settled.len() + state.redeliver.len()) as u64
    }

    /// Sends answers until the channel is gone; returns why it is.
    pub async fn send(&self, channel: &Channel) -> anyhow::Error {
        let mut singles_due = false;
        loop {
            let next_back = self.lock().redeliver.iter().map(|(due, _)| *due).min();
            let back_is_due = async {
                match next_back {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            if !singles_due {
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = back_is_due => {}
                }
            }
            tokio::select! {
                () = tokio::time::sleep(ROUND) => {}
                () = self.full.notified() => {}
            }
            let round = self.lock().round(Instant::now(), singles_due);
            if let Err(error) = send_round(channel, &round).await {
                return error;
            }
            singles_due = self.lock().has_settled();
        }
    }

    /// Sends what is settled now, without waiting.
    pub async fn send_now(&self, channel: &Channel) {
        let round = self.lock().round(Instant::now(), true);
        // A channel that is gone has its messages delivered again; nothing else can be done here.
        let _ = send_round(channel, &round).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    fn has_settled(&self) -> bool {
        !self.settled.is_empty()
    }

    fn round(&mut self, now: Instant, with_singles: bool) -> Round {
        let mut round = Round::default();
        let before = self.answered_up_to;
        loop {
            let next = self.answered_up_to + 1;
            if self.settled.remove(&next) {
                round.up_to = Some(next);
            } else if !self.sent.remove(&next) {
                break;
            }
            self.answered_up_to = next;
        }
        // One message is acknowledged as itself; `multiple` would say nothing more.
        if round.up_to == Some(before + 1) && self.answered_up_to == before + 1 {
            round.single.extend(round.up_to.take());
        }
        if with_singles {
            for tag in std::mem::take(&mut self.settled) {
                round.single.push(tag);
                self.sent.insert(tag);
            }
        }
        let (due, later) = self.redeliver.drain(..).partition(|(due, _)| *due <= now);
        self.redeliver = later;
        let due: Vec<(Instant, u64)> = due;
        for (_, tag) in due {
            round.back.push(tag);
            self.sent.insert(tag);
        }
        round
    }
}

async fn send_round(channel: &Channel, round: &Round) -> anyhow::Result<()> {
    for &tag in &round.back {
        let options = BasicNackOptions {
            requeue: true,
            multiple: false,
        };
        sent(channel.basic_nack(tag, options)).await?;
    }
    if let Some(tag) = round.up_to {
        sent(channel.basic_ack(tag, BasicAckOptions { multiple: true })).await?;
    }
    for &tag in &round.single {
        sent(channel.basic_ack(tag, BasicAckOptions { multiple: false })).await?;
    }
    Ok(())
}

async fn sent(answer: impl Future<Output = lapin::Result<()>>) -> anyhow::Result<()> {
    match timeout(SEND_DEADLINE, answer).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => bail!("an acknowledgement could not be written within {SEND_DEADLINE:?}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn contiguous_tags_are_one_acknowledgement() {
        let mut state = State {
            settled: (1..=5).collect(),
            ..State::default()
        };
        assert_eq!(
            state.round(Instant::now(), false),
            Round {
                up_to: Some(5),
                ..Round::default()
            }
        );
    }

    #[test]
    fn a_slow_head_holds_the_others_for_one_round_only() {
        let mut state = State {
            settled: [2, 3].into(),
            ..State::default()
        };
        assert_eq!(state.round(Instant::now(), false), Round::default());
        assert_eq!(
            state.round(Instant::now(), true),
            Round {
                single: vec![2, 3],
                ..Round::default()
            }
        );
        state.settled.insert(1);
        assert!(state.round(Instant::now(), true).single.is_empty());
    }

    proptest! {
        /// Whatever the order: each tag is acknowledged or given back exactly once, and `multiple`
        /// never covers a tag that was not settled.
        #[test]
        fn every_tag_is_answered_once(
            order in Just((1..=40u64).collect::<Vec<_>>()).prop_shuffle(),
            rounds in proptest::collection::vec(any::<bool>(), 40),
            back in proptest::collection::btree_set(1..=40u64, 0..5),
        ) {
            let mut state = State::default();
            let mut answered = BTreeSet::new();
            let mut settled = BTreeSet::new();
            let now = Instant::now();
            for (tag, with_singles) in order.into_iter().zip(rounds) {
                if back.contains(&tag) {
                    state.redeliver.push((now, tag));
                } else {
                    state.settled.insert(tag);
                    settled.insert(tag);
                }
                let round = state.round(now, with_singles);
                for tag in round.single.into_iter().chain(round.back) {
                    prop_assert!(answered.insert(tag), "{tag} twice");
                }
                if let Some(up_to) = round.up_to {
                    for tag in 1..=up_to {
                        if !answered.contains(&tag) {
                            prop_assert!(settled.contains(&tag), "{tag} was never settled");
                            answered.insert(tag);
                        }
                    }
                }
            }
            let last = state.round(now, true);
            answered.extend(last.single);
            answered.extend(last.up_to.map(|up_to| 1..=up_to).into_iter().flatten());
            prop_assert_eq!(answered, (1..=40).collect::<BTreeSet<_>>());
        }
    }
}
