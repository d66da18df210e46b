//! Subscriptions as they are shown, and pages of them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::tenancy::tenant_of;
use crate::pipeline::{HandshakeStatus, State, SubscriptionStatus, Wanted};
use crate::store::Registered;

/// As many are on a page at the most.
pub const MOST_ON_A_PAGE: usize = 1_000;

/// A subscription as it is shown, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = ListedSubscription)]
pub struct Listed {
    pub name: String,
    pub uid: String,
    /// `config` or `api`: who may change it.
    pub owner: &'static str,
    /// `active`, `paused`, `disabled`, `unverified`, `not_enabled` or `unusable`.
    pub state: &'static str,
    /// Why it is disabled, for instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    pub topics: Vec<String>,
    /// Whose it is; the operator's without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The endpoint's name; of one that is written in a subscription, the subscription's.
    pub endpoint: String,
    /// Scheme, host and port; never the path.
    pub url: String,
    /// Of the endpoint, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshake: Option<HandshakeStatus>,
    /// Parked by this instance and not seen again.
    pub parked: u64,
}

/// One subscription, with what its caller wrote.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = Subscription)]
pub struct Shown {
    #[serde(flatten)]
    pub listed: Listed,
    /// What only subscriptions of the API have.
    #[serde(flatten)]
    pub registered: Option<ShownRegistered>,
}

#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = RegisteredSubscription)]
pub struct ShownRegistered {
    pub made_at: Timestamp,
    pub changed_at: Timestamp,
    /// Until when older secrets sign beside the newest one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub old_secrets_until: Vec<Timestamp>,
    /// As it was written, secrets masked.
    pub subscription: Value,
    /// A secret that was made for it: shown this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

impl Listed {
    pub fn of(status: SubscriptionStatus, parked: u64) -> Self {
        let (state, why) = match status.state {
            State::Active => ("active", None),
            State::Paused => ("paused", None),
            State::Disabled => (
                "disabled",
                Some("the endpoint answered 410 twice, or asked for it".to_owned()),
            ),
            State::Unverified => {
                let handshake = status.handshake.as_ref();
                let why = handshake.and_then(|handshake| handshake.why.clone());
                let why = why.unwrap_or_else(|| "the endpoint is being asked".to_owned());
                ("unverified", Some(why))
            }
            State::Off => ("not_enabled", None),
        };
        let of_config = status.uid.is_of_config();
        let endpoint = match *status.endpoint == *status.uid.as_str() {
            true => &status.name,
            false => &status.endpoint,
        };
        Self {
            endpoint: endpoint.to_string(),
            name: status.name.to_string(),
            uid: status.uid.to_string(),
            owner: if of_config { "config" } else { "api" },
            state,
            why,
            topics: status.topics,
            tenant: status.tenant.as_deref().map(str::to_owned),
            labels: (*status.labels).clone(),
            url: status.url,
            handshake: status.handshake,
            parked,
        }
    }

    /// One that is kept and cannot be used, because of `why`.
    pub fn unusable(record: &Registered, why: String) -> Self {
        let topics = record.document.get("topics").and_then(Value::as_array);
        let texts = topics.into_iter().flatten().filter_map(Value::as_str);
        let endpoint = record.document.get("endpoint").and_then(Value::as_str);
        Self {
            name: record.name.clone(),
            uid: record.uid.to_string(),
            owner: "api",
            state: "unusable",
            why: Some(why).filter(|why| !why.is_empty()),
            topics: texts.map(str::to_owned).collect(),
            tenant: tenant_of(&record.document).map(str::to_owned),
            labels: labels(&record.document),
            endpoint: endpoint.unwrap_or(&record.name).to_owned(),
            url: String::new(),
            handshake: None,
            parked: 0,
        }
    }

    /// Whether it is one of those.
    pub fn is(&self, wanted: &Wanted) -> bool {
        let has = |(name, value): &(String, String)| self.labels.get(name) == Some(value);
        let is_its = |tenant: &std::sync::Arc<str>| self.tenant.as_deref() == Some(&**tenant);
        wanted.tenant.as_ref().is_none_or(is_its) && wanted.labels.iter().all(has)
    }

    /// Its place among all.
    pub fn place(&self) -> (&str, &str) {
        (&self.name, &self.uid)
    }
}

fn labels(document: &Value) -> BTreeMap<String, String> {
    let labels = document.get("labels").and_then(Value::as_object);
    let texts = labels.into_iter().flatten();
    texts
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// Some of them, in the order of their places.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    pub listed: Vec<Listed>,
    /// Behind this there may be more.
    pub next: Option<Cursor>,
}

/// Where a page begins: behind this name and uid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    name: String,
    uid: String,
}

impl Cursor {
    pub fn behind(last: &Listed) -> Self {
        Self {
            name: last.name.clone(),
            uid: last.uid.clone(),
        }
    }

    pub fn at(name: String, uid: String) -> Self {
        Self { name, uid }
    }

    pub fn place(&self) -> (&str, &str) {
        (&self.name, &self.uid)
    }

    /// As it is handed out.
    pub fn written(&self) -> String {
        BASE64.encode(format!("1 {} {}", self.name, self.uid))
    }

    /// `None`: it was not handed out by us.
    pub fn read(text: &str) -> Option<Self> {
        let bytes = BASE64.decode(text).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (name, uid) = text.strip_prefix("1 ")?.split_once(' ')?;
        Some(Self {
            name: name.to_owned(),
            uid: uid.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_and_others_are_not() {
        let cursor = Cursor {
            name: "crm".into(),
            uid: "api:1".into(),
        };
        assert_eq!(Cursor::read(&cursor.written()), Some(cursor));
        for bad in [
            "",
            "x",
            "!",
            &BASE64.encode("2 a b"),
            &BASE64.encode([0xff]),
        ] {
            assert_eq!(Cursor::read(bad), None, "{bad}");
        }
    }
}
