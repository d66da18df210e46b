//! The order of the modules: imports point down the list in `lib.rs`, and stages never import each
//! other. Only `pipeline` puts them together.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules in order, lowest first. A module may import those of lower rank, and its own.
const ORDER: [&[&str]; 8] = [
    NOUNS,
    &["failpoint", "meters", "spans", "tls"],
    STAGES,
    &["pipeline"],
    &["operations"],
    &["admin", "ui"],
    ASSEMBLY,
    &["cli", "main"],
];
/// What builds and runs the rest; its parts may know each other.
const ASSEMBLY: &[&str] = &["config", "app", "shutdown", "telemetry"];
/// Nouns may know each other.
const NOUNS: &[&str] = &[
    "attempt",
    "delivery",
    "event",
    "finding",
    "outgoing",
    "selection",
    "subscription",
];
const STAGES: &[&str] = &[
    "broker", "decode", "deliver", "journal", "render", "route", "store", "verdict",
];

/// Libraries that only some files may name, so that they can be exchanged there.
const CONFINED: [(&str, &[&str]); 11] = [
    ("hyper", &["deliver/client"]),
    ("hyper_util", &["deliver/client"]),
    ("reqwest", &["cli", "telemetry/otlp"]),
    ("sled", &["store"]),
    ("lapin", &["broker/rabbitmq"]),
    ("rdkafka", &["broker/kafka"]),
    ("redb", &["broker/embedded", "journal"]),
    ("minijinja", &["render/template"]),
    ("prost_reflect", &["decode/protobuf"]),
    ("protox", &["decode/protobuf"]),
    ("jsonschema", &["subscription/contract"]),
];

#[test]
fn imports_point_down_and_stages_do_not_know_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    assert!(files.len() > 20, "only {} files found", files.len());
    let mut broken = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&root).unwrap();
        let inside = inside.to_str().unwrap().replace('\\', "/");
        broken.extend(check(&inside, &fs::read_to_string(&file).unwrap()));
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn what_breaks_the_order_is_found() {
    for (file, text, words) in [
        (
            "route/mod.rs",
            "use crate::store::Store;\n",
            "src/route/mod.rs:1: the stage `route` imports the stage `store`",
        ),
        (
            "event.rs",
            "\nuse crate::{\n    delivery::Delivery,\n    broker::{Broker, tiers::Tiers},\n};",
            "src/event.rs:4: `event` imports `broker`",
        ),
        (
            "verdict/mod.rs",
            "fn f() -> crate::config::Retry {}",
            "src/verdict/mod.rs:1: `verdict` imports `config`",
        ),
        (
            "meters.rs",
            "/* no */ use  crate :: route::Routes;",
            "`meters` imports `route`",
        ),
        ("admin/api.rs", "use crate::cli;", "`admin` imports `cli`"),
        (
            "render/mod.rs",
            "let a = '\"'; use crate::verdict::decide;",
            "the stage `render`",
        ),
        (
            "deliver/lane.rs",
            "use hyper::Request;",
            "src/deliver/lane.rs:1: only deliver/client may name `hyper`",
        ),
        (
            "deliver/lane.rs",
            "fn f() -> ::hyper_util::Error {}",
            "`hyper_util`",
        ),
        (
            "app.rs",
            "use reqwest::Client;",
            "only cli, telemetry/otlp may name `reqwest`",
        ),
        ("surprise.rs", "", "`surprise` has no place in the order"),
    ] {
        let found = check(file, text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].contains(words), "{text}: {found:?}");
    }
}

#[test]
fn what_keeps_the_order_is_let_through() {
    for (file, text) in [
        (
            "route/mod.rs",
            "// use crate::store::Store;\n/* crate::store /* crate::app */ crate::cli */",
        ),
        (
            "route/mod.rs",
            "let a = \"crate::store \\\" crate::app\"; let b = r#\"crate::\"cli\"#;",
        ),
        (
            "route/index.rs",
            "use crate::subscription::Pattern; use crate::route::Routes;",
        ),
        (
            "pipeline/mod.rs",
            "use crate::{broker, deliver::Courier, route::{self, Routes}};",
        ),
        (
            "deliver/client.rs",
            "use hyper::Request; use hyper_util::client;",
        ),
        ("deliver/client/pool.rs", "use hyper::Request;"),
        (
            "deliver/lane.rs",
            "let hyper = 1; // hyper::Request\nmy_hyper::go(); self.hyper::<u8>();",
        ),
        ("subscription/mod.rs", "use crate::event::Event;"),
        ("lib.rs", "pub mod store; use crate::app;"),
        ("main.rs", "fn main() { hookbridge::cli::run() }"),
        (
            "config/mod.rs",
            "use crate::broker::tiers::Tiers; fn f<'a>(x: &'a str, y: char) { y == '\\''; crate::route::x() }",
        ),
    ] {
        assert_eq!(check(file, text), [""; 0], "{text}");
    }
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
}

