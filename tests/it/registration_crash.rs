//! What was answered with 201 is there after a kill -9 at that very moment.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::registration_support::{config, get, post};
use crate::support::bridge::Bridge;

const ALL: &str = "/v1/subscriptions";
/// Together 200 answers, of which the last of each round is followed by the kill.
const KILLS: usize = 10;
const AT_ONCE: usize = 20;

/// With `HOOKBRIDGE_KILLS=200` there is a kill for each answer of two hundred.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_outlives_kill_9() {
    let kills = std::env::var("HOOKBRIDGE_KILLS").ok();
    let kills = kills.and_then(|kills| kills.parse().ok());
    let (kills, at_once) = kills.map_or((KILLS, AT_ONCE), |kills| (kills, 1));
    let more = "endpoints: { shared: { url: 'http://127.0.0.1:9/', signature: none } }\n";
    let mut bridge = Bridge::start(&config(&[], more)).await;
    let mut answered: Vec<(String, Value)> = Vec::new();
    for round in 0..kills {
        let made = (0..at_once).map(async |number| {
            let name = format!("s{round:03}-{number:02}");
            let body = json!({ "name": name, "topics": ["x"], "endpoint": "shared" });
            let made = post(&bridge, ALL, &body).await.with(201);
            (name, made.body["uid"].clone())
        });
        let made = join_all(made).await;
        bridge.kill9();
        answered.extend(made);
        bridge.start_again().await;
        let page = get(&bridge, ALL).await.with(200).body;
        let all = page["subscriptions"].as_array().expect("a list");
        let found: Vec<_> = all
            .iter()
            .map(|one| {
                (
                    one["name"].as_str().expect("a name").to_owned(),
                    one["uid"].clone(),
                )
            })
            .collect();
        assert_eq!(found, answered, "round {round}");
    }
    println!("{kills} kills, {} answers, nothing lost", answered.len());
}
