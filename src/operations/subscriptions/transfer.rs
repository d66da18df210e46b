//! Transfer: subscriptions of the API written out, a line each and sealed as they are, and taken in
//! again, here or elsewhere.
//!
//! A line is a whole subscription with its uid, its revision and its sealed endpoint; whoever takes it
//! in needs the key that sealed it. All lines are checked before the first one is taken in. One whose
//! subscription is there already changes nothing: it is `unchanged`, or in `conflict` with what is
//! there. So the same lines can be taken in again, after an interruption for instance.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::shared::What;
use super::tenancy::{is_of, of_another, of_operator};
use super::{Cursor, Mistake, Refused, Registry, Settings, document, load, opened, sealed};
use crate::pipeline::Wanted;
use crate::store::{KeyError, Registered};
use crate::subscription::Uid;

/// The version of a line that this release writes. The first and so far the only one; a release reads
/// its own and all older ones, which are brought forward in [`read`].
pub const FORMAT: u64 = 1;
/// Lines that are taken in at once.
pub const MOST_LINES: usize = 10_000;
/// Subscriptions that are read from the store at once.
const PAGE: usize = 500;
/// Lines that are checked at once; what they refer to is read anew for each so many.
const AT_ONCE: usize = 1_000;
/// Mistakes that are told.
const MOST_MISTAKES: usize = 100;
const REMOVED: &str = "it was removed, and a removed uid does not come again";
/// There is room for more changes behind it than anybody makes.
const LAST_REVISION: u64 = i64::MAX as u64;
/// For who may not know whether it is another tenant's.
const NO_LONGER_FREE: &str = "its uid was given to another one, and does not come again";
/// Results that wait for whoever reads them.
const WAITING: usize = 64;

/// A subscription as it is written out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    format: u64,
    /// The id of the key of `store_key` that opens it, where something in it is sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    paused: bool,
    subscription: Registered,
}

/// What became of a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Imported {
    /// From 1, or from what the caller counts from.
    pub line: usize,
    pub name: String,
    pub uid: String,
    pub result: Came,
    /// Why it was not made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Came {
    /// It is there now, with its uid and its revision.
    Made,
    /// It was there, as the line has it.
    Unchanged,
    /// Another one is there, of its name, or of its uid in another state: that stays as it is.
    Conflict,
    /// It could not be made now, and what comes after it was not tried.
    Failed,
}

/// Something that is wrong on a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flawed {
    /// From 1.
    pub line: usize,
    pub mistake: Mistake,
}

/// A line that has been checked.
pub struct Checked {
    line: usize,
    record: Registered,
    document: Value,
    paused: bool,
}

/// How far an export has come.
#[derive(Debug, Clone)]
pub enum Reached {
    /// Of all.
    Uid(Uid),
    /// Of a tenant's.
    Place(Cursor),
}

impl Registry {
    /// The next lines, of one tenant or of all, and how far they go; `None` after the last ones.
    pub fn exported(
        &self,
        tenant: Option<&Arc<str>>,
        after: Option<&Reached>,
    ) -> Result<Option<(Vec<Line>, Reached)>, Refused> {
        let (page, reached) = match (tenant, after) {
            (Some(tenant), after) => self.page_of(tenant, after)?,
            (None, after) => {
                let after = match after {
                    Some(Reached::Uid(uid)) => Some(uid),
                    _ => None,
                };
                let page = self.store.registered_after(after, PAGE)?;
                let last = page.last().map(|record| Reached::Uid(record.uid.clone()));
                (page, last)
            }
        };
        let Some(reached) = reached else {
            return Ok(None);
        };
        let mut lines = Vec::with_capacity(page.len());
        for record in page {
            lines.push(Line {
                format: FORMAT,
                key: record.endpoint.as_ref().map(|sealed| sealed.key.clone()),
                paused: self.store.subscription_standing(&record.uid)?.paused,
                subscription: record,
            });
        }
        Ok(Some((lines, reached)))
    }

