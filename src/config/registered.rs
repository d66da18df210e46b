//! Subscriptions that come over the API, read as those of the file are: by the same reader, with the
//! same words about what is wrong, only that places are JSON pointers.
//!
//! What they refer to (sources, shared endpoints, versions, what may be called) is the file's. What
//! reaches into this machine is the file's too: nothing is put in for `${...}`, and no file is named.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;

use super::field::{Field, Name};
use super::node::{Entry, Node, Scalar, Span, Typed, Value};
use super::reader::{self, Noted, Notes};
use super::subscriptions::{self, Known};
use super::versions::Versions;
use super::{endpoints, general, keys, mask, whole};
use crate::subscription::{Endpoint, Scheme, Spec, Uid};

/// The sections of the file that a subscription can refer to.
const REFERRED: [&str; 4] = ["delivery", "sources", "versions", "endpoints"];

/// Those sections, kept for subscriptions that come later.
#[derive(Clone)]
pub struct Referred(Arc<Kept>);

struct Kept {
    root: Node,
    base_dir: PathBuf,
}

/// A subscription as it was written, with its `name`, and whose it is.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub uid: &'a Uid,
    pub document: &'a Json,
}

/// A subscription that was read.
#[derive(Debug, PartialEq)]
pub struct One {
    pub spec: Spec,
    /// The one that is written in it, which is named by its uid.
    pub endpoint: Option<Endpoint>,
}

/// Something that is wrong in a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// A JSON pointer.
    pub pointer: String,
    pub message: String,
    pub help: Option<String>,
}

/// It says nothing that the other fields of a config do not.
impl PartialEq for Referred {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// There are secrets in it.
impl fmt::Debug for Referred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Referred")
    }
}

impl Referred {
    /// Of a file that was read without a problem.
    pub(super) fn of(root: &Node, base_dir: &Path) -> Self {
        let entries = match &root.value {
            Value::Map(entries) => entries.as_slice(),
            _ => &[],
        };
        let referred = |entry: &&Entry| REFERRED.contains(&entry.key.as_str());
        let root = Node {
            span: root.span,
            value: Value::Map(entries.iter().filter(referred).cloned().collect()),
        };
        let base_dir = base_dir.to_owned();
        Self(Arc::new(Kept { root, base_dir }))
    }

