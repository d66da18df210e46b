//! Tiers: fixed delays on the broker, and the hops by which a longer wait passes through them.
//!
//! The envelope carries the whole delay and what remains of it; each tier passed takes off its own
//! delay by the broker's clock. The rule ([`Tiers::hop`]) never lets a delivery come early, and
//! lets it be late by at most a tenth of the whole delay, or a second.

use std::time::Duration;

/// The delays that exist on a broker, shortest first; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiers(Vec<Duration>);

/// One stay on a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The tier's delay, in whole seconds: it names the queue or topic.
    pub tier: Duration,
    /// What is still to wait when this stay is over.
    pub remaining: Duration,
}

impl Tiers {
    /// 1 s, 5 s, 15 s, 1 min, 5 min, 15 min, 1 h, 4 h, 12 h.
    pub const DEFAULT_SECONDS: [u64; 9] = [1, 5, 15, 60, 300, 900, 3_600, 14_400, 43_200];
    /// Holds use the tiers up to this one.
    pub const LONGEST_HOLD: Duration = Duration::from_secs(300);
    /// Lateness that is always allowed.
    const GRACE: Duration = Duration::from_secs(1);

    /// Tiers of these delays in whole seconds; sorted, without duplicates and zeros. `None` when
    /// nothing is left.
    pub fn new(seconds: impl IntoIterator<Item = u64>) -> Option<Self> {
        let mut tiers: Vec<_> = seconds
            .into_iter()
            .filter(|&s| s > 0)
            .map(Duration::from_secs)
            .collect();
        tiers.sort_unstable();
        tiers.dedup();
        (!tiers.is_empty()).then_some(Self(tiers))
    }

    /// Those that holds use: up to five minutes, and at least the shortest.
    pub fn for_holds(&self) -> Self {
        let short: Vec<_> = self
            .0
            .iter()
            .copied()
            .filter(|&tier| tier <= Self::LONGEST_HOLD)
            .collect();
        Self(if short.is_empty() {
            self.0[..1].to_vec()
        } else {
            short
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = Duration> {
        self.0.iter().copied()
    }

    pub fn shortest(&self) -> Duration {
        self.0[0]
    }

    /// Where a delivery goes next that has still `rest` of `whole` to wait: the smallest tier that
    /// covers the rest if that overshoots by at most a tenth of the whole delay (or 1 s), else the
    /// largest tier below it.
    pub fn hop(&self, rest: Duration, whole: Duration) -> Hop {
        let allowed = (whole / 10).max(Self::GRACE);
        let covering = self.0.iter().copied().find(|&tier| tier >= rest);
        let below = self.0.iter().copied().rev().find(|&tier| tier < rest);
        let tier = match (covering, below) {
            (Some(covering), _) if covering - rest <= allowed => covering,
            (_, Some(below)) => below,
            (Some(covering), None) => covering,
            (None, None) => unreachable!("tiers are never empty"),
        };
        Hop {
            tier,
            remaining: rest.saturating_sub(tier),
        }
    }
}

impl Default for Tiers {
    fn default() -> Self {
        Self(
            Self::DEFAULT_SECONDS
                .into_iter()
                .map(Duration::from_secs)
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All stays of one wait, and the time they take together.
    fn walk(tiers: &Tiers, whole: Duration) -> (usize, Duration) {
        let (mut rest, mut hops, mut waited) = (whole, 0, Duration::ZERO);
        loop {
            let hop = tiers.hop(rest, whole);
            hops += 1;
            waited += hop.tier;
            if hop.remaining.is_zero() {
                return (hops, waited);
            }
            assert!(
                hop.remaining < rest,
                "a hop that takes nothing off would go round for ever"
            );
            rest = hop.remaining;
        }
    }

    proptest! {
        #[test]
        fn default_tiers_are_never_early_and_late_by_a_tenth_at_most(ms in 1u64..400_000_000) {
            let whole = Duration::from_millis(ms);
            let (hops, waited) = walk(&Tiers::default(), whole);
            prop_assert!(waited >= whole);
            prop_assert!(waited - whole <= (whole / 10).max(Duration::from_secs(1)));
            prop_assert!(hops <= 24, "{hops} hops for {whole:?}");
        }

        #[test]
        fn any_tiers_lose_nothing_and_are_never_early(
            seconds in proptest::collection::vec(1u64..50_000, 1..8),
            ms in 1u64..10_000_000,
        ) {
            let tiers = Tiers::new(seconds).unwrap();
            let whole = Duration::from_millis(ms);
            let mut rest = whole;
            let mut waited = Duration::ZERO;
            for _ in 0..1_000_000 {
                let hop = tiers.hop(rest, whole);
                waited += hop.tier;
                rest = hop.remaining;
                if rest.is_zero() { break; }
            }
            prop_assert!(rest.is_zero());
            prop_assert!(waited >= whole);
        }
    }

    #[test]
    fn a_wait_that_is_a_tier_takes_one_hop() {
        for seconds in Tiers::DEFAULT_SECONDS {
            assert_eq!(
                walk(&Tiers::default(), Duration::from_secs(seconds)),
                (1, Duration::from_secs(seconds))
            );
        }
    }

    #[test]
    fn holds_use_tiers_up_to_five_minutes() {
        assert_eq!(
            Tiers::default().for_holds().iter().last(),
            Some(Duration::from_secs(300))
        );
    }
}
