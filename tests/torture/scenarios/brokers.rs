//! What befalls a broker, and the way to it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::judge::Report;
use crate::proxy::Mode;
use crate::support::brokers::Own;
use crate::support::eventually;
use crate::world::{Kind, Plan, Setting, World};

/// Events a second.
const RATE: usize = 100;
/// RabbitMQ writes the names of new quorum queues to disk up to three seconds late; one killed
/// before that has lost them.
const NAMES_ON_DISK: Duration = Duration::from_secs(4);
const LONG_PARTITION: Duration = Duration::from_secs(60);
const LONGEST_PARTITION: Duration = Duration::from_secs(180);
const UNREADY_WITHIN: Duration = Duration::from_secs(15);
/// Of Kafka, 10 s.
const LONGER_THAN_A_SESSION: Duration = Duration::from_secs(14);
/// A member of a group that does not answer.
const REPLACED_WITHIN: Duration = Duration::from_secs(40);

/// A world with events coming in, and a moment to have some in every state.
async fn busy(setting: Setting, plan: Plan) -> World {
    let mut world = World::start(setting, plan).await;
    world.producer.go(RATE);
    world.part(300).await;
    world
}

pub async fn killed(setting: Setting) -> Report {
    let mut world = busy(setting, Plan::default()).await;
    if world.setting.kind == Kind::RabbitMq {
        tokio::time::sleep(NAMES_ON_DISK).await;
    }
    let moment = world.chance(1_000);
    tokio::time::sleep(Duration::from_millis(moment)).await;
    world.to_broker(|own| own.kill9());
    let said = world.turns_unready(UNREADY_WITHIN).await;
    world.to_broker(|own| own.start_again());
    world.part(300).await;
    let mut report = world.judged().await;
    report.must(said, "/readyz said nothing while the broker was away");
    report
}

pub async fn restarted(setting: Setting) -> Report {
    let world = busy(setting, Plan::default()).await;
    world.to_broker(|own| own.call("restart"));
    world.part(300).await;
    world.judged().await
}

/// A cluster of three: one after the other is restarted, one that leads is killed, and then another one, so
/// that nothing can be written.
pub async fn leaders_move(mut setting: Setting) -> Report {
    const WITHIN: Duration = Duration::from_secs(20);
    const SAID_WITHIN: Duration = Duration::from_secs(45);
    /// Of a partition; or the client was fenced out before, and begins anew.
    const NO_LEADER: &[&str] = &["has no leader that answers", "FencedInstanceId"];
    let cluster = tokio::task::block_in_place(|| Own::kafka_cluster(3));
    setting.broker = Some(Arc::new(cluster));
    let world = busy(setting, Plan::default()).await;
    for number in 1..=3 {
        world.to_broker(|own| own.node(number).call("restart"));
        world.part(100).await;
    }
    let first = world.bus.leader().await;
    world.to_broker(|own| own.node(first).kill9());
    let killed = Instant::now();
    let second = eventually("another one leads", WITHIN, async || {
        let leader = world.bus.leader().await;
        (leader != 0 && leader != first).then_some(leader)
    })
    .await;
    let moved = killed.elapsed();
    let goes_on = world.fresh_event_arrives(killed).await;
    world.to_broker(|own| own.node(second).kill9());
    let said =
        world.turns_unready(SAID_WITHIN).await && world.says_within(NO_LEADER, SAID_WITHIN).await;
    for number in [first, second] {
        world.to_broker(|own| own.node(number).start_again());
    }
    world.part(300).await;
    let mut report = world.judged().await;
    let goes_on = goes_on.filter(|after| *after < WITHIN);
    report.must(
        goes_on.is_some(),
        "one of three was killed, and no more came",
    );
    report.must(said, "/readyz said nothing while one of three was left");
    report.note(format!(
        "a node was killed: another one led {moved:.1?} later, and a fresh event came {:.1?} later",
        goes_on.unwrap_or_default()
    ));
    report
}

fn through_a_proxy() -> Plan {
    Plan {
        broker_proxy: true,
        ..Plan::default()
    }
}

pub async fn partitioned(setting: Setting) -> Report {
    let world = busy(setting, through_a_proxy()).await;
    world.proxy().set(Mode::Stall);
    world.part(800).await;
    world.proxy().set(Mode::Pass);
    world.part(200).await;
    world.judged().await
}

