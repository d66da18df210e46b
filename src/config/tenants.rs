//! Tenants: their names, how a source tells whose an event is, and what each may use.

use std::sync::Arc;

use super::brokers;
use super::field::Field;
use super::keys;
use super::reader::Map;
use crate::broker::TenantFrom;
use crate::subscription::{Labels, Quota, Quotas, Rate, TENANT_HELP, is_tenant};

/// Named ones are metric labels.
const MOST_NAMED: usize = 1_000;

/// The name of a tenant.
pub fn name(field: Field<'_>) -> Option<Arc<str>> {
    let text = field.text()?;
    if !is_tenant(text) {
        let message = format!("{} is not a tenant's name", field.shown());
        field.note(message, TENANT_HELP.to_owned());
        return None;
    }
    Some(text.into())
}

pub fn labels(field: Field<'_>) -> Labels {
    let labels = brokers::texts(field);
    if labels.len() > Labels::MOST {
        field.note_key(format!("more than {} labels", Labels::MOST), None);
    }
    let is_name = |text: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.-/".contains(&b);
        (1..=Labels::LONGEST_NAME).contains(&text.len()) && text.bytes().all(allowed)
    };
    let entries = match field.is_map() {
        true => field.entries(),
        // It is said already.
        false => Vec::new(),
    };
    for entry in entries {
        if !is_name(entry.key) {
            entry.note_key(
                "this is not a label's name",
                format!(
                    "1 to {} of `A-Z`, `a-z`, `0-9`, `_`, `.`, `/` and `-`",
                    Labels::LONGEST_NAME
                ),
            );
        } else if labels
            .get(entry.key)
            .is_some_and(|value| value.len() > Labels::LONGEST_VALUE)
        {
            let longest = Labels::LONGEST_VALUE;
            entry.note(format!("a label has {longest} bytes at most"), None);
        }
    }
    labels.into()
}

/// `tenant:` of a source.
pub fn from(field: Field<'_>, source: &Map<'_>) -> Option<TenantFrom> {
    let map = field.map(&keys::TENANT)?;
    let decode = source.take("decode");
    let given = (map.take("header"), map.take("json"), map.take("segment"));
    match given {
        (Some(header), None, None) => Some(TenantFrom::Header(header.text()?.to_owned())),
        (None, Some(path), None) => {
            let text = path.text()?;
            if text.split('.').any(str::is_empty) {
                let message = format!("{} is not a path such as `account.id`", path.shown());
                path.note(message, None);
                return None;
            }
            if decode.is_some() {
                path.note_key(
                    "the tenant is looked for in the message as it comes, which is decoded later",
                    "have producers say it in a header: `{ header: tenant }`".to_owned(),
                );
            }
            Some(TenantFrom::Json(text.to_owned()))
        }
        (None, None, Some(segment)) => {
            if let Some(topic) = source.take("topic") {
                topic.note_key(
                    "`topic` gives all events the same one, which cannot say whose they are",
                    "leave it out, or have producers say it in a header".to_owned(),
                );
            }
            let number = segment.integer(keys::SEGMENT)?;
            Some(TenantFrom::Segment(number as usize - 1))
        }
        _ => {
            map.note(
                map.span,
                "`tenant` has exactly one of `header`, `json` and `segment`",
                "such as `{ header: tenant }`, `{ json: account.id }` or `{ segment: 1 }`"
                    .to_owned(),
            );
            None
        }
    }
}

/// `tenants:`. What a named one says nothing of is as in `defaults`.
pub fn quotas(map: Option<&Map<'_>>) -> Quotas {
    let Some(map) = map else {
        return Quotas::default();
    };
    let read = |field: Field<'_>| field.map(&keys::QUOTA).map(|map| quota(&map));
    let defaults = map.take("defaults").and_then(read).unwrap_or_default();
    let named = map.take("named").map(|field| field.entries());
    let named = named.unwrap_or_default();
    if named.len() > MOST_NAMED
        && let Some(field) = map.take("named")
    {
        let message = format!("more than {MOST_NAMED} tenants, each of which is a metric label");
        field.note_key(
            message,
            "leave those out that are as `defaults` says".to_owned(),
        );
    }
    let named = named.into_iter().filter_map(|field| {
        if !is_tenant(field.key) {
            let message = format!("`{}` is not a tenant's name", field.key);
            field.note_key(message, TENANT_HELP.to_owned());
        }
        let own = read(field)?;
        let quota = Quota {
            subscriptions: own.subscriptions.or(defaults.subscriptions),
            rate: own.rate.or(defaults.rate),
            in_flight: own.in_flight.or(defaults.in_flight),
        };
        Some((field.key.into(), quota))
    });
    Quotas {
        named: named.collect(),
        defaults,
    }
}

fn quota(map: &Map<'_>) -> Quota {
    let count = |key, range| {
        let field = map.take(key)?;
        field.integer(range).map(|count| count as u32)
    };
    Quota {
        subscriptions: count("subscriptions", keys::TENANT_SUBSCRIPTIONS),
        rate: map
            .take("rate")
            .and_then(|field| field.parsed::<Rate>("a rate such as `50/s` or `100/m`")),
        in_flight: count("in_flight", keys::TENANT_IN_FLIGHT),
    }
}
