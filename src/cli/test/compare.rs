//! What is expected against what would be sent, told by path. Nothing that is a credential of an
//! endpoint is shown on either side.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use flate2::read::GzDecoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::Value;
use url::Url;

use crate::app;
use crate::attempt::Outcome;
use crate::config::{Case, Expected, ExpectedError, Signed, Text};
use crate::deliver::signature::{Received, TOLERANCE, verify};
use crate::delivery::Reason;
use crate::outgoing::Outgoing;
use crate::pipeline::Previewed;
use crate::subscription::compare_numbers;

/// More of a body are not told.
const MOST: usize = 20;
/// So much of a value is shown, in characters.
const LONGEST: usize = 300;
const MASK: &str = "***";
/// No rendered body is longer.
const LONGEST_BODY: u64 = 16 << 20;

/// One thing that is not as expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub subscription: Arc<str>,
    /// Of the subscription; `method`, `url`, `body` and so on.
    pub what: String,
    /// Within a JSON body, such as `data.items[0].sku`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
}

impl Difference {
    /// In a line, without its two sides.
    pub fn title(&self) -> String {
        match &self.path {
            Some(path) => format!("{}: {} at {path}", self.subscription, self.what),
            None => format!("{}: {}", self.subscription, self.what),
        }
    }
}

/// Everything that is not as `case` expects it. An error is what keeps it from being known.
pub fn all(case: &Case, made: &[Previewed]) -> anyhow::Result<Vec<Difference>> {
    let mut differences = Vec::new();
    for one in made {
        let mut of = Of {
            made: one,
            differences: &mut differences,
        };
        match case.expect.get(&one.subscription) {
            Some(expected) => of.compare(case, expected)?,
            None => of.note("matches, and is not expected to", None, None),
        }
    }
    let is_missing = |name: &Arc<str>| made.iter().all(|one| one.subscription != *name);
    for name in case.expect.keys().filter(|name| is_missing(name)) {
        differences.push(Difference {
            subscription: name.clone(),
            what: "is expected, and does not match".to_owned(),
            path: None,
            expected: None,
            found: None,
        });
    }
    differences.sort_by(|a, b| a.subscription.cmp(&b.subscription));
    Ok(differences)
}

/// One subscription being compared.
struct Of<'a> {
    made: &'a Previewed,
    differences: &'a mut Vec<Difference>,
}

