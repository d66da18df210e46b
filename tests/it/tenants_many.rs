//! Many subscriptions of many tenants, as they are loaded from the store: what they take in memory and
//! time, and how long one look-up, one page, one change and one delivery take then.
//!
//! The ordinary run has 5,000 over 500 tenants; a million over 100,000 are loaded by
//!
//!     cargo test --release --test it -- --ignored --nocapture a_million_subscriptions

use std::path::Path;
use std::time::{Duration, Instant};

use hookbridge::meters::Meters;
use hookbridge::store::{Key, Keys, Registered, Store};
use hookbridge::subscription::Uid;
use jiff::Timestamp;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::registration_support::{Came, KEY, SOON, ask, config};
use crate::support::bridge::Bridge;
use crate::support::receiver::Receiver;

const ALL: &str = "/v1/subscriptions";
/// Records of one commit.
const AT_ONCE: usize = 5_000;

/// Puts `count` subscriptions of so many tenants into the store of a bridge that does not run. The
/// first one of each tenant goes to `url`.
async fn fill(folder: &Path, count: usize, tenants: usize, url: &str) {
    let meters = Meters::new();
    let (bytes, flush) = (meters.store_bytes.clone(), meters.store_flush.clone());
    let store = Store::open(folder, bytes, flush).expect("the store");
    let keys = Keys::new(vec![Key::read(KEY).expect("a key")]);
    let mut records = Vec::with_capacity(AT_ONCE);
    for number in 0..count {
        let tenant = number % tenants;
        let uid = Uid::made();
        let endpoint = json!({ "url": format!("{url}/{tenant}"), "signature": "none" });
        let sealed = keys.seal(uid.as_str(), endpoint.to_string().as_bytes());
        let now = Timestamp::now();
        records.push(Registered {
            name: name(number),
            revision: 1,
            made_at: now,
            changed_at: now,
            document: json!({
                "name": name(number), "tenant": format!("t{tenant}"),
                "topics": [format!("orders.{}", number / tenants)],
                "labels": { "half": if number % 2 == 0 { "a" } else { "b" } },
            }),
            endpoint: Some(sealed.expect("sealed")),
            old_until: Vec::new(),
            uid,
        });
        if records.len() == AT_ONCE || number + 1 == count {
            let some = std::mem::take(&mut records);
            store.register_many(some).await.expect("stored");
        }
    }
}

fn name(number: usize) -> String {
    format!("s{number:07}")
}

fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.expect("its memory").parse::<u64>().expect("a number") / 1_024
}

/// The longest of a few tries after the first, and the last answer.
async fn timed(what: &str, mut ask: impl AsyncFnMut(usize) -> Came) -> (Duration, Value) {
    let mut longest = Duration::ZERO;
    let mut body = ask(0).await.body;
    for turn in 1..8 {
        let began = Instant::now();
        let came = ask(turn).await;
        longest = longest.max(began.elapsed());
        assert!(came.status < 300, "{what}: {:#}", came.body);
        body = came.body;
    }
    println!("{what}: {longest:.1?} at most");
    (longest, body)
}

/// What is to hold of each.
struct Limits {
    load: Duration,
    /// One look-up, one page, one change.
    each: Duration,
}

