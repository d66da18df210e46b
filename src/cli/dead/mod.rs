//! `hookbridge dead`: what was given up, looked at, sent again, removed, exported.

mod change;
pub mod edit;
pub mod export;
mod look;
mod screen;

use std::process::ExitCode;

use jiff::Timestamp;

use super::desk::Desk;
use super::exit::Exit;
use super::settings::ConfigFile;
use crate::broker::Refused;
use crate::config::Config;
use crate::operations::dead::{Choice, NotDone};
use crate::selection::Selection;

const PATH: &str = "/v1/dead-letters";

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List dead letters, or group them by cause.
    List(look::List),
    /// Show one letter: its history, headers, body, and how to repeat it by hand.
    Show(look::Show),
    /// Send letters again, to the subscription that missed them.
    Retry(change::Retry),
    /// Remove letters for good.
    Drop(change::Drop),
    /// Write letters with headers and bodies as NDJSON.
    Export(export::Export),
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::List(args) => look::list(args).await,
        Command::Show(args) => look::show(args).await,
        Command::Retry(args) => change::retry(args).await,
        Command::Drop(args) => change::purge(args).await,
        Command::Export(args) => export::run(args).await,
    }
}

/// Which letters, on a command line.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// Terms of the filter, such as `subscription:crm reason:no_retry -status:5xx since:2h
    /// data.total:>=100`; all have to hold, docs/dead-letters.md lists the keys
    #[arg(value_name = "FILTER")]
    words: Vec<String>,

    #[command(flatten)]
    negated: Negated,

    /// Only letters on this broker
    #[arg(long, value_name = "NAME")]
    broker: Option<String>,

    #[command(flatten)]
    config: ConfigFile,
}

/// `-reason:gone` looks like the option `-r` with the value `eason:gone`: these take such terms.
#[derive(Debug, clap::Args)]
struct Negated {
    #[arg(short, hide = true, value_name = "TERM")]
    b: Vec<String>,
    #[arg(short, hide = true, value_name = "TERM")]
    d: Vec<String>,
    #[arg(short, hide = true, value_name = "TERM")]
    i: Vec<String>,
    #[arg(short, hide = true, value_name = "TERM")]
    r: Vec<String>,
    #[arg(short, hide = true, value_name = "TERM")]
    s: Vec<String>,
    #[arg(short, hide = true, value_name = "TERM")]
    t: Vec<String>,
    #[arg(short, hide = true, value_name = "TERM")]
    u: Vec<String>,
}

impl Which {
    /// The filter as one text.
    fn filter(&self) -> String {
        let Negated {
            b,
            d,
            i,
            r,
            s,
            t,
            u,
        } = &self.negated;
        let mut words = self.words.clone();
        for (letter, rests) in [
            ('b', b),
            ('d', d),
            ('i', i),
            ('r', r),
            ('s', s),
            ('t', t),
            ('u', u),
        ] {
            words.extend(rests.iter().map(|rest| format!("-{letter}{rest}")));
        }
        words.join(" ")
    }

    /// Read here, so that a mistake is shown before anybody is asked.
    fn choice(&self) -> anyhow::Result<Choice> {
        let selection = Selection::parse(&self.filter(), Timestamp::now());
        let selection = selection.map_err(|mistake| Exit::usage(mistake.to_string()))?;
        Ok(Choice {
            selection,
            broker: self.broker.as_deref().map(Into::into),
            tenant: None,
        })
    }

    /// The same for the API.
    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = vec![("filter", self.filter())];
        query.extend(self.broker.clone().map(|broker| ("broker", broker)));
        query
    }
}

/// The desk for these letters.
async fn desk(config: &Config, choice: &Choice) -> anyhow::Result<Desk> {
    let wanted = |name: &str| {
        let only = choice.broker.as_deref();
        only.is_none_or(|only| only == name) && choice.selection.may_be_on(name)
    };
    Desk::of(config, wanted).await
}

/// What operations say in this process, with the exit code that the API's answer would have.
fn not_done(error: NotDone) -> anyhow::Error {
    match error {
        NotDone::Refused(Refused::Unavailable { .. }) => {
            Exit::unavailable(error.to_string()).into()
        }
        error => error.into(),
    }
}
