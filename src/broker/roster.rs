//! The roster: which sources of a broker run, while those that are wanted change.
//!
//! A source that is replaced or leaves is stopped by itself and ends when what it has handed out is
//! answered; only then does the one that takes its place begin. The others do not notice.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{Intake, SourceIntakes};

/// A source that runs, or is being stopped.
struct Running {
    intake: Intake,
    stop: CancellationToken,
}

/// Runs what `begin` makes of each source that is wanted until `stop`, and returns when all have
/// ended. `begin` is given a token of the source's own; where it makes nothing, the source does not run.
/// The first source that fails stops the others.
pub async fn keep<Begin, Work>(
    mut wanted: watch::Receiver<Arc<SourceIntakes>>,
    stop: &CancellationToken,
    mut begin: Begin,
) -> anyhow::Result<()>
where
    Begin: FnMut(&Arc<str>, Intake, CancellationToken) -> Option<Work>,
    Work: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let stop = stop.child_token();
    let mut running: BTreeMap<Arc<str>, Running> = BTreeMap::new();
    let mut names: HashMap<Id, Arc<str>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut result = Ok(());
    let mut is_over = false;
    loop {
        if !stop.is_cancelled() {
            let now = wanted.borrow_and_update().clone();
            for (name, source) in &running {
                let stays = now
                    .get(name)
                    .is_some_and(|intake| intake.is(&source.intake));
                if !stays && !source.stop.is_cancelled() {
                    info!(source = %name, "the source is stopped, and what it has in hand is finished");
                    source.stop.cancel();
                }
            }
            for (name, intake) in now.iter() {
                if running.contains_key(name) {
                    continue;
                }
                let stop = stop.child_token();
                let Some(work) = begin(name, intake.clone(), stop.clone()) else {
                    continue;
                };
                names.insert(tasks.spawn(work).id(), name.clone());
                let intake = intake.clone();
                running.insert(name.clone(), Running { intake, stop });
            }
        }
        tokio::select! {
            Some(ended) = tasks.join_next_with_id() => {
                let (id, ended) = match ended {
                    Ok((id, ended)) => (id, ended),
                    Err(panicked) => (panicked.id(), Err(panicked).context("a source ended badly")),
                };
                let name = names.remove(&id).unwrap_or_default();
                let source = running.remove(&name);
                if !stop.is_cancelled() && !wanted.borrow().contains_key(&name) {
                    info!(source = %name, "the source is not taken from any more");
                }
                // One that ends although nobody has stopped it has lost what the others need as well.
                if ended.is_err() || source.is_some_and(|source| !source.stop.is_cancelled()) {
                    stop.cancel();
                }
                result = result.and(ended);
            }
            changed = wanted.changed(), if !is_over && !stop.is_cancelled() => is_over = changed.is_err(),
            () = stop.cancelled(), if running.is_empty() => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::Notify;
    use tokio::task::yield_now;

    use super::*;
    use crate::broker::{Budget, Window};

    fn intake() -> Intake {
        Intake::new(Window::new(1), Budget::new(1_024), watch::channel(false).1).0
    }

    fn these(sources: &[(&str, &Intake)]) -> Arc<SourceIntakes> {
        let each = sources.iter();
        let each = each.map(|(name, intake)| ((*name).into(), (*intake).clone()));
        Arc::new(each.collect())
    }

    /// What has happened, and what sources that are stopped wait for.
    #[derive(Clone, Default)]
    struct Stage {
        said: Arc<Mutex<Vec<String>>>,
        answered: Arc<Notify>,
        fails: Arc<Notify>,
    }

    impl Stage {
        fn work(
            &self,
            name: &Arc<str>,
            stop: CancellationToken,
        ) -> impl Future<Output = anyhow::Result<()>> + Send + use<> {
            let (stage, name) = (self.clone(), name.clone());
            stage.say(format!("{name} begins"));
            async move {
                tokio::select! {
                    () = stop.cancelled() => stage.say(format!("{name} stops")),
                    () = stage.fails.notified() => anyhow::bail!("{name} fails"),
                }
                stage.answered.notified().await;
                stage.say(format!("{name} ends"));
                Ok(())
            }
        }

        fn say(&self, what: String) {
            self.said.lock().unwrap().push(what);
        }

        /// What was said since it was asked last, when nothing more comes.
        async fn said(&self) -> Vec<String> {
            for _ in 0..100 {
                yield_now().await;
            }
            std::mem::take(&mut *self.said.lock().unwrap())
        }
    }

    fn kept(
        stage: &Stage,
        wanted: watch::Receiver<Arc<SourceIntakes>>,
        stop: &CancellationToken,
    ) -> tokio::task::JoinHandle<anyhow::Result<()>> {
        let (stage, stop) = (stage.clone(), stop.clone());
        tokio::spawn(async move {
            keep(wanted, &stop, |name, _, stop| Some(stage.work(name, stop))).await
        })
    }

    #[tokio::test]
    async fn what_is_replaced_begins_again_when_it_has_ended_and_others_do_not_notice() {
        let (stage, stop) = (Stage::default(), CancellationToken::new());
        let (one, two) = (intake(), intake());
        let (wanted, seen) = watch::channel(these(&[("one", &one), ("two", &two)]));
        let keeping = kept(&stage, seen, &stop);
        assert_eq!(stage.said().await, ["one begins", "two begins"]);

        let instead = intake();
        wanted.send_replace(these(&[("one", &instead), ("two", &two)]));
        assert_eq!(stage.said().await, ["one stops"]);
        // Replaced once more before it has ended: what is wanted last is begun.
        wanted.send_replace(these(&[("one", &intake()), ("two", &two)]));
        assert_eq!(stage.said().await, [""; 0]);
        stage.answered.notify_one();
        assert_eq!(stage.said().await, ["one ends", "one begins"]);

        wanted.send_replace(these(&[("two", &two), ("three", &intake())]));
        assert_eq!(stage.said().await, ["three begins", "one stops"]);
        stage.answered.notify_one();
        assert_eq!(stage.said().await, ["one ends"]);

        stop.cancel();
        let mut said = stage.said().await;
        said.sort();
        assert_eq!(said, ["three stops", "two stops"]);
        assert!(!keeping.is_finished());
        stage.answered.notify_waiters();
        keeping.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn one_that_fails_stops_the_others() {
        let (stage, stop) = (Stage::default(), CancellationToken::new());
        let (wanted, seen) = watch::channel(these(&[("one", &intake())]));
        let keeping = kept(&stage, seen, &stop);
        assert_eq!(stage.said().await, ["one begins"]);
        stage.fails.notify_one();
        assert_eq!(stage.said().await, [""; 0]);
        let failed = keeping.await.unwrap().unwrap_err();
        assert_eq!(failed.to_string(), "one fails");
        assert!(!stop.is_cancelled());
        drop(wanted);
    }

    #[tokio::test]
    async fn with_none_it_waits_for_the_stop() {
        let (stage, stop) = (Stage::default(), CancellationToken::new());
        let (wanted, seen) = watch::channel(these(&[]));
        let keeping = kept(&stage, seen, &stop);
        drop(wanted);
        assert_eq!(stage.said().await, [""; 0]);
        assert!(!keeping.is_finished());
        stop.cancel();
        keeping.await.unwrap().unwrap();
    }
}
