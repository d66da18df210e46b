//! The admin API of a running bridge, as the commands use it.

use std::time::Duration;

use anyhow::Context as _;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::exit::Exit;
use crate::config::Config;

/// Names the environment variable with the token.
const TOKEN: &str = "HOOKBRIDGE_TOKEN";
const CONNECT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(35);
/// An answer that takes long shows signs of life.
const SILENCE: Duration = Duration::from_secs(60);

/// The bridge that listens on the config's `admin.listen`.
pub struct Admin {
    base: String,
    token: Option<String>,
    client: Client,
}

/// What the API says is wrong (RFC 9457).
#[derive(serde::Deserialize)]
struct Problem {
    title: String,
    detail: String,
    /// What is wrong in the body, one by one.
    #[serde(default)]
    errors: Vec<Wrong>,
}

#[derive(serde::Deserialize)]
struct Wrong {
    pointer: Option<String>,
    line: Option<usize>,
    column: Option<usize>,
    detail: String,
    help: Option<String>,
}

/// An answer with its entity tag.
pub struct Tagged<T> {
    pub body: T,
    pub etag: Option<String>,
}

impl Admin {
    /// `None` when nothing listens there. Something else that listens there is an error.
    pub async fn of(config: &Config) -> anyhow::Result<Option<Self>> {
        let client = Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .build()
            .context("no HTTP client")?;
        let mut address = config.admin.listen;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        let admin = Self {
            base: format!("http://{address}"),
            token: std::env::var(TOKEN).ok().filter(|token| !token.is_empty()),
            client,
        };
        match admin.request(Method::GET, "/version").send().await {
            Ok(answer) if answer.status().is_success() => Ok(Some(admin)),
            Ok(answer) => Err(Exit::unavailable(format!(
                "{address} (`admin.listen`) answers, but not as hookbridge does: {}",
                answer.status()
            ))
            .into()),
            Err(error) if error.is_connect() => Ok(None),
            Err(error) => {
                let error = anyhow::Error::from(error.without_url());
                Err(error.context(Exit::unavailable(format!(
                    "the admin API at {address} does not answer"
                ))))
            }
        }
    }

    /// The same, where it has to be running.
    pub async fn running(config: &Config) -> anyhow::Result<Self> {
        Self::of(config).await?.ok_or_else(|| {
            let address = config.admin.listen;
            let message = format!("no hookbridge is running on {address} (`admin.listen`)");
            Exit::unavailable(message).into()
        })
    }

    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> anyhow::Result<T> {
        let request = self.client.get(self.url(path, query)?).timeout(ANSWER);
        self.read(self.with_token(request)).await
    }

    /// For what may take as long as it shows signs of life.
    pub async fn get_slowly<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> anyhow::Result<T> {
        let request = self.client.get(self.url(path, query)?);
        self.read(self.with_token(request)).await
    }

    /// The lines of an answer as they come.
    pub async fn lines(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<Lines> {
        let request = self.client.get(self.url(path, query)?);
        let answer = send(self.with_token(request)).await?;
        Ok(Lines::of(answer))
    }

    /// A POST of many lines, which is answered with many.
    pub async fn post_lines(&self, path: &str, lines: Vec<u8>) -> anyhow::Result<Lines> {
        let request = self.client.post(self.url(path, &[])?).body(lines);
        let kind = (http::header::CONTENT_TYPE, "application/x-ndjson");
        let request = self.with_token(request.header(kind.0, kind.1));
        Ok(Lines::of(send(request).await?))
    }

    fn url(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<url::Url> {
        let mut url = url::Url::parse(&format!("{}{path}", self.base))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.read(self.request(Method::POST, path).json(body)).await
    }

    /// What is there, with its entity tag.
    pub async fn look<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Tagged<T>> {
        let answer = send(self.request(Method::GET, path)).await?;
        let etag = answer.headers().get(http::header::ETAG);
        let etag = etag.and_then(|etag| etag.to_str().ok()).map(str::to_owned);
        let body = body_of(answer).await?;
        Ok(Tagged { body, etag })
    }

    /// A PUT, if what is there still has this tag.
    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        etag: Option<&str>,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let mut request = self.request(Method::PUT, path).json(body);
        if let Some(etag) = etag {
            request = request.header(http::header::IF_MATCH, etag);
        }
        self.read(request).await
    }

    pub async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.read(self.request(Method::PATCH, path).json(body))
            .await
    }

