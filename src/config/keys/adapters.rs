//! The keys of adapters: settings of `format: { slack: { ... } }` and the like.

use super::{Form, Key, MANDATORY, Section, key};

const fn text(name: &'static str, default: &'static str, meaning: &'static str) -> Key {
    key(name, Form::Text, default, meaning)
}

const fn texts(name: &'static str, default: &'static str, meaning: &'static str) -> Key {
    key(name, Form::Map(&Form::Text), default, meaning)
}

const fn section(name: &'static str, keys: &'static [Key]) -> Section {
    Section { name, keys }
}

pub static SLACK: Section = section(
    "slack_format",
    &[
        text(
            "text",
            "type and body",
            "The message, in Slack's markup; `{{ data.name | mrkdwn }}` is plain text in it.",
        ),
        text(
            "blocks",
            "none",
            "The blocks, as a JSON list. `text` is then what notifications show.",
        ),
        text(
            "channel",
            "the webhook's",
            "Another channel, where the webhook allows it.",
        ),
    ],
);

pub static DISCORD: Section = section(
    "discord_format",
    &[
        text("title", "the type", "The embed's title."),
        text("description", "the body", "The embed's text, in Markdown."),
        texts("fields", "none", "The embed's fields."),
        text("content", "none", "A message above the embed."),
        text("username", "the webhook's", "Who says it."),
    ],
);

pub static TEAMS: Section = section(
    "teams_format",
    &[
        text("title", "the type", "The card's title."),
        text("text", "the body", "The card's text."),
        texts("facts", "none", "The card's facts."),
    ],
);

pub static PAGERDUTY: Section = section(
    "pagerduty_format",
    &[
        text(
            "routing_key",
            MANDATORY,
            "The integration's key. Treated as a secret.",
        ),
        text("summary", "the type", "What is wrong."),
        text("source", "the source's name", "What it is wrong with."),
        text(
            "severity",
            "error",
            "`critical`, `error`, `warning` or `info`.",
        ),
        text(
            "action",
            "trigger",
            "`trigger`, `acknowledge` or `resolve`.",
        ),
        text(
            "dedup_key",
            "the event's id",
            "Alerts with the same key are one.",
        ),
    ],
);

pub static TWILIO: Section = section(
    "twilio_format",
    &[
        text(
            "to",
            MANDATORY,
            "The number it goes to, such as `+15551234567`.",
        ),
        text(
            "from",
            MANDATORY,
            "A number of the account, or the id of a messaging service (`MG...`).",
        ),
        text("text", "type and body", "The message."),
    ],
);

pub static JIRA: Section = section(
    "jira_format",
    &[
        text("project", MANDATORY, "The project's key, such as `OPS`."),
        text("issue_type", "Task", "The name of the issue's type."),
        text("summary", "the type", "The issue's summary, in one line."),
        text("description", "the body", "The issue's description."),
    ],
);

pub static ASANA: Section = section(
    "asana_format",
    &[
        text("project", MANDATORY, "The project's id."),
        text("name", "the type", "The task's name, in one line."),
        text("notes", "the body", "The task's description."),
    ],
);

pub static TRELLO: Section = section(
    "trello_format",
    &[
        text(
            "api_key",
            MANDATORY,
            "The key of the Power-Up. Treated as a secret.",
        ),
        text(
            "token",
            MANDATORY,
            "The token of who makes the cards. Treated as a secret.",
        ),
        text("list", MANDATORY, "The id of the list."),
        text("name", "the type", "The card's name, in one line."),
        text("description", "the body", "The card's description."),
    ],
);

pub static JENKINS: Section = section(
    "jenkins_format",
    &[texts(
        "parameters",
        "`EVENT_ID`, `EVENT_TYPE` and `PAYLOAD`",
        "The parameters of the build.",
    )],
);

pub static HUBSPOT: Section = section(
    "hubspot_format",
    &[texts(
        "properties",
        MANDATORY,
        "The contact's properties, such as `email: \"{{ data.email }}\"`.",
    )],
);
