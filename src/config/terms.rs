//! `max_age`, and the contract of a source or subscription: `max_body` and `schema`.

use std::time::Duration;

use super::field::Field;
use super::keys;
use super::reader::Map;
use crate::subscription::{Contract, MaxAge, Schema, SchemaError, Stale};

const SHORTEST_AGE: Duration = Duration::from_secs(1);
const LONGEST_AGE: Duration = Duration::from_secs(3_650 * 86_400);
const MOST_BODY_BYTES: u64 = 1 << 30;

/// A duration is short for `after`.
pub fn max_age(field: Field<'_>) -> Option<MaxAge> {
    let after = |field: Field<'_>| field.duration(SHORTEST_AGE..=LONGEST_AGE);
    if !field.is_map() {
        return Some(MaxAge {
            after: after(field)?,
            then: Stale::default(),
        });
    }
    let map = field.map(&keys::MAX_AGE)?;
    let then = map
        .take("then")
        .and_then(|field| field.one_of(&keys::STALE));
    Some(MaxAge {
        after: map.need("after").and_then(after)?,
        then: match then {
            Some("dead_letter") => Stale::DeadLetter,
            _ => Stale::Settle,
        },
    })
}

/// The keys `max_body` and `schema` of a source or subscription.
pub fn contract(map: &Map<'_>) -> Contract {
    let max_body = map.take("max_body");
    Contract {
        max_body: max_body.and_then(|field| field.bytes(1..=MOST_BODY_BYTES)),
        schema: map.take("schema").and_then(schema),
    }
}

/// Written here, or JSON in a text that comes from a file.
fn schema(field: Field<'_>) -> Option<Schema> {
    if field.is_map() {
        return match Schema::compile(field.node.to_json()) {
            Ok(schema) => Some(schema),
            Err(SchemaError { path, message }) => {
                let span = field.node.span_at(&path);
                field.notes.note(span, message, None);
                None
            }
        };
    }
    let text = field.text()?;
    // What is wrong is said by its place alone: the text may come from anywhere.
    let written = match serde_json::from_str(text) {
        Ok(written) => written,
        Err(error) => {
            let (line, column) = (error.line(), error.column());
            field.note(
                format!("the text of `schema` is not JSON (at its line {line}, column {column})"),
                "write the schema here as a map, or `${file:schema.json}`".to_owned(),
            );
            return None;
        }
    };
    match Schema::compile(written) {
        Ok(schema) => Some(schema),
        Err(error) if field.is_substituted() && !error.path.is_empty() => {
            let message = format!("the text of `schema` is no schema at `{}`", error.path);
            field.note(message, None);
            None
        }
        Err(error) => {
            field.note(error.message, None);
            None
        }
    }
}
