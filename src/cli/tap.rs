//! `hookbridge tap`: requests as they are sent, and their answers, while it runs.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use serde::Deserialize;

use super::admin::{Admin, Lines};
use super::exit::Exit;
use super::settings::ConfigFile;
use crate::journal::{Entry, Exchange, Status, Then, What};
use crate::pipeline::{Shown, ShownAnswer, Tapped};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    which: Which,

    /// End after so many
    #[arg(long, short = 'n', value_name = "COUNT")]
    limit: Option<u64>,

    #[command(flatten)]
    config: ConfigFile,

    /// One JSON document a line
    #[arg(long)]
    json: bool,
}

/// Which attempts are listened for.
#[derive(Debug, Default, clap::Args)]
pub struct Which {
    /// Of this event or delivery
    #[arg(long)]
    pub id: Option<String>,

    #[arg(long, value_name = "NAME")]
    pub subscription: Option<String>,

    /// Of subscriptions of this tenant
    #[arg(long)]
    pub tenant: Option<String>,

    /// `503`, `5xx`, `failed` for all but a 2xx, or an error class such as `timeout`
    #[arg(long)]
    pub status: Option<String>,

    /// Of events of this type
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,

    #[arg(long)]
    pub topic: Option<String>,
}

impl Which {
    fn in_words(&self) -> Result<Vec<(&'static str, String)>, Exit> {
        let status = self.status.as_deref().map(str::parse::<Status>);
        status.transpose().map_err(Exit::usage)?;
        let all = [
            ("id", &self.id),
            ("subscription", &self.subscription),
            ("tenant", &self.tenant),
            ("status", &self.status),
            ("type", &self.kind),
            ("topic", &self.topic),
        ];
        let given = all.into_iter();
        Ok(given
            .filter_map(|(name, value)| Some((name, value.clone()?)))
            .collect())
    }
}

/// Attempts as the bridge makes them.
pub struct Listening(Lines);

/// What it says.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Said {
    Attempt(Box<Tapped>),
    Lost {
        lost: u64,
    },
    Listening {
        #[serde(rename = "listening")]
        _is: bool,
    },
}

impl Listening {
    /// Listens to the bridge that `admin` is of.
    pub async fn begin(admin: &Admin, which: &Which, exchanges: bool) -> anyhow::Result<Self> {
        let mut query = which.in_words()?;
        query.push(("exchanges", exchanges.to_string()));
        Ok(Self(admin.lines("/v1/tap", &query).await?))
    }

    /// What comes next. An error when the bridge ends.
    pub async fn next(&mut self) -> anyhow::Result<Said> {
        while let Some(line) = self.0.next().await? {
            // Others are names of events, and signs of life.
            if let Some(data) = line.strip_prefix(b"data: ") {
                return Ok(serde_json::from_slice(data)?);
            }
        }
        Err(Exit::unavailable("the bridge has ended").into())
    }
}

/// Says on stderr what the bridge could not tell.
pub fn say_lost(lost: u64) {
    eprintln!("{lost} attempts were not told: this reader was too slow for them");
}

/// 0 after `--limit` of them; interrupted otherwise.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let admin = Admin::running(&config).await?;
    let mut listening = Listening::begin(&admin, &args.which, true).await?;
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0 {
        let said = tokio::select! {
            said = listening.next() => said?,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                return Err(Exit::interrupted().into());
            }
        };
        let mut out = std::io::stdout().lock();
        match said {
            Said::Listening { .. } if args.json => {}
            Said::Listening { .. } => eprintln!("listening; Ctrl-C ends it"),
            Said::Lost { lost } if args.json => {
                writeln!(out, "{}", serde_json::json!({ "lost": lost }))?;
            }
            Said::Lost { lost } => say_lost(lost),
            Said::Attempt(tapped) => {
                match args.json {
                    true => writeln!(out, "{}", serde_json::to_string(&*tapped)?)?,
                    false => out.write_all(shown(&tapped).as_bytes())?,
                }
                left -= 1;
            }
        }
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// As people read it.
pub fn shown(tapped: &Tapped) -> String {
    let Tapped {
        attempt,
        request,
        response,
    } = tapped;
    let mut out = headline(attempt);
    if let Some(request) = request {
        write_request(&mut out, request);
    }
    match (response, &attempt.what) {
        (Some(answer), _) => write_answer(&mut out, answer),
        (None, What::Attempt(made)) => {
            let excerpt = visible(&made.excerpt);
            let _ = writeln!(out, "! {}: {excerpt}", made.outcome);
        }
        (None, _) => {}
    }
    out.push('\n');
    out
}

