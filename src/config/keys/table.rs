//! The table itself. What is written here is documented, offered by editors, and accepted.

use super::{AUTH, ENCRYPT, FIELDS, FORMAT, FORMATS, Form, Key, SIGNATURE, Section, VERSION};
use crate::subscription::Scheme;

pub(super) const fn key(
    name: &'static str,
    form: Form,
    default: &'static str,
    meaning: &'static str,
) -> Key {
    Key {
        name,
        form,
        default,
        meaning,
    }
}

/// In place of a default.
pub const MANDATORY: &str = "mandatory";

const U32: u64 = u32::MAX as u64;
pub const CONCURRENCY: (u64, u64) = (1, 10_000);
pub const WINDOW: (u64, u64) = (1, 100_000);

/// The whole file.
pub static TOP: Section = Section {
    name: "config",
    keys: &[
        key(
            "group",
            Form::Text,
            "`hookbridge` with embedded brokers only",
            "Names the Kafka consumer group and every queue and topic of ours; letters, digits, `.`, `_` and `-`. Mandatory with RabbitMQ or Kafka, and never to be changed while deliveries wait: they would be left behind.",
        ),
        key(
            "instance",
            Form::Text,
            "a random name kept in `data_dir`",
            "Names this process among those of the group; `auto` uses dynamic group membership on Kafka. Letters, digits, `.`, `_` and `-`. `HOOKBRIDGE_INSTANCE` goes before it.",
        ),
        key(
            "data_dir",
            Form::Text,
            "`./data`",
            "Folder of the subscription store, the instance's name and the embedded broker. Locked while running.",
        ),
        key(
            "admin",
            Form::Section(&ADMIN),
            "",
            "The admin API, health and metrics.",
        ),
        key(
            "dead_letters",
            Form::Section(&DEAD_LETTERS),
            "",
            "How long dead letters are kept.",
        ),
        key(
            "delivery",
            Form::Section(&DELIVERY),
            "",
            "Where requests may go.",
        ),
        key(
            "limits",
            Form::Section(&LIMITS),
            "",
            "Limits of the whole process.",
        ),
        key(
            "attempts",
            Form::Section(&ATTEMPTS),
            "",
            "The journal of attempts, which `trace` reads.",
        ),
        key(
            "brokers",
            Form::Named(&BROKER),
            MANDATORY,
            "Message brokers by name. At least one.",
        ),
        key(
            "sources",
            Form::Named(&SOURCE),
            "none",
            "Where events come from, by name.",
        ),
        key(
            "versions",
            Form::Named(&VERSION),
            "none",
            "Versions of the payload, by name, which is sent as `webhook-version`.",
        ),
        key(
            "endpoints",
            Form::Named(&ENDPOINT),
            "none",
            "Receivers that several subscriptions share, by name.",
        ),
        key(
            "subscriptions",
            Form::Named(&SUBSCRIPTION),
            "none",
            "Which events go to which endpoint, by name.",
        ),
    ],
};

pub static ADMIN: Section = Section {
    name: "admin",
    keys: &[
        key(
            "listen",
            Form::Text,
            "`127.0.0.1:8400`",
            "Address and port. Anything but loopback needs `tokens`.",
        ),
        key(
            "tokens",
            Form::List(&Form::Section(&TOKEN)),
            "none",
            "Who may use the API; with none, everybody who can reach it.",
        ),
        key(
            "max_event_bytes",
            Form::Bytes,
            "`16MiB`",
            "Largest event that is accepted over the API.",
        ),
    ],
};

pub const SCOPES: [&str; 4] = ["read", "publish", "replay", "admin"];

pub static TOKEN: Section = Section {
    name: "token",
    keys: &[
        key(
            "name",
            Form::Name,
            MANDATORY,
            "Shown in logs instead of the token.",
        ),
        key(
            "token",
            Form::Text,
            "",
            "The bearer token, 16 characters or more; only its SHA-256 is kept. Either this or `sha256`.",
        ),
        key(
            "sha256",
            Form::Text,
            "",
            "SHA-256 of the token in hex, so that the file does not hold the token.",
        ),
        key(
            "scopes",
            Form::List(&Form::OneOf(&SCOPES)),
            MANDATORY,
            "What it may do. `admin` includes the others.",
        ),
    ],
};