    /// Reads them one by one; what the file says is read once for all.
    pub fn read(&self, asked: &[Asked<'_>]) -> Vec<Result<One, Vec<Mistake>>> {
        let notes = Notes::new(&self.0.base_dir, "");
        let top = reader::map(&notes, &self.0.root, Span::default(), &keys::TOP, "config");
        let top = top.expect("it is a map");
        let delivery = whole::section(&top, "delivery", &keys::DELIVERY, general::delivery);
        let delivery = delivery.unwrap_or_default();
        let versions = top.take("versions").map(Versions::read).unwrap_or_default();
        let versions = versions.with_sources(top.take("sources"));
        let shared = top.take("endpoints");
        let shared = shared.map(|field| endpoints::all(field, &delivery, &versions));
        let shared = shared.unwrap_or_default();
        let sources = top.take("sources").map(|field| field.entries());
        let known = Known {
            sources: sources
                .into_iter()
                .flatten()
                .map(|field| field.key)
                .collect(),
            endpoints: &shared,
            delivery: &delivery,
            versions: &versions,
        };
        asked.iter().map(|asked| self.one(*asked, &known)).collect()
    }

    fn one(&self, asked: Asked<'_>, known: &Known<'_>) -> Result<One, Vec<Mistake>> {
        let mut tree = Tree::default();
        let mut root = tree.node(asked.document, String::new());
        let notes = Notes::new(&self.0.base_dir, "");
        let name = tree.take_name(&mut root, &notes);
        refuse_substitutions(&root, &notes);
        refuse_what_is_the_files(&root, &notes);
        let named = Name {
            text: asked.uid.text(),
            span: root.span,
            shown: String::new(),
        };
        let field = Field {
            notes: &notes,
            key: "subscription",
            key_span: root.span,
            node: &root,
        };
        let read = subscriptions::one(named, field, known);
        let mut noted = notes.into_found().problems;
        match (name, read.spec) {
            (Some(name), Some(spec)) if noted.is_empty() => Ok(One {
                spec: Spec { name, ..spec },
                endpoint: read.endpoint,
            }),
            _ => {
                noted.sort_by_key(|noted| noted.span.start);
                let mut mistakes: Vec<_> =
                    noted.into_iter().map(|noted| tree.placed(noted)).collect();
                mistakes.dedup();
                Err(mistakes)
            }
        }
    }

    /// The signature of a subscription that says nothing of a secret and needs one.
    pub fn unsigned(&self, document: &Json) -> Option<Scheme> {
        let endpoint = document.get("endpoint")?;
        let given = |key: &str| endpoint.get(key).is_some();
        if !endpoint.is_object() || given("secret") || given("secrets") {
            return None;
        }
        let mut tree = Tree::default();
        let root = tree.node(endpoint, String::new());
        let notes = Notes::new(&self.0.base_dir, "");
        let field = Field {
            notes: &notes,
            key: "endpoint",
            key_span: root.span,
            node: &root,
        };
        let adapter = field.child("format").and_then(super::adapters::meant);
        let scheme = match (field.child("signature"), adapter) {
            (Some(signature), _) => super::signatures::scheme(signature)?,
            // Nobody there looks for a signature.
            (None, Some(_)) => return None,
            (None, None) => Scheme::default(),
        };
        scheme.is_signed().then_some(scheme)
    }
}

/// As it may be shown: secrets and what follows the host of a URL are masked.
pub fn shown(document: &Json) -> Json {
    mask::json(document)
}

/// Where each node of a document came from. Spans are numbers of pointers.
#[derive(Default)]
struct Tree {
    pointers: Vec<String>,
}

impl Tree {
    fn node(&mut self, value: &Json, pointer: String) -> Node {
        let at = self.pointers.len();
        let span = Span { start: at, end: at };
        self.pointers.push(pointer.clone());
        let scalar = |typed, text: String| {
            let written = text.clone();
            Value::Scalar(Scalar {
                typed,
                text,
                written,
                substituted: false,
            })
        };
        let value = match value {
            Json::Null => Value::Null,
            Json::Bool(is) => scalar(Typed::Bool(*is), is.to_string()),
            Json::Number(number) => {
                let whole = number.as_i64().map(i128::from);
                let typed = match whole.or(number.as_u64().map(i128::from)) {
                    Some(whole) => Typed::Integer(whole),
                    None => Typed::Float(number.as_f64().unwrap_or(f64::NAN)),
                };
                scalar(typed, number.to_string())
            }
            Json::String(text) => scalar(Typed::Text, text.clone()),
            Json::Array(items) => {
                let items = items.iter().enumerate();
                let items = items.map(|(at, item)| self.node(item, format!("{pointer}/{at}")));
                Value::List(items.collect())
            }
            Json::Object(map) => Value::Map(
                map.iter()
                    .map(|(key, value)| {
                        let escaped = key.replace('~', "~0").replace('/', "~1");
                        let node = self.node(value, format!("{pointer}/{escaped}"));
                        Entry {
                            key: key.clone(),
                            key_span: node.span,
                            node,
                        }
                    })
                    .collect(),
            ),
        };
        Node { span, value }
    }

    /// Takes `name` out of the document, since the reader has it as a key of the map around it.
    fn take_name(&self, root: &mut Node, notes: &Notes<'_>) -> Option<Arc<str>> {
        let Value::Map(entries) = &mut root.value else {
            return None;
        };
        let Some(at) = entries.iter().position(|entry| entry.key == "name") else {
            notes.note(root.span, "`name` is missing", None);
            return None;
        };
        let entry = entries.remove(at);
        let field = Field {
            notes,
            key: "name",
            key_span: entry.key_span,
            node: &entry.node,
        };
        field.name().map(|name| name.text)
    }

