//! Refused: why a change was not made, and nothing with it.

use super::Mistake;
use crate::store::{KeyError, StoreError};

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("there is no such subscription")]
    Unknown,
    #[error("subscription `{0}` belongs to the config file: change it there and reload")]
    OfConfig(String),
    #[error("there is a subscription `{0}` already")]
    Taken(String),
    #[error("it has been changed since: read it again")]
    Changed,
    #[error("nothing was done")]
    Invalid(Vec<Mistake>),
    #[error(
        "an endpoint of its own holds secrets, and there is no key to seal them with: set `store_key: ${{file:...}}` in the config, or name one of its `endpoints`"
    )]
    NoKey,
    #[error("this `Idempotency-Key` was used for another request")]
    KeyReused,
    #[error("{0}")]
    TooLarge(String),
    /// Its tenant has all that it may have.
    #[error("{0}")]
    Quota(String),
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Unavailable(String),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TooLarge { .. } => Self::TooLarge(error.to_string()),
            other => Self::Unavailable(format!("the store does not take it: {other}")),
        }
    }
}

impl From<KeyError> for Refused {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::NoKey => Self::NoKey,
            other => Self::Unavailable(other.to_string()),
        }
    }
}
