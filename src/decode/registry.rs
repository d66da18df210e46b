//! The schema registry: schemas by id, asked for once and kept.
//!
//! An id means the same schema for ever, so what was read is never asked for again while it is
//! kept. Whoever needs a schema while another one asks for it waits for that answer. An id that the
//! registry does not know, or whose schema cannot be used, is remembered for a few seconds, so that
//! a flood of such messages is no flood of requests. A registry that does not answer is asked again
//! with growing pauses, by one for all.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;
use serde::Deserialize;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};
use url::Url;

use super::{Problem, RegistrySettings, Schema, Why, avro, protobuf};

/// How a registry is reached.
#[async_trait]
pub trait Fetch: Send + Sync {
    /// The answer to a GET of `url`, within a deadline of its own. `Err`: there was none, and why.
    async fn get(&self, url: &Url) -> Result<Fetched, String>;
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Fetched {
    pub status: u16,
    pub body: Bytes,
}

/// A schema with all that it refers to.
const LONGEST_LOAD: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long nobody asks again for a schema that is not there.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);
const MOST_UNKNOWN: usize = 256;
const MOST_REFERENCES: usize = 100;
/// Of the texts of a schema and all that it refers to.
const LONGEST_TEXT: usize = 4 << 20;
/// What kept schemas may take, by [`cost`].
const CACHE_BYTES: usize = 64 << 20;

/// See the module.
pub(super) struct Registry {
    source: Arc<str>,
    url: Url,
    cache: Mutex<Cache>,
    flights: Mutex<HashMap<u32, Weak<tokio::sync::Mutex<()>>>>,
    outage: Mutex<Option<Outage>>,
    fetch: Arc<dyn Fetch>,
    waiting: Gauge,
    leaving: CancellationToken,
}

/// It does not answer.
struct Outage {
    since: Instant,
    why: String,
    pause: Duration,
    next_try: Instant,
}

#[derive(Default)]
struct Cache {
    most: usize,
    kept: HashMap<u32, Kept>,
    bytes: usize,
    /// Counts uses.
    clock: u64,
    unknown: HashMap<u32, (String, Instant)>,
}

struct Kept {
    schema: Arc<Schema>,
    cost: usize,
    used: u64,
}

/// A registry's answer about a schema.
#[derive(Deserialize)]
struct Registered {
    schema: String,
    /// Left out of Avro's.
    #[serde(rename = "schemaType")]
    kind: Option<String>,
    references: Option<Vec<Reference>>,
}

#[derive(Deserialize)]
struct Reference {
    name: String,
    subject: String,
    version: i64,
}

#[derive(Deserialize)]
struct Refused {
    error_code: u32,
}

/// Why a schema was not read.
enum Failed {
    /// There is none that could be used.
    Unknown(Why),
    /// Nobody knows.
    Unavailable(String),
}

impl Registry {
    pub(super) fn new(
        source: Arc<str>,
        settings: RegistrySettings,
        fetch: Arc<dyn Fetch>,
        waiting: Gauge,
    ) -> Self {
        let RegistrySettings { url, cache } = settings;
        Self {
            source,
            url,
            cache: Mutex::new(Cache {
                most: cache,
                ..Cache::default()
            }),
            flights: Mutex::default(),
            outage: Mutex::default(),
            fetch,
            waiting,
            leaving: CancellationToken::new(),
        }
    }

    /// The schema of this id. While the registry does not answer it is tried until `until`.
    pub(super) async fn schema(&self, id: u32, until: Instant) -> Result<Arc<Schema>, Problem> {
        loop {
            if let Some(known) = self.known(id) {
                return known;
            }
            if let Some(next_try) = self.next_try() {
                if next_try > until {
                    return Err(self.unavailable());
                }
                tokio::select! {
                    () = self.leaving.cancelled() => return Err(self.unavailable()),
                    () = sleep_until(next_try) => {}
                }
            }
            let flight = self.flight(id);
            let alone = tokio::select! {
                () = self.leaving.cancelled() => return Err(self.unavailable()),
                alone = timeout_at(until + LONGEST_LOAD, flight.lock()) => alone,
            };
            let Ok(_alone) = alone else {
                return Err(self.unavailable());
            };
            // Another one may have asked meanwhile, and been told or not.
            if let Some(known) = self.known(id) {
                return known;
            }
            if self.next_try().is_some() {
                continue;
            }
            let loading = timeout(LONGEST_LOAD, self.load(id));
            let loaded = tokio::select! {
                () = self.leaving.cancelled() => return Err(self.unavailable()),
                loaded = loading => loaded,
            };
            match loaded.unwrap_or_else(|_| Err(Failed::Unavailable("no answer in time".into()))) {
                Ok((schema, cost)) => {
                    self.answers();
                    let schema = Arc::new(schema);
                    lock(&self.cache).keep(id, schema.clone(), cost);
                    return Ok(schema);
                }
                Err(Failed::Unknown(why)) => {
                    self.answers();
                    let why = format!("schema {id}: {why}");
                    let until = Instant::now() + UNKNOWN_FOR;
                    lock(&self.cache).note_unknown(id, why.clone(), until);
                    return Err(Problem::undecodable(why));
                }
                Err(Failed::Unavailable(why)) => self.fails(why),
            }
        }
    }

