//! The keys of `decode:`.

use super::{AUTH, Form, MANDATORY, Section, TLS, key};

pub const CODINGS: [&str; 4] = ["auto", "gzip", "zstd", "none"];
pub const SCHEMAS: [&str; 4] = ["auto", "avro", "protobuf", "json-schema"];
pub const LARGEST_DECODED: u64 = 256 << 20;
pub const SCHEMAS_KEPT: (u64, u64) = (1, 100_000);

pub static DECODE: Section = Section {
    name: "decode",
    keys: &[
        key(
            "content_encoding",
            Form::OneOf(&CODINGS),
            "`auto`",
            "How bodies are compressed: as each message says (its `content-encoding`), or always so; `none` leaves them as they are.",
        ),
        key(
            "registry",
            Form::Section(&REGISTRY),
            "none",
            "The schema registry in whose wire format every message of the source is.",
        ),
        key(
            "format",
            Form::OneOf(&SCHEMAS),
            "`auto`",
            "What the schemas are written in: what the registry says, or only this.",
        ),
        key(
            "max_bytes",
            Form::Bytes,
            "`16MiB`",
            "Of a body uncompressed, and of its JSON. A larger one cannot be decoded.",
        ),
    ],
};

pub static REGISTRY: Section = Section {
    name: "registry",
    keys: &[
        key(
            "url",
            Form::Text,
            MANDATORY,
            "Where `/schemas/ids/...` is. The rules for URLs of endpoints do not hold for it.",
        ),
        key(
            "auth",
            Form::One(&AUTH),
            "none",
            "What requests show of us.",
        ),
        key(
            "tls",
            Form::Section(&TLS),
            "the system's authorities",
            "Certificates.",
        ),
        key("timeout", Form::Duration, "`5s`", "For one request."),
        key(
            "cache",
            Form::Integer(SCHEMAS_KEPT.0, SCHEMAS_KEPT.1),
            "`1000`",
            "Schemas kept, within 64 MiB.",
        ),
    ],
};
