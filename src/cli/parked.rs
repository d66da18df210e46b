//! `hookbridge parked`: what waits on the brokers, brought forward or dropped.
//!
//! With a bridge running, over its admin API; else the brokers are asked directly, and the embedded
//! one's file is opened. An order is a job, followed until its end; Ctrl-C cancels it.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table, presets};
use jiff::Timestamp;

use super::desk::Desk;
use super::exit::Exit;
use super::progress::{self, Words};
use super::settings::ConfigFile;
use crate::admin::parked::Wish;
use crate::broker::parked::{Deed, Order, Whose};
use crate::config::Config;
use crate::delivery::WaitKind;
use crate::operations::Report;
use crate::operations::parked::{self, Known, Listing};

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum What {
    /// Show what waits on the brokers. Changes nothing, however often.
    List(ListArgs),
    /// Make parked deliveries due now, in the order and at the rate that their endpoints allow.
    Now(OrderArgs),
    /// Drop parked deliveries for good. They do not become dead letters.
    Drop(OrderArgs),
}

#[derive(Debug, Clone, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    config: ConfigFile,

    /// Only what lies on this broker
    #[arg(long, value_name = "NAME")]
    broker: Option<String>,

    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, clap::Args)]
#[command(group(clap::ArgGroup::new("whose").required(true).args(["subscription", "all"])))]
struct OrderArgs {
    /// Those of this subscription
    subscription: Option<String>,

    /// Those of all subscriptions
    #[arg(long)]
    all: bool,

    /// Only retries, or only holds
    #[arg(long, value_name = "retry|hold", value_parser = kind)]
    kind: Option<WaitKind>,

    /// Only what lies on this broker
    #[arg(long, value_name = "NAME")]
    broker: Option<String>,

    /// Also for a subscription that is paused, disabled or not known
    #[arg(long)]
    force: bool,

    /// Do not ask
    #[arg(long, short)]
    yes: bool,

    /// Print the job's last report as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    config: ConfigFile,
}

fn kind(text: &str) -> Result<WaitKind, String> {
    match text {
        "retry" => Ok(WaitKind::Retry),
        "hold" => Ok(WaitKind::Hold),
        _ => Err("`retry` or `hold`".to_owned()),
    }
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        What::List(args) => list(args).await,
        What::Now(args) => order(args, Deed::Now).await,
        What::Drop(args) => order(args, Deed::Drop).await,
    }
}

/// The running bridge, or else this process with the brokers that keep deliveries.
async fn desk(config: &Config, broker: Option<&str>) -> anyhow::Result<Desk> {
    let keeps = |name: &str| {
        let settings = config.brokers.get(name);
        settings.is_some_and(|settings| settings.keeps_deliveries())
    };
    Desk::of(config, |name| {
        broker.is_none_or(|only| only == name) && keeps(name)
    })
    .await
}

async fn listing(desk: &Desk, broker: Option<&str>) -> anyhow::Result<Listing> {
    match desk {
        Desk::There(admin) => {
            let query: Vec<_> = broker
                .map(|name| ("broker", name.to_owned()))
                .into_iter()
                .collect();
            admin.get("/v1/parked", &query).await
        }
        Desk::Here(operations) => parked::list(operations, broker).await,
    }
}

async fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let desk = desk(&config, args.broker.as_deref()).await?;
    let listing = listing(&desk, args.broker.as_deref()).await?;
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &listing)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", shown(&listing, Timestamp::now()))?;
    }
    Ok(match (listing.not_told.is_empty(), listing.parked.len()) {
        (false, _) => ExitCode::from(69),
        (true, 0) => ExitCode::from(1),
        (true, _) => ExitCode::SUCCESS,
    })
}

/// The list for people.
fn shown(listing: &Listing, now: Timestamp) -> String {
    let mut text = String::new();
    if listing.parked.is_empty() && listing.not_told.is_empty() {
        text.push_str("nothing is parked\n");
    }
    if !listing.parked.is_empty() {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "BROKER",
            "KIND",
            "TIER",
            "SUBSCRIPTION",
            "COUNT",
            "OLDEST",
            "NEXT DUE",
        ]);
        for row in &listing.parked {
            let tier = row.tier_seconds.map(Duration::from_secs);
            let plus = if row.at_least { "+" } else { "" };
            let ago = |at: Timestamp| format!("{} ago", short(between(at, now)));
            let ahead = |at: Timestamp| match at > now {
                true => format!("in {}", short(between(now, at))),
                false => "now".to_owned(),
            };
            table.add_row([
                Cell::new(&row.broker),
                Cell::new(row.kind.as_str()),
                Cell::new(tier.map_or("-".to_owned(), short)),
                Cell::new(row.subscription.as_deref().unwrap_or("?")),
                Cell::new(format!("{}{plus}", row.count)).set_alignment(CellAlignment::Right),
                Cell::new(row.oldest.map_or("?".to_owned(), ago)),
                Cell::new(row.next_due.map_or("?".to_owned(), ahead)),
            ]);
        }
        for line in table.lines() {
            text.push_str(line.trim());
            text.push('\n');
        }
    }
    let told = listing.parked.iter().all(|row| row.subscription.is_some());
    if !told && !listing.seen_here.is_empty() {
        text.push_str(
            "\nparked by the running bridge and not seen again (RabbitMQ does not tell whose):\n",
        );
        for seen in &listing.seen_here {
            text.push_str(&format!("  {}: {}\n", seen.subscription, seen.count));
        }
    }
    for broker in &listing.not_told {
        text.push_str(&format!("broker {}: {}\n", broker.broker, broker.why));
    }
    text
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// `12h`, `5m`, `15s`: the largest unit that it has at least one of, rounded down.
fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

