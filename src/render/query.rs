//! What of a request is in its URL: the query of a GET, and what templates append.
//!
//! Scheme and host stay what the config says: only segments and pairs are appended, encoded, and
//! that this is so is checked once more on what comes out.

use std::sync::Arc;

use bytes::Bytes;
use url::{Url, form_urlencoded};

use super::form::flat;
use super::headers::percent;
use super::json::Json;
use super::{Formed, RenderError, essence};

/// More than most servers take.
const LONGEST_URL: usize = 16 << 10;

/// The body's fields in the query, and no body: those of a form as they are, those of JSON as
/// `form` flattens them.
pub(super) fn instead_of_body(mut formed: Formed) -> Result<Formed, RenderError> {
    let body = std::mem::take(&mut formed.body);
    let content_type = formed.content_type.take();
    formed.content_encoding = None;
    if body.is_empty() {
        return Ok(formed);
    }
    let said = content_type.as_ref().and_then(|value| value.to_str().ok());
    if said.is_some_and(|said| essence(said) == "application/x-www-form-urlencoded") {
        let pairs = form_urlencoded::parse(&body).into_owned();
        formed.query.extend(pairs);
        return Ok(formed);
    }
    let json = of_json(&body)?;
    let pairs = flat(&json, LONGEST_URL)?;
    let pairs = pairs
        .into_iter()
        .map(|(name, value)| (name, value.to_owned()));
    formed.query.extend(pairs);
    Ok(formed)
}

fn of_json(body: &Bytes) -> Result<Json, RenderError> {
    let wrong = || RenderError::new("the body is not JSON, of which the query would be made");
    Json::parse(body).ok_or_else(wrong)
}

/// Everything but letters, digits and `-._~`. The `url` crate's own way drops tabs and line feeds
/// first, which makes `..` of what was none.
fn encode(segment: &str, out: &mut String) {
    for byte in segment.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(byte as char);
            }
            _ => percent(byte, out),
        }
    }
}

/// `url` with these segments and pairs appended; itself when there are none.
pub(super) fn extended(
    url: &Arc<Url>,
    path: &[String],
    query: &[(String, String)],
) -> Result<Arc<Url>, RenderError> {
    if path.is_empty() && query.is_empty() {
        return Ok(url.clone());
    }
    let mut long = Url::clone(url);
    if !path.is_empty() {
        let mut all = long.path().trim_end_matches('/').to_owned();
        for segment in path {
            all.push('/');
            encode(segment, &mut all);
        }
        long.set_path(&all);
    }
    if !query.is_empty() {
        long.query_pairs_mut().extend_pairs(query);
    }
    let place = |url: &Url| {
        (
            url.origin(),
            url.username().to_owned(),
            url.fragment().is_some(),
        )
    };
    if place(url) != place(&long) || long.as_str().len() > LONGEST_URL {
        let why = format!("the URL would be longer than {LONGEST_URL} bytes, or another one");
        return Err(RenderError::new(why));
    }
    Ok(Arc::new(long))
}
