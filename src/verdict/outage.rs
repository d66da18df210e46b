//! Our own outage: whether it is us who cannot reach anybody, judged from what attempts tell.
//!
//! [`Outage`] is pure like [`decide`](super::decide): times come in, counted from any fixed
//! beginning. Where so many hosts in a row cannot be reached that it may be us (three, or one where
//! a check of our own can be asked), we are *suspected*; when that has lasted for [`WINDOW`] without
//! a sign of the network, we are *out*, until one comes. Asking the check, sending probes and what
//! becomes of the deliveries is `pipeline`'s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::attempt::{ErrorClass, Outcome};

/// So long nobody is reached before we believe that it is us.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Between two probes while we are out.
pub const PROBE_EVERY: Duration = Duration::from_secs(5);
/// Hosts that have to fail where no check of our own is set.
pub const FEWEST_HOSTS: usize = 3;
/// Hosts that are remembered; more than the fewest only serve the log and the choice of probes.
const REMEMBERED: usize = 64;

/// What an attempt tells of the network between us and everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// There was an HTTP answer, whatever it said.
    Answered,
    /// The name did not resolve, or there was no TCP connection.
    Unreachable,
    /// There was no answer for another reason: somebody was reached, or may have been.
    Otherwise,
}

impl Sign {
    /// `None` when nothing was sent.
    pub fn of(outcome: &Outcome) -> Option<Self> {
        match outcome {
            Outcome::Answered(_) => Some(Self::Answered),
            Outcome::Failed(failure) => match failure.class {
                ErrorClass::Dns | ErrorClass::Connect => Some(Self::Unreachable),
                ErrorClass::Tls | ErrorClass::Timeout | ErrorClass::Protocol => {
                    Some(Self::Otherwise)
                }
                // Nothing was sent to the receiver.
                ErrorClass::Denied | ErrorClass::Auth => None,
            },
            Outcome::Unsendable(_)
            | Outcome::Unrenderable(_)
            | Outcome::Invalid(_)
            | Outcome::Withheld => None,
        }
    }
}

/// What we believe of ourselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Clear,
    /// It may be us.
    Suspected {
        since: Duration,
    },
    /// It is us.
    Out {
        since: Duration,
    },
}

/// What is to be done, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Nothing,
    /// Look again then.
    At(Duration),
    /// Make sure that it is us, then [`Outage::confirm`] or [`Outage::refute`].
    Confirm,
    /// Let one delivery through, then [`Outage::probed`].
    Probe,
}

/// See the module.
#[derive(Debug)]
pub struct Outage {
    fewest: usize,
    phase: Phase,
    /// When each host was last not reached, since the last sign of the network.
    failed: BTreeMap<Arc<str>, Duration>,
    /// The last sign of the network.
    worked_at: Option<Duration>,
    /// Somebody else has said that it is not us; believed until then.
    trusted_until: Duration,
    probed_at: Duration,
}

