//! Tenants: whose subscriptions and events are, and how much each may use.
//!
//! A tenant is a name that events carry and subscriptions have. A subscription of a tenant is for the
//! events of this tenant and no others; one without a tenant is the operator's, and for all events.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Rate;

/// Longest name of a tenant, in bytes.
pub const LONGEST_TENANT: usize = 64;
/// What a tenant's name is, for people.
pub const TENANT_HELP: &str = "a tenant's name is 1 to 64 of `A-Z`, `a-z`, `0-9`, `_`, `.` and `-`";

/// Whether `text` can be a tenant's name.
pub fn is_tenant(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    (1..=LONGEST_TENANT).contains(&text.len()) && text.bytes().all(allowed)
}

/// How much one tenant may use, over all of its subscriptions together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quota {
    /// How many it may have.
    pub subscriptions: Option<u32>,
    /// Deliveries started in so much time.
    pub rate: Option<Rate>,
    /// Deliveries under way at once.
    pub in_flight: Option<u32>,
}

/// The quotas of all tenants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Quotas {
    /// Of those that say nothing else.
    pub defaults: Quota,
    /// Of tenants by name, complete. These are counted apart in metrics.
    pub named: BTreeMap<Arc<str>, Quota>,
}

impl Quotas {
    pub fn of(&self, tenant: &str) -> Quota {
        self.named.get(tenant).copied().unwrap_or(self.defaults)
    }

    pub fn is_named(&self, tenant: &str) -> bool {
        self.named.contains_key(tenant)
    }
}

/// Free labels of a subscription. Most have none, and carry no more than a pointer for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(
    clippy::box_collection,
    reason = "a pointer instead of three words in each of a million subscriptions"
)]
pub struct Labels(Option<Box<BTreeMap<String, String>>>);

impl Labels {
    /// So many at the most.
    pub const MOST: usize = 16;
    pub const LONGEST_NAME: usize = 63;
    pub const LONGEST_VALUE: usize = 256;

    /// Whether it has all of these.
    pub fn have(&self, wanted: &[(String, String)]) -> bool {
        let has = |(name, value): &(String, String)| self.get(name) == Some(value);
        wanted.iter().all(has)
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        Self((!labels.is_empty()).then(|| Box::new(labels)))
    }
}

impl Deref for Labels {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.0.as_deref().unwrap_or(&NONE)
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_have_no_strange_bytes() {
        for good in ["a", "acct_1A2b", "0190-f3.x", &"x".repeat(64)] {
            assert!(is_tenant(good), "{good}");
        }
        for bad in [
            "",
            "a b",
            "(other)",
            "a/b",
            "\u{e9}",
            "a\n",
            &"x".repeat(65),
        ] {
            assert!(!is_tenant(bad), "{bad}");
        }
    }

    #[test]
    fn no_labels_take_no_room_and_are_an_empty_map() {
        assert_eq!(size_of::<Labels>(), size_of::<usize>());
        let none: Labels = serde_json::from_str("{}").unwrap();
        assert_eq!(none, Labels::default());
        assert_eq!(serde_json::to_string(&none).unwrap(), "{}");
        let some: Labels = serde_json::from_str(r#"{"team":"a"}"#).unwrap();
        assert!(some.have(&[("team".into(), "a".into())]) && some.have(&[]));
        assert!(!some.have(&[("team".into(), "b".into())]));
    }

    #[test]
    fn a_named_tenant_has_its_own_quota() {
        let own = Quota {
            in_flight: Some(3),
            ..Quota::default()
        };
        let quotas = Quotas {
            defaults: Quota {
                subscriptions: Some(1),
                ..Quota::default()
            },
            named: [("acme".into(), own)].into(),
        };
        assert_eq!(quotas.of("acme"), own);
        assert_eq!(quotas.of("other").subscriptions, Some(1));
        assert!(quotas.is_named("acme") && !quotas.is_named("other"));
    }
}
