//! Out-of-order completion of one partition: which offset may be stored.
//!
//! Events are settled in any order, but Kafka stores one number per partition: everything below it
//! is done. [`Watermark`] keeps the offsets that were received and are not settled; the lowest of
//! them is that number. It never passes an unsettled event (a property test holds this). What is
//! settled beyond it travels in the commit's metadata ([`Watermark::commit`]), so that an event
//! that hangs at the head does not make everything behind it come again.
//!
//! Gaps between offsets are normal (compaction, transactions): only offsets received count, and
//! what lies between two received ones without being received does not exist.

use std::collections::{BTreeMap, BTreeSet};

/// Room for the ranges in the commit's metadata, in bytes; brokers take 4096 by default.
pub const METADATA_BYTES: usize = 4_000;

const FORMAT: &str = "1:";

/// What is known of one partition since it was assigned to us.
#[derive(Debug, Clone, Default)]
pub struct Watermark {
    /// Received and not settled.
    open: BTreeSet<i64>,
    /// Those of `open` that nobody works on: they are to be fetched again.
    again: BTreeSet<i64>,
    /// One more than the highest offset received.
    next: i64,
    /// Not received yet, and in somebody's hands all the same: an order has brought them forward.
    ahead: BTreeSet<i64>,
    /// Settled before, as an earlier commit's metadata says: start to end (exclusive).
    done_before: BTreeMap<i64, i64>,
}

/// What to store: the next offset to read, and the ranges settled beyond it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    pub offset: i64,
    pub metadata: String,
}

impl Watermark {
    /// A partition that is read from `offset` on, with the metadata of the commit that says so.
    /// Metadata that is not ours is no metadata.
    pub fn starting_at(offset: i64, metadata: &str) -> Self {
        Self {
            next: offset,
            done_before: decode(offset, metadata).unwrap_or_default(),
            ..Self::default()
        }
    }

    /// Notes that `offset` was received; whether it is to be handed out (else it is settled
    /// already, or in somebody's hands).
    pub fn receive(&mut self, offset: i64) -> bool {
        if offset < self.next {
            return self.again.remove(&offset);
        }
        self.next = offset + 1;
        while let Some(first) = self.done_before.first_entry() {
            if *first.get() > offset {
                break;
            }
            first.remove();
        }
        if self
            .done_before
            .first_key_value()
            .is_some_and(|(start, end)| (*start..*end).contains(&offset))
        {
            return false;
        }
        self.open.insert(offset);
        !self.ahead.remove(&offset)
    }

    /// Notes that `offset` is handed out before it is received; whether it may be.
    pub fn take_ahead(&mut self, offset: i64) -> bool {
        let before = self.done_before.range(..=offset).next_back();
        if offset < self.next || before.is_some_and(|(_, end)| offset < *end) {
            return false;
        }
        self.ahead.insert(offset)
    }

    /// The event at `offset` is done with. Whether it was open.
    pub fn settle(&mut self, offset: i64) -> bool {
        if self.ahead.remove(&offset) {
            self.settled_ahead(offset);
            return true;
        }
        self.again.remove(&offset);
        self.open.remove(&offset)
    }

    fn settled_ahead(&mut self, offset: i64) {
        let (mut start, mut end) = (offset, offset + 1);
        let before = self.done_before.range(..offset).next_back();
        if let Some((&first, _)) = before.filter(|(_, end)| **end == offset) {
            start = first;
        }
        if let Some(last) = self.done_before.remove(&end) {
            end = last;
        }
        self.done_before.insert(start, end);
    }

    /// Nobody works on `offset` any more: it must be received again.
    pub fn give_back(&mut self, offset: i64) {
        self.ahead.remove(&offset);
        if self.open.contains(&offset) {
            self.again.insert(offset);
        }
    }

    /// The lowest offset that must be received again.
    pub fn fetch_again_from(&self) -> Option<i64> {
        self.again.first().copied()
    }

