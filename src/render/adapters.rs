//! Adapters: built-in templates for services that have a form of their own for what they take, each
//! with the service's limits and what its answers mean.
//!
//! One is a file of `adapters/` and a row here. It knows what every template knows, its settings as
//! `params` besides, and keeps to the lengths that the service allows, so that a long message is cut
//! and not refused. Rate and answers are defaults: what the config says goes before them. The texts
//! can be printed and used as templates of one's own.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderName;

use crate::subscription::{Adapted, Answers, Rate, Setting, Statuses, Template, TemplateText};

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

/// A service, and how to talk to it. Its method is always POST.
#[derive(Debug)]
pub struct Adapter {
    pub name: &'static str,
    /// What is made there.
    pub makes: &'static str,
    /// What its URL looks like.
    pub url: &'static str,
    /// What it wants to be shown besides, if not the URL or a setting: keys of `auth`.
    pub auth: &'static [&'static str],
    /// The file's name.
    pub file: &'static str,
    pub template: &'static str,
    pub content_type: &'static str,
    /// Headers, each a template.
    headers: &'static [(&'static str, &'static str)],
    pub settings: &'static [Known],
    /// For people.
    pub limits: &'static [&'static str],
    /// Longer bodies are not sent, in bytes.
    longest_body: Option<usize>,
    rate: &'static str,
    success: &'static str,
    disable: &'static str,
    no_retry: &'static str,
    /// It says when a limit is over.
    says_limits: bool,
}

/// A setting.
#[derive(Debug)]
pub struct Known {
    pub name: &'static str,
    pub kind: Kind,
    pub needed: bool,
    pub meaning: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A template.
    Text,
    /// Names, and a template for each.
    Fields,
    /// A credential, as it is.
    Secret,
}

const fn text(name: &'static str, meaning: &'static str) -> Known {
    Known {
        name,
        kind: Kind::Text,
        needed: false,
        meaning,
    }
}

const fn needed(name: &'static str, meaning: &'static str) -> Known {
    Known {
        needed: true,
        ..text(name, meaning)
    }
}

const fn secret(name: &'static str, meaning: &'static str) -> Known {
    Known {
        kind: Kind::Secret,
        ..needed(name, meaning)
    }
}

const fn fields(name: &'static str, meaning: &'static str) -> Known {
    Known {
        kind: Kind::Fields,
        ..text(name, meaning)
    }
}

/// What most rows have.
const USUAL: Adapter = Adapter {
    name: "",
    makes: "",
    url: "",
    auth: &[],
    file: "",
    template: "",
    content_type: JSON,
    headers: &[],
    settings: &[],
    limits: &[],
    longest_body: None,
    rate: "",
    success: "2xx",
    disable: "",
    no_retry: "400 413",
    says_limits: false,
};

