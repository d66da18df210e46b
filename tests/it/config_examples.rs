//! The example configs are what the documentation says they are, and nothing makes the reader
//! panic or fall silent.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hookbridge::config::{self, BrokerKind, Config, From, Instance, Problems, keys::Section};
use hookbridge::subscription::Scheme;
use proptest::prelude::*;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn env(name: &str) -> Option<String> {
    match name {
        "HOOKBRIDGE_INSTANCE" => None,
        name if name.contains("SECRET") => Some(SECRET.to_owned()),
        "STORE_KEY" => Some("0123456789abcdef".repeat(4)),
        _ => Some("0123456789abcdef".to_owned()),
    }
}

/// A folder with the files that full.yaml names.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("secrets")).unwrap();
    std::fs::write(dir.path().join("secrets/rabbit"), "p%40ss\n").unwrap();
    let key = "whsk_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n";
    std::fs::write(dir.path().join("secrets/warehouse"), key).unwrap();
    dir
}

fn example(name: &str) -> String {
    std::fs::read_to_string(root().join("config").join(name)).unwrap()
}

fn parse_in(dir: &Path, text: &str) -> Result<Config, Problems> {
    config::parse(text, "x.yaml", dir, &env)
}

#[test]
fn every_example_is_valid() {
    let dir = folder();
    let mut seen = 0;
    for entry in std::fs::read_dir(root().join("config")).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            let text = std::fs::read_to_string(&path).unwrap();
            let modeline = "# yaml-language-server: $schema=./hookbridge.schema.json\n";
            assert!(text.starts_with(modeline), "{}", path.display());
            if let Err(problems) = parse_in(dir.path(), &text) {
                panic!("{}\n{problems}", path.display());
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 4);
}

#[test]
fn the_full_example_has_every_key() {
    fn used(node: &serde_json::Value, into: &mut BTreeSet<String>) {
        match node {
            serde_json::Value::Object(map) => map.iter().for_each(|(key, value)| {
                into.insert(key.clone());
                used(value, into);
            }),
            serde_json::Value::Array(items) => items.iter().for_each(|item| used(item, into)),
            _ => {}
        }
    }
    let tree: serde_json::Value = serde_saphyr::from_str(&example("full.yaml")).unwrap();
    let mut found = BTreeSet::new();
    used(&tree, &mut found);
    for Section { name, keys } in config::keys() {
        for key in *keys {
            assert!(
                found.contains(key.name),
                "`{}` of {name} is not in full.yaml",
                key.name
            );
        }
    }
}

#[test]
fn the_full_example_is_read_as_it_is_written() {
    let dir = folder();
    let config = parse_in(dir.path(), &example("full.yaml")).unwrap();
    assert_eq!(&*config.group, "shop-webhooks");
    assert_eq!(config.instance, Instance::Named("bridge-1".into()));
    let BrokerKind::RabbitMq(shop) = &config.brokers["shop"].kind else {
        panic!()
    };
    assert_eq!(
        shop.urls[0].expose(),
        "amqps://bridge:p%40ss@rabbit-1:5671/shop"
    );
    assert_eq!(config.brokers["legacy"].retries_on.as_deref(), Some("shop"));
    assert_eq!(config.brokers["shop"].tiers.iter().count(), 5);
    let From::Kafka(payments) = &config.sources["payments"].from else {
        panic!()
    };
    assert_eq!(payments.topics, ["payments", "^billing\\..*"]);
    assert_eq!(
        payments.ignore_older_than,
        Some(Duration::from_secs(2 * 86_400))
    );
    let warehouse = &config.endpoints["warehouse"];
    assert_eq!(warehouse.signature, Scheme::StandardEd25519);
    let headers = warehouse.headers.as_deref().unwrap();
    assert_eq!(headers["authorization"], "Bearer 0123456789abcdef");
    assert!(headers["authorization"].is_sensitive());
    let crm = &config.endpoints["crm"];
    assert_eq!((crm.concurrency, crm.secrets.len()), (8, 2));
    assert_eq!(crm.breaker.failures, 5);
    let spec = &config.subscriptions["crm"];
    assert_eq!(spec.retry.max_attempts, 12);
    assert_eq!(spec.max_parked.bytes, 512 << 20);
    assert_eq!(
        spec.filter,
        Some(serde_json::json!({ "data.total": { "$gte": 100 } }).into())
    );
    assert_eq!(spec.labels["cost-centre"], "4711");
    assert_eq!(config.subscriptions["stock"].max_parked.count, 10_000);
    assert_eq!(&*config.subscriptions["stock"].endpoint, "warehouse");
    let debug = format!("{config:?}");
    assert!(
        !debug.contains("p%40ss") && !debug.contains("whsec_"),
        "{debug}"
    );
}

