//! Reading one value as what its key wants, and saying so where it is something else.
//!
//! No message shows what was put in by substitution.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::keys::Section;
use super::node::{Node, Scalar, Span, Typed, Value};
use super::reader::{self, Map, Notes, suggestion};
use super::values;

/// A value and the key it stands under.
#[derive(Clone, Copy)]
pub struct Field<'a> {
    pub notes: &'a Notes<'a>,
    pub key: &'a str,
    pub key_span: Span,
    pub node: &'a Node,
}

/// A name of the operator's choice, and where it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    pub text: Arc<str>,
    pub span: Span,
    /// As messages may show it, between backticks.
    pub shown: String,
}

impl<'a> Field<'a> {
    pub fn span(&self) -> Span {
        self.node.span
    }

    /// Notes a problem of the value.
    pub fn note(&self, message: impl Into<String>, help: impl Into<Option<String>>) {
        self.notes.note(self.node.span, message, help);
    }

    /// Notes a problem of the key.
    pub fn note_key(&self, message: impl Into<String>, help: impl Into<Option<String>>) {
        self.notes.note(self.key_span, message, help);
    }

    fn expected(&self, what: &str) {
        self.note(
            format!("`{}` is {what}, not {}", self.key, self.node.kind()),
            None,
        );
    }

    /// Notes that the value is not what it should be, without showing what was put in for it.
    fn wrong(&self, scalar: &Scalar, what: &str) {
        if scalar.written.is_empty() {
            return self.note(format!("`{}` is empty", self.key), format!("give {what}"));
        }
        self.note(format!("{} is not {what}", shown(scalar)), None);
    }

