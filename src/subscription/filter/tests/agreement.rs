//! Filters against a plain reading of them: any filter over any event says what an interpreter says
//! that walks through the filter as it is written, each time.

use std::cmp::Ordering;

use bytes::Bytes;
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{Filter, LazyJson};
use crate::event::{Event, EventId, HeaderValue};

/// What a path leads to.
enum Seen {
    Nothing,
    Json(Value),
    /// A header's text, which is compared as the filter's value is typed.
    Header(String),
}

impl Seen {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Json(value) => value.as_str(),
            Self::Header(text) => Some(text),
            Self::Nothing => None,
        }
    }
}

/// `None`: cannot be told, since the body is not JSON.
fn interpret(filter: &Value, event: &Event) -> Option<bool> {
    let each = filter
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| match key.as_str() {
            "$and" => every(value, |part| interpret(part, event)),
            "$or" => some(value, |part| interpret(part, event)),
            "$not" => interpret(value, event).map(|is| !is),
            path => Some(says(value, &seen(path, event)?)),
        });
    joined(each, false)
}

fn every(list: &Value, each: impl Fn(&Value) -> Option<bool>) -> Option<bool> {
    joined(list.as_array().unwrap().iter().map(each), false)
}

fn some(list: &Value, each: impl Fn(&Value) -> Option<bool>) -> Option<bool> {
    joined(list.as_array().unwrap().iter().map(each), true)
}

fn joined(answers: impl Iterator<Item = Option<bool>>, decisive: bool) -> Option<bool> {
    let answers: Vec<_> = answers.collect();
    if answers.contains(&Some(decisive)) {
        Some(decisive)
    } else if answers.contains(&None) {
        None
    } else {
        Some(!decisive)
    }
}

fn seen(path: &str, event: &Event) -> Option<Seen> {
    let text = |text: &str| Seen::Json(text.into());
    Some(match path {
        "id" => text(event.id.as_str()),
        "topic" => text(&event.topic),
        "type" => text(&event.kind),
        // Of one form and length, so that text has the order of times.
        "time" => event
            .published_at
            .map_or(Seen::Nothing, |time| text(&time.to_string())),
        "headers.h" => match event.headers.get("h") {
            None => Seen::Nothing,
            Some(HeaderValue::Null) => Seen::Json(Value::Null),
            Some(HeaderValue::Int(number)) => Seen::Header(number.to_string()),
            Some(HeaderValue::Bool(is)) => Seen::Header(is.to_string()),
            Some(HeaderValue::Bytes(bytes)) => {
                Seen::Header(String::from_utf8(bytes.to_vec()).unwrap())
            }
            Some(other) => panic!("{other:?}"),
        },
        path => {
            let body: Value = serde_json::from_slice(&event.body).ok()?;
            let mut steps = path.split('.').skip(1);
            let found = steps.try_fold(&body, |at, key| match at {
                Value::Array(list) => list.get(key.parse::<usize>().ok()?),
                at => at.get(key),
            });
            found.map_or(Seen::Nothing, |found| Seen::Json(found.clone()))
        }
    })
}

fn says(condition: &Value, seen: &Seen) -> bool {
    let Some(operators) = condition.as_object() else {
        return equal(seen, condition);
    };
    operators.iter().all(|(operator, value)| {
        let list = || value.as_array().unwrap().iter();
        let with_text = |holds: fn(&str, &str) -> bool| {
            let part = value.as_str().unwrap();
            seen.text().is_some_and(|text| holds(text, part))
        };
        match operator.as_str() {
            "$eq" => equal(seen, value),
            "$ne" => !equal(seen, value),
            "$in" => list().any(|value| equal(seen, value)),
            "$nin" => list().all(|value| !equal(seen, value)),
            "$gt" => order(seen, value).is_some_and(Ordering::is_gt),
            "$gte" => order(seen, value).is_some_and(Ordering::is_ge),
            "$lt" => order(seen, value).is_some_and(Ordering::is_lt),
            "$lte" => order(seen, value).is_some_and(Ordering::is_le),
            "$startsWith" => with_text(|text, part| text.starts_with(part)),
            "$endsWith" => with_text(|text, part| text.ends_with(part)),
            "$regex" => with_text(|text, regex| regex::Regex::new(regex).unwrap().is_match(text)),
            "$contains" => match seen {
                Seen::Json(Value::Array(entries)) => entries.iter().any(|entry| same(entry, value)),
                seen => match (seen.text(), value) {
                    (Some(text), Value::String(part)) => text.contains(part),
                    _ => false,
                },
            },
            "$exist" => !matches!(seen, Seen::Nothing) == value.as_bool().unwrap(),
            "$not" => !says(value, seen),
            "$and" => list().all(|part| says(part, seen)),
            "$or" => list().any(|part| says(part, seen)),
            other => panic!("{other}"),
        }
    })
}

