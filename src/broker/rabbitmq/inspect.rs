//! Inspecting RabbitMQ: what AMQP can tell of nodes, login, permissions and queues.
//!
//! A queue is looked at passively. Its arguments are learnt from the broker's refusals: declaring an
//! existing queue with other arguments than its own changes nothing, and the answer names the first
//! that differs. Policies cannot be seen so; a queue with a name of our own, made for the moment,
//! shows those that act at once.

use std::time::Duration;

use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueDeclareOptions,
};
use lapin::protocol::AMQPSoftError;
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ExchangeKind};

use super::connect::{Connector, answer, hang_up};
use super::greeting::Version;
use super::topology::{self, Argument, Arguments, Declarer, refusal};
use super::{RabbitMq, SourceSettings, clock, failures};
use crate::broker::inspect::{Node, clocks, own_certificate, reach};
use crate::finding::Findings;

/// A queue has fewer arguments than this.
const MOST_ARGUMENTS: usize = 12;
/// More letters than this are worth a warning.
const MANY: u32 = 10_000;
/// How long the queue made for the moment is watched.
const MOMENT: Duration = Duration::from_millis(1_200);
const MARKERS: u32 = 3;

/// Looks at all of the broker.
pub async fn broker(broker: &RabbitMq, found: &Findings) {
    if !nodes(&broker.connector, found).await {
        return;
    }
    let connection = match broker.connector.connect("doctor").await {
        Ok(connection) => connection,
        Err(error) => return login(found, &error).await,
    };
    let version = match broker.version().await {
        Ok(version) => version,
        Err(error) => {
            let advice = "the node answers, but not with RabbitMQ's greeting";
            found.problem(format!("{error:#}"), advice).await;
            return;
        }
    };
    let vhost = broker.connector.vhost();
    found
        .ok(format!(
            "logged in to virtual host `{vhost}`; RabbitMQ {}.{}, frames of {} bytes",
            version.major,
            version.minor,
            connection.configuration().frame_max()
        ))
        .await;
    if (version.major, version.minor) < (3, 10) {
        found
            .problem(
                "RabbitMQ is older than 3.10",
                "retry tiers need dead-lettering at least once, which came with 3.10",
            )
            .await;
    }
    let mut declarer = Declarer::new(&connection, version);
    if broker.settings.keeps_deliveries {
        own_queues(broker, &mut declarer, version, found).await;
        moment(broker, &connection, found).await;
        // Where it cannot be known, that is said by what is looked at besides.
        if let Ok(reading) = clock::look(broker).await
            && let Some((earliest, latest)) = reading.now()
        {
            clocks(found, earliest, latest).await;
        }
    }
    for source in broker.sources.load().iter() {
        of_source(source, &mut declarer, version, found).await;
    }
    hang_up(&connection).await;
}

/// Goes to every node; `true` when one of them can be talked to.
async fn nodes(connector: &Connector, found: &Findings) -> bool {
    let files = connector.tls_files();
    let mut reached = false;
    for node in connector.nodes() {
        let Some((host, port, encrypted)) = node else {
            let advice = "write it as `amqps://user:password@host:5671/vhost`";
            found.problem("a url cannot be read", advice).await;
            continue;
        };
        let tls = encrypted.then_some(files);
        let node = Node {
            host: &host,
            port,
            tls,
            plain: !encrypted,
        };
        reached |= reach(found, &node).await;
    }
    own_certificate(found, Some(files)).await;
    reached
}

async fn login(found: &Findings, error: &anyhow::Error) {
    let advice = match error.downcast_ref::<lapin::Error>() {
        Some(error) if failures::soft(error) == Some(AMQPSoftError::ACCESSREFUSED) => {
            "check user and password in the URL (`%2f` for a `/` in them)"
        }
        Some(error) if failures::is_not_allowed(error) => {
            "make the virtual host (`rabbitmqctl add_vhost`), or let the user in \
             (`rabbitmqctl set_permissions`); `/` is written `%2f`"
        }
        _ => "see the log of the broker",
    };
    // Our own words: the client library's say no more.
    found.problem(error, advice).await;
}

