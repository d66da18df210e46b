//! Topology: the queues that the config needs, and declaring what is missing.
//!
//! [`own`] and [`of_source`] are the one list: what is declared at the start, checked where we may
//! not declare, and printed by `hookbridge topology`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::bail;
use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection};
use tracing::warn;

use super::connect::answer;
use super::greeting::Version;
use super::state::{BYTES, SEGMENT_BYTES};
use super::{SourceSettings, failures};
use crate::broker::tiers::Tiers;
use crate::delivery::WaitKind;

/// Names of everything of ours on the broker.
#[derive(Debug, Clone)]
pub struct Names {
    group: String,
    retry_tiers: Vec<Duration>,
    hold_tiers: Vec<Duration>,
    pub due_retry: String,
    pub due_hold: String,
    pub dead: String,
    /// What all instances have in common: a stream.
    pub state: String,
    /// Exclusive, of whoever changes dead letters.
    pub replay: String,
}

impl Names {
    pub fn new(group: &str, tiers: &Tiers) -> Self {
        Self {
            group: group.to_owned(),
            retry_tiers: tiers.iter().collect(),
            hold_tiers: tiers.for_holds().iter().collect(),
            due_retry: format!("{group}.due.retry"),
            due_hold: format!("{group}.due.hold"),
            dead: format!("{group}.dead"),
            state: format!("{group}.state"),
            replay: format!("{group}.replay"),
        }
    }

    pub fn tier(&self, kind: WaitKind, delay: Duration) -> String {
        format!("{}.{}.{}", self.group, kind.as_str(), delay.as_secs())
    }

    pub fn due(&self, kind: WaitKind) -> &str {
        match kind {
            WaitKind::Retry => &self.due_retry,
            WaitKind::Hold => &self.due_hold,
        }
    }

    pub fn tiers(&self, kind: WaitKind) -> &[Duration] {
        match kind {
            WaitKind::Retry => &self.retry_tiers,
            WaitKind::Hold => &self.hold_tiers,
        }
    }

    /// The tiers of the config, and those that an earlier config has most likely had: AMQP cannot
    /// list queues.
    pub fn usual_tiers(&self, kind: WaitKind) -> BTreeSet<Duration> {
        let mut usual: BTreeSet<_> = self.tiers(kind).iter().copied().collect();
        match kind {
            WaitKind::Retry => usual.extend(Tiers::default().iter()),
            WaitKind::Hold => usual.extend(Tiers::default().for_holds().iter()),
        }
        usual
    }
}

/// A value of a queue's argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    Text(String),
    Number(i64),
}

/// Arguments of a queue, by name.
pub type Arguments = BTreeMap<String, Argument>;

/// A queue that the config needs. What is declared and what `topology` prints are these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    pub name: String,
    arguments: Arguments,
}

impl Queue {
    fn quorum(name: &str) -> Self {
        let kind = Argument::Text("quorum".into());
        Self {
            name: name.to_owned(),
            arguments: BTreeMap::from([("x-queue-type".to_owned(), kind)]),
        }
    }

    fn stream(name: &str) -> Self {
        let kind = Argument::Text("stream".into());
        let number = |bytes: u64| Argument::Number(bytes.cast_signed());
        let arguments = [
            ("x-queue-type", kind),
            ("x-max-length-bytes", number(BYTES)),
            ("x-stream-max-segment-size-bytes", number(SEGMENT_BYTES)),
        ];
        let named = arguments.map(|(name, value)| (name.to_owned(), value));
        Self {
            name: name.to_owned(),
            arguments: BTreeMap::from(named),
        }
    }

    fn is_stream(&self) -> bool {
        self.arguments.get("x-queue-type") == Some(&Argument::Text("stream".into()))
    }

    fn tier(name: &str, delay: Duration, due: &str) -> Self {
        let mut queue = Self::quorum(name);
        let mut put = |name: &str, value| queue.arguments.insert(name.to_owned(), value);
        put("x-dead-letter-exchange", Argument::Text(String::new()));
        put("x-dead-letter-routing-key", Argument::Text(due.to_owned()));
        let at_least_once = Argument::Text("at-least-once".to_owned());
        put("x-dead-letter-strategy", at_least_once);
        let reject = Argument::Text("reject-publish".to_owned());
        put("x-overflow", reject);
        let ttl_ms = Argument::Number(delay.as_millis() as i64);
        put("x-message-ttl", ttl_ms);
        queue
    }

    /// As a server of this version is to have it. From 4.0 on a quorum queue drops what was
    /// delivered 20 times, and a crash counts for every message that was under way; on 3.x there is
    /// no limit, and this argument deletes after one look.
    pub fn arguments(&self, version: Version) -> Arguments {
        let mut arguments = self.arguments.clone();
        if version.limits_deliveries() && !self.is_stream() {
            arguments.insert("x-delivery-limit".to_owned(), Argument::Number(-1));
        }
        arguments
    }
}

