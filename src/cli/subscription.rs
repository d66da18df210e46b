//! `hookbridge subscription`: those of the running bridge listed, shown, made, changed and removed.
//!
//! Everything goes over its admin API, which decides what may be done; what belongs to the config file
//! is shown here and changed there.

mod transfer;
mod trial;

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::admin::{Admin, escaped};
use super::dead::edit::{in_editor, private_file};
use super::exit::Exit;
use super::settings::ConfigFile;
use crate::admin::Rotate;

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum What {
    /// List all subscriptions with their states.
    List(ListArgs),
    /// Show one of them, secrets masked.
    Show(OneArgs),
    /// Make one, and print the secret that was made for it.
    Add(AddArgs),
    /// Change one: in an editor, or by a file.
    Edit(EditArgs),
    /// Remove one for good. What is parked for it becomes dead letters.
    Remove(RemoveArgs),
    /// Match and hold from now on.
    Pause(OneArgs),
    /// Deliver again, what was held as well.
    Resume(OneArgs),
    /// Try an endpoint again that disabled itself.
    Enable(OneArgs),
    /// Write all that were made over the API to a file, a line each, sealed as they are.
    Export(transfer::ExportArgs),
    /// Take in what `export` has written, here or elsewhere; all of it is checked first.
    Import(transfer::ImportArgs),
    /// Send a sample or an event of the past to its endpoint now, and show what comes back.
    Test(trial::Args),
    /// Ask its endpoint now whether it agrees to get deliveries.
    Verify(OneArgs),
    /// Replace its secret, the old one signing beside it for a while, and print the new one.
    Rotate(RotateArgs),
}

#[derive(Debug, Clone, clap::Args)]
struct ListArgs {
    /// Of this tenant only
    #[arg(long)]
    tenant: Option<String>,

    /// As JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    config: ConfigFile,
}

#[derive(Debug, Clone, clap::Args)]
struct OneArgs {
    /// Its name, or its uid
    name: String,

    /// As JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    config: ConfigFile,
}

#[derive(Debug, Clone, clap::Args)]
struct AddArgs {
    /// The subscription as YAML or JSON, with its `name`; `-` for standard input
    file: PathBuf,

    /// Make it this tenant's
    #[arg(long)]
    tenant: Option<String>,

    /// Check everything and make nothing
    #[arg(long)]
    dry_run: bool,

    /// Print the answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    config: ConfigFile,
}

#[derive(Debug, Clone, clap::Args)]
struct EditArgs {
    /// Its name, or its uid
    name: String,

    /// All of it as it is to be, as YAML or JSON; `-` for standard input. Without this: $VISUAL or $EDITOR
    #[arg(long, value_name = "FILE", conflicts_with = "patch")]
    file: Option<PathBuf>,

    /// Only what is to be different, as a JSON merge patch
    #[arg(long, value_name = "JSON")]
    patch: Option<String>,

    /// Print the answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    config: ConfigFile,
}

#[derive(Debug, Clone, clap::Args)]
struct RemoveArgs {
    /// Its name, or its uid
    name: String,

    /// Do not ask
    #[arg(long, short)]
    yes: bool,

    #[command(flatten)]
    config: ConfigFile,
}

#[derive(Debug, Clone, clap::Args)]
struct RotateArgs {
    /// Its name, or its uid
    name: String,

    /// How long the old secret signs beside the new one, `0s` to `30d`; a day unless said
    #[arg(long, value_name = "DURATION")]
    overlap: Option<String>,

    /// A file with the new secret; `-` for standard input. Without this one is made
    #[arg(long, value_name = "FILE")]
    secret: Option<PathBuf>,

    /// Print the answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    config: ConfigFile,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        What::List(args) => list(args).await,
        What::Show(args) => show(args).await,
        What::Add(args) => add(args).await,
        What::Edit(args) => edit(args).await,
        What::Remove(args) => remove(args).await,
        What::Pause(args) => order(args, "pause").await,
        What::Resume(args) => order(args, "resume").await,
        What::Enable(args) => order(args, "enable").await,
        What::Export(args) => transfer::export(args).await,
        What::Import(args) => transfer::import(args).await,
        What::Test(args) => trial::run(args).await,
        What::Verify(args) => order(args, "verify").await,
        What::Rotate(args) => rotate(args).await,
    }
}

async fn admin(config: &ConfigFile) -> anyhow::Result<Admin> {
    Admin::running(&config.load()?).await
}

fn path(name: &str) -> String {
    format!("/v1/subscriptions/{}", escaped(name))
}

async fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let admin = admin(&args.config).await?;
    let mut all: Vec<Value> = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let after = cursor.take().map(|cursor| ("cursor", cursor));
        let tenant = args.tenant.clone().map(|tenant| ("tenant", tenant));
        let query: Vec<_> = after.into_iter().chain(tenant).collect();
        let mut page: Value = admin.get("/v1/subscriptions", &query).await?;
        if let Value::Array(items) = page["subscriptions"].take() {
            all.extend(items);
        }
        match page["next"].take() {
            Value::String(next) => cursor = Some(next),
            _ => break,
        }
    }
    let mut out = std::io::stdout().lock();
    let found = !all.is_empty();
    if args.json {
        print(&mut out, &json!({ "subscriptions": all }))?;
    } else {
        write!(out, "{}", table(&all))?;
    }
    Ok(if found {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// The list for people.
fn table(all: &[Value]) -> String {
    if all.is_empty() {
        return "there are no subscriptions\n".to_owned();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    // A column for whom nobody has is none.
    let has_tenants = all.iter().any(|one| one["tenant"].is_string());
    let tenant = has_tenants.then_some("TENANT");
    let columns = ["OWNER", "STATE", "PARKED", "ENDPOINT", "TOPICS"];
    table.set_header(["NAME"].into_iter().chain(tenant).chain(columns));
    for one in all {
        let text = |key: &str| one[key].as_str().unwrap_or("-");
        let topics = one["topics"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let topics: Vec<_> = topics.iter().filter_map(Value::as_str).collect();
        let mut row = vec![Cell::new(text("name"))];
        row.extend(tenant.map(|_| Cell::new(text("tenant"))));
        row.extend([
            Cell::new(text("owner")),
            Cell::new(text("state")),
            Cell::new(one["parked"].as_u64().unwrap_or(0)).set_alignment(CellAlignment::Right),
            Cell::new(text("url")),
            Cell::new(topics.join(", ")),
        ]);
        table.add_row(row);
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim());
        text.push('\n');
    }
    for one in all {
        if let (Some(name), Some(why)) = (one["name"].as_str(), one["why"].as_str()) {
            text.push_str(&format!("{name}: {why}\n"));
        }
    }
    text
}

async fn show(args: OneArgs) -> anyhow::Result<ExitCode> {
    let shown: Value = admin(&args.config)
        .await?
        .get(&path(&args.name), &[])
        .await?;
    print(&mut std::io::stdout().lock(), &shown)?;
    Ok(ExitCode::SUCCESS)
}

async fn add(args: AddArgs) -> anyhow::Result<ExitCode> {
    let admin = admin(&args.config).await?;
    let mut document = document(&args.file)?;
    if let Some(tenant) = &args.tenant {
        of_tenant(&mut document, tenant)?;
    }
    let query = if args.dry_run { "?dry_run=true" } else { "" };
    let made: Value = admin
        .post(&format!("/v1/subscriptions{query}"), &document)
        .await?;
    let done = match args.dry_run {
        true => "can be made",
        false => "made",
    };
    said(&made, done, args.json)
}

/// Makes the document one of `tenant`, unless it says that it is another one's.
fn of_tenant(document: &mut Value, tenant: &str) -> Result<(), Exit> {
    let Value::Object(document) = document else {
        // What it is instead is said by the bridge.
        return Ok(());
    };
    let said = document.entry("tenant").or_insert_with(|| tenant.into());
    match said.as_str() == Some(tenant) {
        true => Ok(()),
        false => Err(Exit::usage(format!(
            "its `tenant` is {said}, and not `{tenant}`"
        ))),
    }
}

async fn edit(args: EditArgs) -> anyhow::Result<ExitCode> {
    let admin = admin(&args.config).await?;
    let path = path(&args.name);
    if let Some(patch) = &args.patch {
        let patch: Value = serde_json::from_str(patch)
            .map_err(|why| Exit::usage(format!("--patch is not JSON: {why}")))?;
        let changed: Value = admin.patch(&path, &patch).await?;
        return said(&changed, "changed", args.json);
    }
    if let Some(file) = &args.file {
        let changed: Value = admin.put(&path, None, &document(file)?).await?;
        return said(&changed, "changed", args.json);
    }
    let mut now = admin.look::<Value>(&path).await?;
    let Value::Object(before) = now.body["subscription"].take() else {
        bail!(
            "`{}` belongs to the config file: change it there and reload",
            args.name
        );
    };
    let name = format!("hookbridge-{}.json", uuid::Uuid::now_v7().simple());
    let file = std::env::temp_dir().join(name);
    let text = serde_json::to_vec_pretty(&before)?;
    let written = private_file(&file).and_then(|mut file| file.write_all(&text));
    written.map_err(|why| Exit::io(format!("{} cannot be written: {why}", file.display())))?;
    let edited = in_editor(&file)?;
    let kept = || format!("what was written is kept in {}", file.display());
    let after: Value = parsed(&edited).with_context(kept)?;
    if after == Value::Object(before) {
        let _ = std::fs::remove_file(&file);
        bail!("nothing was changed");
    }
    // What somebody else has changed meanwhile is not overwritten.
    let changed = admin.put(&path, now.etag.as_deref(), &after).await;
    let changed: Value = changed.with_context(kept)?;
    let _ = std::fs::remove_file(&file);
    said(&changed, "changed", args.json)
}

async fn remove(args: RemoveArgs) -> anyhow::Result<ExitCode> {
    let admin = admin(&args.config).await?;
    if !args.yes && !agreed(&args.name).await? {
        eprintln!("nothing was done");
        return Ok(ExitCode::FAILURE);
    }
    admin.remove(&path(&args.name)).await?;
    println!("`{}` is removed", args.name);
    Ok(ExitCode::SUCCESS)
}

/// Whether the operator wants it. Where nobody can be asked it needs `--yes`.
async fn agreed(name: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Exit::usage("nobody can be asked here: say --yes").into());
    }
    eprint!("remove `{name}` for good? [y/N] ");
    std::io::stderr().flush()?;
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map(|_| answer)
    });
    let answer = answer.await??;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