fn headline(entry: &Entry) -> String {
    let What::Attempt(made) = &entry.what else {
        return String::new();
    };
    let then = match made.then {
        Then::Delivered => "delivered",
        Then::Retry => "retried later",
        Then::Hold => "held",
        Then::DeadLetter => "dead-lettered",
        Then::Shadow => "a shadow, and not sent",
        Then::Test => "a test",
    };
    let (subscription, event) = (visible(&entry.subscription), visible(&entry.event));
    format!(
        "{:.3}  {subscription}  {event}  attempt {}: {} in {:.0} ms, {then}\n",
        entry.at, made.attempt, made.outcome, made.took_ms
    )
}

fn write_request(out: &mut String, request: &Shown) {
    let Shown { url, exchange } = request;
    let Exchange {
        method,
        headers,
        body,
        body_base64,
        body_bytes,
    } = exchange;
    let _ = writeln!(out, "> {} {}", visible(method), visible(url));
    write_headers(out, '>', headers);
    let cut = if exchange.is_whole() {
        String::new()
    } else {
        format!("({body_bytes} bytes in all)")
    };
    match (body, body_base64) {
        (Some(body), _) => write_body(out, '>', body),
        (None, Some(body)) => write_body(out, '>', &format!("base64: {body}")),
        (None, None) => {}
    }
    if !cut.is_empty() {
        let _ = writeln!(out, "> {cut}");
    }
}

fn write_answer(out: &mut String, answer: &ShownAnswer) {
    let ShownAnswer {
        version,
        status,
        headers,
        body,
    } = answer;
    let _ = writeln!(out, "< {} {status}", visible(version));
    write_headers(out, '<', headers);
    write_body(out, '<', body);
}

fn write_headers(out: &mut String, mark: char, headers: &[(String, String)]) {
    for (name, value) in headers {
        let _ = writeln!(out, "{mark} {}: {}", visible(name), visible(value));
    }
}

fn write_body(out: &mut String, mark: char, body: &str) {
    if body.is_empty() {
        return;
    }
    let _ = writeln!(out, "{mark}");
    for line in body.lines() {
        let _ = writeln!(out, "{mark} {}", visible(line));
    }
}

/// Without what would move the cursor or change colours: it comes from outside.
fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => out.push(c),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Attempted;

    #[test]
    fn an_exchange_is_shown_line_by_line_and_moves_no_cursor() {
        let headers = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect::<Vec<_>>()
        };
        let tapped = Tapped {
            attempt: Entry {
                at: "2026-11-22T03:00:00.25Z".parse().unwrap(),
                instance: "i".into(),
                event: "evt_1".into(),
                delivery: "dlv_1".into(),
                generation: 0,
                subscription: "crm".into(),
                uid: "crm".into(),
                tenant: String::new(),
                topic: "orders".into(),
                r#type: "orders".into(),
                source: "local".into(),
                broker: "here".into(),
                what: What::Attempt(Attempted {
                    attempt: 2,
                    endpoint: "https://crm.example.com".into(),
                    outcome: "503".into(),
                    took_ms: 12.4,
                    excerpt: "busy".into(),
                    then: Then::Retry,
                    request: None,
                }),
            },
            request: Some(Shown {
                url: "https://crm.example.com/***".into(),
                exchange: Exchange::new(
                    "POST",
                    headers(&[("webhook-id", "evt_1"), ("authorization", "***")]),
                    b"{\"total\":\n120}",
                ),
            }),
            response: Some(ShownAnswer {
                version: "HTTP/1.1".into(),
                status: 503,
                headers: headers(&[("server", "x\u{1b}[31m")]),
                body: "busy\u{7}".into(),
            }),
        };
        insta::assert_snapshot!(shown(&tapped), @r#"
        2026-11-22T03:00:00.250Z  crm  evt_1  attempt 2: 503 in 12 ms, retried later
        > POST https://crm.example.com/***
        > webhook-id: evt_1
        > authorization: ***
        >
        > {"total":
        > 120}
        < HTTP/1.1 503
        < server: x\u{1b}[31m
        <
        < busy\u{7}
        "#);
        let json = serde_json::to_string(&tapped).unwrap();
        let Said::Attempt(read) = serde_json::from_str(&json).unwrap() else {
            panic!("{json}");
        };
        assert_eq!(*read, tapped);
    }
}
