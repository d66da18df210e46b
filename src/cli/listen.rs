//! `hookbridge listen`: a receiver to try things out with.
//!
//! Takes requests on any path, checks their signatures, prints a line for each, and answers 204, or
//! what a script says, or 401 when the signature is not right. Nothing is kept but counts.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use http::StatusCode;
use jiff::Timestamp;
use tokio::net::TcpListener;
use url::Url;

use super::exit::Exit;
use crate::config;
use crate::deliver::signature::{self, Received, VerifyError};
use crate::subscription::{Scheme, Secret, SignedUrl};

/// The secret of the Standard Webhooks documentation, so that `run` and `listen` agree out of the box.
pub const DEMO_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

const MAX_BODY_BYTES: usize = 64 << 20;
/// Ids remembered to count how often each has come.
const MAX_SEEN: usize = 100_000;
const SHOWN_BYTES: usize = 100;

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8401")]
    pub listen: SocketAddr,

    /// How requests are signed: `stripe` or any other name, or `{ hmac: { header: x-signature } }`,
    /// as in the config. Default: `standard` or `standard-ed25519`, as the secrets say
    #[arg(long, value_name = "SIGNATURE", value_parser = config::parse_signature)]
    pub signature: Option<Scheme>,

    /// Secret that requests are signed with (for `standard` whsec_…, whsk_… or whpk_…); may be given
    /// more than once. Default: the secret of the built-in example
    #[arg(
        long = "secret",
        value_name = "SECRET",
        env = "WEBHOOK_SECRET",
        hide_env_values = true
    )]
    pub secrets: Vec<String>,

    /// URL that the sender has, for signatures over it. Default: what the request says, with `http:`
    #[arg(long, value_name = "URL")]
    pub url: Option<Url>,

    /// Statuses to answer with in turn, over and over, such as `200` or `500x2,200`
    #[arg(long, value_name = "STATUSES", value_parser = Script::parse, default_value = "204")]
    pub answer: Script,

    /// Print nothing but the count at the end
    #[arg(long, short)]
    pub quiet: bool,

    /// Print a JSON object per line
    #[arg(long)]
    pub json: bool,
}

/// Statuses to answer with in turn, from the start again when they are used up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script(Vec<(StatusCode, usize)>);

impl Script {
    /// `500x2,200`: twice 500, then 200.
    pub fn parse(text: &str) -> Result<Self, String> {
        let step = |text: &str| {
            let (status, times) = text.trim().split_once('x').unwrap_or((text.trim(), "1"));
            let known = status
                .parse()
                .ok()
                .and_then(|status: u16| StatusCode::from_u16(status).ok())
                .filter(|status| (200..600).contains(&status.as_u16()));
            let times: Option<usize> = times.parse().ok().filter(|n| (1..=1_000_000).contains(n));
            match (known, times) {
                (Some(status), Some(times)) => Ok((status, times)),
                _ => Err(format!("`{text}` is not a status such as `200` or `500x2`")),
            }
        };
        text.split(',')
            .map(step)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The answer to request number `turn`, counted from 0.
    fn at(&self, turn: usize) -> StatusCode {
        let round: usize = self.0.iter().map(|(_, times)| times).sum();
        let mut left = turn % round;
        for (status, times) in &self.0 {
            if left < *times {
                return *status;
            }
            left -= times;
        }
        StatusCode::NO_CONTENT
    }
}

/// How many requests came, and how many of them were verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub received: u64,
    pub verified: u64,
}

/// Listens until SIGINT or SIGTERM, then prints the count.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    Verifier::new(
        args.signature.clone(),
        args.secrets.clone(),
        args.url.clone(),
    )
    .context(Exit::usage("cannot use `--secret`"))?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        Exit::io(format!(
            "cannot listen on {} (choose another address with --listen)",
            args.listen
        ))
    })?;
    if !args.quiet && !args.json {
        let address = listener.local_addr()?;
        let whose = match (&args.signature, args.secrets.is_empty()) {
            (Some(scheme), _) if !scheme.is_signed() => "no secret",
            (_, true) => "the secret of the built-in example",
            (_, false) => "the secrets given",
        };
        print_line(&format!(
            "listening on http://{address}, verifying with {whose}; Ctrl-C ends"
        ));
    }
    let tally = serve(listener, args, stopped()).await?;
    eprintln!(
        "{} received, {} verified, {} refused",
        tally.received,
        tally.verified,
        tally.received - tally.verified
    );
    Ok(ExitCode::SUCCESS)
}

