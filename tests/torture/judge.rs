//! The judge: compares what was owed with what became of it, when all is quiet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::producer::{Events, number_in};
use crate::support::bus::Letter;
use crate::support::receiver::Request;

pub const HEADING: &str = "scenario                     broker    owed deliv  dup dead parked missing spurious recovery   peak  took";

/// Ids shown of those that are missing.
const SHOWN: usize = 20;
/// The budget of the config, for what is in flight.
const BUDGET_KIB: u64 = 256 * 1024;
/// What the process needs besides.
const BASE_KIB: u64 = 128 * 1024;
/// What a connection costs in a debug build, in those scenarios that have thousands of them, and
/// bodies that are small.
const CONNECTION_KIB: u64 = 36;
const MOST_DESCRIPTORS: usize = 1_000;

/// One subscription, and what its receiver saw.
pub struct Subscribed {
    pub name: String,
    /// What is owed to it.
    pub events: Events,
    pub requests: Vec<Request>,
    /// Attempts that the policy allows, where nothing was killed in between.
    pub most_attempts: Option<usize>,
    /// No attempt may follow another sooner.
    pub not_before: Option<Duration>,
}

/// All that was seen.
pub struct Evidence {
    pub scenario: String,
    pub events: Events,
    pub letters: Vec<Letter>,
    pub subscribed: Vec<Subscribed>,
    /// What `/v1/parked` says at the end, and how often something was parked.
    pub still_parked: BTreeMap<String, u64>,
    pub parked: u64,
    /// From the end of the faults to the delivery of an event published after it.
    pub recovery: Option<Duration>,
    pub most_recovery: Duration,
    pub most_duplicates: usize,
    pub peak_kib: u64,
    pub descriptors: usize,
    /// Requests that were under way at once where that is very many: each has buffers.
    pub connections: u64,
    /// How it is known that a proxy was bypassed, if it was.
    pub past_the_proxy: Option<String>,
}

/// The judgement of one scenario.
pub struct Report {
    scenario: String,
    obligations: usize,
    deliveries: usize,
    duplicates: usize,
    dead: usize,
    parked: u64,
    missing: usize,
    spurious: usize,
    recovery: Option<Duration>,
    peak_kib: u64,
    /// What was broken, each with what is known of it.
    pub broken: Vec<String>,
    notes: Vec<String>,
}

impl Report {
    pub fn of(evidence: &Evidence) -> Self {
        let mut report = Self {
            scenario: evidence.scenario.clone(),
            obligations: evidence
                .subscribed
                .iter()
                .map(|subscribed| subscribed.events.confirmed.len())
                .sum(),
            deliveries: 0,
            duplicates: 0,
            dead: evidence.letters.len(),
            parked: evidence.parked,
            missing: 0,
            spurious: 0,
            recovery: evidence.recovery,
            peak_kib: evidence.peak_kib,
            broken: Vec::new(),
            notes: Vec::new(),
        };
        report.letters(evidence);
        for subscribed in &evidence.subscribed {
            report.subscription(evidence, subscribed);
        }
        report.bounds(evidence);
        report
    }

    fn breaks(&mut self, invariant: &str, what: impl AsRef<str>) {
        self.broken.push(format!("{invariant}: {}", what.as_ref()));
    }

    pub fn dead(&self) -> usize {
        self.dead
    }

    /// Deliveries that the scenario itself has looked after.
    pub fn also(&mut self, obligations: usize, deliveries: usize, duplicates: usize) {
        self.obligations += obligations;
        self.deliveries += deliveries;
        self.duplicates += duplicates;
    }

    /// A figure of this scenario only.
    pub fn note(&mut self, what: String) {
        self.notes.push(what);
    }

    /// Something that only the scenario knows about.
    pub fn must(&mut self, holds: bool, what: &str) {
        if !holds {
            self.breaks("expected", what);
        }
    }

    /// I2 for dead letters: each is an event as it was published, of a subscription that there is.
    fn letters(&mut self, evidence: &Evidence) {
        for letter in &evidence.letters {
            let whose = subscription_of(letter);
            let owner = evidence.subscribed.iter().find(|one| one.name == whose);
            if !owner.is_some_and(|owner| owner.events.has(&letter.body)) {
                self.spurious += 1;
                let reason = &letter.reason;
                self.breaks(
                    "I2",
                    format!("a dead letter of '{whose}' ({reason}) that nobody published"),
                );
            }
        }
    }

