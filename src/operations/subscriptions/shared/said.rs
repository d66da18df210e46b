//! Said: what instances tell each other, as it is written to the log.
//!
//! A record is JSON with a version. One that a newer release has written is kept where it is and named
//! in the log; it changes nothing here.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::broker::state::Record;
use crate::store::{Disabled, Registered, Remembered};
use crate::subscription::Uid;

/// The version written by this release.
const VERSION: u8 = 1;

/// One thing that was said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Said {
    v: u8,
    /// Of this one record.
    pub id: String,
    /// The process that said it.
    pub by: String,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A subscription is made or changed. It holds if its revision is later than the one in force.
    Put {
        record: Box<Registered>,
        /// What the request for it was answered, by the hash of its key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answered: Option<Box<(String, Remembered)>>,
        /// It is in force already, and is only said once more.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        again: bool,
    },
    /// It is removed. Holds as a change does.
    Removed { uid: Uid, revision: u64 },
    /// The last one holds.
    Endpoint {
        name: Arc<str>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disabled: Option<Disabled>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        first_gone_at: Option<Timestamp>,
    },
    /// The last one holds.
    Subscription { uid: Uid, paused: bool },
    /// An instance runs.
    Instance(Peer),
    /// The log is known by this name. It has more than one only where several were first.
    Log { name: String },
    /// Everything that holds is said once more between two of these.
    Again { begins: bool },
}

/// An instance as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub name: Arc<str>,
    pub release: String,
    /// Of the parts of its config that are to be the same everywhere.
    pub config: String,
    pub at: Timestamp,
}

/// What a key is about.
#[derive(Debug, PartialEq, Eq)]
pub enum About<'a> {
    Registered(Uid),
    Endpoint(&'a str),
    Subscription(Uid),
    Instance(&'a str),
    Other,
}

/// Why a record cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// Whoever runs the release that has written it knows what it says.
    #[error("it was written by a newer release (version {0}; this one reads up to {VERSION})")]
    Newer(u8),
    #[error("{0}")]
    Garbled(String),
}

impl What {
    pub fn key(&self) -> String {
        match self {
            Self::Put { record, .. } => key_of(&record.uid),
            Self::Removed { uid, .. } => key_of(uid),
            Self::Endpoint { name, .. } => key_of_endpoint(name),
            Self::Subscription { uid, .. } => key_of_standing(uid),
            Self::Instance(peer) => key_of_instance(&peer.name),
            Self::Log { name } => format!("log:{name}"),
            Self::Again { .. } => "again".to_owned(),
        }
    }
}

pub fn key_of(uid: &Uid) -> String {
    format!("registered:{uid}")
}

pub fn key_of_endpoint(name: &str) -> String {
    format!("endpoint:{name}")
}

pub fn key_of_standing(uid: &Uid) -> String {
    format!("subscription:{uid}")
}

pub fn key_of_instance(name: &str) -> String {
    format!("instance:{name}")
}

pub fn about(key: &str) -> About<'_> {
    match key.split_once(':') {
        Some(("registered", uid)) => About::Registered(Uid::from_stored(uid)),
        Some(("endpoint", name)) => About::Endpoint(name),
        Some(("subscription", uid)) => About::Subscription(Uid::from_stored(uid)),
        Some(("instance", name)) => About::Instance(name),
        _ => About::Other,
    }
}

/// The name that the log has by this key.
pub fn log_name(key: &str) -> Option<&str> {
    key.strip_prefix("log:")
}

/// A name that nobody else has.
pub fn unique() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

impl Said {
    pub fn new(by: &str, what: What) -> Self {
        Self::with_id(unique(), by, what)
    }

    pub fn with_id(id: String, by: &str, what: What) -> Self {
        let by = by.to_owned();
        Self {
            v: VERSION,
            id,
            by,
            what,
        }
    }

    pub fn record(&self) -> Record {
        let body = serde_json::to_vec(self).expect("plain data with text keys");
        Record {
            key: self.what.key(),
            body: Some(Bytes::from(body)),
        }
    }

    /// What a record says, or why it cannot be read.
    pub fn read(body: &[u8]) -> Result<Self, Unread> {
        #[derive(Deserialize)]
        struct Versioned {
            v: u8,
        }
        let Versioned { v } = serde_json::from_slice(body)
            .map_err(|why| Unread::Garbled(format!("it is not a record of hookbridge ({why})")))?;
        if v > VERSION {
            return Err(Unread::Newer(v));
        }
        serde_json::from_slice(body)
            .map_err(|why| Unread::Garbled(format!("it cannot be read ({why})")))
    }
}

/// There is nothing under this key any more.
pub fn nothing(key: String) -> Record {
    Record { key, body: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_read_as_it_was_written() {
        let what = What::Endpoint {
            name: "crm".into(),
            disabled: None,
            first_gone_at: None,
        };
        let said = Said::with_id("1".into(), "a", what);
        let record = said.record();
        assert_eq!(record.key, "endpoint:crm");
        let body = record.body.unwrap();
        assert_eq!(
            std::str::from_utf8(&body).unwrap(),
            r#"{"v":1,"id":"1","by":"a","what":{"endpoint":{"name":"crm"}}}"#
        );
        assert_eq!(Said::read(&body).unwrap(), said);
        assert_eq!(about("endpoint:a:b"), About::Endpoint("a:b"));
        let uid = Uid::of_config("x");
        assert_eq!(about(&key_of_standing(&uid)), About::Subscription(uid));
    }

    #[test]
    fn a_newer_release_is_named_and_rubbish_is_not_believed() {
        let newer = Said::read(br#"{"v":2,"anything":1}"#).unwrap_err();
        assert_eq!(newer, Unread::Newer(2));
        let said = newer.to_string();
        assert!(said.contains("newer release (version 2"), "{said}");
        for rubbish in [&b""[..], b"{}", b"x", br#"{"v":1}"#] {
            assert!(matches!(Said::read(rubbish), Err(Unread::Garbled(_))));
        }
    }
}
