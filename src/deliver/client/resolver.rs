//! Resolving names within a budget, so that a slow name server hurts only its own names.
//!
//! The system's resolver blocks a thread for as long as it likes. A name is asked for once however
//! many requests wait for it, so a hanging name takes one thread, and the number of threads is
//! bounded; who waits gives up after [`BUDGET`]. Nothing is cached here: connections are.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

const BUDGET: Duration = Duration::from_secs(5);
/// Look-ups under way at once; the runtime's pool for blocking calls has 512 threads.
const LOOK_UPS: usize = 128;

type Answers = Result<Arc<[IpAddr]>, Arc<str>>;
type Asked = Mutex<HashMap<String, watch::Receiver<Option<Answers>>>>;

pub(super) struct Resolver {
    asked: Arc<Asked>,
    threads: Arc<Semaphore>,
}

impl Resolver {
    pub(super) fn new() -> Self {
        Self {
            asked: Arc::default(),
            threads: Arc::new(Semaphore::new(LOOK_UPS)),
        }
    }

    /// The addresses of `name`, in the system's order of preference. Errors are for people.
    pub(super) async fn resolve(&self, name: &str) -> Result<Arc<[IpAddr]>, Arc<str>> {
        let mut answers = self.ask(name);
        let answered = timeout(BUDGET, answers.wait_for(Option::is_some)).await;
        match answered {
            Ok(Ok(answers)) => answers.clone().unwrap_or_else(|| Err("no answer".into())),
            Ok(Err(_)) => Err("the look-up ended without an answer".into()),
            Err(_) => {
                Err(format!("no answer from the resolver within {} s", BUDGET.as_secs()).into())
            }
        }
    }

    /// Joins the look-up of `name` that is under way, or starts one, which outlives its asker.
    fn ask(&self, name: &str) -> watch::Receiver<Option<Answers>> {
        let mut asked = self.asked.lock().unwrap_or_else(|p| p.into_inner());
        if let Some(answers) = asked.get(name) {
            return answers.clone();
        }
        let (told, answers) = watch::channel(None);
        asked.insert(name.to_owned(), answers.clone());
        let entry = Entry {
            asked: self.asked.clone(),
            name: name.to_owned(),
        };
        let threads = self.threads.clone();
        tokio::spawn(async move {
            // Waiting for a thread ends with the budget of those who ask; a thread that has begun
            // cannot be stopped, and keeps its permit until it ends.
            let Ok(Ok(_thread)) = timeout(BUDGET, threads.acquire()).await else {
                told.send_replace(Some(Err("too many names are being resolved".into())));
                return;
            };
            let result = look_up(&entry.name).await;
            drop(entry);
            told.send_replace(Some(result));
        });
        answers
    }
}

/// Takes the name off the list when its look-up ends, however that is.
struct Entry {
    asked: Arc<Asked>,
    name: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.asked
            .lock()
            .unwrap_or_else(|p| p.into_inner())
            .remove(&self.name);
    }
}

async fn look_up(name: &str) -> Answers {
    let found = tokio::net::lookup_host((name, 0))
        .await
        .map_err(|error| Arc::from(error.to_string()))?;
    let addresses: Arc<[IpAddr]> = found.map(|address| address.ip()).collect();
    if addresses.is_empty() {
        return Err("the name has no addresses".into());
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_look_up_is_shared_and_forgotten_when_done() {
        let resolver = Resolver::new();
        let (one, two) = tokio::join!(resolver.resolve("localhost"), resolver.resolve("localhost"));
        let one = one.unwrap();
        assert!(one.iter().all(IpAddr::is_loopback));
        assert!(Arc::ptr_eq(&one, &two.unwrap()));
        assert!(resolver.asked.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_resolver_costs_the_budget_and_no_more() {
        let resolver = Resolver::new();
        let _all = resolver
            .threads
            .acquire_many(LOOK_UPS as u32)
            .await
            .unwrap();
        let began = tokio::time::Instant::now();
        assert!(resolver.resolve("example.com").await.is_err());
        assert!(began.elapsed() <= BUDGET + Duration::from_millis(10));
    }
}
