//! The keys of `brokers:`.

use super::{Form, MANDATORY, Section, key};

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
