//! Patterns over topics and types: segments between dots, `*` one segment, `#` any number.
//!
//! The meaning is that of an AMQP topic exchange, so that a pattern here and a binding key there
//! select the same messages: a name is split at its dots, empty segments count (`a..b` has three),
//! and the empty name has no segments at all, so only `#` matches it. [`Pattern::matches`] is the
//! definition; the index in `route` must agree with it.

use std::fmt;
use std::str::{FromStr, Split};

/// A pattern such as `orders.created`, `orders.*` or `orders.#`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    text: Box<str>,
}

/// One segment of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    /// This text and no other; may be empty.
    Exact(&'a str),
    /// `*`: exactly one segment, whatever it is.
    One,
    /// `#`: any number of segments, none included.
    Any,
}

/// Why a pattern is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("a pattern may not be empty; `#` matches everything")]
    Empty,
    #[error(
        "a pattern has at most {} bytes, this one has {bytes}",
        Pattern::MAX_BYTES
    )]
    TooLong { bytes: usize },
    #[error("`{wildcard}` in `{segment}` must be a segment of its own, {}", Advice(.segment, *.wildcard))]
    PartialWildcard { segment: String, wildcard: char },
    #[error("the control character {character:?} cannot be part of a pattern")]
    Control { character: char },
}

/// How to write what somebody probably meant with a wildcard inside a segment.
struct Advice<'a>(&'a str, char);

impl fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(segment, wildcard) = self;
        match segment.split_once(['*', '#']) {
            Some((before, "")) if !before.is_empty() => {
                write!(
                    f,
                    "as in `{before}.{wildcard}`; parts of segments are not matched"
                )
            }
            _ => f.write_str("as in `orders.*` or `orders.#`; parts of segments are not matched"),
        }
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.len() > Self::MAX_BYTES {
            return Err(PatternError::TooLong { bytes: text.len() });
        }
        if let Some(character) = text.chars().find(|c| c.is_control()) {
            return Err(PatternError::Control { character });
        }
        let partial = segments(text).find_map(|segment| {
            let wildcard = segment.chars().find(|c| matches!(c, '*' | '#'))?;
            (segment.len() > 1).then_some((segment, wildcard))
        });
        match partial {
            Some((segment, wildcard)) => Err(PatternError::PartialWildcard {
                segment: segment.to_owned(),
                wildcard,
            }),
            None => Ok(Self { text: text.into() }),
        }
    }
}

impl Pattern {
    /// The longest routing key that AMQP can carry; Kafka's topics are shorter.
    pub const MAX_BYTES: usize = 255;

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> + Clone {
        self.text.split('.').map(Segment::of)
    }

    /// Whether `name` (a topic or a type) is one of those the pattern stands for. Takes at most as
    /// many steps as the pattern's segments times the name's, whatever they are.
    pub fn matches(&self, name: &str) -> bool {
        fits(self.segments(), segments(name))
    }
}

impl<'a> Segment<'a> {
    /// What stands between two dots of a pattern.
    pub fn of(text: &'a str) -> Self {
        match text {
            "*" => Self::One,
            "#" => Self::Any,
            exact => Self::Exact(exact),
        }
    }
}

/// [`Pattern::matches`], for a pattern and a name, or what is left of them, in segments.
pub fn fits<'a>(
    mut pattern: impl Iterator<Item = Segment<'a>> + Clone,
    name: impl Iterator<Item = &'a str> + Clone,
) -> bool {
    let mut rest = name;
    // Where to go on when the last `#` seen has to take one segment more. An earlier one never
    // has to: whatever it could still take, the later one can take as well.
    let mut retry = None;
    loop {
        let before = rest.clone();
        let fits = match (pattern.next(), rest.next()) {
            (None, None) => return true,
            (Some(Segment::Any), _) => {
                rest = before;
                retry = Some((pattern.clone(), rest.clone()));
                continue;
            }
            (Some(Segment::One), Some(_)) => true,
            (Some(Segment::Exact(exact)), Some(segment)) => exact == segment,
            (None, Some(_)) => false,
            // The name is at its end: giving `#` even more of it cannot help.
            (Some(_), None) => return false,
        };
        if !fits {
            let Some((after_any, from)) = &mut retry else {
                return false;
            };
            from.next();
            pattern = after_any.clone();
            rest = from.clone();
        }
    }
}

