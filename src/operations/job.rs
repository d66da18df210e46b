//! Jobs: operations that take long, with a rate, progress and an end that can be asked for.
//!
//! A job lives in the process that runs it. What it has done is done on the broker, item by item,
//! so a job that is interrupted is continued by starting it again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::subscription::Rate;

/// Jobs at work at once.
const RUNNING: usize = 16;
/// Those of one tenant.
const RUNNING_OF_TENANT: usize = 2;
/// Jobs that are remembered after their end.
const REMEMBERED: usize = 100;
/// Different reasons for skipping that are counted apart.
const REASONS: usize = 50;

/// A job at work, or ended and remembered.
pub struct Job {
    pub id: String,
    /// `dead_retry`, `dead_drop`, `replay` and so on.
    pub operation: &'static str,
    started_at: Timestamp,
    total: AtomicU64,
    seen: AtomicU64,
    matched: AtomicU64,
    done: AtomicU64,
    rest: Mutex<Rest>,
    cancel: CancellationToken,
    /// Who has had it started, if that was not the operator.
    tenant: OnceLock<Arc<str>>,
}

struct Rest {
    state: State,
    why: Option<String>,
    ended_at: Option<Timestamp>,
    skipped: BTreeMap<String, u64>,
    notes: Vec<String>,
    reached: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = JobState)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Running,
    Done,
    /// Asked to stop; what was done stays done.
    Cancelled,
    Failed,
}

/// A job as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Job)]
pub struct Report {
    pub id: String,
    pub operation: String,
    pub state: State,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    pub started_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// How many there are to look at, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Looked at so far.
    pub seen: u64,
    /// Of those, how many are to be done, where that is counted apart.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub matched: u64,
    /// Done so far.
    pub done: u64,
    /// Left as they were although they matched, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub skipped: BTreeMap<String, u64>,
    /// What else there is to know, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// All that is older is done with: where to go on after an interruption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<Timestamp>,
}

