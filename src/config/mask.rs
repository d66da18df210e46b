//! Masking: a file's text as it may be shown in a snippet.
//!
//! Masked are the values of keys that hold secrets (or are misspelt so), what comes after the host
//! of a URL, and user info in one; everywhere, a word that looks like a signing secret. What is
//! written as `${...}` stays readable but for a default value, since it only names the secret.
//! Line breaks are kept, so that line numbers stay true.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value as Json;

use super::node::{Node, Span, Value};

/// Shown instead of what is masked.
pub const MASK: &str = "***";

/// Everything below these keys is secret.
const SECRET_KEYS: [&str; 9] = [
    "secret",
    "secrets",
    "store_key",
    "password",
    "token",
    "headers",
    "params",
    "api_key",
    "routing_key",
];
/// A plain value whose key contains one of these is secret.
const SECRET_WORDS: [&str; 10] = [
    "secret",
    "passw",
    "token",
    "auth",
    "bearer",
    "credential",
    "api_key",
    "apikey",
    // librdkafka takes private keys as text: `ssl.key.pem`, `ssl.keystore...`.
    "key.pem",
    "keystore",
];
/// URLs whose path may be a credential.
const URL_KEYS: [&str; 3] = ["url", "urls", "uri"];

/// A text with its secrets replaced, and how its places have moved.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Masked {
    text: String,
    /// What was replaced, in the original; sorted, not overlapping.
    cuts: Vec<Span>,
    /// For each cut, how many bytes it and those before it took away.
    shrunk: Vec<usize>,
}

/// One line of the masked text, and what in it is meant.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    pub text: &'a str,
    pub marked: Range<usize>,
}

impl Masked {
    /// `tree` is there unless the YAML is broken; `also` are further places to mask.
    pub fn new(text: &str, tree: Option<&Node>, also: &[Span]) -> Self {
        let mut secret = also.to_vec();
        match tree {
            Some(tree) => walk(tree, &mut secret, text),
            None => lines(text, &mut secret),
        }
        let everywhere = LOOKS_SECRET.find_iter(text).map(|found| found.range());
        let users = USER_INFO
            .captures_iter(text)
            .filter_map(|found| found.get(1))
            .map(|found| found.range());
        secret.extend(everywhere.chain(users).map(|range| Span {
            start: range.start,
            end: range.end,
        }));
        Self::cut(text, &secret)
    }

    fn cut(text: &str, secret: &[Span]) -> Self {
        let mut cuts: Vec<Span> = Vec::new();
        for span in secret {
            cuts.extend(readable_parts_left_out(text, *span));
        }
        cuts.sort_unstable();
        let mut joined: Vec<Span> = Vec::new();
        for cut in cuts {
            match joined.last_mut() {
                Some(last) if cut.start <= last.end => last.end = last.end.max(cut.end),
                _ => joined.push(cut),
            }
        }
        let mut masked = String::with_capacity(text.len());
        let mut shrunk = Vec::with_capacity(joined.len());
        let (mut done, mut gone) = (0, 0);
        for cut in &joined {
            masked.push_str(&text[done..cut.start]);
            masked.push_str(MASK);
            done = cut.end;
            gone += cut.end - cut.start;
            shrunk.push(gone);
        }
        masked.push_str(&text[done..]);
        Self {
            text: masked,
            cuts: joined,
            shrunk,
        }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// The line in which a span of the original begins, as it may be shown. A caret under the
    /// first line says enough of a value that goes on for many.
    pub fn line(&self, span: Span) -> Line<'_> {
        let start = self.moved(span.start, false);
        let from = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let to = self.text[start..]
            .find('\n')
            .map_or(self.text.len(), |at| start + at);
        let text = self.text[from..to].trim_end_matches('\r');
        let start = (start - from).min(text.len());
        let end = self.moved(span.end, true).clamp(from, to) - from;
        let end = end.clamp(start, text.len());
        let one_on = text.ceil_char_boundary((start + 1).min(text.len()));
        Line {
            text,
            marked: start..end.max(one_on),
        }
    }

    /// Where an offset of the original is in the masked text. One inside of what is masked moves
    /// before it, or after it if it is an end.
    fn moved(&self, offset: usize, end: bool) -> usize {
        let before = self.cuts.partition_point(|cut| cut.end <= offset);
        let shrunk = before.checked_sub(1).map_or(0, |last| self.shrunk[last]);
        let shift = |offset: usize| offset + before * MASK.len() - shrunk;
        let at = match self.cuts.get(before) {
            Some(cut) if cut.start < offset && end => shift(cut.start) + MASK.len(),
            Some(cut) if cut.start < offset => shift(cut.start),
            _ => shift(offset),
        };
        self.text.floor_char_boundary(at.min(self.text.len()))
    }
}