async fn own_queues(
    broker: &RabbitMq,
    declarer: &mut Declarer<'_>,
    version: Version,
    found: &Findings,
) {
    let (mut right, mut missing, mut unknown) = (0, Vec::new(), 0);
    for queue in broker.own_queues() {
        match declarer.is_there(&queue.name).await {
            Ok(true) => {}
            Ok(false) => {
                missing.push(queue.name);
                continue;
            }
            Err(error) => {
                unreadable(found, &queue.name, &error).await;
                continue;
            }
        }
        let wanted = queue.arguments(version);
        match differences(declarer, &queue.name, &wanted).await {
            Ok(differences) if differences.is_empty() => right += 1,
            Ok(differences) => {
                let what = format!("queue {} has {}", queue.name, differences.join(", "));
                found.problem(what, harm(&differences)).await;
            }
            Err(error) if refusal(&error) == Some(AMQPSoftError::ACCESSREFUSED) => unknown += 1,
            Err(error) => unreadable(found, &queue.name, &error).await,
        }
    }
    if right > 0 {
        found
            .ok(format!(
                "{right} queues of ours are there, with our arguments"
            ))
            .await;
    }
    if unknown > 0 {
        found
            .warning(
                format!("{unknown} queues of ours are there; their arguments cannot be checked"),
                "looking at them takes the permission to configure them",
            )
            .await;
    }
    match (missing.is_empty(), broker.settings.declare) {
        (true, _) => {}
        (false, true) => {
            found
                .ok(format!(
                    "{} queues of ours are not there yet: they are made at the start",
                    missing.len()
                ))
                .await;
        }
        (false, false) => {
            let what = format!("missing: queues {}", missing.join(", "));
            let advice = "`declare: false`: have them made; `hookbridge topology` prints them";
            found.problem(what, advice).await;
        }
    }
    if let Ok((letters, _)) = declarer.look(&broker.names.dead).await
        && letters > 0
    {
        let what = format!("{letters} dead letters wait in {}", broker.names.dead);
        match letters > MANY {
            true => found.warning(what, "see why, and retry or drop them").await,
            false => found.ok(what).await,
        }
    }
}

/// What follows from arguments of a queue of ours that are not ours.
fn harm(differences: &[String]) -> &'static str {
    let has = |name: &str| differences.iter().any(|one| one.starts_with(name));
    if has("no x-message-ttl") || has("no x-dead-letter") {
        "what is parked on it never comes back: delete it when it is empty, and it is made anew"
    } else if has("x-expires") {
        "it is deleted with everything parked on it when nobody uses it for so long: delete it when \
         it is empty, and it is made anew"
    } else if has("x-message-ttl") {
        "what is parked on it comes early, or is dropped: delete it when it is empty, and it is made anew"
    } else if has("x-max-length") || has("x-overflow") {
        "it drops messages when it is full: delete it when it is empty, and it is made anew"
    } else if has("x-delivery-limit") {
        "it drops what was delivered so often: set the policy `delivery-limit: -1` on it, or delete it \
         when it is empty"
    } else {
        "the bridge does not start with it: delete it when it is empty, and it is made anew"
    }
}

async fn unreadable(found: &Findings, queue: &str, error: &anyhow::Error) {
    match refusal(error) {
        Some(AMQPSoftError::ACCESSREFUSED) => {
            let advice =
                "let the user configure, write and read it (`rabbitmqctl set_permissions`)";
            found
                .problem(format!("queue {queue}: we may not look at it"), advice)
                .await;
        }
        _ => {
            found
                .problem(
                    format!("queue {queue}: {error:#}"),
                    "see the log of the broker",
                )
                .await;
        }
    }
}