    pub(super) fn why_out(&self) -> Option<String> {
        let outage = lock(&self.outage);
        let Outage { since, why, .. } = outage.as_ref()?;
        let for_s = since.elapsed().as_secs();
        Some(format!(
            "the schema registry has not answered for {for_s} s: {why}"
        ))
    }

    pub(super) fn out_for(&self) -> Duration {
        let outage = lock(&self.outage);
        outage
            .as_ref()
            .map_or(Duration::ZERO, |outage| outage.since.elapsed())
    }

    /// Nothing waits for it any more; what did is [unavailable](Problem::Unavailable).
    pub(super) fn leave(&self) {
        let mut outage = lock(&self.outage);
        self.leaving.cancel();
        // Another one may ask for the same source from now on, and the gauge is the source's.
        if outage.take().is_some() {
            self.waiting.set(0);
        }
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    fn unavailable(&self) -> Problem {
        let why = self.why_out();
        Problem::Unavailable(why.unwrap_or_else(|| "the schema registry is being asked".to_owned()))
    }

    /// When it may be asked again, if that is not yet.
    fn next_try(&self) -> Option<Instant> {
        let next_try = lock(&self.outage).as_ref()?.next_try;
        (next_try > Instant::now()).then_some(next_try)
    }

    fn known(&self, id: u32) -> Option<Result<Arc<Schema>, Problem>> {
        lock(&self.cache).find(id, Instant::now())
    }

    /// Whoever holds it asks for this id.
    fn flight(&self, id: u32) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&id).and_then(Weak::upgrade) {
            return flight;
        }
        // No more are left than messages are being decoded.
        flights.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::default();
        flights.insert(id, Arc::downgrade(&flight));
        flight
    }

    fn fails(&self, why: String) {
        let source = &self.source;
        let now = Instant::now();
        let mut outage = lock(&self.outage);
        match &mut *outage {
            _ if self.is_leaving() => {}
            None => {
                error!(%source, %why, "the schema registry does not answer; events of this source wait until it does");
                self.waiting.set(1);
                *outage = Some(Outage {
                    since: now,
                    why,
                    pause: FIRST_PAUSE,
                    next_try: now + FIRST_PAUSE,
                });
            }
            // Another one has just found the same.
            Some(known) if known.next_try > now => {}
            Some(known) => {
                debug!(%source, %why, "the schema registry does not answer yet");
                known.pause = (known.pause * 2).min(LONGEST_PAUSE);
                known.next_try = now + known.pause;
                known.why = why;
            }
        }
    }

    fn answers(&self) {
        if let Some(outage) = lock(&self.outage).take() {
            let after = outage.since.elapsed();
            info!(source = %self.source, ?after, "the schema registry answers again; events go on");
            self.waiting.set(0);
        }
    }

    async fn load(&self, id: u32) -> Result<(Schema, usize), Failed> {
        let url = self.at(&["schemas", "ids", &id.to_string()]);
        let mut main = self.get(&url).await?;
        let references = main.references.take().unwrap_or_default();
        let left = LONGEST_TEXT.saturating_sub(main.schema.len());
        let texts = self.follow(references, left).await?;
        let cost = cost(&main.schema, &texts);
        let kind = main.kind.unwrap_or_default();
        let text = main.schema;
        // Large ones take a while, and this is done once for each.
        let compiled = tokio::task::spawn_blocking(move || match kind.as_str() {
            "" | "AVRO" => avro::Schema::parse(&text, &texts).map(Schema::Avro),
            "PROTOBUF" => protobuf::Schema::compile(&text, &texts).map(Schema::Protobuf),
            "JSON" => Ok(Schema::Json),
            other => Err(format!("its type {other:?} is not known here").into()),
        });
        match compiled.await {
            Ok(Ok(schema)) => Ok((schema, cost)),
            Ok(Err(why)) => Err(Failed::Unknown(why)),
            Err(panicked) => match panicked.is_panic() {
                true => Err(Failed::Unknown("the schema cannot be read".into())),
                false => std::future::pending().await,
            },
        }
    }

    /// The texts of `references`, by the names by which they are referred to, each after those that
    /// it refers to itself. `left`: bytes that they may have.
    async fn follow(
        &self,
        references: Vec<Reference>,
        mut left: usize,
    ) -> Result<Vec<(String, String)>, Failed> {
        /// To be asked for, or to be added now that what it refers to is there.
        enum Step {
            Ask(Reference),
            Add(String, String),
        }
        let mut texts = Vec::new();
        let mut seen = HashSet::new();
        let mut todo: Vec<_> = references.into_iter().rev().map(Step::Ask).collect();
        while let Some(step) = todo.pop() {
            let reference = match step {
                Step::Add(name, text) => {
                    texts.push((name, text));
                    continue;
                }
                Step::Ask(reference) => reference,
            };
            if !seen.insert(reference.name.clone()) {
                continue;
            }
            if seen.len() > MOST_REFERENCES {
                let why = format!("it refers to more than {MOST_REFERENCES} others");
                return Err(Failed::Unknown(why.into()));
            }
            let found = self.referred(&reference).await?;
            let Some(rest) = left.checked_sub(found.schema.len()) else {
                let why = "it is too long with what it refers to";
                return Err(Failed::Unknown(why.into()));
            };
            left = rest;
            todo.push(Step::Add(reference.name, found.schema));
            let inner = found.references.unwrap_or_default();
            todo.extend(inner.into_iter().rev().map(Step::Ask));
        }
        Ok(texts)
    }

    async fn referred(&self, to: &Reference) -> Result<Registered, Failed> {
        let Reference {
            subject, version, ..
        } = to;
        let mut url = self.at(&["subjects", subject, "versions", &version.to_string()]);
        // One that was deleted is still what the other was written with.
        url.set_query(Some("deleted=true"));
        self.get(&url).await.map_err(|failed| match failed {
            Failed::Unknown(why) => {
                let why = format!("it refers to version {version} of {subject:?}: {why}");
                Failed::Unknown(why.into())
            }
            unavailable => unavailable,
        })
    }

    async fn get(&self, url: &Url) -> Result<Registered, Failed> {
        let Fetched { status, body } = self.fetch.get(url).await.map_err(Failed::Unavailable)?;
        if status == 200 {
            return serde_json::from_slice(&body).map_err(|_| {
                Failed::Unavailable("it answered 200 with what is no schema".to_owned())
            });
        }
        // Its own numbers: no such subject, version or schema. A 404 without one is somebody else's,
        // who knows nothing of schemas.
        let code = serde_json::from_slice::<Refused>(&body).map(|refused| refused.error_code);
        Err(match (status, code) {
            (404, Ok(40401..=40403)) => Failed::Unknown("the registry does not have it".into()),
            _ => Failed::Unavailable(format!("it answered {status}")),
        })
    }

    fn at(&self, segments: &[&str]) -> Url {
        let mut url = self.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }
}

