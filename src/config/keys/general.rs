//! The keys at the top, and those of everything that belongs to the bridge itself.

use super::{
    BROKER, CASE, ENDPOINT, Form, MANDATORY, SOURCE, SUBSCRIPTION, Section, TELEMETRY, TENANTS,
    VERSION, WINDOW, key,
};

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
            "state_on",
            Form::Name,
            "the embedded broker, else the first by name without `retries_on`",
            "The broker that keeps what all instances of the group share: subscriptions made over the API, what is paused and disabled.",
        ),
        key(
            "store_key",
            Form::Either(&Form::Text, &Form::List(&Form::Text)),
            "none: the API takes no secrets",
            "Seals the secrets of subscriptions that are made over the API: 32 bytes in hex or base64, from a file. Of a list the first seals and all open, so that a key can be replaced.",
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
            "reload",
            Form::Section(&RELOAD),
            "",
            "When this file is read again.",
        ),
        key(
            "telemetry",
            Form::Section(&TELEMETRY),
            "",
            "Spans of what is done, for a collector.",
        ),
        key(
            "tenants",
            Form::Section(&TENANTS),
            "",
            "What tenants may use; see [tenants](tenants.md).",
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
        key(
            "tests",
            Form::Named(&CASE),
            "none",
            "Messages and what is to become of them, by name, for `hookbridge test`.",
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
        key(
            "tenant",
            Form::Text,
            "none: all of them",
            "It acts for this tenant, and sees and changes nothing of others; see [tenants](tenants.md#tokens).",
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

pub static RELOAD: Section = Section {
    name: "reload",
    keys: &[key(
        "watch",
        Form::Duration,
        "not watched",
        "Look at this file so often, and read it again when it has changed; `1s` to `1h`. Without it on SIGHUP and over the API only.",
    )],
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