fn equal(seen: &Seen, value: &Value) -> bool {
    match (seen, value) {
        (Seen::Nothing, _) => false,
        (Seen::Json(found), value) => same(found, value),
        (Seen::Header(text), Value::String(other)) => text == other,
        (Seen::Header(_), Value::Number(_)) => order(seen, value).is_some_and(Ordering::is_eq),
        (Seen::Header(text), Value::Bool(is)) => text == if *is { "true" } else { "false" },
        (Seen::Header(_), _) => false,
    }
}

/// Equal, where `1` and `1.0` are one number.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let has = |(key, value)| other.get(key).is_some_and(|other| same(value, other));
            one.len() == other.len() && one.iter().all(has)
        }
        (one, other) => one == other,
    }
}

fn order(seen: &Seen, value: &Value) -> Option<Ordering> {
    match value {
        Value::Number(other) => {
            let number = match seen {
                Seen::Json(value) => value.as_f64()?,
                Seen::Header(text) => text.parse().ok()?,
                Seen::Nothing => return None,
            };
            number.partial_cmp(&other.as_f64()?)
        }
        Value::String(other) => Some(seen.text()?.cmp(other)),
        _ => None,
    }
}

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        (-2i64..3).prop_map(Value::from),
        (-4i32..6).prop_map(|half| json!(f64::from(half) / 2.0)),
    ]
}

fn text() -> impl Strategy<Value = Value> {
    "[ab1]{0,2}".prop_map(Value::from)
}

fn scalar() -> impl Strategy<Value = Value> {
    let others = prop_oneof![any::<bool>().prop_map(Value::from), Just(Value::Null)];
    prop_oneof![number(), text(), others]
}

fn body() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[ab0]", inner, 0..3).prop_map(|map| json!(map)),
        ]
    })
}

fn time() -> impl Strategy<Value = Value> {
    (0..4).prop_map(|second| Value::from(format!("2026-03-01T12:00:0{second}Z")))
}

/// One of `operators` over one of `values`.
fn with<S: Strategy<Value = Value> + 'static>(
    operators: &'static [&'static str],
    values: S,
) -> BoxedStrategy<Value> {
    (prop::sample::select(operators), values)
        .prop_map(|(operator, value)| json!({operator: value}))
        .boxed()
}

/// Conditions that compare with any of `values`, and for the size of one with any of `sizes`.
fn comparing(values: BoxedStrategy<Value>, sizes: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    // An object as it stands would be operators.
    let plain = values.clone().prop_map(|value| match value {
        Value::Object(_) => json!({"$eq": value}),
        value => value,
    });
    let lists = prop::collection::vec(values.clone(), 1..4).prop_map(Value::from);
    prop_oneof![
        plain,
        with(&["$eq", "$ne"], values),
        with(&["$gt", "$gte", "$lt", "$lte"], sizes),
        with(&["$in", "$nin"], lists),
        with(&["$exist"], any::<bool>().prop_map(Value::from)),
    ]
    .boxed()
}

fn of_text() -> BoxedStrategy<Value> {
    let regexes = prop::sample::select(vec!["", "^a", "b$", "a|1", "^[ab]$", "a.", "^(a|b)+$"]);
    prop_oneof![
        with(&["$startsWith", "$endsWith"], text()),
        with(&["$regex"], regexes.prop_map(Value::from)),
    ]
    .boxed()
}

