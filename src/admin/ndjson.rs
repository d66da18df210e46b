//! Many events in one request: one JSON object a line.
//!
//! `{"id"?, "type"?, "key"?, "content_type"?, "headers"?, "data" | "data_base64"}`. `data` is any
//! JSON and is sent as it was written, byte for byte; `data_base64` is decoded.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::problem::Problem;
use crate::broker::Publication;
use crate::event::{HeaderValue, Headers};

/// Events in one request.
const MAX_EVENTS: usize = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    id: Option<String>,
    r#type: Option<String>,
    key: Option<String>,
    content_type: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(borrow, default, deserialize_with = "given")]
    data: Option<&'a RawValue>,
    data_base64: Option<String>,
}

/// `null` is data too.
fn given<'de: 'a, 'a, D: Deserializer<'de>>(from: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// The events of `body`, all to be published to `topic`. Empty lines are passed over.
pub fn read(topic: &str, body: &[u8]) -> Result<Vec<Publication>, Problem> {
    let mut events = Vec::new();
    for (number, line) in body.split(|&byte| byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        if events.len() == MAX_EVENTS {
            return Err(Problem::bad_request(format!(
                "more than {MAX_EVENTS} events in one request"
            )));
        }
        let event = event(topic, line);
        events.push(event.map_err(|why| {
            let number = number + 1;
            Problem::bad_request(format!("line {number}: {why}; nothing was published"))
        })?);
    }
    if events.is_empty() {
        return Err(Problem::bad_request("there is no event in the body"));
    }
    Ok(events)
}

fn event(topic: &str, line: &[u8]) -> Result<Publication, String> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| {
        // serde_json counts lines too, always 1 here.
        let text = error.to_string();
        text.replace("at line 1 column", "at column")
    })?;
    let Line {
        id,
        r#type,
        key,
        content_type,
        headers,
        data,
        data_base64,
    } = line;
    if id.as_deref() == Some("") {
        return Err("`id` is empty".into());
    }
    let (body, content_type) = match (data, data_base64) {
        (Some(data), None) => (
            Bytes::copy_from_slice(data.get().as_bytes()),
            content_type.or_else(|| Some("application/json".into())),
        ),
        (None, Some(text)) => {
            let decoded = STANDARD.decode(text);
            let bytes = decoded.map_err(|error| format!("`data_base64`: {error}"))?;
            (Bytes::from(bytes), content_type)
        }
        (Some(_), Some(_)) => return Err("both `data` and `data_base64` are given".into()),
        (None, None) => return Err("neither `data` nor `data_base64` is given".into()),
    };
    let headers = headers
        .into_iter()
        .map(|(name, value)| (name, HeaderValue::text(value)));
    Ok(Publication {
        topic: topic.to_owned(),
        exchange: String::new(),
        id,
        kind: r#type,
        key: key.map(Bytes::from),
        content_type,
        headers: Headers(headers.collect()),
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(body: &str) -> String {
        format!("{:?}", read("t", body.as_bytes()).unwrap_err())
    }

    #[test]
    fn data_is_kept_byte_for_byte() {
        let body = "{\"id\":\"a\",\"data\":{\"x\": 1.50,  \"y\":\"\\u00e9\"}}\r\n\n{\"data\":null}\n{\"data_base64\":\"/wA=\"}";
        let events = read("t", body.as_bytes()).unwrap();
        let bodies: Vec<_> = events.iter().map(|event| &event.body[..]).collect();
        assert_eq!(
            bodies,
            [
                &b"{\"x\": 1.50,  \"y\":\"\\u00e9\"}"[..],
                &b"null"[..],
                &b"\xff\0"[..]
            ]
        );
        assert_eq!(events[0].id.as_deref(), Some("a"));
        assert_eq!(events[0].content_type.as_deref(), Some("application/json"));
        assert_eq!(events[2].content_type, None);
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        assert!(why("{\"data\":1}\n\n{\"data\":").contains("line 3: EOF"));
        assert!(why("{\"data\":1,\"dat\":2}").contains("line 1: unknown field `dat`"));
        assert!(why("{}").contains("neither"));
        assert!(why("{\"data\":1,\"data_base64\":\"\"}").contains("both"));
        assert!(why("{\"data_base64\":\"?\"}").contains("`data_base64`"));
        assert!(why("{\"id\":\"\",\"data\":1}").contains("`id` is empty"));
        assert!(why("\n").contains("no event"));
    }

    #[test]
    fn there_is_a_limit_to_the_events_of_a_request() {
        let body = "{\"data\":1}\n".repeat(MAX_EVENTS + 1);
        assert!(why(&body).contains("more than 10000"));
    }
}