impl Of<'_> {
    fn note(&mut self, what: impl Into<String>, expected: Option<String>, found: Option<String>) {
        self.differences.push(Difference {
            subscription: self.made.subscription.clone(),
            what: what.into(),
            path: None,
            expected,
            found,
        });
    }

    fn differs(&mut self, what: impl Into<String>, expected: String, found: String) {
        let mut what = what.into();
        if expected == found {
            what.push_str(", in what is not shown");
        }
        self.note(what, Some(expected), Some(found));
    }

    fn compare(&mut self, case: &Case, expected: &Expected) -> anyhow::Result<()> {
        let request = match (&self.made.made, &expected.error) {
            (Ok(request), None) => request,
            (Err(outcome), Some(error)) => {
                self.error(error, outcome);
                return Ok(());
            }
            (Ok(_), Some(error)) => {
                let wanted = error.reason.to_string();
                self.differs("error", wanted, "a request".to_owned());
                return Ok(());
            }
            (Err(outcome), None) => {
                self.differs("error", "a request".to_owned(), self.said(outcome));
                return Ok(());
            }
        };
        let Expected {
            method,
            url,
            headers,
            body,
            signature,
            error: _,
        } = expected;
        if let Some(method) = method.as_ref().filter(|method| **method != request.method) {
            self.differs("method", method.to_string(), request.method.to_string());
        }
        if let Some(url) = url {
            self.url(url, &request.url);
        }
        for (name, text) in headers {
            self.header(name, text, request.headers.get(name));
        }
        if let Some(body) = body {
            self.body(&app::bytes_of(body)?, request);
        }
        if let Some(signature) = signature {
            self.signature(*signature, case, request);
        }
        Ok(())
    }

    fn said(&self, outcome: &Outcome) -> String {
        let why = self.made.masked(outcome.excerpt());
        match reason(outcome) {
            Some(reason) => format!("{reason}: {why}"),
            None => format!("{}: {why}", outcome.label()),
        }
    }

    fn error(&mut self, expected: &ExpectedError, outcome: &Outcome) {
        let text = expected.text.as_deref();
        let is_same = reason(outcome) == Some(expected.reason)
            && text.is_none_or(|text| outcome.excerpt().contains(text));
        if !is_same {
            let wanted = match text {
                Some(text) => format!("{}: ...{text}...", expected.reason),
                None => expected.reason.to_string(),
            };
            self.differs("error", wanted, self.said(outcome));
        }
    }

    fn url(&mut self, expected: &Text, found: &Url) {
        let shown = self.made.masked_url(found);
        let text = expected.value.expose();
        if text == found.as_str() || text == shown {
            return;
        }
        let parsed = Url::parse(text);
        if parsed.as_ref().is_ok_and(|parsed| parsed == found) {
            return;
        }
        let wanted = match (&expected.put_in, parsed) {
            (Some(put_in), _) => put_in.clone(),
            (None, Ok(url)) if !text.contains(MASK) => self.made.masked_url(&url),
            (None, _) => self.made.masked(text),
        };
        self.differs("url", wanted, shown);
    }

    fn header(&mut self, name: &HeaderName, expected: &Text, found: Option<&HeaderValue>) {
        let text = expected.value.expose();
        if found.is_some_and(|found| found.as_bytes() == text.as_bytes()) {
            return;
        }
        let hidden = found.is_some_and(HeaderValue::is_sensitive);
        let wanted = match &expected.put_in {
            Some(put_in) => put_in.clone(),
            None if hidden => MASK.to_owned(),
            None => self.made.masked(text),
        };
        let what = format!("header {name}");
        match found {
            None => self.note(format!("{what} is missing"), Some(wanted), None),
            Some(_) if hidden => self.differs(what, wanted, MASK.to_owned()),
            Some(found) => {
                let found = String::from_utf8_lossy(found.as_bytes());
                let found = self.made.masked(&found);
                self.differs(what, wanted, found);
            }
        }
    }

    fn body(&mut self, expected: &Bytes, request: &Outgoing) {
        let found = plain(request);
        if *expected == found {
            return;
        }
        let json = (
            serde_json::from_slice::<Value>(expected),
            serde_json::from_slice::<Value>(&found),
        );
        if let ((Ok(expected), Ok(found)), true) = (json, is_json(request)) {
            let mut differing = Vec::new();
            walk(&expected, &found, "", &mut differing);
            let more = differing.len().saturating_sub(MOST);
            for (path, expected, found) in differing.into_iter().take(MOST) {
                let shown = |side: Option<&Value>| {
                    side.map(|value| short(&self.made.masked(&value.to_string())))
                };
                let (expected, found) = (shown(expected), shown(found));
                let hidden = expected == found;
                self.note(
                    if hidden {
                        "body, in what is not shown,"
                    } else {
                        "body"
                    },
                    expected,
                    found,
                );
                if let Some(last) = self.differences.last_mut() {
                    last.path = Some(if path.is_empty() {
                        ".".to_owned()
                    } else {
                        path
                    });
                }
            }
            if more > 0 {
                self.note(format!("body differs in {more} more places"), None, None);
            }
            return;
        }
        let (Ok(wanted), Ok(text)) = (str::from_utf8(expected), str::from_utf8(&found)) else {
            let bytes = |bytes: &[u8]| format!("{} bytes", bytes.len());
            self.differs("body", bytes(expected), bytes(&found));
            return;
        };
        let (wanted, text) = (self.made.masked(wanted), self.made.masked(text));
        let (line, wanted, text) = differing_lines(&wanted, &text);
        self.differs(format!("body, from line {line}"), wanted, text);
    }

    fn signature(&mut self, expected: Signed, case: &Case, request: &Outgoing) {
        let endpoint = &self.made.endpoint;
        let scheme = &endpoint.signature;
        let (wanted, found) = match (expected, scheme.is_signed()) {
            (Signed::Not, false) => return,
            (Signed::Not, true) => ("none", format!("one of `{}`", scheme.name())),
            (Signed::Valid, false) => {
                ("valid", format!("none: `{}` proves nothing", scheme.name()))
            }
            (Signed::Valid, true) => {
                let received = Received {
                    method: &request.method,
                    url: request.url.as_str(),
                    headers: &request.headers,
                    body: &request.body,
                };
                let now = case.at.as_second();
                match verify(scheme, &endpoint.secrets, &received, now, TOLERANCE) {
                    Ok(()) => return,
                    Err(why) => ("valid", why.to_string()),
                }
            }
        };
        self.differs("signature", wanted.to_owned(), found);
    }
}

fn reason(outcome: &Outcome) -> Option<Reason> {
    match outcome {
        Outcome::Unrenderable(_) => Some(Reason::RenderFailed),
        Outcome::Unsendable(_) => Some(Reason::Unsendable),
        Outcome::Invalid(_) => Some(Reason::InvalidPayload),
        Outcome::Answered(_) | Outcome::Failed(_) | Outcome::Withheld => None,
    }
}

