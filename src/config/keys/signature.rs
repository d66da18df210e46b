//! The keys of `signature:` where it is a map: one for each scheme, with what of it can be set.

use super::{Form, Key, MANDATORY, Section, key};
use crate::subscription::{Encoding, Hash, KeyForm, TimeUnit};

const fn plain(name: &'static str, meaning: &'static str) -> Key {
    key(name, Form::Empty, "", meaning)
}

const fn with(name: &'static str, section: &'static Section, meaning: &'static str) -> Key {
    key(name, Form::Section(section), "", meaning)
}

pub static SIGNATURE: Section = Section {
    name: "signature",
    keys: &[
        plain("standard", "Standard Webhooks with HMAC-SHA256."),
        plain("standard-ed25519", "Standard Webhooks with ed25519."),
        plain("svix", "As `standard`, in headers that begin with `svix-`."),
        plain("stripe", "`Stripe-Signature`, with a `v1` for each secret."),
        with(
            "github",
            &GITHUB_SIGNATURE,
            "`X-Hub-Signature-256`, and what the event is.",
        ),
        plain("slack", "`X-Slack-Signature` and its timestamp."),
        with(
            "twilio",
            &URL_SIGNATURE,
            "`X-Twilio-Signature`; of a body that is no form the hash goes into the query.",
        ),
        with(
            "shopify",
            &SHOPIFY_SIGNATURE,
            "`X-Shopify-Hmac-Sha256`, and what the event is.",
        ),
        with(
            "woocommerce",
            &WOOCOMMERCE_SIGNATURE,
            "`X-WC-Webhook-Signature`, and what the event is.",
        ),
        plain("intercom", "`X-Hub-Signature` with SHA-1."),
        with(
            "mailchimp",
            &URL_SIGNATURE,
            "`X-Mandrill-Signature` of Mailchimp Transactional, over a form.",
        ),
        plain(
            "docusign",
            "`X-DocuSign-Signature-1` and one more for each further secret.",
        ),
        plain("papertrail", "Nothing is signed."),
        plain("zapier", "Nothing is signed; the URL is the credential."),
        with(
            "hubspot",
            &URL_SIGNATURE,
            "`X-HubSpot-Signature-v3` and its timestamp.",
        ),
        with(
            "jira",
            &JIRA_SIGNATURE,
            "`X-Hub-Signature` with SHA-256, and an identifier.",
        ),
        with("trello", &URL_SIGNATURE, "`X-Trello-Webhook`."),
        plain("asana", "`X-Hook-Signature`."),
        with(
            "gitlab",
            &GITLAB_SIGNATURE,
            "The secret itself in `X-Gitlab-Token`, and what the event is.",
        ),
        plain("zoho", "Nothing is signed."),
        with("hmac", &HMAC_SIGNATURE, "Any other HMAC in a header."),
        plain("none", "Nothing is signed."),
    ],
};

/// For reading a signature that has no settings.
pub static NO_SETTINGS: Section = Section {
    name: "no settings",
    keys: &[],
};

const SIGNED_URL: Key = key(
    "url",
    Form::Text,
    "the endpoint's, as it is written",
    "The URL that is signed, where the receiver knows it under another name than we do.",
);

pub static URL_SIGNATURE: Section = Section {
    name: "url_signature",
    keys: &[SIGNED_URL],
};

pub static GITHUB_SIGNATURE: Section = Section {
    name: "github_signature",
    keys: &[
        key("event", Form::Text, "`\"{type}\"`", "`X-GitHub-Event`."),
        key(
            "delivery",
            Form::Text,
            "`\"{uuid}\"`",
            "`X-GitHub-Delivery`.",
        ),
    ],
};

pub static SHOPIFY_SIGNATURE: Section = Section {
    name: "shopify_signature",
    keys: &[
        key("topic", Form::Text, "`\"{topic}\"`", "`X-Shopify-Topic`."),
        key(
            "shop_domain",
            Form::Text,
            "`\"{source}\"`",
            "`X-Shopify-Shop-Domain`.",
        ),
        key(
            "api_version",
            Form::Text,
            "`2025-10`",
            "`X-Shopify-API-Version`.",
        ),
        key(
            "webhook_id",
            Form::Text,
            "`\"{id}\"`",
            "`X-Shopify-Webhook-Id`.",
        ),
    ],
};

pub static WOOCOMMERCE_SIGNATURE: Section = Section {
    name: "woocommerce_signature",
    keys: &[
        key(
            "source",
            Form::Text,
            "`\"{source}\"`",
            "`X-WC-Webhook-Source`.",
        ),
        key(
            "topic",
            Form::Text,
            "`\"{topic}\"`",
            "`X-WC-Webhook-Topic`.",
        ),
        key(
            "resource",
            Form::Text,
            "`\"{topic.first}\"`",
            "`X-WC-Webhook-Resource`.",
        ),
        key(
            "event",
            Form::Text,
            "`\"{topic.last}\"`",
            "`X-WC-Webhook-Event`.",
        ),
        key("webhook_id", Form::Text, "`1`", "`X-WC-Webhook-ID`."),
        key(
            "delivery_id",
            Form::Text,
            "`\"{id}\"`",
            "`X-WC-Webhook-Delivery-ID`.",
        ),
    ],
};

pub static JIRA_SIGNATURE: Section = Section {
    name: "jira_signature",
    keys: &[key(
        "identifier",
        Form::Text,
        "`\"{id}\"`",
        "`X-Atlassian-Webhook-Identifier`.",
    )],
};

pub static GITLAB_SIGNATURE: Section = Section {
    name: "gitlab_signature",
    keys: &[
        key("event", Form::Text, "`\"{type}\"`", "`X-Gitlab-Event`."),
        key(
            "event_uuid",
            Form::Text,
            "`\"{uuid}\"`",
            "`X-Gitlab-Event-UUID`.",
        ),
    ],
};

pub static HMAC_SIGNATURE: Section = Section {
    name: "hmac_signature",
    keys: &[
        key(
            "header",
            Form::Text,
            MANDATORY,
            "The header that carries the signature.",
        ),
        key(
            "prefix",
            Form::Text,
            "empty",
            "What stands before it, such as `sha256=`.",
        ),
        key(
            "hash",
            Form::OneOf(&Hash::NAMES),
            "`sha256`",
            "The hash of the HMAC.",
        ),
        key(
            "encoding",
            Form::OneOf(&Encoding::NAMES),
            "`hex`",
            "How the signature is written.",
        ),
        key(
            "key",
            Form::OneOf(&KeyForm::NAMES),
            "`text`",
            "How the secret is written; as `text` its characters are the key.",
        ),
        key(
            "signed",
            Form::Text,
            "`\"{body}\"`",
            "What is signed: text with `{body}`, `{id}`, `{timestamp}`, `{url}` and `{method}` in it.",
        ),
        key(
            "timestamp",
            Form::OneOf(&TimeUnit::NAMES),
            "`seconds`",
            "What a signed timestamp counts, since 1970.",
        ),
        key(
            "timestamp_header",
            Form::Text,
            "`webhook-timestamp`",
            "The header of a signed timestamp.",
        ),
        key(
            "id_header",
            Form::Text,
            "`webhook-id`",
            "The header of a signed id.",
        ),
        SIGNED_URL,
    ],
};
