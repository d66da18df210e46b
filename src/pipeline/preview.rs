//! Previews: the requests that an event would become, rendered and signed, and sent to nobody.
//!
//! Routing, rendering and signing are those of the path; there is no broker, no lane and no network.
//! Tokens that have to be asked for (`oauth2`) are missing from what is made.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::excerpt;
use super::target::Target;
use crate::attempt::Outcome;
use crate::deliver::{self, AddressPolicy};
use crate::delivery::Delivery;
use crate::event::Event;
use crate::meters::Meters;
use crate::outgoing::Outgoing;
use crate::route::Routes;
use crate::subscription::{Contract, Endpoint, LazyJson, Subscription};

/// All subscriptions, as a bridge would serve them.
pub struct Preview {
    routes: Routes<Target>,
    policy: AddressPolicy,
    /// By the source.
    contracts: BTreeMap<Arc<str>, Contract>,
}

/// What one subscription that matches would send.
pub struct Previewed {
    pub subscription: Arc<str>,
    pub endpoint: Arc<Endpoint>,
    /// The finished request, or why it is never sent.
    pub made: Result<Outgoing, Outcome>,
}

impl Preview {
    pub fn new(
        subscriptions: impl IntoIterator<Item = Subscription>,
        policy: AddressPolicy,
        contracts: BTreeMap<Arc<str>, Contract>,
    ) -> anyhow::Result<Self> {
        let meters = Meters::new();
        let mut targets = Vec::new();
        for subscription in subscriptions {
            let name = subscription.spec.name.clone();
            let target = Target::new(subscription, None, false, Arc::default(), &meters)
                .map_err(|why| anyhow::anyhow!("subscription `{name}`: {why}"))?;
            targets.push(Arc::new(target));
        }
        let routes = Routes::build(targets);
        Ok(Self {
            routes,
            policy,
            contracts,
        })
    }

    /// What would be sent at `at` if `event` were taken then; by subscription.
    pub fn of(&self, event: &Arc<Event>, at: Timestamp) -> Vec<Previewed> {
        let mut matching = Vec::new();
        let body = LazyJson::new(&event.body);
        self.routes.matching(event, &body, &mut matching);
        let mut all: Vec<_> = matching
            .iter()
            .map(|target| Previewed {
                subscription: target.subscription.spec.name.clone(),
                endpoint: target.subscription.endpoint.clone(),
                made: self
                    .valid(target, event, &body)
                    .and_then(|()| self.made(target, event, at)),
            })
            .collect();
        all.sort_by(|a, b| a.subscription.cmp(&b.subscription));
        all
    }

    fn valid(&self, target: &Target, event: &Event, body: &LazyJson<'_>) -> Result<(), Outcome> {
        let of_source = self.contracts.get(&event.source);
        let mut contracts = of_source.into_iter().chain(target.contract());
        let checked = contracts.try_for_each(|contract| contract.check(event.body.len(), body));
        checked.map_err(Outcome::Invalid)
    }

    fn made(
        &self,
        target: &Target,
        event: &Arc<Event>,
        at: Timestamp,
    ) -> Result<Outgoing, Outcome> {
        let Subscription {
            uid,
            spec,
            endpoint,
            ..
        } = &target.subscription;
        let delivery = Delivery::first(event.clone(), spec.name.clone(), uid.clone(), at);
        let delivery = delivery.of_tenant(spec.tenant.clone());
        let rendered = target
            .renderer
            .render(&delivery, None, endpoint, spec.timeout)
            .map_err(|why| Outcome::Unrenderable(why.to_string()))?;
        let auth = endpoint.auth.as_deref();
        let facts = event.facts();
        let made = deliver::ready(rendered, &target.signer, facts, auth, &self.policy, at);
        made.map(|(request, _)| request)
    }
}

impl Previewed {
    /// `text` as it may be shown: without what is a credential of the endpoint.
    pub fn masked(&self, text: &str) -> String {
        let mut text = text.to_owned();
        excerpt::masked(&mut text, &self.endpoint);
        text
    }

    /// A URL of the endpoint as it may be shown: of what the config says scheme, host and port, and
    /// all that is made of the event.
    pub fn masked_url(&self, url: &url::Url) -> String {
        let own = &self.endpoint.url;
        let mut shown = url.origin().ascii_serialization();
        let path = own.path().trim_end_matches('/');
        let rest = url.path().strip_prefix(path);
        if !path.is_empty() {
            shown.push_str("/***");
        }
        // Of another URL nothing is shown.
        let rest = rest.filter(|_| own.origin() == url.origin());
        shown.push_str(&self.masked(rest.unwrap_or_default()));
        let Some(query) = url.query().filter(|_| rest.is_some()) else {
            return shown;
        };
        shown.push('?');
        let configured = own.query().unwrap_or_default();
        let made = query.strip_prefix(configured);
        if !configured.is_empty() {
            shown.push_str("***");
        }
        shown.push_str(&self.masked(made.unwrap_or_default()));
        shown
    }
}