/// All queues of our own: the due queues first, since a tier that expires into a missing queue
/// hands over minutes late, then the dead letters and the tiers.
pub fn own(names: &Names) -> Vec<Queue> {
    let first = [&names.due_retry, &names.due_hold, &names.dead];
    let mut queues: Vec<_> = first.into_iter().map(|name| Queue::quorum(name)).collect();
    for kind in [WaitKind::Retry, WaitKind::Hold] {
        let tiers = names.tiers(kind).iter();
        let tier = |&delay| Queue::tier(&names.tier(kind, delay), delay, names.due(kind));
        queues.extend(tiers.map(tier));
    }
    queues
}

/// The stream of what all instances have in common.
pub fn state(names: &Names) -> Queue {
    Queue::stream(&names.state)
}

/// The queue of a source, as we declare it.
pub fn of_source(source: &SourceSettings) -> Queue {
    Queue::quorum(&source.queue)
}

/// Declares our queues, or where we may not, checks that all of them are there as they should be.
pub async fn declare_own(
    connection: &Connection,
    queues: &[Queue],
    version: Version,
    declare: bool,
) -> anyhow::Result<()> {
    provide(connection, queues, version, declare).await
}

/// Declares the stream of the state where it is missing.
pub async fn declare_state(
    connection: &Connection,
    names: &Names,
    version: Version,
    declare: bool,
) -> anyhow::Result<()> {
    provide(connection, &[state(names)], version, declare).await
}

/// Declares the due queue of `kind` where it is missing.
pub async fn declare_due(
    connection: &Connection,
    names: &Names,
    version: Version,
    kind: WaitKind,
    declare: bool,
) -> anyhow::Result<()> {
    let due = Queue::quorum(names.due(kind));
    provide(connection, &[due], version, declare).await
}

async fn provide(
    connection: &Connection,
    queues: &[Queue],
    version: Version,
    declare: bool,
) -> anyhow::Result<()> {
    let mut declarer = Declarer::new(connection, version);
    let mut missing = Vec::new();
    for queue in queues {
        if declare {
            declarer.queue(queue).await?;
        } else if declarer.is_there(&queue.name).await? {
            declarer.as_ours(queue, true).await?;
        } else {
            missing.push(format!("`{}`", queue.name));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "missing, and not ours to declare (`declare: false`): {}; `hookbridge topology` prints what \
         has to be made",
        missing.join(", ")
    )
}

/// Declares and binds a source's queue, or checks that it is there. A binding cannot be looked at
/// over AMQP, so where we may not declare it is taken to be there.
pub async fn declare_source(
    connection: &Connection,
    source: &SourceSettings,
    version: Version,
    declare: bool,
) -> anyhow::Result<()> {
    let mut declarer = Declarer::new(connection, version);
    if !source.declare {
        return declarer.check(&source.queue).await;
    }
    provide(connection, &[of_source(source)], version, declare).await?;
    if !declare {
        return Ok(());
    }
    for binding in &source.bind {
        let channel = declarer.channel().await?;
        let bound = channel.queue_bind(
            source.queue.as_str().into(),
            binding.exchange.as_str().into(),
            binding.key.as_str().into(),
            QueueBindOptions::default(),
            binding_table(&binding.arguments),
        );
        let what = format!(
            "queue `{}` cannot be bound to exchange `{}` with key `{}`",
            source.queue, binding.exchange, binding.key
        );
        answer(what, bound).await?;
    }
    Ok(())
}

/// A binding's arguments as the protocol has them.
pub fn binding_table(arguments: &BTreeMap<String, String>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = AMQPValue::LongString(value.as_str().into());
        table.insert(name.as_str().into(), value);
    }
    table
}

fn table(arguments: &Arguments) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
        };
        table.insert(name.as_str().into(), value);
    }
    table
}

/// How many messages lie in `queue` that nobody holds, and how many consumers it has. The broker
/// closes the channel with its "no".
pub async fn look(channel: &Channel, queue: &str) -> lapin::Result<(u32, u32)> {
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let looked = channel.queue_declare(queue.into(), options, FieldTable::default());
    let looked = looked.await?;
    Ok((looked.message_count(), looked.consumer_count()))
}

/// Declares on a channel that is opened again when the broker closes it, as it does for each "no".
pub struct Declarer<'a> {
    connection: &'a Connection,
    version: Version,
    channel: Option<Channel>,
}

impl<'a> Declarer<'a> {
    pub fn new(connection: &'a Connection, version: Version) -> Self {
        Self {
            connection,
            version,
            channel: None,
        }
    }

    pub async fn channel(&mut self) -> anyhow::Result<&Channel> {
        if !self
            .channel
            .as_ref()
            .is_some_and(|channel| channel.status().connected())
        {
            self.channel = None;
        }
        match &mut self.channel {
            Some(channel) => Ok(channel),
            empty => {
                let opened = answer("no channel", self.connection.create_channel()).await?;
                Ok(empty.insert(opened))
            }
        }
    }

    async fn check(&mut self, queue: &str) -> anyhow::Result<()> {
        self.look(queue).await.map(|_| ())
    }

