//! Records: a subscription as it is kept, sealed, and as it is shown, masked, from one document.

use serde_json::Value;

use super::{Answered, Listed, Precondition, Refused, Settings, Shown, ShownRegistered, document};
use crate::deliver::signature::new_secret;
use crate::store::{KeyError, Keys, Registered, Store};

pub(super) fn answer(
    settings: &Settings,
    record: &Registered,
    document: &Value,
    listed: Listed,
    secret: Option<String>,
) -> Answered {
    let registered = ShownRegistered {
        made_at: record.made_at,
        changed_at: record.changed_at,
        old_secrets_until: record.old_until.clone(),
        subscription: settings.reader.masked(document),
        secret,
    };
    Answered {
        name: record.name.clone(),
        etag: Some(etag(record)),
        body: written(&Shown {
            listed,
            registered: Some(registered),
        }),
    }
}

pub(super) fn written(shown: &Shown) -> Value {
    serde_json::to_value(shown).expect("texts, numbers and maps with text keys")
}

/// The tag of this revision of this subscription; one made later under its name has others.
pub(super) fn etag(record: &Registered) -> String {
    let uid = record.uid.as_str();
    let own = &uid[uid.len().saturating_sub(12)..];
    format!("\"{}-{own}\"", record.revision)
}

/// The document with a new secret where it needs one and says nothing of it, and that secret.
pub(super) fn with_secret(settings: &Settings, mut document: Value) -> (Value, Option<String>) {
    let scheme = settings.reader.unsigned(&document);
    let secret = scheme.and_then(|scheme| new_secret(&scheme));
    let secret = secret.map(|secret| secret.expose().to_owned());
    if let Some(secret) = &secret {
        document::set_secrets(&mut document, vec![secret.as_str().into()]);
    }
    (document, secret)
}

/// A change that says nothing of secrets keeps those that there are, unless it is signed otherwise.
pub(super) fn keep_secrets(settings: &Settings, new: &mut Value, old: &Value) {
    let signature = |document: &Value| document::own_endpoint(document)?.get("signature").cloned();
    if settings.reader.unsigned(new).is_some() && signature(new) == signature(old) {
        document::set_secrets(new, document::secrets(old));
    }
}

/// The document as it was written, of what is kept.
pub(super) fn opened(keys: &Keys, record: &Registered) -> Result<Value, KeyError> {
    let mut document = record.document.clone();
    if let Some(sealed) = &record.endpoint {
        let endpoint = keys.open(record.uid.as_str(), sealed)?;
        document["endpoint"] = serde_json::from_slice(&endpoint).map_err(|_| KeyError::Damaged)?;
    }
    Ok(document)
}

/// `record` of this document. An endpoint of its own is sealed as a whole: not only what is called a
/// secret is one, but often the URL, a header, a text in a template.
pub(super) fn sealed(
    settings: &Settings,
    mut record: Registered,
    document: &Value,
) -> Result<Registered, Refused> {
    record.document = document.clone();
    record.endpoint = None;
    if document::own_endpoint(document).is_some()
        && let Some(written) = record.document.as_object_mut()
        && let Some(endpoint) = written.remove("endpoint")
    {
        let plain = endpoint.to_string();
        let sealed = settings.keys.seal(record.uid.as_str(), plain.as_bytes());
        record.endpoint = Some(sealed?);
    }
    Store::fits(&record, None)?;
    Ok(record)
}

impl Precondition {
    pub(super) fn check(&self, record: &Registered) -> Result<(), Refused> {
        match self {
            Self::None => Ok(()),
            Self::OneOf(tags) if tags.iter().any(|tag| *tag == etag(record)) => Ok(()),
            Self::OneOf(_) => Err(Refused::Changed),
        }
    }
}
