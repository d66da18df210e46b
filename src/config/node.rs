//! The YAML text as a tree in which every key and every value knows its place.
//!
//! serde-saphyr stops at the first thing it does not like, so it is asked for nothing but the
//! tree; all checks are made on that, and all of them report. Only broken YAML stands alone.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Location, Spanned};

/// A range of bytes in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span {
    pub start: usize,
    pub end: usize,
}

/// A value and its place.
#[derive(Debug, Clone)]
pub struct Node {
    pub span: Span,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub enum Value {
    Null,
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value, in the order of the file; keys may be there twice.
#[derive(Debug, Clone)]
pub struct Entry {
    pub key: String,
    pub key_span: Span,
    pub node: Node,
}

/// One word, number or string.
#[derive(Debug, Clone)]
pub struct Scalar {
    pub typed: Typed,
    /// As it is read as text: a number keeps its spelling.
    pub text: String,
    /// As it may be shown: before substitution.
    pub written: String,
    /// The text came from the environment or a file, so it is never shown.
    pub substituted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Typed {
    Text,
    Bool(bool),
    Integer(i128),
    Float(f64),
}

/// Why the text is no YAML.
#[derive(Debug)]
pub struct Broken {
    pub span: Span,
    pub message: String,
}

/// Deeper nesting than any config needs is refused before it can use up the stack.
const MAX_DEPTH: usize = 64;
/// Enough for some fifty thousand subscriptions.
const MAX_NODES: usize = 1_000_000;

/// Reads one YAML document. An empty one is an empty map.
pub fn read(text: &str) -> Result<Node, Broken> {
    let options = serde_saphyr::options! {
        // In a map, "the last wins" hands over every entry, so that we can report the second one.
        // Where a key is a number it does not: one reason why our names begin with a letter.
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        strict_booleans: true,
        with_snippet: false,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_NODES / 2 },
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 4 * MAX_NODES,
            // One retry policy for hundreds of subscriptions is no attack; what aliases may grow
            // to is limited by itself.
            enforce_alias_anchor_ratio: false,
        },
    };
    let root: Option<Spanned<Raw>> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| Broken {
            span: error
                .location()
                .map_or_else(Span::default, |at| place(&at, text)),
            message: said(&error),
        })?;
    Ok(match root {
        Some(root) => build(root, text, Span::default()),
        None => Node {
            span: Span::default(),
            value: Value::Map(Vec::new()),
        },
    })
}

/// The parser's words without the position, which we give ourselves.
fn said(error: &serde_saphyr::Error) -> String {
    if let serde_saphyr::Error::MultipleDocuments { .. } = error.without_snippet() {
        return "a config is one YAML document: there is a second one".to_owned();
    }
    let said = error.without_snippet().to_string();
    let first = said.lines().next().unwrap_or_default();
    let first = first.split(" at line ").next().unwrap_or_default();
    format!(
        "this is not valid YAML: {}",
        first.trim_start_matches("error: ").trim()
    )
}

fn place(at: &Location, text: &str) -> Span {
    let start = match at.span().byte_offset() {
        Some(offset) => offset as usize,
        None => line_and_column(text, at.line() as usize, at.column() as usize),
    };
    let start = floor(text, start);
    let end = floor(text, start + at.span().byte_len().unwrap_or(0) as usize);
    Span {
        start,
        end: end.max(start),
    }
}

/// Both count from 1, the column in characters.
fn line_and_column(text: &str, line: usize, column: usize) -> usize {
    let mut lines = text.split_inclusive('\n');
    let before: usize = lines
        .by_ref()
        .take(line.saturating_sub(1))
        .map(str::len)
        .sum();
    let in_line: usize = lines
        .next()
        .unwrap_or_default()
        .chars()
        .take_while(|c| *c != '\n')
        .take(column.saturating_sub(1))
        .map(char::len_utf8)
        .sum();
    before + in_line
}

/// The character boundary at or before `offset`.
fn floor(text: &str, offset: usize) -> usize {
    text.floor_char_boundary(offset.min(text.len()))
}

/// `empty` is where to point for a value that is not there.
fn build(raw: Spanned<Raw>, text: &str, empty: Span) -> Node {
    let mut span = place(&raw.defined, text);
    let scalar = |typed, text: String| {
        let written = text.clone();
        Value::Scalar(Scalar {
            typed,
            text,
            written,
            substituted: false,
        })
    };
    let spelled = || text[span.start..span.end].trim().to_owned();
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Text(text) => scalar(Typed::Text, text),
        Raw::Bool(value) => scalar(Typed::Bool(value), spelled()),
        Raw::Integer(value) => scalar(Typed::Integer(value), spelled()),
        Raw::Float(value) => scalar(Typed::Float(value), spelled()),
        Raw::List(items) => Value::List(
            items
                .into_iter()
                .map(|item| build(item, text, span))
                .collect(),
        ),
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let key_span = place(&key.defined, text);
                    Entry {
                        node: build(value, text, key_span),
                        key: key.value,
                        key_span,
                    }
                })
                .collect(),
        ),
    };
    if matches!(value, Value::Null) && span.start == span.end {
        span = empty;
    }
    Node { span, value }
}

/// What serde hands over.
enum Raw {
    Null,
    Text(String),
    Bool(bool),
    Integer(i128),
    Float(f64),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Integer(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

impl Node {
    /// What it is, as said in messages.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
            Value::Scalar(scalar) => match scalar.typed {
                Typed::Text => "text",
                Typed::Bool(_) => "true or false",
                Typed::Integer(_) => "a number",
                Typed::Float(_) => "a fraction",
            },
        }
    }

