//! What a value of a filter holds of: text with `*`, and places in a JSON body.

use std::cmp::Ordering;

use serde_json::Value;

use crate::subscription::compare_numbers;

/// A value to compare text with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Text {
    Whole(String),
    /// What stands between the `*`s, each of which stands for any text, none included.
    Pattern(Vec<String>),
}

impl Text {
    /// A value as it was written without quotes, where `*` is a wildcard.
    pub fn written(text: &str) -> Self {
        if text.contains('*') {
            Self::Pattern(text.split('*').map(str::to_owned).collect())
        } else {
            Self::Whole(text.to_owned())
        }
    }

    pub fn whole(&self) -> Option<&str> {
        match self {
            Self::Whole(text) => Some(text),
            Self::Pattern(_) => None,
        }
    }

    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Whole(whole) => whole == text,
            Self::Pattern(pieces) => fits(pieces, text),
        }
    }
}

/// Whether `text` is these pieces, in order, with anything between them. The leftmost place for each
/// piece is always right, so nothing is tried twice.
fn fits(pieces: &[String], text: &str) -> bool {
    let [first, middle @ .., last] = pieces else {
        return pieces.first().is_some_and(|only| only == text);
    };
    let Some(mut rest) = text.strip_prefix(first.as_str()) else {
        return false;
    };
    for piece in middle {
        match rest.find(piece.as_str()) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last.as_str())
}

/// What a place in a body is compared with.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum DataTest {
    /// `*`: there is something, and it is not `null`.
    There,
    /// As written without quotes: `42` is the number and the text.
    Loose(Text),
    /// In quotes: text only.
    Text(String),
    Compare(Sign, String),
}

/// A sign before a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    Less,
    AtMost,
    AtLeast,
    More,
}

impl Sign {
    /// The longest first: `>=` begins with `>`.
    pub const ALL: [(&'static str, Self); 4] = [
        (">=", Self::AtLeast),
        ("<=", Self::AtMost),
        (">", Self::More),
        ("<", Self::Less),
    ];

    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Less => order.is_lt(),
            Self::AtMost => order.is_le(),
            Self::AtLeast => order.is_ge(),
            Self::More => order.is_gt(),
        }
    }
}

impl DataTest {
    /// An array holds a value when one of its entries does.
    pub fn holds(&self, found: &Value) -> bool {
        if let Value::Array(entries) = found {
            let is_there = matches!(self, Self::There);
            return is_there || entries.iter().any(|entry| self.holds(entry));
        }
        match self {
            Self::There => !found.is_null(),
            Self::Text(text) => found.as_str() == Some(text),
            Self::Loose(text) => match found {
                Value::String(found) => text.matches(found),
                Value::Number(number) => match text.whole().and_then(|text| text.parse().ok()) {
                    Some(wanted) => compare_numbers(number, &wanted) == Some(Ordering::Equal),
                    None => text.matches(&number.to_string()),
                },
                Value::Bool(true) => text.matches("true"),
                Value::Bool(false) => text.matches("false"),
                Value::Null => text.whole() == Some("null"),
                Value::Array(_) | Value::Object(_) => false,
            },
            Self::Compare(sign, text) => {
                compare(found, text).is_some_and(|order| sign.holds(order))
            }
        }
    }
}

/// Numbers by size; text by its characters, which is right for ISO dates.
fn compare(found: &Value, written: &str) -> Option<Ordering> {
    match found {
        Value::Number(number) => compare_numbers(number, &written.parse().ok()?),
        Value::String(text) => Some(text.as_str().cmp(written)),
        _ => None,
    }
}

/// The value at `path`: members of objects, and entries of arrays by their numbers.
pub(super) fn find<'a>(root: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(root, |value, step| match value {
        Value::Object(members) => members.get(step),
        Value::Array(entries) => entries.get(step.parse::<usize>().ok()?),
        _ => None,
    })
}
