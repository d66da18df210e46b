//! The keys of a payload: `format:` where it is a map, `fields:`, `batch:`, `encrypt:` and `versions:`.

use super::{
    ASANA, DISCORD, Form, HUBSPOT, JENKINS, JIRA, Key, MANDATORY, PAGERDUTY, SLACK, Section, TEAMS,
    TRELLO, TWILIO, key,
};

const fn plain(name: &'static str, meaning: &'static str) -> Key {
    key(name, Form::Empty, "", meaning)
}

const fn with(name: &'static str, section: &'static Section, meaning: &'static str) -> Key {
    key(name, Form::Section(section), "", meaning)
}

/// Formats that need no settings, by their name alone.
pub const FORMATS: [&str; 12] = [
    "raw",
    "envelope",
    "cloudevents",
    "cloudevents-binary",
    "cloudevents-batch",
    "form",
    "xml",
    "slack",
    "discord",
    "teams",
    "zapier",
    "jenkins",
];

pub static FORMAT: Section = Section {
    name: "format",
    keys: &[
        plain("raw", "The message's bytes, untouched."),
        plain("envelope", "`{ \"type\", \"timestamp\", \"data\" }`."),
        with(
            "cloudevents",
            &CLOUDEVENTS_FORMAT,
            "CloudEvents 1.0, structured.",
        ),
        with(
            "cloudevents-binary",
            &CLOUDEVENTS_FORMAT,
            "CloudEvents 1.0 with the attributes in headers.",
        ),
        with(
            "cloudevents-batch",
            &CLOUDEVENTS_FORMAT,
            "CloudEvents 1.0, a list of structured events.",
        ),
        with(
            "form",
            &FORM_FORMAT,
            "A form, `application/x-www-form-urlencoded`.",
        ),
        with(
            "xml",
            &XML_FORMAT,
            "XML made of JSON; what is XML already passes through.",
        ),
        with(
            "template",
            &TEMPLATE_FORMAT,
            "Whatever a template makes of it.",
        ),
        with("slack", &SLACK, "A message in Slack."),
        with("discord", &DISCORD, "An embed in Discord."),
        with("teams", &TEAMS, "A card in Microsoft Teams."),
        with("pagerduty", &PAGERDUTY, "An alert at PagerDuty."),
        with("twilio", &TWILIO, "An SMS by Twilio."),
        plain("zapier", "A run of a Zap."),
        with("jira", &JIRA, "An issue in Jira."),
        with("asana", &ASANA, "A task in Asana."),
        with("trello", &TRELLO, "A card on Trello."),
        with("jenkins", &JENKINS, "A build by Jenkins."),
        with("hubspot", &HUBSPOT, "A contact in HubSpot."),
    ],
};

pub static CLOUDEVENTS_FORMAT: Section = Section {
    name: "cloudevents_format",
    keys: &[key(
        "source",
        Form::Text,
        "the name of the source",
        "`source` of events that did not come as CloudEvents; a URI reference.",
    )],
};

pub static FORM_FORMAT: Section = Section {
    name: "form_format",
    keys: &[
        key(
            "field",
            Form::Text,
            "`payload`; with signature `mailchimp`: `mandrill_events`",
            "The field that holds the whole body as JSON.",
        ),
        key(
            "flatten",
            Form::Bool,
            "`false`; with signature `twilio`: `true`",
            "A field for each value instead, such as `items[0][sku]`.",
        ),
    ],
};

pub static XML_FORMAT: Section = Section {
    name: "xml_format",
    keys: &[
        key("root", Form::Text, "`event`", "The outermost element."),
        key(
            "item",
            Form::Text,
            "`item`",
            "The element of an entry of a list that has no name of its own.",
        ),
    ],
};

pub static TEMPLATE_FORMAT: Section = Section {
    name: "template_format",
    keys: &[
        key(
            "body",
            Form::Text,
            "no body",
            "The template of the body, such as `${file:order.json.j2}`.",
        ),
        key(
            "content_type",
            Form::Text,
            "`application/json`",
            "What the template makes. What is to be JSON is checked to be that before it is sent.",
        ),
        key(
            "headers",
            Form::Map(&Form::Text),
            "none",
            "Headers, each value a template. What HTTP cannot carry is percent-encoded.",
        ),
        key(
            "query",
            Form::Map(&Form::Text),
            "none",
            "Appended to the query of the URL, each value a template.",
        ),
        key(
            "path",
            Form::List(&Form::Text),
            "none",
            "Segments appended to the path of the URL, each a template.",
        ),
        key(
            "params",
            Form::Map(&Form::Text),
            "none",
            "Texts that the templates know as `params`, such as keys from the environment. Treated as secrets.",
        ),
    ],
};

pub static FIELDS: Section = Section {
    name: "fields",
    keys: &[
        key(
            "keep",
            Form::List(&Form::Text),
            "all",
            "Nothing but these leaves: paths such as `data.order.total`, `data.items.*.sku`.",
        ),
        key(
            "drop",
            Form::List(&Form::Text),
            "none",
            "These are left out.",
        ),
        key(
            "mask",
            Form::List(&Form::Text),
            "none",
            "These become `\"***\"`.",
        ),
    ],
};

pub const BATCH_COUNT: (u64, u64) = (1, 10_000);

pub static BATCH: Section = Section {
    name: "batch",
    keys: &[
        key(
            "count",
            Form::Integer(BATCH_COUNT.0, BATCH_COUNT.1),
            "`100`",
            "Deliveries in one request.",
        ),
        key(
            "bytes",
            Form::Bytes,
            "`1MiB`",
            "Length of the body before it is encrypted and compressed; up to `16MiB`. One delivery by itself may be longer.",
        ),
        key(
            "within",
            Form::Duration,
            "`1s`",
            "How long the first delivery waits for others; `1ms` to `30s`.",
        ),
    ],
};

pub static ENCRYPT: Section = Section {
    name: "encrypt",
    keys: &[
        key(
            "key",
            Form::Either(&Form::Text, &Form::Any),
            MANDATORY,
            "The receiver's public key: PEM (`BEGIN PUBLIC KEY`) or a JWK, as text or as a map. An EC key (P-256, P-384, P-521) means ECDH-ES+A256KW, an RSA key of 2048 bits or more RSA-OAEP-256.",
        ),
        key(
            "kid",
            Form::Text,
            "that of the JWK",
            "Tells the receiver which of its keys is meant.",
        ),
    ],
};

pub static VERSION: Section = Section {
    name: "version",
    keys: &[
        key(
            "formats",
            Form::Map(&Form::Either(&Form::OneOf(&FORMATS), &Form::One(&FORMAT))),
            "none",
            "Formats by patterns of the event's type, the first that matches. Of other events the format is the endpoint's.",
        ),
        key(
            "deprecated",
            Form::Text,
            "no",
            "Since when it is not to be used any more, such as `2026-01-31` or `2026-01-31T12:00:00Z`: sent as `Deprecation`, and warned about.",
        ),
        key(
            "sunset",
            Form::Text,
            "never",
            "When it ends: sent as `Sunset`.",
        ),
    ],
};
