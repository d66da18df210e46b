//! Dead letters: found, looked at, sent again, removed.
//!
//! All of it goes through the letters of the chosen brokers once, oldest first, as far as they
//! reached at the beginning. Looking ([`list`], [`count`], [`groups`], [`find`], [`export`]) disturbs
//! nobody. Changing ([`retry`], [`retry_one`], [`purge`]) is a job that holds the group's replay lock
//! on each of these brokers, and works letter by letter, each new life confirmed by the broker before
//! the letter is removed. Killed, it is continued by doing it again, with no letter lost and only
//! the one in hand perhaps sent twice; on the embedded broker, where both is one transaction, none.

mod change;
mod look;
mod shown;

use std::collections::VecDeque;
use std::sync::Arc;

pub use change::{Retry, purge, retry, retry_one};
pub use look::{Count, Cursor, Group, Groups, Page, count, export, find, groups, list};
pub use shown::{Receiver, Shown, ShownHeader};

use super::job::TooMany;
use super::said::Said;
use super::{Known, Operations};
use crate::broker::{Broker, Letter, Letters, NotOpened, Purpose, Refused};
use crate::selection::{Facts, Selection};
use crate::subscription::LazyJson;

/// Which letters are meant.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    pub selection: Selection,
    /// On this broker only.
    pub broker: Option<Arc<str>>,
    /// Of subscriptions of this tenant only: there are no others then.
    pub tenant: Option<Arc<str>>,
}

