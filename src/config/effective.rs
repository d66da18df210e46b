//! The config as it takes effect: what the file says, and the default of every key that it leaves
//! out, in the order of the key table.
//!
//! It is made from the same table as the schema and the documentation, so that a new key is shown
//! without a line here; only the defaults that depend on another key are written below. Texts that
//! were put in by substitution stay as they were written, since they may be secret. What is secret
//! as it stands is masked as in the snippets of problems.

use std::fmt::Write as _;
use std::path::Path;

use super::endpoints::LANE_KEYS;
use super::keys::{self, Form, Key, Section};
use super::mask::Masked;
use super::node::{self, Node, Scalar, Typed, Value};
use super::problems::Problems;
use super::substitute::{self, Env};
use super::{load, values, whole};
use crate::render::adapters::named;
use crate::subscription::{RetryPolicy, Spec};

/// A valid config with its defaults, secrets masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    yaml: String,
}

impl Effective {
    /// YAML that is a config again, but for what is masked.
    pub fn yaml(&self) -> &str {
        &self.yaml
    }

    pub fn json(&self) -> serde_json::Value {
        node::read(&self.yaml).map_or(serde_json::Value::Null, |root| root.to_json())
    }
}

/// Reads the config at `path`, or the one for trying out, and fills in its defaults.
pub fn effective(path: Option<&Path>, env: Env<'_>) -> Result<Effective, Problems> {
    let (text, name, base_dir) = match path {
        Some(path) => {
            let text = load::text(path)?;
            let base_dir = path.parent().unwrap_or(Path::new(""));
            (text, path.display().to_string(), base_dir)
        }
        None => (
            load::TRY.to_owned(),
            "config/try.yaml".to_owned(),
            Path::new(""),
        ),
    };
    whole::parse(&text, &name, base_dir, env)?;
    let yaml = filled_in(&text, base_dir, env);
    let masked = match node::read(&yaml) {
        Ok(root) => Masked::new(&yaml, Some(&root), &[]),
        Err(_) => Masked::new(&yaml, None, &[]),
    };
    Ok(Effective {
        yaml: masked.text().to_owned(),
    })
}

/// The config `text`, which has no problems, with its defaults; nothing is masked yet.
fn filled_in(text: &str, base_dir: &Path, env: Env<'_>) -> String {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let Ok(mut root) = node::read(text) else {
        return String::new();
    };
    substitute::all(&mut root, text, base_dir, env, &mut Vec::new());
    let mut top = section(&keys::TOP, Some(&root), None);
    let instance = env(whole::INSTANCE_VARIABLE).filter(|name| !name.is_empty());
    if let Some(instance) = instance {
        top.retain(|(key, _)| key != "instance");
        top.insert(
            1.min(top.len()),
            ("instance".to_owned(), Shown::One(quoted(&instance))),
        );
    }
    let mut out = String::new();
    write_map(&mut out, &top, 0);
    out
}

/// What is written: scalars are spelled already.
enum Shown {
    One(String),
    List(Vec<Shown>),
    Map(Vec<(String, Shown)>),
}

/// The keys of a section in the order of the table. `around` is the subscription of an endpoint
/// that is written in it.
fn section(
    of: &'static Section,
    node: Option<&Node>,
    around: Option<&Node>,
) -> Vec<(String, Shown)> {
    let mut shown = Vec::new();
    for key in of.keys {
        let value = match node.and_then(|node| child(node, key.name)) {
            Some(value) => Some(form(&key.form, value, node)),
            None => default(of, key, node, around),
        };
        let says_nothing = matches!(&value, Some(Shown::Map(map)) if map.is_empty());
        if says_nothing && is_same_left_out(of, key) {
            continue;
        }
        if let Some(value) = value {
            shown.push((key.name.to_owned(), value));
        }
    }
    shown
}

fn child<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    match &node.value {
        Value::Map(entries) => entries
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| &entry.node),
        _ => None,
    }
}