#[test]
fn without_a_config_there_is_one_for_trying() {
    let config = Config::default_for_trying();
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:8400");
    assert_eq!(config.data_dir, Path::new("./data"));
    assert_eq!(
        config.endpoints["example"].url.as_str(),
        "http://127.0.0.1:8401/"
    );
    assert_eq!(&*config.group, "hookbridge");
}

#[test]
fn a_file_is_loaded_from_its_folder() {
    let dir = folder();
    let path = dir.path().join("hookbridge.yaml");
    std::fs::write(&path, example("full.yaml")).unwrap();
    let loaded = config::load(&path, &env).unwrap();
    assert_eq!(loaded.hash.len(), 12);
    let (said, good) = config::validate(&path, config::Format::Human, false, &env);
    assert!(
        good && said.ends_with("is valid: 4 brokers, 4 sources, 3 subscriptions\n"),
        "{said}"
    );
    let (said, good) = config::validate(
        &dir.path().join("no.yaml"),
        config::Format::Human,
        false,
        &env,
    );
    assert!(!good && said.contains("there is no such file"), "{said}");
}

#[test]
fn the_environment_names_the_instance_before_the_file_does() {
    let named = |name: &str| (name == "HOOKBRIDGE_INSTANCE").then(|| "from-env".to_owned());
    let text = "brokers: { here: { embedded: {} } }\ninstance: auto\n";
    let of = |env: config::Env<'_>| {
        config::parse(text, "x", Path::new(""), env)
            .unwrap()
            .instance
    };
    assert_eq!(of(&named), Instance::Named("from-env".into()));
    assert_eq!(of(&|_| None), Instance::Auto);
    let wrong = |_: &str| Some("a b".to_owned());
    let problems = config::parse(text, "x", Path::new(""), &wrong).unwrap_err();
    assert_eq!((problems.list().len(), problems.list()[0].line), (1, 2));
}

/// Positions must be those of the file, whatever is in it.
fn check(dir: &Path, text: &str) {
    let Err(problems) = parse_in(dir, text) else {
        return;
    };
    assert!(!problems.list().is_empty());
    let lines: Vec<&str> = text.split('\n').collect();
    for problem in problems.list() {
        let line = lines
            .get(problem.line - 1)
            .unwrap_or_else(|| panic!("{problem:?} in\n{text}"));
        assert!(
            problem.col <= line.chars().count() + 1,
            "{problem:?} in\n{text}"
        );
        assert!(problem.span.end <= text.len());
    }
    for format in [
        config::Format::Human,
        config::Format::Json,
        config::Format::Github,
    ] {
        let shown = problems.render(format, format == config::Format::Human);
        assert!(
            !shown.contains("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
            "{shown}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_gives_problems_at_places_that_exist(
        at in any::<prop::sample::Index>(),
        cut in 0usize..40,
        put in prop_oneof![
            Just(String::new()),
            "[ \\n:{}\\[\\]\"'#&*!|>%@`,?$-]{1,4}",
            "\\PC{0,6}",
            Just("\t".to_owned()),
            Just("&a [*a]".to_owned()),
            Just("<<: *x".to_owned()),
            Just("\r\n".to_owned()),
            Just("\u{85}\u{2028}".to_owned()),
            Just("|\n  whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned()),
        ],
    ) {
        let text = example("full.yaml");
        let from = text.floor_char_boundary(at.index(text.len()));
        let to = text.floor_char_boundary((from + cut).min(text.len())).max(from);
        check(Path::new("/nowhere"), &format!("{}{put}{}", &text[..from], &text[to..]));
    }

    #[test]
    fn lines_taken_out_and_swapped(
        a in any::<prop::sample::Index>(),
        b in any::<prop::sample::Index>(),
        out in any::<bool>(),
    ) {
        let text = example("full.yaml");
        let mut lines: Vec<&str> = text.split('\n').collect();
        let (a, b) = (a.index(lines.len()), b.index(lines.len()));
        if out { lines.remove(a); } else { lines.swap(a, b); }
        check(Path::new("/nowhere"), &lines.join("\n"));
    }

    #[test]
    fn any_text(text in "\\PC{0,80}") {
        check(Path::new("/nowhere"), &text);
    }
}
