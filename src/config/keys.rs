//! The keys of the config: one table from which the reader knows what to accept, and from which
//! the JSON Schema and the tables of docs/configuration.md are made.

mod adapters;
mod auth;
mod brokers;
mod cases;
mod decode;
mod endpoints;
mod general;
mod handshake;
mod payload;
mod signature;
mod sources;
mod subscriptions;
mod telemetry;
mod tenants;

use std::fmt;

pub use adapters::*;
pub use auth::*;
pub use brokers::*;
pub use cases::*;
pub use decode::*;
pub use endpoints::*;
pub use general::*;
pub use handshake::*;
pub use payload::*;
pub use signature::*;
pub use sources::*;
pub use subscriptions::*;
pub use telemetry::*;
pub use tenants::*;

/// In place of a default.
pub const MANDATORY: &str = "mandatory";

const U32: u64 = u32::MAX as u64;
pub const CONCURRENCY: (u64, u64) = (1, 10_000);
pub const WINDOW: (u64, u64) = (1, 100_000);

/// A map with fixed keys.
#[derive(Debug)]
pub struct Section {
    /// The heading in the documentation; unique.
    pub name: &'static str,
    pub keys: &'static [Key],
}

#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub form: Form,
    /// As the documentation says it; empty where the key has none.
    pub default: &'static str,
    pub meaning: &'static str,
}

const fn key(name: &'static str, form: Form, default: &'static str, meaning: &'static str) -> Key {
    Key {
        name,
        form,
        default,
        meaning,
    }
}

/// What a key takes.
#[derive(Debug)]
pub enum Form {
    Text,
    /// A name of ours: it is a metric label and part of queue names.
    Name,
    Bool,
    /// Whole numbers of this range.
    Integer(u64, u64),
    /// Numbers of this range.
    Number(f64, f64),
    Duration,
    Bytes,
    Rate,
    /// A status, or a range of them.
    Status,
    OneOf(&'static [&'static str]),
    List(&'static Form),
    /// Free keys.
    Map(&'static Form),
    /// Names of the operator's choice.
    Named(&'static Section),
    Section(&'static Section),
    /// Exactly one of the section's keys.
    One(&'static Section),
    Either(&'static Form, &'static Form),
    /// Any YAML map.
    Any,
    /// Text, or anything that JSON has.
    Json,
    /// A map without keys.
    Empty,
}

impl Section {
    pub fn has(&self, name: &str) -> bool {
        self.keys.iter().any(|key| key.name == name)
    }

    /// This section and all below it, in reading order, each once.
    pub fn all(&'static self) -> Vec<&'static Section> {
        let mut found = vec![self];
        let mut at = 0;
        while at < found.len() {
            let below: Vec<_> = found[at]
                .keys
                .iter()
                .filter_map(|key| key.form.section())
                .collect();
            for section in below {
                if !found.iter().any(|known| known.name == section.name) {
                    found.push(section);
                }
            }
            at += 1;
        }
        found
    }
}

impl Form {
    pub fn section(&self) -> Option<&'static Section> {
        match self {
            Self::Named(section) | Self::Section(section) | Self::One(section) => Some(section),
            Self::List(of) | Self::Map(of) => of.section(),
            Self::Either(a, b) => a.section().or(b.section()),
            _ => None,
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("text"),
            Self::Name => f.write_str("name"),
            Self::Bool => f.write_str("true or false"),
            Self::Integer(min, max) => write!(f, "whole number, {min} to {max}"),
            Self::Number(min, max) => write!(f, "number, {min} to {max}"),
            Self::Duration => f.write_str("duration"),
            Self::Bytes => f.write_str("bytes"),
            Self::Rate => f.write_str("rate"),
            Self::Status => f.write_str("statuses"),
            Self::OneOf(names) => {
                let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
                f.write_str(&names.join(", "))
            }
            Self::List(of) => write!(f, "list of {of}"),
            Self::Map(of) => write!(f, "map to {of}"),
            Self::Named(section) => write!(f, "map of names to {}", section.name),
            Self::Section(section) => f.write_str(section.name),
            Self::One(section) => write!(f, "one of {}", section.name),
            Self::Either(a, b) => write!(f, "{a}, or {b}"),
            Self::Any => f.write_str("map"),
            Self::Json => f.write_str("text, or JSON"),
            Self::Empty => f.write_str("`{}`"),
        }
    }
}

/// Every section of the config, in reading order.
pub fn keys() -> Vec<&'static Section> {
    TOP.all()
}