async fn measure(count: usize, tenants: usize, limits: Limits) {
    let receiver = Receiver::accepting().await;
    let with_tenants = |config: String| {
        let more = "tenants: { defaults: { subscriptions: 1000 } }\n";
        config.replace("topics: ['#']", "topics: ['#'], tenant: { header: tenant }") + more
    };
    let mut bridge = Bridge::start(&with_tenants(config(&[KEY], "")))
        .await
        .ready()
        .await;
    let empty = resident_mib(bridge.pid());
    bridge.terminate();
    assert_eq!(bridge.exit_code(SOON).await, Some(0));
    // The group's log goes with the store, as it does when an instance begins anew.
    std::fs::remove_dir_all(bridge.data_dir()).expect("removed");
    std::fs::create_dir_all(bridge.data_dir()).expect("a folder");
    let began = Instant::now();
    fill(&bridge.data_dir(), count, tenants, &receiver.url("/t")).await;
    println!(
        "{count} subscriptions of {tenants} tenants, stored in {:.1?}",
        began.elapsed()
    );

    let began = Instant::now();
    bridge.launch();
    bridge.wait_ready(limits.load).await;
    let (took, full) = (began.elapsed(), resident_mib(bridge.pid()));
    let each = (full.saturating_sub(empty) << 20) / count as u64;
    println!("loaded in {took:.1?}; {full} MiB in memory, {empty} MiB without: {each} bytes each");

    let get = async |path: String| ask(&bridge, Method::GET, &path, None, &[]).await;
    let spread = |turn: usize| (turn * 7_919_317) % count;
    let mut slowest = Duration::ZERO;
    let mut note = |(took, body): (Duration, Value)| {
        slowest = slowest.max(took);
        body
    };
    let one = timed("one by name", async |turn| {
        get(format!("{ALL}/{}", name(spread(turn)))).await
    });
    let one = note(one.await);
    let uid = one["uid"].as_str().expect("a uid").to_owned();
    note(timed("one by uid", async |_| get(format!("{ALL}/{uid}")).await).await);
    let mut cursor = String::new();
    let page = timed("a page of 100", async |_| {
        let came = get(format!("{ALL}?limit=100{cursor}")).await;
        cursor = format!("&cursor={}", came.body["next"].as_str().expect("more"));
        came
    });
    note(page.await);
    let page = timed("a page of a tenant", async |turn| {
        get(format!(
            "{ALL}?limit=100&tenant=t{}",
            spread(turn) % tenants
        ))
        .await
    });
    let page = note(page.await);
    let of_tenant = page["subscriptions"].as_array().expect("a list").len();
    assert_eq!(of_tenant, (count / tenants).min(100));
    note(
        timed("a page by label", async |_| {
            get(format!("{ALL}?limit=100&label=half:b")).await
        })
        .await,
    );
    let made = timed("one made", async |turn| {
        let one = json!({
            "name": format!("new-{turn}"), "topics": ["new.#"], "tenant": format!("t{turn}"),
            "endpoint": { "url": receiver.url("/new"), "signature": "none" },
        });
        ask(&bridge, Method::POST, ALL, Some(&one), &[]).await
    });
    note(made.await);
    let patched = timed("one changed", async |turn| {
        let path = format!("{ALL}/{}", name(spread(turn)));
        let patch = json!({ "labels": { "turn": turn.to_string() } });
        ask(&bridge, Method::PATCH, &path, Some(&patch), &[]).await
    });
    note(patched.await);

    // An event of one tenant reaches its one subscription.
    let before = receiver.count();
    let mut longest = Duration::ZERO;
    for turn in 0..8 {
        let tenant = spread(turn) % tenants;
        let url = format!("http://{}/v1/topics/orders.0/events", bridge.admin);
        let request = Client::new().post(url).body("{}");
        let began = Instant::now();
        let tenant = request.header("hookbridge-header-tenant", format!("t{tenant}"));
        assert_eq!(tenant.send().await.expect("an answer").status(), 202);
        receiver.wait_for(before + turn + 1, SOON).await;
        longest = longest.max(began.elapsed());
    }
    println!("published and delivered: {longest:.1?} at most");
    receiver.quiet_for(Duration::from_millis(200), SOON).await;
    assert_eq!(receiver.count(), before + 8, "to nobody else");
    println!("{} MiB in memory at the end", resident_mib(bridge.pid()));
    assert!(slowest <= limits.each, "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_subscriptions_of_five_hundred_tenants() {
    let limits = Limits {
        load: Duration::from_secs(180),
        each: Duration::from_secs(2),
    };
    measure(5_000, 500, limits).await;
}

#[ignore = "takes minutes; prints what a million subscriptions cost"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_subscriptions_of_a_hundred_thousand_tenants() {
    let limits = Limits {
        load: Duration::from_secs(600),
        each: Duration::from_millis(50),
    };
    measure(1_000_000, 100_000, limits).await;
}