impl Outage {
    /// `fewest`: distinct hosts that have to fail, one at least.
    pub fn new(fewest: usize) -> Self {
        Self {
            fewest: fewest.clamp(1, REMEMBERED),
            phase: Phase::Clear,
            failed: BTreeMap::new(),
            worked_at: None,
            trusted_until: Duration::ZERO,
            probed_at: Duration::ZERO,
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The hosts that were not reached lately.
    pub fn failed(&self) -> impl ExactSizeIterator<Item = &Arc<str>> {
        self.failed.keys()
    }

    /// An attempt to reach `host`, made from `began` to `now`.
    pub fn observe(&mut self, host: &str, sign: Sign, began: Duration, now: Duration) -> Phase {
        match sign {
            Sign::Answered => self.worked(now),
            // What was under way when the network went ends late, and says nothing about now.
            Sign::Otherwise => match self.phase {
                Phase::Suspected { since } | Phase::Out { since } if began < since => {}
                _ => self.worked(now),
            },
            Sign::Unreachable => self.not_reached(host, began, now),
        }
        self.phase
    }

    /// There was a sign of the network at `at`.
    pub fn worked(&mut self, at: Duration) {
        match self.phase {
            Phase::Suspected { since } | Phase::Out { since } if at < since => return,
            _ => {}
        }
        self.phase = Phase::Clear;
        self.failed.retain(|_, failed_at| *failed_at > at);
        self.worked_at = Some(self.worked_at.map_or(at, |before| before.max(at)));
    }

    fn not_reached(&mut self, host: &str, began: Duration, now: Duration) {
        let is_old = self.worked_at.is_some_and(|worked_at| began < worked_at);
        if is_old || now < self.trusted_until {
            return;
        }
        if self.phase == Phase::Clear {
            self.failed
                .retain(|_, failed_at| now.saturating_sub(*failed_at) < WINDOW);
        }
        if let Some(failed_at) = self.failed.get_mut(host) {
            *failed_at = now;
        } else if self.failed.len() < REMEMBERED {
            self.failed.insert(host.into(), now);
        }
        if self.phase == Phase::Clear && self.failed.len() >= self.fewest {
            self.phase = Phase::Suspected { since: now };
        }
    }

    /// What is to be done now.
    pub fn next(&self, now: Duration) -> Next {
        let (at, then) = match self.phase {
            Phase::Clear => return Next::Nothing,
            Phase::Suspected { since } => (since + WINDOW, Next::Confirm),
            Phase::Out { .. } => (self.probed_at + PROBE_EVERY, Next::Probe),
        };
        if now < at { Next::At(at) } else { then }
    }

    /// Nobody was found who is reached: when the time has come, it is us.
    pub fn confirm(&mut self, now: Duration) {
        if self.next(now) == Next::Confirm {
            self.phase = Phase::Out { since: now };
            self.probed_at = now;
        }
    }

    /// Somebody else than a receiver was reached: it is not us, for the next [`WINDOW`] at least.
    pub fn refute(&mut self, now: Duration) {
        self.worked(now);
        self.trusted_until = now + WINDOW;
    }

    pub fn probed(&mut self, now: Duration) {
        self.probed_at = now;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::attempt::{Answer, Failure};

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn fails(outage: &mut Outage, host: &str, at: u64) -> Phase {
        outage.observe(host, Sign::Unreachable, ms(at), ms(at))
    }

    /// Three hosts not reached in the first 20 ms.
    fn suspected() -> Outage {
        let mut outage = Outage::new(FEWEST_HOSTS);
        assert_eq!(fails(&mut outage, "a", 0), Phase::Clear);
        assert_eq!(fails(&mut outage, "b", 10), Phase::Clear);
        let since = ms(20);
        assert_eq!(fails(&mut outage, "c", 20), Phase::Suspected { since });
        outage
    }

    fn out() -> Outage {
        let mut outage = suspected();
        outage.confirm(ms(10_020));
        let since = ms(10_020);
        assert_eq!(outage.phase(), Phase::Out { since });
        outage
    }

    #[test]
    fn three_hosts_that_fail_for_ten_seconds_are_an_outage() {
        let mut outage = suspected();
        assert_eq!(outage.next(ms(20)), Next::At(ms(10_020)));
        outage.confirm(ms(10_019));
        assert_eq!(outage.phase(), Phase::Suspected { since: ms(20) });
        assert_eq!(outage.next(ms(10_020)), Next::Confirm);
        outage.confirm(ms(10_020));
        assert_eq!(outage.phase(), Phase::Out { since: ms(10_020) });
    }

    #[test]
    fn two_hosts_are_none_however_often_they_fail() {
        let mut outage = Outage::new(FEWEST_HOSTS);
        for at in 0..1_000 {
            let host = if at % 2 == 0 { "a" } else { "b" };
            assert_eq!(fails(&mut outage, host, at * 100), Phase::Clear);
        }
        assert_eq!(outage.next(ms(100_000)), Next::Nothing);
    }

    #[test]
    fn one_host_is_enough_where_a_check_can_be_asked() {
        let mut outage = Outage::new(1);
        let since = ms(0);
        assert_eq!(fails(&mut outage, "a", 0), Phase::Suspected { since });
    }

    #[test]
    fn hosts_that_fail_one_by_one_over_hours_are_none() {
        let mut outage = Outage::new(FEWEST_HOSTS);
        for (number, host) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
            assert_eq!(
                fails(&mut outage, host, number as u64 * 6_000),
                Phase::Clear
            );
        }
    }

    #[test]
    fn any_answer_ends_it() {
        for mut outage in [suspected(), out()] {
            let (began, now) = (ms(0), ms(20_000));
            let phase = outage.observe("d", Sign::Answered, began, now);
            assert_eq!((phase, outage.failed().len()), (Phase::Clear, 0));
        }
    }

    #[test]
    fn what_began_before_it_and_ends_without_an_answer_says_nothing() {
        let mut outage = out();
        let since = ms(10_020);
        let late = outage.observe("d", Sign::Otherwise, ms(15), ms(11_000));
        assert_eq!(late, Phase::Out { since });
        let fresh = outage.observe("d", Sign::Otherwise, ms(10_030), ms(11_000));
        assert_eq!(fresh, Phase::Clear);
    }

    #[test]
    fn a_failure_that_began_before_the_last_answer_does_not_count() {
        let mut outage = Outage::new(FEWEST_HOSTS);
        outage.worked(ms(100));
        for host in ["a", "b", "c"] {
            let phase = outage.observe(host, Sign::Unreachable, ms(99), ms(5_000));
            assert_eq!(phase, Phase::Clear);
        }
    }

    #[test]
    fn probes_are_five_seconds_apart() {
        let mut outage = out();
        assert_eq!(outage.next(ms(10_020)), Next::At(ms(15_020)));
        assert_eq!(outage.next(ms(15_020)), Next::Probe);
        outage.probed(ms(15_100));
        assert_eq!(outage.next(ms(15_100)), Next::At(ms(20_100)));
    }

    #[test]
    fn who_is_refuted_is_not_suspected_again_at_once() {
        let mut outage = suspected();
        outage.refute(ms(30));
        for host in ["a", "b", "c"] {
            assert_eq!(fails(&mut outage, host, 10_029), Phase::Clear);
        }
        for host in ["a", "b"] {
            assert_eq!(fails(&mut outage, host, 10_030), Phase::Clear);
        }
        let since = ms(10_030);
        assert_eq!(fails(&mut outage, "c", 10_030), Phase::Suspected { since });
    }

    #[test]
    fn only_names_and_connections_count_as_unreachable() {
        let failed = |class| {
            Outcome::Failed(Failure {
                class,
                detail: String::new(),
            })
        };
        let signs: Vec<_> = ErrorClass::ALL
            .into_iter()
            .filter(|class| Sign::of(&failed(*class)) == Some(Sign::Unreachable))
            .collect();
        assert_eq!(signs, [ErrorClass::Dns, ErrorClass::Connect]);
        let answered = Outcome::Answered(Answer {
            status: 500,
            retry_after: None,
            limit: None,
            wish: None,
            excerpt: String::new(),
        });
        assert_eq!(Sign::of(&answered), Some(Sign::Answered));
        assert_eq!(Sign::of(&failed(ErrorClass::Denied)), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Seen { host: u8, sign: Sign, took: u64 },
        Confirm,
        Refute,
        Probed,
    }

    fn step() -> impl Strategy<Value = Step> {
        let sign = prop_oneof![
            8 => Just(Sign::Unreachable),
            1 => Just(Sign::Answered),
            1 => Just(Sign::Otherwise),
        ];
        prop_oneof![
            12 => (0..100u8, sign, 0..20_000u64)
                .prop_map(|(host, sign, took)| Step::Seen { host, sign, took }),
            4 => Just(Step::Confirm),
            1 => Just(Step::Refute),
            1 => Just(Step::Probed),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// We are never out but after ten seconds without an answer, with enough hosts that failed
        /// since the last one; and an answer always ends it. Memory is bounded.
        #[test]
        fn an_outage_is_only_what_it_is_defined_as(
            fewest in 1..5usize,
            steps in proptest::collection::vec((0..4_000u64, step()), 1..120),
        ) {
            let mut outage = Outage::new(fewest);
            let mut now = 30_000;
            let mut answered_at = None;
            let mut since_answer = BTreeSet::new();
            for (pause, step) in steps {
                now += pause;
                let before = outage.phase();
                match step {
                    Step::Seen { host, sign, took } => {
                        let host = host.to_string();
                        outage.observe(&host, sign, ms(now - took), ms(now));
                        match sign {
                            Sign::Answered => {
                                answered_at = Some(now);
                                since_answer.clear();
                                prop_assert_eq!(outage.phase(), Phase::Clear);
                            }
                            Sign::Unreachable => {
                                since_answer.insert(host);
                                prop_assert!(before == Phase::Clear || outage.phase() == before);
                            }
                            Sign::Otherwise => {}
                        }
                        let began = outage.phase() != before && matches!(outage.phase(), Phase::Out { .. });
                        prop_assert!(!began);
                    }
                    Step::Confirm => outage.confirm(ms(now)),
                    Step::Refute => {
                        outage.refute(ms(now));
                        prop_assert_eq!(outage.phase(), Phase::Clear);
                    }
                    Step::Probed => outage.probed(ms(now)),
                }
                if let (Phase::Suspected { .. } | Phase::Clear, Phase::Out { since }) = (before, outage.phase()) {
                    prop_assert_eq!(since, ms(now));
                    prop_assert!(answered_at.is_none_or(|at| at + 10_000 <= now));
                    prop_assert!(since_answer.len() >= fewest);
                }
                prop_assert!(outage.failed().len() <= REMEMBERED);
                let idle = outage.next(ms(now)) == Next::Nothing;
                prop_assert_eq!(idle, outage.phase() == Phase::Clear);
            }
        }
    }
}
