//! The keys that are accepted, the JSON Schema and the documentation say the same.
//!
//! `HOOKBRIDGE_BLESS=1 cargo test --test it config_keys` writes the schema and the tables anew.

use std::path::{Path, PathBuf};

use hookbridge::config::{self, schema};
use serde_json::{Value, json};

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

/// Compares the file with what it should be, or writes that.
fn same_or_bless(path: &Path, should: &str) {
    if std::env::var_os("HOOKBRIDGE_BLESS").is_some() {
        std::fs::write(path, should).unwrap();
    }
    let is = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        is == should,
        "{} is out of date: HOOKBRIDGE_BLESS=1 cargo test --test it config_keys",
        path.display()
    );
}

#[test]
fn the_schema_in_the_repository_is_that_of_the_keys() {
    let schema = serde_json::to_string_pretty(&schema::schema()).unwrap() + "\n";
    same_or_bless(&root().join("config/hookbridge.schema.json"), &schema);
}

#[test]
fn the_documentation_has_every_key_with_its_type_and_default() {
    let path = root().join("docs/configuration.md");
    let mut text = std::fs::read_to_string(&path).unwrap();
    for section in config::keys() {
        let (open, close) = (
            format!("<!-- keys: {} -->\n", section.name),
            "<!-- end -->\n",
        );
        let start = text
            .find(&open)
            .unwrap_or_else(|| panic!("no table of {}", section.name));
        let start = start + open.len();
        let end = start + text[start..].find(close).unwrap();
        text.replace_range(start..end, &schema::table(section));
    }
    assert_eq!(text.matches("<!-- keys: ").count(), config::keys().len());
    same_or_bless(&path, &text);
}

#[test]
fn every_yaml_block_of_the_documentation_is_valid() {
    let text = std::fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("secrets")).unwrap();
    std::fs::write(dir.path().join("secrets/crm"), SECRET).unwrap();
    let mut seen = 0;
    for block in text.split("```yaml\n").skip(1) {
        let block = block.split("```").next().unwrap();
        // A block may be a part: what it refers to is put around it.
        let mut whole = block.to_owned();
        for (section, rest) in [
            ("group:", "group: g\n"),
            (
                "brokers:",
                "brokers: { shop: { rabbitmq: { url: amqp://h } }, lake: { kafka: { bootstrap: [h] } }, here: { embedded: {} } }\n",
            ),
        ] {
            if !block.lines().any(|line| line.starts_with(section)) {
                whole.push_str(rest);
            }
        }
        if let Err(problems) = config::parse(&whole, "block", dir.path(), &env) {
            panic!("{whole}\n{problems}");
        }
        seen += 1;
    }
    assert!(seen >= 6, "{seen}");
}