/// Receives on `listener` until `stop`.
pub async fn serve<S>(listener: TcpListener, args: Args, stop: S) -> anyhow::Result<Tally>
where
    S: Future<Output = ()> + Send + 'static,
{
    let ear = Arc::new(Ear::new(args)?);
    let app = Router::new().fallback(receive).with_state(ear.clone());
    let stopping = Arc::new(tokio::sync::Notify::new());
    let told = stopping.clone();
    let serving = axum::serve(listener, app).with_graceful_shutdown(async move {
        stop.await;
        told.notify_one();
    });
    tokio::select! {
        ended = serving.into_future() => ended?,
        // Whoever keeps a connection busy does not keep us.
        () = async {
            stopping.notified().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        } => {}
    }
    Ok(Tally {
        received: ear.received.load(Ordering::SeqCst),
        verified: ear.verified.load(Ordering::SeqCst),
    })
}

struct Ear {
    verifier: Verifier,
    answer: Script,
    quiet: bool,
    json: bool,
    received: AtomicU64,
    verified: AtomicU64,
    turn: AtomicUsize,
    seen: Mutex<HashMap<String, u32>>,
}

impl Ear {
    fn new(args: Args) -> anyhow::Result<Self> {
        Ok(Self {
            verifier: Verifier::new(args.signature, args.secrets, args.url)
                .context("cannot use `--secret`")?,
            answer: args.answer,
            quiet: args.quiet,
            json: args.json,
            received: AtomicU64::new(0),
            verified: AtomicU64::new(0),
            turn: AtomicUsize::new(0),
            seen: Mutex::default(),
        })
    }

    fn count(&self, id: &str) -> u32 {
        let mut seen = self.seen.lock().unwrap_or_else(|p| p.into_inner());
        if seen.len() >= MAX_SEEN && !seen.contains_key(id) {
            seen.clear();
        }
        let times = seen.entry(id.to_owned()).or_default();
        *times = times.saturating_add(1);
        *times
    }
}

/// What is printed of one request.
#[derive(Debug, serde::Serialize)]
struct Heard {
    time: Timestamp,
    id: String,
    verified: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// How often this id has come, this time included.
    seen: u32,
    timestamp: Option<i64>,
    status: u16,
    method: String,
    path: String,
    content_type: Option<String>,
    size_bytes: usize,
    body: String,
}

/// Checks signatures as a receiver does.
pub struct Verifier {
    /// Any of these will do.
    accepted: Vec<(Scheme, Vec<Secret>)>,
}

impl Verifier {
    /// Without a scheme both of Standard Webhooks are accepted, each with the secrets of its kind;
    /// without secrets as well, that of the built-in example. A secret that cannot be used is said
    /// now and not at the first request. `url` is the one that senders sign, where they sign one.
    pub fn new(
        scheme: Option<Scheme>,
        mut secrets: Vec<String>,
        url: Option<Url>,
    ) -> anyhow::Result<Self> {
        if secrets.is_empty() && scheme.is_none() {
            secrets.push(DEMO_SECRET.to_owned());
        }
        let secrets = secrets.into_iter().map(Secret::new);
        let accepted = match scheme {
            Some(mut scheme) => {
                if let (Some(signed), Some(url)) = (scheme.signed_url_mut(), url) {
                    *signed = SignedUrl::written(url.as_str());
                }
                vec![(scheme, secrets.collect())]
            }
            None => {
                let (ed25519, hmac): (Vec<_>, Vec<_>) = secrets.partition(|secret| {
                    secret.expose().starts_with("whsk_") || secret.expose().starts_with("whpk_")
                });
                [(Scheme::Standard, hmac), (Scheme::StandardEd25519, ed25519)]
                    .into_iter()
                    .filter(|(_, secrets)| !secrets.is_empty())
                    .collect()
            }
        };
        for (scheme, secrets) in &accepted {
            signature::check_verifying(scheme, secrets)?;
        }
        Ok(Self { accepted })
    }

    /// `now` in seconds since 1970.
    pub fn verify(&self, request: &Received<'_>, now: i64) -> Result<(), VerifyError> {
        let mut result = Err(VerifyError::Mismatch);
        for (scheme, secrets) in &self.accepted {
            result = signature::verify(scheme, secrets, request, now, signature::TOLERANCE);
            if !matches!(result, Err(VerifyError::Mismatch)) {
                break;
            }
        }
        result
    }
}

async fn receive(State(ear): State<Arc<Ear>>, request: Request<Body>) -> StatusCode {
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY_BYTES).await else {
        return StatusCode::PAYLOAD_TOO_LARGE;
    };
    let time = Timestamp::now();
    ear.received.fetch_add(1, Ordering::SeqCst);
    let url = url_of(&head);
    let request = Received {
        method: &head.method,
        url: &url,
        headers: &head.headers,
        body: &body,
    };
    let verdict = ear.verifier.verify(&request, time.as_second());
    let status = match &verdict {
        Ok(()) => {
            ear.verified.fetch_add(1, Ordering::SeqCst);
            ear.answer.at(ear.turn.fetch_add(1, Ordering::SeqCst))
        }
        Err(_) => StatusCode::UNAUTHORIZED,
    };
    if !ear.quiet {
        let text = |name: &str| {
            let value = head.headers.get(name)?;
            Some(printable(value.as_bytes(), 256))
        };
        let id = text("webhook-id").unwrap_or_else(|| "-".to_owned());
        let heard = Heard {
            time,
            verified: verdict.is_ok(),
            why: verdict.err().map(|why| why.to_string()),
            seen: ear.count(&id),
            id,
            timestamp: text("webhook-timestamp").and_then(|text| text.parse().ok()),
            status: status.as_u16(),
            method: head.method.to_string(),
            path: printable(head.uri.path().as_bytes(), 256),
            content_type: text("content-type"),
            size_bytes: body.len(),
            body: printable(&body, SHOWN_BYTES),
        };
        print_line(&match ear.json {
            true => serde_json::to_string(&heard).unwrap_or_default(),
            false => heard.line(),
        });
    }
    status
}