pub static DEAD_LETTERS: Section = Section {
    name: "dead_letters",
    keys: &[key(
        "retention",
        Form::Duration,
        "for ever",
        "Dead letters older than this are removed, on every broker.",
    )],
};

pub static DELIVERY: Section = Section {
    name: "delivery",
    keys: &[
        key(
            "allow_http",
            Form::Bool,
            "`false`",
            "Plain `http:` URLs are refused unless this is true.",
        ),
        key(
            "allow_networks",
            Form::List(&Form::Text),
            "none",
            "Networks such as `10.1.0.0/16` that may be called although they are private, loopback or otherwise special.",
        ),
        key(
            "egress_check",
            Form::Text,
            "none",
            "A URL or `host:port` that takes a TCP connection whenever this machine's network works, asked when receivers cannot be reached: only if it fails as well is it our own outage. Any address is allowed, nothing is sent.",
        ),
    ],
};

pub static LIMITS: Section = Section {
    name: "limits",
    keys: &[
        key(
            "in_flight_bytes",
            Form::Bytes,
            "`256MiB`",
            "Bytes of all messages in flight, `1MiB` or more.",
        ),
        key(
            "due_window",
            Form::Integer(WINDOW.0, WINDOW.1),
            "`256`",
            "Messages in flight of the retries, and of the holds, per broker.",
        ),
        key(
            "shutdown",
            Form::Duration,
            "`30s`",
            "How long a graceful stop may take, up to `10m`.",
        ),
        key(
            "workers",
            Form::Integer(1, 64),
            "`1`",
            "Threads that deliver.",
        ),
    ],
};

pub static ATTEMPTS: Section = Section {
    name: "attempts",
    keys: &[
        key(
            "enabled",
            Form::Bool,
            "`true`",
            "Whether attempts are kept at all, in `attempts.redb` in `data_dir`.",
        ),
        key("keep", Form::Duration, "`7d`", "How long, `1m` or more."),
        key(
            "max_bytes",
            Form::Bytes,
            "`1GiB`",
            "Beyond this the oldest go, whatever `keep` says; `1MiB` or more.",
        ),
        key(
            "bodies",
            Form::Bool,
            "`false`",
            "Keep the request too: method, headers and the first 64 KiB of the body. Headers of the endpoint are masked.",
        ),
        key(
            "publish",
            Form::Section(&PUBLISH),
            "not at all",
            "An audit stream of what is recorded, as JSON, as far as the broker keeps up.",
        ),
    ],
};

pub static PUBLISH: Section = Section {
    name: "attempts.publish",
    keys: &[
        key("broker", Form::Name, MANDATORY, "One of `brokers`."),
        key(
            "topic",
            Form::Text,
            MANDATORY,
            "The topic; the routing key on RabbitMQ.",
        ),
        key(
            "exchange",
            Form::Text,
            "the default exchange, where `topic` is a queue's name",
            "RabbitMQ only.",
        ),
    ],
};

pub static BROKER: Section = Section {
    name: "broker",
    keys: &[
        key(
            "rabbitmq",
            Form::Section(&RABBITMQ),
            "",
            "A RabbitMQ, 3.10 or later. Exactly one of `rabbitmq`, `kafka` and `embedded` is given.",
        ),
        key("kafka", Form::Section(&KAFKA), "", "A Kafka."),
        key(
            "embedded",
            Form::Section(&EMBEDDED),
            "",
            "A broker inside this process, fed over the API.",
        ),
        key(
            "tiers",
            Form::List(&Form::Duration),
            "`[1s, 5s, 15s, 1m, 5m, 15m, 1h, 4h, 12h]`",
            "Delays of the retry and hold tiers, in whole seconds.",
        ),
        key(
            "declare",
            Form::Bool,
            "`true`",
            "Make what is missing of our queues and topics. `false`: they are made by others (`hookbridge topology` prints them) and only checked.",
        ),
        key(
            "retries_on",
            Form::Name,
            "itself",
            "Another broker that keeps the retries and dead letters of this one, where nothing may be created here.",
        ),
    ],
};

pub const KINDS: [&str; 3] = ["rabbitmq", "kafka", "embedded"];