    fn placed(&self, noted: Noted) -> Mistake {
        let pointer = self.pointers.get(noted.span.start);
        Mistake {
            pointer: pointer.cloned().unwrap_or_default(),
            message: mask::message(&noted.message),
            help: noted.help.as_deref().map(mask::message),
        }
    }
}

/// The file's are put in for it; from elsewhere they would show what is none of the caller's.
fn refuse_substitutions(node: &Node, notes: &Notes<'_>) {
    match &node.value {
        Value::Null => {}
        Value::Scalar(scalar) => {
            if ["${env:", "${file:"]
                .iter()
                .any(|put_in| scalar.text.contains(put_in))
            {
                notes.note(
                    node.span,
                    "nothing is put in for `${...}` here",
                    "write the value itself, or name an endpoint of the config".to_owned(),
                );
            }
        }
        Value::List(items) => items
            .iter()
            .for_each(|item| refuse_substitutions(item, notes)),
        Value::Map(entries) => {
            for entry in entries {
                refuse_substitutions(&entry.node, notes);
            }
        }
    }
}

fn refuse_what_is_the_files(root: &Node, notes: &Notes<'_>) {
    let field = Field {
        notes,
        key: "subscription",
        key_span: root.span,
        node: root,
    };
    if let Some(was) = field.child("was") {
        was.note_key(
            "`was` is for subscriptions of the config",
            "leave it out: what is parked finds this one by its uid, whatever its name is"
                .to_owned(),
        );
    }
    let endpoint = field.child("endpoint");
    if let Some(tls) = endpoint.and_then(|endpoint| endpoint.child("tls")) {
        tls.note_key(
            "`tls` names files of the machine that hookbridge runs on",
            "put the endpoint under `endpoints:` of the config, and name it here".to_owned(),
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config;

    const CONFIG: &str = "brokers: { here: { embedded: {} } }\n\
        sources: { orders: { broker: here, topics: ['#'] } }\n\
        endpoints: { shared: { url: 'https://h/', signature: none } }\n";

    fn read(document: Json) -> Result<One, Vec<Mistake>> {
        let config = config::parse(CONFIG, "x", Path::new("."), &|_| None).unwrap();
        let uid = Uid::from_stored("api:1");
        let asked = Asked {
            uid: &uid,
            document: &document,
        };
        config.referred.read(&[asked]).remove(0)
    }

    #[test]
    fn what_the_file_can_say_can_be_said_over_the_api() {
        let own = read(json!({
            "name": "crm", "topics": ["orders.*"], "sources": ["orders"], "timeout": "3s",
            "filter": { "data.total": { "$gte": 100 } },
            "endpoint": { "url": "https://h/x", "signature": "none", "rate": "5/s" },
        }));
        let own = own.unwrap();
        let endpoint = own.endpoint.unwrap();
        assert_eq!((&*own.spec.name, &*own.spec.endpoint), ("crm", "api:1"));
        assert_eq!(&*endpoint.name, "api:1");
        assert!(endpoint.rate.is_some() && own.spec.filter.is_some());
        let shared = json!({ "name": "a", "topics": ["t"], "endpoint": "shared" });
        assert_eq!(&*read(shared).unwrap().spec.endpoint, "shared");
    }

    #[test]
    fn every_mistake_has_its_pointer() {
        let wrong = read(json!({
            "name": "Crm", "topics": ["a.**.b"], "topcs": 1, "sources": ["order"], "was": ["old"],
            "filter": { "data.total": { "$gtee": 100 } }, "timeout": 5,
            "endpoint": {
                "url": "http://h/x?token=t0p", "secret": "${env:HOME}", "tls": { "ca": "/x" },
                "headers": { "host": "x", "a/b": "c" },
            },
        }));
        let said: Vec<_> = wrong
            .unwrap_err()
            .into_iter()
            .map(|one| format!("{}: {}", one.pointer, one.message))
            .collect();
        for pointer in [
            "/name",
            "/topics/0",
            "/topcs",
            "/sources/0",
            "/was",
            "/filter/data.total/$gtee",
            "/timeout",
            "/endpoint/url",
            "/endpoint/secret",
            "/endpoint/tls",
            "/endpoint/headers/host",
            "/endpoint/headers/a~1b",
        ] {
            let found = said
                .iter()
                .any(|line| line.starts_with(&format!("{pointer}: ")));
            assert!(found, "{pointer} in {said:#?}");
        }
        assert!(said.iter().all(|line| !line.contains("t0p")), "{said:#?}");
    }

    #[test]
    fn what_is_no_map_and_what_is_missing_is_said() {
        let said = |document| -> Vec<String> {
            let wrong = read(document).unwrap_err().into_iter();
            wrong
                .map(|one| format!("{}: {}", one.pointer, one.message))
                .collect()
        };
        assert_eq!(said(json!([1])), [": `subscription` is a map, not a list"]);
        let missing = said(json!({}));
        for key in ["name", "topics", "endpoint"] {
            let line = format!(": `{key}` is missing");
            assert!(missing.contains(&line), "{missing:?}");
        }
    }

    #[test]
    fn a_signature_without_a_secret_is_found() {
        let config = config::parse(CONFIG, "x", Path::new("."), &|_| None).unwrap();
        let unsigned = |endpoint: Json| {
            let scheme = config.referred.unsigned(&json!({ "endpoint": endpoint }));
            scheme.map(|scheme| scheme.name())
        };
        assert_eq!(unsigned(json!({ "url": "https://h" })), Some("standard"));
        assert_eq!(unsigned(json!({ "signature": "stripe" })), Some("stripe"));
        assert_eq!(unsigned(json!({ "signature": "none" })), None);
        assert_eq!(unsigned(json!({ "secret": "x" })), None);
        assert_eq!(unsigned(json!({ "format": "slack" })), None);
        assert_eq!(unsigned(json!("shared")), None);
    }
}
