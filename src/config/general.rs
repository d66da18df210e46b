//! The keys at the top: `group`, `instance`, `store_key`, `admin`, `dead_letters`, `delivery`, `limits`,
//! `reload`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use url::Url;

use super::field::Field;
use super::keys;
use super::node::Span;
use super::reader::{Map, Notes};
use super::tenants;
use super::{
    Admin, AdminToken, DeadLetters, DeliverySettings, Instance, Limits, Place, Reload, Scope,
};
use crate::store::Key;
use crate::subscription::Secret;

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8400);
const DEFAULT_MAX_EVENT_BYTES: u64 = 16 << 20;
const SHORTEST_TOKEN: usize = 16;
const SHORTEST_RETENTION: Duration = Duration::from_secs(1);
const LONGEST_RETENTION: Duration = Duration::from_secs(3_650 * 86_400);
const SHORTEST_WATCH: Duration = Duration::from_secs(1);
const LONGEST_WATCH: Duration = Duration::from_secs(3_600);
const LONGEST_GROUP: usize = 100;
const LONGEST_INSTANCE: usize = 200;
/// What brokers take in names of queues, topics, groups and members.
const GROUP_CHARS: &str = "`A-Z`, `a-z`, `0-9`, `.`, `_` and `-`";

fn is_id(text: &str, longest: usize) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    text.len() <= longest && text.chars().all(allowed)
}

/// The group, if it is given and good.
pub fn group(field: Field<'_>) -> Option<Arc<str>> {
    let text = field.text()?;
    if !is_id(text, LONGEST_GROUP) {
        field.note(
            format!("{} cannot be a group", field.shown()),
            format!("up to {LONGEST_GROUP} of {GROUP_CHARS}"),
        );
        return None;
    }
    Some(text.into())
}

/// The environment goes before the file, since one file serves many instances. What it says is
/// placed at the key, or at the top of the file without one.
pub fn instance(
    notes: &Notes<'_>,
    field: Option<Field<'_>>,
    from_env: Option<String>,
) -> Option<Instance> {
    let from_env = from_env.filter(|name| !name.is_empty());
    let help = || format!("`auto`, or up to {LONGEST_INSTANCE} of {GROUP_CHARS}");
    let name = match (&from_env, field) {
        (Some(name), _) if is_id(name, LONGEST_INSTANCE) => name.as_str(),
        (Some(_), field) => {
            let span = field.map_or_else(Span::default, |field| field.span());
            let message = "the value of `HOOKBRIDGE_INSTANCE` cannot be an instance's name";
            notes.note(span, message, help());
            return None;
        }
        (None, None) => return Some(Instance::Kept),
        (None, Some(field)) => match field.text()? {
            name if is_id(name, LONGEST_INSTANCE) => name,
            _ => {
                let message = format!("{} cannot be an instance's name", field.shown());
                field.note(message, help());
                return None;
            }
        },
    };
    Some(match name {
        "auto" => Instance::Auto,
        name => Instance::Named(name.into()),
    })
}

/// One key, or several of which the first seals.
pub fn store_keys(field: Field<'_>) -> Option<Vec<Secret>> {
    let fields = match field.is_list() {
        true => field.full_list(),
        false => vec![field],
    };
    let mut keys: Vec<Secret> = Vec::new();
    for field in &fields {
        let Some(text) = field.text() else { continue };
        if let Err(why) = Key::read(text) {
            field.note(
                why.to_string(),
                "make one with `openssl rand -hex 32`, in a file of its own".to_owned(),
            );
            continue;
        }
        let key = Secret::new(text);
        if keys.contains(&key) {
            field.note("the same key is there twice", None);
        }
        keys.push(key);
    }
    (keys.len() == fields.len()).then_some(keys)
}

pub fn admin(map: Option<&Map<'_>>) -> Option<Admin> {
    let Some(map) = map else {
        return Some(Admin {
            listen: DEFAULT_LISTEN,
            tokens: Vec::new(),
            max_event_bytes: DEFAULT_MAX_EVENT_BYTES as usize,
        });
    };
    let listen_field = map.take("listen");
    let listen = match listen_field {
        Some(field) => field
            .parsed::<Listen>("an address and port such as `127.0.0.1:8400`")
            .map(|l| l.0),
        None => Some(DEFAULT_LISTEN),
    };
    let max_event_bytes = match map.take("max_event_bytes") {
        Some(field) => field.bytes(1..=1 << 30),
        None => Some(DEFAULT_MAX_EVENT_BYTES),
    };
    let fields = map
        .take("tokens")
        .map(|field| field.list())
        .unwrap_or_default();
    let mut tokens: Vec<AdminToken> = Vec::new();
    for field in &fields {
        let Some(token) = token(*field) else { continue };
        if tokens.iter().any(|other| other.name == token.name) {
            field.note(format!("a second token is named `{}`", token.name), None);
        }
        tokens.push(token);
    }
    if let (Some(listen), Some(field)) = (listen, listen_field)
        && !listen.ip().is_loopback()
        && fields.is_empty()
    {
        field.note(
            "the admin API may not be open to other machines without `tokens`",
            "add `tokens: [{ name: ..., token: ..., scopes: [read] }]`, or listen on 127.0.0.1"
                .to_owned(),
        );
    }
    Some(Admin {
        listen: listen?,
        tokens,
        max_event_bytes: max_event_bytes? as usize,
    })
}

/// A socket address with a message that says what it looks like.
struct Listen(SocketAddr);

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| {
            format!("`{text}` is not an address and port such as `127.0.0.1:8400` or `[::1]:8400`")
        })
    }
}

