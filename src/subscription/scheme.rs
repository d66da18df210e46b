//! Schemes: which signature the requests of an endpoint carry, each as a service that people know
//! sends it, with what of it can be set.
//!
//! How one is computed is the business of `deliver::signature`; what is here is what the config
//! says.

use std::fmt;
use std::sync::Arc;

use http::HeaderName;

use super::words::{Word, Worded};

/// Which signature the requests carry.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Scheme {
    /// Standard Webhooks, HMAC-SHA256, secret `whsec_…`.
    #[default]
    Standard,
    /// Standard Webhooks, ed25519, key `whsk_…`.
    StandardEd25519,
    Svix,
    Stripe,
    Github(Filled),
    Slack,
    Twilio(SignedUrl),
    Shopify(Filled),
    Woocommerce(Filled),
    Intercom,
    /// Mailchimp Transactional, which was Mandrill.
    Mailchimp(SignedUrl),
    Docusign,
    Papertrail,
    Zapier,
    Hubspot(SignedUrl),
    Jira(Filled),
    Trello(SignedUrl),
    Asana,
    Gitlab(Filled),
    Zoho,
    /// Whatever else is an HMAC in a header.
    Hmac(Box<HmacScheme>),
    None,
}

impl Scheme {
    pub const NAMES: [&'static str; 22] = [
        "standard",
        "standard-ed25519",
        "svix",
        "stripe",
        "github",
        "slack",
        "twilio",
        "shopify",
        "woocommerce",
        "intercom",
        "mailchimp",
        "docusign",
        "papertrail",
        "zapier",
        "hubspot",
        "jira",
        "trello",
        "asana",
        "gitlab",
        "zoho",
        "hmac",
        "none",
    ];

    /// The scheme with its defaults. `hmac` has none: it does not know the header.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "standard" => Self::Standard,
            "standard-ed25519" => Self::StandardEd25519,
            "svix" => Self::Svix,
            "stripe" => Self::Stripe,
            "github" => Self::Github(Filled::of(&GITHUB)),
            "slack" => Self::Slack,
            "twilio" => Self::Twilio(SignedUrl::default()),
            "shopify" => Self::Shopify(Filled::of(&SHOPIFY)),
            "woocommerce" => Self::Woocommerce(Filled::of(&WOOCOMMERCE)),
            "intercom" => Self::Intercom,
            "mailchimp" => Self::Mailchimp(SignedUrl::default()),
            "docusign" => Self::Docusign,
            "papertrail" => Self::Papertrail,
            "zapier" => Self::Zapier,
            "hubspot" => Self::Hubspot(SignedUrl::default()),
            "jira" => Self::Jira(Filled::of(&JIRA)),
            "trello" => Self::Trello(SignedUrl::default()),
            "asana" => Self::Asana,
            "gitlab" => Self::Gitlab(Filled::of(&GITLAB)),
            "zoho" => Self::Zoho,
            "none" => Self::None,
            _ => return None,
        })
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::StandardEd25519 => "standard-ed25519",
            Self::Svix => "svix",
            Self::Stripe => "stripe",
            Self::Github(_) => "github",
            Self::Slack => "slack",
            Self::Twilio(_) => "twilio",
            Self::Shopify(_) => "shopify",
            Self::Woocommerce(_) => "woocommerce",
            Self::Intercom => "intercom",
            Self::Mailchimp(_) => "mailchimp",
            Self::Docusign => "docusign",
            Self::Papertrail => "papertrail",
            Self::Zapier => "zapier",
            Self::Hubspot(_) => "hubspot",
            Self::Jira(_) => "jira",
            Self::Trello(_) => "trello",
            Self::Asana => "asana",
            Self::Gitlab(_) => "gitlab",
            Self::Zoho => "zoho",
            Self::Hmac(_) => "hmac",
            Self::None => "none",
        }
    }

    /// Whether it proves anything, for which it needs a secret.
    pub fn is_signed(&self) -> bool {
        !matches!(
            self,
            Self::Papertrail | Self::Zapier | Self::Zoho | Self::None
        )
    }

    /// Whether the URL is part of what is signed.
    pub fn covers_url(&self) -> bool {
        match self {
            Self::Twilio(_) | Self::Mailchimp(_) | Self::Hubspot(_) | Self::Trello(_) => true,
            Self::Hmac(hmac) => hmac.signed.has(Word::Url),
            _ => false,
        }
    }

    /// Headers that say what the event is.
    pub fn filled(&self) -> Option<&Filled> {
        match self {
            Self::Github(filled)
            | Self::Shopify(filled)
            | Self::Woocommerce(filled)
            | Self::Jira(filled)
            | Self::Gitlab(filled) => Some(filled),
            _ => None,
        }
    }

    pub fn filled_mut(&mut self) -> Option<&mut Filled> {
        match self {
            Self::Github(filled)
            | Self::Shopify(filled)
            | Self::Woocommerce(filled)
            | Self::Jira(filled)
            | Self::Gitlab(filled) => Some(filled),
            _ => None,
        }
    }

    /// The URL that is signed, where the signature covers one.
    pub fn signed_url_mut(&mut self) -> Option<&mut SignedUrl> {
        match self {
            Self::Twilio(url) | Self::Mailchimp(url) | Self::Hubspot(url) | Self::Trello(url) => {
                Some(url)
            }
            Self::Hmac(hmac) => Some(&mut hmac.url),
            _ => None,
        }
    }
}