    /// How many messages wait in `queue`, and how many consumers it has; an error where it is not
    /// there, or we may not know.
    pub async fn look(&mut self, queue: &str) -> anyhow::Result<(u32, u32)> {
        let channel = self.channel().await?;
        let what = format!("queue `{queue}` is not there, and is not ours to declare");
        answer(what, look(channel, queue)).await
    }

    /// Whether `queue` exists. Errors: anything but a clear answer.
    pub async fn is_there(&mut self, queue: &str) -> anyhow::Result<bool> {
        match self.check(queue).await {
            Ok(()) => Ok(true),
            Err(error) if refusal(&error) == Some(AMQPSoftError::NOTFOUND) => Ok(false),
            // Somebody's exclusive queue is there as well, which is not ours to use.
            Err(error) => Err(error),
        }
    }

    /// Checks first and declares what is missing; where it exists, declaring it again shows whether
    /// its arguments are ours. Without the permission to declare, existing is enough.
    pub async fn queue(&mut self, queue: &Queue) -> anyhow::Result<()> {
        let exists = self.check(&queue.name).await.is_ok();
        self.as_ours(queue, exists).await
    }

    /// Declares with our arguments, which changes nothing where the queue is as it should be.
    pub async fn as_ours(&mut self, queue: &Queue, exists: bool) -> anyhow::Result<()> {
        let (name, arguments) = (queue.name.as_str(), table(&queue.arguments));
        if !self.version.limits_deliveries() || queue.is_stream() {
            return self.declare_as(name, arguments, exists).await;
        }
        let unlimited = table(&queue.arguments(self.version));
        match self.declare(name, unlimited).await {
            // Declared before the server was upgraded to 4.x, perhaps.
            Err(error) if refusal(&error) == Some(AMQPSoftError::PRECONDITIONFAILED) => {
                self.declare_as(name, arguments, exists).await?;
                warn!(
                    queue = name,
                    "this queue was declared without `x-delivery-limit: -1` and drops a message that was \
                     delivered 20 times; set the policy `delivery-limit: -1` on it"
                );
                Ok(())
            }
            Err(error) if refusal(&error) == Some(AMQPSoftError::ACCESSREFUSED) && exists => Ok(()),
            other => other,
        }
    }

    async fn declare_as(
        &mut self,
        queue: &str,
        arguments: FieldTable,
        exists: bool,
    ) -> anyhow::Result<()> {
        let Err(error) = self.declare(queue, arguments).await else {
            return Ok(());
        };
        match refusal(&error) {
            Some(AMQPSoftError::ACCESSREFUSED) if exists => Ok(()),
            Some(AMQPSoftError::PRECONDITIONFAILED) => bail!(
                "queue `{queue}` exists with other arguments than ours ({error:#}); delete it when it is empty, \
                 or use another name"
            ),
            _ => Err(error),
        }
    }

    /// Declares with these arguments; the broker's own words where it says no.
    pub async fn try_arguments(
        &mut self,
        queue: &str,
        arguments: &Arguments,
    ) -> anyhow::Result<()> {
        self.declare(queue, table(arguments)).await
    }

    async fn declare(&mut self, queue: &str, arguments: FieldTable) -> anyhow::Result<()> {
        let channel = self.channel().await?;
        let declared =
            channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments);
        answer(format!("queue `{queue}` cannot be declared"), declared).await?;
        Ok(())
    }
}

/// Whether the broker said that there is no such queue.
pub fn is_missing(error: &anyhow::Error) -> bool {
    refusal(error) == Some(AMQPSoftError::NOTFOUND)
}

/// The broker's "no" to one request, if that is what went wrong.
pub fn refusal(error: &anyhow::Error) -> Option<AMQPSoftError> {
    error
        .downcast_ref::<lapin::Error>()
        .and_then(failures::soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_hands_over_at_least_once_to_its_due_queue() {
        let tiers = Tiers::new([5]).unwrap();
        let queues = own(&Names::new("shop", &tiers));
        let names: Vec<_> = queues.iter().map(|queue| queue.name.as_str()).collect();
        let expected = [
            "shop.due.retry",
            "shop.due.hold",
            "shop.dead",
            "shop.retry.5",
            "shop.hold.5",
        ];
        assert_eq!(names, expected);
        let version = |major| Version { major, minor: 0 };
        let arguments = queues[3].arguments(version(3));
        let text = |name: &str| match &arguments[name] {
            Argument::Text(text) => text.as_str(),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(text("x-queue-type"), "quorum");
        assert_eq!(text("x-dead-letter-exchange"), "");
        assert_eq!(text("x-dead-letter-routing-key"), "shop.due.retry");
        assert_eq!(text("x-dead-letter-strategy"), "at-least-once");
        assert_eq!(text("x-overflow"), "reject-publish");
        assert_eq!(arguments["x-message-ttl"], Argument::Number(5_000));
        assert!(!arguments.contains_key("x-delivery-limit"));
        let newer = queues[3].arguments(version(4));
        assert_eq!(newer["x-delivery-limit"], Argument::Number(-1));
    }
}
