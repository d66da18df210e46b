//! Reading maps off the tree, and collecting what is wrong.
//!
//! A [`Map`] knows its section of the key table and reports keys that are unknown, twice there or
//! missing; a [`Field`] reads one value. Whoever reads gets `None` where a problem was noted, goes
//! on, and so finds the next problem.

use std::cell::RefCell;
use std::path::Path;

use super::field::Field;
use super::keys::Section;
use super::node::{Entry, Node, Span, Value};

/// What all readers of one file share.
pub struct Notes<'a> {
    pub base_dir: &'a Path,
    /// The file, which spans are of.
    pub text: &'a str,
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
    pub fn new(base_dir: &'a Path, text: &'a str) -> Self {
        Self {
            base_dir,
            text,
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

    pub fn unread(&self, node: &Node) {
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

/// Reads `node` as a map of `section`; unknown keys and second ones are noted.
pub fn map<'a>(
    notes: &'a Notes<'a>,
    node: &'a Node,
    span: Span,
    section: &'static Section,
    called: &str,
) -> Option<Map<'a>> {
    let Value::Map(entries) = &node.value else {
        let keys = section.keys.iter().map(|key| format!("`{}`", key.name));
        let help = match section.keys {
            [] => "write `{}`".to_owned(),
            _ => format!("its keys: {}", keys.collect::<Vec<_>>().join(", ")),
        };
        notes.note(
            node.span,
            format!("`{called}` is a map, not {}", node.kind()),
            help,
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

pub fn unique<'a>(notes: &Notes<'_>, entries: &'a [Entry]) -> Vec<&'a Entry> {
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
