//! What an event says that lies on a broker: where its source decodes, filters look into that, as those
//! of subscriptions do, and not into the bytes that came.

use std::sync::Arc;
use std::time::Duration;

use crate::decode::{Decoder, Problem};
use crate::event::{Decoded, Event};

/// How long a schema registry is asked for one event.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is read of an event.
pub enum Said {
    /// Its bytes.
    Came,
    Decoded(Decoded),
    /// It is not what its source says it is: only its bytes can be looked into.
    Undecodable,
}

impl Said {
    /// By the decoder of the event's source, if that has one. An error where the registry does not answer,
    /// so that nobody takes what cannot be read for what does not match.
    pub async fn by(decoder: Option<&Arc<Decoder>>, event: &Event) -> Result<Self, String> {
        let Some(decoder) = decoder else {
            return Ok(Self::Came);
        };
        let turn = decoder.turn().await;
        let decoded = decoder.decode(event, PATIENCE).await;
        drop(turn);
        match decoded {
            Ok(None) => Ok(Self::Came),
            Ok(Some(decoded)) => Ok(Self::Decoded(decoded)),
            Err(Problem::Undecodable(_)) => Ok(Self::Undecodable),
            Err(Problem::Unavailable(why)) => {
                let source = &event.source;
                Err(format!(
                    "the schema registry of source `{source}` does not answer: {why}"
                ))
            }
        }
    }

    /// The body that filters look into.
    pub fn body<'a>(&'a self, event: &'a Event) -> &'a [u8] {
        match self {
            Self::Decoded(decoded) => &decoded.body,
            Self::Came | Self::Undecodable => &event.body,
        }
    }
}
