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
    pub bytes: usize,
    pub paused: bool,
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
            paused: false,
            trimmed: 0,
            looked_for_ms: 0,
        }
    }

    pub fn forget(&mut self) {
        self.waiting.clear();
        self.ordered.clear();
        self.bytes = 0;
        self.paused = false;
        self.looked_for_ms = 0;
    }

    /// Puts a record where its order wants it; `false` when that is nowhere.
    pub fn obey(&mut self, deed: Deed, waiting: Waiting, obeyed: &Obeyed) -> bool {
        if let Parked::Delivery(envelope) = &waiting.parked {
            obeyed(deed, &envelope.delivery);
        }
        match deed {
            Deed::Now => {
                self.bytes += waiting.bytes;
                self.ordered.push_back(waiting);
                true
            }
            Deed::Drop => {
                self.partition.settle(waiting.offset);
                false
            }
        }
    }
}