fn is_json(request: &Outgoing) -> bool {
    let said = request.headers.get(CONTENT_TYPE);
    let said = said
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = said.split(';').next().unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    essence.ends_with("/json") || essence.ends_with("+json")
}

/// The body as it was before it was compressed.
fn plain(request: &Outgoing) -> Bytes {
    let coding = request.headers.get(CONTENT_ENCODING);
    if coding.is_none_or(|coding| coding.as_bytes() != b"gzip") {
        return request.body.clone();
    }
    let mut body = Vec::new();
    let mut reading = GzDecoder::new(&request.body[..]).take(LONGEST_BODY);
    match reading.read_to_end(&mut body) {
        Ok(_) => body.into(),
        // A message that only says that it is compressed.
        Err(_) => request.body.clone(),
    }
}

type Differing<'v> = Vec<(String, Option<&'v Value>, Option<&'v Value>)>;

/// Puts everything in which the two differ into `into`, by path.
fn walk<'v>(expected: &'v Value, found: &'v Value, path: &str, into: &mut Differing<'v>) {
    match (expected, found) {
        (Value::Object(one), Value::Object(other)) => {
            for (key, value) in one {
                let path = below(path, key);
                match other.get(key) {
                    Some(found) => walk(value, found, &path, into),
                    None => into.push((path, Some(value), None)),
                }
            }
            for (key, value) in other.iter().filter(|(key, _)| !one.contains_key(*key)) {
                into.push((below(path, key), None, Some(value)));
            }
        }
        (Value::Array(one), Value::Array(other)) => {
            for at in 0..one.len().max(other.len()) {
                let path = format!("{path}[{at}]");
                match (one.get(at), other.get(at)) {
                    (Some(one), Some(other)) => walk(one, other, &path, into),
                    (one, other) => into.push((path, one, other)),
                }
            }
        }
        (Value::Number(one), Value::Number(other))
            if compare_numbers(one, other) == Some(Ordering::Equal) => {}
        (one, other) if one == other => {}
        (one, other) => into.push((path.to_owned(), Some(one), Some(other))),
    }
}

/// The path of a member; one that is no word is quoted.
fn below(path: &str, key: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || "_-$".contains(c);
    match key.chars().all(is_word) && !key.is_empty() {
        true if path.is_empty() => key.to_owned(),
        true => format!("{path}.{key}"),
        false => format!("{path}[{}]", Value::from(key)),
    }
}

fn short(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

/// The first line that differs, from 1, and the lines of both from there to the last one that differs.
fn differing_lines(one: &str, other: &str) -> (usize, String, String) {
    let (mut one, mut other): (Vec<_>, Vec<_>) =
        (one.split('\n').collect(), other.split('\n').collect());
    let same = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    // One side may be at its end: its last line is shown all the same.
    let same = same.min(one.len() - 1).min(other.len() - 1);
    one.drain(..same);
    other.drain(..same);
    while one.len() > 1 && other.len() > 1 && one.last() == other.last() {
        one.pop();
        other.pop();
    }
    let shown = |lines: Vec<&str>| {
        let more = lines.len().saturating_sub(MOST);
        let mut shown: Vec<Cow<'_, str>> = lines
            .into_iter()
            .take(MOST)
            .map(|line| short(line).into())
            .collect();
        if more > 0 {
            shown.push(format!("({more} more lines)").into());
        }
        shown.join("\n")
    };
    (same + 1, shown(one), shown(other))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(one: Value, other: Value) -> Vec<String> {
        let mut found = Vec::new();
        walk(&one, &other, "", &mut found);
        found.into_iter().map(|(path, ..)| path).collect()
    }

    #[test]
    fn what_differs_is_told_by_path() {
        let one = json!({ "a": { "b c": [1, { "d": 2 }], "gone": 1 }, "same": 1.0 });
        let other = json!({ "a": { "b c": [1, { "d": 3 }, 4] }, "same": 1, "more": null });
        assert_eq!(
            paths(one.clone(), other),
            ["a[\"b c\"][1].d", "a[\"b c\"][2]", "a.gone", "more"]
        );
        assert_eq!(paths(one.clone(), one), [""; 0]);
        assert_eq!(paths(json!(1), json!("1")), [""]);
    }

    #[test]
    fn lines_are_told_from_the_first_to_the_last_that_differs() {
        let of = |one, other| differing_lines(one, other);
        let texts = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        let (line, one, other) = of("a\nb\nc\nd", "a\nx\nd");
        assert_eq!((line, (one, other)), (2, texts("b\nc", "x")));
        let (line, one, other) = of("a", "a\nb");
        assert_eq!((line, (one, other)), (1, texts("a", "a\nb")));
    }
}
