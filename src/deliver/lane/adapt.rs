//! Adapting: how many requests at once a receiver takes well, found from its own answers.
//!
//! Answers are looked at in windows. A receiver with room to spare answers as fast with more requests
//! as with fewer; one that has none lets them queue, and its answers take longer in proportion. So
//! while answers take about as long as in the fastest window, the limit grows by the square root of
//! itself; when they take longer than [`TOLERANCE`] times that, it shrinks in proportion; when any
//! failed or asked for less, by a quarter. Now and then a window has half the requests, and what it
//! finds is what counts as fast from then on: or that would never be known of a receiver that is asked
//! too much from the start, and never be forgotten of one that has become slower. The time is that of
//! the request alone: waiting in the room, backoff and holds say nothing about the receiver.
//!
//! The shape is the gradient of Netflix's concurrency-limits
//! (<https://github.com/Netflix/concurrency-limits>), with the fastest window in place of a long
//! average, which a receiver that is always overloaded would drag along.

use std::time::Duration;

/// Above one, so that there is something to learn from the first answers.
const FIRST: f64 = 4.0;
/// Answers in a window, at least; and so many for each request at once.
const LEAST_ANSWERS: u32 = 10;
const ROUNDS: f64 = 2.0;
/// Answers may take so many times as long as the fastest before they count as queued.
const TOLERANCE: f64 = 1.5;
/// In one window it shrinks no further than to this share.
const LEAST_SHARE: f64 = 0.5;
const AFTER_FAILURE: f64 = 0.75;
/// One window of so many has half the requests.
const HALF_EVERY: u32 = 24;

/// See the module.
#[derive(Debug)]
pub struct Adapt {
    most: usize,
    limit: f64,
    /// Mean of the fastest window, in seconds.
    fastest: Option<f64>,
    judged: u32,
    window: Window,
}

#[derive(Debug, Default)]
struct Window {
    /// So many were under way when it began, and tell of the limit before.
    earlier: usize,
    answers: u32,
    seconds: f64,
    /// All places were taken at some time: a smaller limit would have been felt.
    full: bool,
    failed: bool,
}