    /// A DELETE that is answered with nothing.
    pub async fn remove(&self, path: &str) -> anyhow::Result<()> {
        send(self.request(Method::DELETE, path)).await.map(drop)
    }

    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.read(self.request(Method::DELETE, path)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.base);
        self.with_token(self.client.request(method, url).timeout(ANSWER))
    }

    fn with_token(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn read<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<T> {
        body_of(send(request).await?).await
    }
}

async fn body_of<T: DeserializeOwned>(answer: Response) -> anyhow::Result<T> {
    let body = answer
        .bytes()
        .await
        .map_err(|error| broken_off(error.without_url()))?;
    serde_json::from_slice(&body).context("the admin API's answer cannot be read")
}

/// `text` as one segment of a path.
pub fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'~');
    let mut out = String::new();
    for byte in text.bytes() {
        match plain(byte) {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// An answer of many lines, each complete.
pub struct Lines {
    answer: Response,
    read: Vec<u8>,
    /// So far there is no line break.
    searched: usize,
}

impl Lines {
    fn of(answer: Response) -> Self {
        Self {
            answer,
            read: Vec::new(),
            searched: 0,
        }
    }

    /// The next line that is not empty; `None` at the end. An answer that was broken off is an error.
    pub async fn next(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = self.read[self.searched..].iter().position(|b| *b == b'\n') {
                let rest = self.read.split_off(self.searched + at + 1);
                let line = std::mem::replace(&mut self.read, rest);
                self.searched = 0;
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(line));
                }
                continue;
            }
            self.searched = self.read.len();
            let more = self.answer.chunk().await;
            match more.map_err(|error| broken_off(error.without_url()))? {
                Some(more) => self.read.extend_from_slice(&more),
                None => return Ok(None),
            }
        }
    }
}

async fn send(request: RequestBuilder) -> anyhow::Result<Response> {
    let answer = request
        .send()
        .await
        .map_err(|error| anyhow::Error::from(error.without_url()))
        .context(Exit::unavailable("the admin API does not answer"))?;
    match answer.status().is_success() {
        true => Ok(answer),
        false => Err(refusal(answer).await),
    }
}

fn broken_off(error: reqwest::Error) -> anyhow::Error {
    let why = "the admin API broke off its answer: the bridge's log says why";
    anyhow::Error::from(error).context(Exit::unavailable(why))
}

/// A problem, with a line for each thing that is wrong.
fn said(problem: &Problem) -> String {
    let mut said = format!("{}: {}", problem.title, problem.detail);
    for wrong in &problem.errors {
        let pointer = wrong.pointer.as_deref();
        let pointer = pointer.map(|pointer| match pointer.trim_start_matches('#') {
            "" => "/".to_owned(),
            pointer => pointer.to_owned(),
        });
        let line = wrong.line.map(|line| match wrong.column {
            Some(column) => format!("{line}:{column}"),
            None => format!("line {line}"),
        });
        let place: Vec<_> = line.into_iter().chain(pointer).collect();
        said.push_str(&format!("\n  {}: {}", place.join(", "), wrong.detail));
        if let Some(help) = &wrong.help {
            said.push_str(&format!(" ({help})"));
        }
    }
    said
}

async fn refusal(answer: Response) -> anyhow::Error {
    let status = answer.status();
    let body = answer.bytes().await.unwrap_or_default();
    let said = match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => said(&problem),
        Err(_) => format!("the admin API answers {status}"),
    };
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            anyhow::anyhow!("{said} (the token is taken from {TOKEN})")
        }
        StatusCode::SERVICE_UNAVAILABLE => Exit::unavailable(said).into(),
        _ => anyhow::anyhow!(said),
    }
}
