//! Names: subscriptions by a text that they themselves hold, at twelve bytes each.

use super::keyed::{Keyed, home};

/// A hash table of numbers. The texts are where the numbers lead to.
pub(super) struct Names {
    places: Box<[Place]>,
    keyed: Keyed,
}

#[derive(Clone, Copy)]
struct Place {
    hash: u32,
    number: u32,
}

const VACANT: Place = Place {
    hash: 0,
    number: u32::MAX,
};

impl Names {
    /// `is_called` says whether a number has a name. The first number of a name keeps it.
    pub(super) fn new<'a>(
        names: impl Iterator<Item = (u32, &'a str)> + Clone,
        is_called: impl Fn(u32, &str) -> bool,
    ) -> Self {
        let count = names.clone().count();
        let mut this = Self {
            // One stays vacant, so that every search ends.
            places: vec![VACANT; count * 3 / 2 + 1].into(),
            keyed: Keyed::new(),
        };
        for (number, name) in names {
            let hash = this.keyed.hash(0, name.as_bytes());
            let at = this.place(hash, |number| is_called(number, name));
            if this.places[at].number == VACANT.number {
                this.places[at] = Place { hash, number };
            }
        }
        this
    }

    pub(super) fn get(&self, name: &str, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let hash = self.keyed.hash(0, name.as_bytes());
        let Place { number, .. } = self.places[self.place(hash, is_it)];
        (number != VACANT.number).then_some(number)
    }

    /// Where it is, or could be.
    fn place(&self, hash: u32, is_it: impl Fn(u32) -> bool) -> usize {
        let mut at = home(hash, self.places.len());
        loop {
            let place = self.places[at];
            if place.number == VACANT.number || place.hash == hash && is_it(place.number) {
                return at;
            }
            at = (at + 1) % self.places.len();
        }
    }
}
