//! The file as a whole: text in, a config or all of its problems out.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::brokers::Kind;
use super::mask::Masked;
use super::node::{self, Node, Span};
use super::reader::{self, Found, Map, Notes};
use super::registered::Referred;
use super::subscriptions::Known;
use super::substitute::{self, Env};
use super::versions::Versions;
use super::{
    Case, Config, DeliverySettings, Problem, Problems, attempts, brokers, cases, endpoints,
    general, keys, sources, subscriptions, telemetry, tenants,
};

pub const DEFAULT_GROUP: &str = "hookbridge";
const DEFAULT_DATA_DIR: &str = "data";
pub const INSTANCE_VARIABLE: &str = "HOOKBRIDGE_INSTANCE";

/// Reads a config from `text`. `file_name` is what problems call it; relative paths in it start
/// at `base_dir`; `env` looks up environment variables.
pub fn parse(
    text: &str,
    file_name: &str,
    base_dir: &Path,
    env: Env<'_>,
) -> Result<Config, Problems> {
    read(text, file_name, base_dir, env, |root, notes| {
        config(root, notes, env)
    })
}

/// Reads a file of tests, which are about `config`.
pub fn parse_tests(
    text: &str,
    file_name: &str,
    base_dir: &Path,
    env: Env<'_>,
    config: &Config,
) -> Result<Vec<Case>, Problems> {
    let sources = config.sources.iter();
    let known = cases::Known {
        sources: sources.map(|(name, it)| (&**name, Some(it))).collect(),
        subscriptions: config.subscriptions.keys().map(|name| &**name).collect(),
    };
    read(text, file_name, base_dir, env, |root, notes| {
        let top = reader::map(notes, root, Span::default(), &keys::CASES, "file of tests")?;
        Some(cases::all(top.need("tests")?, &known))
    })
}

/// What `of` makes of a text, or all of its problems.
fn read<T>(
    text: &str,
    file_name: &str,
    base_dir: &Path,
    env: Env<'_>,
    of: impl FnOnce(&Node, &Notes<'_>) -> Option<T>,
) -> Result<T, Problems> {
    // A byte order mark is no part of YAML's positions.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut root = match node::read(text) {
        Ok(root) => root,
        Err(broken) => {
            let problem = placed(text, broken.span, broken.message, None);
            return Err(Problems::new(
                file_name,
                Masked::new(text, None, &[]),
                vec![problem],
            ));
        }
    };
    let notes = Notes::new(base_dir, text);
    let mut missing = Vec::new();
    substitute::all(&mut root, text, base_dir, env, &mut missing);
    let read = of(&root, &notes);
    let Found { problems, unread } = notes.into_found();
    // A value that could not be put in is not there, so what else is wrong with it says nothing.
    let of_missing = |span: Span| {
        missing
            .iter()
            .any(|gone| span.start <= gone.span.start && gone.span.end <= span.end)
    };
    let mut list: Vec<Problem> = problems
        .into_iter()
        .filter(|noted| !of_missing(noted.span))
        .map(|noted| placed(text, noted.span, noted.message, noted.help))
        .collect();
    list.extend(
        missing
            .into_iter()
            .map(|gone| placed(text, gone.span, gone.message, Some(gone.help))),
    );
    match read {
        Some(read) if list.is_empty() => Ok(read),
        _ => Err(Problems::new(
            file_name,
            Masked::new(text, Some(&root), &unread),
            list,
        )),
    }
}

fn placed(text: &str, span: Span, message: String, help: Option<String>) -> Problem {
    let before = &text[..span.start];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    Problem {
        span,
        line: before.matches('\n').count() + 1,
        col: before[line_start..].chars().count() + 1,
        message,
        help,
    }
}

