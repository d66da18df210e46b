//! The demo's steps: what has to hold, one after the other, and by when.
//!
//! A step is looked at again and again until it holds, cannot hold any more, or its time is up; then
//! the demo fails and names it. What is looked at is in `checks`.

use std::time::Duration;

use tokio::time::Instant;

/// The whole demo, so that it ends by itself in under 20 s.
const ALL: Duration = Duration::from_secs(18);
const BETWEEN_LOOKS: Duration = Duration::from_millis(25);

/// Why a step does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Not {
    /// It may still come.
    Yet(String),
    Ever(String),
}

/// The steps of one run.
pub struct Steps {
    deadline: Instant,
    began: Instant,
    count: usize,
}

impl Steps {
    pub fn begin() -> Self {
        let began = Instant::now();
        Self {
            deadline: began + ALL,
            began,
            count: 0,
        }
    }

    /// Waits until `look` says that the step holds, and prints its line.
    pub async fn hold<T>(
        &mut self,
        step: &str,
        mut look: impl AsyncFnMut() -> Result<T, Not>,
    ) -> anyhow::Result<T> {
        self.count += 1;
        loop {
            let time_up = Instant::now() >= self.deadline;
            // Not longer than all of it, even if somebody does not answer.
            let looked = tokio::time::timeout_at(self.deadline + BETWEEN_LOOKS, look()).await;
            let looked = looked.unwrap_or_else(|_| Err(Not::Yet("no answer".to_owned())));
            match looked {
                Ok(value) => {
                    self.say(step);
                    return Ok(value);
                }
                Err(Not::Yet(_)) if !time_up => tokio::time::sleep(BETWEEN_LOOKS).await,
                Err(Not::Yet(why) | Not::Ever(why)) => {
                    anyhow::bail!("step {} does not hold: {step}: {why}", self.count)
                }
            }
        }
    }

    fn say(&self, step: &str) {
        let so_far = self.began.elapsed().as_secs_f32();
        super::print(&format!("{so_far:5.1} s  {}. {step}\n", self.count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_step_that_does_not_hold_is_named_in_time() {
        let began = Instant::now();
        let mut steps = Steps::begin();
        steps.hold("the first", async || Ok(())).await.unwrap();
        let never = async || Err::<(), _>(Not::Yet("nothing came".to_owned()));
        let error = steps.hold("the second", never).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "step 2 does not hold: the second: nothing came"
        );
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_hold_any_more_is_not_waited_for() {
        let began = Instant::now();
        let gone = async || Err::<(), _>(Not::Ever("it has ended".to_owned()));
        let error = Steps::begin().hold("running", gone).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "step 1 does not hold: running: it has ended"
        );
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_hangs_ends_in_time() {
        let began = Instant::now();
        let hanging = async || std::future::pending::<Result<(), Not>>().await;
        Steps::begin().hold("hanging", hanging).await.unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(20));
    }
}
