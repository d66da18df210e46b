//! Decoding: what a message says where its bytes do not say it as JSON.
//!
//! A [`Decoder`] belongs to a source with `decode:`. It undoes the content encoding ([`coding`]),
//! and where there is a schema registry reads the id of the schema ([`wire`]), has the schema
//! ([`registry`]) and writes what it describes as JSON ([`avro`], [`protobuf`]). The event keeps its
//! bytes; what is made of them is for those who look into it. It is bounded in everything: in what
//! is made of one message, in what is kept of all of them, and in the schemas that are kept.
//!
//! A message that cannot be decoded is one thing, a registry that cannot be asked is another: the
//! first is [`Problem::Undecodable`] for good, the second [`Problem::Unavailable`] for now. What is
//! to become of the event is the pipeline's business, and how a registry is reached its caller's
//! ([`Fetch`]).

mod avro;
mod coding;
mod out;
mod protobuf;
mod registry;
mod wire;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use serde::de::IgnoredAny;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};
use url::Url;

use crate::event::{Decoded, Event};

use registry::Registry;
pub use registry::{Fetch, Fetched};

/// Why something is not decoded: a fragment for people.
type Why = Cow<'static, str>;

/// What a source says about the bytes of its messages.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub source: Arc<str>,
    pub coding: Coding,
    pub format: Format,
    /// Of the body, uncompressed and as JSON.
    pub max_bytes: usize,
    pub registry: Option<RegistrySettings>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RegistrySettings {
    pub url: Url,
    /// Schemas kept.
    pub cache: usize,
}

/// What was done to a body as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Coding {
    /// The message says it.
    #[default]
    Auto,
    Gzip,
    Zstd,
    /// Nothing, whatever the message says.
    None,
}

/// What schemas are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// The registry says it of each.
    #[default]
    Auto,
    Avro,
    Protobuf,
    JsonSchema,
}

impl Format {
    fn shown(self) -> &'static str {
        match self {
            Self::Auto => "any",
            Self::Avro => "Avro",
            Self::Protobuf => "Protobuf",
            Self::JsonSchema => "JSON Schema",
        }
    }
}

/// Why there is nothing to look into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// The message is not what its source says it is. 512 bytes at most.
    Undecodable(String),
    /// It could be, later.
    Unavailable(String),
}

impl Problem {
    /// As long as what is kept of an answer.
    const LONGEST: usize = 512;

    fn undecodable(why: impl Into<String>) -> Self {
        let mut why = why.into();
        why.truncate(why.floor_char_boundary(Self::LONGEST));
        Self::Undecodable(why)
    }
}

impl From<Why> for Problem {
    fn from(why: Why) -> Self {
        Self::undecodable(why)
    }
}

/// What a decoder counts with.
#[derive(Debug, Clone, Default)]
pub struct DecodeMeters {
    pub decoded: Counter,
    pub failed: Counter,
    /// 1 while the registry cannot be asked.
    pub waiting: Gauge,
}

/// Room for what is made of messages and kept while they are delivered: of all sources together.
#[derive(Debug, Clone)]
pub struct Room {
    units: Arc<Semaphore>,
    total: u32,
}

/// Decodes the messages of one source.
pub struct Decoder {
    settings: Settings,
    registry: Option<Registry>,
    room: Room,
    meters: DecodeMeters,
    /// What comes back from the broker is decoded a few at a time: there may be a window of it, and
    /// each may be large before it has a place in the room.
    turns: Semaphore,
}

/// Between two looks at a message that is held meanwhile: half as long as nobody knows anything.
const SOONEST_LOOK: Duration = Duration::from_secs(5);
const LATEST_LOOK: Duration = Duration::from_secs(60);
const TURNS: usize = 4;
/// Work on more bytes than this is not done where everything else waits for it.
const INLINE_BYTES: usize = 16 << 10;
/// The same of compressed ones, which may be many more.
const INLINE_COMPRESSED: usize = 2 << 10;

impl Decoder {
    /// `fetch` is how the registry is asked, if there is one.
    pub fn new(
        settings: Settings,
        fetch: Option<Arc<dyn Fetch>>,
        room: Room,
        meters: DecodeMeters,
    ) -> Self {
        let registry = settings.registry.as_ref().zip(fetch);
        let registry = registry.map(|(registry, fetch)| {
            let source = settings.source.clone();
            Registry::new(source, registry.clone(), fetch, meters.waiting.clone())
        });
        Self {
            settings,
            registry,
            room,
            meters,
            turns: Semaphore::new(TURNS),
        }
    }

