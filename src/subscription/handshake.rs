//! Handshakes: what an endpoint is asked before its first delivery, so that nobody is sent events who
//! has not agreed to get them.

use sha2::{Digest as _, Sha256};

use super::{Endpoint, Secret};

/// How an endpoint is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Handshake {
    /// An `OPTIONS` request that names us, as CloudEvents' webhooks say.
    Options { origin: String },
    /// JSON with a challenge, signed like a delivery, that has to come back.
    Challenge(Challenge),
    /// The newest secret in `X-Hook-Secret`, which has to come back.
    HookSecret,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Challenge {
    /// The member that carries it, in the request and in an answer of JSON.
    pub field: String,
    /// What `type` says.
    pub kind: String,
    /// What `token` says, if there is one.
    pub token: Option<Secret>,
}

impl Challenge {
    pub const FIELD: &'static str = "challenge";
    pub const KIND: &'static str = "url_verification";
}

impl Default for Challenge {
    fn default() -> Self {
        Self {
            field: Self::FIELD.to_owned(),
            kind: Self::KIND.to_owned(),
            token: None,
        }
    }
}

impl Handshake {
    /// As the config calls them, with that of an endpoint that is not asked.
    pub const NAMES: [&'static str; 4] = ["none", "options", "challenge", "hook-secret"];
    /// A name for the sender where none is given.
    pub const ORIGIN: &'static str = "hookbridge";

    pub fn name(&self) -> &'static str {
        match self {
            Self::Options { .. } => "options",
            Self::Challenge(_) => "challenge",
            Self::HookSecret => "hook-secret",
        }
    }
}

impl Endpoint {
    /// What an agreement of this endpoint holds for: its URL, how it was asked, and the newest secret,
    /// as a hash. With any of them changed it is asked anew. `None`: it is never asked.
    pub fn agreement_key(&self) -> Option<String> {
        let handshake = self.handshake.as_deref()?;
        let secret = self.secrets.first().map_or("", Secret::expose);
        let mut parts = vec![handshake.name(), self.url.as_str(), secret];
        match handshake {
            Handshake::Options { origin } => parts.push(origin),
            Handshake::Challenge(Challenge { field, kind, token }) => {
                let token = token.as_ref().map_or("", Secret::expose);
                parts.extend([field, kind, token]);
            }
            Handshake::HookSecret => {}
        }
        let mut hasher = Sha256::new();
        for part in parts {
            // With its length, so that different parts are never the same bytes.
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        Some(hex::encode(hasher.finalize()))
    }
}