    /// Of a tenant, by the index of its own: however many others have, it costs what it has itself.
    fn page_of(
        &self,
        tenant: &Arc<str>,
        after: Option<&Reached>,
    ) -> Result<(Vec<Registered>, Option<Reached>), Refused> {
        let wanted = Wanted {
            tenant: Some(tenant.clone()),
            labels: Vec::new(),
        };
        let place = match after {
            Some(Reached::Place(cursor)) => Some(cursor.place()),
            _ => None,
        };
        let (found, _) = self.pipeline.subscriptions_after(&wanted, place, PAGE);
        let mut each: Vec<_> = found
            .into_iter()
            .map(|one| (one.name.to_string(), one.uid.to_string()))
            .collect();
        let mut last = each.last().cloned();
        if after.is_none() {
            // Those that are not in force are few, and in no index.
            let unusable = self.unusable_after(None).into_iter();
            let its = unusable.filter(|one| one.is(&wanted));
            each.extend(its.map(|one| (one.name, one.uid)));
            last = last.or_else(|| each.last().cloned());
        }
        let mut page = Vec::with_capacity(each.len());
        for (_, uid) in each {
            let record = self.store.registered_with(&Uid::from_stored(&uid))?;
            page.extend(record.filter(|record| is_of(record, tenant)));
        }
        let reached = last.map(|(name, uid)| Reached::Place(Cursor::at(name, uid)));
        Ok((page, reached))
    }

    /// Checks all lines of `text`; those that are empty are passed over. By the config that is in force
    /// now: each is looked at again when it is made. `tenant`: for whom they are taken in; without one for
    /// the operator.
    pub async fn check_lines(
        self: &Arc<Self>,
        text: Bytes,
        tenant: Option<Arc<str>>,
    ) -> Result<Vec<Checked>, Vec<Flawed>> {
        let registry = self.clone();
        let checking =
            tokio::task::spawn_blocking(move || registry.check_all(&text, tenant.as_ref()));
        checking.await.unwrap_or_else(|why| {
            let mistake = Mistake::at(String::new(), format!("the check has failed: {why}"));
            Err(vec![Flawed { line: 1, mistake }])
        })
    }

    fn check_all(
        &self,
        text: &[u8],
        tenant: Option<&Arc<str>>,
    ) -> Result<Vec<Checked>, Vec<Flawed>> {
        let settings = self.shared.settings();
        let mut flawed = Vec::new();
        let mut checked: Vec<Checked> = Vec::new();
        let (mut uids, mut names) = (HashSet::new(), HashSet::new());
        let lines = text.split(|byte| *byte == b'\n').enumerate();
        for (at, bytes) in lines.filter(|(_, bytes)| !bytes.trim_ascii().is_empty()) {
            let line = at + 1;
            let wrong = |pointer: &str, message: String| {
                let mistake = Mistake::at(pointer.to_owned(), message);
                Flawed { line, mistake }
            };
            if checked.len() == MOST_LINES {
                flawed.push(wrong("", format!("more than {MOST_LINES} lines at once")));
                break;
            }
            let read = match read(bytes) {
                Ok(read) => read,
                Err(message) => {
                    flawed.push(wrong("", message));
                    continue;
                }
            };
            let (record, paused) = (read.subscription, read.paused);
            if !record.uid.is_made() {
                flawed.push(wrong("/subscription/uid", "no uid of the API".to_owned()));
                continue;
            }
            if !(1..=LAST_REVISION).contains(&record.revision) {
                let range = format!("a revision is a number from 1 to {LAST_REVISION}");
                flawed.push(wrong("/subscription/revision", range));
                continue;
            }
            let foreign = tenant.and_then(|tenant| of_another(&record.document, tenant));
            if let Some(mistake) = foreign {
                flawed.push(of_document(line, mistake));
                continue;
            }
            if !uids.insert(record.uid.clone()) || !names.insert(record.name.clone()) {
                let twice = "its uid or its name is there twice";
                flawed.push(wrong("/subscription", twice.to_owned()));
                continue;
            }
            match opened(&settings.keys, &record) {
                Ok(document) if document["name"] != record.name.as_str() => {
                    let other = "it is not the one that the document has";
                    flawed.push(wrong("/subscription/name", other.to_owned()));
                }
                Ok(document) => match tenant.and_then(|it| self.not_its(it, &record, &document)) {
                    Some(mistake) => flawed.push(of_document(line, mistake)),
                    None => checked.push(Checked {
                        line,
                        record,
                        document,
                        paused,
                    }),
                },
                Err(why) => flawed.push(wrong("/subscription/endpoint", unopened(&why))),
            }
        }
        for some in checked.chunks(AT_ONCE) {
            flawed.extend(self.flaws(&settings, some));
        }
        if flawed.is_empty() {
            return Ok(checked);
        }
        flawed.sort_by_key(|flawed| flawed.line);
        flawed.truncate(MOST_MISTAKES);
        Err(flawed)
    }

