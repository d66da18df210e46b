//! GitLab: the secret itself, in `X-Gitlab-Token`.
//!
//! It proves who sends and nothing about the body. There is room for one, so the newest is sent.
//! See <https://docs.gitlab.com/user/project/integrations/webhooks/>.

use http::{HeaderName, HeaderValue};

use super::mac::same;
use super::{Received, SecretError, VerifyError, text_of};
use crate::outgoing::Outgoing;
use crate::subscription::Secret;

pub(super) const HEADER: HeaderName = HeaderName::from_static("x-gitlab-token");

pub(super) struct TokenKeys {
    /// Newest first.
    secrets: Vec<Secret>,
    newest: HeaderValue,
}

impl TokenKeys {
    pub(super) fn new(secrets: &[Secret]) -> Result<Self, SecretError> {
        let value = |secret: &Secret| {
            let visible = secret.expose().bytes().all(|byte| byte.is_ascii_graphic());
            let value = HeaderValue::from_str(secret.expose()).ok();
            value.filter(|_| visible).ok_or(SecretError::Token)
        };
        let values: Vec<_> = secrets.iter().map(value).collect::<Result<_, _>>()?;
        let mut newest = values
            .into_iter()
            .next()
            .ok_or(SecretError::Missing("gitlab"))?;
        newest.set_sensitive(true);
        Ok(Self {
            secrets: secrets.to_vec(),
            newest,
        })
    }

    pub(super) fn sign(&self, request: &mut Outgoing) {
        request.headers.insert(HEADER, self.newest.clone());
    }

    pub(super) fn verify(&self, request: &Received<'_>) -> Result<(), VerifyError> {
        let given = text_of(request.headers, &HEADER)?;
        let mut found = false;
        for secret in &self.secrets {
            found |= same(given, secret.expose());
        }
        found.then_some(()).ok_or(VerifyError::Mismatch)
    }
}
