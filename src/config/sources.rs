//! `sources:`: where events come from, and that no two take the same ones.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::brokers::{self, Kind};
use super::decode;
use super::field::{Field, Name};
use super::keys;
use super::node::Span;
use super::reader::{Map, suggestion};
use super::tenants;
use super::terms;
use super::{Binding, EmbeddedSource, From, KafkaSource, RabbitMqSource, Source, Start, Unmatched};
use crate::broker::IdFrom;
use crate::subscription::{META_SOURCE, Pattern};

const DEFAULT_WINDOW: usize = 256;
/// The longest name that Kafka, and that AMQP, takes.
const LONGEST_TOPIC: usize = 249;
/// Of the names that AMQP writes with one byte of length.
const LONGEST_AMQP_NAME: usize = 255;

/// A source as far as it could be read, and what it takes from which broker.
pub struct Read {
    pub name: Name,
    source: Option<Source>,
    takes: Vec<Take>,
}

/// A queue or topic of a broker.
struct Take {
    broker: Arc<str>,
    what: String,
    shown: String,
    span: Span,
}

/// `group` is none where it is wrong, which is a problem of its own.
pub fn all(field: Field<'_>, known: &[brokers::Read], group: Option<&str>) -> Vec<Read> {
    let read: Vec<Read> = field
        .named()
        .into_iter()
        .map(|(name, field)| one(name, field, known, group))
        .collect();
    let mut taken: Vec<(&Take, &Name)> = Vec::new();
    for source in &read {
        for take in &source.takes {
            let same = |other: &Take| other.broker == take.broker && other.what == take.what;
            match taken.iter().find(|(other, _)| same(other)) {
                Some((_, by)) => field.notes.note(
                    take.span,
                    format!("{} is taken by source {} already", take.shown, by.shown),
                    "subscriptions share a source: name its topics there".to_owned(),
                ),
                None => taken.push((take, &source.name)),
            }
        }
    }
    read
}

impl Read {
    /// Its settings, if they could be read.
    pub fn settings(&self) -> Option<&Source> {
        self.source.as_ref()
    }
}

pub fn finish(read: Vec<Read>) -> BTreeMap<Arc<str>, Source> {
    read.into_iter()
        .filter_map(|read| Some((read.name.text, read.source?)))
        .collect()
}

fn one(name: Name, field: Field<'_>, known: &[brokers::Read], group: Option<&str>) -> Read {
    if *name.text == *META_SOURCE {
        field.notes.note(
            name.span,
            format!(
                "{} is the source of what the bridge itself says",
                name.shown
            ),
            "give this one another name".to_owned(),
        );
    }
    let mut takes = Vec::new();
    let source = source(field, known, group, &mut takes);
    Read {
        name,
        source,
        takes,
    }
}

fn source(
    field: Field<'_>,
    known: &[brokers::Read],
    group: Option<&str>,
    takes: &mut Vec<Take>,
) -> Option<Source> {
    let map = field.map(&keys::SOURCE)?;
    let broker = map.need("broker").and_then(|field| field.name());
    let kind = broker.as_ref().and_then(|broker| {
        let found = known.iter().find(|known| known.name.text == broker.text);
        if found.is_none() {
            let names = known.iter().map(|known| &*known.name.text);
            map.note(
                broker.span,
                format!("there is no broker {}", broker.shown),
                suggestion(&broker.text, names),
            );
        }
        found.and_then(|found| found.kind)
    });
    let from = kind.and_then(|kind| {
        refuse_keys_of_others(&map, kind);
        match kind {
            Kind::RabbitMq => rabbitmq(&map).map(From::RabbitMq),
            Kind::Kafka => kafka(&map).map(From::Kafka),
            Kind::Embedded => embedded(&map).map(From::Embedded),
        }
    });
    if let Some(broker) = &broker {
        let fields = match kind {
            Some(Kind::RabbitMq) => map.take("queue").into_iter().collect(),
            Some(_) => map
                .take("topics")
                .map(|topics| topics.list())
                .unwrap_or_default(),
            None => Vec::new(),
        };
        for field in fields {
            let Some(text) = field.text() else { continue };
            refuse_our_own(field, text, group);
            takes.push(Take {
                broker: broker.text.clone(),
                what: text.to_owned(),
                shown: field.shown(),
                span: field.span(),
            });
        }
    }
    let window = map
        .take("window")
        .and_then(|field| field.integer(keys::WINDOW))
        .map_or(DEFAULT_WINDOW, |count| count as usize);
    let unmatched = match map
        .take("unmatched")
        .and_then(|field| field.one_of(&keys::UNMATCHED))
    {
        Some("dead_letter") => Unmatched::DeadLetter,
        Some("hold") => Unmatched::Hold,
        _ => Unmatched::Settle,
    };
    let topic = map
        .take("topic")
        .and_then(|field| field.text())
        .map(Arc::from);
    let id = map.take("id").and_then(id);
    let tenant = match map.take("tenant") {
        Some(field) => Some(tenants::from(field, &map)?),
        None => None,
    };
    let decode = match map.take("decode") {
        Some(field) => Some(decode::read(field)?),
        None => None,
    };
    Some(Source {
        broker: broker?.text,
        from: from?,
        window,
        unmatched,
        topic,
        id,
        tenant,
        decode,
        contract: terms::contract(&map),
    })
}