    /// What is wrong for whoever acts for this tenant: an endpoint of the operator's, unless the operator
    /// has made it so.
    fn not_its(&self, tenant: &Arc<str>, record: &Registered, document: &Value) -> Option<Mistake> {
        let mistake = of_operator(document)?;
        let there = self.store.registered_with(&record.uid).ok().flatten();
        let is_so = there.is_some_and(|there| {
            is_of(&there, tenant) && there.document.get("endpoint") == document.get("endpoint")
        });
        (!is_so).then_some(mistake)
    }

    /// What the config that is in force finds wrong.
    fn flaws(&self, settings: &Settings, checked: &[Checked]) -> Vec<Flawed> {
        let now = Timestamp::now();
        let documents: Vec<_> = checked
            .iter()
            .map(|one| load::in_effect(&one.record, one.document.clone(), now).0)
            .collect();
        let asked: Vec<_> = checked
            .iter()
            .zip(&documents)
            .map(|(one, document)| (&one.record.uid, document))
            .collect();
        let mut flawed = Vec::new();
        for (one, read) in checked.iter().zip(settings.reader.read(&asked)) {
            let mistakes = match read {
                Err(mistakes) => mistakes,
                Ok(read) => match self.prepared(&one.record.uid, read) {
                    Ok(_) => document::masks_left(&one.document)
                        .into_iter()
                        .map(|pointer| Mistake::at(pointer, "`***` stands for a secret"))
                        .collect(),
                    Err(why) => vec![Mistake::at(String::new(), format!("{why:#}"))],
                },
            };
            let mistakes = mistakes.into_iter();
            flawed.extend(mistakes.map(|mistake| of_document(one.line, mistake)));
        }
        flawed
    }

    /// Takes in what was checked, or says what that would do, one after the other. Whether or not
    /// anybody listens it goes on to its end.
    pub fn import(
        self: &Arc<Self>,
        checked: Vec<Checked>,
        dry_run: bool,
        tenant: Option<Arc<str>>,
    ) -> mpsc::Receiver<Imported> {
        let (results, came) = mpsc::channel(WAITING);
        let registry = self.clone();
        tokio::spawn(async move {
            let mut made = 0_usize;
            for one in checked {
                let (line, name, uid) = (one.line, one.record.name.clone(), one.record.uid.clone());
                let (result, why) = match registry.import_one(one, dry_run, tenant.as_ref()).await {
                    Ok((result, why)) => (result, why),
                    Err(refused) => (Came::Failed, Some(refused.to_string())),
                };
                made += usize::from(result == Came::Made && !dry_run);
                let imported = Imported {
                    line,
                    name,
                    uid: uid.to_string(),
                    result,
                    why,
                };
                // Whoever has gone away does not end it.
                let _ = results.send(imported).await;
                if result == Came::Failed {
                    warn!(line, %uid, "an import has ended early");
                    break;
                }
            }
            if made > 0 {
                info!(made, "subscriptions were imported over the API");
            }
        });
        came
    }

