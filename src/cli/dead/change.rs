//! `dead retry` and `dead drop`.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::json;

use super::edit::{self, Edited};
use super::look::{count, find, letter_path};
use super::{PATH, Which, desk, not_done, screen};
use crate::cli::desk::Desk;
use crate::cli::exit::Exit;
use crate::cli::progress::{self, Words};
use crate::operations::Report;
use crate::operations::dead::{self, Choice};
use crate::subscription::Rate;

const SENT: Words = Words {
    thing: "letter",
    things: "letters",
    done: "sent again",
    would: "would be sent again",
};
const REMOVED: Words = Words {
    thing: "letter",
    things: "letters",
    done: "removed",
    would: "would be removed",
};

#[derive(Debug, clap::Args)]
pub struct Retry {
    #[command(flatten)]
    which: Which,

    /// Send every letter
    #[arg(long, conflicts_with_all = ["words", "edit"])]
    all: bool,

    /// Edit the body of this letter and send it as a new event
    #[arg(long, value_name = "ID", conflicts_with_all = ["words", "rate", "dry_run"])]
    edit: Option<String>,

    /// So many a second or minute: 50/s, 100/m
    #[arg(long)]
    rate: Option<Rate>,

    /// Only say what would be sent
    #[arg(long)]
    dry_run: bool,

