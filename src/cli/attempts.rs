//! `hookbridge attempts`: what was attempted, the newest first.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde::Deserialize;

use super::admin::Admin;
use super::settings::ConfigFile;
use crate::app;
use crate::journal::{Cursor, Entry, Query, Status, What};
use crate::selection::when;

/// Entries asked for at once.
const PAGE: usize = 500;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Of this event or delivery
    #[arg(long)]
    id: Option<String>,

    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,

    /// `503`, `5xx`, `failed` for all but a 2xx, or an error class such as `timeout`
    #[arg(long)]
    status: Option<String>,

    /// Of events of this type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,

    #[arg(long)]
    topic: Option<String>,

    /// Not before this time: `2026-11-21T13:00:00Z`, or so long ago: `1h`
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,

    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,

    /// How many
    #[arg(long, short = 'n', default_value_t = 50, value_parser = limit)]
    limit: usize,

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

#[derive(Deserialize)]
struct Page {
    attempts: Vec<Entry>,
    next: Option<String>,
}

/// 0 when there is something to show, 1 when there is nothing.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let status = args.status.as_deref().map(str::parse::<Status>);
    let query = Query {
        event: None,
        id: args.id,
        subscription: args.subscription,
        status: status.transpose().map_err(super::exit::Exit::usage)?,
        kind: args.kind,
        topic: args.topic,
        since: args.since,
        until: args.until,
        attempts_only: true,
    };
    let admin = Admin::of(&config).await?;
    let here = admin.is_none().then(|| app::traces(&config));
    let mut out = Output::new(args.json);
    let (mut left, mut cursor) = (args.limit, None::<String>);
    loop {
        let limit = left.min(PAGE);
        let page = match (&admin, &here) {
            (Some(admin), _) => {
                let asked = in_words(&query, args.status.as_deref(), limit, cursor.take());
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
        ("status", status.map(str::to_owned)),
        ("type", query.kind.clone()),
        ("topic", query.topic.clone()),
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
            let What::Attempt(attempt) = entry.what else {
                continue;
            };
            self.table.add_row([
                format!("{:.3}", entry.at),
                entry.subscription,
                entry.event,
                attempt.attempt.to_string(),
                attempt.outcome,
                format!("{:.0}", attempt.took_ms),
                attempt.excerpt,
            ]);
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
