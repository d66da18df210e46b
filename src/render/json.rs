//! JSON as it was written: members in their order, numbers in their spelling.
//!
//! `serde_json::Value` sorts members and keeps 64 bits of a number, which filters can live with; a
//! receiver whose elements come in another order, or whose amounts lose a digit, cannot. The text
//! is checked by serde_json first, so that what is read here is known to be right.

use std::sync::{Arc, OnceLock};

use serde::de::IgnoredAny;

use crate::event::Decoded;

/// Nesting beyond this is no JSON to us.
const MAX_DEPTH: usize = 128;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    /// As it is spelled.
    Number(Box<str>),
    Text(Box<str>),
    List(Vec<Json>),
    /// Names may be there twice.
    Object(Vec<(Box<str>, Json)>),
}

/// The body of one event as JSON: parsed when somebody first asks, and then shared by all
/// deliveries of the event that are here. Where the event's source decodes, it is what was decoded.
#[derive(Debug, Clone, Default)]
pub struct SharedJson(Arc<Body>);

#[derive(Debug, Default)]
struct Body {
    decoded: Option<Decoded>,
    tree: OnceLock<Option<Json>>,
}

impl SharedJson {
    pub fn of_decoded(decoded: Decoded) -> Self {
        Self(Arc::new(Body {
            decoded: Some(decoded),
            tree: OnceLock::new(),
        }))
    }

    /// What the event's source has decoded.
    pub fn decoded(&self) -> Option<&Decoded> {
        self.0.decoded.as_ref()
    }

    /// The same body, to be parsed by itself.
    pub fn apart(&self) -> Self {
        let decoded = self.decoded().cloned();
        decoded.map_or_else(Self::default, Self::of_decoded)
    }

    pub(super) fn of(&self, body: &[u8]) -> Option<&Json> {
        self.0.tree.get_or_init(|| Json::parse(body)).as_ref()
    }

    pub(super) fn known(json: Json) -> Self {
        Self(Arc::new(Body {
            decoded: None,
            tree: OnceLock::from(Some(json)),
        }))
    }
}

impl Json {
    /// `None` for what is not JSON, or nested deeper than 128 levels.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice::<IgnoredAny>(bytes).ok()?;
        let text = std::str::from_utf8(bytes).ok()?;
        Reader { text, at: 0 }.value(MAX_DEPTH)
    }

    /// As compact JSON text.
    pub fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(is) => out.push_str(if *is { "true" } else { "false" }),
            Self::Number(number) => out.push_str(number),
            Self::Text(text) => write_text(text, out),
            Self::List(entries) => {
                out.push('[');
                for (number, entry) in entries.iter().enumerate() {
                    if number > 0 {
                        out.push(',');
                    }
                    entry.write(out);
                }
                out.push(']');
            }
            Self::Object(members) => {
                out.push('{');
                for (number, (name, member)) in members.iter().enumerate() {
                    if number > 0 {
                        out.push(',');
                    }
                    write_text(name, out);
                    out.push(':');
                    member.write(out);
                }
                out.push('}');
            }
        }
    }

    /// The last member of this name, as most readers have it.
    pub fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Object(members) => {
                let mut found = members.iter().rev().filter(|(other, _)| **other == *name);
                found.next().map(|(_, member)| member)
            }
            _ => None,
        }
    }

    /// A scalar as plain text: `null` is empty.
    pub fn plain(&self) -> Option<&str> {
        match self {
            Self::Null => Some(""),
            Self::Bool(true) => Some("true"),
            Self::Bool(false) => Some("false"),
            Self::Number(text) | Self::Text(text) => Some(text),
            Self::List(_) | Self::Object(_) => None,
        }
    }
}

/// A JSON string, quotes included.
pub(super) fn write_text(text: &str, out: &mut String) {
    let quoted = serde_json::to_string(text).expect("text is JSON");
    out.push_str(&quoted);
}

/// Reads text that is known to be JSON.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn value(&mut self, depth: usize) -> Option<Json> {
        let depth = depth.checked_sub(1)?;
        Some(match self.peek()? {
            b'{' => Json::Object(self.members(depth)?),
            b'[' => Json::List(self.entries(depth)?),
            b'"' => Json::Text(self.string()?),
            _ => match self.word() {
                "null" => Json::Null,
                "true" => Json::Bool(true),
                "false" => Json::Bool(false),
                number => Json::Number(number.into()),
            },
        })
    }

    fn members(&mut self, depth: usize) -> Option<Vec<(Box<str>, Json)>> {
        let mut members = Vec::new();
        self.at += 1;
        while self.peek()? != b'}' {
            if self.peek()? == b',' {
                self.at += 1;
            }
            self.peek()?;
            let name = self.string()?;
            // The colon.
            self.peek()?;
            self.at += 1;
            members.push((name, self.value(depth)?));
        }
        self.at += 1;
        Some(members)
    }

    fn entries(&mut self, depth: usize) -> Option<Vec<Json>> {
        let mut entries = Vec::new();
        self.at += 1;
        while self.peek()? != b']' {
            if self.peek()? == b',' {
                self.at += 1;
            }
            entries.push(self.value(depth)?);
        }
        self.at += 1;
        Some(entries)
    }

    fn string(&mut self) -> Option<Box<str>> {
        let (start, bytes) = (self.at, self.text.as_bytes());
        let mut escaped = false;
        let mut end = start + 1;
        loop {
            match bytes.get(end)? {
                b'"' => break,
                b'\\' => {
                    escaped = true;
                    end += 2;
                }
                _ => end += 1,
            }
        }
        self.at = end + 1;
        match escaped {
            false => Some(self.text[start + 1..end].into()),
            // A lone surrogate is no text.
            true => serde_json::from_str(&self.text[start..=end]).ok(),
        }
    }

    /// A number or a name, up to what ends it.
    fn word(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        let ends = |b: u8| matches!(b, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n');
        let length = rest.bytes().position(ends).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match *self.text.as_bytes().get(self.at)? {
                b' ' | b'\t' | b'\r' | b'\n' => self.at += 1,
                byte => return Some(byte),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn written(text: &str) -> Option<String> {
        let mut out = String::new();
        Json::parse(text.as_bytes())?.write(&mut out);
        Some(out)
    }

    #[test]
    fn order_and_spelling_stay() {
        let text =
            r#"{"z":1.10,"a":123456789012345678901234567890,"m":[1e400,-0],"z2":"\u00e4\/"}"#;
        let again = r#"{"z":1.10,"a":123456789012345678901234567890,"m":[1e400,-0],"z2":"ä/"}"#;
        assert_eq!(written(text).unwrap(), again);
        assert_eq!(written(" [ ] ").unwrap(), "[]");
        assert_eq!(written("{ }\n").unwrap(), "{}");
    }

    #[test]
    fn what_is_no_json_is_none() {
        for text in ["", "{", "{}x", "nul", "01", "\"\\ud800\"", "[1,]", "<a/>"] {
            assert_eq!(written(text), None, "{text}");
        }
        assert_eq!(Json::parse(b"\"\xff\""), None);
        let deep = |levels| "[".repeat(levels) + &"]".repeat(levels);
        assert!(written(&deep(128)).is_some());
        assert!(written(&deep(129)).is_none());
        assert!(written(&deep(1_000_000)).is_none());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("\\PC{0,4}", inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(value in any_json(), pretty in any::<bool>()) {
            let text = match pretty {
                true => serde_json::to_string_pretty(&value).unwrap(),
                false => value.to_string(),
            };
            prop_assert_eq!(written(&text).unwrap(), value.to_string());
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Json::parse(&bytes);
        }
    }
}
