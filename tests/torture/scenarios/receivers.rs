//! Hostile receivers, each beside a good one that is to notice nothing.

use std::time::Duration;

use crate::hostile::{Mode, TlsFault};
use crate::judge::{Evidence, Report};
use crate::proxy;
use crate::world::{Plan, Setting, World};

/// Events a second: a lane that says nothing gets one probe each `slow_after`, here 100 ms.
const RATE: usize = 20;

async fn beside(setting: Setting, hostile: &[Mode]) -> Evidence {
    let plan = Plan {
        hostile: hostile.to_vec(),
        ..Plan::default()
    };
    let mut world = World::start(setting, plan).await;
    world.producer.go(RATE);
    world.part(500).await;
    world.evidence().await
}

/// None of the hostile ones' deliveries is taken for a success.
async fn all_die(setting: Setting, hostile: &[Mode]) -> Report {
    let evidence = beside(setting, hostile).await;
    let dead = evidence.letters.iter().filter(|letter| {
        let name = &letter.headers["hookbridge-subscription"];
        name.starts_with("bad-")
    });
    let (dead, owed) = (
        dead.count(),
        evidence.events.confirmed.len() * hostile.len(),
    );
    let mut report = Report::of(&evidence);
    report.must(
        dead >= owed,
        &format!("{dead} dead letters for {owed} deliveries"),
    );
    report
}

/// All of the hostile ones' deliveries are taken for successes at their first attempt.
async fn all_succeed(setting: Setting, hostile: &[Mode]) -> Report {
    let evidence = beside(setting, hostile).await;
    let dead = evidence.letters.iter().filter(|letter| {
        let name = &letter.headers["hookbridge-subscription"];
        name.starts_with("bad-")
    });
    let dead = dead.count();
    let mut report = Report::of(&evidence);
    report.must(dead == 0, &format!("{dead} dead letters"));
    let asked = evidence.subscribed.iter().flat_map(|one| &one.requests);
    let asked = asked.filter(|request| request.headers.contains_key("accept-encoding"));
    report.must(asked.count() == 0, "an Accept-Encoding was sent");
    report
}

pub async fn hangs(setting: Setting) -> Report {
    all_die(setting, &[Mode::HangBeforeHead, Mode::Drip]).await
}

pub async fn endless_body(setting: Setting) -> Report {
    all_succeed(setting, &[Mode::EndlessBody, Mode::HangAfterHead]).await
}

pub async fn resets(setting: Setting) -> Report {
    let evidence = beside(setting, &[Mode::ResetBeforeStatus, Mode::ResetAfterHead]).await;
    let dead_of = |name: &str| {
        let of = |letter: &&crate::support::bus::Letter| {
            letter.headers["hookbridge-subscription"] == name
        };
        evidence.letters.iter().filter(of).count()
    };
    let (before, after) = (dead_of("bad-0"), dead_of("bad-1"));
    let owed = evidence.events.confirmed.len();
    let mut report = Report::of(&evidence);
    report.must(
        before >= owed,
        "a reset before the status was taken for a success",
    );
    report.must(
        after == 0,
        &format!("{after} resets after a 2xx were taken for failures"),
    );
    report
}

/// The way to the good receiver is slow, in pieces, and broken now and then.
pub async fn bad_network(setting: Setting) -> Report {
    let plan = Plan {
        receiver_proxy: true,
        ..Plan::default()
    };
    let mut world = World::start(setting, plan).await;
    world.producer.go(RATE);
    for mode in [
        proxy::Mode::Latency(Duration::from_millis(50)),
        proxy::Mode::Slice(5),
        proxy::Mode::Bandwidth(100_000),
        proxy::Mode::Reset,
        proxy::Mode::SlowClose,
        proxy::Mode::Cut,
    ] {
        world.proxy().set(mode);
        world.part(150).await;
    }
    world.proxy().set(proxy::Mode::Pass);
    world.judged().await
}

pub async fn floods(setting: Setting) -> Report {
    all_die(setting, &[Mode::HeaderFlood, Mode::EndlessInformational]).await
}

pub async fn gzip_bomb(setting: Setting) -> Report {
    all_succeed(setting, &[Mode::GzipBomb]).await
}

pub async fn redirects(setting: Setting) -> Report {
    let to = [
        "/",
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
    ];
    all_die(setting, &to.map(Mode::Redirect)).await
}

/// Only a second 410 a minute later disables the endpoint: until then each delivery is attempted
/// once, and waits where it can be seen.
pub async fn gone(setting: Setting) -> Report {
    let plan = Plan {
        hostile: vec![Mode::Status(410)],
        ..Plan::default()
    };
    let mut world = World::start(setting, plan).await;
    world.leaves_parked = true;
    world.producer.go(RATE);
    world.part(500).await;
    let evidence = world.evidence().await;
    let mut report = Report::of(&evidence);
    let (attempts, owed) = (
        evidence.subscribed[1].requests.len(),
        evidence.events.confirmed.len(),
    );
    report.must(
        attempts <= owed,
        &format!("{attempts} attempts for {owed} events within a minute of the first 410"),
    );
    let parked: u64 = evidence.still_parked.values().sum();
    report.must(
        parked >= owed as u64,
        &format!("{parked} parked of {owed} events"),
    );
    report
}

pub async fn too_many(setting: Setting) -> Report {
    let after = [
        "1000000000000000000",
        "-5",
        "Fri, 31 Dec 1999 23:59:59 GMT",
        "soon",
    ];
    let plan = Plan {
        hostile: after.map(Mode::TooMany).to_vec(),
        ..Plan::default()
    };
    let mut world = World::start(setting, plan).await;
    // One attempt each three seconds is all that the first of them lets through.
    world.leaves_parked = true;
    world.producer.go(RATE);
    world.part(500).await;
    world.judged().await
}

pub async fn tls(setting: Setting) -> Report {
    let faults = [
        TlsFault::Expired,
        TlsFault::WrongHost,
        TlsFault::SelfSigned,
        TlsFault::ClientCertificateAsked,
    ];
    all_die(setting, &faults.map(Mode::Tls)).await
}

/// An endpoint that is down, with ten times as many events as the others see.
pub async fn backlog(setting: Setting) -> Report {
    let plan = Plan {
        hostile: vec![Mode::ResetBeforeStatus],
        ..Plan::default()
    };
    let mut world = World::start(setting, plan).await;
    for _ in 0..10 {
        world.producer.publish(500).await;
    }
    // The fresh event is behind all of these.
    world.most_recovery = Duration::from_secs(40);
    world.judged().await
}
