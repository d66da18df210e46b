//! Credentials are taken out of what is kept of a request and its answer.
//!
//! Answers to failed requests often repeat the request. The path of a webhook's URL and the headers
//! that the config gives are credentials more often than not, and excerpts go to the log, the
//! envelope and the journal. A body has those that a template puts in.

use std::borrow::Cow;

use url::{Url, form_urlencoded};

use crate::attempt::Outcome;
use crate::subscription::{Auth, Endpoint};

const MASK: &str = "***";
/// What is shorter is found in any text and says nothing.
const SHORTEST: usize = 6;
/// Parts of a path that are shorter, or no more than a word, are no keys.
const SHORTEST_KEY: usize = 8;

/// Masks what the config says of `endpoint` in the excerpt of `outcome`.
pub fn mask(outcome: &mut Outcome, endpoint: &Endpoint) {
    let Outcome::Answered(answer) = outcome else {
        return;
    };
    if answer.excerpt.is_empty() {
        return;
    }
    masked(&mut answer.excerpt, endpoint);
}

/// Masks what the config says of `endpoint` in `text`.
pub fn masked(text: &mut String, endpoint: &Endpoint) {
    let (url, headers) = (&*endpoint.url, &endpoint.headers);
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
    let values = values.chain(of_url).map(Cow::Borrowed);
    let values = values.chain(shown.map(Cow::Owned));
    for secret in values.chain(params(endpoint)).chain(keys(url)) {
        take_out(text, &secret);
    }
}

/// The body without what the config has for templates to put in.
pub fn without_params<'b>(body: &'b [u8], endpoint: &Endpoint) -> Cow<'b, [u8]> {
    let mut secrets = params(endpoint).peekable();
    if secrets.peek().is_none() {
        return Cow::Borrowed(body);
    }
    // What is compressed cannot be looked through.
    let text = std::str::from_utf8(body).ok();
    let text = text.filter(|_| !endpoint.payload.gzip);
    let mut text = text.unwrap_or(MASK).to_owned();
    for secret in secrets {
        take_out(&mut text, &secret);
    }
    Cow::Owned(text.into_bytes())
}

fn take_out(text: &mut String, secret: &str) {
    if secret.len() >= SHORTEST && text.contains(secret) {
        *text = text.replace(secret, MASK);
    }
}

/// What templates are given as it is, as they may have put it in.
fn params(endpoint: &Endpoint) -> impl Iterator<Item = Cow<'_, str>> {
    endpoint.payload.params().flat_map(|param| {
        let encoded = form_urlencoded::byte_serialize(param.as_bytes()).collect::<String>();
        let in_json = serde_json::Value::from(param).to_string();
        let in_json = in_json[1..in_json.len() - 1].to_owned();
        // As templates escape them, see `render`.
        let in_markup = [
            ("&", "&amp;"),
            ("<", "&lt;"),
            (">", "&gt;"),
            ("\"", "&quot;"),
        ];
        let in_markup = in_markup.iter().chain(&[("'", "&#x27;"), ("/", "&#x2f;")]);
        let in_markup = in_markup.fold(param.to_owned(), |text, (from, to)| text.replace(from, to));
        let in_script = [
            ("&", "\\u0026"),
            ("<", "\\u003c"),
            (">", "\\u003e"),
            ("'", "\\u0027"),
        ];
        let in_script = in_script
            .iter()
            .fold(in_json.clone(), |text, (from, to)| text.replace(from, to));
        let in_url = encoded.replace('+', "%20");
        let in_path = in_url.replace("%2F", "/");
        [encoded, in_json, in_markup, in_script, in_url, in_path]
            .into_iter()
            .map(Cow::Owned)
            .chain([Cow::Borrowed(param)])
    })
}

