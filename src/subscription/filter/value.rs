//! How a value found in an event compares with one written in a filter.
//!
//! JSON is compared by type: `"1"` is not `1`, but `1` is `1.0`. Headers are text on one broker and
//! typed on another, so they are compared as the filter's value is typed: `2` equals the header `2`
//! wherever it came from.

use std::borrow::Cow;
use std::cmp::Ordering;

use jiff::Timestamp;
use serde_json::{Number, Value};

/// A value in a filter.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Literal {
    Text(Box<str>),
    Number(Number),
    Time(Timestamp),
    /// `null`, a truth value, an array or an object: can only be equal.
    Other(Value),
}

/// A value in an event.
#[derive(Debug)]
pub(super) enum Found<'a> {
    Json(&'a Value),
    Text(&'a str),
    Header(Cow<'a, str>),
    Time(Timestamp),
    /// There is something, but it is neither text nor a number.
    Opaque,
}

impl Found<'_> {
    pub(super) fn equals(&self, literal: &Literal) -> bool {
        match (self, literal) {
            (Self::Json(value), Literal::Other(other)) => same(value, other),
            (Self::Header(text), Literal::Other(Value::Bool(is))) => {
                **text == *if *is { "true" } else { "false" }
            }
            _ => self.compare(literal) == Some(Ordering::Equal),
        }
    }

    /// Numbers by size, text by code points, times by when; `None` for all else and mixtures.
    pub(super) fn compare(&self, literal: &Literal) -> Option<Ordering> {
        match (self, literal) {
            (Self::Time(time), Literal::Time(other)) => Some(time.cmp(other)),
            (Self::Json(Value::Number(number)), Literal::Number(other)) => {
                compare_numbers(number, other)
            }
            (Self::Header(text), Literal::Number(other)) => {
                compare_numbers(&text.parse().ok()?, other)
            }
            (_, Literal::Text(other)) => Some(self.text()?.cmp(other)),
            _ => None,
        }
    }

    pub(super) fn contains(&self, literal: &Literal) -> bool {
        match (self, literal) {
            (Self::Json(Value::Array(entries)), _) => entries
                .iter()
                .any(|entry| Found::Json(entry).equals(literal)),
            (_, Literal::Text(part)) => self.text().is_some_and(|text| text.contains(&**part)),
            _ => false,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Json(value) => value.as_str(),
            Self::Text(text) => Some(text),
            Self::Header(text) => Some(text),
            Self::Time(_) | Self::Opaque => None,
        }
    }
}

/// Equality of JSON where `1` and `1.0` are the same number.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            compare_numbers(one, other) == Some(Ordering::Equal)
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .all(|(key, one)| other.get(key).is_some_and(|other| same(one, other)))
        }
        _ => one == other,
    }
}

/// Which number is larger, exactly: an id of 19 digits is not rounded to a float.
pub fn compare_numbers(one: &Number, other: &Number) -> Option<Ordering> {
    match (integer(one), integer(other)) {
        (Some(one), Some(other)) => Some(one.cmp(&other)),
        (Some(one), None) => order_mixed(one, other.as_f64()?),
        (None, Some(other)) => order_mixed(other, one.as_f64()?).map(Ordering::reverse),
        (None, None) => one.as_f64()?.partial_cmp(&other.as_f64()?),
    }
}

fn integer(number: &Number) -> Option<i128> {
    number
        .as_i64()
        .map(i128::from)
        .or_else(|| number.as_u64().map(i128::from))
}

fn order_mixed(integer: i128, float: f64) -> Option<Ordering> {
    if float.is_nan() {
        return None;
    }
    // The cast saturates, far beyond any integer of JSON; what it cuts off decides a tie.
    let whole = float.trunc();
    let by_whole = integer.cmp(&(whole as i128));
    Some(by_whole.then_with(|| {
        0.0_f64
            .partial_cmp(&(float - whole))
            .unwrap_or(Ordering::Equal)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Number {
        text.parse().unwrap()
    }

    #[test]
    fn numbers_are_ordered_exactly() {
        for (one, other, wanted) in [
            ("1", "1.0", Ordering::Equal),
            ("-0.0", "0", Ordering::Equal),
            ("1", "1.5", Ordering::Less),
            ("-1", "-1.5", Ordering::Greater),
            ("9007199254740993", "9007199254740992.0", Ordering::Greater),
            ("18446744073709551615", "-1", Ordering::Greater),
            ("18446744073709551615", "1e300", Ordering::Less),
            ("-9223372036854775808", "-1e300", Ordering::Greater),
        ] {
            assert_eq!(
                compare_numbers(&number(one), &number(other)),
                Some(wanted),
                "{one} {other}"
            );
            assert_eq!(
                compare_numbers(&number(other), &number(one)),
                Some(wanted.reverse()),
                "{other} {one}"
            );
        }
    }
}
