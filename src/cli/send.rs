//! `hookbridge send`: publishes an event, to try things out and for scripts.
//!
//! The embedded broker belongs to the process that runs it, so events for it go over that process's
//! admin API; RabbitMQ and Kafka are published to directly. Which of the two it is, the caller knows
//! from the config.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use url::Url;

use super::exit::Exit;
use crate::broker::{Broker, Publication};
use crate::event::{HeaderValue, Headers};
use crate::subscription::Secret;

/// Publishes under way at once, with `--count`.
const AT_ONCE: usize = 64;
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, clap::Args)]
#[command(group(clap::ArgGroup::new("body").required(true).args(["data", "file", "stdin"])))]
pub struct Args {
    /// Topic (Kafka, embedded) or routing key (RabbitMQ)
    pub topic: String,

    /// Read the event's body from standard input
    #[arg(value_name = "-", value_parser = ["-"])]
    pub stdin: Option<String>,

    /// The event's body
    #[arg(long, short, value_name = "TEXT")]
    pub data: Option<String>,

    /// File with the event's body
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,

    #[command(flatten)]
    pub config: super::settings::ConfigFile,

    /// Broker to publish to; needed when the config has several
    #[arg(long, value_name = "NAME")]
    pub broker: Option<String>,

    /// Exchange to publish to (RabbitMQ); the default one reaches a queue by its name
    #[arg(long, value_name = "EXCHANGE", default_value = "")]
    pub exchange: String,

    /// The event's id; with --count, `-1`, `-2`, … are appended
    #[arg(long)]
    pub id: Option<String>,

    /// The event's type
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,

    /// The event's key
    #[arg(long)]
    pub key: Option<String>,

    /// A header of the event; may be given more than once
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    pub headers: Vec<(String, String)>,

    /// The body's media type
    #[arg(long, value_name = "TYPE")]
    pub content_type: Option<String>,

    /// Publish it so many times
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub count: u64,

    /// Bearer token of the admin API (embedded broker)
    #[arg(long, env = "HOOKBRIDGE_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

/// Where to publish.
pub enum Target {
    /// The admin API at this address, for its embedded broker.
    Admin(SocketAddr),
    /// Directly.
    Broker(Arc<dyn Broker>),
}

/// Publishes what `args` say to `target`, confirmed by it, and prints how many there were.
pub async fn run(args: Args, target: Target) -> anyhow::Result<ExitCode> {
    let publication = args.publication()?;
    let door = match target {
        Target::Admin(address) => Door::Admin(Admin::new(address, args.token.map(Secret::new))?),
        Target::Broker(broker) => Door::Broker(broker),
    };
    let began = Instant::now();
    let copies = (1..=args.count).map(|number| {
        let mut copy = publication.clone();
        if args.count > 1 {
            copy.id = copy.id.map(|id| format!("{id}-{number}"));
        }
        door.publish(copy)
    });
    let mut published = 0;
    let mut results = stream::iter(copies).buffer_unordered(AT_ONCE);
    while let Some(result) = results.next().await {
        match result {
            Err(error) if args.count > 1 => {
                return Err(error.context(format!("{published} of {} published", args.count)));
            }
            other => other?,
        }
        published += 1;
    }
    let took = began.elapsed();
    // Whoever has closed our output knows already.
    let _ = writeln!(
        std::io::stdout(),
        "{published} published to {} in {took:.2?}",
        args.topic
    );
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn publication(&self) -> anyhow::Result<Publication> {
        let body = match (&self.data, &self.file) {
            (Some(data), _) => Bytes::from(data.clone()),
            (None, Some(file)) => std::fs::read(file)
                .with_context(|| Exit::io(format!("{} cannot be read", file.display())))?
                .into(),
            (None, None) => {
                let mut body = Vec::new();
                std::io::stdin()
                    .read_to_end(&mut body)
                    .context("cannot read standard input")?;
                body.into()
            }
        };
        let mut headers = Headers::default();
        for (name, value) in &self.headers {
            headers.push(name, HeaderValue::text(value));
        }
        Ok(Publication {
            topic: self.topic.clone(),
            exchange: self.exchange.clone(),
            id: self.id.clone(),
            kind: self.kind.clone(),
            key: self.key.clone().map(Bytes::from),
            content_type: self.content_type.clone(),
            headers,
            body,
        })
    }
}

enum Door {
    Admin(Admin),
    Broker(Arc<dyn Broker>),
}

impl Door {
    async fn publish(&self, publication: Publication) -> anyhow::Result<()> {
        match self {
            Self::Admin(admin) => admin.publish(publication).await,
            Self::Broker(broker) => tokio::time::timeout(DEADLINE, broker.publish(publication))
                .await
                .context(Exit::unavailable(format!(
                    "broker `{}` has not confirmed it within {DEADLINE:?}",
                    broker.name()
                )))?
                .context(Exit::unavailable(format!(
                    "broker `{}` has not taken it",
                    broker.name()
                ))),
        }
    }
}

/// `POST /v1/topics/{topic}/events` of a running bridge.
pub struct Admin {
    base: Url,
    token: Option<Secret>,
    client: reqwest::Client,
}

impl Admin {
    pub fn new(address: SocketAddr, token: Option<Secret>) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(DEADLINE)
            .build()?;
        let base = Url::parse(&format!("http://{address}/v1/topics"))?;
        Ok(Self {
            base,
            token,
            client,
        })
    }