/// So long that heartbeats and sessions are over on both sides, many times.
pub async fn partitioned_long(setting: Setting) -> Report {
    let mut world = busy(setting, through_a_proxy()).await;
    world.proxy().set(Mode::Stall);
    let said = world.turns_unready(LONG_PARTITION).await;
    let longer = match world.setting.full {
        true => LONGEST_PARTITION,
        false => LONG_PARTITION,
    };
    tokio::time::sleep(longer).await;
    world.proxy().set(Mode::Pass);
    world.part(500).await;
    world.most_recovery = Duration::from_secs(40);
    let mut report = world.judged().await;
    report.must(said, "/readyz said nothing during the partition");
    report
}

pub async fn bad_network(setting: Setting) -> Report {
    let world = busy(setting, through_a_proxy()).await;
    for mode in [
        Mode::Latency(Duration::from_millis(100)),
        Mode::Bandwidth(200_000),
        Mode::Slice(7),
    ] {
        world.proxy().set(mode);
        world.part(300).await;
    }
    world.proxy().set(Mode::Pass);
    world.judged().await
}

pub async fn cut_and_reset(setting: Setting) -> Report {
    let mut world = busy(setting, through_a_proxy()).await;
    for _ in 0..3 {
        let mode = [Mode::Cut, Mode::Reset, Mode::SlowClose][world.chance(3) as usize];
        world.proxy().set(mode);
        world.part(100).await;
        world.proxy().set(Mode::Pass);
        world.part(300).await;
    }
    world.judged().await
}

pub async fn half_open(setting: Setting) -> Report {
    let mut world = busy(setting, through_a_proxy()).await;
    let before = world.proxy().connections();
    world.proxy().half_open();
    let noticed = Instant::now();
    eventually("new connections", Duration::from_secs(40), async || {
        (world.proxy().connections() > before).then_some(())
    })
    .await;
    let noticed = noticed.elapsed();
    world.part(300).await;
    // Each of several connections has a deadline of its own to find out by.
    world.most_recovery = Duration::from_secs(40);
    let mut report = world.judged().await;
    report.must(
        noticed < Duration::from_secs(30),
        &format!("a dead connection was noticed after {noticed:?} only"),
    );
    report
}

pub async fn memory_alarm(setting: Setting) -> Report {
    let on = ["set_vm_memory_high_watermark", "absolute", "1"];
    alarmed(setting, &on, &["set_vm_memory_high_watermark", "0.6"]).await
}

pub async fn disk_alarm(setting: Setting) -> Report {
    let on = ["set_disk_free_limit", "100000GB"];
    alarmed(setting, &on, &["set_disk_free_limit", "50MB"]).await
}

async fn alarmed(setting: Setting, on: &[&str], off: &[&str]) -> Report {
    let world = busy(setting, Plan::default()).await;
    world.to_broker(|own| own.ctl(on));
    world.part(800).await;
    world.to_broker(|own| own.ctl(off));
    world.part(200).await;
    world.judged().await
}

pub async fn queue_deleted(setting: Setting) -> Report {
    let mut world = busy(setting, Plan::default()).await;
    // What lies in the queue goes with it, and is nobody's to save.
    world.producer.halt().await;
    let owed = world.producer.events().confirmed.len();
    let all = world
        .good
        .wait_for(owed, Duration::from_secs(30))
        .await
        .len();
    assert!(all >= owed);
    world
        .good
        .quiet_for(Duration::from_secs(2), Duration::from_secs(30))
        .await;
    let queue = format!("{}.orders", world.bus.group);
    world.to_broker(|own| own.ctl(&["delete_queue", &queue]));
    world.producer.go(RATE);
    world.part(500).await;
    world.judged().await
}

pub async fn dead_letters_deleted(setting: Setting) -> Report {
    let mut world = World::start(setting, Plan::default()).await;
    let queue = format!("{}.dead", world.bus.group);
    world.to_broker(|own| own.ctl(&["delete_queue", &queue]));
    world.producer.go(RATE);
    world.part(800).await;
    let mut report = world.judged().await;
    report.must(report.dead() > 0, "there are no dead letters");
    report
}

pub async fn dead_letters_full(setting: Setting) -> Report {
    let mut world = World::start(setting, Plan::default()).await;
    let pattern = format!("^{}\\.dead$", world.bus.group.replace('.', "\\."));
    let limit = "{\"max-length\":1,\"overflow\":\"reject-publish\"}";
    let policy = [
        "set_policy",
        "--apply-to",
        "queues",
        "full",
        &pattern,
        limit,
    ];
    world.to_broker(|own| own.ctl(&policy));
    world.producer.go(RATE);
    world.part(800).await;
    let refusals = world
        .bridge
        .metric("hookbridge_broker_refusals_total{broker=\"here\"}")
        .await;
    world.to_broker(|own| own.ctl(&["clear_policy", "full"]));
    world.part(200).await;
    let mut report = world.judged().await;
    report.must(
        refusals > 0.0,
        "no refusal was counted while the queue was full",
    );
    report
}

