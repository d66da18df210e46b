//! `hookbridge attempts`: what was attempted, the newest first.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde::Deserialize;

use super::admin::Admin;
use super::exit::Exit;
use super::settings::ConfigFile;
use super::tap::{self, Listening, Said, Which};
use crate::app;
use crate::delivery::Reason;
use crate::journal::{Cursor, Entry, Query, Status, What};
use crate::selection::when;

/// Entries asked for at once.
const PAGE: usize = 500;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    which: Which,

    /// Dead letters instead, of this reason, such as `attempts_exhausted`
    #[arg(long, value_parser = reason)]
    reason: Option<Reason>,

    /// Not before this time: `2026-11-21T13:00:00Z`, or so long ago: `1h`
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,

    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,

    /// How many
    #[arg(long, short = 'n', default_value_t = 50, value_parser = limit)]
    limit: usize,

    /// All that there are
    #[arg(long, conflicts_with = "limit")]
    all: bool,

    /// Show attempts as they are made, until Ctrl-C
    #[arg(long, conflicts_with_all = ["reason", "since", "until", "limit", "all"])]
    follow: bool,

    #[command(flatten)]
    config: ConfigFile,

    /// One JSON document a line
    #[arg(long)]
    json: bool,
}

fn time(text: &str) -> Result<Timestamp, String> {
    when::parse(text, Timestamp::now())
}

fn limit(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("it is a number, 1 or more".to_owned()),
        Ok(limit) => Ok(limit),
    }
}

fn reason(name: &str) -> Result<Reason, String> {
    Reason::from_name(name).ok_or_else(|| {
        let known = Reason::ALL.map(Reason::as_str).join(", ");
        format!("it is one of {known}")
    })
}

#[derive(Deserialize)]
struct Page {
    attempts: Vec<Entry>,
    next: Option<String>,
}

/// 0 when there is something to show, 1 when there is nothing.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    if args.follow {
        let admin = Admin::running(&config).await?;
        return follow(&admin, &args.which, args.json).await;
    }
    let Which {
        id,
        subscription,
        tenant,
        status: wanted,
        kind,
        topic,
    } = args.which;
    let status = wanted.as_deref().map(str::parse::<Status>);
    let query = Query {
        event: None,
        id,
        subscription,
        tenant,
        status: status.transpose().map_err(Exit::usage)?,
        kind,
        topic,
        reason: args.reason,
        since: args.since,
        until: args.until,
        attempts_only: true,
    };
    let admin = Admin::of(&config).await?;
    let here = admin.is_none().then(|| app::traces(&config));
    let mut out = Output::new(args.json);
    let most = if args.all { usize::MAX } else { args.limit };
    let (mut left, mut cursor) = (most, None::<String>);
    loop {
        let limit = left.min(PAGE);
        let page = match (&admin, &here) {
            (Some(admin), _) => {
                let asked = in_words(&query, wanted.as_deref(), limit, cursor.take());
                admin.get::<Page>("/v1/attempts", &asked).await?
            }
            (None, Some(traces)) => {
                let before = cursor.take().map(|cursor| cursor.parse::<Cursor>());
                let before = before.transpose().map_err(anyhow::Error::msg)?;
                let page = traces.attempts(query.clone(), before, limit).await?;
                Page {
                    attempts: page.entries,
                    next: page.next.map(|next| next.to_string()),
                }
            }
            (None, None) => break,
        };
        left = left.saturating_sub(page.attempts.len());
        out.take(page.attempts)?;
        cursor = page.next;
        if cursor.is_none() || left == 0 {
            break;
        }
    }
    out.end()
}

/// Attempts as they are made, a line each. Until the bridge ends, or somebody ends this.
async fn follow(admin: &Admin, which: &Which, json: bool) -> anyhow::Result<ExitCode> {
    let mut listening = Listening::begin(admin, which, false).await?;
    loop {
        let said = tokio::select! {
            said = listening.next() => said?,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                return Err(Exit::interrupted().into());
            }
        };
        let entry = match said {
            Said::Attempt(tapped) => tapped.attempt,
            Said::Lost { lost } => {
                tap::say_lost(lost);
                continue;
            }
            Said::Listening { .. } => {
                eprintln!("listening; Ctrl-C ends it");
                continue;
            }
        };
        let mut out = std::io::stdout().lock();
        match json {
            true => writeln!(out, "{}", serde_json::to_string(&entry)?)?,
            false => writeln!(out, "{}", row(entry).join("  ").trim_end())?,
        }
        out.flush()?;
    }
}

/// What people see of an entry.
fn row(entry: Entry) -> [String; 7] {
    let (attempt, result, took, said) = match entry.what {
        What::Attempt(made) => {
            let took = format!("{:.0}", made.took_ms);
            (made.attempt.to_string(), made.outcome, took, made.excerpt)
        }
        What::Dead { reason, on } => {
            let said = format!("dead-lettered on {on}");
            (String::new(), reason, String::new(), said)
        }
        _ => Default::default(),
    };
    let at = format!("{:.3}", entry.at);
    [
        at,
        entry.subscription,
        entry.event,
        attempt,
        result,
        took,
        said,
    ]
}

fn in_words(
    query: &Query,
    status: Option<&str>,
    limit: usize,
    cursor: Option<String>,
) -> Vec<(&'static str, String)> {
    let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
    [
        ("id", query.id.clone()),
        ("subscription", query.subscription.clone()),
        ("tenant", query.tenant.clone()),
        ("status", status.map(str::to_owned)),
        ("type", query.kind.clone()),
        ("topic", query.topic.clone()),
        ("reason", query.reason.map(|reason| reason.to_string())),
        ("since", time(query.since)),
        ("until", time(query.until)),
        ("limit", Some(limit.to_string())),
        ("cursor", cursor),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

/// A table at the end, or lines of JSON as they come.
struct Output {
    json: bool,
    table: Table,
    count: usize,
}

impl Output {
    fn new(json: bool) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "TIME",
            "SUBSCRIPTION",
            "EVENT",
            "ATTEMPT",
            "RESULT",
            "MS",
            "ANSWER",
        ]);
        if std::io::stdout().is_terminal() {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        Self {
            json,
            table,
            count: 0,
        }
    }

    fn take(&mut self, entries: Vec<Entry>) -> anyhow::Result<()> {
        self.count += entries.len();
        let mut out = std::io::stdout().lock();
        for entry in entries {
            if self.json {
                writeln!(out, "{}", serde_json::to_string(&entry)?)?;
                continue;
            }
            self.table.add_row(row(entry));
        }
        Ok(())
    }

    fn end(self) -> anyhow::Result<ExitCode> {
        if self.count == 0 {
            eprintln!("no attempt is recorded that matches");
            return Ok(ExitCode::FAILURE);
        }
        if !self.json {
            let mut out = std::io::stdout().lock();
            for line in self.table.lines() {
                writeln!(out, "{}", line.trim_end())?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