fn token(field: Field<'_>) -> Option<AdminToken> {
    let map = field.map(&keys::TOKEN)?;
    let name = map.need("name").and_then(|field| field.name());
    let sha256 = match (map.take("token"), map.take("sha256")) {
        (Some(token), None) => token.text().and_then(|text| {
            if text.len() < SHORTEST_TOKEN {
                token.note(
                    format!("a token has {SHORTEST_TOKEN} characters or more"),
                    "make one with `openssl rand -hex 32`".to_owned(),
                );
                return None;
            }
            Some(Sha256::digest(text.as_bytes()).into())
        }),
        (None, Some(hash)) => hash.text().and_then(|text| {
            let mut bytes = [0; 32];
            if hex::decode_to_slice(text, &mut bytes).is_err() {
                hash.note("a SHA-256 has 64 hexadecimal digits", None);
                return None;
            }
            Some(bytes)
        }),
        (Some(_), Some(second)) => {
            second.note_key(
                "`token` and `sha256` are both given",
                "keep one of them".to_owned(),
            );
            None
        }
        (None, None) => {
            map.note(map.span, "`token` or `sha256` is missing", None);
            None
        }
    };
    let scopes: Vec<Scope> = map
        .need("scopes")
        .map(|field| field.full_list())
        .unwrap_or_default()
        .into_iter()
        .filter_map(|field| field.one_of(&keys::SCOPES))
        .filter_map(scope)
        .collect();
    let tenant = match map.take("tenant") {
        // One whose tenant is wrong must not become one of everybody.
        Some(field) => Some(tenants::name(field)?),
        None => None,
    };
    Some(AdminToken {
        tenant,
        name: name?.text.to_string(),
        sha256: sha256?,
        scopes,
    })
}

fn scope(name: &str) -> Option<Scope> {
    match name {
        "read" => Some(Scope::Read),
        "publish" => Some(Scope::Publish),
        "replay" => Some(Scope::Replay),
        "admin" => Some(Scope::Admin),
        _ => None,
    }
}

pub fn dead_letters(map: Option<&Map<'_>>) -> DeadLetters {
    let retention = map
        .and_then(|map| map.take("retention"))
        .and_then(|field| field.duration(SHORTEST_RETENTION..=LONGEST_RETENTION));
    DeadLetters { retention }
}

pub fn delivery(map: Option<&Map<'_>>) -> DeliverySettings {
    let Some(map) = map else {
        return DeliverySettings::default();
    };
    let allow_http = map
        .take("allow_http")
        .and_then(|field| field.bool())
        .unwrap_or(false);
    let allow_networks = map
        .take("allow_networks")
        .map(|field| field.list())
        .unwrap_or_default()
        .into_iter()
        .filter_map(network)
        .collect();
    let egress_check = map
        .take("egress_check")
        .and_then(|field| field.parsed::<Place>("a URL, or a host and port"));
    DeliverySettings {
        allow_http,
        allow_networks,
        egress_check,
    }
}

impl std::str::FromStr for Place {
    type Err = &'static str;

    /// Shows nothing of the text: a URL may be a credential.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "give an `https:` or `http:` URL, or a host and port such as `example.com:443`";
        let is_url = text.contains("://");
        let url = match is_url {
            true => Url::parse(text),
            false => Url::parse(&format!("tcp://{text}")),
        };
        let url = url.map_err(|_| wrong)?;
        let only_place =
            url.path().is_empty() && url.query().is_none() && url.username().is_empty();
        let fits = match is_url {
            true => ["http", "https"].contains(&url.scheme()),
            false => only_place && url.fragment().is_none(),
        };
        match (url.host_str(), url.port_or_known_default()) {
            (Some(host), Some(port)) if fits && !host.is_empty() && port > 0 => Ok(Self {
                host: host.trim_matches(['[', ']']).to_owned(),
                port,
            }),
            _ => Err(wrong),
        }
    }
}

/// A network, or one address.
fn network(field: Field<'_>) -> Option<IpNet> {
    let text = field.text()?;
    let network = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    if network.is_err() {
        field.note(
            format!("{} is not a network", field.shown()),
            "write it as `10.1.0.0/16`, `fd00::/8` or one address".to_owned(),
        );
    }
    network.ok()
}

pub fn reload(map: Option<&Map<'_>>) -> Reload {
    let watch = map.and_then(|map| map.take("watch"));
    Reload {
        watch: watch.and_then(|field| field.duration(SHORTEST_WATCH..=LONGEST_WATCH)),
    }
}

pub fn limits(map: Option<&Map<'_>>) -> Limits {
    let defaults = Limits::default();
    let Some(map) = map else {
        return defaults;
    };
    let in_flight_bytes = map
        .take("in_flight_bytes")
        .and_then(|field| field.bytes(1 << 20..=1 << 40))
        .map_or(defaults.in_flight_bytes, |bytes| bytes as usize);
    let due_window = map
        .take("due_window")
        .and_then(|field| field.integer(keys::WINDOW))
        .map_or(defaults.due_window, |count| count as usize);
    let shutdown = map
        .take("shutdown")
        .and_then(|field| field.duration(Duration::ZERO..=Duration::from_secs(600)))
        .unwrap_or(defaults.shutdown);
    let workers = map
        .take("workers")
        .and_then(|field| field.integer((1, 64)))
        .map_or(defaults.workers, |count| count as usize);
    Limits {
        in_flight_bytes,
        due_window,
        shutdown,
        workers,
    }
}
