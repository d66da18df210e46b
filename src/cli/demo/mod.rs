//! `hookbridge demo`: the whole of it in a few seconds, with nothing but this program.
//!
//! A bridge with the broker inside delivers sample events to a receiver that verifies signatures:
//! one endpoint takes everything, one fails twice and then takes it, one is dead until it is healed
//! and its dead letter is sent again. Every step is checked; the first that does not hold ends the
//! demo with exit code 1. Ports are free ones, and nothing is left behind, however it ends.

mod bridge;
mod checks;
mod receiver;
mod steps;
mod table;

use std::io::Write as _;
use std::process::ExitCode;

use bytes::Bytes;

use self::bridge::Bridge;
use self::checks::{answered, no_letter, only_letter, sent_again, verified};
use self::receiver::{BILLING, CRM, Receiver, WAREHOUSE};
use self::steps::{Not, Steps};
use super::admin::Admin;
use super::exit::Exit;
use super::send;
use crate::broker::Publication;
use crate::config::Config;
use crate::event::Headers;
use crate::operations::Report;
use crate::operations::dead::Page;

/// Id, topic and body.
const EVENTS: [(&str, &str, &str); 3] = [
    (
        "order-1001",
        "orders.created",
        r#"{"order": 1001, "total": 120}"#,
    ),
    (
        "order-1002",
        "orders.paid",
        r#"{"order": 1002, "total": 80}"#,
    ),
    (
        "order-1003",
        "orders.shipped",
        r#"{"order": 1003, "total": 45}"#,
    ),
];

/// The event whose endpoint is dead.
const DEAD: &str = "order-1002";

/// 0 when every step has held, 1 when one has not, 130 after Ctrl-C.
pub async fn run() -> anyhow::Result<ExitCode> {
    // What is dropped here ends the bridge and removes its folder.
    tokio::select! {
        biased;
        () = interrupted() => Err(Exit::interrupted().into()),
        ended = show() => ended.map(|()| ExitCode::SUCCESS),
    }
}

async fn show() -> anyhow::Result<()> {
    let mut steps = Steps::begin();
    let receiver = Receiver::start().await?;
    let mut bridge = Bridge::start(&receiver)?;
    let shown = play(&mut steps, &receiver, &mut bridge).await;
    if shown.is_err() {
        eprintln!(
            "the last lines of the bridge's log:\n{}",
            bridge.last_lines()
        );
    }
    shown
}

async fn play(steps: &mut Steps, receiver: &Receiver, bridge: &mut Bridge) -> anyhow::Result<()> {
    print(&format!(
        "A bridge with a broker inside (process {}), a receiver on {}, both gone at the end.\n\n",
        bridge.pid(),
        receiver.address
    ));
    let mut config = Config::default_for_trying();
    let address = steps
        .hold("the bridge starts", async || bridge.address())
        .await?;
    config.admin.listen = address;
    let admin = Admin::running(&config).await?;
    let ready = async || {
        bridge.is_running()?;
        let asked = admin.get::<serde_json::Value>("/readyz", &[]).await;
        asked.map_err(not_yet)
    };
    steps.hold("its broker is ready", ready).await?;

    let door = send::Admin::new(address, None)?;
    for (id, topic, body) in EVENTS {
        door.publish(event(id, topic, body)).await?;
    }
    let took = async |endpoint: &str, event: &str, answers: &[u16]| {
        answered(&receiver.heard(), endpoint, event, answers)
    };
    steps
        .hold(
            "three events are published, and the warehouse has taken them",
            async || {
                for (id, ..) in EVENTS {
                    took(WAREHOUSE, id, &[204]).await?;
                }
                Ok(())
            },
        )
        .await?;
    steps
        .hold(
            "the crm has refused order-1001 twice and taken it the third time",
            async || took(CRM, "order-1001", &[503, 503, 204]).await,
        )
        .await?;
    steps
        .hold(
            "billing is dead: order-1002 was given up after two attempts, and is a dead letter",
            async || {
                took(BILLING, DEAD, &[503, 503]).await?;
                only_letter(&letters(&admin).await?, DEAD)
            },
        )
        .await?;

    receiver.heal();
    let ask = serde_json::json!({ "filter": format!("subscription:{BILLING}") });
    let job: Report = admin.post("/v1/dead-letters/retry", &ask).await?;
    let path = format!("/v1/jobs/{}", job.id);
    steps
        .hold("billing is healed; its letter is sent again", async || {
            let report = admin.get(&path, &[]).await;
            sent_again(&report.map_err(not_yet)?)
        })
        .await?;
    steps
        .hold(
            "billing has taken it under the same webhook-id; no dead letter is left",
            async || {
                took(BILLING, DEAD, &[503, 503, 204]).await?;
                no_letter(&letters(&admin).await?)
            },
        )
        .await?;
    let requests = steps
        .hold(
            "every request was verified with its endpoint's secret, and none came twice",
            async || {
                let heard = receiver.heard();
                let requests = verified(&heard)?;
                // The healthy endpoint has seen nothing of the others' retries.
                for (id, ..) in EVENTS {
                    answered(&heard, WAREHOUSE, id, &[204])?;
                }
                Ok(requests)
            },
        )
        .await?;
    let replayed = [(BILLING.to_owned(), DEAD.to_owned())];
    let table = table::of_what_happened(&receiver.heard(), &replayed);
    print(&format!(
        "\n{table}\n{requests} requests, all as they should be.\n"
    ));
    Ok(())
}

/// The events of all dead letters.
async fn letters(admin: &Admin) -> Result<Vec<String>, Not> {
    let page: Page = admin.get("/v1/dead-letters", &[]).await.map_err(not_yet)?;
    Ok(page
        .letters
        .into_iter()
        .map(|letter| letter.event_id)
        .collect())
}

fn not_yet(error: anyhow::Error) -> Not {
    Not::Yet(format!("{error:#}"))
}

fn event(id: &str, topic: &str, body: &'static str) -> Publication {
    Publication {
        topic: topic.to_owned(),
        exchange: String::new(),
        id: Some(id.to_owned()),
        kind: None,
        key: None,
        content_type: Some("application/json".to_owned()),
        headers: Headers::default(),
        body: Bytes::from_static(body.as_bytes()),
    }
}

/// Whether anybody reads what we print is no reason to stop.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Returns when the demo is to end at once: Ctrl-C, SIGTERM, or a terminal that is closed.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let [Ok(mut int), Ok(mut term), Ok(mut hup)] = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ]
    .map(signal) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
        _ = hup.recv() => {}
    }
}