/// `leaf`, in itself.
fn nested(leaf: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    leaf.prop_recursive(3, 8, 3, |inner| {
        let list = prop::collection::vec(inner.clone(), 1..3).prop_map(Value::from);
        prop_oneof![with(&["$not"], inner), with(&["$and", "$or"], list)]
    })
    .boxed()
}

/// A path, and what may be said of it.
fn condition() -> BoxedStrategy<(&'static str, Value)> {
    let data = prop::sample::select(vec![
        "data",
        "data.a",
        "data.b",
        "data.0",
        "data.a.0",
        "data.a.b",
        "data.a.0.b",
    ]);
    let sizes = prop_oneof![number(), text()].boxed();
    let of_data = prop_oneof![
        3 => comparing(body().boxed(), sizes.clone()),
        1 => of_text(),
        1 => with(&["$contains"], body()),
    ];
    let names = prop::sample::select(vec!["id", "topic", "type"]);
    let of_names = prop_oneof![
        2 => comparing(text().boxed(), text().boxed()),
        1 => of_text(),
        1 => with(&["$contains"], text()),
    ];
    let of_headers = prop_oneof![
        2 => comparing(scalar().boxed(), sizes),
        1 => of_text(),
        1 => with(&["$contains"], text()),
    ];
    let of_time = comparing(time().boxed(), time().boxed());
    prop_oneof![
        4 => (data, nested(of_data.boxed())),
        2 => (names, nested(of_names.boxed())),
        2 => (Just("headers.h"), nested(of_headers.boxed())),
        1 => (Just("time"), nested(of_time)),
    ]
    .boxed()
}

fn filter() -> BoxedStrategy<Value> {
    let conditions = prop::collection::vec(condition(), 1..3);
    let leaf = conditions.prop_map(|list| {
        let map: std::collections::BTreeMap<_, _> = list.into_iter().collect();
        json!(map)
    });
    nested(leaf.boxed())
}

fn header() -> impl Strategy<Value = Option<HeaderValue>> {
    prop_oneof![
        Just(None),
        Just(Some(HeaderValue::Null)),
        any::<bool>().prop_map(|is| Some(HeaderValue::Bool(is))),
        (-2i64..3).prop_map(|number| Some(HeaderValue::Int(number))),
        prop::sample::select(vec!["", "a", "ab", "b1", "1", "-2", "1.5", "true"])
            .prop_map(|text| Some(HeaderValue::text(text))),
    ]
}

prop_compose! {
    fn event()(
        id in "[ab1]{1,2}",
        topic in "[ab1]{0,2}",
        kind in "[ab1]{0,2}",
        second in prop::option::weighted(0.8, 0i64..4),
        header in header(),
        body in prop::option::weighted(0.9, body()),
    ) -> Event {
        let text = body.map_or("not json".to_owned(), |body| body.to_string());
        let mut event = super::event(&text);
        event.id = EventId::kept(&id).unwrap();
        event.topic = topic.into();
        event.kind = kind.into();
        let noon: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let at = |second| Timestamp::from_second(noon.as_second() + second).unwrap();
        event.published_at = second.map(at);
        event.headers = Default::default();
        if let Some(value) = header {
            event.headers.push("h", value);
        }
        event.body = Bytes::from(text);
        event
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn filters_agree_with_the_plain_reading(filter in filter(), event in event()) {
        let body = LazyJson::new(&event.body);
        let compiled = Filter::compile(&filter).unwrap();
        let plain = interpret(&filter, &event);
        prop_assert_eq!(
            compiled.matches(&event, &body),
            plain == Some(true),
            "{} over {:?}", filter, event
        );
        // What could be told without the body has been.
        prop_assert!(plain.is_some() || compiled.needs_data(), "{}", filter);
    }

    #[test]
    fn no_filter_panics(filter in body()) {
        let _ = Filter::compile(&filter);
    }
}
