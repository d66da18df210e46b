//! The keys of `tests:`.

use super::{Form, MANDATORY, METHODS, Section, key};

/// A file of `hookbridge test --tests`.
pub static CASES: Section = Section {
    name: "tests file",
    keys: &[key(
        "tests",
        Form::Named(&CASE),
        MANDATORY,
        "As in the config.",
    )],
};

pub static CASE: Section = Section {
    name: "test",
    keys: &[
        key(
            "message",
            Form::Section(&MESSAGE),
            MANDATORY,
            "What comes in.",
        ),
        key(
            "at",
            Form::Text,
            "`time` of the message, else the beginning of 2026",
            "When the request is made: the time that is signed.",
        ),
        key(
            "expect",
            Form::Either(&Form::List(&Form::Name), &Form::Named(&EXPECTED)),
            MANDATORY,
            "The subscriptions that match, all of them, with what each of them sends. `{}`: none does.",
        ),
    ],
};

pub static MESSAGE: Section = Section {
    name: "message",
    keys: &[
        key(
            "source",
            Form::Name,
            "the only source",
            "Which of `sources` takes it.",
        ),
        key(
            "topic",
            Form::Text,
            "that of the source",
            "The topic; the routing key on RabbitMQ.",
        ),
        key(
            "type",
            Form::Text,
            "none",
            "The message's type, as a property of it or a header.",
        ),
        key(
            "id",
            Form::Text,
            "as the source says, else the test's name",
            "The message's id; on Kafka the one that is else made of its place.",
        ),
        key("time", Form::Text, "none", "When it was published."),
        key("key", Form::Text, "none", "The key, on Kafka."),
        key(
            "content_type",
            Form::Text,
            "JSON's, where `body` is no text",
            "The content type.",
        ),
        key(
            "content_encoding",
            Form::Text,
            "none",
            "What was done to the body.",
        ),
        key("headers", Form::Map(&Form::Text), "none", "Its headers."),
        key(
            "body",
            Form::Json,
            "empty",
            "The body as text, or as what its JSON says.",
        ),
        key(
            "body_file",
            Form::Text,
            "",
            "A file with the body, instead of `body`.",
        ),
    ],
};

/// What signatures are looked at for.
pub const SIGNED: [&str; 2] = ["valid", "none"];

pub static EXPECTED: Section = Section {
    name: "expected",
    keys: &[
        key("method", Form::OneOf(&METHODS), "any", "The method."),
        key(
            "url",
            Form::Text,
            "any",
            "The whole URL. Its path and query, as far as they are in the config, may be written as `***`.",
        ),
        key(
            "headers",
            Form::Map(&Form::Text),
            "any",
            "Headers that are there; there may be others.",
        ),
        key(
            "body",
            Form::Json,
            "any",
            "The body: JSON is compared as JSON, everything else as text, and what is compressed as what it was.",
        ),
        key(
            "body_file",
            Form::Text,
            "",
            "A file with the body, instead of `body`.",
        ),
        key(
            "signature",
            Form::OneOf(&SIGNED),
            "any",
            "`valid`: one of the endpoint's secrets has signed it; `none`: nothing has.",
        ),
        key(
            "error",
            Form::Either(&Form::OneOf(&ERRORS), &Form::Section(&EXPECTED_ERROR)),
            "none",
            "Nothing is sent, for this reason.",
        ),
    ],
};

pub const ERRORS: [&str; 3] = ["render_failed", "unsendable", "invalid_payload"];

pub static EXPECTED_ERROR: Section = Section {
    name: "expected_error",
    keys: &[
        key(
            "reason",
            Form::OneOf(&ERRORS),
            MANDATORY,
            "The reason of the dead letter.",
        ),
        key("text", Form::Text, "any", "A part of what is said of it."),
    ],
};