    /// Events in somebody's hands.
    pub fn in_hand(&self) -> usize {
        self.open.len() - self.again.len() + self.ahead.len()
    }

    /// One more than the highest offset received.
    pub fn next(&self) -> i64 {
        self.next
    }

    /// The offset that may be stored: nothing below it is unsettled.
    pub fn offset(&self) -> i64 {
        self.open.first().copied().unwrap_or(self.next)
    }

    pub fn commit(&self) -> Commit {
        let offset = self.offset();
        Commit {
            offset,
            metadata: encode(offset, self.done_beyond(), METADATA_BYTES),
        }
    }

    /// How many events may be settled, whichever of those that are known and in whatever order, with
    /// a commit still saying all of it. What is in hand already is not taken off.
    pub fn room(&self) -> usize {
        self.room_within(METADATA_BYTES)
    }

    fn room_within(&self, limit: usize) -> usize {
        let last_ahead = self.ahead.last().map_or(0, |last| last + 1);
        let last_before = self.done_before.last_key_value().map_or(0, |(_, end)| *end);
        let end = self.next.max(last_ahead).max(last_before);
        let span = (end - self.offset()).max(1);
        // What costs most is an event by itself: a gap, `,1;`, and what is left of the gap that it
        // was in, which is no longer than before. Another digit for what comes until this is asked
        // again.
        let most = span.ilog10() as usize + 1 + 3 + 1;
        let used = encoded_bytes(self.offset(), self.done_beyond());
        limit.saturating_sub(used) / most
    }

    /// Where the last of the settled ranges begins, once they take more than half of the room that
    /// a commit has for them.
    pub fn crowded_to(&self) -> Option<i64> {
        let (last, _) = self.done_beyond().last()?;
        let used = encoded_bytes(self.offset(), self.done_beyond());
        (used > METADATA_BYTES / 2).then_some(last)
    }

    /// Settled ranges beyond the watermark, lowest first, start to end (exclusive).
    fn done_beyond(&self) -> impl Iterator<Item = (i64, i64)> {
        let ends = self.open.iter().skip(1).copied().chain([self.next]);
        let received = self
            .open
            .iter()
            .zip(ends)
            .map(|(open, end)| (open + 1, end))
            .filter(|(start, end)| start < end);
        let before = self
            .done_before
            .iter()
            .map(|(start, end)| ((*start).max(self.next), *end))
            .filter(|(start, end)| start < end);
        received.chain(before)
    }
}

/// What [`encode`] would need for all of the ranges.
fn encoded_bytes(offset: i64, ranges: impl Iterator<Item = (i64, i64)>) -> usize {
    let digits = |number: i64| number.max(1).ilog10() as usize + 1;
    let mut position = offset;
    let mut bytes = FORMAT.len();
    for (start, end) in ranges {
        bytes += digits(start - position) + digits(end - start) + 2;
        position = end;
    }
    bytes
}

/// `1:` and pairs of numbers, the gap from the end of the last range and the length of this one; as
/// many as `limit` bytes hold.
fn encode(offset: i64, ranges: impl Iterator<Item = (i64, i64)>, limit: usize) -> String {
    let mut text = String::new();
    let mut position = offset;
    for (start, end) in ranges {
        let pair = format!("{},{};", start - position, end - start);
        if FORMAT.len() + text.len() + pair.len() > limit {
            break;
        }
        text.push_str(&pair);
        position = end;
    }
    if text.is_empty() {
        text
    } else {
        format!("{FORMAT}{text}")
    }
}