/// A URL as it is signed, where that is written differently from the one that is sent: as the
/// config has it (`https://h` is sent as `https://h/`), or as the receiver's public address has it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct SignedUrl(Option<Arc<str>>);

impl SignedUrl {
    pub fn written(url: &str) -> Self {
        Self(Some(url.into()))
    }

    pub fn is_written(&self) -> bool {
        self.0.is_some()
    }

    /// The URL to sign for a request to `sent`.
    pub fn or_sent<'a>(&'a self, sent: &'a str) -> &'a str {
        self.0.as_deref().unwrap_or(sent)
    }
}

/// Paths and queries of webhooks are often credentials.
impl fmt::Debug for SignedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "SignedUrl(as written)",
            None => "SignedUrl(as sent)",
        })
    }
}

/// A header that a scheme fills from the event, by a key of its settings.
#[derive(Debug, PartialEq, Eq)]
pub struct HeaderRow {
    pub key: &'static str,
    /// In lower case.
    pub header: &'static str,
    pub default: &'static str,
}

const fn row(key: &'static str, header: &'static str, default: &'static str) -> HeaderRow {
    HeaderRow {
        key,
        header,
        default,
    }
}

static GITHUB: [HeaderRow; 2] = [
    row("event", "x-github-event", "{type}"),
    row("delivery", "x-github-delivery", "{uuid}"),
];
static SHOPIFY: [HeaderRow; 4] = [
    row("topic", "x-shopify-topic", "{topic}"),
    row("shop_domain", "x-shopify-shop-domain", "{source}"),
    row("api_version", "x-shopify-api-version", "2025-10"),
    row("webhook_id", "x-shopify-webhook-id", "{id}"),
];
static WOOCOMMERCE: [HeaderRow; 6] = [
    row("source", "x-wc-webhook-source", "{source}"),
    row("topic", "x-wc-webhook-topic", "{topic}"),
    row("resource", "x-wc-webhook-resource", "{topic.first}"),
    row("event", "x-wc-webhook-event", "{topic.last}"),
    row("webhook_id", "x-wc-webhook-id", "1"),
    row("delivery_id", "x-wc-webhook-delivery-id", "{id}"),
];
static JIRA: [HeaderRow; 1] = [row("identifier", "x-atlassian-webhook-identifier", "{id}")];
static GITLAB: [HeaderRow; 2] = [
    row("event", "x-gitlab-event", "{type}"),
    row("event_uuid", "x-gitlab-event-uuid", "{uuid}"),
];

