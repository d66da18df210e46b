//! `brokers:`, and the certificates that brokers and endpoints have in common.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::field::{Field, Name};
use super::keys;
use super::reader::{Map, suggestion};
use super::{Broker, BrokerKind, Embedded, Kafka, RabbitMq, Sasl, SaslMechanism, Tls};
use crate::broker::tiers::Tiers;
use crate::subscription::Secret;

const LONGEST_TIER: Duration = Duration::from_secs(30 * 86_400);
const MOST_TIERS: usize = 32;

/// The kind that a broker's map names, known even where its settings are wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    RabbitMq,
    Kafka,
    Embedded,
}

impl Kind {
    pub fn shown(self) -> &'static str {
        match self {
            Self::RabbitMq => "RabbitMQ",
            Self::Kafka => "Kafka",
            Self::Embedded => "embedded",
        }
    }
}

/// A broker as far as it could be read.
pub struct Read {
    pub name: Name,
    pub kind: Option<Kind>,
    retries_on: Option<Name>,
    pub broker: Option<Broker>,
}

pub fn all(field: Field<'_>) -> Vec<Read> {
    let read: Vec<Read> = field
        .named()
        .into_iter()
        .map(|(name, field)| one(name, field))
        .collect();
    if read.is_empty() && field.is_map() {
        field.note_key(
            "there is no broker",
            "at least `here: { embedded: {} }`".to_owned(),
        );
    }
    check_retries_on(&read, field);
    read
}

/// The name of one of them.
pub fn named(field: Field<'_>, known: &[Read]) -> Option<Arc<str>> {
    let name = field.name()?;
    if known.iter().any(|known| known.name.text == name.text) {
        return Some(name.text);
    }
    let names = known.iter().map(|known| &*known.name.text);
    field.notes.note(
        name.span,
        format!("there is no broker {}", name.shown),
        suggestion(&name.text, names),
    );
    None
}

fn one(name: Name, field: Field<'_>) -> Read {
    let Some(map) = field.map(&keys::BROKER) else {
        return Read {
            name,
            kind: None,
            retries_on: None,
            broker: None,
        };
    };
    let given: Vec<Field<'_>> = keys::KINDS
        .iter()
        .filter_map(|kind| map.take(kind))
        .collect();
    let kind = match given.as_slice() {
        [one] => match one.key {
            "rabbitmq" => Some((Kind::RabbitMq, *one)),
            "kafka" => Some((Kind::Kafka, *one)),
            _ => Some((Kind::Embedded, *one)),
        },
        [] => {
            if !map.means_one_of(&keys::KINDS) {
                map.note(
                    map.span,
                    "the kind of broker is missing",
                    "one of `rabbitmq`, `kafka`, `embedded`".to_owned(),
                );
            }
            None
        }
        [_, second, ..] => {
            second.note_key(
                "a broker is of one kind only",
                "give each its own name".to_owned(),
            );
            None
        }
    };
    let settings = kind.and_then(|(kind, field)| match kind {
        Kind::RabbitMq => rabbitmq(&field.map(&keys::RABBITMQ)?).map(BrokerKind::RabbitMq),
        Kind::Kafka => kafka(&field.map(&keys::KAFKA)?).map(BrokerKind::Kafka),
        Kind::Embedded => embedded(&field.map(&keys::EMBEDDED)?).map(BrokerKind::Embedded),
    });
    let tiers = map
        .take("tiers")
        .map_or_else(|| Some(Tiers::default()), tiers);
    let retries_on = map.take("retries_on").and_then(|field| field.name());
    let declare = map
        .take("declare")
        .and_then(|field| field.bool())
        .unwrap_or(true);
    let broker = match (settings, tiers) {
        (Some(kind), Some(tiers)) => Some(Broker {
            kind,
            tiers,
            retries_on: retries_on.as_ref().map(|name| name.text.clone()),
            declare,
        }),
        _ => None,
    };
    Read {
        name,
        kind: kind.map(|(kind, _)| kind),
        retries_on,
        broker,
    }
}

fn tiers(field: Field<'_>) -> Option<Tiers> {
    let items = field.full_list();
    if items.len() > MOST_TIERS {
        field.note(format!("more than {MOST_TIERS} tiers"), None);
    }
    let seconds = items.into_iter().filter_map(|item| {
        let tier = item.duration(Duration::from_secs(1)..=LONGEST_TIER)?;
        if tier.subsec_millis() != 0 {
            item.note("a tier is a number of whole seconds", None);
        }
        Some(tier.as_secs())
    });
    Tiers::new(seconds)
}

/// Retries may move to another broker once, so that a delivery has one place to wait.
fn check_retries_on(read: &[Read], field: Field<'_>) {
    for broker in read {
        let Some(target) = &broker.retries_on else {
            continue;
        };
        let found = read.iter().find(|other| other.name.text == target.text);
        match found {
            _ if target.text == broker.name.text => field.notes.note(
                target.span,
                format!(
                    "{} keeps its retries itself without `retries_on`",
                    target.shown
                ),
                "leave the key out".to_owned(),
            ),
            None => {
                let known = read
                    .iter()
                    .map(|other| &*other.name.text)
                    .filter(|name| *name != &*broker.name.text);
                field.notes.note(
                    target.span,
                    format!("there is no broker {}", target.shown),
                    suggestion(&target.text, known),
                );
            }
            Some(other) if other.retries_on.is_some() => field.notes.note(
                target.span,
                format!("{} has `retries_on` itself", target.shown),
                "name the broker that keeps them".to_owned(),
            ),
            Some(_) => {}
        }
    }
}

