//! What a receiver echoes: its own credentials are taken out of the part of an answer that is kept.
//!
//! Answers to failed requests often repeat the request. The path of a webhook's URL and the headers
//! that the config gives are credentials more often than not, and excerpts go to the log, the
//! envelope and the journal.

use std::borrow::Cow;

use crate::attempt::Outcome;
use crate::subscription::{Auth, Endpoint};

const MASK: &str = "***";
/// What is shorter is found in any text and says nothing.
const SHORTEST: usize = 6;

/// Masks what the config says of `endpoint` in the excerpt of `outcome`.
pub fn mask(outcome: &mut Outcome, endpoint: &Endpoint) {
    let Outcome::Answered(answer) = outcome else {
        return;
    };
    if answer.excerpt.is_empty() {
        return;
    }
    let (url, headers) = (&endpoint.url, &endpoint.headers);
    let values = headers.iter().flat_map(|all| all.values());
    let values = values.filter_map(|value| value.to_str().ok());
    // `Bearer x`, of which a receiver may repeat `x`.
    let values = values.flat_map(|value| [value, value.rsplit(' ').next().unwrap_or_default()]);
    let of_url = [
        url.query().unwrap_or_default(),
        url.path(),
        url.password().unwrap_or_default(),
    ];
    let shown = endpoint.auth.as_deref().into_iter().flat_map(Auth::shown);
    let params = endpoint.payload.params();
    let values = values.chain(of_url).map(Cow::Borrowed);
    let values = values.chain(shown.map(Cow::Owned));
    for secret in values.chain(params.map(Cow::Borrowed)) {
        let secret = &*secret;
        if secret.len() >= SHORTEST && answer.excerpt.contains(secret) {
            answer.excerpt = answer.excerpt.replace(secret, MASK);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{HeaderMap, Method};

    use super::*;
    use crate::attempt::Answer;
    use crate::subscription::{Breaker, Scheme};

    fn masked(excerpt: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "Bearer abc123def".parse().unwrap());
        headers.insert("x-short", "on".parse().unwrap());
        let endpoint = Endpoint {
            name: "crm".into(),
            url: Arc::new("https://h.example/hooks/T0K3N?key=s3cr3t".parse().unwrap()),
            method: Method::POST,
            headers: Some(headers.into()),
            signature: Scheme::Standard,
            secrets: Vec::new(),
            payload: Default::default(),
            auth: None,
            tls: None,
            concurrency: 1,
            adaptive: false,
            rate: None,
            breaker: Breaker::default(),
        };
        let mut outcome = Outcome::Answered(Answer {
            status: 404,
            retry_after: None,
            wish: None,
            excerpt: excerpt.to_owned(),
        });
        mask(&mut outcome, &endpoint);
        outcome.excerpt().to_owned()
    }

    #[test]
    fn what_the_config_gives_is_masked_in_an_echo() {
        assert_eq!(
            masked("no POST /hooks/T0K3N?key=s3cr3t here, token abc123def"),
            "no POST ***?*** here, token ***"
        );
        assert_eq!(masked("turned on by Bearer abc123def"), "turned on by ***");
        assert_eq!(masked("not found"), "not found");
    }
}
