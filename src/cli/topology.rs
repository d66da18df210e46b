//! `hookbridge topology`: what the config needs on the brokers, printed for those who make it; and
//! what earlier configs have left there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::exit::Exit;
use super::settings::ConfigFile;
use crate::app;
use crate::broker::upkeep::{Need, Orphan, Plan, Upkeep};
use crate::config::{BrokerKind, Config};
use crate::operations::topology::{self, Declared};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// How it is printed.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// One broker of the config only.
    #[arg(long, value_name = "NAME")]
    broker: Option<String>,
    /// Remove what is left over from earlier configs: lists it, and asks.
    #[arg(long, conflicts_with = "adopt")]
    prune: bool,
    /// Move what is parked and dead under this group, which nobody runs any more, to ours.
    #[arg(long, value_name = "OLD-GROUP")]
    adopt: Option<String>,
    /// With --prune: remove without asking.
    #[arg(long, requires = "prune")]
    yes: bool,
    /// With --prune: also what is not empty. Its messages are lost.
    #[arg(long, requires = "prune")]
    force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// Definitions for `rabbitmqctl import_definitions`.
    Rabbitmq,
    /// Commands for kafka-topics.sh and kafka-acls.sh.
    Kafka,
    /// All of it, for programs.
    Json,
}

/// 0; 1 when something was kept back from --prune; 64 usage, 69 a broker that does not answer, 78
/// config.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let brokers = chosen(&args, &config)?;
    if let Some(group) = &args.adopt {
        return adopt(&brokers, group, &config).await;
    }
    if args.prune {
        return prune(&args, &brokers, &config).await;
    }
    let mut plans = Vec::new();
    for broker in &brokers {
        let plan = broker.plan().await;
        for note in &plan.notes {
            eprintln!("note: {note}");
        }
        plans.push((broker.name().clone(), plan));
    }
    let printed = match args.format {
        Format::Text => text(&plans),
        Format::Rabbitmq => definitions(&plans)?,
        Format::Kafka => commands(&plans, &config),
        Format::Json => whole(&plans)?,
    };
    io::stdout().write_all(printed.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// The brokers that were asked for, of the kind that the format is for.
fn chosen(args: &Args, config: &Config) -> anyhow::Result<Vec<Arc<dyn Upkeep>>> {
    let fits = |kind: &BrokerKind| match (args.format, kind) {
        (_, BrokerKind::Embedded(_)) => false,
        (Format::Rabbitmq, kind) => matches!(kind, BrokerKind::RabbitMq(_)),
        (Format::Kafka, kind) => matches!(kind, BrokerKind::Kafka(_)),
        _ => true,
    };
    if let Some(name) = &args.broker
        && !config.brokers.contains_key(name.as_str())
    {
        return Err(Exit::usage(format!("no broker `{name}` in the config")).into());
    }
    let names = config.brokers.iter().filter(|(name, broker)| {
        fits(&broker.kind)
            && args
                .broker
                .as_deref()
                .is_none_or(|wanted| wanted == &***name)
    });
    let mut chosen = Vec::new();
    for (name, _) in names {
        chosen.extend(app::upkeep(config, name)?);
    }
    if chosen.is_empty() {
        let message = "the config has no such broker: an embedded one needs nothing made";
        return Err(Exit::usage(message).into());
    }
    if args.format == Format::Rabbitmq && chosen.len() > 1 {
        let message = "definitions are for one broker: say which with --broker";
        return Err(Exit::usage(message).into());
    }
    Ok(chosen)
}

type Plans = [(Arc<str>, Plan)];

fn text(plans: &Plans) -> String {
    let mut out = String::new();
    for (broker, plan) in plans {
        let _ = writeln!(out, "broker {broker}");
        for need in &plan.needs {
            let _ = match need {
                Need::Queue {
                    name, arguments, ..
                } => writeln!(
                    out,
                    "  queue {name}: {}",
                    pairs(arguments, &Value::to_string)
                ),
                Need::Binding {
                    queue,
                    exchange,
                    key,
                    ..
                } => writeln!(out, "  binding {exchange} -> {queue}: `{key}`"),
                Need::Topic {
                    name,
                    partitions,
                    settings,
                } => writeln!(
                    out,
                    "  topic {name}: {partitions} partitions, {}",
                    pairs(settings, &String::clone)
                ),
                Need::Access {
                    resource,
                    name,
                    operations,
                } => {
                    let operations = operations.join(", ");
                    writeln!(out, "  allow on {resource} {name}: {operations}")
                }
            };
        }
    }
    out
}

fn pairs<T>(map: &BTreeMap<String, T>, shown: &dyn Fn(&T) -> String) -> String {
    let pairs: Vec<_> = map
        .iter()
        .map(|(name, value)| format!("{name}={}", shown(value)))
        .collect();
    pairs.join(" ")
}

/// What `rabbitmqctl import_definitions` reads.
fn definitions(plans: &Plans) -> anyhow::Result<String> {
    let (mut queues, mut bindings) = (Vec::new(), Vec::new());
    for need in plans.iter().flat_map(|(_, plan)| &plan.needs) {
        match need {
            Need::Queue {
                vhost,
                name,
                arguments,
            } => queues.push(json!({
                "name": name, "vhost": vhost, "durable": true, "auto_delete": false,
                "arguments": arguments,
            })),
            Need::Binding {
                vhost,
                queue,
                exchange,
                key,
                arguments,
            } => bindings.push(json!({
                "source": exchange, "vhost": vhost, "destination": queue,
                "destination_type": "queue", "routing_key": key, "arguments": arguments,
            })),
            Need::Topic { .. } | Need::Access { .. } => {}
        }
    }
    let whole = json!({ "queues": queues, "bindings": bindings });
    Ok(serde_json::to_string_pretty(&whole)? + "\n")
}

/// A shell script of Kafka's own commands.
fn commands(plans: &Plans, config: &Config) -> String {
    let mut out = String::new();
    for (broker, plan) in plans {
        let kafka = config.brokers.get(broker).map(|broker| &broker.kind);
        let (servers, user) = match kafka {
            Some(BrokerKind::Kafka(kafka)) => (
                kafka.bootstrap.join(","),
                kafka.sasl.as_ref().map(|sasl| sasl.username.clone()),
            ),
            _ => continue,
        };
        let user = user.unwrap_or_else(|| "hookbridge".to_owned());
        let _ = writeln!(out, "# broker {broker}");
        for need in &plan.needs {
            match need {
                Need::Topic {
                    name,
                    partitions,
                    settings,
                } => {
                    let _ = write!(
                        out,
                        "kafka-topics.sh --bootstrap-server {} --create --if-not-exists --topic {} --partitions {partitions}",
                        quoted(&servers),
                        quoted(name)
                    );
                    for (name, value) in settings {
                        let _ = write!(out, " --config {name}={value}");
                    }
                    out.push('\n');
                }
                Need::Access {
                    resource,
                    name,
                    operations,
                } => {
                    let _ = write!(
                        out,
                        "# kafka-acls.sh --bootstrap-server {} --add --allow-principal {}",
                        quoted(&servers),
                        quoted(&format!("User:{user}"))
                    );
                    for operation in operations {
                        let _ = write!(out, " --operation {operation}");
                    }
                    let _ = match name.as_str() {
                        "" => writeln!(out, " --{resource}"),
                        name => writeln!(out, " --{resource} {}", quoted(name)),
                    };
                }
                Need::Queue { .. } | Need::Binding { .. } => {}
            }
        }
    }
    out
}

/// For a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:/".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

fn whole(plans: &Plans) -> anyhow::Result<String> {
    let plans: BTreeMap<_, _> = plans.iter().map(|(name, plan)| (name, plan)).collect();
    Ok(serde_json::to_string_pretty(&json!({ "brokers": plans }))? + "\n")
}

async fn adopt(
    brokers: &[Arc<dyn Upkeep>],
    group: &str,
    config: &Config,
) -> anyhow::Result<ExitCode> {
    let [broker] = brokers else {
        return Err(Exit::usage("the config has several brokers: say which with --broker").into());
    };
    let declared = Declared::read(&config.data_dir)?;
    let adopted = topology::adopt(broker.as_ref(), group, &declared).await?;
    println!(
        "{} parked deliveries and {} dead letters of group {group} are now those of group {}",
        adopted.parked, adopted.dead, config.group
    );
    Ok(ExitCode::SUCCESS)
}

async fn prune(
    args: &Args,
    brokers: &[Arc<dyn Upkeep>],
    config: &Config,
) -> anyhow::Result<ExitCode> {
    let declared = Declared::read(&config.data_dir)?;
    let (mut leaving, mut kept) = (Vec::new(), 0);
    for broker in brokers {
        let found = topology::orphans(broker.as_ref(), &declared).await;
        let found = found.map_err(|error| {
            let message = format!("broker `{}` cannot be looked at", broker.name());
            error.context(Exit::unavailable(message))
        })?;
        for orphan in found {
            let shown = shown(&orphan);
            match topology::keeps(&orphan, args.force) {
                None => {
                    println!("remove  broker {}: {shown}", broker.name());
                    leaving.push((broker, orphan));
                }
                Some(why) => {
                    println!("keep    broker {}: {shown}: {why}", broker.name());
                    kept += 1;
                }
            }
        }
    }
    if leaving.is_empty() && kept == 0 {
        println!("nothing is left over, as far as is known");
    }
    if !leaving.is_empty() && !args.yes {
        agreed(leaving.len())?;
    }
    for (broker, orphan) in &leaving {
        topology::remove(broker.as_ref(), orphan, &config.data_dir).await?;
        println!("removed broker {}: {}", broker.name(), orphan.thing);
    }
    Ok(ExitCode::from(u8::from(kept > 0)))
}

fn shown(orphan: &Orphan) -> String {
    match orphan.messages {
        Some(messages) => format!("{}, {messages} messages", orphan.thing),
        None => orphan.thing.to_string(),
    }
}

/// Asks on a terminal; elsewhere nobody can be asked.
fn agreed(count: usize) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() {
        return Err(Exit::usage("nobody can be asked here: say --yes").into());
    }
    print!("remove these {count}? [y/N] ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Exit::interrupted().into()),
    }
}
