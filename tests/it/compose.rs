//! docker-compose.yml, the Dockerfile and config/compose.yaml fit together: names, ports, passwords,
//! variables and paths. There is no Docker where the tests run; this is what can be said without it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use hookbridge::config::{self, BrokerKind, Config};
use serde_json::Value;
use url::Url;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

fn compose() -> Value {
    serde_saphyr::from_str(&read("docker-compose.yml")).unwrap()
}

fn service(name: &str) -> Value {
    let services = compose()["services"].clone();
    assert!(services.get(name).is_some(), "no service {name}");
    services[name].clone()
}

fn variable(service: &Value, name: &str) -> Option<String> {
    service["environment"][name].as_str().map(str::to_owned)
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

/// The config with the variables of the hookbridge service and no others.
fn config() -> Config {
    let service = service("hookbridge");
    let env = |name: &str| variable(&service, name);
    match config::parse(
        &read("config/compose.yaml"),
        "compose.yaml",
        Path::new("/"),
        &env,
    ) {
        Ok(config) => config,
        Err(problems) => panic!("{problems}"),
    }
}

/// Lines of the Dockerfile that begin with `word`, what follows it.
fn docker(word: &str) -> Vec<String> {
    read("Dockerfile")
        .lines()
        .filter_map(|line| line.strip_prefix(word)?.strip_prefix(' '))
        .map(str::to_owned)
        .collect()
}

fn one(mut lines: Vec<String>) -> String {
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

#[test]
fn every_variable_that_is_set_is_used() {
    config();
    let text = read("config/compose.yaml");
    for name in service("hookbridge")["environment"]
        .as_object()
        .unwrap()
        .keys()
    {
        assert!(
            text.contains(&format!("${{env:{name}}}")),
            "{name} is not used"
        );
    }
}

#[test]
fn rabbitmq_is_reached_as_it_is_set_up() {
    let BrokerKind::RabbitMq(settings) = &config().brokers["rabbit"].kind else {
        panic!("not a RabbitMQ");
    };
    let url: Url = settings.urls[0].expose().parse().unwrap();
    let rabbitmq = service(url.host_str().unwrap());
    assert!(rabbitmq["image"].as_str().unwrap().starts_with("rabbitmq:"));
    let set = |name| variable(&rabbitmq, name).unwrap();
    assert_eq!(url.username(), set("RABBITMQ_DEFAULT_USER"));
    assert_eq!(url.password().unwrap(), set("RABBITMQ_DEFAULT_PASS"));
    assert_eq!(url.port(), Some(5672));
    assert_eq!(texts(&rabbitmq["ports"]), ["127.0.0.1:5672:5672"]);
}

#[test]
fn kafka_is_reached_as_it_is_set_up() {
    let BrokerKind::Kafka(settings) = &config().brokers["kafka"].kind else {
        panic!("not a Kafka");
    };
    let (host, port) = settings.bootstrap[0].split_once(':').unwrap();
    let kafka = service(host);
    assert!(
        kafka["image"]
            .as_str()
            .unwrap()
            .starts_with("apache/kafka:")
    );
    assert_eq!(kafka["hostname"], host);
    let set = |name: &str| variable(&kafka, name).unwrap();
    let (listeners, advertised) = (set("KAFKA_LISTENERS"), set("KAFKA_ADVERTISED_LISTENERS"));
    let names = |list: &str| -> BTreeSet<String> {
        let name = |listener: &str| listener.split(':').next().unwrap().to_owned();
        list.split(',').map(name).collect()
    };
    assert!(listeners.contains(&format!("INTERNAL://:{port},")));
    assert!(advertised.contains(&format!("INTERNAL://{host}:{port},")));
    let controller = set("KAFKA_CONTROLLER_LISTENER_NAMES");
    let mut all = names(&advertised);
    all.insert(controller.clone());
    assert_eq!(names(&listeners), all);
    assert_eq!(names(&set("KAFKA_LISTENER_SECURITY_PROTOCOL_MAP")), all);
    let quorum = set("KAFKA_CONTROLLER_QUORUM_VOTERS");
    let (id, voter) = quorum.split_once('@').unwrap();
    assert_eq!(id, set("KAFKA_NODE_ID"));
    let voter_port = voter.strip_prefix(&format!("{host}:")).unwrap();
    assert!(listeners.contains(&format!("{controller}://:{voter_port}")));
    // Programs on this machine: the published port is the one that is advertised to them.
    let published = one(texts(&kafka["ports"]));
    let outside = published.rsplit(':').next().unwrap();
    assert_eq!(published, format!("127.0.0.1:{outside}:{outside}"));
    assert!(advertised.ends_with(&format!("EXTERNAL://localhost:{outside}")));
    assert!(listeners.ends_with(&format!("EXTERNAL://:{outside}")));
    // The data outlives the container where Kafka writes it.
    let volume = one(texts(&kafka["volumes"]));
    assert!(volume.ends_with(&format!(":{}", set("KAFKA_LOG_DIRS"))));
}

#[test]
fn the_receiver_is_where_the_endpoint_points_and_has_its_secret() {
    let config = config();
    let endpoint = &config.endpoints["receiver"];
    let receiver = service(endpoint.url.host_str().unwrap());
    let port = endpoint.url.port().unwrap();
    let command = texts(&receiver["command"]);
    assert_eq!(command[..2], ["listen", "--listen"]);
    assert_eq!(command[2], format!("0.0.0.0:{port}"));
    assert_eq!(
        one(texts(&receiver["ports"])),
        format!("127.0.0.1:{port}:{port}")
    );
    let secret = variable(&receiver, "WEBHOOK_SECRET").unwrap();
    assert_eq!(endpoint.secrets[0].expose(), secret);
    assert!(config.delivery.allow_http && endpoint.url.scheme() == "http");
    let understood = Command::new(env!("CARGO_BIN_EXE_hookbridge"))
        .args(&command)
        .arg("--help")
        .output()
        .unwrap();
    assert!(understood.status.success());
}

#[test]
fn hookbridge_finds_its_config_its_data_and_its_port() {
    let config = config();
    let hookbridge = service("hookbridge");
    let port = config.admin.listen.port();
    assert!(config.admin.listen.ip().is_unspecified());
    assert_eq!(
        one(texts(&hookbridge["ports"])),
        format!("127.0.0.1:{port}:{port}")
    );
    assert_eq!(one(docker("EXPOSE")), port.to_string());

    let command: Vec<String> = serde_json::from_str(&one(docker("CMD"))).unwrap();
    assert_eq!(command[..2], ["run", "--config"]);
    assert!(hookbridge.get("command").is_none());
    let data = config.data_dir.display().to_string();
    assert_eq!(
        texts(&hookbridge["volumes"]),
        [
            format!("./config/compose.yaml:{}:ro", command[2]),
            format!("hookbridge:{data}")
        ]
    );
    assert_eq!(one(docker("VOLUME")), data);
    assert_eq!(one(docker("WORKDIR").split_off(1)), data);
}

#[test]
fn volumes_and_services_that_are_named_exist() {
    let compose = compose();
    let services = compose["services"].as_object().unwrap();
    let mut used = BTreeSet::new();
    for service in services.values() {
        for volume in texts(&service["volumes"]) {
            let from = volume.split(':').next().unwrap().to_owned();
            if let Some(file) = from.strip_prefix("./") {
                assert!(root().join(file).exists(), "{file}");
            } else {
                used.insert(from);
            }
        }
        for needed in texts(&service["depends_on"]) {
            assert!(services.contains_key(&needed), "{needed}");
        }
        for port in texts(&service["ports"]) {
            assert!(
                port.starts_with("127.0.0.1:"),
                "{port} is open to everybody"
            );
        }
    }
    let declared: BTreeSet<_> = compose["volumes"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    assert_eq!(used, declared);
}

#[test]
fn the_image_is_built_of_files_that_are_there_and_runs_our_binary() {
    let manifest = read("Cargo.toml");
    let binary = "hookbridge";
    assert!(manifest.contains(&format!("[[bin]]\nname = \"{binary}\"")));
    assert!(read("Dockerfile").contains(&format!("--bin {binary}")));
    let entry: Vec<String> = serde_json::from_str(&one(docker("ENTRYPOINT"))).unwrap();
    assert_eq!(entry, [binary]);
    let rust = manifest
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = "))
        .unwrap();
    let image = docker("FROM").remove(0);
    assert!(
        image.starts_with(&format!("rust:{}-", rust.trim_matches('"'))),
        "{image}"
    );

    let ignored = read(".dockerignore");
    let mut copied = Vec::new();
    for line in docker("COPY") {
        let words: Vec<_> = line.split(' ').collect();
        if words[0].starts_with("--from=") {
            assert_eq!(words[1], format!("/build/target/release/{binary}"));
            assert_eq!(words[2], format!("/usr/local/bin/{binary}"));
            continue;
        }
        for from in &words[..words.len() - 1] {
            assert!(root().join(from).exists(), "{from}");
            assert!(
                ignored.lines().any(|line| line == format!("!{from}")),
                "{from} is ignored"
            );
            copied.push((*from).to_owned());
        }
    }
    // Files that the sources take in at compile time have to be copied as well.
    assert!(copied.contains(&"config".to_owned()) && copied.contains(&"src".to_owned()));
}