/// Headers that are filled from the event, in the order in which the scheme lists them.
#[derive(Debug, Clone, PartialEq)]
pub struct Filled(Vec<(&'static HeaderRow, Worded)>);

impl Filled {
    fn of(rows: &'static [HeaderRow]) -> Self {
        let text = |row: &HeaderRow| row.default.parse().expect("a text of ours");
        Self(rows.iter().map(|row| (row, text(row))).collect())
    }

    /// Fills the header of `key` with `text` instead of its default.
    pub fn set(&mut self, key: &str, text: Worded) {
        if let Some((_, old)) = self.0.iter_mut().find(|(row, _)| row.key == key) {
            *old = text;
        }
    }

    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|(row, _)| row.key)
    }

    pub fn headers(&self) -> impl Iterator<Item = (HeaderName, &Worded)> {
        self.0
            .iter()
            .map(|(row, text)| (HeaderName::from_static(row.header), text))
    }
}

/// An HMAC in one header.
#[derive(Debug, Clone, PartialEq)]
pub struct HmacScheme {
    pub header: HeaderName,
    /// Before the signature, such as `sha256=`.
    pub prefix: Box<str>,
    pub hash: Hash,
    pub encoding: Encoding,
    /// How the secret is written; its characters themselves, unless said otherwise.
    pub key: KeyForm,
    pub signed: Worded,
    /// Where the receiver finds the id and the timestamp that are signed.
    pub id_header: HeaderName,
    pub timestamp_header: HeaderName,
    pub unit: TimeUnit,
    pub url: SignedUrl,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    Sha1,
    Sha256,
    Sha512,
}

impl Hash {
    pub const NAMES: [&'static str; 3] = ["sha1", "sha256", "sha512"];

    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "sha1" => Some(Self::Sha1),
            "sha256" => Some(Self::Sha256),
            "sha512" => Some(Self::Sha512),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// In lower case.
    Hex,
    Base64,
}

impl Encoding {
    pub const NAMES: [&'static str; 2] = ["hex", "base64"];

    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "hex" => Some(Self::Hex),
            "base64" => Some(Self::Base64),
            _ => None,
        }
    }
}

/// How a secret is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyForm {
    Text,
    Encoded(Encoding),
}

impl KeyForm {
    pub const NAMES: [&'static str; 3] = ["text", "hex", "base64"];

    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "text" => Some(Self::Text),
            name => Encoding::from_name(name).map(Self::Encoded),
        }
    }
}

/// What a timestamp counts, since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeUnit {
    Seconds,
    Milliseconds,
}

impl TimeUnit {
    pub const NAMES: [&'static str; 2] = ["seconds", "milliseconds"];

    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "seconds" => Some(Self::Seconds),
            "milliseconds" => Some(Self::Milliseconds),
            _ => None,
        }
    }
}

impl Worded {
    /// A text over the words of an event, as headers are filled with.
    pub fn of_event(text: &str) -> Result<Self, super::words::WordError> {
        Self::parse(text, &Word::OF_EVENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheme_has_its_name() {
        for name in Scheme::NAMES {
            match Scheme::from_name(name) {
                Some(scheme) => assert_eq!(scheme.name(), name),
                None => assert_eq!(name, "hmac"),
            }
        }
        assert_eq!(Scheme::from_name("Stripe"), None);
    }

    #[test]
    fn a_signed_url_is_not_shown() {
        let url = SignedUrl::written("https://h/T0/credential");
        assert!(!format!("{url:?}").contains("credential"));
        assert_eq!(url.or_sent("https://other/"), "https://h/T0/credential");
        assert_eq!(
            SignedUrl::default().or_sent("https://other/"),
            "https://other/"
        );
    }
}