pub static RABBITMQ: Section = Section {
    name: "rabbitmq",
    keys: &[
        key(
            "url",
            Form::Text,
            "",
            "`amqp:` or `amqps:` URL with user, password and virtual host. Short for `urls` with one.",
        ),
        key(
            "urls",
            Form::List(&Form::Text),
            "",
            "URLs of the nodes, tried in turn.",
        ),
        key(
            "tls",
            Form::Section(&TLS),
            "the system's authorities",
            "Certificates, for `amqps:` URLs.",
        ),
    ],
};

pub static KAFKA: Section = Section {
    name: "kafka",
    keys: &[
        key(
            "bootstrap",
            Form::List(&Form::Text),
            MANDATORY,
            "`host:port` of some brokers of the cluster.",
        ),
        key(
            "tls",
            Form::Section(&TLS),
            "no TLS",
            "Turns TLS on; `{}` trusts the system's authorities.",
        ),
        key("sasl", Form::Section(&SASL), "none", "How to authenticate."),
        key(
            "properties",
            Form::Map(&Form::Text),
            "none",
            "Further librdkafka properties. Those that we set win.",
        ),
    ],
};

pub const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

pub static SASL: Section = Section {
    name: "sasl",
    keys: &[
        key(
            "mechanism",
            Form::OneOf(&MECHANISMS),
            MANDATORY,
            "How the password is proved.",
        ),
        key("username", Form::Text, MANDATORY, "Who we are."),
        key(
            "password",
            Form::Text,
            MANDATORY,
            "The password, as a substitution.",
        ),
    ],
};

pub static EMBEDDED: Section = Section {
    name: "embedded",
    keys: &[
        key(
            "retention",
            Form::Duration,
            "`0s`",
            "How long settled events are kept, counted from publishing. Replays reach as far back.",
        ),
        key(
            "max_bytes",
            Form::Bytes,
            "`1GiB`",
            "Beyond this nothing more is accepted.",
        ),
    ],
};

pub static TLS: Section = Section {
    name: "tls",
    keys: &[
        key(
            "ca",
            Form::Text,
            "the system's authorities",
            "PEM file of the authorities to trust.",
        ),
        key(
            "cert",
            Form::Text,
            "none",
            "PEM file of our certificate, with `key`.",
        ),
        key(
            "key",
            Form::Text,
            "none",
            "PEM file of its private key, with `cert`.",
        ),
    ],
};

pub const UNMATCHED: [&str; 3] = ["settle", "dead_letter", "hold"];

pub static SOURCE: Section = Section {
    name: "source",
    keys: &[
        key("broker", Form::Name, MANDATORY, "The broker to take from."),
        key(
            "window",
            Form::Integer(WINDOW.0, WINDOW.1),
            "`256`",
            "Messages in flight; on RabbitMQ this is the prefetch.",
        ),
        key(
            "unmatched",
            Form::OneOf(&UNMATCHED),
            "`settle`",
            "What becomes of an event that no subscription matches.",
        ),
        key(
            "topic",
            Form::Text,
            "the routing key or topic",
            "The topic of all its events, where the broker has none (fanout and headers exchanges).",
        ),
        key(
            "id",
            Form::Either(&Form::OneOf(&["content"]), &Form::One(&ID)),
            "none",
            "Where the event id comes from when the message has none; `content` is a hash of the body.",
        ),
        key(
            "version",
            Form::Name,
            "none",
            "One of `versions`, for its events at endpoints that have none of their own.",
        ),
        key(
            "queue",
            Form::Text,
            "",
            "RabbitMQ: the queue. Mandatory there.",
        ),
        key(
            "declare",
            Form::Bool,
            "`true`",
            "RabbitMQ: declare the queue (a quorum queue) and its bindings where they are missing. `false` for a queue that exists.",
        ),
        key(
            "bind",
            Form::List(&Form::Section(&BINDING)),
            "none",
            "RabbitMQ: bindings of the queue to exchanges that exist.",
        ),
        key(
            "topics",
            Form::List(&Form::Text),
            "",
            "Kafka: names of topics, or regular expressions that begin with `^`. Embedded: topic patterns. Mandatory there.",
        ),
        key(
            "start",
            Form::Text,
            "",
            "Kafka: where a group without offsets begins: `now`, `earliest` or a time such as `2026-01-31T12:00:00Z`. Mandatory there.",
        ),
        key(
            "ignore_older_than",
            Form::Duration,
            "nothing is ignored",
            "Kafka: older records are settled without being delivered.",
        ),
    ],
};