/// How an existing queue differs from `wanted`, as `x-expires = 3600000` or `no x-overflow`.
async fn differences(
    declarer: &mut Declarer<'_>,
    queue: &str,
    wanted: &Arguments,
) -> anyhow::Result<Vec<String>> {
    let found = arguments(declarer, queue, wanted.clone()).await?;
    let mut differences = Vec::new();
    for (name, value) in &found {
        if wanted.get(name) != Some(value) {
            differences.push(format!("{name} = {}", shown(value)));
        }
    }
    for name in wanted.keys().filter(|name| !found.contains_key(*name)) {
        differences.push(format!("no {name}"));
    }
    Ok(differences)
}

/// The arguments of a queue that is there, found from `guess`.
async fn arguments(
    declarer: &mut Declarer<'_>,
    queue: &str,
    mut guess: Arguments,
) -> anyhow::Result<Arguments> {
    for _ in 0..MOST_ARGUMENTS {
        let Err(error) = declarer.try_arguments(queue, &guess).await else {
            return Ok(guess);
        };
        if refusal(&error) != Some(AMQPSoftError::PRECONDITIONFAILED) {
            return Err(error);
        }
        let text = format!("{error:#}");
        let Some((name, current)) = inequivalent(&text) else {
            return Err(error);
        };
        match current {
            _ if !name.starts_with("x-") => {
                // `durable`, `auto_delete`: nothing that can be asked for another time.
                let value = current.unwrap_or(Argument::Text("unknown".to_owned()));
                guess.insert(name, value);
                return Ok(guess);
            }
            Some(value) => guess.insert(name, value),
            None => guess.remove(&name),
        };
    }
    Ok(guess)
}

/// Reads `inequivalent arg 'x-expires' for queue 'q' in vhost '/': received none but current is the
/// value '3600000' of type 'signedint'`.
fn inequivalent(text: &str) -> Option<(String, Option<Argument>)> {
    let (_, rest) = text.split_once("inequivalent arg '")?;
    let (name, rest) = rest.split_once('\'')?;
    let (_, current) = rest.split_once("but current is ")?;
    let quoted = |text: &str| Some(text.split_once('\'')?.1.split_once('\'')?.0.to_owned());
    let value = if current.starts_with("none") {
        None
    } else if let Some((value, kind)) = current.split_once(" of type ") {
        let value = quoted(value)?;
        match (quoted(kind)?.as_str(), value.parse()) {
            ("longstr", _) | (_, Err(_)) => Some(Argument::Text(value)),
            (_, Ok(number)) => Some(Argument::Number(number)),
        }
    } else {
        quoted(current).map(Argument::Text)
    };
    Some((name.to_owned(), value))
}

fn shown(value: &Argument) -> String {
    match value {
        Argument::Text(text) if text.is_empty() => "''".to_owned(),
        Argument::Text(text) => text.clone(),
        Argument::Number(number) => number.to_string(),
    }
}

