//! Selections: the one filter language for what lies on brokers and what was attempted.
//!
//! `subscription:crm -reason:no_retry status:5xx since:2h data.total:>=100` means the same on the
//! command line, over the API and on a page. Terms are joined by *and*; values of the same key by
//! *or*; a leading `-` negates. What a selection is asked about is given as [`Facts`], of which only
//! those need to be there that the thing has: a term about one that is missing does not hold, and its
//! negation does. Parsing is in `parse.rs`, `docs/dead-letters.md` describes the language for people.

mod condition;
mod parse;
pub mod when;

use jiff::Timestamp;

use crate::subscription::LazyJson;

use condition::{DataTest, Text};
pub use parse::{KEYS, Mistake};

/// A filter that has been read. The default one lets everything through.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selection {
    text: String,
    terms: Vec<Term>,
}

/// What is known of a thing that may be selected.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
    pub subscription: Option<&'a str>,
    /// The name of a [`crate::delivery::Reason`].
    pub reason: Option<&'a str>,
    /// The event's type.
    pub kind: Option<&'a str>,
    pub topic: Option<&'a str>,
    pub source: Option<&'a str>,
    /// The broker that it lies on.
    pub broker: Option<&'a str>,
    /// The last status (`503`) or error class (`timeout`); none was made where it is missing.
    pub result: Option<&'a str>,
    /// What `since` and `until` are about: when a letter died, when an attempt began.
    pub at: Option<Timestamp>,
    /// All ids that it may be asked for by: of the event, of the delivery.
    pub ids: [Option<&'a str>; 3],
    pub body: Option<&'a LazyJson<'a>>,
}

/// One key with its values, any of which may hold.
#[derive(Debug, Clone, PartialEq)]
struct Term {
    negated: bool,
    test: Test,
}

#[derive(Debug, Clone, PartialEq)]
enum Test {
    Name(Name, Vec<Text>),
    Status(Vec<Status>),
    Since(Timestamp),
    Until(Timestamp),
    Id(Vec<Text>),
    Data(Vec<String>, Vec<DataTest>),
}

/// Facts that are names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Subscription,
    Reason,
    Type,
    Topic,
    Source,
    Broker,
}

#[derive(Debug, Clone, PartialEq)]
enum Status {
    /// `503` or `timeout`.
    Is(String),
    /// `5xx`: the first digit.
    Class(u8),
    /// `none`: no attempt was made.
    None,
}

impl Selection {
    /// Everything.
    pub fn all() -> Self {
        Self::default()
    }

    /// Reads a filter; ages such as `since:2h` count back from `now`. An empty one selects everything.
    pub fn parse(text: &str, now: Timestamp) -> Result<Self, Mistake> {
        let terms = parse::terms(text, now)?;
        let text = text.trim().to_owned();
        Ok(Self { text, terms })
    }

    /// The filter as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it has no terms, so that everything is selected.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether some term looks into the body; [`Facts::body`] may be left out otherwise.
    pub fn needs_body(&self) -> bool {
        self.terms
            .iter()
            .any(|term| matches!(term.test, Test::Data(..)))
    }

    /// Whether all terms hold.
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        self.terms
            .iter()
            .all(|term| term.test.holds(facts) != term.negated)
    }

    /// Whether all terms hold that do not look into the body.
    pub fn matches_but_for_body(&self, facts: &Facts<'_>) -> bool {
        let others = self.terms.iter();
        let mut others = others.filter(|term| !matches!(term.test, Test::Data(..)));
        others.all(|term| term.test.holds(facts) != term.negated)
    }

    /// Whether anything on this broker can be selected, so that the others need not be asked.
    pub fn may_be_on(&self, broker: &str) -> bool {
        let facts = Facts {
            broker: Some(broker),
            ..Facts::default()
        };
        self.terms
            .iter()
            .filter(|term| matches!(term.test, Test::Name(Name::Broker, _)))
            .all(|term| term.test.holds(&facts) != term.negated)
    }

    /// The subscriptions that are asked for by their whole names.
    pub fn subscriptions(&self) -> impl Iterator<Item = &str> {
        let wanted = self.terms.iter().filter(|term| !term.negated);
        wanted
            .flat_map(|term| match &term.test {
                Test::Name(Name::Subscription, names) => names.as_slice(),
                _ => &[],
            })
            .filter_map(Text::whole)
    }
}

impl Test {
    fn holds(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Name(name, values) => {
                let fact = match name {
                    Name::Subscription => facts.subscription,
                    Name::Reason => facts.reason,
                    Name::Type => facts.kind,
                    Name::Topic => facts.topic,
                    Name::Source => facts.source,
                    Name::Broker => facts.broker,
                };
                fact.is_some_and(|fact| values.iter().any(|value| value.matches(fact)))
            }
            Self::Status(wanted) => wanted.iter().any(|status| status.holds(facts.result)),
            Self::Since(from) => facts.at.is_some_and(|at| at >= *from),
            Self::Until(end) => facts.at.is_some_and(|at| at < *end),
            Self::Id(values) => {
                let mut ids = facts.ids.iter().flatten();
                ids.any(|id| values.iter().any(|value| value.matches(id)))
            }
            Self::Data(path, tests) => facts
                .body
                .and_then(|body| condition::find(body.get()?, path))
                .is_some_and(|found| tests.iter().any(|test| test.holds(found))),
        }
    }
}

impl Status {
    fn holds(&self, result: Option<&str>) -> bool {
        match (self, result) {
            (Self::Is(wanted), Some(result)) => wanted == result,
            (Self::Class(digit), Some(result)) => {
                result.len() == 3 && result.as_bytes()[0] == *digit && is_digits(result)
            }
            (Self::None, None) => true,
            (Self::None, Some(_)) | (_, None) => false,
        }
    }
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests;