    /// One's turn to decode what has come back.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turns.acquire().await.ok()
    }

    /// What `event` says. `None`: nothing that its own bytes do not say. A registry that does not
    /// answer is asked again for as long as `patience` lasts; once it is known not to answer, that
    /// is said at once where there is no time for another try.
    pub async fn decode(
        &self,
        event: &Event,
        patience: Duration,
    ) -> Result<Option<Decoded>, Problem> {
        let decoded = self.look(event, Instant::now() + patience).await;
        let counter = match &decoded {
            Ok(_) => Some(&self.meters.decoded),
            Err(Problem::Undecodable(_)) => Some(&self.meters.failed),
            Err(Problem::Unavailable(_)) => None,
        };
        if let Some(counter) = counter {
            counter.inc();
        }
        decoded
    }

    /// Since when and why the registry cannot be asked, for people.
    pub fn why_waiting(&self) -> Option<String> {
        self.registry.as_ref()?.why_out()
    }

    /// How long what cannot be decoded yet is best left alone.
    pub fn next_look(&self) -> Duration {
        let out_for = self.registry.as_ref().map(Registry::out_for);
        (out_for.unwrap_or_default() / 2).clamp(SOONEST_LOOK, LATEST_LOOK)
    }

    pub fn source(&self) -> &Arc<str> {
        &self.settings.source
    }

    pub fn has_registry(&self) -> bool {
        self.registry.is_some()
    }

    /// Nobody waits for the registry any more: the source is stopped.
    pub fn leave(&self) {
        if let Some(registry) = &self.registry {
            registry.leave();
        }
    }

    pub fn is_leaving(&self) -> bool {
        self.registry.as_ref().is_some_and(Registry::is_leaving)
    }

    async fn look(&self, event: &Event, until: Instant) -> Result<Option<Decoded>, Problem> {
        // A tombstone, or nothing to say.
        if event.body.is_empty() {
            return Ok(None);
        }
        let limit = self.settings.max_bytes;
        let header = || event.headers.get("content-encoding");
        let said = event.content_encoding.as_deref();
        let said = said.or_else(|| header().and_then(|value| value.as_str()));
        let steps = coding::steps(self.settings.coding, said)?;
        let (plain, was_compressed) = match steps.is_empty() {
            true => (event.body.clone(), false),
            false => {
                let body = event.body.clone();
                let is_small = body.len() <= INLINE_COMPRESSED;
                let undone = work(is_small, move || coding::undo(&steps, &body, limit)).await?;
                (Bytes::from(undone), true)
            }
        };
        let Some(registry) = &self.registry else {
            return match was_compressed {
                true => Ok(Some(Decoded {
                    body: self.room.keep(plain, until).await?,
                    is_json: false,
                })),
                false => Ok(None),
            };
        };
        if plain.is_empty() {
            return Ok(None);
        }
        let id = wire::schema_id(&plain)?;
        let schema = registry.schema(id, until).await?;
        let (wanted, found) = (self.settings.format, schema.format());
        if wanted != Format::Auto && wanted != found {
            let (wanted, found) = (wanted.shown(), found.shown());
            return Err(Problem::undecodable(format!(
                "schema {id} is {found}, and `decode.format` says {wanted}"
            )));
        }
        let payload = plain.slice(wire::HEADER_BYTES..);
        let body = match &*schema {
            Schema::Json if payload.len() > limit => return Err(out::too_long(limit).into()),
            Schema::Json => {
                serde_json::from_slice::<IgnoredAny>(&payload).map_err(|error| {
                    Problem::undecodable(format!("what comes after the id is not JSON: {error}"))
                })?;
                match was_compressed {
                    true => self.room.keep(payload, until).await?,
                    // A part of the event's own bytes, which are counted.
                    false => payload,
                }
            }
            Schema::Avro(_) | Schema::Protobuf(_) => {
                let is_small = payload.len() <= INLINE_BYTES;
                let made = work(is_small, move || schema.json(&payload, limit)).await;
                let made =
                    made.map_err(|why| Problem::undecodable(format!("schema {id}: {why}")))?;
                self.room.keep(made.into(), until).await?
            }
        };
        Ok(Some(Decoded {
            body,
            is_json: true,
        }))
    }
}

/// A schema, ready to be used.
#[derive(Debug)]
enum Schema {
    Avro(avro::Schema),
    Protobuf(protobuf::Schema),
    Json,
}

impl Schema {
    fn format(&self) -> Format {
        match self {
            Self::Avro(_) => Format::Avro,
            Self::Protobuf(_) => Format::Protobuf,
            Self::Json => Format::JsonSchema,
        }
    }

    /// What comes after the schema's id, as JSON.
    fn json(&self, payload: &[u8], limit: usize) -> Result<Vec<u8>, Why> {
        match self {
            Self::Avro(schema) => schema.json(payload, limit),
            Self::Protobuf(schema) => schema.json(payload, limit),
            Self::Json => Ok(payload.to_vec()),
        }
    }
}

/// Does `what` here, or where it holds nobody up.
async fn work<T: Send + 'static>(
    is_small: bool,
    what: impl FnOnce() -> Result<T, Why> + Send + 'static,
) -> Result<T, Why> {
    if is_small {
        return what();
    }
    match tokio::task::spawn_blocking(what).await {
        Ok(done) => done,
        Err(ended) => match ended.try_into_panic() {
            // As if it had happened here: whoever counts panics counts it against the event.
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and this with it.
            Err(_) => std::future::pending().await,
        },
    }
}

impl Room {
    const UNIT_BYTES: usize = 1024;

    pub fn new(bytes: usize) -> Self {
        let total = (bytes / Self::UNIT_BYTES).clamp(1, u32::MAX as usize / 2) as u32;
        Self {
            units: Arc::new(Semaphore::new(total as usize)),
            total,
        }
    }

    /// `body` with its place, which is free again when the last who has it lets go. Those who hold
    /// a place never wait for another one, so this ends; in time, if it can.
    async fn keep(&self, body: Bytes, until: Instant) -> Result<Bytes, Problem> {
        let units = body.len().div_ceil(Self::UNIT_BYTES).max(1) as u32;
        let units = units.min(self.total);
        let place = self.units.clone().acquire_many_owned(units);
        // There is a moment for it even where there is no time to wait for a registry.
        let until = until.max(Instant::now() + Duration::from_secs(1));
        match timeout_at(until, place).await {
            Ok(Ok(place)) => Ok(Bytes::from_owner(Kept {
                body,
                _place: place,
            })),
            _ => Err(Problem::Unavailable(
                "what was decoded before takes all the room that there is".to_owned(),
            )),
        }
    }
}

/// A body that counts against the room.
struct Kept {
    body: Bytes,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

#[cfg(test)]
mod tests;