fn id(field: Field<'_>) -> Option<IdFrom> {
    if !field.is_map() {
        if field.text()? == "content" {
            return Some(IdFrom::Content);
        }
        let help = "`content`, `{ header: x-request-id }` or `{ json: order.id }`".to_owned();
        field.note(format!("{} is not a value of `id`", field.shown()), help);
        return None;
    }
    let map = field.map(&keys::ID)?;
    match (map.take("header"), map.take("json")) {
        (Some(header), None) => Some(IdFrom::Header(header.text()?.to_owned())),
        (None, Some(path)) => {
            let text = path.text()?;
            if text.split('.').any(str::is_empty) {
                path.note(
                    format!("{} is not a path such as `order.id`", path.shown()),
                    None,
                );
                return None;
            }
            Some(IdFrom::Json(text.to_owned()))
        }
        _ => {
            map.note(
                map.span,
                "`id` has exactly one of `header` and `json`",
                "or is the word `content`".to_owned(),
            );
            None
        }
    }
}

fn refuse_keys_of_others(map: &Map<'_>, kind: Kind) {
    const KEYS: [(&str, &[Kind]); 6] = [
        ("queue", &[Kind::RabbitMq]),
        ("declare", &[Kind::RabbitMq]),
        ("bind", &[Kind::RabbitMq]),
        ("topics", &[Kind::Kafka, Kind::Embedded]),
        ("start", &[Kind::Kafka]),
        ("ignore_older_than", &[Kind::Kafka]),
    ];
    for (key, kinds) in KEYS {
        if let Some(field) = map.take(key).filter(|_| !kinds.contains(&kind)) {
            let here: Vec<_> = KEYS
                .iter()
                .filter(|(_, kinds)| kinds.contains(&kind))
                .map(|(key, _)| format!("`{key}`"))
                .collect();
            field.note_key(
                format!("`{key}` is not for {} sources", kind.shown()),
                format!(
                    "its broker is {}, where there is {}",
                    kind.shown(),
                    here.join(", ")
                ),
            );
        }
    }
}

/// What is parked must not be taken as fresh: events would go round for ever.
fn refuse_our_own(field: Field<'_>, text: &str, group: Option<&str>) {
    let Some(rest) = group
        .and_then(|group| text.strip_prefix(group))
        .and_then(|rest| rest.strip_prefix('.'))
    else {
        return;
    };
    if matches!(rest, "dead" | "replay")
        || ["retry.", "hold.", "due."]
            .iter()
            .any(|ours| rest.starts_with(ours))
    {
        field.note(
            format!(
                "{} is one of our own: retries, holds and dead letters are named so by `group`",
                field.shown()
            ),
            "what waits there comes back by itself; dead letters are replayed".to_owned(),
        );
    }
}

