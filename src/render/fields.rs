//! `fields`: which parts of a JSON body leave at all.
//!
//! What is not kept, dropped or masked stays as it was written. The paths are of the body as it
//! came, whatever the format then makes of it.

use super::json::Json;
use crate::subscription::{FieldPath, Fields, Step};

/// Stands where something was masked.
const MASK: &str = "***";

/// `body` with what `fields` lets through.
pub(super) fn apply(fields: &Fields, body: &Json) -> Json {
    let mut left = match fields.keep.is_empty() {
        true => body.clone(),
        false => {
            let paths: Vec<_> = steps(&fields.keep).collect();
            keep(body, &paths).unwrap_or_else(|| Json::Object(Vec::new()))
        }
    };
    for path in steps(&fields.drop) {
        change(&mut left, path, Change::Drop);
    }
    for path in steps(&fields.mask) {
        change(&mut left, path, Change::Mask);
    }
    left
}

fn steps(paths: &[FieldPath]) -> impl Iterator<Item = &[Step]> {
    paths.iter().map(|FieldPath(steps)| &**steps)
}

/// What of `json` the paths lead to; `None` when that is nothing.
fn keep(json: &Json, paths: &[&[Step]]) -> Option<Json> {
    if paths.iter().any(|path| path.is_empty()) {
        return Some(json.clone());
    }
    match json {
        Json::Object(members) => {
            let kept = members.iter().filter_map(|(name, member)| {
                let below: Vec<_> = paths
                    .iter()
                    .filter(|path| is_member(&path[0], name))
                    .map(|path| &path[1..])
                    .collect();
                let kept = keep(member, &below).filter(|_| !below.is_empty())?;
                Some((name.clone(), kept))
            });
            let kept: Vec<_> = kept.collect();
            (!kept.is_empty()).then_some(Json::Object(kept))
        }
        Json::List(entries) => {
            let kept = entries.iter().enumerate().filter_map(|(number, entry)| {
                let below: Vec<_> = paths
                    .iter()
                    .filter_map(|path| at_entry(path, number))
                    .collect();
                keep(entry, &below).filter(|_| !below.is_empty())
            });
            let kept: Vec<_> = kept.collect();
            (!kept.is_empty()).then_some(Json::List(kept))
        }
        _ => None,
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Change {
    Drop,
    Mask,
}

fn change(json: &mut Json, path: &[Step], to: Change) {
    let Some((step, below)) = path.split_first() else {
        return;
    };
    let last = below.is_empty();
    match json {
        Json::Object(members) if last && to == Change::Drop => {
            members.retain(|(name, _)| !is_member(step, name));
        }
        Json::Object(members) => {
            for (_, member) in members.iter_mut().filter(|(name, _)| is_member(step, name)) {
                match last {
                    true => *member = Json::Text(MASK.into()),
                    false => change(member, below, to),
                }
            }
        }
        Json::List(entries) => {
            let mut number = 0;
            entries.retain_mut(|entry| {
                let rest = at_entry(path, number);
                number += 1;
                match rest {
                    None => {}
                    Some([]) if to == Change::Drop => return false,
                    Some([]) => *entry = Json::Text(MASK.into()),
                    Some(rest) => change(entry, rest, to),
                }
                true
            });
        }
        _ => {}
    }
}

fn is_member(step: &Step, name: &str) -> bool {
    match step {
        Step::Any => true,
        Step::Named(wanted) => **wanted == *name,
    }
}

/// What is left of a path in the entry of this number: a name that is no number goes into each.
fn at_entry(path: &[Step], number: usize) -> Option<&[Step]> {
    match &path[0] {
        Step::Any => Some(&path[1..]),
        Step::Named(name) => match name.parse::<usize>() {
            Ok(wanted) => (wanted == number).then_some(&path[1..]),
            Err(_) => Some(path),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ORDER: &str = r#"{"id":7,"card":{"number":"4711","name":"Ada"},"items":[{"sku":"a","cost":1.50},{"sku":"b","cost":2}],"total":3.50,"tags":["x","y"]}"#;

    fn left(keep: &[&str], drop: &[&str], mask: &[&str], body: &str) -> String {
        let paths = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let fields = Fields {
            keep: paths(keep),
            drop: paths(drop),
            mask: paths(mask),
        };
        let mut out = String::new();
        apply(&fields, &Json::parse(body.as_bytes()).unwrap()).write(&mut out);
        out
    }

    #[test]
    fn only_what_is_kept_is_left() {
        insta::assert_snapshot!(
            left(&["data.total", "data.items.sku", "data.card.name"], &[], &[], ORDER),
            @r#"{"card":{"name":"Ada"},"items":[{"sku":"a"},{"sku":"b"}],"total":3.50}"#
        );
        insta::assert_snapshot!(left(&["data.items.1"], &[], &[], ORDER), @r#"{"items":[{"sku":"b","cost":2}]}"#);
        insta::assert_snapshot!(left(&["data.nothing"], &[], &[], ORDER), @"{}");
    }

    #[test]
    fn what_is_dropped_is_gone_in_every_entry() {
        insta::assert_snapshot!(
            left(&[], &["data.card", "data.items.cost", "data.tags.0"], &[], ORDER),
            @r#"{"id":7,"items":[{"sku":"a"},{"sku":"b"}],"total":3.50,"tags":["y"]}"#
        );
        insta::assert_snapshot!(left(&[], &["data.*"], &[], "[[1],2]"), @"[]");
    }

    #[test]
    fn what_is_masked_is_there_and_says_nothing() {
        insta::assert_snapshot!(
            left(&[], &[], &["data.card.*", "data.items.*.cost", "data.tags"], ORDER),
            @r#"{"id":7,"card":{"number":"***","name":"***"},"items":[{"sku":"a","cost":"***"},{"sku":"b","cost":"***"}],"total":3.50,"tags":"***"}"#
        );
    }

    #[test]
    fn a_name_that_is_there_twice_is_gone_twice() {
        insta::assert_snapshot!(left(&[], &["data.a"], &[], r#"{"a":1,"b":2,"a":3}"#), @r#"{"b":2}"#);
    }

    proptest! {
        /// Whatever the shape of the rest: a member that is dropped or masked anywhere is nowhere.
        #[test]
        fn a_dropped_member_is_never_left(shape in "(\\[|\\{\"a\":|\\{\"b\":){0,6}") {
            let mut body = shape.clone();
            body.push_str(r#"{"b":1,"secret":"s3cr3t"}"#);
            for open in shape.matches(['[', '{']).collect::<Vec<_>>().iter().rev() {
                body.push(if *open == "[" { ']' } else { '}' });
            }
            let names: Vec<_> = shape.matches(['a', 'b']).collect();
            let path = ["data"].iter().chain(&names).chain(&["secret"]).copied().collect::<Vec<_>>().join(".");
            prop_assert!(!left(&[], &[&path], &[], &body).contains("s3cr3t"), "{} {}", body, path);
            prop_assert!(!left(&[], &[], &[&path], &body).contains("s3cr3t"), "{} {}", body, path);
            prop_assert!(left(&[&path], &[], &[], &body).contains("s3cr3t"), "{} {}", body, path);
        }
    }
}
