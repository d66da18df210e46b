//! What each step of a delivery takes, without network and brokers: `cargo bench --bench micro`.

mod fixtures;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use fixtures::steps::{Content, Decide, Render, Route, Settle, Sign};
use hookbridge::subscription::Scheme;

fn route(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    for matches in [1, 10, 100] {
        let step = Route::new(matches);
        group.bench_function(format!("{matches} of 1000"), |b| b.iter(|| step.run()));
    }
    group.finish();
}

fn filter(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("filter");
    let step = Content::new();
    group.bench_function("body parsed for it", |b| {
        b.iter_batched(
            || step.body(),
            |body| step.run(&body),
            BatchSize::SmallInput,
        );
    });
    let parsed = step.body();
    group.bench_function("body parsed before", |b| b.iter(|| step.run(&parsed)));
    group.finish();
}

fn render(criterion: &mut Criterion) {
    let step = Render::new();
    criterion.bench_function("render/raw", |b| b.iter(|| step.run()));
}

fn sign(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sign");
    let ed25519 = "whsk_nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
    for (name, scheme, secret) in [
        ("none", Scheme::None, ""),
        ("standard", Scheme::Standard, fixtures::SECRET),
        ("standard-ed25519", Scheme::StandardEd25519, ed25519),
        ("stripe", Scheme::Stripe, "secret"),
        ("slack", Scheme::Slack, "secret"),
    ] {
        let mut step = Sign::new(&scheme, secret);
        group.bench_function(name, |b| b.iter(|| step.run()));
    }
    group.finish();
}

fn watermark(criterion: &mut Criterion) {
    let mut step = Settle::new();
    criterion.bench_function("watermark/64 under way", |b| b.iter(|| step.run()));
}

fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide");
    for (name, status) in [("delivered", 200), ("retry", 503)] {
        let step = Decide::new(status);
        group.bench_function(name, |b| b.iter(|| step.run()));
    }
    group.finish();
}

criterion_group!(benches, route, filter, render, sign, watermark, decide);
criterion_main!(benches);
