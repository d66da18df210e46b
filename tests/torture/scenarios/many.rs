//! A great many of something: endpoints that hang, connections that drip, events for a dead one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri};

use crate::hostile::Mode;
use crate::judge::Report;
use crate::producer::{Producer, number_in};
use crate::support::{SECRET, eventually};
use crate::world::{APART, Kind, Plan, Setting, World, selecting, sum};

const GOOD: usize = 10;
const HANGING: usize = 500;
/// Longer than a receipt may get old, so that it is not the deadline which ends them.
const DEADLINE: Duration = Duration::from_secs(90);
/// How old a receipt may get.
const OLDEST: Duration = Duration::from_secs(60);

/// Requests by path and event; those to `/hang` get no answer while they are told so.
#[derive(Default)]
struct Tally {
    good: Mutex<HashMap<usize, Instant>>,
    hung: Mutex<HashMap<usize, usize>>,
    hangs: AtomicBool,
    answered: AtomicUsize,
}

async fn receive(State(tally): State<Arc<Tally>>, uri: Uri, body: Bytes) -> StatusCode {
    let Some(number) = number_in(&body) else {
        return StatusCode::BAD_REQUEST;
    };
    if uri.path().starts_with("/good") {
        let mut good = tally.good.lock().unwrap();
        good.entry(number).or_insert_with(Instant::now);
        return StatusCode::NO_CONTENT;
    }
    while tally.hangs.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    *tally.hung.lock().unwrap().entry(number).or_default() += 1;
    tally.answered.fetch_add(1, Ordering::SeqCst);
    StatusCode::NO_CONTENT
}

/// Every fourth event is for one of the good ones.
fn topic_of(number: usize) -> &'static str {
    static TOPICS: LazyLock<Vec<String>> = LazyLock::new(|| {
        let good = (0..GOOD).map(|n| format!("orders.good.{n}"));
        good.chain((0..HANGING).map(|n| format!("orders.hang.{n}")))
            .collect()
    });
    match number % 4 {
        0 => &TOPICS[number / 4 % GOOD],
        _ => &TOPICS[GOOD + number % HANGING],
    }
}

/// Has RabbitMQ itself watch the age of receipts: it closes the channel of one that is too old.
fn watch_receipts(setting: &Setting, oldest: Duration) {
    let (Kind::RabbitMq, Some(own)) = (setting.kind, &setting.broker) else {
        return;
    };
    let set = |name: &str, value: u128| {
        let told = format!("application:set_env(rabbit, {name}, {value}).");
        tokio::task::block_in_place(|| own.ctl(&["eval", &told]));
    };
    set("consumer_timeout", oldest.as_millis());
    set("channel_tick_interval", 1_000);
}