/// Why something was not done with the letters.
#[derive(Debug, thiserror::Error)]
pub enum NotDone {
    #[error("no broker `{name}` keeps dead letters: {known} do")]
    UnknownBroker { name: Arc<str>, known: String },
    #[error("this is no cursor of ours: begin again without one")]
    BadCursor,
    #[error("no dead letter `{0}`: it may have been sent again or removed")]
    NotFound(String),
    #[error("`{id}` is more than one letter: say which of {}", .candidates.join(", "))]
    Ambiguous { id: String, candidates: Vec<String> },
    /// This one letter is not sent again.
    #[error("{0}")]
    Unfit(String),
    /// Somebody else is changing letters of this group.
    #[error("{0}")]
    Busy(String),
    #[error(transparent)]
    TooMany(#[from] TooMany),
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl From<NotOpened> for NotDone {
    fn from(not_opened: NotOpened) -> Self {
        match not_opened {
            NotOpened::Refused(refused) => Self::Refused(refused),
            busy @ NotOpened::Busy(_) => Self::Busy(busy.to_string()),
        }
    }
}

/// Goes through the letters of several brokers, one broker after the other.
struct Rounds {
    /// Whose sources decode.
    known: Arc<dyn Known>,
    selection: Selection,
    tenant: Option<Arc<str>>,
    passes: VecDeque<Pass>,
}

struct Pass {
    broker: Arc<dyn Broker>,
    letters: Box<dyn Letters>,
}

impl Rounds {
    /// Opens the letters of every broker that is meant; each is as it was when it was opened.
    async fn open(
        operations: &Operations,
        choice: &Choice,
        purpose: Purpose,
    ) -> Result<Self, NotDone> {
        let keepers = || operations.keepers().map(|broker| broker.name());
        if let Some(name) = &choice.broker
            && !keepers().any(|keeper| keeper == name)
        {
            let known: Vec<_> = keepers().map(|name| format!("`{name}`")).collect();
            return Err(NotDone::UnknownBroker {
                name: name.clone(),
                known: known.join(", "),
            });
        }
        let is_meant = |broker: &&Arc<dyn Broker>| {
            let name = broker.name();
            choice.broker.as_ref().is_none_or(|only| only == name)
                && choice.selection.may_be_on(name)
        };
        let mut passes = VecDeque::new();
        for broker in operations.keepers().filter(is_meant) {
            match broker.open_letters(purpose).await {
                Ok(letters) => {
                    let broker = broker.clone();
                    passes.push_back(Pass { broker, letters });
                }
                Err(not_opened) => {
                    close(passes).await;
                    return Err(not_opened.into());
                }
            }
        }
        Ok(Self {
            known: operations.known.clone(),
            selection: choice.selection.clone(),
            tenant: choice.tenant.clone(),
            passes,
        })
    }

    /// Gives back what is left, where the way through ends early. A process that exits cuts off what
    /// dropping would give back in the background, and the next one waits for the lock.
    async fn close(self) {
        close(self.passes).await;
    }

    /// How many letters there are to go through, where all brokers tell.
    fn total(&self) -> Option<u64> {
        if self.tenant.is_some() {
            return None;
        }
        self.passes.iter().map(|pass| pass.letters.total()).sum()
    }

    /// The next letter, selected or not, with whether it is, and the broker that it lies on. A broker
    /// whose letters have come to their end is let go of, and its lock with it; all are after an error.
    async fn next(&mut self) -> Result<Option<(Letter, bool, Arc<dyn Broker>)>, Refused> {
        while let Some(pass) = self.passes.front_mut() {
            match pass.letters.next().await {
                Ok(Some(letter)) => {
                    if self.tenant.is_some() && letter.delivery.tenant != self.tenant {
                        continue;
                    }
                    let broker = pass.broker.clone();
                    let chosen = (&*self.known, &self.selection);
                    let is_selected = is_selected(chosen, &letter, broker.name()).await;
                    let is_selected = match is_selected {
                        Ok(is_selected) => is_selected,
                        Err(refused) => {
                            close(std::mem::take(&mut self.passes)).await;
                            return Err(refused);
                        }
                    };
                    return Ok(Some((letter, is_selected, broker)));
                }
                Ok(None) => {
                    pass.letters.close().await;
                    self.passes.pop_front();
                }
                Err(refused) => {
                    close(std::mem::take(&mut self.passes)).await;
                    return Err(refused);
                }
            }
        }
        Ok(None)
    }

    /// Sends the letter that `next` returned last again: `letter`.
    async fn send_again(&mut self, letter: &Letter) -> Result<(), Refused> {
        match self.passes.front_mut() {
            Some(Pass { broker, letters }) => letters.send_again(&**broker, letter).await,
            None => Ok(()),
        }
    }

    /// Removes the letter that `next` returned last.
    async fn remove(&mut self) -> Result<(), Refused> {
        match self.passes.front_mut() {
            Some(pass) => pass.letters.remove().await,
            None => Ok(()),
        }
    }
}

async fn close(passes: VecDeque<Pass>) {
    for mut pass in passes {
        pass.letters.close().await;
    }
}

/// A term about the body looks into what the event says, as its source decodes it.
async fn is_selected(
    (known, selection): (&dyn Known, &Selection),
    letter: &Letter,
    broker: &Arc<str>,
) -> Result<bool, Refused> {
    let event = &letter.delivery.event;
    if !may_be_selected(selection, letter, broker) {
        return Ok(false);
    }
    let decoder = known.decoder(&event.source);
    let decoder = decoder.filter(|_| letter.has_body && selection.needs_body());
    let said = Said::by(decoder.as_ref(), event).await;
    let said = said.map_err(|why| {
        let broker = broker.clone();
        Refused::Unavailable { broker, why }
    })?;
    let body = LazyJson::new(said.body(event));
    Ok(selection.matches(&facts(letter, broker, &body)))
}

fn may_be_selected(selection: &Selection, letter: &Letter, broker: &str) -> bool {
    let body = LazyJson::new(&letter.delivery.event.body);
    selection.matches_but_for_body(&facts(letter, broker, &body))
}

fn facts<'a>(letter: &'a Letter, broker: &'a str, body: &'a LazyJson<'a>) -> Facts<'a> {
    let delivery = &letter.delivery;
    let event = &delivery.event;
    let named = |text: &'_ str| !text.is_empty();
    Facts {
        subscription: Some(&*delivery.subscription).filter(|text| named(text)),
        reason: Some(letter.reason.as_str()),
        kind: Some(&event.kind),
        topic: Some(&event.topic),
        source: Some(&*event.source).filter(|text| named(text)),
        broker: Some(broker),
        result: delivery.progress.last_result.as_deref(),
        at: Some(letter.dead_at),
        ids: [Some(delivery.id.as_str()), Some(event.id.as_str()), None],
        body: Some(body),
    }
}
