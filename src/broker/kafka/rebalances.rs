//! A partition through rebalances, lost assignments, refused commits and crashes, against a model.
//!
//! The model is the broker: a log, and what was committed last. Whatever happens, in whatever order,
//! nothing may be committed that was not settled, and what was not settled has to be handed out
//! again.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::partition::Partition;
use super::watermark::Watermark;
use crate::broker::{Answer as _, Settlement};

/// Records in the log.
const RECORDS: i64 = 24;

#[derive(Debug, Clone)]
enum Step {
    /// The next record comes.
    Take,
    /// One of those in hand is answered: of this assignment, or of one before.
    Settle(usize),
    GiveBack(usize),
    Commit,
    /// The commit does not reach the broker.
    CommitInVain,
    /// Taken away without a word, and given back to us.
    Lose,
    /// Taken away with a chance to commit, and given back to us.
    Revoke,
    /// The process dies, and another one begins from what was committed.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => Just(Step::Take),
        5 => any::<usize>().prop_map(Step::Settle),
        1 => any::<usize>().prop_map(Step::GiveBack),
        2 => Just(Step::Commit),
        1 => Just(Step::CommitInVain),
        1 => Just(Step::Lose),
        1 => Just(Step::Revoke),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 0..80)
}

/// The broker, and the process as far as it is about this partition.
struct World {
    committed: (i64, String),
    epoch: u64,
    partition: Arc<Partition>,
    lost: Option<Arc<Partition>>,
    /// Where the client fetches next.
    position: i64,
    /// Handed out and not answered, each with its assignment.
    in_hand: Vec<(Arc<Partition>, i64)>,
    settled: BTreeSet<i64>,
    /// In hand when the partition was taken away last: these may come twice.
    at_risk: BTreeSet<i64>,
    repeated: Vec<i64>,
}

impl World {
    fn new() -> Self {
        let committed = (0, String::new());
        Self {
            partition: assigned(1, &committed, &committed),
            committed,
            epoch: 1,
            lost: None,
            position: 0,
            in_hand: Vec::new(),
            settled: BTreeSet::new(),
            at_risk: BTreeSet::new(),
            repeated: Vec::new(),
        }
    }

    /// The partition comes (back) to us.
    fn come(&mut self) {
        let remembered = self
            .lost
            .take()
            .and_then(|lost| lost.remembered(self.committed.0))
            .map(|commit| (commit.offset, commit.metadata));
        let begin = remembered.unwrap_or_else(|| self.committed.clone());
        self.at_risk
            .extend(self.in_hand.iter().map(|(_, record)| *record));
        self.epoch += 1;
        self.partition = assigned(self.epoch, &begin, &self.committed);
        self.position = begin.0;
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Take => self.take(),
            Step::Settle(which) => {
                if let Some((of, offset)) = self.one_in_hand(*which) {
                    of.answer(of.token(offset), Settlement::Ack);
                    self.settled.insert(offset);
                }
            }
            Step::GiveBack(which) => {
                if let Some((of, offset)) = self.one_in_hand(*which) {
                    of.answer(of.token(offset), Settlement::Redeliver);
                    if Arc::ptr_eq(&of, &self.partition) {
                        self.position = self.position.min(offset);
                    }
                }
            }
            Step::Commit => self.commit(),
            Step::CommitInVain => {
                if self.partition.take_commit().is_some() {
                    self.partition.commit_failed();
                }
            }
            Step::Lose => {
                self.partition.lose();
                self.lost = Some(self.partition.clone());
                self.come();
            }
            Step::Revoke => {
                self.partition.leave();
                self.commit();
                self.partition.close();
                self.come();
            }
            Step::Crash => {
                self.in_hand.clear();
                self.lost = None;
                self.come();
            }
        }
    }

    fn take(&mut self) {
        if self.position == RECORDS {
            return;
        }
        if self.partition.receive(self.position) {
            if self.settled.contains(&self.position) && !self.at_risk.contains(&self.position) {
                self.repeated.push(self.position);
            }
            self.in_hand.push((self.partition.clone(), self.position));
        }
        self.position += 1;
    }

    fn one_in_hand(&mut self, which: usize) -> Option<(Arc<Partition>, i64)> {
        let at = which.checked_rem(self.in_hand.len())?;
        Some(self.in_hand.swap_remove(at))
    }

    fn commit(&mut self) {
        if let Some(commit) = self.partition.take_commit() {
            self.partition.commit_confirmed(commit.offset);
            self.committed = (commit.offset, commit.metadata);
        }
    }

    /// What another process would take for done with.
    fn forgotten(&self) -> Vec<i64> {
        let (offset, metadata) = &self.committed;
        let mut mark = Watermark::starting_at(*offset, metadata);
        (0..RECORDS)
            .filter(|record| record < offset || !mark.receive(*record))
            .collect()
    }
}

fn assigned(epoch: u64, begin: &(i64, String), committed: &(i64, String)) -> Arc<Partition> {
    let mark = Watermark::starting_at(begin.0, &begin.1);
    let place = (Arc::from("t"), 0);
    let partition = Partition::new(place, (epoch, 0), mark, Arc::default(), None);
    partition.commit_confirmed(committed.0);
    if begin != committed {
        partition.commit_failed();
    }
    Arc::new(partition)
}

proptest! {
    #[test]
    fn nothing_is_committed_that_was_not_settled_and_all_is_settled_in_the_end(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            for record in world.forgotten() {
                prop_assert!(world.settled.contains(&record), "{record} is lost after {step:?}");
            }
        }
        world.step(&Step::Crash);
        for _ in 0..RECORDS {
            world.take();
        }
        while !world.in_hand.is_empty() {
            world.step(&Step::Settle(0));
        }
        world.commit();
        prop_assert_eq!(world.settled.len() as i64, RECORDS);
        prop_assert_eq!(world.committed.0, RECORDS);
    }

    /// What comes twice without a crash was in hand when the partition was taken away.
    #[test]
    fn a_process_that_lives_repeats_only_what_it_had_in_hand(steps in steps()) {
        let mut world = World::new();
        for step in steps.iter().filter(|step| !matches!(step, Step::Crash)) {
            world.step(step);
            prop_assert_eq!(&world.repeated, &Vec::<i64>::new(), "after {:?}", step);
        }
    }
}