/// The pieces of a secret span to cut: line by line without indentation, and without `${env:X}`.
fn readable_parts_left_out(text: &str, span: Span) -> Vec<Span> {
    let mut span = span;
    let whole = &text[span.start..span.end];
    if ['"', '\'']
        .iter()
        .any(|quote| whole.len() > 1 && whole.starts_with(*quote) && whole.ends_with(*quote))
    {
        (span.start, span.end) = (span.start + 1, span.end - 1);
    }
    let mut pieces = Vec::new();
    let mut start = span.start;
    for line in text[span.start..span.end].split_inclusive('\n') {
        let body = line.trim_end();
        let indent = body.len() - body.trim_start().len();
        let mut at = start + indent;
        let end = start + body.len();
        for name in SUBSTITUTION.captures_iter(&text[at..end]) {
            let base = start + indent;
            let keep = name.get(0).map_or(0..0, |found| found.range());
            pieces.push(Span {
                start: at,
                end: base + keep.start,
            });
            at = base + keep.end;
        }
        pieces.push(Span { start: at, end });
        start += line.len();
    }
    pieces.retain(|piece| {
        !text[piece.start..piece.end]
            .trim_matches(['"', '\'', '|', '>', '-', ' '])
            .is_empty()
    });
    pieces
}

fn walk(node: &Node, secret: &mut Vec<Span>, text: &str) {
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                let key = entry.key.to_ascii_lowercase();
                let flat = match &entry.node.value {
                    Value::Map(_) => false,
                    Value::List(items) => items
                        .iter()
                        .all(|item| matches!(item.value, Value::Scalar(_))),
                    _ => true,
                };
                if is_secret(&key) || (flat && SECRET_WORDS.iter().any(|word| key.contains(word))) {
                    scalars(&entry.node, secret);
                } else if URL_KEYS.contains(&key.as_str()) {
                    let mut urls = Vec::new();
                    scalars(&entry.node, &mut urls);
                    secret.extend(urls.into_iter().filter_map(|url| after_host(text, url)));
                } else {
                    walk(&entry.node, secret, text);
                }
            }
        }
        Value::List(items) => items.iter().for_each(|item| walk(item, secret, text)),
        Value::Null | Value::Scalar(_) => {}
    }
}

/// One of the secret keys, or nearly.
fn is_secret(key: &str) -> bool {
    // `tokens` holds names and scopes too, and its `token`s are found below it.
    key != "tokens"
        && SECRET_KEYS.iter().any(|secret| {
            *secret == key || (key.len() > 4 && strsim::osa_distance(secret, key) <= 2)
        })
}

/// A value as it may be shown, by the same rules.
pub fn json(value: &Json) -> Json {
    let walked = |(key, value): (&String, &Json)| {
        let lower = key.to_ascii_lowercase();
        let flat = match value {
            Json::Object(_) => false,
            Json::Array(items) => items
                .iter()
                .all(|item| !item.is_array() && !item.is_object()),
            _ => true,
        };
        let named = SECRET_WORDS.iter().any(|word| lower.contains(word));
        let shown = if is_secret(&lower) || (flat && named) {
            covered(value, &|_: &str| MASK.to_owned())
        } else if URL_KEYS.contains(&lower.as_str()) {
            covered(value, &url)
        } else {
            json(value)
        };
        (key.clone(), shown)
    };
    match value {
        Json::Object(map) => Json::Object(map.iter().map(walked).collect()),
        Json::Array(items) => Json::Array(items.iter().map(json).collect()),
        Json::String(text) => Json::String(message(text)),
        other => other.clone(),
    }
}

/// With every plain value below it replaced.
fn covered(value: &Json, with: &impl Fn(&str) -> String) -> Json {
    let inside = |(key, value): (&String, &Json)| (key.clone(), covered(value, with));
    match value {
        Json::Null => Json::Null,
        Json::Object(map) => Json::Object(map.iter().map(inside).collect()),
        Json::Array(items) => items.iter().map(|item| covered(item, with)).collect(),
        Json::String(text) => Json::String(with(text)),
        other => Json::String(with(&other.to_string())),
    }
}

/// A URL up to its host.
fn url(text: &str) -> String {
    match UP_TO_PATH.find(text) {
        Some(host) if host.end() < text.len() => format!("{}{MASK}", &text[..host.end()]),
        _ => text.to_owned(),
    }
}

/// The places of all plain values below `node`.
pub fn scalars(node: &Node, into: &mut Vec<Span>) {
    match &node.value {
        Value::Null => {}
        Value::Scalar(_) => into.push(node.span),
        Value::List(items) => items.iter().for_each(|item| scalars(item, into)),
        Value::Map(entries) => entries.iter().for_each(|entry| scalars(&entry.node, into)),
    }
}