    /// The value as text with its spelling; numbers are text too, where text is wanted.
    fn scalar(&self, what: &str) -> Option<&'a Scalar> {
        match &self.node.value {
            Value::Scalar(scalar) if !matches!(scalar.typed, Typed::Bool(_)) => Some(scalar),
            Value::Scalar(_) => {
                self.note(
                    format!("`{}` is {what}, not true or false", self.key),
                    "put it in quotes if the word is meant".to_owned(),
                );
                None
            }
            _ => {
                self.expected(what);
                None
            }
        }
    }

    /// Text that is not empty. `expose` of a secret is up to the caller: nothing here shows it.
    pub fn text(&self) -> Option<&'a str> {
        let scalar = self.scalar("text")?;
        if scalar.text.is_empty() {
            self.note(format!("`{}` is empty", self.key), None);
            return None;
        }
        Some(&scalar.text)
    }

    pub fn text_or_empty(&self) -> Option<&'a str> {
        Some(&self.scalar("text")?.text)
    }

    /// Whether the value came from the environment or a file.
    pub fn is_substituted(&self) -> bool {
        matches!(&self.node.value, Value::Scalar(scalar) if scalar.substituted)
    }

    /// The value as messages may show it.
    pub fn shown(&self) -> String {
        match &self.node.value {
            Value::Scalar(scalar) => shown(scalar),
            _ => self.node.kind().to_owned(),
        }
    }

    pub fn bool(&self) -> Option<bool> {
        match &self.node.value {
            Value::Scalar(Scalar {
                typed: Typed::Bool(value),
                ..
            }) => Some(*value),
            Value::Scalar(scalar) => match scalar.text.as_str() {
                "true" => Some(true),
                "false" => Some(false),
                _ => {
                    self.wrong(scalar, "`true` or `false`");
                    None
                }
            },
            _ => {
                self.expected("`true` or `false`");
                None
            }
        }
    }

    pub fn integer(&self, (min, max): (u64, u64)) -> Option<u64> {
        let what = format!("a whole number from {min} to {max}");
        let scalar = self.scalar(&what)?;
        let value = match scalar.typed {
            Typed::Integer(value) => u64::try_from(value).ok(),
            Typed::Text => scalar.text.trim().parse().ok(),
            _ => None,
        };
        let value = value.filter(|value| (min..=max).contains(value));
        if value.is_none() {
            self.wrong(scalar, &what);
        }
        value
    }

    pub fn number(&self, (min, max): (f64, f64)) -> Option<f64> {
        let what = format!("a number from {min} to {max}");
        let scalar = self.scalar(&what)?;
        let value = match scalar.typed {
            Typed::Integer(value) => Some(value as f64),
            Typed::Float(value) => Some(value),
            Typed::Text => scalar.text.trim().parse().ok(),
            Typed::Bool(_) => None,
        };
        let value = value.filter(|value| (min..=max).contains(value));
        if value.is_none() {
            self.wrong(scalar, &what);
        }
        value
    }

    pub fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let scalar = self.scalar("a duration such as `5s` or `1m30s`")?;
        let Some(value) = values::duration(&scalar.text) else {
            self.wrong(
                scalar,
                "a duration such as `250ms`, `5s`, `1m30s`, `2h` or `4d`",
            );
            return None;
        };
        if !range.contains(&value) {
            let (min, max) = (
                values::spell_duration(*range.start()),
                values::spell_duration(*range.end()),
            );
            self.note(format!("`{}` must be from {min} to {max}", self.key), None);
            return None;
        }
        Some(value)
    }

    pub fn bytes(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let scalar = self.scalar("a size such as `16MiB`")?;
        let Some(value) = values::bytes(&scalar.text) else {
            self.wrong(scalar, "a size such as `1024`, `16MiB` or `1GB`");
            return None;
        };
        if !range.contains(&value) {
            self.note(
                format!(
                    "`{}` must be from {} to {} bytes",
                    self.key,
                    range.start(),
                    range.end()
                ),
                None,
            );
            return None;
        }
        Some(value)
    }

    /// Text read by the type itself, whose own words are shown unless they would show a secret.
    pub fn parsed<T: FromStr>(&self, what: &str) -> Option<T>
    where
        T::Err: std::fmt::Display,
    {
        let scalar = self.scalar(what)?;
        match scalar.text.parse() {
            Ok(value) => Some(value),
            Err(_) if scalar.substituted => {
                self.wrong(scalar, what);
                None
            }
            Err(error) => {
                self.note(error.to_string(), None);
                None
            }
        }
    }

    /// One of these words.
    pub fn one_of(&self, words: &[&'static str]) -> Option<&'static str> {
        let scalar = self.scalar("one word")?;
        let found = words.iter().find(|word| **word == scalar.text);
        if found.is_none() {
            let help = if scalar.substituted {
                None
            } else {
                suggestion(&scalar.text, words.iter().copied())
            };
            self.note(
                format!("{} is not a value of `{}`", shown(scalar), self.key),
                help,
            );
        }
        found.copied()
    }

    /// A path, relative to the config file's folder.
    pub fn path(&self) -> Option<PathBuf> {
        self.text().map(|path| self.notes.base_dir.join(path))
    }

    pub fn list(&self) -> Vec<Field<'a>> {
        match &self.node.value {
            Value::List(items) => items
                .iter()
                .map(|node| Field {
                    node,
                    key_span: node.span,
                    ..*self
                })
                .collect(),
            Value::Scalar(scalar) => {
                self.note(
                    format!("`{}` is a list, not one value", self.key),
                    Some(format!("write `[{}]`", scalar.written))
                        .filter(|_| !scalar.substituted && !sensitive(self.key)),
                );
                Vec::new()
            }
            _ => {
                self.expected("a list");
                Vec::new()
            }
        }
    }

    /// A list with something in it.
    pub fn full_list(&self) -> Vec<Field<'a>> {
        if matches!(&self.node.value, Value::List(items) if items.is_empty()) {
            self.note(format!("`{}` is empty", self.key), None);
        }
        self.list()
    }

    /// A map with the keys of `section`.
    pub fn map(&self, section: &'static Section) -> Option<Map<'a>> {
        reader::map(self.notes, self.node, self.key_span, section, self.key)
    }

    /// The entries of a map with free keys, those that are there twice noted and left out.
    pub fn entries(&self) -> Vec<Field<'a>> {
        let Value::Map(entries) = &self.node.value else {
            self.expected("a map");
            return Vec::new();
        };
        reader::unique(self.notes, entries)
            .into_iter()
            .map(|entry| Field {
                notes: self.notes,
                key: &entry.key,
                key_span: entry.key_span,
                node: &entry.node,
            })
            .collect()
    }

    /// The entries of a map whose keys are names of the operator's choice.
    pub fn named(&self) -> Vec<(Name, Field<'a>)> {
        self.entries()
            .into_iter()
            .map(|field| {
                check_name(field.key, field.key_span, self.notes);
                let shown = format!("`{}`", field.key);
                (
                    Name {
                        text: field.key.into(),
                        span: field.key_span,
                        shown,
                    },
                    field,
                )
            })
            .collect()
    }

    /// The value as a name.
    pub fn name(&self) -> Option<Name> {
        let text = self.text()?;
        if !self.is_substituted() {
            check_name(text, self.node.span, self.notes);
        } else if !is_name(text) {
            self.note(
                format!("{} is not a name", self.shown()),
                NAME_HELP.to_owned(),
            );
        }
        // A name that was put in is called by what put it in.
        let shown = self.shown().trim_start_matches(PUT_IN).to_owned();
        Some(Name {
            text: text.into(),
            span: self.node.span,
            shown,
        })
    }

    /// The entry of this key, if the value is a map that has one.
    pub fn child(&self, key: &'a str) -> Option<Field<'a>> {
        let Value::Map(entries) = &self.node.value else {
            return None;
        };
        let entry = entries.iter().find(|entry| entry.key == key)?;
        Some(Field {
            notes: self.notes,
            key,
            key_span: entry.key_span,
            node: &entry.node,
        })
    }

    pub fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    pub fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }
}

/// Values of these keys are never repeated in a message.
fn sensitive(key: &str) -> bool {
    ["secrets", "urls", "url", "headers"].contains(&key)
}

const PUT_IN: &str = "the value of ";

/// The value between backticks, or what was put in by its name, without a default.
fn shown(scalar: &Scalar) -> String {
    const LONGEST: usize = 60;
    let written = match scalar.written.split_once(":-") {
        Some((name, _)) if scalar.substituted => &format!("{name}}}"),
        _ => &scalar.written,
    };
    // One line, whatever the value is.
    let line: String = written
        .chars()
        .take(LONGEST)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let more = if written.chars().count() > LONGEST {
        "..."
    } else {
        ""
    };
    let value = format!("`{line}{more}`");
    if scalar.substituted {
        format!("{PUT_IN}{value}")
    } else {
        value
    }
}

const NAME_HELP: &str =
    "a name is a lower-case letter and up to 62 more of `a-z`, `0-9`, `_`, `.` and `-`";

fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-".contains(c);
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(allowed)
}

fn check_name(text: &str, span: Span, notes: &Notes<'_>) {
    if !is_name(text) {
        notes.note(
            span,
            format!("`{text}` is not a name"),
            NAME_HELP.to_owned(),
        );
    }
}
