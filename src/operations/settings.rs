//! Settings: what reading the config again has changed, and what it has not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What came of reading the config again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reloaded {
    /// The first digits of the file's SHA-256.
    pub hash: String,
    pub subscriptions: Differences,
    pub endpoints: Differences,
    pub sources: Differences,
    /// Parts of the config that differ from what runs, and that only a restart changes.
    pub needs_restart: Vec<String>,
}

impl Reloaded {
    /// Whether the file says what is in force already.
    pub fn is_unchanged(&self) -> bool {
        let all = [&self.subscriptions, &self.endpoints, &self.sources];
        all.iter().all(|differences| differences.is_empty()) && self.needs_restart.is_empty()
    }
}

/// Names, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Differences {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
}

impl Differences {
    pub fn between<T: PartialEq>(
        before: &BTreeMap<Arc<str>, T>,
        after: &BTreeMap<Arc<str>, T>,
    ) -> Self {
        let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        let mut differences = Self::default();
        for name in names {
            let into = match (before.get(name), after.get(name)) {
                (None, _) => &mut differences.added,
                (_, None) => &mut differences.removed,
                (Some(before), Some(after)) if before != after => &mut differences.changed,
                _ => continue,
            };
            into.push(name.to_string());
        }
        differences
    }

    pub fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }

    /// Every name that is not as it was.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        let all = self.added.iter().chain(&self.changed).chain(&self.removed);
        all.map(String::as_str)
    }
}

/// Why the config that was in force still is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReloaded {
    #[error("this bridge runs without a config file")]
    NoFile,
    /// What is wrong with the file.
    #[error("the config file has {}: {}", counted(.0.len()), joined(.0))]
    Invalid(Vec<Flaw>),
    #[error("{0}")]
    Failed(String),
}

/// Something that is wrong in a config file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub message: String,
    pub help: Option<String>,
}

/// As many are said in one line at the most.
const MOST_SAID: usize = 20;

fn joined(flaws: &[Flaw]) -> String {
    let said = flaws.iter().take(MOST_SAID);
    let said = said.map(|flaw| format!("{}:{}: {}", flaw.line, flaw.column, flaw.message));
    let more = (flaws.len() > MOST_SAID).then(|| "and more".to_owned());
    said.chain(more).collect::<Vec<_>>().join("; ")
}

fn counted(problems: usize) -> String {
    match problems {
        1 => "a problem".to_owned(),
        many => format!("{many} problems"),
    }
}

/// A source, and whether somebody has paused it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Intake {
    pub name: String,
    pub paused: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_as_it_was_is_named() {
        let map = |of: &[(&str, u8)]| -> BTreeMap<Arc<str>, u8> {
            of.iter()
                .map(|(name, value)| ((*name).into(), *value))
                .collect()
        };
        let found = Differences::between(
            &map(&[("gone", 1), ("kept", 1), ("turned", 1)]),
            &map(&[("kept", 1), ("new", 1), ("turned", 2)]),
        );
        assert_eq!(found.all().collect::<Vec<_>>(), ["new", "turned", "gone"]);
        assert!(Differences::between(&map(&[("a", 1)]), &map(&[("a", 1)])).is_empty());
    }
}
