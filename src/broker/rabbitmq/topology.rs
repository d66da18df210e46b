//! Topology: the names of our queues, and declaring what is missing.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ErrorKind};

use super::SourceSettings;
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
pub async fn declare_own(connection: &Connection, names: &Names) -> anyhow::Result<()> {
    let mut declarer = Declarer {
        connection,
        channel: None,
    };
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

/// Declares and binds a source's queue, or checks that it is there.
pub async fn declare_source(
    connection: &Connection,
    source: &SourceSettings,
) -> anyhow::Result<()> {
    let mut declarer = Declarer {
        connection,
        channel: None,
    };
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
        declarer
            .channel()
            .await?
            .queue_bind(
                source.queue.as_str().into(),
                binding.exchange.as_str().into(),
                binding.key.as_str().into(),
                QueueBindOptions::default(),
                arguments,
            )
            .await
            .with_context(|| {
                format!(
                    "queue `{}` cannot be bound to exchange `{}` with key `{}`",
                    source.queue, binding.exchange, binding.key
                )
            })?;
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
    channel: Option<Channel>,
}

impl Declarer<'_> {
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
            empty => Ok(empty.insert(
                self.connection
                    .create_channel()
                    .await
                    .context("no channel")?,
            )),
        }
    }

    async fn check(&mut self, queue: &str) -> anyhow::Result<()> {
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::durable()
        };
        self.channel()
            .await?
            .queue_declare(queue.into(), options, FieldTable::default())
            .await
            .with_context(|| format!("queue `{queue}` is not there, and is not ours to declare"))?;
        Ok(())
    }

    /// Checks first and declares what is missing; where it exists, declaring it again shows whether
    /// its arguments are ours. Without the permission to declare, existing is enough.
    async fn queue(&mut self, queue: &str, arguments: FieldTable) -> anyhow::Result<()> {
        let exists = self.check(queue).await;
        let declared = self
            .channel()
            .await?
            .queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments)
            .await;
        let Err(error) = declared else { return Ok(()) };
        match soft_error(&error) {
            Some(AMQPSoftError::ACCESSREFUSED) if exists.is_ok() => Ok(()),
            Some(AMQPSoftError::PRECONDITIONFAILED) => bail!(
                "queue `{queue}` exists with other arguments than ours ({error}); delete it when it is empty, \
                 or use another name"
            ),
            _ => Err(anyhow!(error).context(format!("queue `{queue}` cannot be declared"))),
        }
    }
}

fn soft_error(error: &lapin::Error) -> Option<AMQPSoftError> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(soft) => Some(soft.clone()),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}
