//! Whether the cluster answers at all: asked from time to time, for health and the log.
//!
//! The client library reconnects by itself and for ever; what it says about that is too much and
//! too little at once. This asks for one topic of ours and says once that it is down, and once
//! that it is back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::client::{Bootstrap, blocking};
use super::status::CLUSTER;
use super::{Kafka, names};

const EVERY: Duration = Duration::from_secs(3);
const ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// After so many failures the client is told of its bootstrap servers with each of so many only.
const OFTEN: u32 = 10;

pub async fn run(kafka: Arc<Kafka>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut bootstrap = Bootstrap::new(&kafka.connection.servers());
    let mut failures: u32 = 0;
    loop {
        let (admin, topic) = (kafka.admin.clone(), names::dead(&kafka.settings.group));
        let asked = blocking(move || {
            admin.inner().fetch_metadata(Some(&topic), ANSWER_WITHIN)?;
            Ok(())
        });
        let answer = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            answer = asked => answer,
        };
        match answer {
            Ok(()) => {
                failures = 0;
                kafka.status.ready(CLUSTER);
            }
            Err(error) => {
                let why = format!("no broker answers: {error:#}");
                kafka.status.down(CLUSTER, why);
                if failures < OFTEN || failures.is_multiple_of(OFTEN) {
                    bootstrap.again(kafka.admin.inner());
                }
                failures = failures.saturating_add(1);
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = sleep(EVERY) => {}
        }
    }
}
