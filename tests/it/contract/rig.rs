//! A rig: a running broker, with the test at the pipeline's end of its intakes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hookbridge::broker::{Broker, Budget, Health, Intake, Intakes, Receipt, Received, Window};
use hookbridge::delivery::{Delivery, WaitKind};
use hookbridge::event::Event;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::eventually;

/// The one source of most rigs.
pub const SOURCE: &str = "orders";
/// A second one, whose events come in by the same end.
pub const OTHER_SOURCE: &str = "others";
/// How long anything may take to arrive that is on its way.
pub const SOON: Duration = Duration::from_secs(20);
/// How long nothing must arrive for it to count as nothing.
pub const QUIET: Duration = Duration::from_millis(1_500);

pub struct Rig {
    pub broker: Arc<dyn Broker>,
    pub events: mpsc::Receiver<Received>,
    pub retries: mpsc::Receiver<Received>,
    pub holds: mpsc::Receiver<Received>,
    stop: CancellationToken,
    drain: CancellationToken,
    task: Option<JoinHandle<anyhow::Result<()>>>,
    _pause: watch::Sender<bool>,
}

impl Rig {
    /// Runs `broker` and returns when it is ready.
    pub async fn run(broker: Arc<dyn Broker>) -> Self {
        Self::run_with_window(broker, 256).await
    }

    pub async fn run_with_window(broker: Arc<dyn Broker>, window: usize) -> Self {
        let rig = Self::start(broker, window);
        rig.ready().await;
        rig
    }

    /// Waits until the broker says that it is ready.
    pub async fn ready(&self) {
        let began = Instant::now();
        loop {
            let health = self.broker.health();
            if health == Health::Ready {
                return;
            }
            assert!(
                began.elapsed() < Duration::from_secs(40),
                "not ready: {health}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the broker says that it is down, and returns why.
    pub async fn down(&self) -> String {
        eventually("the broker is down", SOON, async || {
            match self.broker.health() {
                Health::Down { why } => Some(why),
                _ => None,
            }
        })
        .await
    }

    /// Runs `broker` without waiting for it.
    pub fn start(broker: Arc<dyn Broker>, window: usize) -> Self {
        let (pause, paused) = watch::channel(false);
        let budget = Budget::new(64 << 20);
        let open = |size| Intake::new(Window::new(size), budget.clone(), paused.clone());
        let (source, events) = open(window);
        let (retry, retries) = open(256);
        let (hold, holds) = open(256);
        let intakes = Intakes {
            sources: watch::channel(Arc::new(BTreeMap::from([
                (Arc::from(SOURCE), source.clone()),
                (Arc::from(OTHER_SOURCE), source),
            ])))
            .1,
            retries: retry,
            holds: hold,
            obeyed: Arc::new(|_, _| ()),
        };
        let (stop, drain) = (CancellationToken::new(), CancellationToken::new());
        let task = tokio::spawn(broker.clone().run(intakes, stop.clone(), drain.clone()));
        Self {
            broker,
            events,
            retries,
            holds,
            stop,
            drain,
            task: Some(task),
            _pause: pause,
        }
    }

    pub async fn event(&mut self) -> (Arc<Event>, Receipt) {
        match timeout(SOON, self.events.recv())
            .await
            .expect("an event in time")
            .expect("an open intake")
        {
            Received::Event(event, receipt) => (event, receipt),
            other => panic!("{other:?} came in by a source"),
        }
    }

    pub async fn no_event(&mut self) {
        if let Ok(Some(received)) = timeout(QUIET, self.events.recv()).await {
            panic!("nothing was to come, but {received:?} did");
        }
    }

    pub async fn due(&mut self, kind: WaitKind) -> (Delivery, Receipt) {
        let from = match kind {
            WaitKind::Retry => &mut self.retries,
            WaitKind::Hold => &mut self.holds,
        };
        match timeout(SOON, from.recv())
            .await
            .expect("a due delivery in time")
            .expect("an open intake")
        {
            Received::Due(delivery, came_as, receipt) => {
                assert_eq!(came_as, kind);
                (delivery, receipt)
            }
            other => panic!("{other:?} came in by a due queue"),
        }
    }

    /// Stops as the process would on SIGTERM, without waiting for open receipts.
    pub async fn stop(mut self) {
        self.stop.cancel();
        self.drain.cancel();
        if let Some(task) = self.task.take() {
            timeout(Duration::from_secs(15), task)
                .await
                .expect("stops in time")
                .expect("no panic")
                .expect("no error");
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
        self.drain.cancel();
    }
}
