//! Shutdown in two stages: finish what is in hand, then a deadline.
//!
//! SIGTERM or SIGINT: take no more. A second one: exit at once. Whatever is not settled by then is
//! delivered again by its broker.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The two stages, as tokens that everything which runs is given.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Take no more.
    pub stop: CancellationToken,
    /// Time is up: leave what is not settled.
    pub drain: CancellationToken,
}

impl Shutdown {
    /// Cancels `drain` so long after `stop` was cancelled.
    pub async fn enforce(&self, deadline: Duration) {
        self.stop.cancelled().await;
        tokio::time::sleep(deadline).await;
        warn!(
            ?deadline,
            "stopping takes longer than allowed; what is not settled will be delivered again"
        );
        self.drain.cancel();
    }
}

/// Signals of the process.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Stop,
    Reload,
}

impl Signals {
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    pub async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    /// After the first one: the next asks for an exit at once.
    pub async fn exit_on_second(mut self) {
        while self.next().await != Asked::Stop {}
        info!("asked to stop a second time, leaving at once");
        std::process::exit(130);
    }
}
