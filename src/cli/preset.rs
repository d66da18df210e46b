//! `hookbridge preset`: the adapters that there are, and the template of one, to be made one's own.

use std::io::Write as _;
use std::process::ExitCode;

use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::exit::Exit;
use crate::render::adapters::{ADAPTERS, Adapter, Kind, Known, named};
use crate::subscription::Scheme;

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum What {
    /// List the adapters, which are values of `format`, and the names of signatures.
    List(ListArgs),
    /// Print the template of an adapter, to change it and use it with `format: template`.
    Show(ShowArgs),
}

#[derive(Debug, Clone, clap::Args)]
struct ListArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, clap::Args)]
struct ShowArgs {
    /// The adapter, as `preset list` has it
    name: String,
}

/// 0; 64 for an adapter that there is not.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let printed = match &args.what {
        What::List(ListArgs { json: true }) => format!("{}\n", as_json()),
        What::List(_) => list(),
        What::Show(ShowArgs { name }) => match named(name) {
            Some(adapter) => adapter.as_template(),
            None => {
                let names: Vec<_> = ADAPTERS.iter().map(|adapter| adapter.name).collect();
                let names = names.join(", ");
                let message = format!("there is no adapter `{name}`; there are {names}");
                return Err(Exit::usage(message).into());
            }
        },
    };
    std::io::stdout().write_all(printed.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn list() -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "MAKES", "METHOD", "RATE", "LIMITS"]);
    for adapter in &ADAPTERS {
        let rate = adapter.rate().map(|rate| rate.to_string());
        table.add_row([
            adapter.name.to_owned(),
            adapter.makes.to_owned(),
            "POST".to_owned(),
            rate.unwrap_or_else(|| "-".to_owned()),
            adapter.limits.join("; "),
        ]);
    }
    // Of equal width, so that the columns stand below each other.
    let rows = table.to_string();
    let rows: Vec<_> = rows.lines().map(str::trim_end).collect();
    let names = Scheme::NAMES.join(", ");
    format!("{}\n\nsignatures: {names}\n", rows.join("\n"))
}

fn as_json() -> Value {
    let adapters: Vec<_> = ADAPTERS.iter().map(shown).collect();
    json!({ "adapters": adapters, "signatures": Scheme::NAMES })
}

fn shown(adapter: &Adapter) -> Value {
    let answers = adapter.answers();
    let settings = adapter.settings.iter().map(|known| {
        let Known {
            name,
            kind,
            needed,
            meaning,
        } = known;
        let takes = match kind {
            Kind::Text => "template",
            Kind::Fields => "map to templates",
            Kind::Secret => "secret",
        };
        json!({ "name": name, "takes": takes, "needed": needed, "meaning": meaning })
    });
    json!({
        "name": adapter.name,
        "makes": adapter.makes,
        "method": "POST",
        "url": adapter.url,
        "auth": adapter.auth,
        "content_type": adapter.content_type,
        "settings": settings.collect::<Vec<_>>(),
        "limits": adapter.limits,
        "rate": adapter.rate().map(|rate| rate.to_string()),
        "success": answers.success.to_string(),
        "disable": answers.disable.to_string(),
        "no_retry": answers.no_retry.to_string(),
    })
}
