//! Reading maps and values off the tree, and collecting what is wrong.
//!
//! A [`Map`] knows its section of the key table and reports keys that are unknown, twice there or
//! missing; a [`Field`] reads one value as what its key wants. Whoever reads gets `None` where a
//! problem was noted, goes on, and so finds the next problem.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::keys::Section;
use super::node::{Entry, Node, Scalar, Span, Typed, Value};
use super::values;

/// What all readers of one file share.
pub struct Notes<'a> {
    pub base_dir: &'a Path,
    found: RefCell<Found>,
}

/// What was noted while reading.
#[derive(Default)]
pub struct Found {
    pub problems: Vec<Noted>,
    /// Values that are not looked at (of unknown keys), so that nothing is known about their secrecy.
    pub unread: Vec<Span>,
}

#[derive(Debug)]
pub struct Noted {
    pub span: Span,
    pub message: String,
    pub help: Option<String>,
}

impl<'a> Notes<'a> {
    pub fn new(base_dir: &'a Path) -> Self {
        Self {
            base_dir,
            found: RefCell::default(),
        }
    }

    pub fn note(&self, span: Span, message: impl Into<String>, help: impl Into<Option<String>>) {
        let noted = Noted {
            span,
            message: message.into(),
            help: help.into(),
        };
        self.found.borrow_mut().problems.push(noted);
    }

    pub fn into_found(self) -> Found {
        self.found.into_inner()
    }

    fn unread(&self, node: &Node) {
        super::mask::scalars(node, &mut self.found.borrow_mut().unread);
    }
}

/// The known word that is nearest to `word`, if it is near enough to be meant.
fn nearest<'w>(word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let word = word.to_lowercase();
    known
        .into_iter()
        .map(|candidate| {
            (
                strsim::osa_distance(&word, &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, candidate)| {
            let shorter = candidate.len().min(word.len());
            *distance <= 1 + shorter / 4 && *distance < shorter
        })
        .min()
        .map(|(_, candidate)| candidate)
}

/// `did you mean ...?`, if a known word is near; else what there is to choose from.
pub fn suggestion<'w>(word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<String> {
    const MOST_LISTED: usize = 20;
    let known: Vec<&str> = known.into_iter().collect();
    match nearest(word, known.iter().copied()) {
        Some(near) => Some(format!("did you mean `{near}`?")),
        None if known.is_empty() || known.len() > MOST_LISTED => None,
        None => {
            let known: Vec<_> = known.iter().map(|word| format!("`{word}`")).collect();
            Some(format!("known here: {}", known.join(", ")))
        }
    }
}

/// A map with the keys of a section.
pub struct Map<'a> {
    notes: &'a Notes<'a>,
    section: &'static Section,
    entries: Vec<&'a Entry>,
    /// Keys that are there in a wrong spelling.
    misspelt: Vec<&'static str>,
    /// Where to point when a key is missing.
    pub span: Span,
}

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

impl<'a> Map<'a> {
    pub fn take(&self, key: &'static str) -> Option<Field<'a>> {
        debug_assert!(self.section.has(key), "`{key}` is not in the key table");
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        Some(Field {
            notes: self.notes,
            key,
            key_span: entry.key_span,
            node: &entry.node,
        })
    }

    pub fn need(&self, key: &'static str) -> Option<Field<'a>> {
        let field = self.take(key);
        if field.is_none() && !self.misspelt.contains(&key) {
            self.note(self.span, format!("`{key}` is missing"), None);
        }
        field
    }

    /// Whether one of `keys` seems to be meant by an unknown key, which has been noted.
    pub fn means_one_of(&self, keys: &[&str]) -> bool {
        self.misspelt.iter().any(|meant| keys.contains(meant))
    }

    pub fn has(&self, key: &'static str) -> bool {
        self.take(key).is_some()
    }

    pub fn note(&self, span: Span, message: impl Into<String>, help: impl Into<Option<String>>) {
        self.notes.note(span, message, help);
    }
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
        map(self.notes, self.node, self.key_span, section, self.key)
    }

    /// The entries of a map with free keys, those that are there twice noted and left out.
    pub fn entries(&self) -> Vec<Field<'a>> {
        let Value::Map(entries) = &self.node.value else {
            self.expected("a map");
            return Vec::new();
        };
        unique(self.notes, entries)
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

    pub fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }
}

/// Values of these keys are never repeated in a message.
fn sensitive(key: &str) -> bool {
    ["secrets", "urls", "url", "headers"].contains(&key)
}

/// Reads `node` as a map of `section`; unknown keys and second ones are noted.
pub fn map<'a>(
    notes: &'a Notes<'a>,
    node: &'a Node,
    span: Span,
    section: &'static Section,
    called: &str,
) -> Option<Map<'a>> {
    let Value::Map(entries) = &node.value else {
        let help = section
            .keys
            .iter()
            .map(|key| format!("`{}`", key.name))
            .collect::<Vec<_>>();
        notes.note(
            node.span,
            format!("`{called}` is a map, not {}", node.kind()),
            format!("its keys: {}", help.join(", ")),
        );
        return None;
    };
    let entries = unique(notes, entries);
    let mut misspelt = Vec::new();
    for entry in entries.iter().filter(|entry| !section.has(&entry.key)) {
        let known = || section.keys.iter().map(|key| key.name);
        match nearest(&entry.key, known()) {
            Some(near) => misspelt.push(near),
            // Nobody knows what this is, so it may be a secret.
            None => notes.unread(&entry.node),
        }
        let message = format!("unknown key `{}` in `{called}`", entry.key);
        notes.note(entry.key_span, message, suggestion(&entry.key, known()));
    }
    Some(Map {
        notes,
        section,
        entries,
        misspelt,
        span,
    })
}

fn unique<'a>(notes: &Notes<'_>, entries: &'a [Entry]) -> Vec<&'a Entry> {
    let mut seen: Vec<&Entry> = Vec::with_capacity(entries.len());
    let mut known = std::collections::HashSet::with_capacity(entries.len());
    for entry in entries {
        if known.insert(entry.key.as_str()) {
            seen.push(entry);
        } else {
            notes.note(
                entry.key_span,
                format!("`{}` is there twice", entry.key),
                "the first one stands further up in the same map".to_owned(),
            );
        }
    }
    seen
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