pub static ID: Section = Section {
    name: "id",
    keys: &[
        key("header", Form::Text, "", "The value of this header."),
        key(
            "json",
            Form::Text,
            "",
            "The text or number at this path of the JSON body, such as `order.id`.",
        ),
    ],
};

pub static BINDING: Section = Section {
    name: "binding",
    keys: &[
        key(
            "exchange",
            Form::Text,
            MANDATORY,
            "An exchange that exists.",
        ),
        key(
            "key",
            Form::Text,
            "empty",
            "The routing key to bind with; `*` and `#` on a topic exchange.",
        ),
        key(
            "arguments",
            Form::Map(&Form::Text),
            "none",
            "Arguments, for a headers exchange.",
        ),
    ],
};

pub const METHODS: [&str; 5] = ["POST", "PUT", "PATCH", "DELETE", "GET"];

pub static ENDPOINT: Section = Section {
    name: "endpoint",
    keys: &[
        key(
            "url",
            Form::Text,
            MANDATORY,
            "Absolute `https:` URL (or `http:`, see `delivery`), without user info and fragment.",
        ),
        key(
            "method",
            Form::OneOf(&METHODS),
            "`POST`",
            "The HTTP method. `GET` has the body's fields in the query instead.",
        ),
        key(
            "headers",
            Form::Map(&Form::Text),
            "none",
            "Further headers of every request. Their values are treated as secrets.",
        ),
        key(
            "secret",
            Form::Text,
            "",
            "What signs the requests: for `standard` and `svix` `whsec_` and base64 of 24 to 64 bytes, for `standard-ed25519` `whsk_` and base64 of 32 or 64 bytes, for others 16 to 256 characters. Mandatory unless `signature` is one that signs nothing.",
        ),
        key(
            "secrets",
            Form::List(&Form::Text),
            "",
            "Several secrets while one is being rotated, newest first; 5 at most. Instead of `secret`.",
        ),
        key(
            "signature",
            Form::Either(&Form::OneOf(&Scheme::NAMES), &Form::One(&SIGNATURE)),
            "`standard`",
            "The signature, by its name, or by its name with settings.",
        ),
        key(
            "fields",
            Form::Section(&FIELDS),
            "",
            "Which fields of a JSON body leave at all; before anything else is made of it.",
        ),
        key(
            "format",
            Form::Either(&Form::OneOf(&FORMATS), &Form::One(&FORMAT)),
            "`raw`",
            "The form of the body, by its name, or by its name with settings.",
        ),
        key(
            "encrypt",
            Form::Section(&ENCRYPT),
            "not at all",
            "Encrypts the body for the receiver (JWE).",
        ),
        key(
            "gzip",
            Form::Bool,
            "`false`",
            "Compresses the body, with `content-encoding: gzip`.",
        ),
        key(
            "version",
            Form::Name,
            "that of the source",
            "One of `versions`.",
        ),
        key(
            "auth",
            Form::One(&AUTH),
            "none",
            "What requests show of us beside the signature, or instead of it.",
        ),
        key(
            "tls",
            Form::Section(&TLS),
            "the system's authorities",
            "Certificates of this endpoint.",
        ),
        key(
            "concurrency",
            Form::Integer(CONCURRENCY.0, CONCURRENCY.1),
            "`16`",
            "Requests under way at once, per instance.",
        ),
        key(
            "adaptive",
            Form::Bool,
            "`false`",
            "Fewer at once than `concurrency` when the receiver answers slower with more.",
        ),
        key(
            "rate",
            Form::Rate,
            "no limit",
            "Requests in a time, per instance.",
        ),
        key(
            "breaker",
            Form::Section(&BREAKER),
            "",
            "When to leave a failing receiver alone for a while.",
        ),
    ],
};

pub static BREAKER: Section = Section {
    name: "breaker",
    keys: &[
        key(
            "failures",
            Form::Integer(1, 10_000),
            "`10`",
            "Failures in a row that open it.",
        ),
        key(
            "cool_down",
            Form::Duration,
            "`10s`",
            "How long it is left alone at most before one request probes: at first for a second, then for a quarter of the time that it has not worked for. Up to `1h`.",
        ),
    ],
};

