//! What the documentation shows can be run: configs are valid, commands are understood by the real
//! program, and lists of variables, paths and problem types are those of the code.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hookbridge::config;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const PRIVATE_KEY: &str = "whsk_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every page with its name; those below `docs/decisions` are about the past.
pub fn pages() -> Vec<(String, String)> {
    let mut names = vec!["README.md".to_owned(), "ARCHITECTURE.md".to_owned()];
    for folder in ["docs", "docs/receivers"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                names.push(format!("{folder}/{name}"));
            }
        }
    }
    names.sort();
    let read = |name: String| {
        let text = std::fs::read_to_string(root().join(&name)).unwrap();
        (name, text)
    };
    names.into_iter().map(read).collect()
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// The fenced blocks of this language in `text`.
pub fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    text.split(&format!("```{language}\n"))
        .skip(1)
        .filter_map(|rest| rest.split("\n```").next())
        .collect()
}

fn env(name: &str) -> Option<String> {
    match name {
        "HOOKBRIDGE_INSTANCE" => None,
        name if name.contains("ED25519") => Some(PRIVATE_KEY.to_owned()),
        name if name.contains("SECRET") => Some(SECRET.to_owned()),
        _ => Some("0123456789abcdef".to_owned()),
    }
}

#[test]
fn every_config_shown_is_valid() {
    let secrets = tempfile::tempdir().unwrap();
    std::fs::write(secrets.path().join("crm"), SECRET).unwrap();
    for (name, digit) in [("store", "0"), ("store-1", "1"), ("store-2", "2")] {
        std::fs::write(secrets.path().join(name), digit.repeat(64)).unwrap();
    }
    let mut seen = 0;
    for (name, text) in pages() {
        // Its blocks are parts of configs, and have a test of their own.
        if name == "docs/configuration.md" {
            continue;
        }
        for block in blocks(&text, "yaml") {
            let folder = format!("{}/", secrets.path().display());
            let block = block.replace("/run/secrets/", &folder);
            if let Err(problems) = config::parse(&block, &name, secrets.path(), &env) {
                panic!("{name}\n{problems}");
            }
            seen += 1;
        }
    }
    assert!(seen >= 4, "{seen} configs found");
}

#[test]
fn the_readme_s_config_has_about_twenty_lines() {
    let readme = page("README.md");
    let lines = blocks(&readme, "yaml")[0].lines().count();
    assert!((15..=22).contains(&lines), "{lines}");
}

/// The words of a command line, as a shell would have them.
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '#' if !quoted && word.is_none() => break,
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    assert!(!quoted, "an open quote in: {line}");
    words.extend(word);
    words
}

/// Arguments of every call of our program in the shell blocks.
fn commands() -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for (name, text) in pages() {
        for line in blocks(&text, "sh").iter().flat_map(|block| block.lines()) {
            let ours = line
                .strip_prefix("hookbridge ")
                .or_else(|| line.strip_prefix("cargo run --release -- "));
            if let Some(arguments) = ours {
                // What a shell does with the output is its own business.
                let arguments = arguments.split(" > ").next().unwrap_or_default();
                found.push((format!("{name}: {line}"), words(arguments)));
            }
        }
    }
    found
}

fn hookbridge(folder: &Path, arguments: &[String]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hookbridge"))
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .env("HOOKBRIDGE_CONFIG", folder.join("hookbridge.yaml"))
        .output()
        .unwrap()
}

#[test]
fn every_command_shown_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    // Nobody listens on port 1, so that nothing is sent to anybody.
    let config = "admin: { listen: 127.0.0.1:1 }\nbrokers: { shop: { embedded: {} } }\n";
    std::fs::write(folder.path().join("hookbridge.yaml"), config).unwrap();
    std::fs::write(folder.path().join("order.json"), "{}").unwrap();
    let commands = commands();
    for (place, arguments) in &commands {
        // Arguments are looked at before the request for help is granted.
        let helped = [arguments.clone(), vec!["--help".to_owned()]].concat();
        let output = hookbridge(folder.path(), &helped);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{place}\n{said}");
        if arguments[0] == "send" {
            // With all that it needs, it fails only because nobody is there. Exchanges are for
            // another kind of broker.
            let code = match arguments.contains(&"--exchange".to_owned()) {
                true => 64,
                false => 69,
            };
            let output = hookbridge(folder.path(), arguments);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{place}\n{said}");
        }
    }
    assert!(commands.len() >= 10, "{} commands", commands.len());
}

#[test]
fn what_is_not_an_argument_would_be_noticed() {
    let folder = tempfile::tempdir().unwrap();
    for wrong in [
        "run --confg x --help",
        "listen --answer 999 --help",
        "sned --help",
    ] {
        let output = hookbridge(folder.path(), &words(wrong));
        assert_eq!(output.status.code(), Some(64), "{wrong}");
    }
}

