//! Which topics a source wants: by name, or by a regular expression, never ours.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};
use regex::Regex;

use super::names;

/// One entry of a source's `topics:`.
#[derive(Debug, Clone)]
pub enum Wanted {
    Named(String),
    /// Begins with `^`.
    Matching(Regex),
}

impl Wanted {
    /// Errors: an expression that does not compile, a name that is one of our own topics.
    pub fn new(group: &str, entry: &str) -> anyhow::Result<Self> {
        if entry.starts_with('^') {
            let regex = Regex::new(entry).with_context(|| format!("topic pattern `{entry}`"))?;
            return Ok(Self::Matching(regex));
        }
        if names::is_reserved(group, entry) {
            bail!("topic `{entry}` belongs to the group itself and cannot be a source");
        }
        Ok(Self::Named(entry.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::Matching(regex) => regex.as_str(),
        }
    }

    pub fn is_pattern(&self) -> bool {
        matches!(self, Self::Matching(_))
    }

    pub fn wants(&self, group: &str, topic: &str) -> bool {
        !names::is_reserved(group, topic)
            && match self {
                Self::Named(name) => name == topic,
                Self::Matching(regex) => regex.is_match(topic),
            }
    }
}

/// What to subscribe to: the named topics, there or not, and those of `there` that match.
pub fn topics<'a>(
    group: &str,
    wanted: &[Wanted],
    there: impl Iterator<Item = &'a String>,
) -> BTreeSet<String> {
    let named = wanted.iter().filter_map(|wanted| match wanted {
        Wanted::Named(name) => Some(name.clone()),
        Wanted::Matching(_) => None,
    });
    let matching = there.filter(|topic| wanted.iter().any(|wanted| wanted.wants(group, topic)));
    named.chain(matching.cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_never_take_our_own_topics() {
        let all = [Wanted::new("g", "^.*").unwrap()];
        let there = [
            "g.dead",
            "g.retry.5",
            "g.hold.1",
            "orders",
            "__consumer_offsets",
        ]
        .map(str::to_owned);
        let found = topics("g", &all, there.iter());
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["orders"]);
    }

    #[test]
    fn our_own_topics_are_refused_as_sources() {
        assert!(Wanted::new("g", "g.dead").is_err());
        assert!(Wanted::new("g", "^(").is_err());
        assert!(Wanted::new("g", "orders").is_ok());
    }
}
