//! One partition of a tier, and what was read ahead of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::partition::Partition;
use super::waiting::{Parked, Waiting};
use crate::broker::Obeyed;
use crate::broker::parked::Deed;
use crate::delivery::WaitKind;

pub struct Lane {
    pub partition: Arc<Partition>,
    pub kind: WaitKind,
    pub delay: Duration,
    pub waiting: VecDeque<Waiting>,
    /// Due at once because somebody wants it so.
    pub ordered: VecDeque<Waiting>,
    /// Of all records here, and of those that are due by order.
    pub bytes: usize,
    pub ordered_bytes: usize,
    /// An order has picked records out of it, since it was assigned.
    pub picked: bool,
    pub paused: bool,
    /// How many more may leave memory before this is looked at again, see [`Lane::measure_room`].
    pub room: usize,
    pub trimmed: i64,
    /// Looked through beyond what is in memory, for orders given up to this time.
    pub looked_for_ms: i64,
}

impl Lane {
    pub fn new(partition: Arc<Partition>, kind: WaitKind, delay: Duration) -> Self {
        Self {
            partition,
            kind,
            delay,
            waiting: VecDeque::new(),
            ordered: VecDeque::new(),
            bytes: 0,
            ordered_bytes: 0,
            picked: false,
            paused: false,
            room: usize::MAX,
            trimmed: 0,
            looked_for_ms: 0,
        }
    }

    pub fn forget(&mut self) {
        self.waiting.clear();
        self.ordered.clear();
        self.bytes = 0;
        self.ordered_bytes = 0;
        self.picked = false;
        self.paused = false;
        self.room = usize::MAX;
        self.looked_for_ms = 0;
    }

    /// Looks how much may leave memory. What leaves it is settled in any order, and out of a backlog
    /// that an order has picked from there may be more than a commit has room to say.
    pub fn measure_room(&mut self) {
        self.room = match self.picked {
            true => self
                .partition
                .room_beside(self.waiting.len() + self.ordered.len()),
            false => usize::MAX,
        };
    }

    /// Whether a record may leave memory: there is room in the commits for it, or it needs none.
    fn may_leave(&self, record: &Waiting) -> bool {
        self.room > 0 || record.offset == self.partition.lowest()
    }

    /// Nothing here may leave memory, so reading has to go on to the record that makes room.
    pub fn is_stuck(&self) -> bool {
        let fronts = [self.ordered.front(), self.waiting.front()];
        self.room == 0
            && !fronts
                .into_iter()
                .flatten()
                .any(|head| self.may_leave(head))
    }

    /// What is passed on next, if it is due: since when, and whether by order.
    pub fn next_due(&self, now_ms: i64) -> Option<(i64, bool)> {
        let ordered = self.ordered.front().filter(|head| self.may_leave(head));
        if let Some(head) = ordered {
            return Some((head.due_ms.min(now_ms), true));
        }
        let head = self.waiting.front()?;
        (head.due_ms <= now_ms && self.may_leave(head)).then_some((head.due_ms, false))
    }

    /// Puts a record where its order wants it; `false` when that is nowhere.
    pub fn obey(&mut self, deed: Deed, waiting: Waiting, obeyed: &Obeyed) -> bool {
        if let Parked::Delivery(envelope) = &waiting.parked {
            obeyed(deed, &envelope.delivery);
        }
        if !std::mem::replace(&mut self.picked, true) {
            self.measure_room();
        }
        match deed {
            Deed::Now => {
                self.bytes += waiting.bytes;
                self.ordered_bytes += waiting.bytes;
                // The lowest first: settling it always finds room.
                let later = |other: &Waiting| other.offset < waiting.offset;
                let position = self.ordered.partition_point(later);
                self.ordered.insert(position, waiting);
                true
            }
            Deed::Drop => {
                self.room = self.room.saturating_sub(1);
                self.partition.settle(waiting.offset);
                false
            }
        }
    }

    /// The next record, of those that are due by order or of the others.
    pub fn pop(&mut self, is_ordered: bool) -> Option<Waiting> {
        let queue = match is_ordered {
            true => &mut self.ordered,
            false => &mut self.waiting,
        };
        let head = queue.pop_front()?;
        self.room = self.room.saturating_sub(1);
        self.bytes -= head.bytes;
        if is_ordered {
            self.ordered_bytes -= head.bytes;
        }
        Some(head)
    }

    /// The next record, if it is a delivery that only waits and lies before `offset`.
    pub fn pop_before(&mut self, offset: i64) -> Option<Waiting> {
        let head = self.waiting.front()?;
        let is_before = head.offset < offset && matches!(head.parked, Parked::Delivery(_));
        (is_before && self.may_leave(head))
            .then(|| self.pop(false))
            .flatten()
    }
}
