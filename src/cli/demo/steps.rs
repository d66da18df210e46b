//! The demo's steps: what has to hold, one after the other, and by when.
//!
//! A step is looked at again and again until it holds, cannot hold any more, or its time is up; then
//! the demo fails and names it. The checks themselves know no clock and no process: they judge what
//! the receiver has heard.

use std::time::Duration;

use tokio::time::Instant;

use super::receiver::Heard;

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

/// Whether `endpoint` has been sent `event` as often as `answers` say, and answered so. More is
/// never right, whatever comes.
pub fn answered(heard: &[Heard], endpoint: &str, event: &str, answers: &[u16]) -> Result<(), Not> {
    let given: Vec<u16> = of(heard, endpoint, event).map(|one| one.status).collect();
    if given == answers {
        return Ok(());
    }
    let why = format!("{endpoint} has answered {event} with {given:?} instead of {answers:?}");
    Err(match answers.starts_with(&given) {
        true => Not::Yet(why),
        false => Not::Ever(why),
    })
}

/// Whether every request carried a signature that its endpoint could verify.
pub fn verified(heard: &[Heard]) -> Result<usize, Not> {
    match heard.iter().find(|one| one.unverified.is_some()) {
        None => Ok(heard.len()),
        Some(one) => Err(Not::Ever(format!(
            "{} could not verify {}: {}",
            one.endpoint,
            one.event,
            one.unverified.as_deref().unwrap_or_default()
        ))),
    }
}

/// What `endpoint` has heard of `event`.
pub fn of<'a>(
    heard: &'a [Heard],
    endpoint: &'a str,
    event: &'a str,
) -> impl Iterator<Item = &'a Heard> {
    heard
        .iter()
        .filter(move |one| one.endpoint == endpoint && one.event == event)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(endpoint: &str, event: &str, status: u16) -> Heard {
        Heard {
            endpoint: endpoint.to_owned(),
            event: event.to_owned(),
            status,
            unverified: None,
        }
    }

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

    #[test]
    fn too_few_may_still_come_and_too_many_are_wrong() {
        let two = [heard("crm", "a", 503), heard("crm", "a", 204)];
        assert_eq!(answered(&two, "crm", "a", &[503, 204]), Ok(()));
        let few = answered(&two, "crm", "a", &[503, 204, 204]);
        assert!(matches!(few, Err(Not::Yet(_))), "{few:?}");
        for wrong in [&[503][..], &[204, 204], &[503, 503, 204]] {
            let wrong = answered(&two, "crm", "a", wrong);
            assert!(matches!(wrong, Err(Not::Ever(_))), "{wrong:?}");
        }
        let other = answered(&two, "crm", "b", &[204]);
        assert!(matches!(other, Err(Not::Yet(_))), "{other:?}");
    }

    #[test]
    fn one_signature_that_is_wrong_is_enough() {
        let mut all = vec![heard("crm", "a", 204), heard("warehouse", "a", 204)];
        assert_eq!(verified(&all), Ok(2));
        all[1].unverified = Some("no signature matches".to_owned());
        let why = "warehouse could not verify a: no signature matches";
        assert_eq!(verified(&all), Err(Not::Ever(why.to_owned())));
    }
}
