//! An endpoint that works again after a short failure soon gets all that waited for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::eventually;
use crate::support::receiver::{Answer, Receiver};

/// It does not work for so long: some of what comes is used to ask it again.
const FAILS_FOR: Duration = Duration::from_secs(12);
/// Far less than the second delay of the schedule.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_delivery_that_asked_in_vain_waits_for_its_schedule() {
    let works = Arc::new(AtomicBool::new(false));
    let asked = works.clone();
    let receiver = Receiver::answering(move |_, _| {
        Answer::status(if asked.load(Ordering::Relaxed) {
            204
        } else {
            503
        })
    })
    .await;
    let breaker = "breaker: { failures: 2 }, secret:";
    let crm = subscription("crm", "orders.*", &receiver.url("/"), "")
        .replace("secret:", breaker)
        .replace("[1s, 1s, 1s]", "[1s, 5m]");
    let bus = Bus::embedded();
    let bridge = Bridge::start(&bus.config(&crm)).await.ready().await;
    let mut traffic = tokio::time::interval(Duration::from_millis(200));
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < FAILS_FOR {
        traffic.tick().await;
        let body = format!("{{\"order\": {count}}}");
        bus.publish(&bridge, &[body]).await;
        count += 1;
    }
    works.store(true, Ordering::Relaxed);
    let accepted = || receiver.count_of(|request| request.answered == 204);
    eventually("all are accepted", SOON, async || {
        (accepted() >= count).then_some(())
    })
    .await;
}