pub static SUBSCRIPTION: Section = Section {
    name: "subscription",
    keys: &[
        key(
            "topics",
            Form::List(&Form::Text),
            MANDATORY,
            "Topic patterns: `orders.created`, `orders.*` (one segment), `orders.#` (any number). One must match.",
        ),
        key(
            "types",
            Form::List(&Form::Text),
            "any",
            "Patterns of the event's type.",
        ),
        key(
            "sources",
            Form::List(&Form::Name),
            "any",
            "Sources that it takes events from.",
        ),
        key(
            "filter",
            Form::Any,
            "none",
            "A filter on the event's content.",
        ),
        key(
            "enabled",
            Form::Bool,
            "`true`",
            "`false`: it matches nothing.",
        ),
        key(
            "was",
            Form::List(&Form::Name),
            "none",
            "Earlier names, whose parked deliveries it takes over.",
        ),
        key(
            "endpoint",
            Form::Either(&Form::Name, &Form::Section(&ENDPOINT)),
            MANDATORY,
            "The name of one of `endpoints`, or an endpoint of its own.",
        ),
        key(
            "concurrency",
            Form::Integer(CONCURRENCY.0, CONCURRENCY.1),
            "`16`",
            "As on an endpoint; only beside an endpoint of its own.",
        ),
        key(
            "adaptive",
            Form::Bool,
            "`false`",
            "As on an endpoint; only beside an endpoint of its own.",
        ),
        key(
            "rate",
            Form::Rate,
            "no limit",
            "As on an endpoint; only beside an endpoint of its own.",
        ),
        key(
            "breaker",
            Form::Section(&BREAKER),
            "",
            "As on an endpoint; only beside an endpoint of its own.",
        ),
        key(
            "timeout",
            Form::Duration,
            "`15s`",
            "Total time of one attempt, response included; `100ms` to `5m`.",
        ),
        key(
            "connect_timeout",
            Form::Duration,
            "`5s`",
            "The part of it that connecting may take.",
        ),
        key(
            "slow_after",
            Form::Duration,
            "`2s`",
            "An attempt older than this counts as slow.",
        ),
        key(
            "max_parked",
            Form::Either(&Form::Integer(0, U32), &Form::Section(&MAX_PARKED)),
            "",
            "How much may wait on the broker; what is beyond goes to the dead letters. A number is the count.",
        ),
        key(
            "retry",
            Form::Section(&RETRY),
            "",
            "When a failed delivery is tried again.",
        ),
        key(
            "tenant",
            Form::Name,
            "none",
            "Whose subscription it is; kept with it.",
        ),
        key(
            "labels",
            Form::Map(&Form::Text),
            "none",
            "Free labels; kept with it.",
        ),
    ],
};

pub static MAX_PARKED: Section = Section {
    name: "max_parked",
    keys: &[
        key("count", Form::Integer(0, U32), "`100000`", "Deliveries."),
        key("bytes", Form::Bytes, "`1GiB`", "Bytes of their bodies."),
    ],
};

pub static RETRY: Section = Section {
    name: "retry",
    keys: &[
        key(
            "schedule",
            Form::List(&Form::Duration),
            "`[5s, 5m, 30m, 2h, 5h, 10h, 14h, 20h, 24h]`",
            "Delays before the second attempt, the third and so on; the last one is repeated if `max_attempts` allows.",
        ),
        key(
            "jitter",
            Form::Number(0.0, 1.0),
            "`0.1`",
            "Each delay is lengthened by up to this share of itself, never shortened.",
        ),
        key(
            "max_attempts",
            Form::Integer(1, 1_000),
            "length of `schedule` + 1",
            "Attempts in all, the first included.",
        ),
        key(
            "give_up_after",
            Form::Duration,
            "`4d`",
            "Counted from the first take; ends holds too.",
        ),
        key(
            "max_retry_after",
            Form::Duration,
            "`24h`",
            "A longer `Retry-After` of a receiver is cut to this.",
        ),
        key(
            "no_retry",
            Form::List(&Form::Integer(300, 599)),
            "none",
            "Statuses that are dead-lettered at once.",
        ),
    ],
};