async fn of_source(
    source: &SourceSettings,
    declarer: &mut Declarer<'_>,
    version: Version,
    found: &Findings,
) {
    let SourceSettings { name, queue, .. } = source;
    for binding in &source.bind {
        if let Err(error) = exchange_is_there(declarer, &binding.exchange).await {
            let what = match refusal(&error) {
                Some(AMQPSoftError::NOTFOUND) => "is not there".to_owned(),
                Some(AMQPSoftError::ACCESSREFUSED) => "may not be looked at".to_owned(),
                _ => format!("{error:#}"),
            };
            found
                .problem(
                    format!("source {name}: exchange {} {what}", binding.exchange),
                    "the services that publish make it: check its name",
                )
                .await;
        }
    }
    match declarer.is_there(queue).await {
        Ok(true) => {}
        Ok(false) if source.declare => {
            found
                .ok(format!(
                    "source {name}: queue {queue} is not there yet: it is made at the start"
                ))
                .await;
            return;
        }
        Ok(false) => {
            found
                .problem(
                    format!("source {name}: queue {queue} is not there"),
                    "have it made, or leave out `declare: false`",
                )
                .await;
            return;
        }
        Err(error) => return unreadable(found, queue, &error).await,
    }
    if let Ok((ready, consumers)) = declarer.look(queue).await {
        found
            .ok(format!(
                "source {name}: queue {queue}: {ready} messages ready, {consumers} consumers"
            ))
            .await;
    }
    let guess = topology::of_source(source).arguments(version);
    match arguments(declarer, queue, guess).await {
        Ok(arguments) => dangers(source, &arguments, version, found).await,
        Err(error) if refusal(&error) == Some(AMQPSoftError::ACCESSREFUSED) => {
            found
                .warning(
                    format!("source {name}: the settings of queue {queue} cannot be seen"),
                    "looking at them takes the permission to configure it",
                )
                .await;
        }
        Err(error) => unreadable(found, queue, &error).await,
    }
}

/// What of a source's queue loses events.
async fn dangers(
    source: &SourceSettings,
    arguments: &Arguments,
    version: Version,
    found: &Findings,
) {
    let SourceSettings { name, queue, .. } = source;
    let text = |argument: &str| arguments.get(argument).map(shown);
    let is = |argument: &str, value: &str| text(argument).as_deref() == Some(value);
    if is("x-queue-type", "stream") {
        found
            .problem(
                format!("source {name}: queue {queue} is a stream"),
                "streams cannot be consumed like queues: bind a quorum queue to the same exchange",
            )
            .await;
        return;
    }
    if is("durable", "false") {
        found
            .problem(
                format!("source {name}: queue {queue} is not durable"),
                "its events are gone when the broker restarts: declare it durable",
            )
            .await;
        return;
    }
    if let Some(ms) = text("x-expires") {
        found
            .problem(
                format!("source {name}: queue {queue} expires (x-expires = {ms} ms)"),
                "it is deleted with its events when the bridge is away for so long: declare it without",
            )
            .await;
    }
    let dead_lettered = arguments.contains_key("x-dead-letter-exchange");
    let gone = match dead_lettered {
        true => "they go to its dead-letter exchange then",
        false => "they are lost then: it has no dead-letter route",
    };
    if let Some(ms) = text("x-message-ttl") {
        let what = format!("source {name}: events in queue {queue} expire after {ms} ms");
        found
            .warning(what, format!("{gone}; pausing and outages last longer"))
            .await;
    }
    let limit = text("x-max-length").or_else(|| text("x-max-length-bytes"));
    if let Some(limit) = limit
        && !is("x-overflow", "reject-publish")
    {
        let what = format!("source {name}: queue {queue} drops its oldest events beyond {limit}");
        found
            .warning(
                what,
                format!("{gone}; `x-overflow: reject-publish` would keep them"),
            )
            .await;
    }
    let limit = match arguments.get("x-delivery-limit") {
        Some(Argument::Number(limit)) if *limit >= 0 => Some(*limit),
        None if version.limits_deliveries() && is("x-queue-type", "quorum") => Some(20),
        _ => None,
    };
    if let Some(limit) = limit {
        let what = format!("source {name}: queue {queue} drops what was delivered {limit} times");
        let advice = format!("a crash counts for all that was in flight; {gone}");
        found.warning(what, advice).await;
    }
    if !is("x-queue-type", "quorum") {
        found
            .warning(
                format!("source {name}: queue {queue} is a classic queue, on one node"),
                "a quorum queue outlives the loss of a node",
            )
            .await;
    }
}

