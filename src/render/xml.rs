//! `xml`: JSON as XML, by one rule. What is XML already passes through.
//!
//! A member of an object is an element of its name; one whose name begins with `@` and whose value
//! is a scalar is an attribute of the element around it, and `#text` is that element's text. A list
//! is its element once for each entry; a list inside a list has elements of the name that the
//! config gives (`item`). `null` is an empty element. A character that a name cannot have is
//! written `_x0020_`, as .NET does; one that XML cannot carry at all (most control characters)
//! becomes U+FFFD.

use std::collections::HashSet;
use std::fmt::Write as _;

use http::HeaderValue;

use super::json::Json;
use super::{Formed, LONGEST_BODY, Piece, RenderError, headers};
use crate::subscription::XmlNames;

const XML: HeaderValue = HeaderValue::from_static("application/xml; charset=utf-8");
const DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

pub(super) fn form(names: &XmlNames, piece: &Piece<'_>) -> Result<Formed, RenderError> {
    let data = piece.data();
    if let Some(content_type) = passes(piece.said_type(), &data.bytes) {
        return Ok(Formed {
            content_encoding: piece.coding().and_then(headers::value),
            ..Formed::of(data.bytes.clone(), content_type)
        });
    }
    let json = data.json()?;
    let mut out = String::with_capacity(DECLARATION.len() + 2 * data.bytes.len());
    out.push_str(DECLARATION);
    let writer = Writer { item: &names.item };
    match json {
        Json::List(_) => writer.around(&names.root, json, &mut out),
        json => writer.element(&names.root, json, &mut out),
    }
    if out.len() > LONGEST_BODY {
        return Err(RenderError::too_long());
    }
    Ok(Formed::of(out, XML))
}

/// The content type of a message that is XML: by its own, or because it begins like that.
fn passes(content_type: Option<&str>, body: &[u8]) -> Option<HeaderValue> {
    let given = content_type.unwrap_or_default();
    let essence = super::essence(given).to_ascii_lowercase();
    if essence.ends_with("/xml") || essence.ends_with("+xml") {
        return Some(headers::value(given).unwrap_or(XML));
    }
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    (body.trim_ascii_start().first() == Some(&b'<')).then_some(XML)
}

/// Whether `name` can be an element's as it is.
pub fn is_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(begins_name) && characters.all(continues_name)
}

struct Writer<'a> {
    item: &'a str,
}

impl Writer<'_> {
    /// Nothing more is written once it is too long: names and escapes make more of a body than it is.
    fn element(&self, name: &str, json: &Json, out: &mut String) {
        if out.len() > LONGEST_BODY {
            return;
        }
        match json {
            Json::List(entries) => {
                for entry in entries {
                    match entry {
                        Json::List(_) => self.around(name, entry, out),
                        entry => self.element(name, entry, out),
                    }
                }
            }
            Json::Object(members) => self.object(name, members, out),
            scalar => {
                let text = scalar.plain().unwrap_or_default();
                open(name, out);
                if text.is_empty() {
                    return out.push_str("/>");
                }
                out.push('>');
                escape(text, out);
                close(name, out);
            }
        }
    }

    /// An element around the entries of a list, which has no name for them.
    fn around(&self, name: &str, list: &Json, out: &mut String) {
        open(name, out);
        out.push('>');
        self.element(self.item, list, out);
        close(name, out);
    }

    fn object(&self, name: &str, members: &[(Box<str>, Json)], out: &mut String) {
        open(name, out);
        let mut written: HashSet<&str> = HashSet::new();
        let mut inside = String::new();
        for (inner, member) in members {
            let attribute = inner.strip_prefix('@').filter(|name| !name.is_empty());
            match (attribute, member.plain()) {
                // An attribute that is there twice is no XML.
                (Some(attribute), Some(value)) if written.insert(attribute) => {
                    out.push(' ');
                    self::name(attribute, out);
                    out.push_str("=\"");
                    escape(value, out);
                    out.push('"');
                }
                (Some(_), Some(_)) => {}
                (None, Some(text)) if **inner == *"#text" => escape(text, &mut inside),
                _ => self.element(inner, member, &mut inside),
            }
        }
        if inside.is_empty() {
            return out.push_str("/>");
        }
        out.push('>');
        out.push_str(&inside);
        close(name, out);
    }
}

fn open(name: &str, out: &mut String) {
    out.push('<');
    self::name(name, out);
}

fn close(name: &str, out: &mut String) {
    out.push_str("</");
    self::name(name, out);
    out.push('>');
}

/// Writes a name, with what it cannot have in it as `_xHHHH_`.
fn name(given: &str, out: &mut String) {
    for (at, character) in given.char_indices() {
        let rest = &given[at..];
        let fits = match at {
            0 => begins_name(character),
            _ => continues_name(character),
        };
        // So that what looks like an escape is not taken for one.
        let like_one = rest.starts_with("_x") && rest.as_bytes().get(6) == Some(&b'_');
        match fits && !like_one {
            true => out.push(character),
            // Writing to a string does not fail.
            false => drop(write!(out, "_x{:04X}_", u32::from(character))),
        }
    }
    if given.is_empty() {
        out.push('_');
    }
}

/// A colon would be a prefix that nobody has declared.
fn begins_name(c: char) -> bool {
    matches!(c, 'A'..='Z' | 'a'..='z' | '_'
        | '\u{c0}'..='\u{d6}' | '\u{d8}'..='\u{f6}' | '\u{f8}'..='\u{2ff}'
        | '\u{370}'..='\u{37d}' | '\u{37f}'..='\u{1fff}' | '\u{200c}'..='\u{200d}'
        | '\u{2070}'..='\u{218f}' | '\u{2c00}'..='\u{2fef}' | '\u{3001}'..='\u{d7ff}'
        | '\u{f900}'..='\u{fdcf}' | '\u{fdf0}'..='\u{fffd}' | '\u{10000}'..='\u{effff}')
}

fn continues_name(c: char) -> bool {
    begins_name(c)
        || matches!(c, '-' | '.' | '0'..='9' | '\u{b7}' | '\u{300}'..='\u{36f}' | '\u{203f}'..='\u{2040}')
}

/// Text as it may stand between tags and in attributes.
fn escape(text: &str, out: &mut String) {
    for character in text.chars() {
        match character {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            // A parser would make spaces or line feeds of them.
            '\t' => out.push_str("&#9;"),
            '\n' => out.push_str("&#10;"),
            '\r' => out.push_str("&#13;"),
            ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'.. => out.push(character),
            _ => out.push('\u{fffd}'),
        }
    }
}