    /// As JSON, for content filters. Of a key that is there twice, the first counts.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Scalar(scalar) => match scalar.typed {
                Typed::Text => Json::String(scalar.text.clone()),
                Typed::Bool(value) => Json::Bool(value),
                Typed::Integer(value) => i64::try_from(value)
                    .map(Json::from)
                    .or_else(|_| u64::try_from(value).map(Json::from))
                    .unwrap_or(Json::Null),
                Typed::Float(value) => Json::from(value),
            },
            Value::List(items) => Json::Array(items.iter().map(Node::to_json).collect()),
            Value::Map(entries) => Json::Object(
                entries
                    .iter()
                    .rev()
                    .map(|entry| (entry.key.clone(), entry.node.to_json()))
                    .collect(),
            ),
        }
    }

    /// The span of the key or value at a path such as `/data.total/$gte`, or of the last part of
    /// the path that is there.
    pub fn span_at(&self, path: &str) -> Span {
        let (mut node, mut span) = (self, self.span);
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let part = part.replace("~1", "/").replace("~0", "~");
            match &node.value {
                Value::Map(entries) => match entries.iter().find(|entry| entry.key == part) {
                    Some(entry) => (node, span) = (&entry.node, entry.key_span),
                    None => return span,
                },
                Value::List(items) => {
                    match part
                        .parse::<usize>()
                        .ok()
                        .and_then(|index| items.get(index))
                    {
                        Some(item) => (node, span) = (item, item.span),
                        None => return span,
                    }
                }
                _ => return span,
            }
        }
        span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Vec<Entry> {
        match read(text).unwrap().value {
            Value::Map(entries) => entries,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn keys_and_values_know_their_bytes() {
        let text = "# \u{e4}\u{1f511}\nna\u{efb}: v\u{e4}l # x\nb: { c: 'q', d: [1, 2.50] }\n";
        let top = entries(text);
        let of = |span: Span| &text[span.start..span.end];
        assert_eq!(of(top[0].key_span), "na\u{efb}");
        assert_eq!(of(top[0].node.span), "v\u{e4}l");
        let Value::Map(inner) = &top[1].node.value else {
            panic!()
        };
        assert_eq!(of(inner[0].key_span), "c");
        assert_eq!(of(inner[0].node.span), "'q'");
        let Value::List(items) = &inner[1].node.value else {
            panic!()
        };
        let Value::Scalar(number) = &items[1].value else {
            panic!()
        };
        assert_eq!(
            number.text, "2.50",
            "a number read as text keeps its spelling"
        );
    }

    #[test]
    fn a_key_that_is_there_twice_is_handed_over_twice() {
        let top = entries("a: 1\nb: 2\na: 3\n");
        let keys: Vec<_> = top.iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!(keys, ["a", "b", "a"]);
    }

    #[test]
    fn aliases_and_merged_maps_are_followed_to_where_they_are_written() {
        let text = "a: &x { k: 1 }\nb: *x\nc: { <<: *x, l: 2 }\n";
        let top = entries(text);
        let Value::Map(b) = &top[1].node.value else {
            panic!()
        };
        assert_eq!(&text[b[0].node.span.start..b[0].node.span.end], "1");
        let Value::Map(c) = &top[2].node.value else {
            panic!()
        };
        assert_eq!(c.len(), 2);
    }

    #[test]
    fn one_anchor_may_be_used_by_many_and_may_not_explode() {
        let many: String = (0..2_000).map(|n| format!("s{n}: *x\n")).collect();
        assert_eq!(entries(&format!("a: &x [1]\n{many}")).len(), 2_001);
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..9 {
            let all = vec![format!("*a{}", n - 1); 10].join(", ");
            bomb.push_str(&format!("a{n}: &a{n} [{all}]\n"));
        }
        assert!(read(&bomb).is_err());
    }

    #[test]
    fn a_path_of_a_filter_leads_to_its_key() {
        let text = "data.total: { $gte: x, $or: [a, { b/c: d }] }\n";
        let root = read(text).unwrap();
        let at = |path| {
            let span = root.span_at(path);
            &text[span.start..span.end]
        };
        assert_eq!(at("/data.total/$gte"), "$gte");
        assert_eq!(at("/data.total/$or/1/b~1c"), "b/c");
        assert_eq!(at("/data.total/$or/0/gone"), "a");
        assert_eq!(at("/data.total/gone/x"), "data.total");
    }

    #[test]
    fn a_second_document_is_refused_in_our_words() {
        let broken = read("a: 1\n---\nb: 2\n").unwrap_err();
        assert!(broken.message.contains("one YAML document"), "{broken:?}");
    }

    #[test]
    fn an_empty_value_points_at_its_key() {
        let top = entries("a:\nb: x\n");
        assert_eq!(top[0].node.span, top[0].key_span);
    }

    #[test]
    fn broken_yaml_is_placed() {
        let broken = read("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(broken.span.start > 4, "{broken:?}");
        let deep = "[".repeat(100_000);
        assert!(read(&deep).is_err());
    }

    #[test]
    fn yes_is_text_and_an_empty_file_is_an_empty_map() {
        let top = entries("a: yes\n");
        assert_eq!(top[0].node.kind(), "text");
        assert!(entries("").is_empty());
        assert!(entries("# nothing\n").is_empty());
    }
}
