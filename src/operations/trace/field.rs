//! Finding events by a field: `data.order.id=42`, `type=order.paid`.
//!
//! A field is a filter with one condition, in the words of a subscription's `filter`. Bodies are
//! known of dead letters, and of attempts where the journal keeps them.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::event::{Event, EventId, Headers, Origin, Place};
use crate::journal::{Cursor, Entry, Journal, Query, Unreadable, What};
use crate::subscription::{Filter, LazyJson};

/// Attempts that are looked at.
const MOST_LOOKED_AT: usize = 200_000;
const PAGE: usize = 1_000;
const MOST: usize = 1_000;

/// One condition on an event.
#[derive(Debug, Clone)]
pub struct Field {
    filter: Arc<Filter>,
}

/// What was given is no field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{given}` is no field: {why}; write `data.order.id=42`, `type=order.paid` or `headers.tenant=a`"
)]
pub struct BadField {
    given: String,
    why: String,
}

impl std::str::FromStr for Field {
    type Err = BadField;

    fn from_str(given: &str) -> Result<Self, BadField> {
        let bad = |why: String| BadField {
            given: given.to_owned(),
            why,
        };
        let (path, wanted) = given
            .split_once('=')
            .ok_or_else(|| bad("it has no `=`".to_owned()))?;
        // `42` may be a number there or text.
        let mut values = vec![json!(wanted)];
        let scalar = |value: &Value| value.is_number() || value.is_boolean() || value.is_string();
        values.extend(serde_json::from_str(wanted).ok().filter(scalar));
        let filter = Filter::compile(&json!({ path: { "$in": values } }));
        let filter = filter.map_err(|error| bad(error.to_string()))?;
        Ok(Self {
            filter: Arc::new(filter),
        })
    }
}

impl Field {
    pub fn is_of(&self, event: &Event) -> bool {
        self.filter.matches(event, &LazyJson::new(&event.body))
    }

    fn is_of_entry(&self, entry: &Entry) -> bool {
        event_of(entry).is_some_and(|event| self.is_of(&event))
    }
}

/// Times and ids of events in the journal that have the field, and whether all were looked at.
pub fn search(
    journal: &Journal,
    field: &Field,
) -> Result<(Vec<(Timestamp, String)>, bool), Unreadable> {
    let query = Query {
        attempts_only: true,
        ..Query::default()
    };
    let (mut found, mut looked_at) = (Vec::new(), 0);
    let mut before: Option<Cursor> = None;
    loop {
        let page = journal.page(&query, before, PAGE)?;
        looked_at += page.entries.len();
        let having = page
            .entries
            .into_iter()
            .filter(|entry| field.is_of_entry(entry));
        found.extend(having.map(|entry| (entry.at, entry.event)));
        before = page.next;
        if before.is_none() {
            return Ok((found, true));
        }
        if looked_at >= MOST_LOOKED_AT || found.len() >= MOST {
            return Ok((found, false));
        }
    }
}

/// The event, as far as an attempt tells of it.
fn event_of(entry: &Entry) -> Option<Event> {
    let What::Attempt(attempt) = &entry.what else {
        return None;
    };
    let body = attempt
        .request
        .as_ref()
        .and_then(|request| request.body.clone());
    Some(Event {
        id: EventId::kept(&entry.event)?,
        topic: entry.topic.as_str().into(),
        kind: entry.r#type.as_str().into(),
        source: entry.source.as_str().into(),
        tenant: None,
        published_at: None,
        content_type: None,
        content_encoding: None,
        key: None,
        headers: Headers::default(),
        properties: Vec::new(),
        body: Bytes::from(body.unwrap_or_default()),
        origin: Origin {
            broker: entry.broker.as_str().into(),
            place: Place::Embedded {
                topic: entry.topic.as_str().into(),
                sequence: 0,
            },
        },
    })
}