async fn exchange_is_there(declarer: &mut Declarer<'_>, exchange: &str) -> anyhow::Result<()> {
    let options = ExchangeDeclareOptions {
        passive: true,
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let channel = declarer.channel().await?;
    let none = FieldTable::default();
    let declared = channel.exchange_declare(exchange.into(), ExchangeKind::Topic, options, none);
    answer(format!("exchange {exchange}"), declared).await
}

/// Makes a queue for the moment, named like ours: whether we may declare, publish and consume, and
/// whether some policy makes messages vanish at once.
async fn moment(broker: &RabbitMq, connection: &Connection, found: &Findings) {
    if !broker.settings.declare {
        return;
    }
    let name = format!("{}.doctor.{}", broker.settings.group, broker.instance);
    let (step, advice, error) = match try_out(connection, &name).await {
        Ok(MARKERS) => {
            return found
                .ok("we may declare, publish and consume; policies cannot be seen over AMQP")
                .await;
        }
        Ok(kept) => {
            let what = format!(
                "a queue named like ours keeps {kept} of {MARKERS} messages for a second: a policy \
                 (`message-ttl`, `max-length`) takes them"
            );
            let advice = "exclude our queues from it: `rabbitmqctl list_policies`";
            return found.problem(what, advice).await;
        }
        Err((step, error)) => {
            let advice = "the user needs configure, write and read permission on our queues, and \
                          write on the default exchange";
            (step, advice, error)
        }
    };
    match refusal(&error) {
        Some(AMQPSoftError::ACCESSREFUSED) => {
            found.problem(format!("we may not {step}"), advice).await;
        }
        _ => {
            let what = format!("trying to {step}: {error:#}");
            found.problem(what, "see the log of the broker").await;
        }
    }
}

/// How many of the markers are still there after a moment.
async fn try_out(
    connection: &Connection,
    name: &str,
) -> Result<u32, (&'static str, anyhow::Error)> {
    let failed = |step: &'static str| move |error: anyhow::Error| (step, error);
    let channel: Channel = answer("no channel", connection.create_channel())
        .await
        .map_err(failed("open a channel"))?;
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel.queue_declare(name.into(), options, FieldTable::default());
    answer("declaring", declared)
        .await
        .map_err(failed("declare"))?;
    let confirmed = channel.confirm_select(ConfirmSelectOptions::default());
    answer("confirms", confirmed)
        .await
        .map_err(failed("publish"))?;
    for _ in 0..MARKERS {
        let (options, none) = (BasicPublishOptions::default(), BasicProperties::default());
        let published = channel.basic_publish("".into(), name.into(), options, b"", none);
        let confirm = answer("publishing", published)
            .await
            .map_err(failed("publish"))?;
        answer("publishing", confirm)
            .await
            .map_err(failed("publish"))?;
    }
    tokio::time::sleep(MOMENT).await;
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let looked = channel.queue_declare(name.into(), options, FieldTable::default());
    let looked = answer("looking", looked).await.map_err(failed("declare"))?;
    let consumed = channel.basic_consume(
        name.into(),
        name.into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    answer("consuming", consumed)
        .await
        .map_err(failed("consume"))?;
    Ok(looked.message_count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_s_refusals_are_read() {
        let of = |what: &str| {
            inequivalent(&format!(
                "PRECONDITION_FAILED - inequivalent arg 'x-expires' for queue 'q' in vhost '/': {what}"
            ))
        };
        let name = || "x-expires".to_owned();
        assert_eq!(
            of("received none but current is the value '3600000' of type 'signedint'"),
            Some((name(), Some(Argument::Number(3_600_000))))
        );
        assert_eq!(
            of(
                "received the value 'a' of type 'longstr' but current is the value '5' of type 'longstr'"
            ),
            Some((name(), Some(Argument::Text("5".into()))))
        );
        assert_eq!(
            of("received the value '1' of type 'signedint' but current is none"),
            Some((name(), None))
        );
        assert_eq!(
            of("received 'true' but current is 'false'"),
            Some((name(), Some(Argument::Text("false".into()))))
        );
        assert_eq!(inequivalent("something else"), None);
    }
}