    pub async fn publish(&self, publication: Publication) -> anyhow::Result<()> {
        let Publication {
            topic,
            exchange,
            id,
            kind,
            key,
            content_type,
            headers,
            body,
        } = publication;
        if !exchange.is_empty() {
            let message = "the embedded broker has no exchanges: leave out --exchange";
            return Err(Exit::usage(message).into());
        }
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.push(&topic).push("events");
        }
        let mut request = self.client.post(url).body(body);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        if let Some(id) = id {
            request = request.header("hookbridge-id", id);
        }
        if let Some(kind) = kind {
            request = request.header("hookbridge-type", kind);
        }
        if let Some(key) = key {
            request = request.header("hookbridge-key", &key[..]);
        }
        for (name, value) in headers.iter() {
            let value = value.as_bytes().unwrap_or_default();
            request = request.header(format!("hookbridge-header-{name}"), value);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let address = self.base.authority();
        let response = request.send().await.map_err(|error| {
            if error.is_connect() {
                return anyhow::Error::from(Exit::unavailable(format!(
                    "nobody answers on {address} (`admin.listen`): start `hookbridge run` with this config"
                )));
            }
            let why = format!("{address} (`admin.listen`) does not answer");
            anyhow::Error::new(error.without_url()).context(Exit::unavailable(why))
        })?;
        let status = response.status();
        if status == reqwest::StatusCode::ACCEPTED {
            return Ok(());
        }
        let problem = response.json().await.unwrap_or(Problem {
            title: None,
            detail: None,
        });
        match problem.detail.or(problem.title) {
            Some(why) => bail!("refused with {status}: {why}"),
            None => Err(Exit::unavailable(format!(
                "{address} (`admin.listen`) answers, but not as hookbridge does: {status}"
            ))
            .into()),
        }
    }
}

/// What we want of an RFC 9457 problem.
#[derive(serde::Deserialize)]
struct Problem {
    title: Option<String>,
    detail: Option<String>,
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::Router;
    use axum::extract::Request;
    use axum::http::StatusCode;
    use clap::Parser;
    use tokio::net::TcpListener;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(arguments: &[&str]) -> Result<Args, clap::Error> {
        Cli::try_parse_from([&["send"], arguments].concat()).map(|cli| cli.args)
    }

    /// An admin API that answers `status` and keeps request lines with our headers.
    async fn admin(status: u16, answer: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = seen.clone();
        let app = Router::new().fallback(move |request: Request| {
            let mut line = format!("{} {}", request.method(), request.uri());
            for (name, value) in request.headers() {
                if name.as_str().starts_with("hookbridge-") || name == "authorization" {
                    line.push_str(&format!(" {name}={}", value.to_str().unwrap()));
                }
            }
            kept.lock().unwrap().push(line);
            async move { (StatusCode::from_u16(status).unwrap(), answer) }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        (address, seen)
    }

    #[tokio::test]
    async fn over_the_admin_api_with_all_there_is_to_say() {
        let (address, seen) = admin(202, "").await;
        let args = parse(&[
            "orders/eu",
            "--data",
            "{}",
            "--id",
            "e1",
            "--type",
            "created",
            "--key",
            "k",
            "--header",
            "a=b=c",
            "--token",
            "t",
        ]);
        run(args.unwrap(), Target::Admin(address)).await.unwrap();
        assert_eq!(
            *seen.lock().unwrap(),
            [
                "POST /v1/topics/orders%2Feu/events hookbridge-id=e1 hookbridge-type=created \
              hookbridge-key=k hookbridge-header-a=b=c authorization=Bearer t"
            ]
        );
    }

    #[tokio::test]
    async fn copies_have_ids_of_their_own() {
        let (address, seen) = admin(202, "").await;
        let args = parse(&["orders", "-d", "x", "--id", "e", "--count", "150"]).unwrap();
        run(args, Target::Admin(address)).await.unwrap();
        let seen: std::collections::BTreeSet<_> = seen.lock().unwrap().drain(..).collect();
        assert_eq!(seen.len(), 150);
    }

    #[tokio::test]
    async fn what_the_bridge_objects_to_is_passed_on() {
        let (address, _) =
            admin(413, r#"{"title": "too large", "detail": "16 MiB at most"}"#).await;
        let args = parse(&["orders", "--data", "x"]).unwrap();
        let error = run(args, Target::Admin(address)).await.unwrap_err();
        assert!(format!("{error:#}").contains("16 MiB at most"), "{error:#}");
    }

    #[tokio::test]
    async fn nobody_there_is_said_with_what_to_do() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = gone.local_addr().unwrap();
        drop(gone);
        let args = parse(&["orders", "--data", "x"]).unwrap();
        let error = run(args, Target::Admin(address)).await.unwrap_err();
        assert!(format!("{error:#}").contains("hookbridge run"), "{error:#}");
    }

    #[test]
    fn one_body_from_one_place() {
        <Cli as clap::CommandFactory>::command().debug_assert();
        assert!(parse(&["orders"]).is_err());
        assert!(parse(&["orders", "--data", "x", "--file", "y"]).is_err());
        assert!(parse(&["orders", "-"]).is_ok());
        assert!(parse(&["orders", "--data", "x", "--header", "novalue"]).is_err());
    }
}
