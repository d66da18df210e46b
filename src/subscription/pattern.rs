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
}
