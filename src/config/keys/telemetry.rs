//! The keys of `telemetry`.

use super::{Form, MANDATORY, Section, key};

pub static TELEMETRY: Section = Section {
    name: "telemetry",
    keys: &[key(
        "otlp",
        Form::Section(&OTLP),
        "not at all",
        "Spans for an OpenTelemetry collector. Trace headers of messages go on to receivers with and without it.",
    )],
};

pub static OTLP: Section = Section {
    name: "telemetry.otlp",
    keys: &[
        key(
            "endpoint",
            Form::Text,
            MANDATORY,
            "Where the collector takes OTLP over HTTP, such as `http://127.0.0.1:4318`; spans go to `/v1/traces` below it.",
        ),
        key(
            "headers",
            Form::Map(&Form::Text),
            "none",
            "Headers of the requests to it, such as `authorization`.",
        ),
        key(
            "sample",
            Form::Number(0.0, 1.0),
            "`1`",
            "Of events that come without a trace, how many get one. For others who published them has decided.",
        ),
    ],
};