/// What `file` (below `src/`) breaks, one line each.
fn check(file: &str, text: &str) -> Vec<String> {
    let module = file.split('/').next().unwrap().trim_end_matches(".rs");
    let tokens = tokens(text);
    let mut broken = Vec::new();
    let here = |line: usize| format!("src/{file}:{line}");
    let Some(own) = rank(module) else {
        if module != "lib" {
            broken.push(format!("{}: `{module}` has no place in the order", here(1)));
        }
        return broken;
    };
    for (line, imported) in imports(&tokens) {
        let Some(other) = rank(&imported) else {
            continue;
        };
        let stages = STAGES.contains(&module) && STAGES.contains(&&*imported);
        if imported == module
            || other < own
            || (own == other && [NOUNS, ASSEMBLY].contains(&ORDER[own]))
            || own == ORDER.len() - 1
        {
            continue;
        }
        broken.push(match stages {
            true => format!(
                "{}: the stage `{module}` imports the stage `{imported}`",
                here(line)
            ),
            false => format!(
                "{}: `{module}` imports `{imported}`, which does not stand below it",
                here(line)
            ),
        });
    }
    for (library, places) in CONFINED {
        let stem = file.trim_end_matches(".rs");
        let within = |place: &str| stem == place || stem.starts_with(&format!("{place}/"));
        if places.iter().any(|place| within(place)) {
            continue;
        }
        for (at, (line, token)) in tokens.iter().enumerate() {
            if token == library && begins_path(&tokens, at) {
                let places = places.join(", ");
                broken.push(format!(
                    "{}: only {places} may name `{library}`",
                    here(*line)
                ));
            }
        }
    }
    broken
}

/// Whether the word at `at` is the first of a path (`hyper::Request`, `::hyper::Request`), not a
/// later part of one, a field or a variable.
fn begins_path(tokens: &[(usize, String)], at: usize) -> bool {
    let text = |at: Option<usize>| {
        at.and_then(|at| tokens.get(at))
            .map_or("", |(_, t)| t.as_str())
    };
    let (one_before, two_before) = (text(at.checked_sub(1)), text(at.checked_sub(2)));
    let continues =
        one_before == "." || (one_before == "::" && is_word(two_before) && two_before != "use");
    !continues && (one_before == "use" || text(Some(at + 1)) == "::")
}

fn rank(module: &str) -> Option<usize> {
    ORDER.iter().position(|modules| modules.contains(&module))
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// The modules named after `crate::`, with the line of each, groups in braces opened.
fn imports(tokens: &[(usize, String)]) -> Vec<(usize, String)> {
    let text = |at: usize| tokens.get(at).map_or("", |(_, token)| token.as_str());
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        if text(at) != "crate" || text(at + 1) != "::" {
            continue;
        }
        if text(at + 2) != "{" {
            found.extend(tokens.get(at + 2).cloned());
            continue;
        }
        let (mut depth, mut first) = (0, false);
        for (line, token) in &tokens[at + 2..] {
            match token.as_str() {
                "{" => {
                    depth += 1;
                    first = depth == 1;
                }
                "}" if depth == 1 => break,
                "}" => depth -= 1,
                "," => first = depth == 1,
                name if first => {
                    found.push((*line, name.to_owned()));
                    first = false;
                }
                _ => {}
            }
        }
    }
    found
}

/// Words, `::` and single characters with their lines, without comments, strings and characters.
fn tokens(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    let line = |rest: &str| text[..text.len() - rest.len()].matches('\n').count() + 1;
    while let Some(first) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_string(rest) {
            length
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\'' {
            character(rest)
        } else if first.is_alphanumeric() || first == '_' {
            let length = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            found.push((line(rest), rest[..length].to_owned()));
            length
        } else if rest.starts_with("::") {
            found.push((line(rest), "::".to_owned()));
            2
        } else {
            if !first.is_whitespace() {
                found.push((line(rest), first.to_string()));
            }
            first.len_utf8()
        };
        rest = &rest[skip..];
    }
    found
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    loop {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
        } else {
            match rest[at..].chars().next() {
                Some(character) => at += character.len_utf8(),
                None => return at,
            }
        }
        if depth == 0 {
            return at;
        }
    }
}

/// The length of a raw string (`r"..."`, `br#"..."#`) at the start of `rest`.
fn raw_string(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let inside = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = inside.find(&end).map_or(inside.len(), |at| at + end.len());
    Some(rest.len() - inside.len() + length)
}

fn quoted(rest: &str, end: char) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == end => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// A character literal, or only the quote of a lifetime.
fn character(rest: &str) -> usize {
    let mut inside = rest.chars().skip(1);
    match (inside.next(), inside.next()) {
        (Some('\\'), _) => quoted(rest, '\''),
        (Some(character), Some('\'')) => character.len_utf8() + 2,
        _ => 1,
    }
}
