//! `dead list` and `dead show`.

use std::io::Write as _;
use std::process::ExitCode;

use super::{PATH, Which, desk, not_done, screen};
use crate::cli::desk::Desk;
use crate::cli::settings::ConfigFile;
use crate::operations::dead::{self, Choice, Count, Cursor, Groups, Page, Shown};

#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    which: Which,

    /// Count by cause: subscription, reason and last answer
    #[arg(long, conflicts_with_all = ["limit", "cursor", "count"])]
    group: bool,

    /// Only say how many there are
    #[arg(long, conflicts_with_all = ["limit", "cursor"])]
    count: bool,

    /// Show so many, oldest first
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    limit: u32,

    /// Go on after the page that ended with this (`next_cursor`)
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct Show {
    /// The letter's id or the beginning of it, or its event id
    #[arg(value_name = "ID")]
    id: String,

    /// Only print the body, byte for byte
    #[arg(long, conflicts_with = "json")]
    body: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Look on this broker only
    #[arg(long, value_name = "NAME")]
    broker: Option<String>,

    #[command(flatten)]
    config: ConfigFile,
}

pub async fn list(args: List) -> anyhow::Result<ExitCode> {
    let choice = args.which.choice()?;
    let config = args.which.config.load()?;
    let desk = desk(&config, &choice).await?;
    let mut out = std::io::stdout().lock();
    if args.count {
        let count = count(&desk, &args.which, &choice).await?;
        match args.json {
            true => writeln!(out, "{}", serde_json::to_string(&count)?)?,
            false => writeln!(out, "{}", count.count)?,
        }
        screen::notes(&count.notes);
        return Ok(ExitCode::SUCCESS);
    }
    if args.group {
        let groups: Groups = match &desk {
            Desk::There(admin) => {
                let path = format!("{PATH}/groups");
                admin.get_slowly(&path, &args.which.query()).await?
            }
            Desk::Here(operations) => dead::groups(operations, &choice).await.map_err(not_done)?,
        };
        match args.json {
            true => writeln!(out, "{}", serde_json::to_string(&groups)?)?,
            false => write!(out, "{}", screen::groups(&groups))?,
        }
        screen::notes(&groups.notes);
        return Ok(ExitCode::SUCCESS);
    }
    let page: Page = match &desk {
        Desk::There(admin) => {
            let mut query = args.which.query();
            query.push(("limit", args.limit.to_string()));
            query.extend(args.cursor.clone().map(|cursor| ("cursor", cursor)));
            admin.get_slowly(PATH, &query).await?
        }
        Desk::Here(operations) => {
            let cursor = args.cursor.as_deref().map(Cursor::read).transpose()?;
            let limit = args.limit as usize;
            dead::list(operations, &choice, limit, cursor.as_ref())
                .await
                .map_err(not_done)?
        }
    };
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string(&page)?)?,
        false => write!(out, "{}", screen::page(&page))?,
    }
    screen::notes(&page.notes);
    Ok(ExitCode::SUCCESS)
}

pub async fn show(args: Show) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let choice = Choice {
        broker: args.broker.as_deref().map(Into::into),
        ..Choice::default()
    };
    let desk = desk(&config, &choice).await?;
    let letter = find(&desk, &choice, &args.id).await?;
    let mut out = std::io::stdout().lock();
    if args.body {
        let body = letter.body();
        out.write_all(&body.unwrap_or_default())?;
        out.flush()?;
    } else if args.json {
        writeln!(out, "{}", serde_json::to_string(&letter)?)?;
    } else {
        write!(out, "{}", screen::letter(&letter))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn find(desk: &Desk, choice: &Choice, id: &str) -> anyhow::Result<Shown> {
    match desk {
        Desk::There(admin) => {
            let broker = choice.broker.as_ref();
            let query: Vec<_> = broker
                .map(|broker| ("broker", broker.to_string()))
                .into_iter()
                .collect();
            admin.get_slowly(&letter_path(id), &query).await
        }
        Desk::Here(operations) => dead::find(operations, choice, id).await.map_err(not_done),
    }
}

/// Ids are of any characters: of unreadable letters, for instance.
pub(super) fn letter_path(id: &str) -> String {
    let mut url = url::Url::parse("http://localhost/v1/dead-letters").expect("it is a URL");
    if let Ok(mut path) = url.path_segments_mut() {
        path.push(id);
    }
    url.path().to_owned()
}

pub(super) async fn count(desk: &Desk, which: &Which, choice: &Choice) -> anyhow::Result<Count> {
    match desk {
        Desk::There(admin) => {
            let path = format!("{PATH}/count");
            admin.get_slowly(&path, &which.query()).await
        }
        Desk::Here(operations) => dead::count(operations, choice).await.map_err(not_done),
    }
}