/// Parts of the URL that could be keys by themselves, since a receiver may repeat one alone.
fn keys(url: &Url) -> impl Iterator<Item = Cow<'_, str>> {
    let is_key = |part: &str| {
        let word = part
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b"-_.".contains(&b));
        part.len() >= SHORTEST_KEY && !word
    };
    let path = url.path_segments().into_iter().flatten().map(Cow::Borrowed);
    let query = url.query_pairs().map(|(_, value)| value);
    path.chain(query).filter(move |part| is_key(part))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{HeaderMap, Method};

    use super::*;
    use crate::attempt::Answer;
    use crate::subscription::{Breaker, Format, Payload, Scheme, Template};

    fn after_mask(excerpt: &str) -> String {
        let mut outcome = Outcome::Answered(Answer {
            status: 404,
            retry_after: None,
            limit: None,
            wish: None,
            excerpt: excerpt.to_owned(),
        });
        mask(&mut outcome, &endpoint(Payload::default()));
        outcome.excerpt().to_owned()
    }

    fn endpoint(payload: Payload) -> Endpoint {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "Bearer abc123def".parse().unwrap());
        headers.insert("x-short", "on".parse().unwrap());
        Endpoint {
            name: "crm".into(),
            url: Arc::new(
                "https://h.example/hooks/T0K3N/X9z8Y7w6v5?key=s3cr3tS3CR3T"
                    .parse()
                    .unwrap(),
            ),
            method: Method::POST,
            headers: Some(headers.into()),
            signature: Scheme::Standard,
            secrets: Vec::new(),
            payload: Payload::shared(payload),
            auth: None,
            handshake: None,
            tls: None,
            concurrency: 1,
            adaptive: false,
            rate: None,
            breaker: Breaker::default(),
        }
    }

    #[test]
    fn what_a_template_puts_into_a_body_is_not_kept() {
        let template = |secret: &str| {
            let params = [("key".into(), secret.into())];
            Payload {
                format: Format::Template(Box::new(Template {
                    body: None,
                    content_type: "application/json".into(),
                    headers: Vec::new(),
                    query: Vec::new(),
                    path: Vec::new(),
                    params: params.into(),
                    adapted: None,
                })),
                ..Payload::default()
            }
        };
        let kept = |body: &str, payload: Payload| {
            let kept = without_params(body.as_bytes(), &endpoint(payload)).into_owned();
            String::from_utf8(kept).unwrap()
        };
        assert_eq!(
            kept("{\"key\":\"R0UT3KEY\"}", template("R0UT3KEY")),
            "{\"key\":\"***\"}"
        );
        assert_eq!(kept("key=R0+%26T3KEY", template("R0 &T3KEY")), "key=***");
        assert_eq!(
            kept("{\"key\":\"a\\\"bcdef\"}", template("a\"bcdef")),
            "{\"key\":\"***\"}"
        );
        let marked = "<k>a&#x2f;b&amp;cdef</k> a/b\\u0026cdef";
        assert_eq!(kept(marked, template("a/b&cdef")), "<k>***</k> ***");
        assert_eq!(kept("k=a%20b/cdef", template("a b/cdef")), "k=***");
        assert_eq!(kept("plain", Payload::default()), "plain");
        let compressed = Payload {
            gzip: true,
            ..template("R0UT3KEY")
        };
        assert_eq!(kept("whatever it is", compressed), "***");
    }

    #[test]
    fn what_the_config_gives_is_masked_in_an_echo() {
        assert_eq!(
            after_mask("no POST /hooks/T0K3N/X9z8Y7w6v5?key=s3cr3tS3CR3T here, token abc123def"),
            "no POST ***?*** here, token ***"
        );
        assert_eq!(
            after_mask("turned on by Bearer abc123def"),
            "turned on by ***"
        );
        assert_eq!(after_mask("not found"), "not found");
        assert_eq!(after_mask("no hooks X9z8Y7w6v5"), "no hooks ***");
        assert_eq!(after_mask("bad key \"s3cr3tS3CR3T\""), "bad key \"***\"");
    }
}