/// The segments of a topic or type. The empty name has none.
pub fn segments(name: &str) -> Split<'_, char> {
    let mut segments = name.split('.');
    if name.is_empty() {
        segments.next();
    }
    segments
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<Pattern>().unwrap().matches(name)
    }

    #[test]
    fn a_star_is_exactly_one_segment() {
        assert!(matches("orders.*", "orders.created"));
        assert!(matches("orders.*", "orders."), "an empty segment is one");
        assert!(!matches("orders.*", "orders"));
        assert!(!matches("orders.*", "orders.eu.created"));
        assert!(matches("*.created", "orders.created"));
    }

    #[test]
    fn a_hash_is_any_number_of_segments() {
        for name in ["orders", "orders.created", "orders.eu.created", "orders."] {
            assert!(matches("orders.#", name), "{name}");
        }
        assert!(!matches("orders.#", "ordersx"));
        assert!(matches("#.created", "created"));
        assert!(matches("a.#.z.#.b", "a.z.z.y.b"));
        assert!(!matches("a.#.z.#.b", "a.y.y.b"));
    }

    #[test]
    fn the_empty_name_has_no_segments() {
        assert!(matches("#", "") && matches("#.#", ""));
        assert!(!matches("*", ""));
    }

    #[test]
    fn empty_segments_count() {
        assert!(matches("a..b", "a..b") && matches("a.*.b", "a..b"));
        assert!(!matches("a.b", "a..b"));
    }

    #[test]
    fn a_wildcard_inside_a_segment_is_refused_with_advice() {
        let error = "shop.ord*".parse::<Pattern>().unwrap_err().to_string();
        assert_eq!(
            error,
            "`*` in `ord*` must be a segment of its own, as in `ord.*`; \
             parts of segments are not matched"
        );
        let error = "**".parse::<Pattern>().unwrap_err().to_string();
        assert!(error.contains("as in `orders.*`"), "{error}");
    }

    #[test]
    fn what_no_broker_could_carry_is_refused() {
        assert_eq!("".parse::<Pattern>(), Err(PatternError::Empty));
        assert_eq!(
            "x".repeat(256).parse::<Pattern>(),
            Err(PatternError::TooLong { bytes: 256 })
        );
        assert_eq!(
            "a\nb".parse::<Pattern>(),
            Err(PatternError::Control { character: '\n' })
        );
        assert!("x".repeat(255).parse::<Pattern>().is_ok());
    }

    #[test]
    fn many_hashes_do_not_blow_up() {
        let pattern = ["#.a"; 60].join(".");
        let name = format!("{}.b", ["a"; 2_000].join("."));
        assert!(!matches(&pattern, &name));
    }

    /// The meaning of a pattern, said as plainly as it can be.
    fn interpret(pattern: &[&str], name: &[&str]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            (["#", more @ ..], _) => (0..=name.len()).any(|n| interpret(more, &name[n..])),
            (["*", more @ ..], [_, rest @ ..]) => interpret(more, rest),
            ([exact, more @ ..], [first, rest @ ..]) => exact == first && interpret(more, rest),
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn matching_agrees_with_the_plain_reading(
            pattern in prop::collection::vec(prop::sample::select(vec!["a", "b", "", "*", "#"]), 1..7),
            name in prop::collection::vec(prop::sample::select(vec!["a", "b", "c", ""]), 0..8),
        ) {
            let text = pattern.join(".");
            prop_assume!(!text.is_empty());
            // One empty segment cannot be told from no segment at all.
            let name = if name == [""] { Vec::new() } else { name };
            prop_assert_eq!(matches(&text, &name.join(".")), interpret(&pattern, &name));
        }

        #[test]
        fn a_pattern_without_wildcards_matches_itself_only(
            one in "[ab.]{1,6}", other in "[ab.]{0,6}",
        ) {
            prop_assert_eq!(matches(&one, &other), one == other);
        }

        #[test]
        fn no_text_panics(text in any::<String>(), name in any::<String>()) {
            if let Ok(pattern) = text.parse::<Pattern>() {
                pattern.matches(&name);
            }
        }
    }
}