    /// I1, I2, I3 and the duplicates of one subscription.
    fn subscription(&mut self, evidence: &Evidence, subscribed: &Subscribed) {
        let name = &subscribed.name;
        let mut seen: BTreeMap<usize, Vec<&Request>> = BTreeMap::new();
        for request in &subscribed.requests {
            match number_in(&request.body) {
                Some(number) if subscribed.events.has(&request.body) => {
                    seen.entry(number).or_default().push(request);
                }
                _ => {
                    self.spurious += 1;
                    self.breaks(
                        "I2",
                        format!("{name} got {} with a body of nobody's", request.id),
                    );
                }
            }
            if !request.verified {
                self.breaks(
                    "I2",
                    format!("{name} got {} with a bad signature", request.id),
                );
            }
        }
        let dead: BTreeMap<usize, &str> = evidence
            .letters
            .iter()
            .filter(|letter| subscription_of(letter) == name)
            .filter_map(|letter| Some((number_in(&letter.body)?, letter.reason.as_str())))
            .collect();
        for (number, requests) in &seen {
            let ids: BTreeSet<_> = requests.iter().map(|request| &request.id).collect();
            if ids.len() > 1 {
                self.breaks("I3", format!("{name}: event {number} came under {ids:?}"));
            }
            if subscribed
                .most_attempts
                .is_some_and(|most| requests.len() > most)
            {
                let count = requests.len();
                self.breaks(
                    "I3",
                    format!("{name}: event {number} was attempted {count} times"),
                );
            }
            let early = requests.windows(2).map(|two| two[1].at - two[0].at).min();
            if let (Some(gap), Some(least)) = (early, subscribed.not_before)
                && gap < least
            {
                self.breaks(
                    "I3",
                    format!("{name}: event {number} came again after {gap:?}"),
                );
            }
            let accepted = requests.iter().filter(|r| is_success(r)).count();
            self.deliveries += accepted;
            self.duplicates += accepted.saturating_sub(1);
        }
        let mut places = Vec::new();
        for number in &subscribed.events.confirmed {
            let requests = seen.get(number).map(Vec::as_slice).unwrap_or_default();
            if !requests.iter().any(|r| is_success(r)) && !dead.contains_key(number) {
                let last = requests.last().map(|request| request.answered);
                let (id, count) = (requests.first().map(|r| r.id.as_str()), requests.len());
                places.push(match last {
                    None => format!("event {number}: never attempted"),
                    Some(status) => format!(
                        "event {number} ({}): attempted {count} times, last answered {status}",
                        id.unwrap_or_default()
                    ),
                });
            }
        }
        // Not every broker says whose it is, and not of all.
        let parked = [name, ""].map(|whose| evidence.still_parked.get(whose));
        let parked = parked.into_iter().flatten().sum::<u64>() as usize;
        if places.len() > parked {
            self.missing += places.len() - parked;
            let count = places.len();
            places.truncate(SHOWN);
            let list = places.join("\n      ");
            self.breaks(
                "I1",
                format!("{name} misses {count}, {parked} parked:\n      {list}"),
            );
        }
    }

    /// I5, I6 and I7.
    fn bounds(&mut self, evidence: &Evidence) {
        match evidence.recovery {
            None => self.breaks("I5", "no fresh event was delivered after the faults"),
            Some(took) if took > evidence.most_recovery => {
                self.breaks("I5", format!("a fresh event took {took:?}"));
            }
            Some(_) => {}
        }
        if let Some(past) = &evidence.past_the_proxy {
            self.breaks("harness", past);
        }
        let in_flight = match evidence.connections {
            0 => BUDGET_KIB,
            connections => connections * CONNECTION_KIB,
        };
        if evidence.peak_kib > BASE_KIB + in_flight {
            self.breaks("I6", format!("{} KiB of memory", evidence.peak_kib));
        }
        if evidence.descriptors > MOST_DESCRIPTORS {
            self.breaks(
                "I6",
                format!("{} open files at the end", evidence.descriptors),
            );
        }
        if self.duplicates > evidence.most_duplicates {
            let (seen, most) = (self.duplicates, evidence.most_duplicates);
            self.breaks("I7", format!("{seen} duplicates, {most} may be"));
        }
    }

    /// One line for the table, and what was broken below it.
    pub fn print(&self, took: Duration) {
        let recovery = self.recovery.map_or("never".to_owned(), |took| {
            format!("{:.1} s", took.as_secs_f64())
        });
        println!(
            "{:38} {:4} {:5} {:4} {:4} {:6} {:7} {:8} {recovery:>8} {:3} MiB {:3} s",
            self.scenario,
            self.obligations,
            self.deliveries,
            self.duplicates,
            self.dead,
            self.parked,
            self.missing,
            self.spurious,
            self.peak_kib / 1024,
            took.as_secs()
        );
        for note in &self.notes {
            println!("    {note}");
        }
        for broken in self.broken.iter().take(SHOWN) {
            println!("    BROKEN {broken}");
        }
        if self.broken.len() > SHOWN {
            println!("    and {} more", self.broken.len() - SHOWN);
        }
    }
}

fn is_success(request: &Request) -> bool {
    (200..300).contains(&request.answered)
}

fn subscription_of(letter: &Letter) -> &str {
    let name = letter.headers.get("hookbridge-subscription");
    name.map_or("", String::as_str)
}
