//! Room: how many messages may be under way, for how large they are.
//!
//! RabbitMQ hands out as many messages as the prefetch says, whatever their size, and the client
//! library takes them all into memory before the budget of bytes has a say. So the prefetch is
//! lowered as soon as a message comes of which so many would be too much, and raised again when
//! none has come for a while. What was handed out before that is taken all the same.

use std::time::Duration;

use tokio::time::Instant;

/// A large message is remembered for so long.
const REMEMBERED: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct Room {
    bytes: usize,
    largest: usize,
    /// When one about that large was last seen.
    seen: Instant,
}

impl Room {
    pub fn new(bytes: usize, now: Instant) -> Self {
        Self {
            bytes,
            largest: 0,
            seen: now,
        }
    }

    /// Notes a message.
    pub fn taken(&mut self, size_bytes: usize, now: Instant) {
        let is_forgotten = now.saturating_duration_since(self.seen) >= REMEMBERED;
        if size_bytes > self.largest || is_forgotten {
            self.largest = size_bytes;
        }
        if size_bytes * 2 >= self.largest {
            self.seen = now;
        }
    }

    /// The prefetch to go on with instead of `prefetch`, where another is called for: less whenever
    /// it is too much, more when it is less than half of what there is room for, or all of `most` is.
    pub fn instead_of(&self, prefetch: u16, most: u16) -> Option<u16> {
        let fits = self.bytes / self.largest.max(1);
        let fits = u16::try_from(fits)
            .unwrap_or(u16::MAX)
            .clamp(1, most.max(1));
        let is_all = fits == most && fits > prefetch;
        let is_worth_it = is_all || fits < prefetch || fits / 2 >= prefetch;
        is_worth_it.then_some(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn large_messages_lower_the_prefetch_for_a_while() {
        let began = Instant::now();
        let mut room = Room::new(128 * MIB, began);
        room.taken(1_000, began);
        assert_eq!(room.instead_of(256, 256), None);
        room.taken(16 * MIB, began);
        assert_eq!(room.instead_of(256, 256), Some(8));
        // A small one between does not change it.
        room.taken(1_000, began);
        assert_eq!(room.instead_of(8, 256), None);
        room.taken(1_000, began + REMEMBERED);
        assert_eq!(room.instead_of(8, 256), Some(256));
        assert_eq!(room.instead_of(8, 12), Some(12));
        room.taken(12 * MIB, began + REMEMBERED);
        // Ten would be no gain to speak of.
        assert_eq!(room.instead_of(8, 256), None);
        // One that has no room at all still comes, alone.
        room.taken(500 * MIB, began + REMEMBERED);
        assert_eq!(room.instead_of(8, 256), Some(1));
    }
}
