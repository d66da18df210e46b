//! Doctor: looks at everything that deliveries depend on, and says what it saw, as it goes.
//!
//! All checks run at once, each under a deadline, so that one broker that hangs holds nobody up;
//! what they say comes out in the order of the checks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::broker::upkeep::Upkeep;
use crate::deliver::{AddressPolicy, inspect};
use crate::finding::{Finding, Findings, Level};
use crate::subscription::Endpoint;

/// How long one check may take in all.
const DEADLINE: Duration = Duration::from_secs(60);
/// Findings of one check that wait to be printed; then it waits, within its deadline.
const WAITING: usize = 1_000;

/// Something to look at.
pub enum Check {
    /// What is said without looking far: about this machine and the config itself.
    Said(Vec<Finding>),
    Broker(Arc<dyn Upkeep>),
    Endpoint(Arc<Endpoint>),
}

/// What came of all checks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    pub ok: u32,
    pub warnings: u32,
    pub problems: u32,
    pub unreachable: u32,
}

impl Summary {
    fn count(&mut self, level: Level) {
        *match level {
            Level::Ok => &mut self.ok,
            Level::Warning => &mut self.warnings,
            Level::Problem => &mut self.problems,
            Level::Unreachable => &mut self.unreachable,
        } += 1;
    }
}

/// Runs all `checks`; `tell` hears each finding. `ping` sends a signed sample to each endpoint.
/// Dropping it ends all that is under way.
pub async fn run(
    checks: Vec<Check>,
    policy: AddressPolicy,
    ping: bool,
    mut tell: impl FnMut(&Finding) -> std::io::Result<()>,
) -> std::io::Result<Summary> {
    let policy = Arc::new(policy);
    let mut running = JoinSet::new();
    let mut heard = Vec::with_capacity(checks.len());
    for check in checks {
        let (to, findings) = mpsc::channel(WAITING);
        heard.push(findings);
        running.spawn(one(check, policy.clone(), ping, to));
    }
    let mut summary = Summary::default();
    for mut findings in heard {
        while let Some(finding) = findings.recv().await {
            summary.count(finding.level);
            tell(&finding)?;
        }
    }
    Ok(summary)
}

async fn one(check: Check, policy: Arc<AddressPolicy>, ping: bool, to: mpsc::Sender<Finding>) {
    let subject = match &check {
        Check::Said(_) => "bridge".to_owned(),
        Check::Broker(broker) => format!("broker {}", broker.name()),
        Check::Endpoint(endpoint) => format!("endpoint {}", endpoint.name),
    };
    let found = Findings::new(subject, to.clone());
    let looking = async {
        match check {
            Check::Said(findings) => {
                for finding in findings {
                    let _ = to.send(finding).await;
                }
            }
            Check::Broker(broker) => broker.inspect(&found).await,
            Check::Endpoint(endpoint) => {
                inspect::endpoint(&policy, &endpoint, ping, &found).await;
            }
        }
    };
    if timeout(DEADLINE, looking).await.is_err() {
        let what = format!("the checks did not end within {DEADLINE:?}");
        found
            .unreachable(what, "it answers, but too slowly: see its log")
            .await;
    }
}
