//! Filters that templates have beside minijinja's own: cutting to the limits of those who read what
//! is made, and the encodings that bodies need.
//!
//! Texts are cut between characters, and what was cut ends with an ellipsis. They are counted in the
//! units of UTF-16, the longest way in which services count, so that no emoji gets a text refused.

use std::borrow::Cow;

use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};
use serde::de::IgnoredAny;
use url::form_urlencoded;

use super::{LARGEST_BODY, value};
use crate::render::json::{self, Json};

const ELLIPSIS: &str = "\u{2026}";

pub(super) fn add(engine: &mut Environment<'static>) {
    engine.add_filter("replace", replace);
    engine.add_filter("truncate_to", truncate_to);
    engine.add_filter("fit", fit);
    engine.add_filter("units", units);
    engine.add_filter("bytes", bytes);
    engine.add_filter("one_line", one_line);
    engine.add_filter("mrkdwn", mrkdwn);
    engine.add_filter("form_encode", form_encode);
    engine.add_filter("as_json", as_json);
    engine.add_filter("from_json", from_json);
}

/// minijinja's own, within [`LARGEST_BODY`].
fn replace(text: &str, from: &str, to: &str) -> Result<String, Error> {
    let longest = text.len() + text.matches(from).count().saturating_mul(to.len());
    if longest > LARGEST_BODY {
        let why = "`replace` would make a text that is too long";
        return Err(Error::new(ErrorKind::InvalidOperation, why));
    }
    Ok(text.replace(from, to))
}

/// `text` in at most so many units, `end` included.
fn truncate_to(text: Cow<'_, str>, most: usize, end: Option<String>) -> String {
    cut(&text, most, end.as_deref(), char::len_utf16)
}

/// `text` such that it takes so many bytes at most as JSON, without its quotes, or in a form.
fn fit(
    text: Cow<'_, str>,
    most: usize,
    within: Option<String>,
    end: Option<String>,
) -> Result<String, Error> {
    let cost = match within.as_deref() {
        None | Some("json") => bytes_in_json,
        Some("form") => bytes_in_form,
        Some(_) => {
            let why = "`fit` is within `json` or `form`";
            return Err(Error::new(ErrorKind::InvalidOperation, why));
        }
    };
    Ok(cut(&text, most, end.as_deref(), cost))
}

fn bytes_in_json(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' => 2,
        c if c.is_control() => 6,
        c => c.len_utf8(),
    }
}

fn bytes_in_form(c: char) -> usize {
    match c {
        ' ' | '*' | '-' | '.' | '_' => 1,
        c if c.is_ascii_alphanumeric() => 1,
        c => 3 * c.len_utf8(),
    }
}

fn cut(text: &str, most: usize, end: Option<&str>, cost: impl Fn(char) -> usize) -> String {
    let end = end.unwrap_or(ELLIPSIS);
    let room = most.checked_sub(end.chars().map(&cost).sum());
    // Where there is no room for an ellipsis there is none.
    let (end, room) = room.map_or(("", most), |room| (end, room));
    let (mut used, mut kept) = (0, 0);
    for (at, c) in text.char_indices() {
        used += cost(c);
        if used <= room {
            kept = at + c.len_utf8();
        }
        if used > most {
            return format!("{}{end}", &text[..kept]);
        }
    }
    text.to_owned()
}

/// How long a text is, as [`truncate_to`] counts.
fn units(text: Cow<'_, str>) -> usize {
    text.chars().map(char::len_utf16).sum()
}

fn bytes(text: Cow<'_, str>) -> usize {
    text.len()
}

/// Without line breaks.
fn one_line(text: Cow<'_, str>) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

/// As plain text in Slack's markup, where `<!channel>` would call everybody.
fn mrkdwn(text: Cow<'_, str>) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c => out.push(c),
        }
    }
    out
}

/// As a name or a value of a form.
fn form_encode(text: Cow<'_, str>) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// The JSON that the text is, as it is spelled, or the text as a JSON string. Not escaped again.
fn as_json(text: Cow<'_, str>) -> Value {
    let is_json = serde_json::from_str::<IgnoredAny>(&text).is_ok();
    Value::from_safe_string(match is_json {
        true => text.trim().to_owned(),
        false => {
            let mut out = String::with_capacity(text.len() + 2);
            json::write_text(&text, &mut out);
            out
        }
    })
}

/// What a JSON text says.
fn from_json(text: Cow<'_, str>) -> Result<Value, Error> {
    let wrong = || Error::new(ErrorKind::InvalidOperation, "this is not JSON");
    let read = Json::parse(text.as_bytes()).ok_or_else(wrong)?;
    Ok(value(&read))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn truncated(text: &str, most: usize) -> String {
        truncate_to(text.into(), most, None)
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(truncated("abcdef", 6), "abcdef");
        assert_eq!(truncated("abcdefg", 6), "abcde\u{2026}");
        // An emoji has two units.
        assert_eq!(truncated("\u{1f600}\u{1f600}", 4), "\u{1f600}\u{1f600}");
        assert_eq!(truncated("\u{1f600}\u{1f600}x", 4), "\u{1f600}\u{2026}");
        assert_eq!(truncated("\u{1f600}\u{1f600}", 2), "\u{2026}");
        assert_eq!(truncated("abc", 0), "");
        assert_eq!(truncate_to("abcdef".into(), 5, Some("...".into())), "ab...");
        assert_eq!(truncate_to("abcdef".into(), 2, Some("...".into())), "ab");
    }

    proptest! {
        #[test]
        fn what_is_cut_keeps_the_limit(text in "\\PC{0,40}|[\\x00-\\xff]{0,40}", most in 0usize..60) {
            let short = truncated(&text, most);
            prop_assert!(units(short.as_str().into()) <= most);
            prop_assert_eq!(short == text, units(text.as_str().into()) <= most);
            let in_json = fit(text.as_str().into(), most, None, None).unwrap();
            prop_assert!(serde_json::to_string(&in_json).unwrap().len() - 2 <= most);
            let in_form = fit(text.as_str().into(), most, Some("form".into()), None).unwrap();
            prop_assert!(form_encode(in_form.into()).len() <= most);
        }
    }

    #[test]
    fn texts_are_encoded_for_what_they_are_put_into() {
        assert_eq!(
            mrkdwn("<!channel> a & b".into()),
            "&lt;!channel&gt; a &amp; b"
        );
        assert_eq!(form_encode("a b&c=\u{e4}".into()), "a+b%26c%3D%C3%A4");
        assert_eq!(one_line(" a\r\n\n b\n".into()), "a b");
        assert_eq!(
            as_json(" {\"a\": 1.10}\n".into()).to_string(),
            "{\"a\": 1.10}"
        );
        assert_eq!(
            as_json("no \"json\"".into()).to_string(),
            "\"no \\\"json\\\"\""
        );
        assert_eq!(from_json("[1]".into()).unwrap().len(), Some(1));
        assert!(from_json("[".into()).is_err());
    }
}