impl Adapt {
    /// Never more than `most`.
    pub fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            limit: FIRST.min(most.max(1) as f64),
            fastest: None,
            judged: 0,
            window: Window::default(),
        }
    }

    pub fn set_most(&mut self, most: usize) {
        self.most = most.max(1);
        self.limit = self.limit.min(self.most as f64);
    }

    /// Requests that may be under way at once.
    pub fn limit(&self) -> usize {
        let limit = match self.is_half() {
            true => self.limit / 2.0,
            false => self.limit,
        };
        (limit as usize).clamp(1, self.most)
    }

    /// An attempt has ended that took so long, with `running` others beside it; `well`: neither
    /// failed nor told to wait.
    pub fn ended(&mut self, well: bool, took: Duration, running: usize) {
        let window = &mut self.window;
        window.failed |= !well;
        window.full |= running + 1 >= self.limit as usize;
        if window.earlier > 0 {
            window.earlier -= 1;
            return;
        }
        window.answers += 1;
        window.seconds += took.as_secs_f64();
        let enough = LEAST_ANSWERS.max((self.limit * ROUNDS) as u32);
        if window.answers >= enough {
            self.judge();
            self.window.earlier = running;
        }
    }

    fn is_half(&self) -> bool {
        self.judged % HALF_EVERY == HALF_EVERY - 1
    }

    fn judge(&mut self) {
        let window = std::mem::take(&mut self.window);
        let was_half = self.is_half();
        self.judged = self.judged.wrapping_add(1);
        // Clocks that tell nothing apart are no reason to divide by zero.
        let mean = (window.seconds / f64::from(window.answers)).max(1e-6);
        if window.failed {
            self.set(self.limit * AFTER_FAILURE);
            return;
        }
        let fastest = match self.fastest {
            Some(fastest) if !was_half => fastest.min(mean),
            _ => mean,
        };
        self.fastest = Some(fastest);
        if mean > fastest * TOLERANCE {
            self.set(self.limit * (fastest / mean).max(LEAST_SHARE));
        } else if window.full && !was_half {
            self.set(self.limit + self.limit.sqrt());
        }
    }

    fn set(&mut self, limit: f64) {
        self.limit = limit.clamp(1.0, self.most as f64);
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use proptest::prelude::*;

    use super::*;

    /// A receiver that works on `places` requests at a time, each for `millis`, and queues the rest;
    /// it always has as many as the limit lets in, for 1,000 times `millis`. Requests a second in the
    /// last half of that, and the most that were under way then.
    fn against(places: usize, millis: u64, adapt: &mut Adapt) -> (f64, usize) {
        let work = millis * 1_000;
        let end = 1_000 * work;
        let mut free: BinaryHeap<Reverse<u64>> = (0..places).map(|_| Reverse(0)).collect();
        // (answered at, began at)
        let mut running: BinaryHeap<Reverse<(u64, u64)>> = BinaryHeap::new();
        let (mut now, mut answered, mut most) = (0, 0, 0);
        while now < end {
            while running.len() < adapt.limit() {
                let Reverse(place) = free.pop().expect("as many as there are places");
                let done = place.max(now) + work;
                free.push(Reverse(done));
                running.push(Reverse((done, now)));
            }
            let Reverse((done, began)) = running.pop().expect("at least one runs");
            now = done;
            if now > end / 2 {
                answered += 1;
                most = most.max(running.len() + 1);
            }
            adapt.ended(true, Duration::from_micros(done - began), running.len());
        }
        (f64::from(answered) * 2e6 / end as f64, most)
    }

    #[test]
    fn one_with_much_room_is_used_to_the_full() {
        let mut adapt = Adapt::new(64);
        against(1_000, 20, &mut adapt);
        assert_eq!(adapt.limit, 64.0);
    }

    #[test]
    fn failures_and_being_told_to_wait_make_it_smaller_but_never_none() {
        let mut adapt = Adapt::new(64);
        against(1_000, 20, &mut adapt);
        let mut windows = 0..256;
        while adapt.limit == 64.0 && windows.next().is_some() {
            adapt.ended(false, Duration::from_millis(20), 63);
        }
        assert_eq!(adapt.limit, 48.0);
        for _ in 0..10_000 {
            adapt.ended(false, Duration::from_millis(20), 0);
        }
        assert_eq!(adapt.limit, 1.0);
    }

    #[test]
    fn one_that_is_asked_little_is_not_believed_to_take_much() {
        let mut adapt = Adapt::new(64);
        for _ in 0..10_000 {
            adapt.ended(true, Duration::from_millis(20), 0);
        }
        assert_eq!(adapt.limit, 4.0);
    }

    #[test]
    fn one_that_becomes_slower_is_asked_less_and_then_believed() {
        let mut adapt = Adapt::new(64);
        against(16, 10, &mut adapt);
        let (rate, most) = against(4, 10, &mut adapt);
        assert!(rate > 0.9 * 400.0 && most <= 16, "{rate}/s with {most}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn nearly_all_that_the_receiver_can_do_with_little_queueing(places in 1_usize..60, millis in 1_u64..200) {
            let mut adapt = Adapt::new(256);
            let (rate, most) = against(places, millis, &mut adapt);
            let could = places as f64 * 1_000.0 / millis as f64;
            prop_assert!(rate > 0.85 * could, "{rate}/s of {could}/s");
            prop_assert!(most <= 3 * places + 10, "{most} at once for {places} places");
        }

        #[test]
        fn it_stays_within_its_bounds(most in 0_usize..300, ends in prop::collection::vec((any::<bool>(), 0_u64..10_000, 0_usize..400), 0..500)) {
            let mut adapt = Adapt::new(most);
            for (well, millis, running) in ends {
                adapt.ended(well, Duration::from_millis(millis), running);
                prop_assert!((1..=most.max(1)).contains(&adapt.limit()));
            }
        }
    }
}
