//! Upkeep on Kafka: what is needed, what is left over, and removing it.
//!
//! Topics and groups can be listed, so what is left over is found by its name, also what nobody has
//! noted down. Of groups that had another name only those noted down are looked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use async_trait::async_trait;

use super::client::{ASK, blocking};
use super::topics::{self, Catalogue, Size};
use super::wanted::Wanted;
use super::{Kafka, adopt, inspect, names};
use crate::broker::upkeep::{Adopted, Known, Need, Orphan, Plan, Thing, Upkeep};
use crate::finding::Findings;

#[async_trait]
impl Upkeep for Kafka {
    fn name(&self) -> &Arc<str> {
        &self.settings.name
    }

    async fn inspect(&self, found: &Findings) {
        inspect::broker(self, found).await;
    }

    async fn plan(&self) -> Plan {
        let mut plan = Plan::default();
        let size = match self.size().await {
            Ok(size) => size,
            Err(error) => {
                plan.notes.push(format!(
                    "broker `{}` does not answer ({error:#}): give our topics as many partitions as the \
                     widest source has, 12 at most, and a max.message.bytes 65536 above the sources'",
                    self.settings.name
                ));
                Size::SMALLEST
            }
        };
        let group = &*self.settings.group;
        let own = topics::own(group, &self.settings.tiers, self.settings.keeps_state);
        plan.needs.extend(own.iter().map(|topic| {
            Need::Topic {
                name: topic.name.clone(),
                partitions: topic.partitions(size),
                settings: topic
                    .settings(size)
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect(),
            }
        }));
        plan.needs.extend(self.access());
        plan
    }

    fn ours(&self) -> BTreeSet<Thing> {
        let group = &*self.settings.group;
        let own = topics::own(group, &self.settings.tiers, self.settings.keeps_state).into_iter();
        let mut ours: BTreeSet<_> = own.map(|topic| Thing::Topic(topic.name)).collect();
        ours.insert(Thing::Group(names::tier_group(group)));
        ours.insert(Thing::Group(names::replay(group)));
        if !self.sources.load().is_empty() {
            ours.insert(Thing::Group(group.to_owned()));
        }
        ours
    }

    async fn orphans(&self, known: &Known) -> anyhow::Result<Vec<Orphan>> {
        let ours = self.ours();
        let catalogue = topics::catalogue(&self.admin).await?;
        let mut groups = known.groups.clone();
        groups.insert(self.settings.group.to_string());
        let listed = self.groups().await?;
        let mut orphans = Vec::new();
        for group in &groups {
            let (tiers, lock) = (names::tier_group(group), names::replay(group));
            let members = |name: &str| listed.get(name).is_some_and(|members| *members > 0);
            // Our own bridge may run: of its topics only those count that the config has not.
            let others = **group != *self.settings.group;
            let in_use = others && [group, &tiers, &lock].into_iter().any(|name| members(name));
            for (topic, partitions) in of_group(group, &catalogue) {
                let thing = Thing::Topic(topic.clone());
                if !ours.contains(&thing) {
                    let messages = adopt::waiting(self, group, topic, *partitions).await?;
                    orphans.push(Orphan {
                        thing,
                        messages: Some(messages),
                        in_use,
                    });
                }
            }
            for name in [group.as_str(), &tiers, &lock] {
                let thing = Thing::Group(name.to_owned());
                if listed.contains_key(name) && !ours.contains(&thing) {
                    orphans.push(Orphan {
                        thing,
                        messages: None,
                        in_use: members(name),
                    });
                }
            }
        }
        Ok(orphans)
    }

    async fn remove(&self, orphan: &Thing) -> anyhow::Result<()> {
        let options = topics::options();
        let removed = match orphan {
            Thing::Topic(name) => self
                .admin
                .delete_topics(&[name], &options)
                .await
                .with_context(|| format!("removing {orphan}"))?,
            Thing::Group(name) => self
                .admin
                .delete_groups(&[name], &options)
                .await
                .with_context(|| format!("removing {orphan}"))?,
            Thing::Queue(_) | Thing::Binding { .. } => bail!("there is no {orphan} on Kafka"),
        };
        for one in removed {
            if let Err((_, code)) = one {
                bail!("{orphan} cannot be removed: {code}");
            }
        }
        Ok(())
    }

    async fn adopt(&self, group: &str, _: &Known) -> anyhow::Result<Adopted> {
        adopt::group(self, group)
            .await
            .with_context(|| format!("group `{group}`"))
    }
}

impl Kafka {
    async fn size(&self) -> anyhow::Result<Size> {
        let catalogue = topics::catalogue(&self.admin).await?;
        let sources = self.source_topics(&catalogue);
        Size::of(&self.admin, &catalogue, &sources).await
    }

    /// Members by group, of every group that can be seen.
    pub(super) async fn groups(&self) -> anyhow::Result<BTreeMap<String, usize>> {
        let admin = self.admin.clone();
        blocking(move || {
            let listed = admin.inner().fetch_group_list(None, ASK);
            let listed = listed.context("asking for the groups")?;
            let groups = listed.groups().iter();
            Ok(groups
                .map(|group| (group.name().to_owned(), group.members().len()))
                .collect())
        })
        .await
    }

    /// What we have to be allowed, where an access list decides.
    fn access(&self) -> Vec<Need> {
        let group = &*self.settings.group;
        let access = |resource: &str, name: &str, operations: &[&str]| Need::Access {
            resource: resource.to_owned(),
            name: name.to_owned(),
            operations: operations.iter().map(|one| (*one).to_owned()).collect(),
        };
        // Tombstones and the trimming of tiers: what is settled is deleted.
        let mut ours = vec!["Read", "Write", "Describe", "DescribeConfigs", "Delete"];
        if self.settings.declare {
            ours.push("Create");
        }
        let mut needs: Vec<_> = topics::own(group, &self.settings.tiers, self.settings.keeps_state)
            .iter()
            .map(|topic| access("topic", &topic.name, &ours))
            .collect();
        let sources = self.sources.load();
        let wanted = sources.iter().flat_map(|plan| &plan.wanted);
        let named: BTreeSet<_> = wanted
            .map(|wanted| match wanted {
                Wanted::Named(name) => name.clone(),
                // An access list knows no expressions.
                Wanted::Matching(_) => "*".to_owned(),
            })
            .collect();
        let theirs = ["Read", "Describe", "DescribeConfigs"];
        needs.extend(named.iter().map(|topic| access("topic", topic, &theirs)));
        let groups = [
            group.to_owned(),
            names::tier_group(group),
            names::replay(group),
            names::history_group(group),
        ];
        for name in groups {
            needs.push(access("group", &name, &["Read", "Describe"]));
        }
        needs.push(access("cluster", "", &["IdempotentWrite", "Describe"]));
        needs
    }
}

/// The topics of `group` that are there: nothing of a group whose name begins alike.
pub(super) fn of_group<'a>(
    group: &'a str,
    catalogue: &'a Catalogue,
) -> impl Iterator<Item = (&'a String, &'a usize)> {
    catalogue
        .iter()
        .filter(move |(topic, _)| names::belongs_to(group, topic))
}