    /// Do not ask
    #[arg(long, short = 'y')]
    yes: bool,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct Drop {
    #[command(flatten)]
    which: Which,

    /// Remove every letter
    #[arg(long, conflicts_with = "words")]
    all: bool,

    /// Only say how many would be removed
    #[arg(long)]
    dry_run: bool,

    /// Do not ask
    #[arg(long, short = 'y')]
    yes: bool,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub async fn retry(args: Retry) -> anyhow::Result<ExitCode> {
    if let Some(id) = &args.edit {
        return retry_edited(&args, id).await;
    }
    let choice = explicit(&args.which, args.all, "send every letter again")?;
    let config = args.which.config.load()?;
    let desk = desk(&config, &choice).await?;
    if !args.dry_run && !args.yes {
        let must = args.all.then_some("retry --all");
        let ask = Ask {
            question: "send",
            again: " again",
            must,
        };
        if !ask.answered_with_yes(&desk, &args.which, &choice).await? {
            return Ok(ExitCode::FAILURE);
        }
    }
    let started: Report = match &desk {
        Desk::There(admin) => {
            let rate = args.rate.map(|rate| rate.to_string());
            let mut ask = ask(&args.which, args.all, args.dry_run);
            if let Some(rate) = rate {
                ask["rate"] = json!(rate);
            }
            admin.post(&format!("{PATH}/retry"), &ask).await?
        }
        Desk::Here(operations) => {
            let ask = dead::Retry {
                choice,
                rate: args.rate,
                dry_run: args.dry_run,
            };
            let job = dead::retry(operations, ask).await.map_err(not_done)?;
            job.report()
        }
    };
    let report = progress::follow(&desk, started, SENT).await?;
    progress::conclude(&report, SENT, args.json)
}

pub async fn purge(args: Drop) -> anyhow::Result<ExitCode> {
    let choice = explicit(&args.which, args.all, "remove every letter")?;
    let config = args.which.config.load()?;
    let desk = desk(&config, &choice).await?;
    if !args.dry_run && !args.yes {
        let ask = Ask {
            question: "remove",
            again: " for good",
            must: Some("drop"),
        };
        if !ask.answered_with_yes(&desk, &args.which, &choice).await? {
            return Ok(ExitCode::FAILURE);
        }
    }
    let started: Report = match &desk {
        Desk::There(admin) => {
            let ask = ask(&args.which, args.all, args.dry_run);
            admin.post(&format!("{PATH}/drop"), &ask).await?
        }
        Desk::Here(operations) => {
            let job = dead::purge(operations, &choice, args.dry_run).await;
            job.map_err(not_done)?.report()
        }
    };
    let report = progress::follow(&desk, started, REMOVED).await?;
    progress::conclude(&report, REMOVED, args.json)
}

async fn retry_edited(args: &Retry, id: &str) -> anyhow::Result<ExitCode> {
    let config = args.which.config.load()?;
    let choice = args.which.choice()?;
    let desk = desk(&config, &choice).await?;
    let letter = find(&desk, &choice, id).await?;
    // Before anybody edits in vain.
    if let Some(why) = &letter.unfit {
        anyhow::bail!("the letter is left where it is: {why}");
    }
    let Edited { body, file } = edit::edited(&letter, args.yes)?;
    let sent = async {
        let started = send_edited(&desk, &choice, &letter.id, body).await?;
        progress::follow(&desk, started, SENT).await
    };
    let report = sent.await.inspect_err(|_| kept_in(&file))?;
    match report.done {
        0 => kept_in(&file),
        // What was sent is on the broker.
        _ => drop(std::fs::remove_file(&file)),
    }
    progress::conclude(&report, SENT, args.json)
}

fn kept_in(file: &Path) {
    eprintln!("the edited body is kept in {}", file.display());
}

async fn send_edited(
    desk: &Desk,
    choice: &Choice,
    id: &str,
    body: Bytes,
) -> anyhow::Result<Report> {
    match desk {
        Desk::There(admin) => {
            let broker = choice.broker.as_ref();
            let query = broker.map(|broker| format!("?broker={broker}"));
            let path = format!("{}/retry{}", letter_path(id), query.unwrap_or_default());
            let ask = json!({ "body_base64": STANDARD.encode(&body) });
            admin.post(&path, &ask).await
        }
        Desk::Here(operations) => {
            let on = Choice {
                broker: choice.broker.clone(),
                ..Choice::default()
            };
            let job = dead::retry_one(operations, on, id, Some(body)).await;
            Ok(job.map_err(not_done)?.report())
        }
    }
}

/// The choice, where it is clear that everything is meant when it is.
fn explicit(which: &Which, all: bool, what: &str) -> anyhow::Result<Choice> {
    let choice = which.choice()?;
    if choice.selection.is_everything() && !all {
        let message = format!("no filter is given: --all if you mean to {what}");
        return Err(Exit::usage(message).into());
    }
    if !choice.selection.is_everything() && all {
        let message = "a filter and --all exclude each other";
        return Err(Exit::usage(message).into());
    }
    Ok(choice)
}

fn ask(which: &Which, all: bool, dry_run: bool) -> serde_json::Value {
    let mut ask = json!({ "filter": which.filter(), "all": all, "dry_run": dry_run });
    if let Some(broker) = &which.broker {
        ask["broker"] = json!(broker);
    }
    ask
}

/// A question before something is done.
struct Ask {
    question: &'static str,
    again: &'static str,
    /// What is not done unasked, where nobody can be asked.
    must: Option<&'static str>,
}

impl Ask {
    /// Asks on a terminal, with how many it is about.
    async fn answered_with_yes(
        &self,
        desk: &Desk,
        which: &Which,
        choice: &Choice,
    ) -> anyhow::Result<bool> {
        let can_ask = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        if !can_ask {
            return match self.must {
                Some(what) => Err(Exit::usage(format!(
                    "`{what}` asks first, and there is no terminal: --yes if you mean it, --dry-run to see what it would do"
                ))
                .into()),
                None => Ok(true),
            };
        }
        let count = count(desk, which, choice).await?;
        if count.count == 0 {
            eprintln!("none of {} letters is meant", count.seen);
            screen::notes(&count.notes);
            return Ok(false);
        }
        let Self {
            question, again, ..
        } = self;
        eprint!(
            "{question} {} of {} letters{again}? [y/N] ",
            count.count, count.seen
        );
        std::io::stderr().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        let answer = answer.trim();
        Ok(answer.eq_ignore_ascii_case("y") || answer.eq_ignore_ascii_case("yes"))
    }
}
