//! Rotation: a new secret signs from now on, and the one before signs beside it until it expires.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tracing::info;

use super::{
    Answered, Mistake, Refused, Registry, Settings, Wish, answer, opened, sealed, to_its_end,
};
use super::{document, load};
use crate::deliver::signature::new_secret;
use crate::store::Registered;
use crate::subscription::Secret;

/// As many secrets sign at once at the most.
const MOST_SECRETS: usize = 5;
pub const DEFAULT_OVERLAP: Duration = Duration::from_secs(86_400);
pub const LONGEST_OVERLAP: Duration = Duration::from_secs(30 * 86_400);

/// What a secret is replaced with.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// How long the old one signs beside it, up to [`LONGEST_OVERLAP`].
    pub overlap: Duration,
    /// `None`: one is made.
    pub secret: Option<Secret>,
}

impl Registry {
    /// Replaces the secret of a subscription that has an endpoint of its own. The answer shows the new
    /// one if it was made here.
    pub async fn rotate(
        self: &Arc<Self>,
        which: String,
        rotation: Rotation,
        wish: Wish,
    ) -> Result<Answered, Refused> {
        let registry = self.clone();
        to_its_end(async move {
            let (settings, before) = registry.turn(&which, &wish).await?;
            let rotated = registry.rotate_now(&settings, before, rotation, wish.dry_run);
            rotated.await
        })
        .await
    }

    async fn rotate_now(
        &self,
        settings: &Settings,
        before: Registered,
        Rotation { overlap, secret }: Rotation,
        dry_run: bool,
    ) -> Result<Answered, Refused> {
        let now = Timestamp::now();
        let old = opened(&settings.keys, &before)?;
        if document::own_endpoint(&old).is_none() {
            let why = "its endpoint is one of the config: replace the secret there and reload";
            return Err(Refused::Conflict(why.to_owned()));
        }
        let (mut new, until) = load::in_effect(&before, old, now);
        let read = settings.reader.read(&[(&before.uid, &new)]).pop();
        let read = read.expect("one was asked for").map_err(Refused::Invalid)?;
        let Some(made) = new_secret(&read.endpoint.signature) else {
            let why = "its signature has no secret";
            return Err(Refused::Conflict(why.to_owned()));
        };
        let given = secret.is_some();
        let secret = secret.unwrap_or(made);
        let mut secrets: Vec<Value> = vec![secret.expose().into()];
        let mut old_until = Vec::new();
        if !overlap.is_zero() {
            let ends = now + overlap;
            for (number, old) in document::secrets(&new).into_iter().enumerate() {
                secrets.push(old);
                // The one that was the newest, and those that nobody has said anything of.
                let known = number.checked_sub(1).and_then(|place| until.get(place));
                old_until.push(known.copied().unwrap_or(ends));
            }
        }
        if secrets.len() > MOST_SECRETS {
            let next = until
                .iter()
                .min()
                .map(|at| format!(" (the next one at {at})"));
            return Err(Refused::Conflict(format!(
                "{} secrets sign already: wait until one expires{}, or rotate with an overlap of 0s",
                secrets.len() - 1,
                next.unwrap_or_default()
            )));
        }
        document::set_secrets(&mut new, secrets);
        let checked = self.checked(settings, &before.uid, &new);
        let (_, prepared) = checked.map_err(of_the_secret)?;
        let record = Registered {
            revision: before.revision + 1,
            changed_at: now,
            old_until,
            ..before
        };
        let record = sealed(settings, record, &new)?;
        let shown = (!given && !dry_run).then(|| secret.expose().to_owned());
        if !dry_run {
            self.free(settings, &record.name, Some(&record.uid))?;
            self.put(record.clone(), prepared).await?;
            info!(subscription = %record.name, uid = %record.uid, ?overlap, "a secret was replaced over the API");
        }
        let listed = self.listed(&record);
        Ok(answer(settings, &record, &new, listed, shown))
    }
}

/// What is wrong with the given secret, in terms of the request.
fn of_the_secret(refused: Refused) -> Refused {
    match refused {
        Refused::Invalid(mistakes) => {
            let mistakes = mistakes.into_iter().map(|mistake| {
                let is_it = mistake.pointer.starts_with("/endpoint/secret");
                match is_it {
                    true => Mistake {
                        pointer: "/secret".to_owned(),
                        ..mistake
                    },
                    false => mistake,
                }
            });
            Refused::Invalid(mistakes.collect())
        }
        other => other,
    }
}
