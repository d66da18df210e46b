//! One assigned partition: takes answers, and knows what may be committed.
//!
//! Every assignment makes a new [`Partition`], so an answer that comes after its partition was
//! taken away reaches one that is closed, and changes nothing.

use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::watermark::{Commit, Watermark};
use crate::broker::{Answer, Settlement, Token};
use crate::meters::SourceMeters;

/// Answers after which a commit does not wait for its time.
const ANSWERS_PER_COMMIT: u32 = 1_000;
/// Before an event that was given back is fetched again.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Wakes the consumer's loop when its partitions have news that should not wait for the next turn.
#[derive(Debug, Default)]
pub struct Pulse {
    pub wake: Notify,
    answers: AtomicU32,
}

impl Pulse {
    /// Whether so much was answered that a commit is due; begins to count anew.
    pub fn many_answers(&self) -> bool {
        self.answers.load(Ordering::Relaxed) >= ANSWERS_PER_COMMIT
    }

    pub fn counted(&self) {
        self.answers.store(0, Ordering::Relaxed);
    }
}

pub struct Partition {
    pub topic: Arc<str>,
    pub number: i32,
    epoch: u64,
    lane: u32,
    pulse: Arc<Pulse>,
    meters: Option<SourceMeters>,
    state: Mutex<State>,
    /// What the broker has confirmed as committed; -1 before that.
    committed: AtomicI64,
}

struct State {
    mark: Watermark,
    /// Taken away: nothing is handed out or committed any more.
    closed: bool,
    /// Taken away without a chance to commit: what is settled still counts for what we remember.
    lost: bool,
    /// About to be taken away: nothing is handed out, and each answer is news.
    leaving: bool,
    /// Something was settled since the last commit was sent.
    dirty: bool,
    again_at: Option<Instant>,
}

impl Partition {
    pub fn new(
        place: (Arc<str>, i32),
        (epoch, lane): (u64, u32),
        mark: Watermark,
        pulse: Arc<Pulse>,
        meters: Option<SourceMeters>,
    ) -> Self {
        Self {
            topic: place.0,
            number: place.1,
            epoch,
            lane,
            pulse,
            meters,
            state: Mutex::new(State {
                mark,
                closed: false,
                lost: false,
                leaving: false,
                dirty: false,
                again_at: None,
            }),
            committed: AtomicI64::new(-1),
        }
    }

    /// The same partition with other records, read from `offset` on: answers about those known so far
    /// are not about these.
    pub fn anew(&self, epoch: u64, offset: i64) -> Self {
        let fresh = Self::new(
            (self.topic.clone(), self.number),
            (epoch, self.lane),
            Watermark::starting_at(offset, ""),
            self.pulse.clone(),
            self.meters.clone(),
        );
        fresh.state().dirty = true;
        fresh
    }