async fn order(args: OrderArgs, deed: Deed) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let desk = desk(&config, args.broker.as_deref()).await?;
    let whose = match (&args.subscription, &desk) {
        (None, _) => Whose::All,
        // A bridge decides itself, as soon as the operator has agreed.
        (Some(name), Desk::There(_)) => parked::whose(name, None, deed, true)?,
        (Some(name), Desk::Here(operations)) => {
            let known = Known::of(&operations.subscriptions(), name);
            parked::whose(name, known, deed, args.force)?
        }
    };
    let order = Order::new(deed, whose, args.kind);
    if !args.yes && !agreed(&args, &order, &desk).await? {
        eprintln!("nothing was done");
        return Ok(ExitCode::FAILURE);
    }
    let words = Words {
        thing: "parked delivery",
        things: "parked deliveries",
        done: match deed {
            Deed::Now => "due now",
            Deed::Drop => "dropped",
        },
        would: "",
    };
    let started = start(&desk, &args, order).await?;
    let report = progress::follow(&desk, started, words).await?;
    progress::conclude(&report, words, args.json)
}

async fn start(desk: &Desk, args: &OrderArgs, order: Order) -> anyhow::Result<Report> {
    match desk {
        Desk::There(admin) => {
            let wish = Wish {
                subscription: args.subscription.clone(),
                all: args.all,
                broker: args.broker.clone(),
                kind: args.kind,
                force: args.force,
            };
            let path = format!("/v1/parked/{}", order.deed.as_str());
            admin.post(&path, &wish).await
        }
        Desk::Here(operations) => {
            let job = parked::start(operations, args.broker.as_deref(), order)??;
            Ok(job.report())
        }
    }
}

/// Whether the operator wants it, told how many it is about. What cannot be undone needs `--yes`
/// where nobody can be asked.
async fn agreed(args: &OrderArgs, order: &Order, desk: &Desk) -> anyhow::Result<bool> {
    let can_ask = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    match (order.deed, can_ask) {
        (Deed::Drop, false) => {
            let message = "what is dropped is gone: say --yes where there is no terminal to ask on";
            return Err(Exit::usage(message).into());
        }
        (Deed::Now, false) => return Ok(true),
        (Deed::Now, true) if !args.all => return Ok(true),
        _ => {}
    }
    let listing = listing(desk, args.broker.as_deref()).await?;
    let (count, exact) = listing.preview(order, args.broker.as_deref());
    let number = if exact { "" } else { "up to " };
    let deed = match order.deed {
        Deed::Now => "make due now",
        Deed::Drop => "drop for good",
    };
    let whose = args
        .subscription
        .as_deref()
        .map_or("all subscriptions".to_owned(), |name| format!("`{name}`"));
    eprint!("{deed} {number}{count} parked deliveries of {whose}? [y/N] ");
    std::io::stderr().flush()?;
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map(|_| answer)
    });
    let answer = answer.await??;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::parked::{NotTold, Row, Seen};
    use crate::subscription::Uid;

    fn row(broker: &str, subscription: Option<&str>) -> Row {
        let told = subscription.is_some();
        let at = |text: &str| told.then(|| text.parse().unwrap());
        Row {
            broker: broker.into(),
            kind: WaitKind::Retry,
            tier_seconds: Some(43_200),
            subscription: subscription.map(Into::into),
            uid: subscription.map(Uid::of_config),
            count: 10,
            at_least: told,
            oldest: at("2026-01-01T00:00:00Z"),
            next_due: at("2026-01-01T12:00:00Z"),
        }
    }

    #[test]
    fn the_list_says_what_is_known_and_what_is_not() {
        let listing = Listing {
            parked: vec![row("lake", Some("crm")), row("shop", None)],
            seen_here: vec![Seen {
                subscription: "crm".into(),
                count: 7,
            }],
            not_told: vec![NotTold {
                broker: "far".into(),
                why: "no answer within 25s".into(),
            }],
        };
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        insta::assert_snapshot!(shown(&listing, now), @r"
        BROKER  KIND   TIER  SUBSCRIPTION  COUNT  OLDEST   NEXT DUE
        lake    retry  12h   crm             10+  10m ago  in 11h
        shop    retry  12h   ?                10  ?        ?

        parked by the running bridge and not seen again (RabbitMQ does not tell whose):
          crm: 7
        broker far: no answer within 25s
        ");
        insta::assert_snapshot!(shown(&Listing::default(), now), @"nothing is parked");
    }
}