    async fn import_one(
        &self,
        checked: Checked,
        dry_run: bool,
        tenant: Option<&Arc<str>>,
    ) -> Result<(Came, Option<String>), Refused> {
        let Checked {
            record,
            document,
            paused,
            ..
        } = checked;
        let settings = self.settings.lock().await;
        if let Some(there) = self.store.registered_with(&record.uid)? {
            if tenant.is_some_and(|tenant| !is_of(&there, tenant)) {
                return Ok((Came::Conflict, Some(not_free(tenant).to_owned())));
            }
            let same = there.revision == record.revision
                && there.name == record.name
                && there.old_until == record.old_until
                && opened(&settings.keys, &there)? == document;
            let is_paused = self.store.subscription_standing(&record.uid)?.paused;
            let why = if !same {
                let (here, other) = (there.revision, record.revision);
                format!("it is there in another state: revision {here}, and {other} in the file")
            } else if is_paused != paused {
                let as_it_is = |paused| if paused { "paused" } else { "not paused" };
                let (here, other) = (as_it_is(is_paused), as_it_is(paused));
                format!("it is there as it is in the file, but {here} here and {other} there")
            } else {
                return Ok((Came::Unchanged, None));
            };
            return Ok((Came::Conflict, Some(why)));
        }
        match self.free(&settings, &record.name, None) {
            Ok(()) => {}
            Err(taken @ Refused::Taken(_)) => {
                return Ok((Came::Conflict, Some(taken.to_string())));
            }
            Err(other) => return Err(other),
        }
        // Told all the same, it would be what is last said of it until that is put right.
        if self.shared.is_removed(&record.uid).await {
            return Ok((Came::Conflict, Some(not_free(tenant).to_owned())));
        }
        let (in_effect, _) = load::in_effect(&record, document.clone(), Timestamp::now());
        let prepared = match self.checked(&settings, &record.uid, &in_effect) {
            Ok((_, prepared)) => prepared,
            Err(refused) => return of_this_line(refused),
        };
        let record = match sealed(&settings, record, &document) {
            Ok(record) => record,
            Err(refused) => return of_this_line(refused),
        };
        if dry_run {
            return Ok((Came::Made, None));
        }
        let uid = record.uid.clone();
        if paused != self.store.subscription_standing(&uid)?.paused {
            // Before it is there, so that nothing is delivered in between.
            let uid = uid.clone();
            let what = What::Subscription { uid, paused };
            self.shared.tell(what, None).await?;
        }
        let conflict = match self.put(record, prepared).await {
            Ok(()) => return Ok((Came::Made, None)),
            Err(Refused::Changed) => (Came::Conflict, Some(not_free(tenant).to_owned())),
            // It may come into force later, and is paused then.
            Err(other) => of_this_line(other)?,
        };
        // Somebody else may have made it meanwhile: its pause is theirs.
        if paused && self.store.registered_with(&uid)?.is_none() {
            self.shared.forget_pauses(&[uid]).await;
        }
        Ok(conflict)
    }
}

/// Why a uid is not there to be taken, for whom the import is.
fn not_free(tenant: Option<&Arc<str>>) -> &'static str {
    match tenant {
        Some(_) => NO_LONGER_FREE,
        None => REMOVED,
    }
}

fn of_document(line: usize, mistake: Mistake) -> Flawed {
    Flawed {
        line,
        mistake: Mistake {
            pointer: format!("/subscription/document{}", mistake.pointer),
            ..mistake
        },
    }
}

/// What is wrong with one line, a quota that is used up for instance, does not end the import.
fn of_this_line(refused: Refused) -> Result<(Came, Option<String>), Refused> {
    match refused {
        Refused::Unavailable(_) | Refused::NoKey => Err(refused),
        other => Ok((Came::Conflict, Some(other.to_string()))),
    }
}

/// Reads a line of this format, or brings an older one forward.
fn read(line: &[u8]) -> Result<Line, String> {
    #[derive(Deserialize)]
    struct Head {
        format: u64,
    }
    let head: Head = serde_json::from_slice(line)
        .map_err(|why| format!("this is no line of an export: {why}"))?;
    match head.format {
        FORMAT => {
            serde_json::from_slice(line).map_err(|why| format!("this line cannot be read: {why}"))
        }
        newer if newer > FORMAT => Err(format!(
            "written by a newer release (format {newer}; hookbridge {} reads up to {FORMAT})",
            env!("CARGO_PKG_VERSION")
        )),
        other => Err(format!("there is no format {other}")),
    }
}

fn unopened(why: &KeyError) -> String {
    match why {
        KeyError::UnknownKey(id) => format!(
            "it is sealed with key {id}, which is not in `store_key`: add that key there, behind the one that is to seal, and reload"
        ),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_other_formats_are_told_apart() {
        let why = |line: &str| read(line.as_bytes()).unwrap_err();
        assert!(why("{\"format\":2,\"more\":1}").contains("newer release (format 2;"));
        assert!(why("{\"format\":0}").contains("no format 0"));
        assert!(why("{}").contains("no line of an export"));
        assert!(why("{\"format\":1}").contains("cannot be read"));
    }
}
