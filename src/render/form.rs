//! `form`: `application/x-www-form-urlencoded`, with the whole JSON in one field, or flattened.
//!
//! Flattened, a member of an object is `outer[inner]` and an entry of a list `list[0]`, as PHP,
//! Rails and Node's `qs` read them; `null` is an empty value, and an empty object or list is
//! nothing. A message that is a form already passes through.

use http::HeaderValue;
use url::form_urlencoded::Serializer;

use super::json::Json;
use super::{Formed, LONGEST_BODY, Piece, RenderError};
use crate::subscription::FormFields;

const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
/// More fields than any server reads.
const MOST_FIELDS: usize = 10_000;

pub(super) fn form(fields: &FormFields, piece: &Piece<'_>) -> Result<Formed, RenderError> {
    let given = piece.said_type().unwrap_or_default();
    if super::essence(given).eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Ok(Formed {
            content_encoding: piece.coding().and_then(super::headers::value),
            ..Formed::of(piece.data().bytes.clone(), FORM)
        });
    }
    let mut out = Serializer::new(String::new());
    match fields {
        FormFields::Whole(name) => {
            out.append_pair(name, piece.data().json_text()?);
        }
        FormFields::Flat => {
            out.extend_pairs(flat(piece.data().json()?, LONGEST_BODY)?);
        }
    }
    Ok(Formed::of(out.finish(), FORM))
}

/// A pair for each scalar of an object or a list; `room` is for the bytes of all of them.
pub(super) fn flat(json: &Json, room: usize) -> Result<Vec<(String, &str)>, RenderError> {
    let mut flat = Flat {
        pairs: Vec::new(),
        room,
    };
    match json {
        Json::Object(members) => {
            for (name, member) in members {
                flat.walk(name.to_string(), member)?;
            }
        }
        Json::List(entries) => {
            for (number, entry) in entries.iter().enumerate() {
                flat.walk(number.to_string(), entry)?;
            }
        }
        _ => {
            return Err(RenderError::new(
                "the body is one value, which has no name to be a field of",
            ));
        }
    }
    Ok(flat.pairs)
}

struct Flat<'a> {
    pairs: Vec<(String, &'a str)>,
    room: usize,
}

impl<'a> Flat<'a> {
    fn walk(&mut self, name: String, json: &'a Json) -> Result<(), RenderError> {
        match json {
            Json::Object(members) => {
                for (inner, member) in members {
                    self.walk(format!("{name}[{inner}]"), member)?;
                }
            }
            Json::List(entries) => {
                for (number, entry) in entries.iter().enumerate() {
                    self.walk(format!("{name}[{number}]"), entry)?;
                }
            }
            scalar => {
                let value = scalar.plain().unwrap_or_default();
                if self.pairs.len() == MOST_FIELDS {
                    let why = format!("more than {MOST_FIELDS} fields");
                    return Err(RenderError::new(why));
                }
                let room = self.room.checked_sub(name.len() + value.len());
                self.room = room.ok_or_else(|| RenderError::new("the fields are too long"))?;
                self.pairs.push((name, value));
            }
        }
        Ok(())
    }
}
