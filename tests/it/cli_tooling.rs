//! Commands that print what the program knows of itself: help, echo, schema, completions, manual
//! pages, a config to start from.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn hookbridge(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hookbridge"))
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .expect("it runs")
}

/// What a command prints that has to succeed.
fn printed(folder: &Path, arguments: &[&str]) -> String {
    let output = hookbridge(folder, arguments);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}\n{complaints}");
    String::from_utf8(output.stdout).expect("text")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn help_leads_through_the_commands() {
    let folder = folder();
    let help = printed(folder.path(), &["--help"]);
    let headings: Vec<_> = help
        .lines()
        .filter(|line| line.ends_with(':') && !line.starts_with(' '))
        .collect();
    assert_eq!(headings.first(), Some(&"The first hour:"), "{help}");
    assert_eq!(headings.last(), Some(&"Options:"), "{help}");
    let at = |word: &str| {
        help.find(word)
            .unwrap_or_else(|| panic!("no {word} in\n{help}"))
    };
    assert!(at("\n  demo ") < at("\n  init ") && at("\n  init ") < at("\n  run "));
    assert!(
        help.lines().all(|line| line.chars().count() <= 100),
        "{help}"
    );
    // Without arguments the same, as an error of usage.
    let output = hookbridge(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(String::from_utf8_lossy(&output.stderr), help);
}

#[test]
fn the_schema_printed_is_the_one_in_the_repository() {
    let kept = std::fs::read_to_string(repository("config/hookbridge.schema.json"));
    assert_eq!(
        printed(folder().path(), &["schema"]),
        kept.expect("it is there")
    );
}

#[test]
fn every_shell_gets_completions_with_every_command() {
    let folder = folder();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = printed(folder.path(), &["completions", shell]);
        for command in hookbridge::cli::command().get_subcommands() {
            assert!(
                script.contains(command.get_name()),
                "{shell}: {}",
                command.get_name()
            );
        }
    }
    // Bash takes it.
    let script = folder.path().join("hookbridge.bash");
    std::fs::write(&script, printed(folder.path(), &["completions", "bash"])).expect("written");
    let check = "source \"$0\" && complete -p hookbridge";
    let bash = Command::new("bash")
        .args(["-euc", check])
        .arg(&script)
        .output();
    let bash = bash.expect("bash runs");
    assert!(
        bash.status.success(),
        "{}",
        String::from_utf8_lossy(&bash.stderr)
    );
    let wrong = hookbridge(folder.path(), &["completions", "csh"]);
    assert_eq!(wrong.status.code(), Some(64));
}

