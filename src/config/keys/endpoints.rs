//! The keys of `endpoints:`, but for what a request carries: see [`super::payload`],
//! [`super::signature`] and [`super::auth`].

use super::{
    AUTH, BATCH, CONCURRENCY, ENCRYPT, FIELDS, FORMAT, FORMATS, Form, HANDSHAKE, MANDATORY,
    SIGNATURE, Section, TLS, key,
};
use crate::subscription::{Handshake, Scheme};

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
            "batch",
            Form::Section(&BATCH),
            "one request each",
            "Several deliveries in one request, as a JSON array: as many as there are when the first of these limits is reached.",
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
            "handshake",
            Form::Either(&Form::OneOf(&Handshake::NAMES), &Form::One(&HANDSHAKE)),
            "none",
            "What it is asked before the first delivery, by its name, or by its name with settings. Until it agrees its deliveries are held.",
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
            "no limit, or the adapter's",
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
            "How long it is left alone at most before one request probes: at first for a second, then for a sixteenth of the time that it has not worked for. Up to `1h`.",
        ),
    ],
};
