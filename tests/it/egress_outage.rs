//! Our own outage: when nobody can be reached, nothing is counted, given up or drained into retries.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use tokio::runtime::Runtime;

use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::{brokers, eventually};

const PAUSED: &str = "hookbridge_intake_paused{source=\"orders\",reason=\"egress\"}";
const SOON: Duration = Duration::from_secs(20);
/// How long nobody can be reached.
const DOWN: Duration = Duration::from_secs(15);
const EVENTS: usize = 200;

/// A receiver with an address of its own, all of whose connections end when it is closed.
struct Site {
    address: SocketAddr,
    status: StatusCode,
    by_id: Arc<Mutex<BTreeMap<String, usize>>>,
    runtime: Option<Runtime>,
}

impl Site {
    fn new(host: u8, status: u16) -> Self {
        let free = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = free.local_addr().expect("bound").port();
        let mut site = Self {
            address: SocketAddr::from(([127, 0, 0, host], port)),
            status: StatusCode::from_u16(status).expect("a status"),
            by_id: Arc::default(),
            runtime: None,
        };
        site.open();
        site
    }

    fn open(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = TcpListener::bind(self.address).expect("its address is free");
        listener.set_nonblocking(true).expect("a socket");
        let (by_id, status) = (self.by_id.clone(), self.status);
        let answer = move |headers: HeaderMap| async move {
            let id = headers["webhook-id"].to_str().expect("text").to_owned();
            *by_id.lock().unwrap().entry(id).or_default() += 1;
            status
        };
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let router = Router::new().fallback(answer);
            axum::serve(listener, router).await.expect("serves");
        });
        self.runtime = Some(runtime);
    }

    fn close(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    fn count(&self) -> usize {
        self.by_id.lock().unwrap().len()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.close();
    }
}

/// A subscription to all events for each site, with three short retries.
fn to_all(sites: &[Site]) -> String {
    let each = sites.iter().enumerate();
    each.map(|(number, site)| subscription(&format!("s{number}"), "orders.*", &site.url(), ""))
        .collect()
}

fn bodies(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers
        .map(|number| format!("{{\"id\":\"evt_{number}\"}}"))
        .collect()
}

async fn egress_is(bridge: &Bridge) -> String {
    let (_, body) = bridge.get("/readyz").await;
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let components = body["components"].as_array().expect("a list");
    let egress = components.iter().find(|one| one["name"] == "egress");
    egress.expect("egress is listed")["state"]
        .as_str()
        .expect("text")
        .to_owned()
}

/// The sum of a counter over its labels.
async fn sum(bridge: &Bridge, name: &str, label: &str) -> f64 {
    let metrics = bridge.metrics().await;
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with(name) && line.contains(label));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// The highest number of an attempt that the log tells of.
fn most_attempts(bridge: &Bridge) -> u32 {
    let log = bridge.log();
    let numbers = log.split("attempt=").skip(1);
    numbers
        .filter_map(|rest| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        })
        .max()
        .unwrap_or(0)
}

async fn nothing_is_lost(bus: Bus) {
    let mut sites: Vec<Site> = (11..16).map(|host| Site::new(host, 204)).collect();
    let bridge = Bridge::start(&bus.config(&to_all(&sites)))
        .await
        .ready()
        .await;
    bus.publish(&bridge, &bodies(0..40)).await;
    eventually("the first are delivered", SOON, async || {
        sites.iter().all(|site| site.count() == 40).then_some(())
    })
    .await;
    assert_eq!(egress_is(&bridge).await, "ready");

    sites.iter_mut().for_each(Site::close);
    let began = Instant::now();
    let mut seen_paused = false;
    for start in (40..EVENTS).step_by(10) {
        bus.publish(&bridge, &bodies(start..start + 10)).await;
        seen_paused |= bridge.metric(PAUSED).await == 1.0;
        tokio::time::sleep(DOWN / 16).await;
    }
    eventually("intake is paused", SOON, async || {
        seen_paused |= bridge.metric(PAUSED).await == 1.0;
        seen_paused.then_some(())
    })
    .await;
    tokio::time::sleep(DOWN.saturating_sub(began.elapsed())).await;
    assert_eq!(egress_is(&bridge).await, "down");
    assert_eq!(bridge.get("/healthz").await.0, 200);

    sites.iter_mut().for_each(Site::open);
    eventually("everything is delivered", SOON, async || {
        let all = sites.iter().all(|site| site.count() == EVENTS);
        all.then_some(())
    })
    .await;
    assert_eq!(bridge.metric(PAUSED).await, 0.0);
    assert_eq!(egress_is(&bridge).await, "ready");
    assert_eq!(sum(&bridge, "hookbridge_dead_letters_total", "").await, 0.0);
    assert!(most_attempts(&bridge) <= 2, "{}", most_attempts(&bridge));
    // One each before it was known to be us, and the probes.
    let tried = sum(&bridge, "hookbridge_delivery_attempts_total", "connect").await;
    assert!(tried <= (EVENTS * sites.len()) as f64 * 1.2, "{tried}");
    let log = bridge.log();
    assert_eq!(log.matches("our network or DNS is down").count(), 1);
    assert_eq!(log.matches("receivers can be reached again").count(), 1);
}

/// Few enough events for the breakers to stay open for traffic.
async fn all_are_exhausted(sites: &[Site]) {
    let bus = Bus::embedded();
    let bridge = Bridge::start(&bus.config(&to_all(sites)))
        .await
        .ready()
        .await;
    bus.publish(&bridge, &bodies(0..2)).await;
    let (name, all) = ("hookbridge_dead_letters_total", sites.len() as f64 * 2.0);
    eventually("all attempts are exhausted", SOON, async || {
        assert_eq!(bridge.metric(PAUSED).await, 0.0);
        (sum(&bridge, name, "attempts_exhausted").await == all).then_some(())
    })
    .await;
    assert_eq!(egress_is(&bridge).await, "ready");
}

async fn two_hosts_are_parked_as_usual() {
    let mut sites: Vec<Site> = (21..23).map(|host| Site::new(host, 204)).collect();
    sites.iter_mut().for_each(Site::close);
    all_are_exhausted(&sites).await;
}

async fn one_that_answers_500_tells_that_it_is_not_us() {
    let mut sites: Vec<Site> = (31..35).map(|host| Site::new(host, 204)).collect();
    sites.iter_mut().for_each(Site::close);
    sites.push(Site::new(35, 500));
    all_are_exhausted(&sites).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_our_own_outage_pauses_intake() {
    let rabbitmq = Bus::rabbitmq(brokers::env("HOOKBRIDGE_TEST_AMQP")).await;
    tokio::join!(
        nothing_is_lost(Bus::embedded()),
        nothing_is_lost(rabbitmq),
        two_hosts_are_parked_as_usual(),
        one_that_answers_500_tells_that_it_is_not_us(),
    );
}
