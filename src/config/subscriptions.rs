//! `subscriptions:`: which events go to which endpoint, and how hard we try.

use std::sync::Arc;
use std::time::Duration;

use super::endpoints::{self, LANE_KEYS};
use super::field::{Field, Name};
use super::reader::{Map, suggestion};
use super::versions::{Versions, misfit_of_sources};
use super::{DeliverySettings, keys, sources, tenants, terms};
use crate::subscription::{
    Endpoint, Filter, META_SOURCE, MaxParked, RetryPolicy, Spec, StatusRange, Statuses, Terms,
};

const DAY: Duration = Duration::from_secs(86_400);
const MOST_DELAYS: usize = 100;

/// What subscriptions refer to.
pub struct Known<'a> {
    /// Names of sources.
    pub sources: Vec<&'a str>,
    pub endpoints: &'a [(Name, Option<Endpoint>)],
    pub delivery: &'a DeliverySettings,
    pub versions: &'a Versions<'a>,
}

/// A subscription as far as it could be read, and the endpoint that is written in it.
pub struct Read {
    pub name: Name,
    pub spec: Option<Spec>,
    pub endpoint: Option<Endpoint>,
    was: Vec<Name>,
}

pub fn all(field: Field<'_>, known: &Known<'_>) -> Vec<Read> {
    let read: Vec<Read> = field
        .named()
        .into_iter()
        .map(|(name, field)| one(name, field, known))
        .collect();
    check_was(&read, field);
    read
}

/// A parked delivery must find one subscription by its old name.
fn check_was(read: &[Read], field: Field<'_>) {
    let mut taken: Vec<(&Name, &Name)> = Vec::new();
    for subscription in read {
        for was in &subscription.was {
            if read.iter().any(|other| other.name.text == was.text) {
                let help = "a name in `was` is one that no subscription has any more".to_owned();
                field.notes.note(
                    was.span,
                    format!("{} is still a subscription", was.shown),
                    help,
                );
            } else if let Some((_, by)) = taken.iter().find(|(other, _)| other.text == was.text) {
                let message = format!("{} is taken over by {} already", was.shown, by.shown);
                field.notes.note(was.span, message, None);
            }
            taken.push((was, &subscription.name));
        }
    }
}

/// Reads one subscription. An endpoint that is written in it has its `name`.
pub fn one(name: Name, field: Field<'_>, known: &Known<'_>) -> Read {
    let Some(map) = field.map(&keys::SUBSCRIPTION) else {
        return Read {
            name,
            spec: None,
            endpoint: None,
            was: Vec::new(),
        };
    };
    let was = names(&map, "was");
    let patterns = |field: Option<Field<'_>>| -> Vec<String> {
        let fields = field.map(|field| field.full_list()).unwrap_or_default();
        fields
            .into_iter()
            .filter_map(|field| sources::pattern(field).map(str::to_owned))
            .collect()
    };
    let topics = patterns(map.need("topics"));
    let types = patterns(map.take("types"));
    let (to, endpoint) = endpoint(&name, &map, known);
    let sources = sources_of(&map, known);
    check_versions(&map, to.as_deref(), endpoint.as_ref(), &sources, known);
    let flag = map.take("enabled").and_then(|field| field.bool());
    let shadow = map.take("shadow").and_then(|field| field.bool());
    let retry = map.take("retry").and_then(retry).unwrap_or_default();
    let retry = RetryPolicy::shared(retry);
    let times = Times::read(&map);
    let spec = Spec {
        name: name.text.clone(),
        topics,
        types,
        sources: sources.into(),
        filter: map.take("filter").and_then(filter).map(Box::new),
        enabled: flag.unwrap_or(true),
        shadow: shadow.unwrap_or_default(),
        terms: Terms {
            max_age: map.take("max_age").and_then(terms::max_age),
            contract: terms::contract(&map),
        }
        .kept(),
        was: was.iter().map(|name| name.text.clone()).collect(),
        retry,
        timeout: times.timeout,
        connect_timeout: times.connect_timeout,
        slow_after: times.slow_after,
        max_parked: map.take("max_parked").map(max_parked).unwrap_or_default(),
        tenant: map.take("tenant").and_then(tenants::name),
        labels: map.take("labels").map(tenants::labels).unwrap_or_default(),
        endpoint: to.unwrap_or_else(|| name.text.clone()),
    };
    Read {
        name,
        spec: Some(spec),
        endpoint,
        was,
    }
}