fn rabbitmq(map: &Map<'_>) -> Option<RabbitMqSource> {
    let queue = map.need("queue").and_then(|field| {
        let text = field.text()?;
        if is_too_long(text) {
            field.note(too_long("a queue's name"), None);
        }
        Some(text.to_owned())
    });
    let declare = map
        .take("declare")
        .and_then(|field| field.bool())
        .unwrap_or(true);
    let bind = map.take("bind");
    if let Some(field) = bind.filter(|_| !declare) {
        field.note_key(
            "`bind` is for a queue that is declared here",
            "leave out `declare: false`, or bind the queue where it is declared".to_owned(),
        );
    }
    let bind = bind
        .map(|field| field.list())
        .unwrap_or_default()
        .into_iter()
        .filter_map(|field| {
            let map = field.map(&keys::BINDING)?;
            let exchange = map.need("exchange").and_then(|field| {
                let text = field.text()?;
                if is_too_long(text) {
                    field.note(too_long("an exchange's name"), None);
                }
                Some(text)
            });
            let key = map.take("key").and_then(|field| {
                let text = field.text_or_empty()?;
                if is_too_long(text) {
                    field.note(too_long("a binding's key"), None);
                }
                Some(text)
            });
            let arguments = map
                .take("arguments")
                .map(binding_arguments)
                .unwrap_or_default();
            Some(Binding {
                exchange: exchange?.to_owned(),
                key: key.unwrap_or_default().to_owned(),
                arguments,
            })
        })
        .collect();
    Some(RabbitMqSource {
        queue: queue?,
        declare,
        bind,
    })
}

fn binding_arguments(field: Field<'_>) -> BTreeMap<String, String> {
    let arguments = brokers::texts(field);
    if arguments.keys().any(|name| is_too_long(name)) {
        field.note(too_long("an argument's name"), None);
    }
    arguments
}

fn is_too_long(name: &str) -> bool {
    name.len() > LONGEST_AMQP_NAME
}

fn too_long(what: &str) -> String {
    format!("{what} has {LONGEST_AMQP_NAME} bytes at most")
}

fn kafka(map: &Map<'_>) -> Option<KafkaSource> {
    let topics: Vec<String> = map
        .need("topics")
        .map(|field| field.full_list())
        .unwrap_or_default()
        .into_iter()
        .filter_map(kafka_topic)
        .collect();
    let start = match map.take("start") {
        Some(field) => start(field),
        None => {
            map.note(
                map.span,
                "`start` is missing",
                "where a group without offsets begins: `now` (only what comes from now on), `earliest` \
                 (all that is there) or a time such as `2026-01-31T12:00:00Z`"
                    .to_owned(),
            );
            None
        }
    };
    let ignore_older_than = map.take("ignore_older_than").and_then(|field| {
        field.duration(Duration::from_secs(1)..=Duration::from_secs(3650 * 86_400))
    });
    Some(KafkaSource {
        topics,
        start: start?,
        ignore_older_than,
    })
}

fn kafka_topic(field: Field<'_>) -> Option<String> {
    let text = field.text()?;
    if text.starts_with('^') {
        if let Err(error) = regex::Regex::new(text) {
            let why = match error {
                regex::Error::CompiledTooBig(_) => "it is too large".to_owned(),
                other => other
                    .to_string()
                    .lines()
                    .last()
                    .unwrap_or_default()
                    .trim_start_matches("error: ")
                    .to_owned(),
            };
            let why = if field.is_substituted() {
                String::new()
            } else {
                format!(": {why}")
            };
            field.note(format!("this is not a regular expression{why}"), None);
            return None;
        }
        return Some(text.to_owned());
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.len() > LONGEST_TOPIC || !text.chars().all(allowed) {
        field.note(
            format!("{} is not a Kafka topic", field.shown()),
            "a regular expression begins with `^`, such as `^billing\\..*`".to_owned(),
        );
        return None;
    }
    Some(text.to_owned())
}

fn start(field: Field<'_>) -> Option<Start> {
    match field.text()? {
        "now" => Some(Start::Now),
        "earliest" => Some(Start::Earliest),
        text => {
            let at = text.parse::<Timestamp>().ok();
            if at.is_none() {
                field.note(
                    format!("{} is not a start", field.shown()),
                    "`now`, `earliest` or a time such as `2026-01-31T12:00:00Z`".to_owned(),
                );
            }
            at.map(Start::At)
        }
    }
}

fn embedded(map: &Map<'_>) -> Option<EmbeddedSource> {
    let topics = map
        .need("topics")
        .map(|field| field.full_list())
        .unwrap_or_default()
        .into_iter()
        .filter_map(|field| pattern(field).map(str::to_owned))
        .collect();
    Some(EmbeddedSource { topics })
}

/// A pattern over topics or types, as text; it is compiled where it is used.
pub fn pattern<'a>(field: Field<'a>) -> Option<&'a str> {
    let text = field.text()?;
    field
        .parsed::<Pattern>("a pattern such as `orders.*` or `orders.#`")
        .map(|_| text)
}
