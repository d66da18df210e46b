//! Upkeep on RabbitMQ: what is needed, what is left over, and removing it.
//!
//! AMQP cannot list queues. What was declared at earlier starts has been noted down, and those
//! names are looked at one by one; what nobody noted down is not found.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use lapin::options::QueueDeleteOptions;
use lapin::types::ShortString;

use super::connect::{answer, hang_up};
use super::greeting::Version;
use super::topology::{self, Argument, Declarer, Names, Queue, binding_table};
use super::{RabbitMq, adopt, inspect};
use crate::broker::upkeep::{Adopted, Known, Need, Orphan, Plan, Thing, Upkeep};
use crate::delivery::WaitKind;
use crate::finding::Findings;

/// What is assumed of a server that does not answer.
const OLD: Version = Version {
    major: 3,
    minor: 10,
};

#[async_trait]
impl Upkeep for RabbitMq {
    fn name(&self) -> &Arc<str> {
        &self.settings.name
    }

    async fn inspect(&self, found: &Findings) {
        inspect::broker(self, found).await;
    }

    async fn plan(&self) -> Plan {
        let mut plan = Plan::default();
        let version = match self.connector.server_version().await {
            Ok(version) => version,
            Err(error) => {
                plan.notes.push(format!(
                    "broker `{}` does not answer ({error:#}): printed for RabbitMQ 3.x; from 4.0 on each \
                     queue also needs `x-delivery-limit: -1`",
                    self.settings.name
                ));
                OLD
            }
        };
        let vhost = self.connector.vhost();
        let queue = |queue: Queue| Need::Queue {
            vhost: vhost.clone(),
            arguments: queue
                .arguments(version)
                .into_iter()
                .map(|(name, value)| match value {
                    Argument::Text(text) => (name, text.into()),
                    Argument::Number(number) => (name, number.into()),
                })
                .collect(),
            name: queue.name,
        };
        plan.needs.extend(self.own_queues().into_iter().map(queue));
        for source in self.sources.load().iter() {
            if !source.declare {
                let name = &source.queue;
                let note = format!("queue `{name}` belongs to others (`declare: false`)");
                plan.notes.push(note);
                continue;
            }
            plan.needs.push(queue(topology::of_source(source)));
            plan.needs
                .extend(source.bind.iter().map(|binding| Need::Binding {
                    vhost: vhost.clone(),
                    queue: source.queue.clone(),
                    exchange: binding.exchange.clone(),
                    key: binding.key.clone(),
                    arguments: binding.arguments.clone(),
                }));
        }
        plan
    }

    fn ours(&self) -> BTreeSet<Thing> {
        let own = self.own_queues().into_iter();
        let mut ours: BTreeSet<_> = own.map(|queue| Thing::Queue(queue.name)).collect();
        for source in self.sources.load().iter() {
            if !source.declare {
                continue;
            }
            ours.insert(Thing::Queue(source.queue.clone()));
            ours.extend(source.bind.iter().map(|binding| Thing::Binding {
                queue: source.queue.clone(),
                exchange: binding.exchange.clone(),
                key: binding.key.clone(),
                arguments: binding.arguments.clone(),
            }));
        }
        ours
    }