fn names(map: &Map<'_>, key: &'static str) -> Vec<Name> {
    let fields = map.take(key).map(|field| field.list()).unwrap_or_default();
    fields
        .into_iter()
        .filter_map(|field| field.name())
        .collect()
}

fn sources_of(map: &Map<'_>, known: &Known<'_>) -> Vec<Arc<str>> {
    let wanted = names(map, "sources");
    let all = || known.sources.iter().copied();
    for name in &wanted {
        if *name.text != *META_SOURCE && !all().any(|source| *source == *name.text) {
            map.note(
                name.span,
                format!("there is no source {}", name.shown),
                suggestion(&name.text, all().chain([META_SOURCE])),
            );
        }
    }
    wanted.into_iter().map(|name| name.text).collect()
}

/// The name of the endpoint, and the endpoint itself if it is written here.
fn endpoint(name: &Name, map: &Map<'_>, known: &Known<'_>) -> (Option<Arc<str>>, Option<Endpoint>) {
    let Some(field) = map.need("endpoint") else {
        return (None, None);
    };
    let shared = || known.endpoints.iter().map(|(name, _)| name);
    if field.is_map() {
        if shared().any(|other| other.text == name.text) {
            map.note(
                name.span,
                format!("there is an endpoint {} too", name.shown),
                "an endpoint written in a subscription has the subscription's name: rename one of them, \
                 or say `endpoint: <name>`"
                    .to_owned(),
            );
        }
        let lane = endpoints::lane(map);
        let endpoint = endpoints::read(
            name.text.clone(),
            field,
            known.delivery,
            known.versions,
            Some((map, lane)),
        );
        return (Some(name.text.clone()), endpoint);
    }
    for key in LANE_KEYS {
        if let Some(field) = map.take(key) {
            field.note_key(
                format!("`{key}` belongs to the endpoint, which other subscriptions may share"),
                format!("put `{key}` on the endpoint under `endpoints:`"),
            );
        }
    }
    let Some(wanted) = field.name() else {
        return (None, None);
    };
    if !shared().any(|other| other.text == wanted.text) {
        endpoints::missing(&wanted, field, shared().map(|name| &*name.text));
    }
    (Some(wanted.text), None)
}

/// An endpoint without a version of its own has those of the sources of its events.
fn check_versions(
    map: &Map<'_>,
    to: Option<&str>,
    own: Option<&Endpoint>,
    sources: &[Arc<str>],
    known: &Known<'_>,
) {
    let shared = || {
        let mut shared = known.endpoints.iter();
        let found = shared.find(|(name, _)| Some(&*name.text) == to)?;
        found.1.as_ref()
    };
    let misfit = own
        .or_else(shared)
        .and_then(|endpoint| misfit_of_sources(endpoint, sources));
    if let (Some((source, why)), Some(field)) = (misfit, map.take("endpoint")) {
        field.note_key(
            format!("the version of source `{source}` does not fit the endpoint: {why}"),
            "give the endpoint a `version` of its own, or the subscription other `sources`"
                .to_owned(),
        );
    }
}

fn filter(field: Field<'_>) -> Option<serde_json::Value> {
    if !field.is_map() {
        field.note(
            format!("`filter` is a map, not {}", field.node.kind()),
            None,
        );
        return None;
    }
    let value = field.node.to_json();
    if let Err(error) = Filter::compile(&value) {
        field
            .notes
            .note(field.node.span_at(&error.path), error.message, None);
        return None;
    }
    Some(value)
}