/// What a key is when it is left out; `None` when it is nothing.
fn default(
    of: &'static Section,
    key: &'static Key,
    node: Option<&Node>,
    around: Option<&Node>,
) -> Option<Shown> {
    let given = |key: &str| node.and_then(|node| child(node, key));
    let lane = LANE_KEYS.contains(&key.name);
    match (of.name, key.name) {
        ("config", "group") => return Some(Shown::One(quoted(whole::DEFAULT_GROUP))),
        // On the endpoint, unless the subscription around it has the key.
        ("subscription", _) if lane => return None,
        ("endpoint", name)
            if lane && around.is_some_and(|around| child(around, name).is_some()) =>
        {
            return None;
        }
        ("endpoint", "signature")
            if is_adapted(node) && given("secret").or(given("secrets")).is_none() =>
        {
            return Some(Shown::One("none".to_owned()));
        }
        ("source", "declare") if given("queue").is_none() => return None,
        ("subscription", "connect_timeout") => {
            let timeout = given("timeout").and_then(duration);
            let whole = timeout.unwrap_or(Spec::DEFAULT_TIMEOUT);
            let connect = Spec::DEFAULT_CONNECT_TIMEOUT.min(whole);
            return Some(Shown::One(values::spell_duration(connect)));
        }
        ("retry", "max_attempts") => {
            let delays = match given("schedule").map(|node| &node.value) {
                Some(Value::List(delays)) => delays.len(),
                _ => RetryPolicy::default().schedule.len(),
            };
            return Some(Shown::One((delays + 1).to_string()));
        }
        _ => {}
    }
    if let Some(below) = optional_section(&key.form).filter(|_| is_same_left_out(of, key)) {
        return Some(Shown::Map(section(below, None, None)));
    }
    let written = key.default.strip_prefix('`')?.strip_suffix('`')?;
    if written.contains('`') {
        return None;
    }
    Some(form(&key.form, &node::read(written).ok()?, node))
}

/// Whether a section that is empty is as if it were left out. A broker's kind is not.
fn is_same_left_out(of: &Section, key: &Key) -> bool {
    let is_kind = of.name == "broker" && keys::KINDS.contains(&key.name);
    key.default.is_empty() && optional_section(&key.form).is_some() && !is_kind
}

/// A section that is all defaults when it is left out.
fn optional_section(of: &Form) -> Option<&'static Section> {
    match of {
        Form::Section(section) => Some(section),
        Form::Either(Form::Integer(..), Form::Section(section)) => Some(section),
        _ => None,
    }
}

/// Whether the endpoint has an adapter, which nobody asks for a signature.
fn is_adapted(endpoint: Option<&Node>) -> bool {
    let format = endpoint.and_then(|endpoint| child(endpoint, "format"));
    match format.map(|format| &format.value) {
        Some(Value::Scalar(scalar)) => named(&scalar.text).is_some(),
        Some(Value::Map(entries)) => entries.iter().any(|entry| named(&entry.key).is_some()),
        _ => false,
    }
}

fn duration(node: &Node) -> Option<std::time::Duration> {
    match &node.value {
        Value::Scalar(scalar) => values::duration(&scalar.text),
        _ => None,
    }
}