    pub fn token(&self, offset: i64) -> Token {
        Token {
            epoch: self.epoch,
            lane: self.lane,
            position: offset as u64,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Notes a received record; whether it is to be handed out.
    pub fn receive(&self, offset: i64) -> bool {
        let mut state = self.state();
        if state.closed || state.leaving {
            return false;
        }
        let fresh = state.mark.receive(offset);
        // A skipped record moves the watermark too.
        state.dirty |= !fresh;
        fresh
    }

    /// Notes a record that is handed out before it is received; whether it may be.
    pub fn take_ahead(&self, offset: i64) -> bool {
        let mut state = self.state();
        !state.closed && !state.leaving && state.mark.take_ahead(offset)
    }

    /// Where the last of the ranges settled out of order begins, once a commit has not much room
    /// left for more.
    pub fn crowded_to(&self) -> Option<i64> {
        self.state().mark.crowded_to()
    }

    /// How many more than those in hand may be handed out with all that is settled then still fitting
    /// into a commit; `waiting` of those in hand are in nobody's yet.
    pub fn room_beside(&self, waiting: usize) -> usize {
        let state = self.state();
        let out = state.mark.in_hand().saturating_sub(waiting);
        state.mark.room().saturating_sub(out)
    }

    /// The lowest offset that is not settled: settling it takes no room in a commit.
    pub fn lowest(&self) -> i64 {
        self.state().mark.offset()
    }

    /// The record at `offset` is done with.
    pub fn settle(&self, offset: i64) {
        let mut state = self.state();
        if state.closed && !state.lost {
            return;
        }
        // Of a lost one this is only remembered.
        if !state.mark.settle(offset) || state.closed {
            return;
        }
        state.dirty = true;
        let leaving = state.leaving;
        drop(state);
        let answers = self.pulse.answers.fetch_add(1, Ordering::Relaxed) + 1;
        if leaving || answers == ANSWERS_PER_COMMIT {
            self.pulse.wake.notify_one();
        }
    }

    /// The record at `offset` is to be fetched and handed out again.
    pub fn give_back(&self, offset: i64) {
        let mut state = self.state();
        if state.closed {
            return;
        }
        state.mark.give_back(offset);
        state.again_at.get_or_insert(Instant::now() + AGAIN_AFTER);
        let leaving = state.leaving;
        drop(state);
        if leaving {
            self.pulse.wake.notify_one();
        }
    }

    /// Where to seek to, when something was given back long enough ago.
    pub fn seek_due(&self, now: Instant) -> Option<i64> {
        let mut state = self.state();
        if state.closed || state.leaving || state.again_at.is_none_or(|at| now < at) {
            return None;
        }
        state.again_at = None;
        state.mark.fetch_again_from()
    }

    /// The seek did not work: try later.
    pub fn seek_failed(&self) {
        self.state().again_at = Some(Instant::now() + AGAIN_AFTER);
    }

    /// From now on nothing is handed out.
    pub fn leave(&self) {
        self.state().leaving = true;
    }

    /// Answers of this partition are ignored from now on.
    pub fn close(&self) {
        let mut state = self.state();
        (state.closed, state.lost) = (true, false);
    }

    /// The same, but what is settled from now on is remembered, see [`Partition::remembered`].
    pub fn lose(&self) {
        let mut state = self.state();
        (state.closed, state.lost) = (true, true);
    }

    /// What a partition that was lost would have committed, if the partition comes back where the
    /// broker last knew us to be: nobody else has had it meanwhile, and nobody has moved it.
    pub fn remembered(&self, committed: i64) -> Option<Commit> {
        let commit = self.state().mark.commit();
        let known = self.committed.load(Ordering::Relaxed);
        (known >= 0 && (known..=commit.offset).contains(&committed)).then_some(commit)
    }

    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Records in somebody's hands.
    pub fn in_hand(&self) -> usize {
        self.state().mark.in_hand()
    }

    /// What to commit, if that has changed; marks it as sent.
    pub fn take_commit(&self) -> Option<Commit> {
        let mut state = self.state();
        if !std::mem::take(&mut state.dirty) || state.closed {
            return None;
        }
        Some(state.mark.commit())
    }

    /// A commit did not reach the broker.
    pub fn commit_failed(&self) {
        self.state().dirty = true;
    }

    pub fn commit_confirmed(&self, offset: i64) {
        self.committed.fetch_max(offset, Ordering::Relaxed);
    }

    /// The next offset as the broker knows it; everything below is of no use to anybody.
    pub fn committed(&self) -> Option<i64> {
        Some(self.committed.load(Ordering::Relaxed)).filter(|offset| *offset >= 0)
    }

    /// One more than the highest offset received.
    pub fn next(&self) -> i64 {
        self.state().mark.next()
    }

    /// Where the library reads from: behind `next` when something was given back.
    pub fn stands_at(&self) -> i64 {
        let state = self.state();
        state.mark.fetch_again_from().unwrap_or(state.mark.next())
    }
}

impl Answer for Partition {
    fn answer(&self, token: Token, settlement: Settlement) {
        if token.epoch != self.epoch {
            return;
        }
        let offset = token.position as i64;
        match settlement {
            Settlement::Ack => {
                self.settle(offset);
                if let Some(meters) = &self.meters {
                    meters.settled.inc();
                }
            }
            Settlement::Redeliver => {
                self.give_back(offset);
                if let Some(meters) = &self.meters {
                    meters.redelivered.inc();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition() -> Partition {
        Partition::new(
            ("t".into(), 0),
            (7, 0),
            Watermark::starting_at(0, ""),
            Arc::default(),
            None,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_of_another_assignment_is_ignored() {
        let partition = partition();
        partition.receive(0);
        let old = Token {
            epoch: 6,
            ..partition.token(0)
        };
        partition.answer(old, Settlement::Ack);
        assert_eq!(partition.in_hand(), 1);
        partition.answer(partition.token(0), Settlement::Ack);
        assert_eq!(partition.take_commit().unwrap().offset, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_about_a_topic_that_is_gone_settles_nothing_of_the_new_one() {
        let old = Arc::new(partition());
        old.receive(0);
        let fresh = old.anew(8, 0);
        old.close();
        assert_eq!(fresh.take_commit().unwrap().offset, 0, "where it begins");
        fresh.receive(0);
        fresh.answer(old.token(0), Settlement::Ack);
        old.answer(old.token(0), Settlement::Ack);
        assert_eq!((fresh.in_hand(), old.take_commit()), (1, None));
        fresh.answer(fresh.token(0), Settlement::Ack);
        assert_eq!(fresh.take_commit().unwrap().offset, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_partition_commits_nothing() {
        let partition = partition();
        partition.receive(0);
        partition.close();
        partition.answer(partition.token(0), Settlement::Ack);
        assert_eq!(partition.take_commit(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_partition_remembers_what_was_settled_unless_somebody_has_moved_it() {
        let partition = partition();
        partition.commit_confirmed(0);
        for offset in 0..4 {
            partition.receive(offset);
        }
        partition.settle(0);
        partition.lose();
        partition.answer(partition.token(2), Settlement::Ack);
        assert_eq!(partition.take_commit(), None);
        let back = partition.remembered(0).unwrap();
        let mut mark = Watermark::starting_at(back.offset, &back.metadata);
        let again: Vec<_> = (1..4).filter(|offset| mark.receive(*offset)).collect();
        assert_eq!((back.offset, again), (1, vec![1, 3]));
        assert_eq!(partition.remembered(2), None);
        partition.commit_confirmed(1);
        assert_eq!(partition.remembered(0), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_is_fetched_again_after_a_while() {
        let partition = partition();
        partition.receive(0);
        partition.receive(1);
        partition.answer(partition.token(1), Settlement::Redeliver);
        assert_eq!(partition.seek_due(Instant::now()), None);
        tokio::time::advance(AGAIN_AFTER).await;
        assert_eq!(partition.seek_due(Instant::now()), Some(1));
        assert!(partition.receive(1));
    }
}