async fn order(args: OneArgs, what: &str) -> anyhow::Result<ExitCode> {
    let admin = admin(&args.config).await?;
    let path = format!("{}/{what}", path(&args.name));
    let now: Value = admin.post(&path, &json!({})).await?;
    if args.json {
        print(&mut std::io::stdout().lock(), &now)?;
    } else {
        println!(
            "`{}` is {}",
            args.name,
            now["state"].as_str().unwrap_or("?")
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn rotate(args: RotateArgs) -> anyhow::Result<ExitCode> {
    let admin = admin(&args.config).await?;
    let secret = args.secret.as_deref().map(text).transpose()?;
    let asked = Rotate {
        overlap: args.overlap.clone(),
        secret: secret.map(|secret| secret.trim_end().to_owned()),
    };
    let path = format!("{}/rotate", path(&args.name));
    let rotated: Value = admin.post(&path, &asked).await?;
    said(&rotated, "rotated", args.json)
}

/// What came of it, and a secret that is shown once: on a line of its own, for programs.
fn said(answer: &Value, done: &str, json: bool) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    if json {
        print(&mut out, answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = |key: &str| answer[key].as_str();
    eprintln!(
        "`{}` {done}: {} ({})",
        text("name").unwrap_or("?"),
        text("state").unwrap_or("?"),
        text("uid").unwrap_or("?")
    );
    if let Some(secret) = text("secret") {
        eprintln!("its secret, which is not shown again:");
        writeln!(out, "{secret}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(out: &mut impl std::io::Write, value: &Value) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    Ok(writeln!(out)?)
}

fn text(file: &Path) -> anyhow::Result<String> {
    let read = match file.to_str() {
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        _ => std::fs::read_to_string(file),
    };
    read.map_err(|why| Exit::io(format!("{} cannot be read: {why}", file.display())).into())
}

fn document(file: &Path) -> anyhow::Result<Value> {
    parsed(text(file)?.as_bytes())
}

/// JSON, or YAML.
fn parsed(text: &[u8]) -> anyhow::Result<Value> {
    if let Ok(value) = serde_json::from_slice(text) {
        return Ok(value);
    }
    let text = str::from_utf8(text).map_err(|_| Exit::usage("it is not UTF-8"))?;
    serde_saphyr::from_str(text)
        .map_err(|why| Exit::usage(format!("it is neither JSON nor YAML: {why}")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_says_whose_they_are_and_why_one_is_not_used() {
        let one = |name: &str, owner: &str, state: &str| {
            json!({
                "name": name, "owner": owner, "state": state, "parked": 3,
                "url": "https://h", "topics": ["orders.*", "x"],
            })
        };
        let mut broken = one("sales", "api", "unusable");
        broken["why"] = json!("/sources/0: there is no source `a`");
        insta::assert_snapshot!(table(&[one("crm", "config", "active"), broken]), @r"
        NAME   OWNER   STATE     PARKED  ENDPOINT   TOPICS
        crm    config  active         3  https://h  orders.*, x
        sales  api     unusable       3  https://h  orders.*, x
        sales: /sources/0: there is no source `a`
        ");
        let mut of_acme = one("crm", "api", "active");
        of_acme["tenant"] = json!("acme");
        insta::assert_snapshot!(table(&[of_acme, one("all", "config", "active")]), @r"
        NAME  TENANT  OWNER   STATE   PARKED  ENDPOINT   TOPICS
        crm   acme    api     active       3  https://h  orders.*, x
        all   -       config  active       3  https://h  orders.*, x
        ");
        assert_eq!(table(&[]), "there are no subscriptions\n");
    }

    #[test]
    fn a_document_is_made_one_of_a_tenant_and_not_taken_from_another() {
        let mut document = json!({ "name": "crm" });
        of_tenant(&mut document, "acme").unwrap();
        assert_eq!(document["tenant"], "acme");
        of_tenant(&mut document, "acme").unwrap();
        assert!(of_tenant(&mut document, "bolt").is_err());
        assert!(of_tenant(&mut json!({ "tenant": null }), "acme").is_err());
    }

    #[test]
    fn yaml_and_json_are_read() {
        let wanted = json!({ "name": "crm", "topics": ["a"] });
        assert_eq!(parsed(b"name: crm\ntopics: [a]\n").unwrap(), wanted);
        assert_eq!(parsed(wanted.to_string().as_bytes()).unwrap(), wanted);
        assert!(parsed(b"a: [").is_err());
    }
}
