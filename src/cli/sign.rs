//! `hookbridge sign`: the headers that a delivery of a body would have.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use url::Url;

use super::exit::Exit;
use super::signing::{Case, Signing};
use crate::deliver::Signer;
use crate::event::{EventId, Facts};
use crate::outgoing::Outgoing;
use crate::subscription::SignedUrl;

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    signing: Signing,

    /// Id of the event; one that is not `[A-Za-z0-9_-]` is encoded as in deliveries. Default: a new
    /// one
    #[arg(long, value_name = "ID")]
    id: Option<String>,

    /// Time of the attempt, in seconds since 1970. Default: now
    #[arg(long, value_name = "SECONDS")]
    timestamp: Option<i64>,

    /// Topic of the event, for headers that say it
    #[arg(long, value_name = "TOPIC", default_value = "")]
    topic: String,

    /// Type of the event. Default: the topic
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,

    /// Source of the event
    #[arg(long, value_name = "NAME", default_value = "")]
    source: String,

    /// Print one JSON object with method, URL and headers
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args {
        signing,
        id,
        timestamp,
        topic,
        kind,
        source,
        json,
    } = args;
    let Case {
        mut scheme,
        secrets,
        method,
        url,
        headers,
        body,
    } = signing.case()?;
    let id = match id {
        Some(id) => {
            EventId::from_outside(id.as_bytes()).ok_or_else(|| Exit::usage("an id is not empty"))?
        }
        None => EventId::random(),
    };
    let at = match timestamp {
        Some(seconds) => Timestamp::from_second(seconds)
            .map_err(|_| Exit::usage("--timestamp is out of range"))?,
        None => Timestamp::now(),
    };
    let sent: Url = url.parse().map_err(|_| Exit::usage("--url is not a URL"))?;
    if let Some(signed) = scheme.signed_url_mut()
        && !signed.is_written()
        && url != sent.as_str()
    {
        *signed = SignedUrl::written(&url);
    }
    let signer = Signer::new(&scheme, &secrets).map_err(|why| Exit::usage(why.to_string()))?;
    let mut request = Outgoing {
        method,
        url: Arc::new(sent.clone()),
        headers,
        body: body.into(),
        deadline: Duration::ZERO,
    };
    let facts = Facts {
        id: &id,
        topic: &topic,
        kind: kind.as_deref().unwrap_or(&topic),
        source: &source,
    };
    signer.sign(facts, at, &mut request);
    let mut out = std::io::stdout().lock();
    if json {
        let headers: serde_json::Map<_, _> = request
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), shown(value).into()))
            .collect();
        let said = json!({
            "method": request.method.as_str(),
            "url": request.url.as_str(),
            "headers": headers,
        });
        writeln!(out, "{said}")?;
        return Ok(ExitCode::SUCCESS);
    }
    for (name, value) in &request.headers {
        writeln!(out, "{name}: {}", shown(value))?;
    }
    if *request.url != sent {
        eprintln!("to be sent to {}", request.url);
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(value: &http::HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}