/// `None` only where a problem was noted.
fn config(root: &Node, notes: &Notes<'_>, env: Env<'_>) -> Option<Config> {
    let top = reader::map(notes, root, Span::default(), &keys::TOP, "config")?;
    let group_field = top.take("group");
    let group = group_field.and_then(general::group);
    let instance = general::instance(notes, top.take("instance"), env(INSTANCE_VARIABLE));
    let data_dir = match top.take("data_dir") {
        Some(field) => field.path(),
        None => Some(notes.base_dir.join(DEFAULT_DATA_DIR)),
    };
    let store_keys = match top.take("store_key") {
        Some(field) => general::store_keys(field),
        None => Some(Vec::new()),
    };
    let admin = section(&top, "admin", &keys::ADMIN, general::admin);
    let dead_letters = section(
        &top,
        "dead_letters",
        &keys::DEAD_LETTERS,
        general::dead_letters,
    );
    let delivery = section(&top, "delivery", &keys::DELIVERY, general::delivery);
    let limits = section(&top, "limits", &keys::LIMITS, general::limits);

    let brokers = top.need("brokers").map(brokers::all).unwrap_or_default();
    let state_on = top
        .take("state_on")
        .and_then(|field| brokers::named(field, &brokers));
    let attempts = section(&top, "attempts", &keys::ATTEMPTS, |map| {
        attempts::read(map, &brokers)
    });
    let reload = section(&top, "reload", &keys::RELOAD, general::reload);
    let telemetry = section(&top, "telemetry", &keys::TELEMETRY, telemetry::read);
    let tenants = section(&top, "tenants", &keys::TENANTS, tenants::quotas);
    let external = brokers
        .iter()
        .find(|broker| matches!(broker.kind, Some(Kind::RabbitMq | Kind::Kafka)));
    if let (Some(broker), None) = (external, group_field) {
        notes.note(
            broker.name.span,
            format!("`group` is missing, which names what we make on {}", broker.name.shown),
            "add `group: hookbridge` at the top; instances that share the work have the same, others another"
                .to_owned(),
        );
    }
    let group: Arc<str> = group.unwrap_or_else(|| DEFAULT_GROUP.into());
    let sources = top
        .take("sources")
        .map(|field| sources::all(field, &brokers, Some(&group)))
        .unwrap_or_default();
    let versions = top.take("versions").map(Versions::read);
    let versions = versions.unwrap_or_default();
    let versions = versions.with_sources(top.take("sources"));
    let nothing_open = DeliverySettings::default();
    let shared = top
        .take("endpoints")
        .map(|field| {
            let delivery = delivery.as_ref().unwrap_or(&nothing_open);
            endpoints::all(field, delivery, &versions)
        })
        .unwrap_or_default();
    let read = top
        .take("subscriptions")
        .map(|field| {
            let known = Known {
                sources: sources.iter().map(|source| &*source.name.text).collect(),
                endpoints: &shared,
                delivery: delivery.as_ref().unwrap_or(&nothing_open),
                versions: &versions,
            };
            subscriptions::all(field, &known)
        })
        .unwrap_or_default();

    let known = cases::Known {
        sources: sources
            .iter()
            .map(|source| (&*source.name.text, source.settings()))
            .collect(),
        subscriptions: read.iter().map(|read| &*read.name.text).collect(),
    };
    let tests = top.take("tests").map(|field| cases::all(field, &known));

    let mut all: BTreeMap<Arc<str>, Arc<_>> = shared
        .into_iter()
        .filter_map(|(name, endpoint)| Some((name.text, Arc::new(endpoint?))))
        .collect();
    let mut specs = BTreeMap::new();
    for subscription in read {
        if let Some(endpoint) = subscription.endpoint {
            all.insert(subscription.name.text.clone(), Arc::new(endpoint));
        }
        if let Some(spec) = subscription.spec {
            specs.insert(subscription.name.text, spec);
        }
    }
    Some(Config {
        group,
        instance: instance?,
        data_dir: data_dir?,
        admin: admin??,
        dead_letters: dead_letters?,
        delivery: delivery?,
        limits: limits?,
        attempts: attempts?,
        reload: reload?,
        telemetry: telemetry?,
        tenants: tenants?,
        brokers: brokers::finish(brokers),
        sources: sources::finish(sources),
        endpoints: all,
        subscriptions: specs,
        tests: tests.unwrap_or_default(),
        state_on,
        store_keys: store_keys?,
        referred: Referred::of(root, notes.base_dir),
    })
}

/// A section that may be left out; `None` where it is no map.
pub fn section<T>(
    top: &Map<'_>,
    key: &'static str,
    section: &'static keys::Section,
    read: impl FnOnce(Option<&Map<'_>>) -> T,
) -> Option<T> {
    match top.take(key) {
        Some(field) => field.map(section).map(|map| read(Some(&map))),
        None => Some(read(None)),
    }
}
