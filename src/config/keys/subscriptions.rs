//! The keys of `subscriptions:`.

use super::{BREAKER, CONCURRENCY, ENDPOINT, Form, MANDATORY, Section, U32, key};

pub const STALE: [&str; 2] = ["settle", "dead_letter"];

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
            "any but `hookbridge`",
            "Sources that it takes events from. `hookbridge` is always there: [what the bridge itself says](meta-events.md).",
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
            "shadow",
            Form::Bool,
            "`false`",
            "`true`: what it matches is rendered, signed, logged and counted as usual, and settled without being sent; see [contracts](contracts.md#shadow).",
        ),
        key(
            "max_age",
            Form::Either(&Form::Duration, &Form::Section(&MAX_AGE)),
            "none",
            "Events that are older when their turn comes are not sent; see [contracts](contracts.md#age). A duration is `after`.",
        ),
        key(
            "max_body",
            Form::Bytes,
            "none",
            "Events with longer bodies, as they come from the broker, are dead-lettered with the reason `invalid_payload`.",
        ),
        key(
            "schema",
            Form::Either(&Form::Text, &Form::Any),
            "none",
            "A JSON Schema, or `${file:...}` of one. Events whose bodies are not as it says are dead-lettered with the reason `invalid_payload`; see [contracts](contracts.md#bodies).",
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
            "no limit, or the adapter's",
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
            Form::Text,
            "none: the operator's",
            "Whose subscription it is: it gets the events of this tenant and no others. One without gets all events; see [tenants](tenants.md).",
        ),
        key(
            "labels",
            Form::Map(&Form::Text),
            "none",
            "Free labels, 16 at most, to find it by: `?label=team:crm`.",
        ),
    ],
};

pub static MAX_AGE: Section = Section {
    name: "max_age",
    keys: &[
        key(
            "after",
            Form::Duration,
            MANDATORY,
            "Since the event was published, or taken where its message does not say when; `1s` or more.",
        ),
        key(
            "then",
            Form::OneOf(&STALE),
            "`settle`",
            "What becomes of it: settled and counted, or dead-lettered with the reason `stale`.",
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
            "success",
            Form::List(&Form::Status),
            "2xx, or the adapter's",
            "Statuses that mean delivered, and no others do: `[2xx, 409]`. A status in several lists is of the first of these three.",
        ),
        key(
            "disable",
            Form::List(&Form::Status),
            "none, or the adapter's",
            "Statuses that disable the endpoint at once, as a second 410 does.",
        ),
        key(
            "no_retry",
            Form::List(&Form::Status),
            "none, or the adapter's",
            "Statuses that are dead-lettered at once: `[400, 4xx, 500-503]`.",
        ),
    ],
};
