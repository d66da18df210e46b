//! Tenancy: what somebody who acts for one tenant may see and write, and how much a tenant may have.
//!
//! Who acts for a tenant knows of its own subscriptions and no others: another's are answered as those
//! that do not exist. What he makes is his tenant's, with an endpoint of its own, since those of the
//! config have the operator's credentials. A subscription stays with its tenant, whoever changes it:
//! what is parked for it was made of that tenant's events.

use std::sync::Arc;

use serde_json::Value;

use super::{Found, Mistake, Refused, Registry};
use crate::store::Registered;
use crate::subscription::{Spec, Uid};

/// Whose the subscription of a document is, as far as it says.
pub(super) fn tenant_of(document: &Value) -> Option<&str> {
    document.get("tenant").and_then(Value::as_str)
}

/// Makes `document` one of `tenant`, if it says nothing else.
pub(super) fn own(document: &mut Value, tenant: Option<&Arc<str>>) -> Result<(), Refused> {
    let (Some(tenant), Value::Object(written)) = (tenant, &mut *document) else {
        return Ok(());
    };
    let mut mistakes = Vec::new();
    let said = written
        .entry("tenant")
        .or_insert_with(|| Value::from(&**tenant));
    if said.as_str() != Some(&**tenant) {
        mistakes.push(Mistake {
            pointer: "/tenant".to_owned(),
            message: format!("you act for tenant `{tenant}`"),
            help: Some("leave `tenant` out".to_owned()),
        });
    }
    mistakes.extend(of_operator(document));
    match mistakes.is_empty() {
        true => Ok(()),
        false => Err(Refused::Invalid(mistakes)),
    }
}

/// What is wrong with a line of an export that somebody who acts for `tenant` takes in: it is another
/// one's, or of the operator, even where it does not say so.
pub(super) fn of_another(document: &Value, tenant: &str) -> Option<Mistake> {
    (tenant_of(document) != Some(tenant)).then(|| Mistake {
        pointer: "/tenant".to_owned(),
        message: format!("you act for tenant `{tenant}`"),
        help: None,
    })
}

/// What is wrong with its endpoint for whoever acts for a tenant.
pub(super) fn of_operator(document: &Value) -> Option<Mistake> {
    let is_named = document.get("endpoint").is_some_and(Value::is_string);
    is_named.then(|| Mistake {
        pointer: "/endpoint".to_owned(),
        message: "endpoints of the config are the operator's".to_owned(),
        help: Some("write the endpoint here, with its `url`".to_owned()),
    })
}

/// Refuses a change that would give it to another tenant.
pub(super) fn stays(new: &Value, old: &Value) -> Result<(), Refused> {
    match new.get("tenant") == old.get("tenant") {
        true => Ok(()),
        false => Err(Refused::Invalid(vec![Mistake {
            pointer: "/tenant".to_owned(),
            message: "a subscription stays with its tenant".to_owned(),
            help: Some("make another one".to_owned()),
        }])),
    }
}

impl Registry {
    /// What was found, if who asks may know of it.
    pub(super) fn seen_by(&self, tenant: Option<&Arc<str>>, found: &Found) -> Result<(), Refused> {
        let Some(tenant) = tenant else {
            return Ok(());
        };
        let is_its = match found {
            Found::Registered(record) => is_of(record, tenant),
            Found::OfConfig(uid) => {
                let status = self.pipeline.subscription(uid);
                status.is_some_and(|status| status.tenant.as_ref() == Some(tenant))
            }
        };
        is_its.then_some(()).ok_or(Refused::Unknown)
    }

    /// Whether its tenant may have one more; one that is its own already may stay.
    pub(super) fn has_room(&self, uid: &Uid, spec: &Spec) -> Result<(), Refused> {
        let Some(tenant) = &spec.tenant else {
            return Ok(());
        };
        let Some(most) = self.pipeline.quota_of(tenant).subscriptions else {
            return Ok(());
        };
        let before = self.store.registered_with(uid)?;
        let stays = before.is_some_and(|record| is_of(&record, tenant));
        if stays || !self.pipeline.tenant_has(tenant, most) {
            return Ok(());
        }
        Err(Refused::Quota(format!(
            "tenant `{tenant}` has {most} subscriptions, which is all that it may have (`tenants` in the config): remove one first"
        )))
    }
}

pub(super) fn is_of(record: &Registered, tenant: &str) -> bool {
    tenant_of(&record.document) == Some(tenant)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pointers(refused: Refused) -> Vec<String> {
        match refused {
            Refused::Invalid(mistakes) => mistakes.into_iter().map(|one| one.pointer).collect(),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn who_acts_for_a_tenant_writes_for_it_alone() {
        let acme: Arc<str> = "acme".into();
        let mut document = json!({ "name": "a", "endpoint": { "url": "https://h/" } });
        own(&mut document, Some(&acme)).unwrap();
        assert_eq!(tenant_of(&document), Some("acme"));
        own(&mut document, Some(&acme)).unwrap();
        for wrong in [json!("other"), json!(null), json!(1), json!(["acme"])] {
            let mut document = json!({ "tenant": wrong, "endpoint": "shared" });
            let refused = own(&mut document, Some(&acme)).unwrap_err();
            assert_eq!(pointers(refused), ["/tenant", "/endpoint"]);
        }
        let mut document = json!({ "name": "a", "endpoint": "shared" });
        own(&mut document, None).unwrap();
        assert_eq!(tenant_of(&document), None);
    }

    #[test]
    fn a_subscription_stays_with_its_tenant() {
        let (none, acme, other) = (
            json!({}),
            json!({ "tenant": "a" }),
            json!({ "tenant": "b" }),
        );
        assert!(stays(&acme, &acme).is_ok() && stays(&none, &none).is_ok());
        for (new, old) in [(&acme, &none), (&none, &acme), (&other, &acme)] {
            assert_eq!(pointers(stays(new, old).unwrap_err()), ["/tenant"]);
        }
    }
}