/// The URL as the sender most likely has it.
fn url_of(head: &http::request::Parts) -> String {
    let host = head.headers.get(http::header::HOST);
    let host = host
        .and_then(|host| host.to_str().ok())
        .or(head.uri.authority().map(|authority| authority.as_str()))
        .unwrap_or_default();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    format!("http://{host}{path}")
}

impl Heard {
    fn line(&self) -> String {
        let Self {
            time,
            id,
            verified: _,
            why,
            seen,
            timestamp: _,
            status,
            method,
            path,
            content_type,
            size_bytes,
            body,
        } = self;
        let time = time.strftime("%H:%M:%S%.3f");
        let verdict = match why {
            None => "verified".to_owned(),
            Some(why) => format!("NOT verified: {why}"),
        };
        let again = match seen {
            1 => String::new(),
            n => format!(", no. {n} of this id"),
        };
        let content_type = content_type.as_deref().unwrap_or("no content type");
        format!(
            "{time} {id} {verdict}{again} -> {status}  {method} {path} {content_type} {size_bytes} B  {body}"
        )
    }
}

/// The start of what a stranger sent, safe to print to a terminal.
fn printable(bytes: &[u8], limit: usize) -> String {
    let cut = bytes.len() > limit;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(limit)]);
    let mut text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if cut {
        text.push_str("...");
    }
    text
}

/// Whether anybody reads what we print is no reason to stop receiving.
fn print_line(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminated) = signal(SignalKind::terminate()) else {
        let _ = tokio::signal::ctrl_c().await;
        return;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_answered_in_turn_and_over_again() {
        let script = Script::parse("500x2, 200").unwrap();
        let answers: Vec<u16> = (0..7).map(|turn| script.at(turn).as_u16()).collect();
        assert_eq!(answers, [500, 500, 200, 500, 500, 200, 500]);
        for wrong in [
            "", "abc", "99", "100", "600", "200x0", "200x", "200,", "200x-1",
        ] {
            assert!(Script::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_reaches_the_terminal_that_it_would_obey() {
        assert_eq!(printable(b"a\x1b[2J\r\n\xff", 100), "a [2J  \u{fffd}");
        assert_eq!(printable(b"abcdef", 3), "abc...");
    }

    #[test]
    fn a_line_says_what_came_and_what_was_answered() {
        let heard = Heard {
            time: "2026-11-21T10:00:01.5Z".parse().unwrap(),
            id: "msg_1".to_owned(),
            verified: false,
            why: Some("no signature matches".to_owned()),
            seen: 2,
            timestamp: Some(1),
            status: 401,
            method: "POST".to_owned(),
            path: "/in".to_owned(),
            content_type: Some("application/json".to_owned()),
            size_bytes: 2,
            body: "{}".to_owned(),
        };
        assert_eq!(
            heard.line(),
            "10:00:01.500 msg_1 NOT verified: no signature matches, no. 2 of this id -> 401  \
             POST /in application/json 2 B  {}"
        );
    }

    #[test]
    fn the_arguments_have_defaults() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: Args,
        }
        <Cli as clap::CommandFactory>::command().debug_assert();
        let cli = <Cli as clap::Parser>::try_parse_from(["listen", "--answer", "500x2,200"]);
        let args = cli.unwrap().args;
        assert_eq!(args.listen.to_string(), "127.0.0.1:8401");
        assert_eq!(args.answer, Script::parse("500x2,200").unwrap());
    }

    #[test]
    fn a_bad_secret_is_said_at_the_start() {
        let args = |secret: &str| Args {
            listen: "127.0.0.1:0".parse().unwrap(),
            signature: None,
            url: None,
            secrets: vec![secret.to_owned()],
            answer: Script::parse("204").unwrap(),
            quiet: true,
            json: false,
        };
        for secret in ["whsec_short", "whsk_AAAA", "plain"] {
            let error = Ear::new(args(secret)).err().unwrap();
            assert!(!format!("{error:#}").contains("short"), "{error:#}");
        }
        assert!(Ear::new(args(DEMO_SECRET)).is_ok());
    }
}
