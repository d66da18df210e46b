//! What routing costs as subscriptions grow: `Routes` built directly, and one load through the store.
//!
//! `cargo bench --bench index -- [most=1000000] [stored=100000]` prints JSON. Memory is what the
//! allocator has handed out, counted; times are medians. Events go to topics spread over all
//! subscriptions, so that caches see as much of the index as they would.

mod fixtures;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fixtures::compile;
use hookbridge::event::Event;
use hookbridge::meters::Meters;
use hookbridge::route::Routes;
use hookbridge::store::Store;
use hookbridge::subscription::{LazyJson, Spec, Subscription};
use serde_json::{Value, json};

/// Subscriptions in one index.
const SIZES: [usize; 4] = [1, 1_000, 100_000, 1_000_000];
/// Different topics that are asked for.
const MAX_TOPICS: usize = 16_384;
const PASSES: usize = 5;
const PASS: Duration = Duration::from_millis(100);

struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does it all; a number is kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as our caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as our caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs this without `--bench` and wants no measurement.
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("usage: cargo bench --bench index -- [most=N] [stored=N]");
        return;
    }
    let number = |name: &str, default: usize| {
        let pairs = arguments.iter().filter_map(|a| a.split_once('='));
        let mut named = pairs.filter(|(key, _)| *key == name);
        named
            .next()
            .map_or(default, |(_, value)| value.parse().expect("a number"))
    };
    let mut rows = Vec::new();
    for count in SIZES {
        if count > number("most", 1_000_000) {
            continue;
        }
        for (patterns, matches) in [
            ("exact", 1),
            ("wildcard", 1),
            ("exact", 100),
            ("wildcard", 100),
        ] {
            if matches <= count {
                eprintln!(
                    "index: {count} {patterns} subscriptions, {matches} of them for an event"
                );
                rows.push(measure(count, patterns, matches));
            }
        }
    }
    let stored = stored(number("stored", 100_000));
    println!("{:#}", json!({ "rows": rows, "stored": stored }));
}

fn measure(count: usize, patterns: &str, matches: usize) -> Value {
    let specs: Vec<_> = (0..count).map(|n| spec(n, patterns, matches)).collect();
    let before = IN_USE.load(Ordering::Relaxed);
    let began = Instant::now();
    let compiled: Vec<Arc<Subscription>> = specs
        .iter()
        .map(|spec| Arc::new(compile(spec.clone())))
        .collect();
    let compile_ms = milliseconds(began);
    let of_subscriptions = IN_USE.load(Ordering::Relaxed) - before;

    let before = IN_USE.load(Ordering::Relaxed);
    let began = Instant::now();
    let routes = Routes::build(compiled.iter().cloned());
    let build_ms = milliseconds(began);
    let of_index = IN_USE.load(Ordering::Relaxed) - before;

    let topics = count / matches;
    let asked = topics.min(MAX_TOPICS);
    // A step that shares no factor with powers of ten visits topics all over.
    let events: Vec<Event> = (0..asked)
        .map(|n| fixtures::event(&format!("orders.{}.created", n * 7_919 % topics), b"{}"))
        .collect();
    let ns_per_event = time(&routes, &events, matches);

    // Another snapshot beside the one in use, as a reload makes it; then the old one goes.
    let began = Instant::now();
    let again: Vec<Arc<Subscription>> = specs.into_iter().map(|s| Arc::new(compile(s))).collect();
    let next = Routes::build(again);
    drop((routes, compiled));
    let reload_ms = milliseconds(began);
    assert_eq!(next.len(), count);

    let each = |bytes: usize| bytes as f64 / count as f64;
    json!({
        "subscriptions": count,
        "patterns": patterns,
        "matches": matches,
        "ns_per_event": ns_per_event,
        "ns_per_match": ns_per_event / matches as f64,
        "subscription_bytes": each(of_subscriptions),
        "index_bytes": each(of_index),
        "compile_ms": compile_ms,
        "build_ms": build_ms,
        "reload_ms": reload_ms,
    })
}

fn time(routes: &Routes<Subscription>, events: &[Event], matches: usize) -> f64 {
    let pass = || {
        let mut found = 0;
        for event in events {
            let body = LazyJson::new(&event.body);
            routes.visit(event, &body, |_| found += 1);
        }
        assert_eq!(found, events.len() * matches);
    };
    pass();
    let mut passes: Vec<f64> = (0..PASSES)
        .map(|_| {
            let (began, mut asked) = (Instant::now(), 0);
            while began.elapsed() < PASS {
                // Looking at the clock is not to be what is measured.
                for _ in 0..(1_000 / events.len()).max(1) {
                    pass();
                    asked += events.len();
                }
            }
            began.elapsed().as_nanos() as f64 / asked as f64
        })
        .collect();
    passes.sort_by(f64::total_cmp);
    passes[PASSES / 2]
}

/// Writes subscriptions of the config to a new store, opens it again and makes routes of them.
fn stored(count: usize) -> Value {
    eprintln!("index: {count} subscriptions through the store");
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let meters = Meters::new();
    let open = || {
        Store::open(
            folder.path(),
            meters.store_bytes.clone(),
            meters.store_flush.clone(),
        )
    };
    let specs: BTreeMap<Arc<str>, Spec> = (0..count)
        .map(|n| spec(n, "exact", 1))
        .map(|spec| (Arc::clone(&spec.name), spec))
        .collect();
    let store = open().expect("the store opens");
    let began = Instant::now();
    let written = runtime.block_on(store.reconcile(&specs));
    let write_ms = milliseconds(began);
    if let Err(error) = written {
        // A store that has failed is never to be waited for.
        return json!({ "subscriptions": count, "error": error.to_string() });
    }
    drop(store);
    let began = Instant::now();
    let store = open().expect("the store opens again");
    let open_ms = milliseconds(began);
    let began = Instant::now();
    let records = store.subscriptions().expect("read");
    let read_ms = milliseconds(began);
    let began = Instant::now();
    let compiled = records
        .into_iter()
        .map(|record| Arc::new(compile(record.spec)));
    let routes = Routes::build(compiled);
    let build_ms = milliseconds(began);
    assert_eq!(routes.len(), count);
    json!({
        "subscriptions": count,
        "write_ms": write_ms,
        "open_ms": open_ms,
        "read_ms": read_ms,
        "build_ms": build_ms,
    })
}

fn spec(n: usize, patterns: &str, matches: usize) -> Spec {
    let topic = n / matches;
    let pattern = match (patterns, n % 3) {
        ("exact", _) => format!("orders.{topic}.created"),
        (_, 0) => format!("orders.{topic}.*"),
        (_, 1) => format!("*.{topic}.created"),
        (_, _) => format!("orders.{topic}.#"),
    };
    fixtures::spec(&format!("customer-{n}"), &pattern)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