fn rabbitmq(map: &Map<'_>) -> Option<RabbitMq> {
    let fields = match (map.take("url"), map.take("urls")) {
        (Some(url), None) => vec![url],
        (None, Some(urls)) => urls.full_list(),
        (Some(_), Some(urls)) => {
            urls.note_key(
                "`url` and `urls` are both given",
                "keep one of them".to_owned(),
            );
            return None;
        }
        (None, None) => {
            map.note(map.span, "`urls` is missing", None);
            return None;
        }
    };
    let mut encrypted = true;
    let urls: Vec<Secret> = fields
        .into_iter()
        .filter_map(|field| {
            let text = field.text()?;
            let help = "write it as `amqps://user:password@host:5671/vhost`; in user, password and virtual host `/` is `%2f` and `@` is `%40`";
            match Url::parse(text) {
                Ok(url) if !["amqp", "amqps"].contains(&url.scheme()) => {
                    field.note("this is not an `amqp:` or `amqps:` URL", help.to_owned());
                    None
                }
                Ok(url) if url.host_str().is_none_or(str::is_empty) => {
                    field.note("the URL has no host", help.to_owned());
                    None
                }
                Ok(url) => {
                    encrypted &= url.scheme() == "amqps";
                    Some(Secret::new(text))
                }
                Err(error) => {
                    field.note(format!("this is not a URL: {error}"), help.to_owned());
                    None
                }
            }
        })
        .collect();
    let tls = match map.take("tls") {
        Some(field) => {
            if !encrypted {
                field.note_key(
                    "`tls` is for `amqps:` URLs only",
                    "change `amqp:` to `amqps:`".to_owned(),
                );
            }
            tls(field)
        }
        None => Some(Tls::default()),
    };
    Some(RabbitMq { urls, tls: tls? })
}

fn kafka(map: &Map<'_>) -> Option<Kafka> {
    let bootstrap: Vec<String> = map
        .need("bootstrap")
        .map(|field| field.full_list())
        .unwrap_or_default()
        .into_iter()
        .filter_map(host_and_port)
        .collect();
    let tls = map.take("tls").and_then(tls);
    let sasl = map
        .take("sasl")
        .and_then(|field| sasl(&field.map(&keys::SASL)?));
    let properties = map.take("properties").map(texts).unwrap_or_default();
    Some(Kafka {
        bootstrap,
        tls,
        sasl,
        properties,
    })
}

/// `host` or `host:port`; 9092 is librdkafka's default.
fn host_and_port(field: Field<'_>) -> Option<String> {
    let text = field.text()?;
    let port = text.rsplit_once(':').map(|(_, port)| port);
    let bad_port = port.is_some_and(|port| !port.ends_with(']') && port.parse::<u16>().is_err());
    if bad_port || text.contains("//") || text.contains(|c: char| c.is_whitespace() || c == ',') {
        field.note(
            format!("{} is not `host:port`", field.shown()),
            "one broker an item, without a scheme: `[\"kafka-1:9093\", \"kafka-2:9093\"]`"
                .to_owned(),
        );
        return None;
    }
    Some(text.to_owned())
}

fn sasl(map: &Map<'_>) -> Option<Sasl> {
    let mechanism = map
        .need("mechanism")
        .and_then(|field| field.one_of(&keys::MECHANISMS));
    let username = map.need("username").and_then(|field| field.text());
    let password = map.need("password").and_then(|field| field.text());
    Some(Sasl {
        mechanism: match mechanism? {
            "PLAIN" => SaslMechanism::Plain,
            "SCRAM-SHA-256" => SaslMechanism::ScramSha256,
            _ => SaslMechanism::ScramSha512,
        },
        username: username?.to_owned(),
        password: Secret::new(password?),
    })
}

fn embedded(map: &Map<'_>) -> Option<Embedded> {
    let retention = match map.take("retention") {
        Some(field) => field.duration(Duration::ZERO..=Duration::from_secs(365 * 86_400)),
        None => Some(Duration::ZERO),
    };
    let max_bytes = match map.take("max_bytes") {
        Some(field) => field.bytes(1 << 20..=1 << 50),
        None => Some(1 << 30),
    };
    Some(Embedded {
        retention: retention?,
        max_bytes: max_bytes?,
    })
}

/// `tls:` of a broker or an endpoint.
pub fn tls(field: Field<'_>) -> Option<Tls> {
    let map = field.map(&keys::TLS)?;
    for (one, other) in [("cert", "key"), ("key", "cert")] {
        if let (Some(field), false) = (map.take(one), map.has(other)) {
            field.note_key(
                format!("`{one}` without `{other}`"),
                format!("a client certificate needs both: add `{other}`"),
            );
        }
    }
    let path = |key| map.take(key).and_then(|field| field.path());
    Some(Tls {
        ca: path("ca"),
        cert: path("cert"),
        key: path("key"),
    })
}

/// A map of texts under free keys.
pub fn texts(field: Field<'_>) -> BTreeMap<String, String> {
    field
        .entries()
        .into_iter()
        .filter_map(|entry| {
            // `true` is what librdkafka and AMQP arguments write, so it is text here.
            let text = match entry.node.kind() {
                "true or false" => entry.bool()?.to_string(),
                _ => entry.text_or_empty()?.to_owned(),
            };
            Some((entry.key.to_owned(), text))
        })
        .collect()
}

/// What the rest of the config may refer to.
pub fn finish(read: Vec<Read>) -> BTreeMap<Arc<str>, Broker> {
    read.into_iter()
        .filter_map(|read| Some((read.name.text, read.broker?)))
        .collect()
}