/// All of them, those that people read first.
pub static ADAPTERS: [Adapter; 11] = [
    Adapter {
        name: "slack",
        makes: "a message in a channel",
        url: "https://hooks.slack.com/services/T.../B.../...",
        file: "slack.json.j2",
        template: include_str!("adapters/slack.json.j2"),
        settings: &[
            text("text", "The message, in Slack's markup."),
            text("blocks", "The blocks, as a JSON list."),
            text("channel", "Another channel, where the webhook allows it."),
        ],
        limits: &["text 40,000", "50 blocks", "section 3,000", "header 150"],
        rate: "1/s",
        disable: "404",
        ..USUAL
    },
    Adapter {
        name: "discord",
        makes: "an embed in a channel",
        url: "https://discord.com/api/webhooks/ID/TOKEN",
        file: "discord.json.j2",
        template: include_str!("adapters/discord.json.j2"),
        settings: &[
            text("title", "The embed's title."),
            text("description", "Its text."),
            fields("fields", "Its fields."),
            text("content", "A message above it."),
            text("username", "Who says it."),
        ],
        limits: &[
            "title 256",
            "description 4,096",
            "25 fields",
            "name 256",
            "value 1,024",
            "embed 6,000",
            "content 2,000",
        ],
        rate: "30/m",
        disable: "401 404",
        says_limits: true,
        ..USUAL
    },
    Adapter {
        name: "teams",
        makes: "an Adaptive Card in a channel",
        url: "https://HOST/workflows/.../triggers/manual/paths/invoke?...",
        file: "teams.json.j2",
        template: include_str!("adapters/teams.json.j2"),
        settings: &[
            text("title", "The card's title."),
            text("text", "Its text."),
            fields("facts", "Its facts."),
        ],
        limits: &["28 KB in all", "20 facts"],
        longest_body: Some(28_000),
        rate: "4/s",
        success: "200 202",
        ..USUAL
    },
    Adapter {
        name: "pagerduty",
        makes: "an alert (Events API v2)",
        url: "https://events.pagerduty.com/v2/enqueue",
        file: "pagerduty.json.j2",
        template: include_str!("adapters/pagerduty.json.j2"),
        settings: &[
            secret("routing_key", "The integration's key."),
            text("summary", "What is wrong."),
            text("source", "What it is wrong with."),
            text("severity", "`critical`, `error`, `warning` or `info`."),
            text("action", "`trigger`, `acknowledge` or `resolve`."),
            text("dedup_key", "Alerts with the same key are one."),
        ],
        limits: &["summary 1,024", "dedup_key 255", "512 KB in all"],
        longest_body: Some(512_000),
        rate: "2/s",
        success: "202",
        ..USUAL
    },
    Adapter {
        name: "twilio",
        makes: "an SMS",
        url: "https://api.twilio.com/2010-04-01/Accounts/SID/Messages.json",
        auth: &["basic"],
        file: "twilio.form.j2",
        template: include_str!("adapters/twilio.form.j2"),
        content_type: FORM,
        settings: &[
            needed("to", "The number it goes to, such as `+15551234567`."),
            needed(
                "from",
                "A number of the account, or a messaging service (`MG...`).",
            ),
            text("text", "The message."),
        ],
        limits: &["text 1,600"],
        rate: "1/s",
        ..USUAL
    },
    Adapter {
        name: "zapier",
        makes: "a run of a Zap",
        url: "https://hooks.zapier.com/hooks/catch/USER/HOOK/",
        file: "zapier.json.j2",
        template: include_str!("adapters/zapier.json.j2"),
        limits: &["10 MB in all"],
        longest_body: Some(10_000_000),
        rate: "30/s",
        ..USUAL
    },
    Adapter {
        name: "jira",
        makes: "an issue",
        url: "https://HOST/rest/api/2/issue",
        auth: &["basic", "bearer"],
        file: "jira.json.j2",
        template: include_str!("adapters/jira.json.j2"),
        settings: &[
            needed("project", "The project's key."),
            text("issue_type", "The type's name."),
            text("summary", "The issue's summary, in one line."),
            text("description", "Its description."),
        ],
        limits: &["summary 255", "description 32,767"],
        rate: "10/s",
        ..USUAL
    },
    Adapter {
        name: "asana",
        makes: "a task",
        url: "https://app.asana.com/api/1.0/tasks",
        auth: &["bearer"],
        file: "asana.json.j2",
        template: include_str!("adapters/asana.json.j2"),
        settings: &[
            needed("project", "The project's id."),
            text("name", "The task's name, in one line."),
            text("notes", "Its description."),
        ],
        limits: &["name 1,024", "notes 65,000"],
        rate: "150/m",
        ..USUAL
    },
    Adapter {
        name: "trello",
        makes: "a card",
        url: "https://api.trello.com/1/cards",
        file: "trello.json.j2",
        template: include_str!("adapters/trello.json.j2"),
        headers: &[(
            "authorization",
            "OAuth oauth_consumer_key=\"{{ params.api_key }}\", oauth_token=\"{{ params.token }}\"",
        )],
        settings: &[
            secret("api_key", "The key of the Power-Up."),
            secret("token", "The token of who makes the cards."),
            needed("list", "The id of the list."),
            text("name", "The card's name, in one line."),
            text("description", "Its description."),
        ],
        limits: &["name 16,384", "description 16,384"],
        rate: "10/s",
        ..USUAL
    },
    Adapter {
        name: "jenkins",
        makes: "a build with parameters",
        url: "https://HOST/job/NAME/buildWithParameters",
        auth: &["basic"],
        file: "jenkins.form.j2",
        template: include_str!("adapters/jenkins.form.j2"),
        content_type: FORM,
        settings: &[fields("parameters", "The parameters of the build.")],
        limits: &["200,000 bytes in all"],
        longest_body: Some(200_000),
        ..USUAL
    },
    Adapter {
        name: "hubspot",
        makes: "a contact",
        url: "https://api.hubapi.com/crm/v3/objects/contacts",
        auth: &["bearer"],
        file: "hubspot.json.j2",
        template: include_str!("adapters/hubspot.json.j2"),
        settings: &[Known {
            needed: true,
            ..fields("properties", "The properties of the contact.")
        }],
        limits: &["property 65,536"],
        rate: "10/s",
        success: "2xx 409",
        ..USUAL
    },
];

