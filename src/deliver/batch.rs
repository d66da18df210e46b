//! Batches: which deliveries go together in one request, and when.
//!
//! A [`Gathering`] holds members until there are enough of them, by count or by bytes, or until the
//! first has waited long enough. It never waits itself: time comes in as an argument, and what is to
//! be sent comes out. Members keep the order in which they came. Only those of one kind go together;
//! what a kind is, is the caller's business.

use std::time::Duration;

use tokio::time::Instant;

use crate::subscription::Batch;

/// Kinds that are gathered at a time. Of more than that the oldest batch is sent as it is.
const MOST_OPEN: usize = 16;
/// What an array is longer than its members, beside a comma for each but the last: `[` and `]`.
const BRACKETS: usize = 2;

/// See the module. `K`: what members have in common that go together.
#[derive(Debug)]
pub struct Gathering<K, M> {
    limits: Batch,
    /// The oldest first.
    open: Vec<Open<K, M>>,
}

#[derive(Debug)]
struct Open<K, M> {
    kind: K,
    members: Vec<M>,
    /// Of the array.
    bytes: usize,
    since: Instant,
}

impl<K: PartialEq, M> Gathering<K, M> {
    pub fn new(limits: Batch) -> Self {
        Self {
            limits,
            open: Vec::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Adds a member whose body is so long. What is given back is to be sent now, in this order.
    pub fn add(&mut self, kind: K, member: M, bytes: usize, now: Instant) -> Vec<Vec<M>> {
        let mut full = Vec::new();
        let with_comma = bytes.saturating_add(1);
        let mut at = self.open.iter().position(|open| open.kind == kind);
        if let Some(too_long) = at.filter(|&at| self.exceeds(self.open[at].bytes, with_comma)) {
            full.push(self.open.remove(too_long).members);
            at = None;
        }
        let at = at.unwrap_or_else(|| {
            if self.open.len() == MOST_OPEN {
                full.push(self.open.remove(0).members);
            }
            self.open.push(Open {
                kind,
                members: Vec::new(),
                // The first has no comma before it.
                bytes: BRACKETS - 1,
                since: now,
            });
            self.open.len() - 1
        });
        let open = &mut self.open[at];
        open.members.push(member);
        open.bytes = open.bytes.saturating_add(with_comma);
        if open.members.len() >= self.limits.count || open.bytes >= self.limits.bytes {
            full.push(self.open.remove(at).members);
        }
        full
    }

    fn exceeds(&self, bytes: usize, more: usize) -> bool {
        bytes.saturating_add(more) > self.limits.bytes
    }

    /// What has waited long enough at `now`.
    pub fn due(&mut self, now: Instant) -> Vec<Vec<M>> {
        let within = self.limits.within;
        self.take(|open| now.saturating_duration_since(open.since) >= within)
    }

    /// What `is` true of, told the members of a batch.
    pub fn take_if(&mut self, is: impl Fn(&[M]) -> bool) -> Vec<Vec<M>> {
        self.take(|open| is(&open.members))
    }

    pub fn take_all(&mut self) -> Vec<Vec<M>> {
        self.take(|_| true)
    }

    /// When the next batch is due, if any waits.
    pub fn next(&self) -> Option<Instant> {
        self.open.first().map(|open| open.since + self.within())
    }

    fn within(&self) -> Duration {
        self.limits.within
    }

    fn take(&mut self, is: impl Fn(&Open<K, M>) -> bool) -> Vec<Vec<M>> {
        let taken = self.open.extract_if(.., |open| is(open));
        taken.map(|open| open.members).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(1);

    fn gathering(count: usize, bytes: usize) -> Gathering<char, usize> {
        Gathering::new(Batch {
            count,
            bytes,
            within: WITHIN,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn the_count_fills_a_batch() {
        let (mut gathering, now) = (gathering(3, 1_000), Instant::now());
        assert!(gathering.add('a', 1, 10, now).is_empty());
        assert!(gathering.add('a', 2, 10, now).is_empty());
        assert_eq!(gathering.add('a', 3, 10, now), [[1, 2, 3]]);
        assert!(gathering.is_empty());
    }

    /// `[aaaa,bbbb]` is 11 bytes long.
    #[tokio::test(start_paused = true)]
    async fn the_bytes_of_the_array_fill_a_batch() {
        let now = Instant::now();
        let mut exact = gathering(10, 11);
        assert!(exact.add('a', 1, 4, now).is_empty());
        assert_eq!(exact.add('a', 2, 4, now), [[1, 2]]);
        let mut less = gathering(10, 10);
        assert!(less.add('a', 1, 4, now).is_empty());
        assert_eq!(less.add('a', 2, 4, now), [[1]]);
        assert_eq!(less.add('a', 3, 1_000, now), [[2], [3]]);
    }

    #[tokio::test(start_paused = true)]
    async fn time_ends_the_wait_for_others() {
        let mut gathering = gathering(10, 1_000);
        gathering.add('a', 1, 4, Instant::now());
        tokio::time::advance(WITHIN / 2).await;
        gathering.add('a', 2, 4, Instant::now());
        gathering.add('b', 3, 4, Instant::now());
        assert!(gathering.due(Instant::now()).is_empty());
        assert_eq!(gathering.next(), Some(Instant::now() + WITHIN / 2));
        tokio::time::advance(WITHIN / 2).await;
        assert_eq!(gathering.due(Instant::now()), [[1, 2]]);
        assert_eq!(gathering.next(), Some(Instant::now() + WITHIN / 2));
        assert_eq!(gathering.take_all(), [[3]]);
        assert_eq!(gathering.next(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_same_go_together_and_few_kinds_wait() {
        let (mut gathering, now) = (gathering(2, 1_000), Instant::now());
        gathering.add('a', 1, 4, now);
        gathering.add('b', 2, 4, now);
        assert_eq!(gathering.add('a', 3, 4, now), [[1, 3]]);
        for (number, kind) in ('c'..).take(MOST_OPEN - 1).enumerate() {
            assert!(gathering.add(kind, 10 + number, 4, now).is_empty());
        }
        assert_eq!(gathering.add('z', 99, 4, now), [[2]]);
    }

    proptest! {
        /// Whatever comes whenever: each member is sent once, in its order among its kind, in a
        /// batch within the limits, and none waits for longer than it may.
        #[test]
        fn all_are_sent_within_the_limits(
            count in 1usize..8,
            bytes in 1usize..200,
            came in prop::collection::vec((0u8..20, 0usize..60, 0u64..400), 0..100),
        ) {
            let mut gathering = Gathering::new(Batch { count, bytes, within: WITHIN });
            let mut now = Instant::now();
            let mut sent = Vec::new();
            let mut add = |batches: Vec<Vec<(usize, u8, usize, Instant)>>, now: Instant| {
                sent.extend(batches.into_iter().map(|batch| (batch, now)));
            };
            for (number, (kind, length, wait_ms)) in came.iter().enumerate() {
                let until = now + Duration::from_millis(*wait_ms);
                while let Some(next) = gathering.next().filter(|next| *next <= until) {
                    add(gathering.due(next), next);
                }
                now = until;
                add(gathering.add(*kind, (number, *kind, *length, now), *length, now), now);
            }
            while let Some(next) = gathering.next() {
                add(gathering.due(next), next);
            }
            let mut last = [None; 20];
            let mut all = 0;
            for (batch, at) in sent {
                let array: usize = 1 + batch.iter().map(|(_, _, length, _)| length + 1).sum::<usize>();
                prop_assert!(!batch.is_empty() && batch.len() <= count);
                prop_assert!(array <= bytes || batch.len() == 1);
                for (number, kind, _, since) in batch {
                    prop_assert!(at.saturating_duration_since(since) <= WITHIN);
                    prop_assert!(last[kind as usize] < Some(number));
                    last[kind as usize] = Some(number);
                    all += 1;
                }
            }
            prop_assert_eq!(all, came.len());
        }
    }
}
