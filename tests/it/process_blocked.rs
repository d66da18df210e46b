//! Those who do not read: a log that nobody takes, metrics that are asked for and left lying.

use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Command;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::chaos_kill::bodies;
use crate::path::subscription;
use crate::support::bridge::Bridge;
use crate::support::bus::Bus;
use crate::support::eventually;
use crate::support::receiver::Receiver;

const WITHIN: Duration = Duration::from_secs(60);
/// More lines than a pipe and our own queue take.
const COUNT: usize = 4_000;
const FEW: usize = 500;

/// A pipe by the name of the bridge's log, opened and never read.
fn pipe(folder: &std::path::Path) -> OwnedFd {
    let path = folder.join("log");
    let made = Command::new("mkfifo").arg(&path).status();
    assert!(made.expect("mkfifo runs").success());
    // Without waiting for somebody to write.
    let mut options = std::fs::OpenOptions::new();
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let opened = options.read(true).custom_flags(flags).open(path);
    opened.expect("opened").into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_holds_up_no_delivery_and_no_stop() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let config = bus.config(&subscription("crm", "#", &receiver.url("/"), ""));
    let folder = tempfile::tempdir().expect("a folder");
    let unread = pipe(folder.path());
    let path = folder.path().join("log");
    let debug = vec![("HOOKBRIDGE_LOG", "hookbridge=debug".to_owned())];
    let mut bridge = Bridge::start_in(folder, &config, debug).await.ready().await;
    // Nobody else is to open it and wait.
    std::fs::remove_file(path).expect("removed");
    bus.publish(&bridge, &bodies(COUNT)).await;
    receiver.wait_for(COUNT, WITHIN).await;
    let lost = bridge.metric("hookbridge_log_lines_lost_total").await;
    assert!(lost > 0.0, "the pipe took every line");
    bridge.terminate();
    assert_eq!(bridge.exit_code(Duration::from_secs(30)).await, Some(0));
    drop(unread);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_that_nobody_reads_hold_up_nothing() {
    let receiver = Receiver::accepting().await;
    let bus = Bus::embedded();
    let config = bus.config(&subscription("crm", "#", &receiver.url("/"), ""));
    let bridge = Bridge::start(&config).await.ready().await;
    let mut unread = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(&bridge.admin).await.expect("connects");
        let asked = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
        // Until the bridge takes no more, since its answers are not taken.
        let stuck = async { while stream.write_all(asked.as_bytes()).await.is_ok() {} };
        let _ = timeout(Duration::from_millis(300), stuck).await;
        unread.push(stream);
    }
    bus.publish(&bridge, &bodies(FEW)).await;
    receiver.wait_for(FEW, WITHIN).await;
    assert_eq!(bridge.get("/readyz").await.0, 200);
    let settled = "hookbridge_source_messages_settled_total{source=\"orders\",outcome=\"settled\"}";
    eventually("all are settled", WITHIN, async || {
        (bridge.metric(settled).await == FEW as f64).then_some(())
    })
    .await;
}