/// 500 endpoints hang at once beside 10 good ones, which are to notice nothing.
pub async fn hundreds_hang(setting: Setting) -> Report {
    watch_receipts(&setting, OLDEST);
    let tally = Arc::new(Tally::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port");
    let address = listener.local_addr().expect("bound");
    let router = Router::new().fallback(receive).with_state(tally.clone());
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    let broker = setting.kind;
    let subscription = |kind: &str, number: usize| {
        let deadline = DEADLINE.as_secs();
        let selection = selecting(broker, &format!("orders.{kind}.{number}"));
        format!(
            "  {kind}-{number}: {{ {selection}, timeout: {deadline}s, endpoint: {{ url: 'http://{address}/{kind}/{number}', secret: '{SECRET}' }}, retry: {{ schedule: [1s], jitter: 0, max_attempts: 20 }} }}\n"
        )
    };
    let more = (0..GOOD)
        .map(|number| subscription("good", number))
        .chain((0..HANGING).map(|number| subscription("hang", number)))
        .collect();
    let plan = Plan {
        subscriptions: more,
        ..Plan::default()
    };
    let world = World::start(setting, plan).await;
    let mut producer = world.producer_of(topic_of);
    let percentile = |producer: &Producer, from: usize, to: usize| {
        let good = tally.good.lock().unwrap();
        let late = |number| match (good.get(&number), producer.published_at(number)) {
            (Some(came), Some(published)) => came.saturating_duration_since(published),
            _ => Duration::MAX,
        };
        let all = (APART + from..APART + to).filter(|number| number % 4 == 0);
        percentile_99(all.map(late).collect())
    };
    producer.go(RATE);
    tokio::time::sleep(ALONE_FOR).await;
    let changed = producer.issued();
    tally.hangs.store(true, Ordering::SeqCst);
    tokio::time::sleep(HANG_FOR).await;
    producer.halt().await;
    let end = producer.issued();
    let owed = producer.confirmed();
    // Those of the last moments are given a little time.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let without = percentile(&producer, 0, changed);
    let with = percentile(&producer, changed, end);
    let metrics = world.bridge.metrics().await;
    let under_way = sum(&metrics, "hookbridge_deliveries_in_flight");
    let taken = sum(&metrics, "hookbridge_source_messages_received_total");
    tally.hangs.store(false, Ordering::SeqCst);
    eventually("all are delivered", DEADLINE * 2, async || {
        let done = {
            let (good, hung) = (tally.good.lock().unwrap(), tally.hung.lock().unwrap());
            let is_done = |number: &usize| good.contains_key(number) || hung.contains_key(number);
            owed.iter().all(is_done)
        };
        done.then_some(())
    })
    .await;
    let delivered = tally.hung.lock().unwrap().len();
    let duplicates = tally.answered.load(Ordering::SeqCst) - delivered;
    watch_receipts(&world.setting, Duration::from_secs(1_800));
    let too_old = world
        .bridge
        .log()
        .contains("delivery acknowledgement on channel");
    let mut report = world.judged().await;
    report.also(owed.len(), owed.len() + duplicates, duplicates);
    report.note(format!(
        "99 of 100 to the good ones within {without:?} alone, {with:?} beside {HANGING} that hang; {under_way} attempts under way, {taken} of {end} taken meanwhile"
    ));
    // What is under way at the end may have been taken or not.
    report.must(
        taken as usize + 100 >= end,
        &format!("only {taken} of {end} events were taken while they hung"),
    );
    report.must(!too_old, "a receipt was older than a minute");
    report.must(
        with <= without.saturating_mul(2).max(without.saturating_add(NOISE)),
        &format!(
            "the good ones' 99th percentile was {without:?}, and {with:?} beside those that hang"
        ),
    );
    serving.abort();
    report
}

fn percentile_99(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

/// When the good one first heard of each event.
fn first_requests(world: &World) -> HashMap<usize, Instant> {
    let mut first = HashMap::new();
    for request in world.good.requests() {
        if let Some(number) = number_in(&request.body) {
            first.entry(number).or_insert(request.at);
        }
    }
    first
}

const RATE: usize = 60;
const ALONE_FOR: Duration = Duration::from_secs(8);
const HANG_FOR: Duration = Duration::from_secs(72);
/// What a debug build on two busy cores may add.
const NOISE: Duration = Duration::from_millis(100);

/// Ten thousand answers that come byte by byte, all at once.
pub async fn drips(setting: Setting) -> Report {
    const DRIPS: usize = 10_000;
    let plan = Plan {
        hostile: vec![Mode::Drip],
        hostile_more: Some("timeout: 20s, connect_timeout: 15s, slow_after: 5m, retry: { schedule: [1s], jitter: 0, max_attempts: 1 }".to_owned()),
        hostile_endpoint: Some("concurrency: 10000, breaker: { failures: 10000, cool_down: 1s }"),
        hostile_topic: Some("orders.drip.all"),
        window: Some(DRIPS + 1_000),
        ..Plan::default()
    };
    let mut world = World::start(setting, plan).await;
    let producer = world.producer_of(|_| "orders.drip.all");
    for _ in 0..DRIPS / 500 {
        producer.publish(500).await;
    }
    let owed = producer.confirmed().len();
    world.producer.go(20);
    let most = {
        let began = Instant::now();
        let mut most = 0;
        while began.elapsed() < Duration::from_secs(25) {
            let metrics = world.bridge.metrics().await;
            let now = sum(
                &metrics,
                "hookbridge_deliveries_in_flight{subscription=\"bad-0\"}",
            );
            most = most.max(now);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        most
    };
    world.most_attempts = 1;
    world.connections = DRIPS as u64;
    world.of_hostile = Some(producer.events());
    let mut report = world.judged().await;
    report.note(format!("{most} of {owed} under way at once"));
    report.must(
        most as usize >= DRIPS * 8 / 10,
        &format!("only {most} of {DRIPS} were under way at once"),
    );
    report
}

const SETTLED_WITHIN: Duration = Duration::from_secs(120);

/// Very many events for an endpoint that is down.
pub async fn hundred_thousand(setting: Setting) -> Report {
    let (backlog, within) = match (setting.full, setting.kind) {
        (true, _) => (1_000_000, Duration::from_secs(3_000)),
        // What goes round on RabbitMQ goes through several of its queues, each time confirmed.
        (false, Kind::RabbitMq) => (30_000, Duration::from_secs(600)),
        (false, Kind::Embedded | Kind::Kafka) => (100_000, Duration::from_secs(600)),
    };
    let plan = Plan {
        hostile: vec![Mode::ResetBeforeStatus],
        // All of a million is to wait, and not to be given up for being too many.
        hostile_more: Some(
            "retry: { schedule: [10m], jitter: 0 }, max_parked: { count: 2000000, bytes: 8GiB }"
                .to_owned(),
        ),
        hostile_endpoint: Some("breaker: { failures: 10, cool_down: 10s }"),
        hostile_topic: Some("orders.dead.all"),
        max_bytes: Some("16GiB"),
        usual_tiers: true,
        ..Plan::default()
    };
    let mut world = World::start(setting, plan).await;
    world.leaves_parked = true;
    world.producer.go(20);
    let producer = world.producer_of(|_| "orders.dead.all");
    while producer.confirmed().len() < backlog {
        producer.publish(1_000).await;
    }
    let began = Instant::now();
    // All of it is taken from the source and parked.
    eventually("all is parked", within, async || {
        let parked: u64 = world.still_parked().await.values().sum();
        // Some are on their way round just then.
        (parked as usize + 2_000 >= backlog).then_some(())
    })
    .await;
    let parked_after = began.elapsed();
    // What was held for a second, when nothing else was held, goes round once for a slot of its own.
    let parks = async || {
        let metrics = world.bridge.metrics().await;
        sum(&metrics, "hookbridge_deliveries_parked_total")
    };
    let settled = eventually("each has its slot", SETTLED_WITHIN, async || {
        let before = parks().await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let after = parks().await;
        (after - before < 5_000).then_some(after)
    })
    .await;
    let (first, began) = (world.producer.issued(), Instant::now());
    tokio::time::sleep(Duration::from_secs(20)).await;
    let spun = parks().await - settled;
    // Those of the last moments are given a little time.
    let (last, span) = (world.producer.issued(), began.elapsed());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let came = first_requests(&world);
    let late = |number: usize| match (came.get(&number), world.producer.published_at(number)) {
        (Some(came), Some(published)) => came.saturating_duration_since(published),
        _ => Duration::MAX,
    };
    let confirmed = world.producer.confirmed().into_iter();
    let meanwhile = confirmed.filter(|number| (first..last).contains(number));
    let late = percentile_99(meanwhile.map(late).collect());
    let rate = (last - first) as f64 / span.as_secs_f64();
    world.of_hostile = Some(producer.events());
    let mut report = world.judged().await;
    report.note(format!(
        "all parked after {parked_after:.0?}, with their slots after {settled} parks; {spun} more in 20 s; the good one, {rate:.0} events a second: 99 of 100 within {late:?}"
    ));
    report.must(
        late < Duration::from_secs(5),
        &format!("the good one's 99th percentile was {late:?}"),
    );
    let most = (10_000 + backlog as u64 / 10).min(20_000);
    report.must(
        spun < most,
        &format!("{spun} parks in 20 s for nothing, {most} may be"),
    );
    report.must(
        settled < 4 * backlog as u64,
        &format!("{settled} parks before each had its slot"),
    );
    report
}