/// What a schema takes in memory, by and large: trees are some times as large as their text.
fn cost(text: &str, references: &[(String, String)]) -> usize {
    let texts = references.iter().map(|(_, text)| text.len());
    4096 + 8 * (text.len() + texts.sum::<usize>())
}

impl Cache {
    fn find(&mut self, id: u32, now: Instant) -> Option<Result<Arc<Schema>, Problem>> {
        if let Some(kept) = self.kept.get_mut(&id) {
            self.clock += 1;
            kept.used = self.clock;
            return Some(Ok(kept.schema.clone()));
        }
        let (why, until) = self.unknown.get(&id)?;
        (*until > now).then(|| Err(Problem::undecodable(why.clone())))
    }

    fn keep(&mut self, id: u32, schema: Arc<Schema>, cost: usize) {
        self.unknown.remove(&id);
        self.clock += 1;
        let used = self.clock;
        let before = self.kept.insert(id, Kept { schema, cost, used });
        self.bytes += cost;
        self.bytes -= before.map_or(0, |before| before.cost);
        while self.kept.len() > self.most || (self.bytes > CACHE_BYTES && self.kept.len() > 1) {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.used);
            let Some(oldest) = oldest.map(|(id, _)| *id) else {
                return;
            };
            let gone = self.kept.remove(&oldest);
            self.bytes -= gone.map_or(0, |gone| gone.cost);
        }
    }

    fn note_unknown(&mut self, id: u32, why: String, until: Instant) {
        if self.unknown.len() >= MOST_UNKNOWN {
            let now = Instant::now();
            self.unknown.retain(|_, (_, until)| *until > now);
            if self.unknown.len() >= MOST_UNKNOWN {
                self.unknown.clear();
            }
        }
        self.unknown.insert(id, (why, until));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