const UNKNOWN: u64 = u64::MAX;

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Job {
    fn new(operation: &'static str) -> Self {
        Self {
            id: uuid::Uuid::now_v7().simple().to_string(),
            operation,
            started_at: Timestamp::now(),
            total: AtomicU64::new(UNKNOWN),
            seen: AtomicU64::new(0),
            matched: AtomicU64::new(0),
            done: AtomicU64::new(0),
            rest: Mutex::new(Rest {
                state: State::Running,
                why: None,
                ended_at: None,
                skipped: BTreeMap::new(),
                notes: Vec::new(),
                reached: None,
            }),
            cancel: CancellationToken::new(),
            tenant: OnceLock::new(),
        }
    }

    /// A tenant has had it started.
    pub fn belongs_to(&self, tenant: Arc<str>) {
        let _ = self.tenant.set(tenant);
    }

    /// Whether it may be shown to who acts for this tenant, or to the operator.
    pub fn is_seen_by(&self, tenant: Option<&str>) -> bool {
        tenant.is_none_or(|tenant| self.tenant.get().is_some_and(|its| **its == *tenant))
    }

    pub fn expects(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// One more was looked at.
    pub fn saw(&self) {
        self.seen.fetch_add(1, Ordering::Relaxed);
    }

    /// One more is to be done.
    pub fn matched(&self) {
        self.matched.fetch_add(1, Ordering::Relaxed);
    }

    /// One more was done.
    pub fn did(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// One that matched was left as it was.
    pub fn skipped(&self, why: &str) {
        let mut rest = self.lock();
        let known = rest.skipped.contains_key(why) || rest.skipped.len() < REASONS;
        let why = if known { why } else { "other" };
        *rest.skipped.entry(why.to_owned()).or_default() += 1;
    }

    /// Something to know about the whole job.
    pub fn note(&self, note: impl Into<String>) {
        let mut rest = self.lock();
        if rest.notes.len() < REASONS {
            rest.notes.push(note.into());
        }
    }

    /// All that is older than this is done with.
    pub fn reached(&self, at: Timestamp) {
        self.lock().reached = Some(at);
    }

    /// Cancelled when somebody has asked the job to stop; it then ends between two items.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }

    pub fn report(&self) -> Report {
        let rest = self.lock();
        let total = self.total.load(Ordering::Relaxed);
        Report {
            id: self.id.clone(),
            operation: self.operation.to_owned(),
            state: rest.state,
            why: rest.why.clone(),
            started_at: self.started_at,
            ended_at: rest.ended_at,
            total: (total != UNKNOWN).then_some(total),
            seen: self.seen.load(Ordering::Relaxed),
            matched: self.matched.load(Ordering::Relaxed),
            done: self.done.load(Ordering::Relaxed),
            skipped: rest.skipped.clone(),
            notes: rest.notes.clone(),
            reached: rest.reached,
        }
    }

    fn end(&self, result: anyhow::Result<()>) {
        let mut rest = self.lock();
        if rest.state != State::Running {
            return;
        }
        rest.ended_at = Some(Timestamp::now());
        rest.state = match result {
            Ok(()) if self.cancel.is_cancelled() => State::Cancelled,
            Ok(()) => State::Done,
            Err(error) => {
                rest.why = Some(format!("{error:#}"));
                State::Failed
            }
        };
    }

    fn lock(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// Ends the job when its work is dropped without an end: it panicked, or its runtime is gone.
struct Ending(Arc<Job>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0
            .end(Err(anyhow::anyhow!("it ended without a result")));
    }
}

/// The jobs of this process.
#[derive(Default)]
pub struct Jobs {
    /// The oldest first.
    all: Mutex<VecDeque<Arc<Job>>>,
    work: TaskTracker,
}

/// Too many jobs are at work, or the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{RUNNING} jobs are at work already ({RUNNING_OF_TENANT} of one tenant), or this process is stopping: wait for one, or cancel one"
)]
pub struct TooMany;

impl Jobs {
    /// Starts a job in the background.
    pub fn start<W>(
        &self,
        operation: &'static str,
        work: impl FnOnce(Arc<Job>) -> W,
    ) -> Result<Arc<Job>, TooMany>
    where
        W: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let job = Arc::new(Job::new(operation));
        {
            let mut all = self.lock();
            let running = |job: &&Arc<Job>| job.lock().state == State::Running;
            if self.work.is_closed() || all.iter().filter(running).count() >= RUNNING {
                return Err(TooMany);
            }
            while all.len() >= REMEMBERED {
                let oldest = all.iter().position(|job| !running(&job));
                oldest.map(|at| all.remove(at));
            }
            all.push_back(job.clone());
        }
        let (ending, working) = (Ending(job.clone()), work(job.clone()));
        self.work.spawn(async move {
            let result = working.await;
            ending.0.end(result);
        });
        Ok(job)
    }

    pub fn get(&self, id: &str) -> Option<Arc<Job>> {
        self.lock().iter().find(|job| job.id == id).cloned()
    }

    /// All that are remembered and that may be shown to who acts for this tenant, the newest first.
    pub fn list(&self, tenant: Option<&str>) -> Vec<Report> {
        let all = self.lock();
        let seen = all.iter().rev().filter(|job| job.is_seen_by(tenant));
        seen.map(|job| job.report()).collect()
    }

    /// Whether this tenant may have one more started.
    pub fn room_for(&self, tenant: &str) -> Result<(), TooMany> {
        let all = self.lock();
        let its = all.iter().filter(|job| job.is_seen_by(Some(tenant)));
        let running = its.filter(|job| job.lock().state == State::Running);
        match running.count() < RUNNING_OF_TENANT {
            true => Ok(()),
            false => Err(TooMany),
        }
    }

    /// Asks a job to stop; `None` when there is no such job.
    pub fn cancel(&self, id: &str) -> Option<Report> {
        let job = self.get(id)?;
        job.cancel.cancel();
        Some(job.report())
    }

    /// Asks all to stop, and returns when they have: each gives back what it has in hand, which
    /// would otherwise come again. No more are started.
    pub async fn stop(&self) {
        self.work.close();
        for job in self.lock().iter() {
            job.cancel.cancel();
        }
        self.work.wait().await;
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Job>>> {
        self.all.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// Spreads what a job does evenly over time.
pub struct Pace {
    interval: Duration,
    next: Instant,
}

impl Pace {
    /// Without a rate there is no waiting.
    pub fn new(rate: Option<Rate>) -> Self {
        Self {
            interval: rate.map_or(Duration::ZERO, |rate| rate.interval()),
            next: Instant::now(),
        }
    }

    /// Waits until the next item may be done. `false`: the job was cancelled meanwhile.
    pub async fn turn(&mut self, job: &Job) -> bool {
        if job.cancel.is_cancelled() {
            return false;
        }
        let now = Instant::now();
        let at = self.next.max(now);
        self.next = at + self.interval;
        if at <= now {
            return true;
        }
        tokio::select! {
            () = tokio::time::sleep_until(at) => true,
            () = job.cancel.cancelled() => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ended(job: &Job) -> Report {
        loop {
            let report = job.report();
            if report.state != State::Running {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_waits_for_what_is_in_hand_and_lets_nothing_begin() {
        let jobs = Jobs::default();
        let job = jobs.start("test", |job| async move {
            job.cancelled().cancelled().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            job.did();
            Ok(())
        });
        jobs.stop().await;
        let report = job.unwrap().report();
        assert_eq!((report.state, report.done), (State::Cancelled, 1));
        assert!(jobs.start("test", |_| async { Ok(()) }).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_spreads_the_work_and_a_cancelled_job_stops() {
        let jobs = Jobs::default();
        let began = Instant::now();
        let job = jobs.start("test", |job| async move {
            let mut pace = Pace::new(Some("10/s".parse().unwrap()));
            while pace.turn(&job).await {
                job.did();
            }
            Ok(())
        });
        let job = job.unwrap();
        tokio::time::sleep(Duration::from_millis(950)).await;
        jobs.cancel(&job.id).unwrap();
        let report = ended(&job).await;
        assert_eq!((report.state, report.done), (State::Cancelled, 10));
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_job_that_panics_has_failed() {
        let jobs = Jobs::default();
        let job = jobs.start("test", |_| async { panic!("for the test") });
        assert_eq!(ended(&job.unwrap()).await.state, State::Failed);
    }

    #[tokio::test]
    async fn only_so_many_jobs_run_and_are_remembered() {
        let jobs = Jobs::default();
        for _ in 0..2 * REMEMBERED {
            let job = jobs.start("short", |_| async { Ok(()) }).unwrap();
            ended(&job).await;
        }
        assert_eq!(jobs.list(None).len(), REMEMBERED);
        for _ in 0..RUNNING {
            jobs.start("long", |_| std::future::pending()).unwrap();
        }
        let refused = jobs.start("one more", |_| async { Ok(()) });
        assert_eq!(refused.err(), Some(TooMany));
    }
}
