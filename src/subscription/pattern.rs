//! Patterns over topics and types: segments between dots, `*` one segment, `#` any number.

use std::str::FromStr;

/// A pattern such as `orders.created`, `orders.*` or `orders.#`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    text: String,
}

/// Why a pattern is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("a pattern may not be empty")]
    Empty,
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            Err(PatternError::Empty)
        } else {
            Ok(Self {
                text: text.to_owned(),
            })
        }
    }
}

impl Pattern {
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether `topic` matches, segment by segment.
    pub fn matches(&self, topic: &str) -> bool {
        fn from(pattern: &[&str], topic: &[&str]) -> bool {
            match pattern.split_first() {
                None => topic.is_empty(),
                Some((&"#", rest)) => (0..=topic.len()).any(|skip| from(rest, &topic[skip..])),
                Some((&segment, rest)) => topic.split_first().is_some_and(|(&first, topic)| {
                    (segment == "*" || segment == first) && from(rest, topic)
                }),
            }
        }
        let pattern: Vec<_> = self.text.split('.').collect();
        let topic: Vec<_> = topic.split('.').collect();
        from(&pattern, &topic)
    }
}