/// A value as its key takes it. `parent` is the map in which it stands.
fn form(of: &Form, node: &Node, parent: Option<&Node>) -> Shown {
    match (of, &node.value) {
        (Form::Section(below) | Form::One(below), Value::Map(_)) => {
            Shown::Map(match matches!(of, Form::One(_)) {
                true => entries(node, |_| &Form::Text),
                false => section(below, Some(node), parent),
            })
        }
        (Form::Named(below), Value::Map(given)) => {
            let each = given.iter().map(|entry| {
                let inside = section(below, Some(&entry.node), None);
                (entry.key.clone(), Shown::Map(inside))
            });
            Shown::Map(each.collect())
        }
        (Form::Map(of), Value::Map(_)) => Shown::Map(entries(node, |_| of)),
        (Form::List(of), Value::List(items)) => {
            Shown::List(items.iter().map(|item| form(of, item, None)).collect())
        }
        (Form::Either(_, second @ Form::Section(_)), Value::Map(_)) => form(second, node, parent),
        // A number stands for the count.
        (Form::Either(Form::Integer(..), Form::Section(below)), Value::Scalar(scalar)) => {
            let rest = section(below, None, None);
            let count = Shown::One(spelled(scalar, false));
            let first = below.keys.first().map(|key| (key.name.to_owned(), count));
            Shown::Map(first.into_iter().chain(rest.into_iter().skip(1)).collect())
        }
        (Form::Either(first, second), value) => {
            let one = if matches!(value, Value::Map(_)) {
                second
            } else {
                first
            };
            form(one, node, parent)
        }
        (Form::Any | Form::Json, _) | (_, Value::Map(_) | Value::List(_)) => any(node),
        (Form::Text, Value::Scalar(scalar)) => Shown::One(spelled(scalar, true)),
        (_, Value::Scalar(scalar)) => Shown::One(spelled(scalar, false)),
        (_, Value::Null) => Shown::One("null".to_owned()),
    }
}

fn entries<'f>(node: &Node, of: impl Fn(&str) -> &'f Form) -> Vec<(String, Shown)> {
    let Value::Map(entries) = &node.value else {
        return Vec::new();
    };
    entries
        .iter()
        .map(|entry| (entry.key.clone(), form(of(&entry.key), &entry.node, None)))
        .collect()
}

/// Whatever it is, as it is: a filter.
fn any(node: &Node) -> Shown {
    match &node.value {
        Value::Null => Shown::One("null".to_owned()),
        Value::Scalar(scalar) if scalar.typed == Typed::Text => Shown::One(spelled(scalar, true)),
        Value::Scalar(scalar) => Shown::One(scalar.text.clone()),
        Value::List(items) => Shown::List(items.iter().map(any).collect()),
        Value::Map(entries) => Shown::Map(
            entries
                .iter()
                .map(|entry| (entry.key.clone(), any(&entry.node)))
                .collect(),
        ),
    }
}

/// A scalar as YAML. `text` is for keys that take any text, which is always quoted, and shown as it
/// was written before anything was put in.
fn spelled(scalar: &Scalar, text: bool) -> String {
    match text {
        true if scalar.substituted => quoted(&scalar.written),
        true => quoted(&scalar.text.replace("${", "$${")),
        false => plain_or_quoted(scalar.text.trim()),
    }
}

/// JSON's strings are strings of YAML.
fn quoted(text: &str) -> String {
    serde_json::Value::String(text.to_owned()).to_string()
}

/// Names, times and numbers need no quotes, unless YAML would read something else.
fn plain_or_quoted(text: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && text.chars().all(harmless) {
        return text.to_owned();
    }
    quoted(text)
}

/// A key, which may be any text in a filter or under free keys.
fn key(text: &str) -> String {
    let plain = plain_or_quoted(text);
    let read = node::read(&plain).map(|node| node.value);
    match read {
        Ok(Value::Scalar(scalar)) if scalar.typed == Typed::Text => plain,
        _ => quoted(text),
    }
}

fn write_map(out: &mut String, map: &[(String, Shown)], indent: usize) {
    for (name, value) in map {
        let _ = write!(out, "{:indent$}{}:", "", key(name));
        write_value(out, value, indent);
    }
}

/// What follows `key:`, with the line's end.
fn write_value(out: &mut String, value: &Shown, indent: usize) {
    match value {
        Shown::Map(map) if !map.is_empty() => {
            out.push('\n');
            write_map(out, map, indent + 2);
        }
        Shown::List(items) if items.iter().any(|item| matches!(item, Shown::Map(_))) => {
            out.push('\n');
            for item in items {
                let _ = write!(out, "{:1$}- ", "", indent + 2);
                out.push_str(&flow(item));
                out.push('\n');
            }
        }
        value => {
            out.push(' ');
            out.push_str(&flow(value));
            out.push('\n');
        }
    }
}