fn decode(offset: i64, metadata: &str) -> Option<BTreeMap<i64, i64>> {
    let mut ranges = BTreeMap::new();
    let mut position = offset;
    for pair in metadata
        .strip_prefix(FORMAT)?
        .split(';')
        .filter(|p| !p.is_empty())
    {
        let (gap, length) = pair.split_once(',')?;
        let start = position.checked_add(gap.parse::<u32>().ok()?.into())?;
        let end = start.checked_add(length.parse::<u32>().ok()?.into())?;
        ranges.insert(start, end);
        position = end;
    }
    Some(ranges)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What happens to a partition: an event comes (after a gap), one is settled or given back.
    #[derive(Debug, Clone)]
    enum Step {
        Receive { gap: i64 },
        Settle { which: usize },
        GiveBack { which: usize },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0i64..3).prop_map(|gap| Step::Receive { gap }),
            4 => any::<usize>().prop_map(|which| Step::Settle { which }),
            1 => any::<usize>().prop_map(|which| Step::GiveBack { which }),
        ];
        proptest::collection::vec(step, 1..200)
    }

    /// The steps on a watermark, with the truth beside it: received offsets, and the settled ones.
    fn played(steps: &[Step]) -> (Watermark, Vec<i64>, BTreeSet<i64>) {
        let mut mark = Watermark::starting_at(100, "");
        let (mut received, mut settled) = (Vec::new(), BTreeSet::new());
        let mut next = 100;
        for step in steps {
            match *step {
                Step::Receive { gap } => {
                    next += gap;
                    assert!(mark.receive(next));
                    received.push(next);
                    next += 1;
                }
                Step::Settle { which } if !received.is_empty() => {
                    let offset = received[which % received.len()];
                    mark.settle(offset);
                    settled.insert(offset);
                }
                Step::GiveBack { which } if !received.is_empty() => {
                    mark.give_back(received[which % received.len()]);
                }
                _ => {}
            }
        }
        (mark, received, settled)
    }

    proptest! {
        #[test]
        fn the_stored_offset_never_passes_an_unsettled_event(steps in steps()) {
            let (mark, received, settled) = played(&steps);
            let lowest_open = received.iter().find(|o| !settled.contains(o));
            match lowest_open {
                Some(open) => prop_assert_eq!(mark.offset(), *open),
                None => prop_assert_eq!(mark.offset(), mark.next()),
            }
        }

        #[test]
        fn after_a_restart_exactly_the_unsettled_events_are_handed_out(steps in steps()) {
            let (mark, received, settled) = played(&steps);
            let Commit { offset, metadata } = mark.commit();
            let mut restarted = Watermark::starting_at(offset, &metadata);
            for &event in received.iter().filter(|o| **o >= offset) {
                prop_assert_eq!(restarted.receive(event), !settled.contains(&event));
            }
            prop_assert_eq!(restarted.offset(), mark.offset());
        }

        #[test]
        fn a_commit_right_after_a_restart_forgets_nothing(steps in steps()) {
            let (mark, ..) = played(&steps);
            let commit = mark.commit();
            let restarted = Watermark::starting_at(commit.offset, &commit.metadata);
            // Nothing received yet: the ranges beyond are still known.
            prop_assert_eq!(
                restarted.done_beyond().collect::<Vec<_>>(),
                mark.done_beyond().collect::<Vec<_>>()
            );
        }

        #[test]
        fn given_back_events_are_handed_out_once_more(steps in steps()) {
            let (mut mark, received, settled) = played(&steps);
            let again = mark.again.clone();
            if let Some(from) = mark.fetch_again_from() {
                for &event in received.iter().filter(|o| **o >= from) {
                    prop_assert_eq!(mark.receive(event), again.contains(&event));
                }
            }
            prop_assert!(again.is_disjoint(&settled));
            prop_assert_eq!(mark.fetch_again_from(), None);
        }

        #[test]
        fn what_there_is_room_for_fits_in_whatever_order_it_is_settled(
            steps in steps(),
            ahead in proptest::collection::btree_set(300i64..3_000, 0..20),
            order in proptest::collection::vec(any::<usize>(), 300),
            limit in 40usize..400,
        ) {
            let (mut mark, ..) = played(&steps);
            for offset in ahead {
                mark.take_ahead(offset);
            }
            let room = mark.room_within(limit);
            let used = encoded_bytes(mark.offset(), mark.done_beyond());
            prop_assert!(room == 0 || used <= limit);
            for which in order.into_iter().take(room) {
                let open: Vec<_> = mark.open.iter().chain(&mark.ahead).copied().collect();
                if open.is_empty() {
                    break;
                }
                mark.settle(open[which % open.len()]);
                let text = encode(mark.offset(), mark.done_beyond(), limit);
                let all = Watermark::starting_at(mark.offset(), &text);
                prop_assert_eq!(
                    all.done_beyond().collect::<Vec<_>>(),
                    mark.done_beyond().collect::<Vec<_>>()
                );
            }
        }

        #[test]
        fn what_an_encoding_needs_is_counted_right(steps in steps()) {
            let (mark, ..) = played(&steps);
            let text = encode(mark.offset(), mark.done_beyond(), METADATA_BYTES);
            let counted = encoded_bytes(mark.offset(), mark.done_beyond());
            prop_assert_eq!(counted, text.len().max(FORMAT.len()));
        }

        #[test]
        fn foreign_metadata_is_never_a_panic(metadata in ".{0,40}") {
            let _ = Watermark::starting_at(5, &metadata);
        }
    }

    #[test]
    fn what_is_settled_ahead_is_not_handed_out_again_also_after_a_restart() {
        let mut mark = Watermark::starting_at(0, "");
        assert!(mark.receive(0));
        for offset in [5, 7, 6, 9] {
            assert!(mark.take_ahead(offset));
            assert!(!mark.take_ahead(offset), "in hand");
        }
        assert!(mark.settle(5) && mark.settle(7) && mark.settle(6));
        assert!(!mark.take_ahead(6), "settled");
        let commit = mark.commit();
        assert_eq!(commit.offset, 0);
        let mut restarted = Watermark::starting_at(0, &commit.metadata);
        let fresh: Vec<_> = (0..11).filter(|o| restarted.receive(*o)).collect();
        assert_eq!(fresh, [0, 1, 2, 3, 4, 8, 9, 10]);
        // The one in hand is met by the reader, and its answer comes later.
        let fresh: Vec<_> = (1..11).filter(|o| mark.receive(*o)).collect();
        assert_eq!(fresh, [1, 2, 3, 4, 8, 10]);
        for offset in [0, 1, 2, 3, 4, 8, 10] {
            mark.settle(offset);
        }
        assert_eq!(mark.offset(), 9);
        assert!(mark.settle(9));
        assert_eq!(mark.offset(), 11);
    }

    #[test]
    fn what_was_taken_ahead_and_given_back_is_received_as_usual() {
        let mut mark = Watermark::starting_at(0, "");
        assert!(mark.take_ahead(3));
        mark.give_back(3);
        assert_eq!(mark.in_hand(), 0);
        assert!((0..5).all(|offset| mark.receive(offset)));
    }

    #[test]
    fn many_ranges_are_a_crowd_up_to_the_last_of_them() {
        let mut mark = Watermark::starting_at(0, "");
        for offset in 0..3_000 {
            mark.receive(offset);
        }
        for offset in (1..101).step_by(2) {
            mark.settle(offset);
        }
        assert_eq!(mark.crowded_to(), None);
        for offset in (101..2_001).step_by(2) {
            mark.settle(offset);
        }
        assert_eq!(mark.crowded_to(), Some(1_999));
    }

    #[test]
    fn metadata_fits_however_many_ranges_there_are() {
        let mut mark = Watermark::starting_at(0, "");
        for offset in 0..10_000 {
            mark.receive(offset);
        }
        for offset in (1..10_000).step_by(2) {
            mark.settle(offset);
        }
        let commit = mark.commit();
        assert!(commit.metadata.len() <= METADATA_BYTES && commit.metadata.len() > 3_900);
        let mut restarted = Watermark::starting_at(commit.offset, &commit.metadata);
        assert!(restarted.receive(0) && !restarted.receive(1) && restarted.receive(2));
    }
}