pub async fn permission_revoked(setting: Setting) -> Report {
    let world = busy(setting, Plan::default()).await;
    let user = world.setting.broker.as_ref().expect("its own").address();
    let user = user
        .split("://")
        .nth(1)
        .and_then(|rest| rest.split(':').next());
    let user = user.expect("a user").to_owned();
    world.to_broker(|own| own.ctl(&["set_permissions", &user, "^$", "^$", "^$"]));
    world.part(500).await;
    world.to_broker(|own| own.ctl(&["set_permissions", &user, ".*", ".*", ".*"]));
    world.part(300).await;
    world.judged().await
}

/// Longer than Kafka's session timeout of 10 s.
pub async fn paused(setting: Setting) -> Report {
    let world = busy(setting, Plan::default()).await;
    world.to_broker(|own| own.call("pause"));
    let said = world.turns_unready(Duration::from_secs(60)).await;
    world.to_broker(|own| own.call("resume"));
    world.part(300).await;
    let mut report = world.judged().await;
    report.must(said, "/readyz said nothing while the broker stood still");
    report
}

/// After a pause nobody gets into the group any more, while all else is answered: what the library may do
/// to itself. The clients are replaced, and that is said.
pub async fn joins_lost(setting: Setting) -> Report {
    let mut world = busy(setting, through_a_proxy()).await;
    world.proxy().set(Mode::Stall);
    tokio::time::sleep(LONGER_THAN_A_SESSION).await;
    world.proxy().lose_joins();
    eventually("/readyz tells of the group", REPLACED_WITHIN, async || {
        let (_, said) = world.bridge.get("/readyz").await;
        said.contains("nothing came from the group").then_some(())
    })
    .await;
    world.part(300).await;
    world.most_recovery = Duration::from_secs(30);
    world.judged().await
}

/// The queue of the client library takes a few records only, and then its broker stands still: what is
/// to be parked waits, and intake with it.
pub async fn producer_full(setting: Setting) -> Report {
    let plan = Plan {
        // So that some are under way, which then are to be parked.
        answers_after: Duration::from_millis(300),
        properties: Some("queue.buffering.max.messages: '2'"),
        ..Plan::default()
    };
    let mut world = busy(setting, plan).await;
    world.to_broker(|own| own.call("pause"));
    let said = world.turns_unready(Duration::from_secs(60)).await;
    let paused = "hookbridge_intake_paused{source=\"orders\",reason=\"broker_refuses\"}";
    let intake = async || (world.bridge.metric(paused).await == 1.0).then_some(());
    eventually("intake is paused", Duration::from_secs(30), intake).await;
    world.to_broker(|own| own.call("resume"));
    world.part(300).await;
    // A member that the pause has cost its brokers is told of them again, and joins when its session is over.
    world.most_recovery = Duration::from_secs(30);
    let mut report = world.judged().await;
    report.must(said, "/readyz said nothing while nothing could be parked");
    report
}

/// SIGTERM while the broker stands still: the bridge leaves within its deadline, and what it could not
/// say comes again.
pub async fn paused_at_the_stop(setting: Setting) -> Report {
    const DEADLINE: Duration = Duration::from_secs(5);
    /// Leaving the groups, and what is to be closed.
    const GRACE: Duration = Duration::from_secs(12);
    let plan = Plan {
        answers_after: Duration::from_millis(300),
        limits: Some(format!("{{ shutdown: {}s }}", DEADLINE.as_secs())),
        ..Plan::default()
    };
    let mut world = busy(setting, plan).await;
    world.to_broker(|own| own.call("pause"));
    world.bridge.terminate();
    let began = Instant::now();
    world.bridge.exit_code(DEADLINE * 10).await;
    let took = began.elapsed();
    world.to_broker(|own| own.call("resume"));
    world.bus.reconnect().await;
    world.bridge.start_again().await;
    world.bridge.wait_ready(Duration::from_secs(60)).await;
    world.part(300).await;
    let mut report = world.judged().await;
    report.note(format!(
        "it had left {:.1} s after SIGTERM",
        took.as_secs_f64()
    ));
    report.must(
        took < DEADLINE + GRACE,
        &format!("{took:?} to leave with a deadline of {DEADLINE:?}"),
    );
    report
}