/// The path, query and fragment of a URL.
fn after_host(text: &str, url: Span) -> Option<Span> {
    let shown = &text[url.start..url.end];
    let path = UP_TO_PATH.find(shown)?.end();
    let end = shown.trim_end_matches(['"', '\'']).len();
    (path < end).then_some(Span {
        start: url.start + path,
        end: url.start + end,
    })
}

/// A message of ours that repeats a key or a value, without what looks like a secret.
pub fn message(text: &str) -> String {
    LOOKS_SECRET.replace_all(text, MASK).into_owned()
}

/// For YAML that cannot be parsed: what follows a secret key on its line, and on deeper lines.
fn lines(text: &str, secret: &mut Vec<Span>) {
    let mut start = 0;
    let mut below: Option<usize> = None;
    for line in text.split_inclusive('\n') {
        let body = line.trim_end();
        let indent = body.len() - body.trim_start().len();
        if !body.is_empty() {
            if below.is_some_and(|outer| indent <= outer) {
                below = None;
            }
            if below.is_some() {
                secret.push(Span {
                    start: start + indent,
                    end: start + body.len(),
                });
            } else if let Some(found) = KEY_IN_LINE.find(body) {
                secret.push(Span {
                    start: start + found.end(),
                    end: start + body.len(),
                });
                below = Some(indent);
            }
        }
        start += line.len();
    }
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a pattern of ours")
}

static SUBSTITUTION: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"\$\{(?:env:[A-Za-z_][A-Za-z0-9_]*|file:[^}]*)\}"));
/// A slash in a substitution is none of the URL.
static UP_TO_PATH: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r#"^["']?(?:[A-Za-z][A-Za-z0-9+.-]*://)?(?:\$\{[^}]*\}|[^/?#$]|\$)*[/?#]"#)
});
static LOOKS_SECRET: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"wh(?:sec|sk|pk)_[A-Za-z0-9+/=_-]+"));
/// The password, or whatever stands in its place; a substitution there may hold an `@` of its own.
static USER_INFO: LazyLock<Regex> =
    LazyLock::new(|| pattern(r#"[A-Za-z][A-Za-z0-9+.-]*://((?:\$\{[^}\s]*\}|[^/\s"'$]|\$)*)@"#));
static KEY_IN_LINE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r#"(?i)(?:^|[\s{,"'-])(?:[a-z0-9_.-]*(?:secret|passw|token|auth|credential|api_?key)[a-z0-9_.-]*|headers|params|routing_key|bearer|urls?)["']?\s*:"#,
    )
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::node;

    fn masked(text: &str) -> Masked {
        Masked::new(text, Some(&node::read(text).unwrap()), &[])
    }

    #[test]
    fn secrets_are_masked_and_what_only_names_them_is_not() {
        let text = "a: { secret: hunter2, url: https://h.example.com/T0/B0 }\n\
                    b: { secrets: [x1, \"${env:S}\"], headers: { authorization: Bearer 1 } }\n\
                    c: { password: \"${env:P:-hunter2}\", urls: [\"amqp://u:p@h/v\"], topics: [t] }\n";
        insta::assert_snapshot!(masked(text).text(), @r#"
a: { secret: ***, url: https://h.example.com/*** }
b: { secrets: [***, "${env:S}"], headers: { authorization: *** } }
c: { password: "***", urls: ["amqp://***@h/***"], topics: [t] }
"#);
    }

    #[test]
    fn json_is_masked_by_the_same_rules() {
        let value = serde_json::json!({
            "topics": ["t"],
            "endpoint": {
                "url": "https://h.example.com/T0/B0",
                "secrets": ["x1"],
                "headers": { "x-a": 1 },
                "auth": { "basic": { "username": "u", "password": "p" } },
            },
        });
        insta::assert_snapshot!(json(&value), @r#"{"endpoint":{"auth":{"basic":{"password":"***","username":"u"}},"headers":{"x-a":"***"},"secrets":["***"],"url":"https://h.example.com/***"},"topics":["t"]}"#);
    }

    #[test]
    fn a_misspelt_secret_is_masked_too() {
        assert!(
            !masked("secert: hunter2\nx: { passwrd: hunter2 }\n")
                .text()
                .contains("hunter2")
        );
    }

    #[test]
    fn lines_stay_where_they_are() {
        let text = "secret: |\n  hunter2\n  hunter3\nnext: 1\n";
        let masked = masked(text);
        assert_eq!(masked.text(), "secret: |\n  ***\n  ***\nnext: 1\n");
        let at = text.find("next").unwrap();
        let line = masked.line(Span {
            start: at,
            end: at + 4,
        });
        assert_eq!((line.text, line.marked), ("next: 1", 0..4));
    }

    #[test]
    fn broken_yaml_is_masked_by_its_lines() {
        let text = "a:\n  secret: hunter2\n  headers:\n    x: hunter2\n  b: [\n";
        assert!(!Masked::new(text, None, &[]).text().contains("hunter2"));
    }
}
