//! Changing dead letters: sending them again, and removing them.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tracing::info;

use super::look::find_letter;
use super::{Choice, NotDone, Rounds};
use crate::broker::{Letter, Purpose, Refused, Wait};
use crate::delivery::{Delivery, DeliveryId};
use crate::journal;
use crate::operations::{Job, Operations, Pace};
use crate::pipeline::State;
use crate::selection::Selection;
use crate::subscription::Rate;

/// What is to be sent again, and how.
#[derive(Debug, Clone, Default)]
pub struct Retry {
    pub choice: Choice,
    pub rate: Option<Rate>,
    /// Only counts what would be sent and what would be left.
    pub dry_run: bool,
}

/// Sends the selected letters again, each to the one subscription that missed it, under the same
/// `webhook-id`. What cannot be sent is left where it is, and counted by reason.
pub async fn retry(operations: &Arc<Operations>, ask: Retry) -> Result<Arc<Job>, NotDone> {
    let Retry {
        choice,
        rate,
        dry_run,
    } = ask;
    let (purpose, operation) = match dry_run {
        true => (Purpose::List, "dead_retry_dry_run"),
        false => (Purpose::Change, "dead_retry"),
    };
    let rounds = Rounds::open(operations, &choice, purpose).await?;
    let rate = rate.filter(|_| !dry_run);
    let work = Work::new(operations, rounds, Deed::Send, rate, dry_run);
    let job = operations
        .jobs
        .start(operation, |job| async move { work.run(&job).await })?;
    info!(
        job = job.id,
        filter = choice.selection.text(),
        dry_run,
        "dead letters are sent again"
    );
    Ok(job)
}

/// Removes the selected letters for good.
pub async fn purge(
    operations: &Arc<Operations>,
    choice: &Choice,
    dry_run: bool,
) -> Result<Arc<Job>, NotDone> {
    let (purpose, operation) = match dry_run {
        true => (Purpose::List, "dead_drop_dry_run"),
        false => (Purpose::Change, "dead_drop"),
    };
    let rounds = Rounds::open(operations, choice, purpose).await?;
    let work = Work::new(operations, rounds, Deed::Remove, None, dry_run);
    let job = operations
        .jobs
        .start(operation, |job| async move { work.run(&job).await })?;
    info!(
        job = job.id,
        filter = choice.selection.text(),
        dry_run,
        "dead letters are removed"
    );
    Ok(job)
}

/// Sends one letter again. With another `body` it becomes a new event, under a new id, that says
/// which letter it was made of. `id` is as for [`super::find`].
pub async fn retry_one(
    operations: &Arc<Operations>,
    choice: Choice,
    id: &str,
    body: Option<Bytes>,
) -> Result<Arc<Job>, NotDone> {
    let (wanted, at) = find_letter(operations, &choice, id).await?;
    let unfit = match &body {
        None => unfit(&wanted, operations),
        Some(body) => match wanted.edited(body.clone(), Timestamp::now()) {
            Err(why) => Some(why.to_owned()),
            Ok(_) => unfit_receiver(&wanted, operations),
        },
    };
    if let Some(why) = unfit {
        return Err(NotDone::Unfit(why));
    }
    let choice = Choice {
        selection: Selection::all(),
        broker: Some(at),
        tenant: choice.tenant,
    };
    let mut rounds = Rounds::open(operations, &choice, Purpose::Change).await?;
    let wanted = One {
        id: wanted.delivery.id,
        generation: wanted.delivery.generation,
        body,
    };
    let by = operations.clone();
    let started = operations.jobs.start("dead_retry", |job| async move {
        let sent = wanted.send(&mut rounds, &job, &by).await;
        rounds.close().await;
        sent
    })?;
    started.expects(1);
    Ok(started)
}

/// The letter that is sent again alone.
struct One {
    id: DeliveryId,
    generation: u32,
    /// Instead of its own.
    body: Option<Bytes>,
}