#[test]
fn the_examples_are_validated_by_the_program() {
    for name in ["try.yaml", "hookbridge.yaml", "compose.yaml"] {
        let output = Command::new(env!("CARGO_BIN_EXE_hookbridge"))
            .args(["validate", "--config"])
            .arg(root().join("config").join(name))
            .envs([("CRM_SECRET", SECRET), ("WEBHOOK_SECRET", SECRET)])
            .envs([
                ("RABBITMQ_PASSWORD", "p"),
                ("ADMIN_TOKEN", "0123456789abcdef"),
            ])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{name}\n{said}");
    }
}

/// Everything of `text` that begins with `prefix` and goes on with characters that `fit`.
fn all_of(text: &str, prefix: &str, fit: impl Fn(char) -> bool) -> BTreeSet<String> {
    text.match_indices(prefix)
        .map(|(at, _)| text[at..].chars().take_while(|c| fit(*c)).collect())
        .collect()
}

fn code_of(folder: &str) -> String {
    let mut text = String::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let file = std::fs::read_to_string(path).unwrap();
                text.push_str(file.split("#[cfg(test)]\nmod tests").next().unwrap());
            }
        }
    }
    text
}

#[test]
fn every_variable_of_the_program_is_in_operations() {
    let fit = |c: char| c.is_ascii_uppercase() || c == '_';
    let variables = |text: &str| {
        let mut found = all_of(text, "HOOKBRIDGE_", fit);
        found.remove("HOOKBRIDGE_");
        found
    };
    let mut read = variables(&code_of("src"));
    // No release reads this one.
    read.remove("HOOKBRIDGE_FAILPOINTS");
    assert_eq!(variables(&page("docs/operations.md")), read);
}

#[test]
fn every_path_of_the_api_is_in_operations() {
    let code = code_of("src/admin");
    let mut served = BTreeSet::new();
    for (at, _) in code.match_indices(".route(") {
        let rest = &code[at..];
        let path = rest.split('"').nth(1).unwrap();
        let handler = rest.split('"').nth(2).unwrap();
        let handler = handler.trim_start_matches([',', ' ', '\n']);
        let method = ["GET", "DELETE", "PATCH", "POST", "PUT"]
            .into_iter()
            .find(|method| handler.starts_with(&method.to_lowercase()))
            .unwrap();
        served.insert(format!("{method} {path}"));
    }
    // Not a place but a better answer to a mistake.
    assert!(served.remove("POST /v1/topics//events"));
    let text = page("docs/operations.md");
    let table = text.split("## Admin API").nth(1).unwrap();
    let documented: BTreeSet<_> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .map(str::to_owned)
        .collect();
    let documented: BTreeSet<_> = documented
        .into_iter()
        .filter(|cell| {
            let methods = ["GET ", "POST ", "PUT ", "PATCH ", "DELETE "];
            methods.iter().any(|method| cell.starts_with(method))
        })
        .collect();
    assert_eq!(documented, served);
}

#[test]
fn every_problem_that_publishing_may_have_is_documented() {
    let text = page("docs/embedded.md");
    let table = text.split("### When it is refused").nth(1).unwrap();
    let documented: BTreeSet<_> = table
        .lines()
        .filter(|line| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit())
        .flat_map(|row| row.split('|').nth(2).unwrap().split('`').skip(1).step_by(2))
        .collect();
    let code = code_of("src/admin");
    assert!(documented.len() > 8);
    for name in &documented {
        assert!(code.contains(&format!("\"{name}\"")), "no problem {name}");
    }
    // The others concern subscriptions, dead letters, jobs and paths.
    for (at, _) in code.match_indices("StatusCode::") {
        let Some(name) = code[at..].split('"').nth(1) else {
            continue;
        };
        let between = &code[at..at + code[at..].find('"').unwrap()];
        let is_problem = between.trim_end().ends_with(',') && between.matches('\n').count() <= 1;
        let elsewhere = [
            "ambiguous",
            "attempts-not-kept",
            "bad-filter",
            "busy",
            "changed",
            "conflict",
            "idempotency-key-reused",
            "invalid",
            "no-store-key",
            "operator-only",
            "quota",
            "invalid-config",
            "no-config-file",
            "not-sent-again",
            "read-only",
            "too-many-jobs",
            "wrong-content-type",
            "too-many-taps",
            "too-many-tests",
            "undecodable",
            "wrong-method",
        ];
        if is_problem && !elsewhere.contains(&name) {
            assert!(
                documented.contains(name),
                "`{name}` is not in docs/embedded.md"
            );
        }
    }
}
