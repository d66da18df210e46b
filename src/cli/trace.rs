//! `hookbridge trace`: what became of one event, as a timeline.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use jiff::Timestamp;
use serde::Deserialize;

use super::admin::{Admin, escaped};
use super::exit::Exit;
use super::settings::ConfigFile;
use crate::app;
use crate::delivery::WaitKind;
use crate::journal::{Deed, Entry, What};
use crate::operations::Traces;
use crate::operations::trace::{Field, NotSent, Now, Trace, Traced};

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["event", "field"])))]
pub struct Args {
    /// The event's id as receivers see it in `webhook-id`, or a field such as `data.order.id=42`
    event: Option<String>,

    /// Events with this field, such as `data.order.id=42`, `type=order.paid` or `topic=orders`.
    /// Bodies are known of dead letters, and of attempts where the config says `bodies: true`
    #[arg(long = "where", value_name = "FIELD=VALUE")]
    field: Option<String>,

    #[command(flatten)]
    config: ConfigFile,

    /// One JSON document for each event
    #[arg(long)]
    json: bool,
}

/// 0 when there is something to show, 1 when nothing is known.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    // An id has no `=`: one given from outside is encoded.
    let (id, field) = match (args.event, args.field) {
        (Some(given), _) if given.contains('=') => (None, Some(given)),
        (id, field) => (id, field),
    };
    if let Some(field) = &field {
        let parsed = field.parse::<Field>();
        parsed.map_err(|bad| Exit::usage(bad.to_string()))?;
    }
    let from = match Admin::of(&config).await? {
        Some(admin) => From::Bridge(admin),
        None => From::Here(app::traces(&config)),
    };
    let traces = match (id, field) {
        (Some(id), _) => vec![from.trace(&id).await?],
        (None, field) => from.having(&field.unwrap_or_default()).await?,
    };
    let now = Timestamp::now();
    let mut out = std::io::stdout().lock();
    for (at, trace) in traces.iter().enumerate() {
        if args.json {
            writeln!(out, "{}", serde_json::to_string(trace)?)?;
            continue;
        }
        if at > 0 {
            writeln!(out)?;
        }
        out.write_all(timeline(trace, now).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Where traces come from.
enum From {
    Bridge(Admin),
    /// No bridge runs: from its files and its brokers.
    Here(Traces),
}

#[derive(Deserialize)]
struct Having {
    events: Vec<String>,
    notes: Vec<String>,
}

impl From {
    async fn trace(&self, id: &str) -> anyhow::Result<Trace> {
        match self {
            Self::Bridge(admin) => {
                let path = format!("/v1/events/{}/trace", escaped(id));
                admin.get(&path, &[]).await
            }
            Self::Here(traces) => Ok(traces.of(id).await?),
        }
    }

    async fn having(&self, field: &str) -> anyhow::Result<Vec<Trace>> {
        let found = match self {
            Self::Bridge(admin) => {
                let query = [("where", field.to_owned())];
                admin.get::<Having>("/v1/events", &query).await?
            }
            Self::Here(traces) => {
                let parsed = field.parse().context("no field")?;
                let (events, notes) = traces.with(&parsed).await;
                Having { events, notes }
            }
        };
        for note in &found.notes {
            eprintln!("note: {note}");
        }
        if found.events.is_empty() {
            anyhow::bail!(
                "no event with {field}: bodies are known of dead letters, and of attempts where the config says `attempts: {{ bodies: true }}`"
            );
        }
        let mut traces = Vec::new();
        for id in found.events {
            traces.push(self.trace(&id).await?);
        }
        Ok(traces)
    }
}

/// What people read. No colours, one line for each thing that happened.
fn timeline(trace: &Trace, now: Timestamp) -> String {
    let mut text = format!("event {}\n  topic {}", trace.event, trace.topic);
    if trace.r#type != trace.topic {
        let _ = write!(text, ", type {}", trace.r#type);
    }
    let _ = writeln!(text, ", source {}", trace.source);
    if !trace.matched {
        text.push_str("  no subscription matched it\n");
    }
    for traced in &trace.deliveries {
        text.push('\n');
        delivery(&mut text, traced, now);
    }
    for note in &trace.notes {
        let _ = write!(text, "\nnote: {note}");
    }
    if !trace.notes.is_empty() {
        text.push('\n');
    }
    text
}

fn delivery(text: &mut String, traced: &Traced, now: Timestamp) {
    let name = match traced.subscription.as_str() {
        "" => "(no subscription)",
        name => name,
    };
    let _ = write!(text, "{name}");
    if !traced.endpoint.is_empty() {
        let _ = write!(text, " -> {}", traced.endpoint);
    }
    if traced.generation > 0 {
        let _ = write!(text, ", retry {} of its dead letter", traced.generation);
    }
    if let Some(letter) = &traced.replay_of {
        let _ = write!(text, ", made of the letter {letter}");
    }
    let _ = writeln!(text, "\n  now: {}", state(&traced.now, now));
    let here = traced.steps.iter();
    let here = here.filter(|step| matches!(step.what, What::Attempt(_)));
    let elsewhere = (traced.attempts as usize).saturating_sub(here.count());
    if elsewhere > 0 {
        let _ = writeln!(
            text,
            "  {elsewhere} of {} attempts are not in this journal",
            traced.attempts
        );
    }
    for entry in &traced.steps {
        let _ = writeln!(text, "  {}  {}", moment(entry.at), step(entry));
    }
}

fn moment(at: Timestamp) -> String {
    format!("{at:.3}")
}

fn second(at: Timestamp) -> String {
    format!("{at:.0}")
}

/// ` (name)`, where there is one.
fn at_place(place: &str) -> String {
    match place {
        "" => String::new(),
        place => format!(" ({place})"),
    }
}

fn state(state: &Now, now: Timestamp) -> String {
    match state {
        Now::Delivered { at, outcome } => format!("delivered at {}, {outcome}", second(*at)),
        Now::InFlight { attempt, since } => {
            format!("in flight, attempt {attempt} since {}", second(*since))
        }
        Now::Parked {
            wait,
            until,
            on,
            place,
        } => {
            let place = at_place(place);
            let why = match wait {
                WaitKind::Retry => "parked",
                WaitKind::Hold => "held",
            };
            let until = match *until > now {
                true => format!("until about {}", second(*until)),
                false => format!("due since {}", second(*until)),
            };
            format!("{why} on {on}{place}, {until}")
        }
        Now::Dead {
            reason,
            at,
            on,
            place,
        } => {
            let place = at_place(place);
            format!("dead on {on}{place} since {}, {reason}", second(*at))
        }
        Now::LetterGone { reason, at, on } => format!(
            "was dead-lettered at {}, {reason}; the letter is no longer on {on}: retried or dropped",
            second(*at)
        ),
        Now::Dropped { at, on } => {
            format!(
                "was parked on {on}, and dropped by an operator at {}",
                second(*at)
            )
        }
        Now::SentAgain { generation, at, .. } => format!(
            "was dead-lettered, and sent again at {} as retry {generation}",
            second(*at)
        ),
        Now::Edited { event, at, .. } => format!(
            "was dead-lettered, and sent again, edited, at {} as event {event}",
            second(*at)
        ),
        Now::LetterRemoved { at, on } => format!(
            "was dead-lettered; the letter was removed from {on} by an operator at {}",
            second(*at)
        ),
        Now::NotSent { why, at } => {
            let why = match why {
                NotSent::Stale => "the event is older than `max_age`",
                NotSent::Shadow => "the subscription is a shadow",
            };
            format!("not sent, settled at {}: {why}", second(*at))
        }
        Now::Tested { at, outcome } => {
            format!("sent at {} as a test, {outcome}", second(*at))
        }
        Now::Unsettled { since } => format!(
            "attempted at {}, and no broker has confirmed what comes next",
            second(*since)
        ),
    }
}

fn step(entry: &Entry) -> String {
    match &entry.what {
        What::Attempt(attempt) => {
            let excerpt = match attempt.excerpt.as_str() {
                "" => String::new(),
                excerpt => format!("  {excerpt}"),
            };
            format!(
                "attempt {}: {} in {:.0} ms{excerpt}",
                attempt.attempt, attempt.outcome, attempt.took_ms
            )
        }
        What::Parked { wait, until, on } => {
            let why = match wait {
                WaitKind::Retry => "parked",
                WaitKind::Hold => "held",
            };
            format!("{why} on {on} until about {}", second(*until))
        }
        What::Dead { reason, on } => format!("dead-lettered on {on}: {reason}"),
        What::Unmatched => "matched nothing".to_owned(),
        What::Stale => "settled without being sent: older than `max_age`".to_owned(),
        What::Ordered {
            deed,
            on,
            next_generation,
            other,
        } => match deed {
            Deed::BroughtForward => format!("made due on {on} by an operator"),
            Deed::Dropped => format!("dropped from {on} by an operator"),
            Deed::SentAgain => {
                let generation = next_generation.unwrap_or_default();
                format!("letter sent again on {on}, as retry {generation}")
            }
            Deed::Edited => format!("letter edited and sent again on {on}, as event {other}"),
            Deed::MadeOfLetter => format!("made of the letter {other} on {on}"),
            Deed::LetterRemoved => format!("letter removed from {on} by an operator"),
        },
    }
}

#[cfg(test)]
mod tests;