    async fn orphans(&self, known: &Known) -> anyhow::Result<Vec<Orphan>> {
        let ours = self.ours();
        // A queue of others that a source of ours has taken over is not left over.
        let sources = self.sources.load();
        let read: BTreeSet<_> = sources.iter().map(|source| &source.queue).collect();
        let left = known.things.iter().filter(|thing| !ours.contains(*thing));
        let connection = self.connector.connect("topology").await?;
        let mut declarer = Declarer::new(&connection, OLD);
        let mut running = Vec::new();
        for group in known
            .groups
            .iter()
            .filter(|group| ***group != *self.settings.group)
        {
            let names = Names::new(group, &self.settings.tiers);
            if let Ok((_, 1..)) = declarer.look(&names.due_retry).await {
                running.push(format!("{group}."));
            }
        }
        let mut there: BTreeMap<String, bool> = BTreeMap::new();
        let mut orphans = Vec::new();
        for thing in left {
            let (Thing::Queue(queue) | Thing::Binding { queue, .. }) = thing else {
                continue;
            };
            let exists = match there.get(queue) {
                Some(exists) => *exists,
                None => {
                    let exists = declarer.is_there(queue).await?;
                    *there.entry(queue.clone()).or_insert(exists)
                }
            };
            if !exists {
                continue;
            }
            match thing {
                Thing::Queue(queue) if !read.contains(queue) => {
                    let (messages, consumers) = declarer.look(queue).await?;
                    orphans.push(Orphan {
                        thing: thing.clone(),
                        messages: Some(messages.into()),
                        // Nobody reads a tier: its group is in use when its due queue is read.
                        in_use: consumers > 0
                            || running.iter().any(|group| queue.starts_with(group)),
                    });
                }
                // A binding goes with its queue.
                Thing::Binding { queue, .. } if ours.contains(&Thing::Queue(queue.clone())) => {
                    orphans.push(Orphan {
                        thing: thing.clone(),
                        messages: None,
                        in_use: false,
                    });
                }
                _ => {}
            }
        }
        for group in &known.groups {
            let names = Names::new(group, &self.settings.tiers);
            for kind in [WaitKind::Retry, WaitKind::Hold] {
                let due = names.due(kind);
                let due_is_there = declarer.is_there(due).await?;
                tiers_before_due(
                    &mut orphans,
                    &format!("{group}.{}.", kind.as_str()),
                    due,
                    due_is_there,
                );
            }
        }
        hang_up(&connection).await;
        Ok(orphans)
    }

    async fn remove(&self, orphan: &Thing) -> anyhow::Result<()> {
        let connection = self.connector.connect("topology").await?;
        let channel = answer("no channel", connection.create_channel()).await?;
        match orphan {
            Thing::Queue(name) => {
                // Quorum queues know neither `if-empty` nor `if-unused`: who asks has looked.
                let gone =
                    channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default());
                answer(format!("queue `{name}` cannot be deleted"), gone).await?;
            }
            Thing::Binding {
                queue,
                exchange,
                key,
                arguments,
            } => {
                let unbound = channel.queue_unbind(
                    ShortString::from(queue.as_str()),
                    exchange.as_str().into(),
                    key.as_str().into(),
                    binding_table(arguments),
                );
                answer(format!("the {orphan} cannot be removed"), unbound).await?;
            }
            Thing::Topic(_) | Thing::Group(_) => bail!("there is no {orphan} on RabbitMQ"),
        }
        hang_up(&connection).await;
        Ok(())
    }

    async fn adopt(&self, group: &str, known: &Known) -> anyhow::Result<Adopted> {
        adopt::group(self, group, known)
            .await
            .with_context(|| format!("group `{group}`"))
    }
}

/// Puts a due queue behind the tiers that lead to it and makes it as full as they are, so that it
/// outlives them: a tier without its due queue keeps its messages and says that it has none.
fn tiers_before_due(orphans: &mut Vec<Orphan>, tiers: &str, due: &str, due_is_there: bool) {
    let mut on_tiers = 0;
    for orphan in orphans.iter_mut() {
        if matches!(&orphan.thing, Thing::Queue(name) if name.starts_with(tiers)) {
            on_tiers += orphan.messages.unwrap_or(0);
            if !due_is_there {
                orphan.messages = None;
            }
        }
    }
    let at = orphans
        .iter()
        .position(|orphan| matches!(&orphan.thing, Thing::Queue(name) if name == due));
    if let Some(at) = at {
        let mut last = orphans.remove(at);
        last.messages = last.messages.map(|messages| messages + on_tiers);
        orphans.push(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orphan(name: &str, messages: u64) -> Orphan {
        Orphan {
            thing: Thing::Queue(name.to_owned()),
            messages: Some(messages),
            in_use: false,
        }
    }

    #[test]
    fn a_due_queue_outlives_the_tiers_that_lead_to_it() {
        let mut orphans = vec![orphan("g.due.retry", 1), orphan("g.retry.5", 2)];
        tiers_before_due(&mut orphans, "g.retry.", "g.due.retry", true);
        assert_eq!(orphans, [orphan("g.retry.5", 2), orphan("g.due.retry", 3)]);
    }

    #[test]
    fn without_its_due_queue_a_tier_is_not_believed_to_be_empty() {
        let mut orphans = vec![orphan("g.retry.5", 0), orphan("g.hold.5", 0)];
        tiers_before_due(&mut orphans, "g.retry.", "g.due.retry", false);
        assert_eq!(orphans[0].messages, None);
        assert_eq!(orphans[1].messages, Some(0));
    }
}