/// Every place in `node` below `path` that is under a key.
fn places(node: &Value, path: &str, into: &mut Vec<String>) {
    match node {
        Value::Object(map) => {
            for (key, value) in map {
                let path = format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
                // What is below a filter or a schema is not made of our keys; the body of a test is
                // any JSON.
                let is_body = path.starts_with("/tests/") && key == "body";
                if !["filter", "schema"].contains(&key.as_str()) && !is_body {
                    places(value, &path, into);
                }
                if !is_body {
                    into.push(path);
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                places(item, &format!("{path}/{index}"), into);
            }
        }
        _ => {}
    }
}

#[test]
fn every_key_is_read() {
    let text = std::fs::read_to_string(root().join("config/full.yaml")).unwrap();
    let text = text.replace("${file:secrets/rabbit}", "p").replace(
        "${file:secrets/warehouse}",
        "whsk_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    );
    let tree: Value = serde_saphyr::from_str(&text).unwrap();
    // JSON is YAML.
    let parse = |tree: &Value| config::parse(&tree.to_string(), "f", Path::new(""), &env);
    parse(&tree).unwrap();
    let mut found = Vec::new();
    places(&tree, "", &mut found);
    assert!(found.len() > 120);
    for path in found {
        let mut damaged = tree.clone();
        *damaged.pointer_mut(&path).unwrap() = json!([[]]);
        assert!(parse(&damaged).is_err(), "{path} may be anything");
    }
}

#[test]
fn unknown_keys_are_refused_everywhere() {
    let text = std::fs::read_to_string(root().join("config/full.yaml")).unwrap();
    let mut tree: Value = serde_saphyr::from_str(&text).unwrap();
    fn add(node: &mut Value, free: bool, count: &mut usize) {
        match node {
            Value::Object(map) => {
                let named = [
                    "brokers",
                    "sources",
                    "endpoints",
                    "subscriptions",
                    "versions",
                    "formats",
                    "tests",
                    "expect",
                    // Of `tenants`.
                    "named",
                ];
                let texts = [
                    "headers",
                    "properties",
                    "arguments",
                    "labels",
                    "filter",
                    "schema",
                    "query",
                    "params",
                    "facts",
                    "parameters",
                    // Of `encrypt`, a JWK.
                    "key",
                    // Of a test, any JSON.
                    "body",
                ];
                // Of an embed its names are free, of an endpoint it has three keys.
                let embed = map.contains_key("description");
                for (key, value) in map.iter_mut() {
                    let free_below = texts.contains(&key.as_str()) || (embed && key == "fields");
                    if !free_below {
                        // `sources` of a subscription is a list, so it does not matter here.
                        add(value, named.contains(&key.as_str()), count);
                    }
                }
                if !free {
                    map.insert("zz_unknown".to_owned(), json!(1));
                    *count += 1;
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| add(item, false, count)),
            _ => {}
        }
    }
    let mut count = 0;
    add(&mut tree, false, &mut count);
    let problems = config::parse(&tree.to_string(), "f", Path::new(""), &env).unwrap_err();
    let refused = problems
        .list()
        .iter()
        .filter(|p| p.message.starts_with("unknown key"))
        .count();
    assert!(count > 30);
    assert_eq!(refused, count);
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    const MINIMAL: &str = "
group: hookbridge
admin: {}
delivery: {}
limits: {}
attempts: {}
telemetry: { otlp: { endpoint: http://h:4318 } }
brokers: { rabbit: { rabbitmq: { url: amqp://h } }, here: { embedded: {} } }
sources: { s: { broker: rabbit, queue: q }, d: { broker: here, topics: [t], decode: { registry: { url: https://h/ } } } }
endpoints: { e: { url: https://h/, secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw, breaker: {} }, github: { url: https://h/, secret: 0123456789abcdef, signature: { github: {} } }, shopify: { url: https://h/, secret: 0123456789abcdef, signature: { shopify: {} } }, woocommerce: { url: https://h/, secret: 0123456789abcdef, signature: { woocommerce: {} } }, jira: { url: https://h/, secret: 0123456789abcdef, signature: { jira: {} } }, gitlab: { url: https://h/, secret: 0123456789abcdef, signature: { gitlab: {} } }, hmac: { url: https://h/, secret: 0123456789abcdef, signature: { hmac: { header: x-sig } } }, options: { url: https://h/, signature: none, handshake: { options: {} } }, challenge: { url: https://h/, signature: none, handshake: { challenge: {} } }, xml: { url: https://h/, signature: none, format: { xml: {} } }, batch: { url: https://h/, signature: none, batch: {} }, template: { url: https://h/, signature: none, format: { template: {} } }, tokens: { url: https://h/, signature: none, auth: { oauth2: { token_url: https://h/, client_id: i, client_secret: s } } } }
subscriptions: { x: { topics: [t], endpoint: { url: https://h/, secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw }, breaker: {}, max_age: { after: 1h }, max_parked: {}, retry: {} } }
";
    const PLACES: [(&str, &str); 29] = [
        ("config", ""),
        ("admin", "/admin"),
        ("delivery", "/delivery"),
        ("limits", "/limits"),
        ("attempts", "/attempts"),
        ("telemetry.otlp", "/telemetry/otlp"),
        ("broker", "/brokers/here"),
        ("embedded", "/brokers/here/embedded"),
        ("source", "/sources/s"),
        ("decode", "/sources/d/decode"),
        ("registry", "/sources/d/decode/registry"),
        ("endpoint", "/endpoints/e"),
        ("github_signature", "/endpoints/github/signature/github"),
        ("shopify_signature", "/endpoints/shopify/signature/shopify"),
        (
            "woocommerce_signature",
            "/endpoints/woocommerce/signature/woocommerce",
        ),
        ("jira_signature", "/endpoints/jira/signature/jira"),
        ("gitlab_signature", "/endpoints/gitlab/signature/gitlab"),
        ("hmac_signature", "/endpoints/hmac/signature/hmac"),
        ("options_handshake", "/endpoints/options/handshake/options"),
        (
            "challenge_handshake",
            "/endpoints/challenge/handshake/challenge",
        ),
        ("xml_format", "/endpoints/xml/format/xml"),
        ("template_format", "/endpoints/template/format/template"),
        ("batch", "/endpoints/batch/batch"),
        ("oauth2", "/endpoints/tokens/auth/oauth2"),
        ("breaker", "/endpoints/e/breaker"),
        ("subscription", "/subscriptions/x"),
        ("max_age", "/subscriptions/x/max_age"),
        ("max_parked", "/subscriptions/x/max_parked"),
        ("retry", "/subscriptions/x/retry"),
    ];
    let tree: Value = serde_saphyr::from_str(MINIMAL).unwrap();
    let parse = |tree: &Value| config::parse(&tree.to_string(), "f", Path::new("d"), &|_| None);
    let plain = parse(&tree).unwrap();
    let mut checked = 0;
    for section in config::keys() {
        for key in section.keys {
            let written = key
                .default
                .strip_prefix('`')
                .and_then(|rest| rest.strip_suffix('`'));
            let Some(written) = written.filter(|written| !written.contains('`')) else {
                continue;
            };
            let (_, place) = PLACES
                .iter()
                .find(|(name, _)| *name == section.name)
                .unwrap();
            let mut tree = tree.clone();
            let default: Value = serde_saphyr::from_str(written).unwrap();
            tree.pointer_mut(place).unwrap()[key.name] = default;
            assert_eq!(
                parse(&tree).unwrap(),
                plain,
                "`{}` of {}",
                key.name,
                section.name
            );
            checked += 1;
        }
    }
    assert!(checked > 25, "{checked}");
}
