//! The keys of `sources:`.

use super::{DECODE, Form, MANDATORY, Section, TENANT, WINDOW, key};

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
            "tenant",
            Form::One(&TENANT),
            "its events are nobody's",
            "What of a message says whose its event is; see [tenants](tenants.md#events).",
        ),
        key(
            "decode",
            Form::Section(&DECODE),
            "nothing is decoded",
            "How to read messages that are compressed, or written with a schema; see [decoding](decoding.md).",
        ),
        key(
            "max_body",
            Form::Bytes,
            "none",
            "Events with longer bodies, as they come from the broker, are dead-lettered with the reason `invalid_payload`, whoever wants them.",
        ),
        key(
            "schema",
            Form::Either(&Form::Text, &Form::Any),
            "none",
            "A JSON Schema, or `${file:...}` of one, for all its events; see [contracts](contracts.md#bodies).",
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
