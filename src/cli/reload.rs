//! `hookbridge reload`: has a running bridge read its config again, and prints what has changed.

use std::process::ExitCode;

use serde_json::json;

use super::admin::Admin;
use super::settings::ConfigFile;
use crate::operations::settings::{Differences, Reloaded};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFile,

    /// Print what has changed as JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let admin = Admin::running(&args.config.load()?).await?;
    let reloaded: Reloaded = admin.post("/v1/config/reload", &json!({})).await?;
    match args.json {
        true => println!("{}", serde_json::to_string(&reloaded)?),
        false => print!("{}", told(&reloaded)),
    }
    Ok(ExitCode::SUCCESS)
}

fn told(reloaded: &Reloaded) -> String {
    let Reloaded {
        hash,
        subscriptions,
        endpoints,
        sources,
        needs_restart,
    } = reloaded;
    let mut out = format!("reloaded {hash}");
    if reloaded.is_unchanged() {
        out.push_str(": nothing has changed");
    }
    out.push('\n');
    for (what, differences) in [
        ("subscriptions", subscriptions),
        ("endpoints", endpoints),
        ("sources", sources),
    ] {
        let Differences {
            added,
            changed,
            removed,
        } = differences;
        for (how, names) in [("added", added), ("changed", changed), ("removed", removed)] {
            if !names.is_empty() {
                out.push_str(&format!("{what} {how}: {}\n", names.join(", ")));
            }
        }
    }
    if !needs_restart.is_empty() {
        let parts = needs_restart.join(", ");
        out.push_str(&format!("not in force until a restart: {parts}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_changed_is_told() {
        let mut reloaded = Reloaded {
            hash: "0123456789ab".to_owned(),
            ..Reloaded::default()
        };
        insta::assert_snapshot!(told(&reloaded), @"reloaded 0123456789ab: nothing has changed");
        reloaded.subscriptions.added = vec!["crm".to_owned(), "erp".to_owned()];
        reloaded.endpoints.changed = vec!["warehouse".to_owned()];
        reloaded.needs_restart = vec!["sources.orders".to_owned()];
        insta::assert_snapshot!(told(&reloaded), @"
        reloaded 0123456789ab
        subscriptions added: crm, erp
        endpoints changed: warehouse
        not in force until a restart: sources.orders
        ");
    }
}
