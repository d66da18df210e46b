//! What the tests against a real Kafka share: names of their own, topics, and a running broker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hookbridge::broker::envelope::{Dialect, Envelope};
use hookbridge::broker::kafka::{Kafka, Settings, SourceSettings, Start};
use hookbridge::broker::tiers::Tiers;
use hookbridge::broker::{
    Broker, Budget, Health, Intake, Intakes, Naming, Publication, Receipt, Received, Window,
};
use hookbridge::delivery::{Delivery, WaitKind};
use hookbridge::event::Event;
use hookbridge::meters::Meters;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn env(name: &str) -> String {
    std::env::var(name).expect("run scripts/brokers up and eval its env")
}

pub fn bootstrap() -> String {
    env("HOOKBRIDGE_TEST_KAFKA")
}

/// A name that no other test and no other run has.
pub fn unique(what: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = jiff::Timestamp::now().as_millisecond();
    format!("{what}-{now:x}-{}-{count}", std::process::id())
}

pub fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap())
        .create()
        .unwrap()
}

pub async fn create_topic(name: &str, partitions: i32) {
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    let made = admin()
        .create_topics(
            &[topic],
            &AdminOptions::new().operation_timeout(Some(Duration::from_secs(10))),
        )
        .await
        .unwrap();
    made.into_iter().next().unwrap().unwrap();
}

pub fn producer() -> FutureProducer {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap())
        .create()
        .unwrap()
}

/// Produces `bodies` to partition 0.
pub async fn produce(topic: &str, bodies: impl IntoIterator<Item = String>) {
    let producer = producer();
    for body in bodies {
        let record = FutureRecord::<(), _>::to(topic).partition(0).payload(&body);
        producer.send(record, PATIENCE).await.unwrap();
    }
}

/// How many records have been written to a topic.
pub async fn written(topic: &str) -> i64 {
    let topic = topic.to_owned();
    let counted = tokio::task::spawn_blocking(move || {
        let producer = producer();
        let client = producer.client();
        let metadata = client.fetch_metadata(Some(&topic), PATIENCE).unwrap();
        let partitions = metadata.topics()[0].partitions().iter();
        let high = |number| client.fetch_watermarks(&topic, number, PATIENCE).unwrap().1;
        partitions.map(|partition| high(partition.id())).sum()
    });
    counted.await.unwrap()
}

pub fn source(name: &str, topics: &[&str], start: Start) -> SourceSettings {
    SourceSettings {
        name: name.into(),
        topics: topics.iter().map(|t| t.to_string()).collect(),
        start,
        ignore_older_than: None,
        naming: Naming {
            source: name.into(),
            topic: None,
            id: None,
            tenant: None,
        },
        meters: Meters::new().of_source(name),
    }
}

pub fn settings(group: &str, sources: Vec<SourceSettings>) -> Settings {
    Settings {
        name: "lake".into(),
        group: group.into(),
        instance: None,
        bootstrap: vec![bootstrap()],
        tls: None,
        sasl: None,
        properties: BTreeMap::new(),
        tiers: Tiers::new([1, 3]).unwrap(),
        sources,
        declare: true,
        keeps_state: false,
    }
}

/// A running broker and the pipeline's end of its intakes.
pub struct Rig {
    pub kafka: Arc<Kafka>,
    pub events: mpsc::Receiver<Received>,
    pub retries: mpsc::Receiver<Received>,
    pub holds: mpsc::Receiver<Received>,
    /// Keeps the intakes open.
    _pause: watch::Sender<bool>,
    pub stop: CancellationToken,
    pub drain: CancellationToken,
    pub task: JoinHandle<anyhow::Result<()>>,
}

pub fn start(settings: Settings, window: usize) -> Rig {
    // Shown only for a test that fails, or with --nocapture.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_test_writer()
        .try_init();
    let budget = Budget::new(256 << 20);
    let (pause, paused) = watch::channel(false);
    let intake = |window| Intake::new(Window::new(window), budget.clone(), paused.clone());
    let (event_intake, events) = intake(window);
    let (retry_intake, retries) = intake(window);
    let (hold_intake, holds) = intake(window);
    let sources = settings
        .sources
        .iter()
        .map(|s| (s.name.clone(), event_intake.clone()))
        .collect();
    let kafka = Kafka::new(settings).unwrap();
    let (stop, drain) = (CancellationToken::new(), CancellationToken::new());
    let intakes = Intakes {
        sources: watch::channel(Arc::new(sources)).1,
        retries: retry_intake,
        holds: hold_intake,
        obeyed: Arc::new(|_, _| ()),
    };
    let task = tokio::spawn(kafka.clone().run(intakes, stop.clone(), drain.clone()));
    Rig {
        kafka,
        events,
        retries,
        holds,
        _pause: pause,
        stop,
        drain,
        task,
    }
}

impl Rig {
    pub async fn ready(&self) {
        let ready = async {
            while self.kafka.health() != Health::Ready {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let waited = timeout(PATIENCE, ready).await;
        assert!(waited.is_ok(), "not ready: {}", self.kafka.health());
    }

    pub async fn event(&mut self) -> (Arc<Event>, Receipt) {
        let taken = timeout(PATIENCE, self.events.recv()).await;
        match taken.unwrap_or_else(|_| panic!("no event; {}", self.kafka.health())) {
            Some(Received::Event(event, receipt)) => (event, receipt),
            other => panic!("not an event: {other:?}"),
        }
    }

    /// All events that come within `quiet` of each other.
    pub async fn events_until_quiet(&mut self, quiet: Duration) -> Vec<(Arc<Event>, Receipt)> {
        let mut all = Vec::new();
        while let Ok(Some(Received::Event(event, receipt))) =
            timeout(quiet, self.events.recv()).await
        {
            all.push((event, receipt));
        }
        all
    }

    pub async fn due(&mut self) -> (Delivery, WaitKind, Receipt) {
        let taken = timeout(PATIENCE, async {
            tokio::select! {
                taken = self.retries.recv() => taken,
                taken = self.holds.recv() => taken,
            }
        });
        match taken.await.expect("nothing became due") {
            Some(Received::Due(delivery, kind, receipt)) => (delivery, kind, receipt),
            other => panic!("not due: {other:?}"),
        }
    }

    /// Stops and waits until it is out of its groups.
    pub async fn stop(self) {
        self.stop.cancel();
        drop(self.events);
        drop(self.retries);
        drop(self.holds);
        timeout(PATIENCE, self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

pub fn body(event: &Event) -> String {
    String::from_utf8(event.body.to_vec()).unwrap()
}

pub fn publication(topic: &str, body: &str) -> Publication {
    Publication {
        topic: topic.into(),
        body: Bytes::from(body.to_owned()),
        ..Publication::default()
    }
}

/// An envelope's headers for a plain client, with another version if so.
pub fn headers_of(envelope: &Envelope, version: Option<&str>) -> OwnedHeaders {
    let written = envelope.write(Dialect::Opaque, 1 << 20);
    let mut headers = OwnedHeaders::new();
    for (name, value) in &written.headers.0 {
        let value = match (name.as_str(), version) {
            ("hookbridge-v", Some(version)) => version,
            _ => value.as_str().unwrap_or_default(),
        };
        headers = headers.insert(Header {
            key: name,
            value: Some(value),
        });
    }
    headers
}
