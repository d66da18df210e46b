//! The keys of `tenants:`, and of `tenant:` of a source.

use super::{Form, Section, U32, key};

pub const TENANT_SUBSCRIPTIONS: (u64, u64) = (0, U32);
pub const TENANT_IN_FLIGHT: (u64, u64) = (1, 100_000);
pub const SEGMENT: (u64, u64) = (1, 64);

pub static TENANTS: Section = Section {
    name: "tenants",
    keys: &[
        key(
            "defaults",
            Form::Section(&QUOTA),
            "no limits",
            "What each tenant may use that is not named here.",
        ),
        key(
            "named",
            Form::Map(&Form::Section(&QUOTA)),
            "none",
            "Tenants by name, each with what is different for it, 1,000 at most. In metrics these are told apart; all others are `(other)`.",
        ),
    ],
};

pub static QUOTA: Section = Section {
    name: "quota",
    keys: &[
        key(
            "subscriptions",
            Form::Integer(TENANT_SUBSCRIPTIONS.0, TENANT_SUBSCRIPTIONS.1),
            "no limit",
            "Subscriptions that it may have; the API makes no more.",
        ),
        key(
            "rate",
            Form::Rate,
            "no limit",
            "Deliveries started in so much time, over all of its endpoints together.",
        ),
        key(
            "in_flight",
            Form::Integer(TENANT_IN_FLIGHT.0, TENANT_IN_FLIGHT.1),
            "no limit",
            "Deliveries under way at once, over all of its endpoints together.",
        ),
    ],
};

pub static TENANT: Section = Section {
    name: "source.tenant",
    keys: &[
        key("header", Form::Text, "", "The value of this header."),
        key(
            "json",
            Form::Text,
            "",
            "The text or number at this path of the JSON body, such as `account.id`.",
        ),
        key(
            "segment",
            Form::Integer(SEGMENT.0, SEGMENT.1),
            "",
            "This segment of the topic: `1` is `acme` of `acme.orders.created`.",
        ),
    ],
};
