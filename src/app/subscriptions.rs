//! Subscriptions as the admin API shows and changes them.

use std::sync::Arc;

use async_trait::async_trait;
use tracing::error;

use crate::admin::{Change, Listed, NotChanged, Subscriptions};
use crate::operations::Receivers;
use crate::pipeline::{Pipeline, Receiver, State, SubscriptionStatus};

/// The pipeline, behind what the API needs of it.
pub struct OfPipeline(pub Arc<Pipeline>);

#[async_trait]
impl Subscriptions for OfPipeline {
    async fn list(&self) -> Vec<Listed> {
        self.0.subscriptions().into_iter().map(listed).collect()
    }

    async fn change(&self, name: &str, change: Change) -> Result<Listed, NotChanged> {
        let known = match change {
            Change::Pause => self.0.set_paused(name, true).await,
            Change::Resume => self.0.set_paused(name, false).await,
            Change::Enable => self.0.enable(name).await,
        };
        match known {
            Ok(true) => {}
            Ok(false) => return Err(NotChanged::Unknown),
            Err(error) => return Err(NotChanged::Unavailable(format!("{error:#}"))),
        }
        let now = self
            .0
            .subscriptions()
            .into_iter()
            .find(|subscription| &*subscription.name == name);
        now.map(listed).ok_or(NotChanged::Unknown)
    }
}

impl Receivers for OfPipeline {
    fn receiver(&self, name: &str) -> Option<Receiver> {
        let found = self.0.receiver(name);
        found.unwrap_or_else(|error| {
            error!(subscription = name, %error, "a subscription in use does not compile");
            None
        })
    }
}

fn listed(status: SubscriptionStatus) -> Listed {
    let (state, why) = match status.state {
        State::Active => ("active", None),
        State::Paused => ("paused", None),
        State::Disabled => (
            "disabled",
            Some("the endpoint answered 410 twice, or asked for it".to_owned()),
        ),
        State::Off => ("not_enabled", None),
    };
    Listed {
        name: status.name.to_string(),
        uid: status.uid.to_string(),
        state,
        why,
        topics: status.topics,
        endpoint: status.endpoint.to_string(),
        url: status.url,
    }
}
