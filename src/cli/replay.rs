//! `hookbridge replay`: a span of time of a source, again, to one subscription.
//!
//! A running bridge is asked to do it; with none running it is done here, and what is sent waits on
//! the broker until a bridge delivers it.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;

use super::admin::Admin;
use super::exit::Exit;
use super::settings::ConfigFile;
use crate::app::{Failure, on_source};
use crate::broker::Span;
use crate::config::Config;
use crate::operations::replay::{self, NotStarted, Request};
use crate::operations::{Operations, Report, State, when};
use crate::selection::Selection;
use crate::subscription::Rate;

/// Between two looks at the job.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

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
    let place = Place::find(&config, &args.source).await?;
    let started = place.start(&request).await?;
    let (report, interrupted) = follow(&place, started).await?;
    if args.json {
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, &report)?;
        out.write_all(b"\n")?;
    } else {
        print!("{}", summary(&request, &report));
    }
    match report.state {
        _ if interrupted => Err(Exit::interrupted().into()),
        State::Done if report.matched > 0 => Ok(ExitCode::SUCCESS),
        _ => Ok(ExitCode::FAILURE),
    }
}

/// Where the job runs.
enum Place {
    Bridge(Admin),
    Here(Arc<Operations>),
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

impl Place {
    async fn find(config: &Config, source: &str) -> anyhow::Result<Self> {
        if let Some(admin) = Admin::of(config).await? {
            return Ok(Self::Bridge(admin));
        }
        let here = on_source(config, source).map_err(|failure| match failure {
            Failure::Storage(error) => Exit::storage(format!("{error:#}")).into(),
            other => other.into_error(),
        })?;
        Ok(Self::Here(here))
    }

    async fn start(&self, request: &Request) -> anyhow::Result<Report> {
        match self {
            Self::Bridge(admin) => {
                let wanted = Wanted {
                    source: &request.source,
                    subscription: &request.subscription,
                    since: request.span.since.to_string(),
                    until: request.span.until.to_string(),
                    rate: request.rate.map(written),
                    filter: request.filter.text(),
                    dry_run: request.dry_run,
                };
                admin.post("/v1/replays", &wanted).await
            }
            Self::Here(operations) => {
                let started = replay::start(operations, request.clone()).await;
                let job = started.map_err(|error| match &error {
                    NotStarted::NotPossible(crate::broker::NotPossible::Unavailable(why)) => {
                        anyhow::Error::from(Exit::unavailable(why.clone()))
                    }
                    _ => error.into(),
                })?;
                Ok(job.report())
            }
        }
    }

    async fn look(&self, id: &str) -> anyhow::Result<Report> {
        match self {
            Self::Bridge(admin) => admin.get(&format!("/v1/jobs/{id}"), &[]).await,
            Self::Here(operations) => {
                let job = operations.jobs.get(id).context("the job is forgotten")?;
                Ok(job.report())
            }
        }
    }

    async fn cancel(&self, id: &str) -> anyhow::Result<()> {
        match self {
            Self::Bridge(admin) => {
                let _: Report = admin.delete(&format!("/v1/jobs/{id}")).await?;
            }
            Self::Here(operations) => {
                operations.jobs.cancel(id);
            }
        }
        Ok(())
    }
}

/// Watches the job to its end. Ctrl-C asks it to stop, and then its end is waited for.
async fn follow(place: &Place, mut report: Report) -> anyhow::Result<(Report, bool)> {
    for note in &report.notes {
        eprintln!("note: {note}");
    }
    let bar = bar();
    let mut interrupted = false;
    let mut line_at = tokio::time::Instant::now() + LINE_EVERY;
    while report.state == State::Running {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            asked = tokio::signal::ctrl_c(), if !interrupted => {
                asked.context("Ctrl-C cannot be listened to")?;
                interrupted = true;
                place.cancel(&report.id).await?;
            }
        }
        report = place.look(&report.id).await?;
        bar.set_length(report.total.unwrap_or(0).max(report.seen));
        bar.set_position(report.seen);
        bar.set_message(counts(&report));
        if bar.is_hidden() && tokio::time::Instant::now() >= line_at {
            line_at += LINE_EVERY;
            eprintln!("{}", counts(&report));
        }
    }
    bar.finish_and_clear();
    Ok((report, interrupted))
}

fn bar() -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template("{bar:24} {percent}%  {msg}  {eta}");
    let bar = ProgressBar::with_draw_target(Some(0), target);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn counts(report: &Report) -> String {
    let Report {
        seen,
        matched,
        done,
        ..
    } = report;
    format!("{seen} seen, {matched} matched, {done} sent")
}

/// A rate as it is read back.
fn written(rate: Rate) -> String {
    let per = match rate.per.as_secs() {
        1 => "s",
        60 => "m",
        _ => "h",
    };
    format!("{}/{per}", rate.count)
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
    let mut said = format!("{source} to {subscription}, from {since:.0} to {until:.0}: ");
    if *dry_run {
        said += &format!(
            "{} seen, {} would be sent (dry run)\n",
            report.seen, report.matched
        );
    } else {
        said += &format!("{}\n", counts(report));
    }
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
