//! Topology: the names of our queues, and declaring what is missing.

use std::time::Duration;

use anyhow::bail;
use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection};
use tracing::warn;

use super::connect::answer;
use super::greeting::Version;
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
}

/// Declares our queues: the due queues first, since a tier that expires into a missing queue hands
/// over minutes late, then the dead letters and the tiers.
pub async fn declare_own(
    connection: &Connection,
    names: &Names,
    version: Version,
) -> anyhow::Result<()> {
    let mut declarer = Declarer::new(connection, version);
    for queue in [&names.due_retry, &names.due_hold, &names.dead] {
        declarer.queue(queue, quorum()).await?;
    }
    for kind in [WaitKind::Retry, WaitKind::Hold] {
        for &delay in names.tiers(kind) {
            declarer
                .queue(
                    &names.tier(kind, delay),
                    tier_arguments(delay, names.due(kind)),
                )
                .await?;
        }
    }
    Ok(())
}

/// Declares the due queue of `kind` where it is missing.
pub async fn declare_due(
    connection: &Connection,
    names: &Names,
    version: Version,
    kind: WaitKind,
) -> anyhow::Result<()> {
    Declarer::new(connection, version)
        .queue(names.due(kind), quorum())
        .await
}

/// Declares and binds a source's queue, or checks that it is there.
pub async fn declare_source(
    connection: &Connection,
    source: &SourceSettings,
    version: Version,
) -> anyhow::Result<()> {
    let mut declarer = Declarer::new(connection, version);
    if !source.declare {
        return declarer.check(&source.queue).await;
    }
    declarer.queue(&source.queue, quorum()).await?;
    for binding in &source.bind {
        let mut arguments = FieldTable::default();
        for (name, value) in &binding.arguments {
            arguments.insert(
                name.as_str().into(),
                AMQPValue::LongString(value.as_str().into()),
            );
        }
        let channel = declarer.channel().await?;
        let bound = channel.queue_bind(
            source.queue.as_str().into(),
            binding.exchange.as_str().into(),
            binding.key.as_str().into(),
            QueueBindOptions::default(),
            arguments,
        );
        let what = format!(
            "queue `{}` cannot be bound to exchange `{}` with key `{}`",
            source.queue, binding.exchange, binding.key
        );
        answer(what, bound).await?;
    }
    Ok(())
}

fn quorum() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    arguments
}

/// From 4.0 on a quorum queue drops what was delivered 20 times, and a crash counts for every
/// message that was under way; on 3.x there is no limit, and this argument deletes after one look.
fn without_delivery_limit(mut arguments: FieldTable) -> FieldTable {
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(-1));
    arguments
}

fn tier_arguments(delay: Duration, due: &str) -> FieldTable {
    let mut arguments = quorum();
    let mut put = |name: &str, value: &str| {
        arguments.insert(name.into(), AMQPValue::LongString(value.into()));
    };
    put("x-dead-letter-exchange", "");
    put("x-dead-letter-routing-key", due);
    put("x-dead-letter-strategy", "at-least-once");
    put("x-overflow", "reject-publish");
    arguments.insert(
        "x-message-ttl".into(),
        AMQPValue::LongLongInt(delay.as_millis() as i64),
    );
    arguments
}

/// Declares on a channel that is opened again when the broker closes it, as it does for each "no".
struct Declarer<'a> {
    connection: &'a Connection,
    version: Version,
    channel: Option<Channel>,
}

impl<'a> Declarer<'a> {
    fn new(connection: &'a Connection, version: Version) -> Self {
        Self {
            connection,
            version,
            channel: None,
        }
    }

    async fn channel(&mut self) -> anyhow::Result<&Channel> {
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
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::durable()
        };
        let channel = self.channel().await?;
        let checked = channel.queue_declare(queue.into(), options, FieldTable::default());
        answer(
            format!("queue `{queue}` is not there, and is not ours to declare"),
            checked,
        )
        .await?;
        Ok(())
    }

    /// Checks first and declares what is missing; where it exists, declaring it again shows whether
    /// its arguments are ours. Without the permission to declare, existing is enough.
    async fn queue(&mut self, queue: &str, arguments: FieldTable) -> anyhow::Result<()> {
        let exists = self.check(queue).await.is_ok();
        if self.version.limits_deliveries() {
            let unlimited = without_delivery_limit(arguments.clone());
            match self.declare(queue, unlimited).await {
                // Declared before the server was upgraded to 4.x, perhaps.
                Err(error) if refusal(&error) == Some(AMQPSoftError::PRECONDITIONFAILED) => {
                    self.declare_as(queue, arguments, exists).await?;
                    warn!(
                        queue,
                        "this queue was declared without `x-delivery-limit: -1` and drops a message that was \
                         delivered 20 times; set the policy `delivery-limit: -1` on it"
                    );
                    Ok(())
                }
                Err(error) if refusal(&error) == Some(AMQPSoftError::ACCESSREFUSED) && exists => {
                    Ok(())
                }
                other => other,
            }
        } else {
            self.declare_as(queue, arguments, exists).await
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

    async fn declare(&mut self, queue: &str, arguments: FieldTable) -> anyhow::Result<()> {
        let channel = self.channel().await?;
        let declared =
            channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments);
        answer(format!("queue `{queue}` cannot be declared"), declared).await?;
        Ok(())
    }
}

fn refusal(error: &anyhow::Error) -> Option<AMQPSoftError> {
    error
        .downcast_ref::<lapin::Error>()
        .and_then(failures::soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_hands_over_at_least_once_to_its_due_queue() {
        let arguments = tier_arguments(Duration::from_secs(5), "shop.due.retry");
        let text = |name: &str| match arguments.inner().get(name) {
            Some(AMQPValue::LongString(text)) => text.to_string(),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(text("x-queue-type"), "quorum");
        assert_eq!(text("x-dead-letter-exchange"), "");
        assert_eq!(text("x-dead-letter-routing-key"), "shop.due.retry");
        assert_eq!(text("x-dead-letter-strategy"), "at-least-once");
        assert_eq!(text("x-overflow"), "reject-publish");
        assert_eq!(
            arguments.inner().get("x-message-ttl"),
            Some(&AMQPValue::LongLongInt(5_000))
        );
        assert!(!arguments.contains_key("x-delivery-limit"));
        assert!(without_delivery_limit(arguments).contains_key("x-delivery-limit"));
    }
}