/// On one line.
fn flow(value: &Shown) -> String {
    match value {
        Shown::One(text) => text.clone(),
        Shown::List(items) => {
            let items: Vec<_> = items.iter().map(flow).collect();
            format!("[{}]", items.join(", "))
        }
        Shown::Map(map) if map.is_empty() => "{}".to_owned(),
        Shown::Map(map) => {
            let map: Vec<_> = map
                .iter()
                .map(|(name, value)| format!("{}: {}", key(name), flow(value)))
                .collect();
            format!("{{ {} }}", map.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn env(name: &str) -> Option<String> {
        match name {
            "HOOKBRIDGE_INSTANCE" => None,
            "SHUTDOWN" => Some("7s".to_owned()),
            name if name.contains("SECRET") => Some(SECRET.to_owned()),
            "STORE_KEY" => Some("0123456789abcdef".repeat(4)),
            _ => Some("0123456789abcdef".to_owned()),
        }
    }

    /// Before masking: the same config as the text.
    fn same(text: &str, base_dir: &Path) -> String {
        let again = filled_in(text, base_dir, &env);
        let parse = |text: &str| whole::parse(text, "x", base_dir, &env);
        assert_eq!(
            parse(&again).unwrap_or_else(|problems| panic!("{again}\n{problems}")),
            parse(text).unwrap(),
            "{again}"
        );
        assert_eq!(filled_in(&again, base_dir, &env), again);
        again
    }

    #[test]
    fn what_is_shown_is_the_same_config() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("secrets")).unwrap();
        std::fs::write(dir.path().join("secrets/rabbit"), "p%40ss\n").unwrap();
        let key = "whsk_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n";
        std::fs::write(dir.path().join("secrets/warehouse"), key).unwrap();
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
        for name in ["try", "hookbridge", "compose", "full"] {
            let text = std::fs::read_to_string(config.join(format!("{name}.yaml"))).unwrap();
            same(&text, dir.path());
        }
    }

    #[test]
    fn texts_that_yaml_would_read_as_something_else() {
        let text = "brokers: { here: { embedded: {} } }\n\
            sources: { a: { broker: here, topics: ['#', \"a.*\"] } }\n\
            subscriptions:\n  yes1:\n    topics: [\"null\", 12, '1e3']\n    timeout: 2s\n    \
            filter: { 'data.a b': { $in: [true, 'true', 1, '1', null, \"x\\ny: z\"] }, $or: [{ data.on: '#' }] }\n    \
            labels: { on: off, 1: true, 'null': x }\n    \
            endpoint: { url: 'https://h/', signature: none, headers: { x-a: '$${env:X} \u{e4}' } }\n";
        same(text, Path::new("."));
    }

    #[test]
    fn defaults_that_depend_on_other_keys() {
        let text = "brokers: { here: { embedded: {} } }\nlimits: { shutdown: \"${env:SHUTDOWN}\" }\n\
            endpoints: { e: { url: 'https://h/', signature: none } }\n\
            subscriptions:\n  a: { topics: [t], endpoint: e, retry: { schedule: [1s] }, max_parked: 7 }\n  \
            b: { topics: [t], concurrency: 3, timeout: 2s, endpoint: { url: 'https://h/', signature: none } }\n";
        let shown = same(text, Path::new("."));
        assert!(shown.contains("max_attempts: 2\n"), "{shown}");
        assert!(shown.contains("count: 7\n"), "{shown}");
        assert!(shown.contains("connect_timeout: 2s\n"), "{shown}");
        assert!(shown.contains("shutdown: 7s\n"), "{shown}");
        assert_eq!(shown.matches("concurrency: 16").count(), 1, "{shown}");
    }

    #[test]
    fn the_environment_s_instance_is_the_one_in_effect() {
        let env = |name: &str| (name == "HOOKBRIDGE_INSTANCE").then(|| "two".to_owned());
        let text = "instance: one\nbrokers: { here: { embedded: {} } }\n";
        let shown = filled_in(text, Path::new("."), &env);
        assert!(
            shown.contains("instance: \"two\"\n") && !shown.contains("one"),
            "{shown}"
        );
    }
}