/// The adapter that `format` calls so.
pub fn named(name: &str) -> Option<&'static Adapter> {
    ADAPTERS.iter().find(|adapter| adapter.name == name)
}

impl Adapter {
    /// Requests to an endpoint at a time, where the config does not say.
    pub fn rate(&self) -> Option<Rate> {
        self.rate.parse().ok()
    }

    pub fn answers(&self) -> Answers {
        let statuses = |text: &str| -> Statuses { text.parse().expect("statuses of ours") };
        Answers {
            success: statuses(self.success),
            disable: statuses(self.disable),
            no_retry: statuses(self.no_retry),
            limits: self.says_limits,
        }
    }

    /// Whether it works without settings.
    pub fn needs_settings(&self) -> bool {
        self.settings.iter().any(|known| known.needed)
    }

    /// The format, with what the config has set.
    pub fn with(
        &self,
        settings: Vec<(Arc<str>, Setting)>,
        params: BTreeMap<Arc<str>, Arc<str>>,
    ) -> Template {
        let text = |name: &str, text: &str| TemplateText {
            name: name.into(),
            text: text.into(),
        };
        let headers = self.headers.iter();
        Template {
            body: Some(text(self.file, self.template)),
            content_type: self.content_type.into(),
            headers: headers
                .map(|(name, value)| (HeaderName::from_static(name), text(name, value)))
                .collect(),
            query: Vec::new(),
            path: Vec::new(),
            params,
            adapted: Some(Adapted {
                name: self.name,
                settings,
                longest_body: self.longest_body,
                answers: self.answers(),
            }),
        }
    }

    /// The template with a comment that says how to use it as one's own.
    pub fn as_template(&self) -> String {
        let mut out = format!(
            "{{#- {}: {}. Used as\n\n    format:\n      template:\n        body: ${{file:my.{}}}\n",
            self.name, self.makes, self.file
        );
        if self.content_type != JSON {
            out.push_str(&format!("        content_type: {}\n", self.content_type));
        }
        for (name, value) in self.headers {
            out.push_str(&format!("        headers: {{ {name}: '{value}' }}\n"));
        }
        if !self.settings.is_empty() {
            out.push_str("        params: { ... }\n\n    where `params` may have\n\n");
        }
        for Known {
            name,
            kind,
            needed,
            meaning,
        } in self.settings
        {
            let must = if *needed { " Needed." } else { "" };
            let list = match kind {
                Kind::Fields => " A list: write it in place of `params` here.",
                Kind::Text | Kind::Secret => "",
            };
            out.push_str(&format!("      {name:12} {meaning}{must}{list}\n"));
        }
        out.push_str("-#}\n");
        out + self.template
    }
}
