//! `hookbridge replay`: a span of time of a source, again, to one subscription.
//!
//! A running bridge is asked to do it; with none running it is done here, and what is sent waits on
//! the broker until a bridge delivers it.

use std::io::Write as _;
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;

use super::desk::Desk;
use super::exit::Exit;
use super::progress::{self, Words};
use super::settings::ConfigFile;
use crate::broker::{NotPossible, Span};
use crate::operations::replay::{self, NotStarted, Request};
use crate::operations::{Report, State};
use crate::selection::{Selection, when};
use crate::subscription::Rate;

const WORDS: Words = Words {
    thing: "event",
    things: "events",
    done: "sent",
    would: "would be sent",
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The source whose events are read again
    #[arg(long, value_name = "NAME")]
    source: String,

    /// The subscription that gets them; no other one does
    #[arg(long, value_name = "NAME")]
    subscription: String,

    /// From when on: a time such as 2026-01-31T12:00:00Z, or how long ago, such as 2h
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Timestamp,

    /// Until when, this moment not included; now, if it is not given
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,

    /// How many at most, such as 100/s or 600/m; without it 50/s, or what the endpoint's rate is
    #[arg(long, value_name = "RATE")]
    rate: Option<Rate>,

    /// Only those of the subscription's events that this filter selects, such as 'type:order data.total:>=100'
    #[arg(long, value_name = "FILTER", default_value = "")]
    filter: String,

    /// Count what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    config: ConfigFile,
}

fn time(text: &str) -> Result<Timestamp, String> {
    when::parse(text, Timestamp::now())
}

/// 0 when something was sent (or counted), 1 when there was nothing or it failed on the way, 130
/// after Ctrl-C. In each case the summary has been printed.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let now = Timestamp::now();
    let filter = Selection::parse(&args.filter, now);
    let request = Request {
        source: args.source.clone(),
        subscription: args.subscription.clone(),
        span: Span {
            since: args.since,
            until: args.until.unwrap_or(now),
        },
        rate: args.rate,
        filter: filter.map_err(|mistake| Exit::usage(mistake.to_string()))?,
        dry_run: args.dry_run,
    };
    let desk = Desk::on_source(&config, &args.source).await?;
    let started = start(&desk, &request).await?;
    for note in &started.notes {
        eprintln!("note: {note}");
    }
    let report = progress::follow(&desk, started, WORDS).await?;
    if args.json {
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, &report)?;
        out.write_all(b"\n")?;
    } else {
        print!("{}", summary(&request, &report));
    }
    match report.state {
        State::Cancelled => Err(Exit::interrupted().into()),
        State::Done if report.matched > 0 => Ok(ExitCode::SUCCESS),
        _ => Ok(ExitCode::FAILURE),
    }
}

/// What the admin API takes.
#[derive(Serialize)]
struct Wanted<'a> {
    source: &'a str,
    subscription: &'a str,
    since: String,
    until: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<String>,
    filter: &'a str,
    dry_run: bool,
}

async fn start(desk: &Desk, request: &Request) -> anyhow::Result<Report> {
    match desk {
        Desk::There(admin) => {
            let wanted = Wanted {
                source: &request.source,
                subscription: &request.subscription,
                since: request.span.since.to_string(),
                until: request.span.until.to_string(),
                rate: request.rate.map(|rate| rate.to_string()),
                filter: request.filter.text(),
                dry_run: request.dry_run,
            };
            admin.post("/v1/replays", &wanted).await
        }
        Desk::Here(operations) => {
            let started = replay::start(operations, request.clone()).await;
            let job = started.map_err(|error| match &error {
                NotStarted::NotPossible(NotPossible::Unavailable(why)) => {
                    anyhow::Error::from(Exit::unavailable(why.clone()))
                }
                _ => error.into(),
            })?;
            Ok(job.report())
        }
    }
}

/// What is printed at the end.
fn summary(request: &Request, report: &Report) -> String {
    let Request {
        source,
        subscription,
        span,
        dry_run,
        ..
    } = request;
    let Span { since, until } = span;
    let done = if *dry_run { WORDS.would } else { WORDS.done };
    let mut said = format!(
        "{source} to {subscription}, from {since:.0} to {until:.0}: {} seen, {} matched, {} {done}\n",
        report.seen, report.matched, report.done
    );
    for (why, count) in &report.skipped {
        said += &format!("{count} left out: {why}\n");
    }
    match report.state {
        State::Done if report.seen == 0 => said += "there was no event in this range\n",
        State::Done if report.matched == 0 => {
            said += "no event of this range is one that the subscription (and the filter) takes\n";
        }
        State::Done | State::Running => {}
        State::Cancelled | State::Failed => {
            if let Some(why) = &report.why {
                said += &format!("failed: {why}\n");
            } else {
                said += "cancelled\n";
            }
            match &report.reached {
                Some(at) => {
                    said += &format!("everything before {at} is done: go on with --since {at}\n");
                }
                None => said += "nothing was done: start it again as it was\n",
            }
        }
    }
    said
}