struct Times {
    timeout: Duration,
    connect_timeout: Duration,
    slow_after: Duration,
}

impl Times {
    fn read(map: &Map<'_>) -> Self {
        let milli = Duration::from_millis;
        let read = |key, range| {
            map.take(key)
                .and_then(|field: Field<'_>| field.duration(range))
        };
        let timeout = read("timeout", milli(100)..=milli(300_000));
        let connect = read("connect_timeout", milli(10)..=milli(300_000));
        let slow_after = read("slow_after", milli(10)..=milli(300_000));
        let whole = timeout.unwrap_or(Spec::DEFAULT_TIMEOUT);
        if let (Some(field), Some(connect)) = (map.take("connect_timeout"), connect)
            && connect > whole
        {
            field.note(
                "`connect_timeout` is longer than `timeout`, which it is a part of",
                "lengthen `timeout`, or shorten this".to_owned(),
            );
        }
        Self {
            timeout: whole,
            connect_timeout: connect.unwrap_or(Spec::DEFAULT_CONNECT_TIMEOUT.min(whole)),
            slow_after: slow_after.unwrap_or(Spec::DEFAULT_SLOW_AFTER),
        }
    }
}

fn max_parked(field: Field<'_>) -> MaxParked {
    let defaults = MaxParked::default();
    let counted = |field: Field<'_>| field.integer((0, u32::MAX.into()));
    if !field.is_map() {
        return MaxParked {
            count: counted(field).unwrap_or(defaults.count),
            ..defaults
        };
    }
    let Some(map) = field.map(&keys::MAX_PARKED) else {
        return defaults;
    };
    MaxParked {
        count: map
            .take("count")
            .and_then(counted)
            .unwrap_or(defaults.count),
        bytes: map
            .take("bytes")
            .and_then(|field| field.bytes(0..=1 << 50))
            .unwrap_or(defaults.bytes),
    }
}

fn retry(field: Field<'_>) -> Option<RetryPolicy> {
    let map = field.map(&keys::RETRY)?;
    let defaults = RetryPolicy::default();
    let second = Duration::from_secs(1);
    let schedule = match map.take("schedule") {
        Some(field) => {
            let delays = field.full_list();
            if delays.len() > MOST_DELAYS {
                field.note_key(format!("more than {MOST_DELAYS} delays"), None);
            }
            delays
                .into_iter()
                .filter_map(|field| field.duration(Duration::from_millis(100)..=30 * DAY))
                .collect()
        }
        None => defaults.schedule,
    };
    let duration = |key, default| {
        map.take(key)
            .and_then(|field: Field<'_>| field.duration(second..=365 * DAY))
            .unwrap_or(default)
    };
    let max_attempts = map
        .take("max_attempts")
        .and_then(|field| field.integer((1, 1_000)))
        .map_or(schedule.len() as u32 + 1, |count| count as u32);
    Some(RetryPolicy {
        jitter: map
            .take("jitter")
            .and_then(|field| field.number((0.0, 1.0)))
            .unwrap_or(defaults.jitter),
        max_attempts,
        give_up_after: duration("give_up_after", defaults.give_up_after),
        max_retry_after: duration("max_retry_after", defaults.max_retry_after),
        // With none nothing would ever be delivered.
        success: map.take("success").map(|field| statuses(field.full_list())),
        disable: map.take("disable").map(|field| statuses(field.list())),
        no_retry: map.take("no_retry").map(|field| statuses(field.list())),
        schedule,
    })
}

fn statuses(ranges: Vec<Field<'_>>) -> Statuses {
    let ranges = ranges.into_iter();
    Statuses(
        ranges
            .filter_map(|field| field.parsed(StatusRange::WHAT))
            .collect(),
    )
}
