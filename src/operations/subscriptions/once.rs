//! Once: a request with an `Idempotency-Key` that comes again is answered as it was, and makes nothing
//! a second time.
//!
//! The answer is written down together with what it answers, for a day, without what the request says
//! itself: that comes again with it. It is sealed where there is a key, since it may show a secret, and
//! so is the hash of the request, by which a guess of what was asked for could be tried. Beyond so many
//! answers the oldest is forgotten.

use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{Answered, Reader, Refused, Registry, Settings, document};
use crate::store::{Answer, KeyError, Keys, Remembered};

const REMEMBERED_FOR: Duration = Duration::from_secs(86_400);
const MOST_REMEMBERED: usize = 10_000;
/// Answers that are sealed anew at once.
const AT_ONCE: usize = 100;

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

/// An answer as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    name: String,
    etag: Option<String>,
    body: Value,
    /// What of the body is as the request has it, beside `subscription`, which shows it masked. `None`:
    /// the body is all of it, as the release before kept it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    as_asked: Option<Vec<String>>,
    /// The hash of what was asked for, where it is sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request: Option<String>,
}

impl Kept {
    /// Of the answer to a request for `document`.
    fn of(answered: &Answered, document: &Value) -> Self {
        let mut body = answered.body.clone();
        let mut as_asked = Vec::new();
        if let Value::Object(fields) = &mut body {
            fields.remove("subscription");
            let same = fields.iter().filter(|(key, value)| {
                let asked = document.get(key.as_str());
                asked == Some(*value)
            });
            as_asked = same.map(|(key, _)| key.clone()).collect();
            as_asked.iter().for_each(|key| drop(fields.remove(key)));
        }
        Self {
            name: answered.name.clone(),
            etag: answered.etag.clone(),
            body,
            as_asked: Some(as_asked),
            request: None,
        }
    }

    /// The answer, to the same request.
    fn answered(self, reader: &dyn Reader, document: &Value) -> Answered {
        let mut body = self.body;
        if let (Some(as_asked), Value::Object(fields)) = (self.as_asked, &mut body) {
            for key in as_asked {
                let asked = document.get(&key).cloned().unwrap_or_default();
                fields.insert(key, asked);
            }
            let mut written = document.clone();
            if let Some(made) = fields.get("secret") {
                document::set_secrets(&mut written, vec![made.clone()]);
            }
            fields.insert("subscription".to_owned(), reader.masked(&written));
        }
        Answered {
            name: self.name,
            etag: self.etag,
            body,
        }
    }
}

impl Request {
    /// What is kept of its answer. `document` is what it asked for.
    pub(super) fn remembered(
        self,
        keys: &Keys,
        document: &Value,
        answered: &Answered,
    ) -> Result<(String, Remembered), KeyError> {
        let mut kept = Kept::of(answered, document);
        let plain = |kept: &Kept| serde_json::to_value(kept).expect("plain data with text keys");
        let (request, answer) = match keys.can_seal() {
            true => {
                kept.request = Some(self.asked);
                let text = plain(&kept).to_string();
                let sealed = keys.seal(&self.key, text.as_bytes())?;
                (String::new(), Answer::Sealed(sealed))
            }
            false => (self.asked, Answer::Open(plain(&kept))),
        };
        let remembered = Remembered {
            request,
            until: Timestamp::now() + REMEMBERED_FOR,
            answer,
        };
        Ok((self.key, remembered))
    }
}