#[test]
fn each_command_has_its_manual_page() {
    let folder = folder();
    assert!(printed(folder.path(), &["man"]).contains(".TH hookbridge 1"));
    printed(folder.path(), &["man", "--dir", "man/man1"]);
    let page = |name: &str| {
        let path = folder.path().join("man/man1").join(format!("{name}.1"));
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    page("hookbridge");
    for command in hookbridge::cli::command().get_subcommands() {
        let text = page(&format!("hookbridge-{}", command.get_name()));
        assert!(text.contains(".SH OPTIONS"), "{}", command.get_name());
    }
    std::fs::write(folder.path().join("file"), "").expect("written");
    let output = hookbridge(folder.path(), &["man", "--dir", "file/man"]);
    assert_eq!(output.status.code(), Some(74));
}

#[test]
fn a_config_is_started_and_never_overwritten() {
    for broker in ["embedded", "rabbitmq", "kafka"] {
        let folder = folder();
        let said = printed(folder.path(), &["init", "--broker", broker]);
        assert!(
            said.contains("hookbridge validate --config hookbridge.yaml"),
            "{said}"
        );
        let config = folder.path().join("hookbridge.yaml");
        let text = std::fs::read_to_string(&config).expect("it is written");
        assert!(text.starts_with("# yaml-language-server: $schema=./hookbridge.schema.json\n"));
        assert!(folder.path().join("hookbridge.schema.json").exists());
        let valid = Command::new(env!("CARGO_BIN_EXE_hookbridge"))
            .args(["validate", "--config", "hookbridge.yaml"])
            .current_dir(folder.path())
            .env_clear()
            .envs([("CRM_SECRET", SECRET), ("RABBITMQ_PASSWORD", "p")])
            .output()
            .expect("it runs");
        let verdict = String::from_utf8_lossy(&valid.stdout);
        assert!(valid.status.success(), "{broker}\n{verdict}");
        std::fs::write(&config, "mine").expect("written");
        assert_eq!(hookbridge(folder.path(), &["init"]).status.code(), Some(74));
        assert_eq!(
            std::fs::read_to_string(&config).expect("it is there"),
            "mine"
        );
    }
}

#[test]
fn echo_fills_in_defaults_and_masks_secrets() {
    let folder = folder();
    let config = "\
group: shop
brokers:
  rabbit:
    rabbitmq: { url: \"amqp://bridge:hunter2@rabbit/%2f\" }
sources: { orders: { broker: rabbit, queue: orders } }
endpoints:
  erp: { url: \"https://erp.example.com/T0/hunter2\", secret: \"${env:ERP_SECRET}\" }
subscriptions:
  crm:
    topics: [\"orders.*\"]
    endpoint: { url: \"https://crm.example.com/\", secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw }
    timeout: ${env:TIMEOUT}
  erp: { topics: [\"#\"], endpoint: erp, retry: { schedule: [1s] } }
";
    std::fs::write(folder.path().join("hookbridge.yaml"), config).expect("written");
    let echo = |more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_hookbridge"))
            .args(["echo", "--config", "hookbridge.yaml"])
            .args(more)
            .current_dir(folder.path())
            .env_clear()
            .envs([("ERP_SECRET", SECRET), ("TIMEOUT", "3s")])
            .output()
            .expect("it runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    };
    let yaml = echo(&[]);
    insta::assert_snapshot!(yaml, @r##"
group: "shop"
data_dir: "./data"
admin:
  listen: "127.0.0.1:8400"
  max_event_bytes: 16MiB
delivery:
  allow_http: false
limits:
  in_flight_bytes: 256MiB
  due_window: 256
  shutdown: 30s
  workers: 1
attempts:
  enabled: true
  keep: 7d
  max_bytes: 1GiB
  bodies: false
brokers:
  rabbit:
    rabbitmq:
      url: "amqp://***@rabbit/***"
    tiers: [1s, 5s, 15s, 1m, 5m, 15m, 1h, 4h, 12h]
    declare: true
sources:
  orders:
    broker: rabbit
    window: 256
    unmatched: settle
    queue: "orders"
    declare: true
endpoints:
  erp:
    url: "https://erp.example.com/***"
    method: POST
    secret: "${env:ERP_SECRET}"
    signature: standard
    format: raw
    gzip: false
    concurrency: 16
    adaptive: false
    breaker:
      failures: 10
      cool_down: 10s
subscriptions:
  crm:
    topics: ["orders.*"]
    enabled: true
    shadow: false
    endpoint:
      url: "https://crm.example.com/"
      method: POST
      secret: "***"
      signature: standard
      format: raw
      gzip: false
      concurrency: 16
      adaptive: false
      breaker:
        failures: 10
        cool_down: 10s
    timeout: 3s
    connect_timeout: 3s
    slow_after: 2s
    max_parked:
      count: 100000
      bytes: 1GiB
    retry:
      schedule: [5s, 5m, 30m, 2h, 5h, 10h, 14h, 20h, 24h]
      jitter: 0.1
      max_attempts: 10
      give_up_after: 4d
      max_retry_after: 24h
  erp:
    topics: ["#"]
    enabled: true
    shadow: false
    endpoint: erp
    timeout: 15s
    connect_timeout: 5s
    slow_after: 2s
    max_parked:
      count: 100000
      bytes: 1GiB
    retry:
      schedule: [1s]
      jitter: 0.1
      max_attempts: 2
      give_up_after: 4d
      max_retry_after: 24h
"##);
    let json: serde_json::Value = serde_json::from_str(&echo(&["--json"])).expect("JSON");
    let again: serde_json::Value = serde_saphyr::from_str(&yaml).expect("YAML");
    assert_eq!(json, again);
    assert_eq!(json["subscriptions"]["crm"]["timeout"], "3s");
    assert_eq!(json["subscriptions"]["crm"]["endpoint"]["secret"], "***");
}
