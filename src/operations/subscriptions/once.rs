//! Once: a request with an `Idempotency-Key` that comes again is answered as it was, and makes nothing
//! a second time.
//!
//! The answer is written down together with what it answers, for a day, sealed where there is a key,
//! since it may show a secret. Beyond so many answers the oldest is forgotten.

use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Answered, Refused, Registry, Settings};
use crate::store::{Answer, KeyError, Keys, Remembered};

const REMEMBERED_FOR: Duration = Duration::from_secs(86_400);
const MOST_REMEMBERED: usize = 10_000;

/// A key, as one caller uses it: by its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Once(String);

/// A request with its key.
pub struct Request {
    key: String,
    /// The hash of what was asked for.
    asked: String,
}

impl Once {
    /// `caller`: what tells callers apart, whose keys have nothing to do with each other.
    pub fn new(caller: &[u8], key: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(Sha256::digest(caller));
        hash.update(key);
        Self(hex::encode(hash.finalize()))
    }

    pub(super) fn of(self, document: &Value) -> Request {
        Request {
            key: self.0,
            asked: hash_of(document),
        }
    }
}

fn hash_of(document: &Value) -> String {
    hex::encode(Sha256::digest(document.to_string()))
}

impl Request {
    /// What is kept of its answer.
    pub(super) fn remembered(
        self,
        keys: &Keys,
        answered: &Answered,
    ) -> Result<(String, Remembered), KeyError> {
        let answer = json!({
            "name": answered.name,
            "etag": answered.etag,
            "body": answered.body,
        });
        let answer = match keys.can_seal() {
            true => Answer::Sealed(keys.seal(&self.key, answer.to_string().as_bytes())?),
            false => Answer::Open(answer),
        };
        let remembered = Remembered {
            request: self.asked,
            until: Timestamp::now() + REMEMBERED_FOR,
            answer,
        };
        Ok((self.key, remembered))
    }
}

impl Registry {
    /// The answer that this request has got before.
    pub(super) fn answered_before(
        &self,
        settings: &Settings,
        Once(key): &Once,
        document: &Value,
    ) -> Result<Option<Answered>, Refused> {
        let Some(remembered) = self.store.remembered(key)? else {
            return Ok(None);
        };
        if remembered.until <= Timestamp::now() {
            return Ok(None);
        }
        if remembered.request != hash_of(document) {
            return Err(Refused::KeyReused);
        }
        let answer = match remembered.answer {
            Answer::Open(answer) => answer,
            // Sealed with a key that was taken away since: it is as if it were forgotten.
            Answer::Sealed(sealed) => match settings.keys.open(key, &sealed) {
                Ok(plain) => serde_json::from_slice(&plain).unwrap_or_default(),
                Err(_) => return Ok(None),
            },
        };
        let text = |key: &str| answer.get(key).and_then(Value::as_str).map(str::to_owned);
        Ok(text("name").map(|name| Answered {
            name,
            etag: text("etag"),
            body: answer["body"].clone(),
        }))
    }

    /// Forgets answers that are old, and the oldest of those that are too many.
    pub(super) async fn forget(&self, now: Timestamp) -> Result<(), Refused> {
        let mut gone: Vec<String> = Vec::new();
        {
            let mut all = self
                .remembered
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            gone.extend(
                all.iter()
                    .filter(|(_, until)| **until <= now)
                    .map(|(key, _)| key.clone()),
            );
            let left = all.len() - gone.len();
            if left > MOST_REMEMBERED {
                let mut young: Vec<_> = all.iter().filter(|(_, until)| **until > now).collect();
                young.sort_by_key(|(_, until)| **until);
                let oldest = young.into_iter().take(left - MOST_REMEMBERED);
                gone.extend(oldest.map(|(key, _)| key.clone()));
            }
            for key in &gone {
                all.remove(key);
            }
        }
        match gone.is_empty() {
            true => Ok(()),
            false => Ok(self.store.forget(gone).await?),
        }
    }
}
