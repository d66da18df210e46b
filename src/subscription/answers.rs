//! Answers: which statuses mean what, where a subscription or its adapter says otherwise than that a
//! 2xx is delivered and everything else is tried again.
//!
//! What follows from it is decided by `verdict`.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::RetryPolicy;
use crate::attempt::Outcome;

/// What the statuses of answers mean. One that is in several lists is of the first of them, in the
/// order in which they stand here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// Delivered: these and no others.
    pub success: Statuses,
    /// The endpoint is gone.
    pub disable: Statuses,
    /// Dead-lettered at once.
    pub no_retry: Statuses,
    /// Whether [`Answer::limit`](crate::attempt::Answer::limit) is believed, also of what was
    /// delivered.
    pub limits: bool,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            success: Statuses(vec![StatusRange {
                first: 200,
                last: 299,
            }]),
            disable: Statuses::default(),
            no_retry: Statuses::default(),
            limits: false,
        }
    }
}

impl Answers {
    /// For a subscription to keep: all that have the default share one.
    pub fn shared(answers: Self) -> Arc<Self> {
        static DEFAULT: LazyLock<Arc<Answers>> = LazyLock::new(Arc::default);
        match answers == **DEFAULT {
            true => Arc::clone(&DEFAULT),
            false => Arc::new(answers),
        }
    }

    /// What `policy` says, and where it says nothing what is usual for the endpoint.
    pub fn of(policy: &RetryPolicy, usual: Option<&Self>) -> Self {
        let usual = usual.cloned().unwrap_or_default();
        let said = |list: &Option<Statuses>, usual| list.clone().unwrap_or(usual);
        Self {
            success: said(&policy.success, usual.success),
            disable: said(&policy.disable, usual.disable),
            no_retry: said(&policy.no_retry, usual.no_retry),
            limits: usual.limits,
        }
    }

    /// Whether the receiver has it.
    pub fn accept(&self, outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::Answered(answer) if self.success.contains(answer.status))
    }
}

/// Statuses, singly and in ranges.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Statuses(pub Vec<StatusRange>);

impl Statuses {
    pub fn contains(&self, status: u16) -> bool {
        let Self(ranges) = self;
        ranges.iter().any(|range| range.contains(status))
    }
}

/// Separated by spaces: `2xx 409`.
impl FromStr for Statuses {
    type Err = StatusError;

    fn from_str(text: &str) -> Result<Self, StatusError> {
        let ranges = text.split_whitespace().map(str::parse);
        ranges.collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(ranges) = self;
        for (number, range) in ranges.iter().enumerate() {
            if number > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{range}")?;
        }
        Ok(())
    }
}

/// `404`, `4xx` or `400-404`; from 200 to 599.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    first: u16,
    last: u16,
}

/// Why a text is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not {what}", what = StatusRange::WHAT)]
pub struct StatusError(Box<str>);

impl StatusRange {
    /// What is wanted, for messages.
    pub const WHAT: &'static str = "a status from 200 to 599, such as `404`, `4xx` or `400-404`";
    const LOWEST: u16 = 200;
    const HIGHEST: u16 = 599;

    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }

    fn new(first: u16, last: u16) -> Option<Self> {
        let is = Self::LOWEST <= first && first <= last && last <= Self::HIGHEST;
        is.then_some(Self { first, last })
    }

    fn read(text: &str) -> Option<Self> {
        let status = |text: &str| {
            let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        if let [class @ b'2'..=b'5', b'x' | b'X', b'x' | b'X'] = text.as_bytes() {
            let first = u16::from(class - b'0') * 100;
            return Self::new(first, first + 99);
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Self::new(status(first.trim_end())?, status(last.trim_start())?)
    }
}

impl FromStr for StatusRange {
    type Err = StatusError;

    fn from_str(text: &str) -> Result<Self, StatusError> {
        Self::read(text.trim()).ok_or_else(|| StatusError(text.into()))
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = *self;
        match first % 100 {
            _ if first == last => write!(f, "{first}"),
            0 if last == first + 99 => write!(f, "{}xx", first / 100),
            _ => write!(f, "{first}-{last}"),
        }
    }
}

/// A single status is a number, as releases before ranges wrote it.
impl Serialize for StatusRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.first == self.last {
            true => serializer.serialize_u16(self.first),
            false => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;

        impl Visitor<'_> for Written {
            type Value = StatusRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status, or a range of them")
            }

            fn visit_u64<E: de::Error>(self, status: u64) -> Result<StatusRange, E> {
                let status = u16::try_from(status).map_err(E::custom)?;
                let wrong = || E::custom(StatusError(status.to_string().into()));
                StatusRange::new(status, status).ok_or_else(wrong)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<StatusRange, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_as_people_write_them() {
        let statuses: Statuses = "404 2XX 500-503".parse().unwrap();
        assert_eq!(statuses.to_string(), "404 2xx 500-503");
        for (status, is) in [
            (404, true),
            (405, false),
            (200, true),
            (299, true),
            (300, false),
            (500, true),
            (503, true),
            (504, false),
        ] {
            assert_eq!(statuses.contains(status), is, "{status}");
        }
        let range: StatusRange = "400 - 499".parse().unwrap();
        assert_eq!(range.to_string(), "4xx");
    }

    #[test]
    fn what_is_no_status_is_refused() {
        for text in [
            "", "199", "600", "1xx", "6xx", "4x", "4xxx", "404-400", "404-", "-404", "+404",
            "0404", "4xx-5xx",
        ] {
            assert!(text.parse::<StatusRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_an_earlier_release_stored_is_read() {
        let read: Statuses = serde_json::from_str("[400,\"5xx\"]").unwrap();
        assert_eq!(read.to_string(), "400 5xx");
        assert_eq!(serde_json::to_string(&read).unwrap(), "[400,\"5xx\"]");
        let policy: RetryPolicy = serde_json::from_str(
            r#"{"schedule":[],"jitter":0.1,"max_attempts":1,"give_up_after":{"secs":1,"nanos":0},"max_retry_after":{"secs":1,"nanos":0},"no_retry":[400]}"#,
        )
        .unwrap();
        assert_eq!(policy.no_retry.unwrap().to_string(), "400");
        assert_eq!((policy.success, policy.disable), (None, None));
    }

    #[test]
    fn what_a_policy_says_goes_before_what_is_usual() {
        let usual = Answers {
            success: "202".parse().unwrap(),
            no_retry: "400 413".parse().unwrap(),
            ..Answers::default()
        };
        let said = RetryPolicy {
            no_retry: Some(Statuses::default()),
            ..RetryPolicy::default()
        };
        let answers = Answers::of(&said, Some(&usual));
        assert_eq!(answers.no_retry, Statuses::default());
        assert_eq!(answers.success, usual.success);
        assert_eq!(
            Answers::of(&RetryPolicy::default(), None),
            Answers::default()
        );
    }
}