impl One {
    async fn send(
        self,
        rounds: &mut Rounds,
        job: &Job,
        operations: &Operations,
    ) -> anyhow::Result<()> {
        while let Some((letter, _, broker)) = rounds.next().await? {
            if job.cancelled().is_cancelled() {
                return Ok(());
            }
            let Delivery { id, generation, .. } = &letter.delivery;
            if *id != self.id || *generation != self.generation {
                continue;
            }
            job.saw();
            let (on, old) = (broker.name(), &letter.delivery);
            match self.body {
                None => {
                    rounds.send_again(&letter).await?;
                    operations.note(journal::Deed::SentAgain, whole(old), on, "");
                }
                Some(body) => {
                    let edited = letter.edited(body, Timestamp::now());
                    let edited = edited.map_err(|why| anyhow::anyhow!(why))?;
                    broker.park(&edited, Wait::AT_ONCE).await?;
                    let made_of = journal::Deed::MadeOfLetter;
                    operations.note(made_of, whole(&edited), on, old.id.as_str());
                    rounds.remove().await?;
                    let made = edited.event.id.as_str();
                    operations.note(journal::Deed::Edited, whole(old), on, made);
                }
            }
            job.did();
            return Ok(());
        }
        Err(NotDone::NotFound(self.id.to_string()).into())
    }
}

/// What is done with a letter.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Send,
    Remove,
}

/// One way through all letters, a selected one at a time.
struct Work {
    operations: Arc<Operations>,
    rounds: Rounds,
    deed: Deed,
    pace: Pace,
    dry_run: bool,
}

impl Work {
    fn new(
        operations: &Arc<Operations>,
        rounds: Rounds,
        deed: Deed,
        rate: Option<Rate>,
        dry_run: bool,
    ) -> Self {
        Self {
            rounds,
            deed,
            dry_run,
            pace: Pace::new(rate),
            operations: operations.clone(),
        }
    }

    /// Does it with every selected letter, until the job is cancelled.
    async fn run(mut self, job: &Job) -> anyhow::Result<()> {
        let ended = self.go_through(job).await;
        self.rounds.close().await;
        ended
    }

    async fn go_through(&mut self, job: &Job) -> anyhow::Result<()> {
        if let Some(total) = self.rounds.total() {
            job.expects(total);
        }
        while !job.cancelled().is_cancelled() {
            let Some((letter, is_selected, broker)) = self.rounds.next().await? else {
                break;
            };
            if is_selected {
                if !self.pace.turn(job).await {
                    break;
                }
                match self.handle(&letter, broker.name()).await? {
                    Some(why) => job.skipped(&why),
                    None => job.did(),
                }
            }
            job.saw();
        }
        Ok(())
    }

    /// Does it with this letter; why it was left, if it was.
    async fn handle(&mut self, letter: &Letter, on: &str) -> Result<Option<String>, Refused> {
        if matches!(self.deed, Deed::Send)
            && let Some(why) = unfit(letter, &self.operations)
        {
            return Ok(Some(why));
        }
        if self.dry_run {
            return Ok(None);
        }
        let (done, did) = match self.deed {
            Deed::Send => {
                let sent = self.rounds.send_again(letter).await;
                (sent, journal::Deed::SentAgain)
            }
            Deed::Remove => (self.rounds.remove().await, journal::Deed::LetterRemoved),
        };
        if let Err(Refused::TooLarge { .. }) = done {
            // It stays, and stops none of the others.
            return Ok(Some("it is larger than the broker takes".into()));
        }
        done?;
        self.operations.note(did, whole(&letter.delivery), on, "");
        Ok(None)
    }
}

/// A delivery with the size of its event, which is all there.
fn whole(delivery: &Delivery) -> (&Delivery, usize) {
    (delivery, delivery.event.size_bytes())
}

/// Why this letter is not sent again as it is.
fn unfit(letter: &Letter, operations: &Operations) -> Option<String> {
    match letter.cannot_be_revived() {
        Some(why) => Some(why.to_owned()),
        None => unfit_receiver(letter, operations),
    }
}

/// Why its subscription would not get it.
pub(super) fn unfit_receiver(letter: &Letter, operations: &Operations) -> Option<String> {
    let name = &letter.delivery.subscription;
    if name.is_empty() {
        // An event that matched nothing is routed anew.
        return None;
    }
    let Some(receiver) = operations.receiver_of(&letter.delivery) else {
        return Some(format!("subscription `{name}` is gone"));
    };
    match receiver.state {
        State::Active | State::Paused | State::Unverified => None,
        State::Disabled => Some(format!(
            "subscription `{name}` is disabled by its receiver: enable it first"
        )),
        State::Off => Some(format!("subscription `{name}` is not enabled")),
    }
}