/// The answer to a request with this key that asks for `document`, if it can be read still.
fn answer_of(
    settings: &Settings,
    key: &str,
    remembered: Remembered,
    document: &Value,
) -> Result<Option<Answered>, Refused> {
    let kept = match remembered.answer {
        Answer::Open(answer) => serde_json::from_value(answer),
        // Sealed with a key that was taken away since: it is as if it were forgotten.
        Answer::Sealed(sealed) => match settings.keys.open(key, &sealed) {
            Ok(plain) => serde_json::from_slice(&plain),
            Err(_) => return Ok(None),
        },
    };
    let Ok(kept): Result<Kept, _> = kept else {
        return Ok(None);
    };
    if *kept.request.as_ref().unwrap_or(&remembered.request) != hash_of(document) {
        return Err(Refused::KeyReused);
    }
    Ok(Some(kept.answered(&*settings.reader, document)))
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
        answer_of(settings, key, remembered, document)
    }

    /// Seals anew what is kept of answers, where the key that seals is another one by now; how many.
    pub(super) async fn reseal_answers(&self, keys: &Keys) -> Result<usize, Refused> {
        let all = self.store.all_remembered()?;
        let mut count = 0;
        for some in all.chunks(AT_ONCE) {
            let mut resealed = Vec::new();
            for (key, _) in some {
                let Some(remembered) = self.store.remembered(key)? else {
                    continue;
                };
                let Answer::Sealed(sealed) = &remembered.answer else {
                    continue;
                };
                if keys.is_current(sealed) {
                    continue;
                }
                // Without its key it is as if it were forgotten.
                if let Ok(plain) = keys.open(key, sealed) {
                    let answer = Answer::Sealed(keys.seal(key, &plain)?);
                    let remembered = Remembered {
                        answer,
                        ..remembered
                    };
                    resealed.push((key.clone(), remembered));
                }
            }
            count += resealed.len();
            self.store.remember(resealed).await?;
        }
        Ok(count)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::{Mistake, Read};
    use super::*;
    use crate::store::Key;
    use crate::subscription::{Scheme, Uid};

    struct Masking;

    impl Reader for Masking {
        fn read(&self, _: &[(&Uid, &Value)]) -> Vec<Result<Read, Vec<Mistake>>> {
            Vec::new()
        }

        fn unsigned(&self, _: &Value) -> Option<Scheme> {
            None
        }

        fn masked(&self, document: &Value) -> Value {
            let mut shown = document.clone();
            document::set_secrets(&mut shown, vec!["***".into()]);
            shown
        }

        fn has(&self, _: &str) -> bool {
            false
        }
    }

    fn settings(keys: &[u8]) -> Settings {
        let key = |byte: &u8| Key::read(&hex::encode([*byte; 32])).unwrap();
        Settings {
            reader: Arc::new(Masking),
            keys: Keys::new(keys.iter().map(key).collect()),
        }
    }

    /// A request, and its answer as the registry makes it.
    fn asked(topics: usize) -> (Value, Answered) {
        let topics: Vec<_> = (0..topics)
            .map(|number| format!("orders.{number}"))
            .collect();
        let document = json!({
            "name": "crm", "topics": topics, "endpoint": { "url": "https://h/" }, "labels": { "a": "b" },
        });
        let mut written = document.clone();
        document::set_secrets(&mut written, vec!["whsec_made".into()]);
        let body = json!({
            "name": "crm", "uid": "api:1", "topics": topics, "labels": { "a": "b" }, "endpoint": "crm",
            "secret": "whsec_made", "subscription": Masking.masked(&written),
        });
        let answered = Answered {
            name: "crm".to_owned(),
            etag: Some("\"1-1\"".to_owned()),
            body,
        };
        (document, answered)
    }

    fn remembered(
        settings: &Settings,
        document: &Value,
        answered: &Answered,
    ) -> (String, Remembered) {
        let request = Once::new(b"caller", "k").of(document);
        let remembered = request.remembered(&settings.keys, document, answered);
        remembered.unwrap()
    }

    #[test]
    fn an_answer_is_the_same_however_large_the_document_is() {
        for keys in [&[1][..], &[]] {
            let settings = settings(keys);
            let (document, answered) = asked(6_000);
            assert!(document.to_string().len() > 80_000);
            let (key, kept) = remembered(&settings, &document, &answered);
            assert!(serde_json::to_vec(&kept).unwrap().len() < 1_000);
            let again = answer_of(&settings, &key, kept.clone(), &document);
            assert_eq!(again, Ok(Some(answered)));
            let (other, _) = asked(5_999);
            let refused = answer_of(&settings, &key, kept, &other);
            assert_eq!(refused, Err(Refused::KeyReused));
        }
    }

    #[test]
    fn what_is_kept_under_a_key_tells_nothing_of_the_request() {
        let (document, answered) = asked(1);
        let (_, kept) = remembered(&settings(&[1]), &document, &answered);
        let text = serde_json::to_string(&kept).unwrap();
        assert!(!text.contains(&hash_of(&document)), "{text}");
        let (_, kept) = remembered(&settings(&[]), &document, &answered);
        assert_eq!(kept.request, hash_of(&document));
    }

    #[test]
    fn an_answer_that_an_earlier_release_has_kept_is_given() {
        let (document, answered) = asked(1);
        let (key, settings) = ("key", settings(&[2, 1]));
        let whole = json!({ "name": "crm", "etag": answered.etag, "body": answered.body });
        let sealed = settings.keys.seal(key, whole.to_string().as_bytes());
        for answer in [Answer::Sealed(sealed.unwrap()), Answer::Open(whole)] {
            let kept = Remembered {
                request: hash_of(&document),
                until: Timestamp::now(),
                answer,
            };
            let again = answer_of(&settings, key, kept, &document);
            assert_eq!(again, Ok(Some(answered.clone())));
        }
    }
}
